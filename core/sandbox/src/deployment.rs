//! What all filters of one deployment share, on whatever thread they are: parameters, budget, kill
//! count, measured cost, and where it belongs by those.
//!
//! Threads share it without locking on the way of a batch: costs are relaxed atomics (a lost update
//! costs a little accuracy), and only a kill takes the lock.
//!
//! Deliberately absent: the failure policy, and the threads; `placement` decides, this keeps the record.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::bitmap::Bitmap;
use crate::component::Component;
use crate::error::{Erred, FilterError, StartError};
use crate::filter::{Budget, Context, Filter};
use crate::host::Parameters;
use crate::log::GuestLog;
use crate::placement::{KILL_WINDOW, KILLS_MAX, Placement, Record, average, place};

/// One component deployed under a name.
#[derive(Debug)]
pub struct Deployment {
    component: Arc<Component>,
    parameters: Parameters,
    budget: Budget,
    log: Arc<GuestLog>,
    made: Instant,
    /// A [`Placement`] as a number.
    placement: AtomicU8,
    retired: AtomicBool,
    kills: Mutex<Kills>,
    meter: Meter,
}

/// What a deployment has done since it was made. For `/metrics`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Batches judged or tried.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// Records kept.
    pub records_kept: u64,
    /// Batches that the component refused.
    pub refused: u64,
    /// Instances killed.
    pub kills: u64,
    /// Time in the component, copies included, in nanoseconds.
    pub time_ns: u64,
    /// Moving average of the time for one batch, in nanoseconds.
    pub batch_ns_average: u64,
    /// Whether calls are refused.
    pub paused: bool,
}

#[derive(Debug, Default)]
struct Meter {
    batches: AtomicU64,
    records: AtomicU64,
    records_kept: AtomicU64,
    refused: AtomicU64,
    kills: AtomicU64,
    time_ns: AtomicU64,
    batch_ns_average: AtomicU64,
    batches_here: AtomicU64,
}

/// The latest kills, as times since the deployment was made. Pure.
#[derive(Debug, Default)]
struct Kills(VecDeque<Duration>);

impl Deployment {
    /// A deployment that has cost nothing yet, and where it begins.
    #[must_use]
    pub fn new(
        name: &str,
        component: Arc<Component>,
        parameters: Parameters,
        budget: Budget,
        placement: Placement,
    ) -> Arc<Self> {
        Arc::new(Self {
            component,
            parameters,
            budget,
            log: GuestLog::new(name),
            made: Instant::now(),
            placement: AtomicU8::new(placement as u8),
            retired: AtomicBool::new(false),
            kills: Mutex::default(),
            meter: Meter::default(),
        })
    }

    /// An instance for one thread or subscription. A subscription's own parameters win over the
    /// deployment's. A crash while starting counts as a kill.
    pub fn filter(&self, subscription: &Parameters) -> Result<Filter, StartError> {
        let mut parameters = self.parameters.clone();
        for (key, value) in subscription {
            parameters.insert(key.clone(), value.clone());
        }
        Filter::new(&self.component, parameters, self.budget, &self.log).inspect_err(|error| {
            if error.erred() == Erred::Component {
                self.killed(Instant::now());
            }
        })
    }

    /// Calls a filter of this deployment and keeps the accounts: see [`Filter::call`].
    pub fn call(
        &self,
        filter: &mut Filter,
        context: &Context<'_>,
        index: &[u32],
        timestamps: &[i64],
        raw: &[u8],
    ) -> Result<Bitmap, FilterError> {
        if self.is_paused() {
            return Err(FilterError::Paused {
                kills: KILLS_MAX,
                window_ms: KILL_WINDOW.as_millis() as u64,
            });
        }
        let start = Instant::now();
        let answer = filter.call(context, index, timestamps, raw);
        self.meter.batch(start.elapsed(), timestamps.len());
        self.settle(0);
        match &answer {
            Ok(bitmap) => add(&self.meter.records_kept, bitmap.kept() as u64),
            Err(FilterError::Refused(_)) => add(&self.meter.refused, 1),
            Err(error) if error.is_kill() => self.killed(start),
            Err(_) => {}
        }
        answer
    }

    /// The component.
    #[must_use]
    pub fn component(&self) -> &Arc<Component> {
        &self.component
    }

    /// Whether calls are refused until the component is deployed again.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.placement() == Placement::Paused
    }

    /// Which thread the deployment belongs on, by what it has cost so far.
    #[must_use]
    pub fn placement(&self) -> Placement {
        placement_of(self.placement.load(Ordering::Relaxed))
    }

    /// It was removed or replaced: whoever holds a filter of it lets go.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }

    /// Whether it was removed or replaced.
    #[must_use]
    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Relaxed)
    }

    /// The accounts.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            batches: read(&self.meter.batches),
            records: read(&self.meter.records),
            records_kept: read(&self.meter.records_kept),
            refused: read(&self.meter.refused),
            kills: read(&self.meter.kills),
            time_ns: read(&self.meter.time_ns),
            batch_ns_average: read(&self.meter.batch_ns_average),
            paused: self.is_paused(),
        }
    }

    fn killed(&self, now: Instant) {
        add(&self.meter.kills, 1);
        let now = now.saturating_duration_since(self.made);
        let mut kills = self.kills.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = kills.add(now);
        drop(kills);
        self.settle(recent);
    }

    /// Decide anew where it belongs. Threads that race here decide the same, or the next batch does.
    fn settle(&self, kills_recent: u32) {
        let now = self.placement();
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let record = Record {
            batch_ns_average: read(&self.meter.batch_ns_average),
            batches_here: read(&self.meter.batches_here),
            kills: read(&self.meter.kills),
            kills_recent,
        };
        let next = place(now, record);
        if next == now {
            return;
        }
        let moved = self.placement.compare_exchange(
            now as u8,
            next as u8,
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
        match moved {
            Ok(_) => {
                self.meter.batches_here.store(0, Ordering::Relaxed);
                let batch_us = record.batch_ns_average / 1_000;
                let (deployment, kills) = (self.log.deployment(), record.kills);
                match next {
                    Placement::Shard => tracing::info!(
                        deployment,
                        batch_us,
                        "the filter is cheap again: back on the shards' threads"
                    ),
                    Placement::Worker => tracing::warn!(
                        deployment,
                        batch_us,
                        kills,
                        "the filter is slow or was killed: it moves to worker threads"
                    ),
                    Placement::Paused => tracing::error!(
                        deployment,
                        kills,
                        "the filter was killed too often and is paused: correct it, then deploy it again"
                    ),
                }
            }
            // A kill that pauses must not get lost to a move at the same moment.
            Err(_) if next == Placement::Paused => {
                self.placement.store(next as u8, Ordering::Relaxed);
            }
            Err(_) => {}
        }
    }
}

fn placement_of(number: u8) -> Placement {
    [Placement::Shard, Placement::Worker]
        .into_iter()
        .find(|placement| *placement as u8 == number)
        .unwrap_or(Placement::Paused)
}

impl Meter {
    fn batch(&self, cost: Duration, records: usize) {
        let cost = u64::try_from(cost.as_nanos()).unwrap_or(u64::MAX);
        add(&self.batches, 1);
        add(&self.batches_here, 1);
        add(&self.records, records as u64);
        add(&self.time_ns, cost);
        let old = self.batch_ns_average.load(Ordering::Relaxed);
        self.batch_ns_average
            .store(average(old, cost), Ordering::Relaxed);
    }
}

impl Kills {
    /// Counts a kill: how many there have now been within the window.
    fn add(&mut self, now: Duration) -> u32 {
        self.0.push_back(now);
        while self
            .0
            .front()
            .is_some_and(|at| now.saturating_sub(*at) > KILL_WINDOW)
        {
            self.0.pop_front();
        }
        // More than pause it say nothing more.
        if self.0.len() > KILLS_MAX as usize {
            self.0.pop_front();
        }
        self.0.len() as u32
    }
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_counted_within_a_minute() {
        let s = Duration::from_secs;
        let mut kills = Kills::default();
        assert_eq!(
            [0, 59, 60].map(|at| kills.add(s(at))),
            [1, 2, 3],
            "0, 59 and 60 s are within a minute"
        );
        let mut slow = Kills::default();
        assert_eq!([0, 30, 61, 92].map(|at| slow.add(s(at))), [1, 2, 2, 2]);
        assert_eq!(slow.add(s(93)), 3, "61, 92 and 93 s are within a minute");
        assert_eq!(slow.0.len(), 3);
    }

    #[test]
    fn the_average_follows_the_cost() {
        let meter = Meter::default();
        for _ in 0..200 {
            meter.batch(Duration::from_micros(500), 1);
        }
        let average = meter.batch_ns_average.load(Ordering::Relaxed);
        assert!((490_000..=500_000).contains(&average), "{average}");
    }
}
