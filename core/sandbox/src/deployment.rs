//! What all filters of one deployment share: parameters, budget, kill count, measured cost.
//!
//! Shards share it without locking on the way of a batch: costs are relaxed atomics (a lost update
//! costs a little accuracy), and only a kill takes the lock.
//!
//! Deliberately absent: the failure policy, and moving a deployment to a worker thread; this says when.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::bitmap::Bitmap;
use crate::component::Component;
use crate::error::{FilterError, StartError};
use crate::filter::{Budget, Context, Filter};
use crate::host::Parameters;
use crate::log::GuestLog;

/// Kills that pause a deployment, when they come within [`KILL_WINDOW`].
const KILLS_MAX: u32 = 3;
const KILL_WINDOW: Duration = Duration::from_secs(60);
/// A deployment that costs more than this for a batch leaves the shard's thread.
const SHARD_COST_MAX: Duration = Duration::from_micros(200);
/// The moving average forgets at this rate: each batch counts one sixteenth.
const AVERAGE_SHIFT: u32 = 4;

/// One component deployed under a name.
#[derive(Debug)]
pub struct Deployment {
    component: Arc<Component>,
    parameters: Parameters,
    budget: Budget,
    log: Arc<GuestLog>,
    made: Instant,
    paused: AtomicBool,
    kills: Mutex<Kills>,
    meter: Meter,
}

/// Which thread a deployment belongs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Cheap and never killed: the shard's own thread.
    Shard,
    /// Too slow, or killed once: a worker thread, order kept.
    Worker,
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
}

/// The latest kills, as times since the deployment was made. Pure.
#[derive(Debug, Default)]
struct Kills(VecDeque<Duration>);

impl Deployment {
    /// A deployment that is not paused and has cost nothing yet.
    #[must_use]
    pub fn new(
        name: &str,
        component: Arc<Component>,
        parameters: Parameters,
        budget: Budget,
    ) -> Arc<Self> {
        Arc::new(Self {
            component,
            parameters,
            budget,
            log: GuestLog::new(name),
            made: Instant::now(),
            paused: AtomicBool::new(false),
            kills: Mutex::default(),
            meter: Meter::default(),
        })
    }

    /// An instance for one shard or subscription. A subscription's own parameters win over the
    /// deployment's.
    pub fn filter(&self, subscription: &Parameters) -> Result<Filter, StartError> {
        let mut parameters = self.parameters.clone();
        for (key, value) in subscription {
            parameters.insert(key.clone(), value.clone());
        }
        Filter::new(&self.component, parameters, self.budget, &self.log)
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
        if self.paused.load(Ordering::Relaxed) {
            return Err(FilterError::Paused {
                kills: KILLS_MAX,
                window_ms: KILL_WINDOW.as_millis() as u64,
            });
        }
        let start = Instant::now();
        let answer = filter.call(context, index, timestamps, raw);
        self.meter.batch(start.elapsed(), timestamps.len());
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
        self.paused.load(Ordering::Relaxed)
    }

    /// Which thread the deployment belongs on, by what it has cost so far.
    #[must_use]
    pub fn placement(&self) -> Placement {
        let average = Duration::from_nanos(self.meter.batch_ns_average.load(Ordering::Relaxed));
        if average > SHARD_COST_MAX || self.meter.kills.load(Ordering::Relaxed) > 0 {
            Placement::Worker
        } else {
            Placement::Shard
        }
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
        if kills.add(now) {
            self.paused.store(true, Ordering::Relaxed);
        }
    }
}

impl Meter {
    fn batch(&self, cost: Duration, records: usize) {
        let cost = u64::try_from(cost.as_nanos()).unwrap_or(u64::MAX);
        let first = self.batches.fetch_add(1, Ordering::Relaxed) == 0;
        add(&self.records, records as u64);
        add(&self.time_ns, cost);
        let old = self.batch_ns_average.load(Ordering::Relaxed);
        let new = if first {
            cost
        } else {
            old - (old >> AVERAGE_SHIFT) + (cost >> AVERAGE_SHIFT)
        };
        self.batch_ns_average.store(new, Ordering::Relaxed);
    }
}

impl Kills {
    /// Counts a kill: whether there have now been too many.
    fn add(&mut self, now: Duration) -> bool {
        self.0.push_back(now);
        while self
            .0
            .front()
            .is_some_and(|at| now.saturating_sub(*at) > KILL_WINDOW)
        {
            self.0.pop_front();
        }
        self.0.len() >= KILLS_MAX as usize
    }
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_kills_within_a_minute_are_too_many() {
        let s = Duration::from_secs;
        let mut kills = Kills::default();
        assert!(!kills.add(s(0)));
        assert!(!kills.add(s(59)));
        assert!(kills.add(s(60)), "0, 59 and 60 s are within a minute");

        let mut slow = Kills::default();
        assert!(!slow.add(s(0)) && !slow.add(s(30)) && !slow.add(s(61)) && !slow.add(s(92)));
        assert!(slow.add(s(93)), "61, 92 and 93 s are within a minute");
        assert_eq!(slow.0.len(), 3);
    }

    #[test]
    fn the_average_follows_the_cost() {
        let meter = Meter::default();
        meter.batch(Duration::from_micros(100), 1);
        assert_eq!(meter.batch_ns_average.load(Ordering::Relaxed), 100_000);
        for _ in 0..200 {
            meter.batch(Duration::from_micros(500), 1);
        }
        let average = meter.batch_ns_average.load(Ordering::Relaxed);
        assert!((490_000..=500_000).contains(&average), "{average}");
    }
}
