//! What all filters of one deployment share, on whatever thread they are: parameters, budget, kill
//! count, measured cost, and where it belongs by those.
//!
//! Threads share it without locking on the way of a batch: costs are relaxed atomics (a lost update
//! costs a little accuracy), and only a kill takes the lock.
//!
//! Deliberately absent: the failure policy, and the threads; `placement` decides, this keeps the record.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use millstream_batch::STRIDE;

use crate::bitmap::Bitmap;
use crate::component::Component;
use crate::error::{Erred, FilterError, StartError};
use crate::filter::{Budget, Context, Filter};
use crate::host::Parameters;
use crate::kills::Kills;
use crate::log::GuestLog;
use crate::placement::{KILL_WINDOW, KILLS_MAX, Placement, Record, average, place};
use crate::verdict::{Search, Verdict};

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
    starts: AtomicBool,
    kills: Mutex<Kills>,
    /// Something is in `kills`: most deployments never take its lock.
    has_kills: AtomicBool,
    last_error: Mutex<Option<LastError>>,
    meter: Meter,
}

/// What went wrong last with a deployment, since it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastError {
    /// Which record or batch, and what.
    pub text: String,
    /// When that was.
    pub at: SystemTime,
    /// When the first of all errors was.
    pub since: SystemTime,
    /// Records, batches and starts that failed since then.
    pub errors: u64,
}

/// A batch as a filter sees it: a [`RecordIndex`](millstream_batch::RecordIndex) over `raw`, the inflated
/// records section.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Where it stands.
    pub context: &'a Context<'a>,
    /// `STRIDE` numbers a record.
    pub index: &'a [u32],
    /// One a record.
    pub timestamps: &'a [i64],
    /// The bytes that the index points into.
    pub raw: &'a [u8],
}

impl<'a> View<'a> {
    /// Some of the records, as if they were all: their index and bytes.
    fn part(&self, part: &Range<usize>) -> (Vec<u32>, &'a [u8]) {
        let at = |record: usize| match self.index.get(record * STRIDE) {
            Some(at) => *at as usize,
            None => self.raw.len(),
        };
        let (from, to) = (at(part.start), at(part.end));
        let mut index = self.index[part.start * STRIDE..part.end * STRIDE].to_vec();
        for numbers in index.chunks_exact_mut(STRIDE) {
            // Of a record, its key, its value and its headers; lengths stay.
            for number in [0, 1, 3, 5] {
                numbers[number] -= from as u32;
            }
        }
        (index, &self.raw[from..to])
    }

    /// A number for a record's key, value and headers, wherever it stands.
    fn hash(&self, record: usize) -> u64 {
        let (index, raw) = self.part(&(record..record + 1));
        let mut hasher = DefaultHasher::new();
        raw[index[1] as usize..].hash(&mut hasher);
        hasher.finish()
    }
}

#[derive(Debug, Default)]
struct Meter {
    kills: AtomicU64,
    batch_ns_average: AtomicU64,
    batches_here: AtomicU64,
}

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
            starts: AtomicBool::new(true),
            kills: Mutex::default(),
            has_kills: AtomicBool::new(false),
            last_error: Mutex::default(),
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
        let started = Filter::new(&self.component, parameters, self.budget, &self.log);
        if !matches!(started, Err(StartError::NoRoom(_))) {
            self.starts.store(started.is_ok(), Ordering::Relaxed);
        }
        started.inspect_err(|error| {
            if error.erred() == Erred::Component {
                add(&self.meter.kills, 1);
                self.killed(None, true);
            }
            self.note(1, format!("starting: {error}"));
        })
    }

    /// Asks a filter of this deployment about a batch, and keeps the accounts.
    ///
    /// # Errors
    /// One that [may be of a record](FilterError::may_be_of_a_record): [`search`](Self::search), where that
    /// may take its time. All others are the whole batch's.
    pub fn judge(&self, filter: &mut Filter, view: &View<'_>) -> Result<Verdict, FilterError> {
        if self.is_paused() {
            return Err(FilterError::Paused {
                kills: KILLS_MAX,
                window_ms: KILL_WINDOW.as_millis() as u64,
            });
        }
        let (start, records) = (Instant::now(), view.timestamps.len());
        let answer = self.ask(filter, view, 0..records);
        self.meter.batch(start.elapsed());
        self.settle(0);
        match answer {
            Ok(kept) => {
                if self.has_kills.load(Ordering::Relaxed) {
                    self.kills().judged();
                }
                Ok(Verdict::of(kept))
            }
            Err(error) => {
                if !error.may_be_of_a_record() {
                    self.failed_whole(view, &error);
                }
                Err(error)
            }
        }
    }

    /// After [`judge`](Self::judge) failed with `error`: which records are at fault? All others are judged.
    /// Takes some `2 × log2(records)` calls for each of them, so prefer a worker thread.
    ///
    /// # Errors
    /// The fault is no record's.
    pub fn search(
        &self,
        filter: &mut Filter,
        view: &View<'_>,
        error: FilterError,
    ) -> Result<Verdict, FilterError> {
        let first = error.clone();
        let budget = Duration::from_millis(self.budget.batch_ms_max.into());
        let found = Search::new(view.timestamps.len(), error).and_then(|search| {
            let mut search = search.of_calls_within(budget);
            while let Some(part) = search.part() {
                let asked = Instant::now();
                let answer = self.ask(filter, view, part);
                search.spend(asked.elapsed());
                search.answer(answer)?;
            }
            Ok(search.verdict())
        });
        match &found {
            Err(error) => self.failed_whole(view, error),
            Ok(verdict) => {
                self.failed_in_part(view, verdict, &first);
            }
        }
        found
    }

    /// Whether the last instance that was asked for started.
    #[must_use]
    pub fn starts(&self) -> bool {
        self.starts.load(Ordering::Relaxed)
    }

    /// What went wrong last, if anything has.
    #[must_use]
    pub fn last_error(&self) -> Option<LastError> {
        self.last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
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

    /// One call about a part of a batch.
    fn ask(
        &self,
        filter: &mut Filter,
        view: &View<'_>,
        part: Range<usize>,
    ) -> Result<Bitmap, FilterError> {
        let kills = filter.kills();
        let answer = if part.len() == view.timestamps.len() {
            filter.call(view.context, view.index, view.timestamps, view.raw)
        } else {
            let (index, raw) = view.part(&part);
            filter.call(view.context, &index, &view.timestamps[part], raw)
        };
        add(&self.meter.kills, filter.kills() - kills);
        answer
    }

    /// A batch got no verdict at all.
    fn failed_whole(&self, view: &View<'_>, error: &FilterError) {
        if matches!(error, FilterError::Paused { .. }) {
            return; // what led there is the last error
        }
        if error.is_kill() {
            self.killed(None, true);
        }
        let Context {
            topic, partition, ..
        } = view.context;
        self.note(1, format!("a batch of {topic}/{partition}: {error}"));
    }

    fn failed_in_part(&self, view: &View<'_>, verdict: &Verdict, first: &FilterError) {
        if verdict.judged_some() {
            self.kills().judged();
        }
        let reasons = || verdict.failed.iter().zip(&verdict.reasons);
        for (record, error) in reasons().filter(|(_, error)| error.is_kill()) {
            self.killed(Some(view.hash(*record as usize)), error.is_proof());
        }
        let Context {
            topic, partition, ..
        } = view.context;
        if let Some((record, error)) = reasons().next_back() {
            let place = match view.context.base_offset {
                Some(base) => {
                    format!("record {record} of the batch at offset {base} of {topic}/{partition}")
                }
                None => format!("record {record} of a batch produced to {topic}/{partition}"),
            };
            let failed = verdict.failed.len() as u64;
            self.note(failed, format!("{place}: {}", error.of_record()));
        } else if first.is_kill() {
            match first {
                // Whoever sends large batches must not switch a filter off.
                FilterError::OverMemory { .. } | FilterError::OutOfTime { .. } => self.too_large(),
                _ => self.killed(None, true),
            }
            let text = "records fail together that pass apart: suspect the time or memory budget, or state that it keeps";
            self.note(1, format!("a batch of {topic}/{partition}: {text}"));
        }
    }

    fn note(&self, errors: u64, text: String) {
        let now = SystemTime::now();
        let mut last = self
            .last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (since, before) = last
            .as_ref()
            .map_or((now, 0), |last| (last.since, last.errors));
        let errors = before + errors;
        *last = Some(LastError {
            text,
            at: now,
            since,
            errors,
        });
    }

    /// An instance was killed, by a record or by none alone.
    fn killed(&self, record: Option<u64>, is_proof: bool) {
        self.has_kills.store(true, Ordering::Relaxed);
        let now = self.made.elapsed();
        let recent = self.kills().add(now, record, is_proof);
        self.settle(recent);
    }

    /// A batch needed more than the budget, and its records did not.
    fn too_large(&self) {
        self.has_kills.store(true, Ordering::Relaxed);
        let now = self.made.elapsed();
        let recent = self.kills().too_large(now);
        self.settle(recent);
    }

    fn kills(&self) -> MutexGuard<'_, Kills> {
        self.kills.lock().unwrap_or_else(PoisonError::into_inner)
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
                        "the filter was killed too often and is paused: its batches are refused whatever its on_error says; \
                         correct it, then deploy it again"
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
    fn batch(&self, cost: Duration) {
        let cost = nanos(cost);
        add(&self.batches_here, 1);
        let old = self.batch_ns_average.load(Ordering::Relaxed);
        self.batch_ns_average
            .store(average(old, cost), Ordering::Relaxed);
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}
