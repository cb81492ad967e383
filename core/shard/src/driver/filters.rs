//! Filters on one thread: warm instances by deployment, run over batches, with the failure policy.
//!
//! One host a thread: the shard's task runs the produce stage with it before the machine decides, a
//! broker's core runs the subscribe stage with another, and each worker thread has one for what is
//! slow. Absent on purpose: compiling components and finding them (their `ComponentSource`), counting
//! kills (the sandbox's deployment), and handing batches to workers ([`lanes`], the subscriptions).

pub(super) mod counts;
pub(super) mod deployments;
mod kept;
pub(super) mod lanes;
mod policy;
mod records;
#[cfg(test)]
mod tests;
mod told;
pub(super) mod workers;

use std::sync::Arc;
use std::time::Instant;

use millstream_batch::ids::{Offset, TimestampMs, TopicId};
use millstream_batch::{Batch, Codec, KeptOffsets, OpenBatch, RecordIndex};
use millstream_machine::topics::{FilterBinding, OnError, Stage};
use millstream_sandbox::{
    Context, Deployment, Erred, Filter, FilterError, Parameters, Placement, StartError, Verdict,
    View,
};
use rustc_hash::FxHashMap;

use self::counts::FilterCounts;
use self::deployments::{Deployments, Whose};
use self::kept::KeptRecords;
use self::policy::{Ruling, Stop};
use crate::call::{FilterStatus, Kept};

/// Instances that the subscriptions of one connection hold at most; past it they take turns.
const CONNECTION_INSTANCES_MAX: usize = 16;

/// Where a batch stands when it is filtered.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    pub topic: TopicId,
    pub topic_name: &'a str,
    pub partition: u32,
    pub stage: Stage,
    /// Append time; at the produce stage, now.
    pub time: TimestampMs,
    /// `None` at the produce stage.
    pub base_offset: Option<Offset>,
    /// What a subscription wants begins here: what is before it stops nothing.
    pub from: Offset,
    /// Set when the filters run for one subscription alone.
    pub own: Option<Own<'a>>,
}

/// What a subscription brings to a filter that runs for it alone.
#[derive(Clone, Copy, Debug)]
pub struct Own<'a> {
    pub owner: Owner,
    /// They win over the deployment's.
    pub parameters: &'a Parameters,
}

/// A subscription, to all hosts. See [`Deployments::owner`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    pub(super) connection: u64,
    pub(super) subscription: u64,
}

/// A batch that is refused whole, or a record that a subscription does not pass: it could not be filtered
/// and the policy is `reject`, or there was no component to filter it with, whatever the policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("filter `{filter}`: {message}")]
pub struct FilterFailure {
    /// The deployment.
    pub filter: String,
    pub message: String,
    pub retriable: bool,
}

/// Why a batch did not get through its filters here.
#[derive(Debug)]
pub enum Halt {
    Failed(FilterFailure),
    /// Some of its records cannot be judged, and which may take long to find out: a worker's business.
    Worker,
}

/// What filters left of a batch.
#[derive(Debug)]
pub struct Rest {
    /// `None`: nothing was kept.
    pub batch: Option<Batch>,
    /// For a subscription: the offset of the record that it does not pass, and why. The batch holds none
    /// from there on.
    pub stop: Option<(Offset, FilterFailure)>,
    /// `None`: everything was kept.
    pub(super) kept: Option<Kept>,
}

/// Warm filters of one thread.
#[derive(Debug)]
pub struct FilterHost {
    deployments: Arc<Deployments>,
    warm: FxHashMap<Whose, Vec<Instance>>,
    counts: Arc<FilterCounts>,
    codec: Codec,
    index: Option<RecordIndex>,
    uses: u64,
    /// It is a worker's, who may take his time.
    is_worker: bool,
}

#[derive(Debug)]
struct Instance {
    binding: FilterBinding,
    parameters: Parameters,
    deployment: Arc<Deployment>,
    filter: Filter,
    /// For eviction: the use it was last needed in.
    used: u64,
}

impl FilterHost {
    /// The host of a shard's or connection's thread, without instances. What it does is counted in `counts`.
    #[must_use]
    pub fn new(deployments: Arc<Deployments>, counts: Arc<FilterCounts>) -> Self {
        Self {
            deployments,
            warm: FxHashMap::default(),
            counts,
            codec: Codec::new(),
            index: None,
            uses: 0,
            is_worker: false,
        }
    }

    /// The host of a worker thread: it searches batches for the records at fault.
    #[must_use]
    pub fn of_worker(deployments: Arc<Deployments>, counts: Arc<FilterCounts>) -> Self {
        Self {
            is_worker: true,
            ..Self::new(deployments, counts)
        }
    }

    /// A subscription is over, and so are its instances, here and on worker threads.
    pub fn end(&mut self, owner: Owner) {
        self.warm.remove(&Whose::Subscription(owner));
        self.deployments.end(owner);
    }

    /// Whether a batch for these filters is to be handed to a worker thread, since one of them is slow
    /// or was killed (the instances here are then let go).
    pub fn is_for_worker(&mut self, bindings: &[FilterBinding], site: &Site<'_>) -> bool {
        let whose = site.whose();
        let warm = self.warm.get(&whose).map_or(&[][..], |i| i.as_slice());
        let slow = bindings
            .iter()
            .filter(|binding| binding.stage == site.stage)
            .any(|binding| {
                let of_binding =
                    |i: &&Instance| i.binding == *binding && !i.deployment.is_retired();
                let placement = match warm.iter().find(of_binding) {
                    Some(instance) => instance.deployment.placement(),
                    None => self.deployments.placement(whose, binding),
                };
                placement == Placement::Worker
            });
        if slow {
            self.warm.remove(&whose);
        }
        slow
    }

    /// Let go of instances that were removed or replaced, or that do not belong on a worker thread.
    pub(super) fn keep_slow(&mut self) {
        self.warm.retain(|_, instances| {
            instances.retain(|i| {
                !i.deployment.is_retired() && i.deployment.placement() == Placement::Worker
            });
            !instances.is_empty()
        });
    }

    /// Whether there are no instances.
    pub(super) fn is_cold(&self) -> bool {
        self.warm.is_empty()
    }

    /// What was counted since; afterwards nothing is.
    pub fn take_counts(&mut self) -> Vec<FilterStatus> {
        self.counts.take()
    }

    /// Let go of a topic's instances.
    pub(super) fn forget(&mut self, topic: TopicId) {
        self.warm.remove(&Whose::Topic(topic));
    }

    /// Run every filter of `bindings` that belongs to the site's stage over `batch`, in order. The batch
    /// that is left is the same one when nothing was dropped. At the produce stage offsets close up; for a
    /// subscription they stay, and after [`Halt::Worker`] the same batch is to be given to a worker.
    ///
    /// # Errors
    /// The batch is refused whole, or is a worker's.
    pub fn run(
        &mut self,
        bindings: &[FilterBinding],
        site: &Site<'_>,
        mut batch: Batch,
    ) -> Result<Rest, Halt> {
        self.drop_gone(bindings, site);
        let mut kept = KeptRecords::all_of(batch.header().records);
        let mut stop = None;
        for binding in bindings
            .iter()
            .filter(|binding| binding.stage == site.stage)
        {
            let failed = |message: String, retriable: bool| {
                Halt::Failed(FilterFailure {
                    filter: binding.name.clone(),
                    message,
                    retriable,
                })
            };
            match self.run_one(binding, site, &batch) {
                Ok((rest, ruling)) => {
                    kept.refuse(&binding.name, &ruling.refused, &ruling.reasons);
                    kept.narrow(&ruling.keep);
                    if let Some(Stop { offset, why }) = ruling.stop {
                        let failure = FilterFailure {
                            filter: binding.name.clone(),
                            message: why.of_record(),
                            retriable: false,
                        };
                        stop = Some((offset, failure));
                    }
                    match rest {
                        Some(rest) => batch = rest,
                        None => {
                            let (batch, kept) = (None, kept.told());
                            return Ok(Rest { batch, stop, kept });
                        }
                    }
                }
                Err(Trouble::Worker) => return Err(Halt::Worker),
                Err(Trouble::Batch(message)) => return Err(failed(message, false)),
                Err(Trouble::Loading) => {
                    // Not a fault: neither passing nor dropping would be what was asked for.
                    let message = "the component is loading: try again".to_owned();
                    return Err(failed(message, true));
                }
                Err(Trouble::Off(message)) => {
                    // No policy applies: it says what to do with a filter's faults, not without one. Passing
                    // or dropping everything from now on would look like success.
                    self.counts.of(&binding.name, |count| count.errors += 1);
                    return Err(failed(message, false));
                }
                Err(Trouble::Filter { message, retriable }) => {
                    self.counts.of(&binding.name, |count| count.errors += 1);
                    match binding.on_error {
                        OnError::Pass => {}
                        OnError::Drop => {
                            kept.drop_all();
                            let (batch, kept) = (None, kept.told());
                            return Ok(Rest { batch, stop, kept });
                        }
                        OnError::Reject => return Err(failed(message, retriable)),
                    }
                }
            }
        }
        Ok(Rest {
            batch: Some(batch),
            stop,
            kept: kept.told(),
        })
    }

    /// Counters by deployment, sorted by name, and where each deployment belongs.
    #[must_use]
    pub fn status(&self) -> Vec<FilterStatus> {
        let mut rows = self.counts.rows();
        for row in &mut rows {
            let placements = self.deployments.placements(&row.name);
            row.paused = placements.contains(&Placement::Paused);
            row.worker = placements.contains(&Placement::Worker);
        }
        rows
    }

    /// Whether there are instances for a topic, of deployments that may be gone by now.
    pub(super) fn is_warm(&self, topic: TopicId) -> bool {
        self.warm.contains_key(&Whose::Topic(topic))
    }

    fn run_one(
        &mut self,
        binding: &FilterBinding,
        site: &Site<'_>,
        batch: &Batch,
    ) -> Result<(Option<Batch>, Ruling), Trouble> {
        let started = Instant::now();
        let index = self.index.take().unwrap_or_default();
        let open = OpenBatch::open(batch.clone(), &mut self.codec, index)
            .map_err(|error| Trouble::Batch(format!("the records cannot be read: {error}")))?;
        let verdict = self.judge(binding, site, &open);
        let failed = verdict
            .as_ref()
            .map_or(0, |verdict| verdict.failed.len() as u64);
        let stops =
            failed > 0 && site.stage == Stage::Subscribe && binding.on_error == OnError::Reject;
        let offsets = if stops {
            offsets_of(site, &open)
        } else {
            Vec::new()
        };
        let ruling = verdict.map(|verdict| match site.stage {
            Stage::Produce => Ruling::at_produce(verdict, binding.on_error),
            Stage::Subscribe => {
                Ruling::for_subscription(verdict, binding.on_error, &offsets, site.from)
            }
        });
        let rest = match &ruling {
            Ok(ruling) => open
                .retain(
                    ruling.keep.as_bytes(),
                    kept_offsets(site.stage),
                    &mut self.codec,
                )
                .map_err(|error| Trouble::Batch(format!("what is kept cannot be stored: {error}"))),
            Err(_) => Ok(None),
        };
        if !matches!(ruling, Err(Trouble::Loading | Trouble::Worker)) {
            let kept = ruling
                .as_ref()
                .map_or(0, |ruling| ruling.keep.kept() as u64);
            self.counts.of(&binding.name, |count| {
                count.calls += 1;
                count.records += u64::from(batch.header().records);
                count.kept += kept;
                count.failed += failed;
                count.nanos += started.elapsed().as_nanos() as u64;
            });
        }
        self.index = Some(open.into_index());
        let ruling = ruling?;
        Ok((rest?, ruling))
    }

    fn judge(
        &mut self,
        binding: &FilterBinding,
        site: &Site<'_>,
        open: &OpenBatch,
    ) -> Result<Verdict, Trouble> {
        let stage = match site.stage {
            Stage::Produce => millstream_sandbox::Stage::Produce,
            Stage::Subscribe => millstream_sandbox::Stage::Subscription,
        };
        let context = Context {
            topic: site.topic_name,
            partition: site.partition,
            stage,
            time: site.time,
            base_offset: site.base_offset,
        };
        let view = View {
            context: &context,
            index: open.index().index(),
            timestamps: open.index().timestamps(),
            raw: open.raw(),
        };
        let (counts, is_worker) = (Arc::clone(&self.counts), self.is_worker);
        let Instance {
            deployment, filter, ..
        } = self.instance(binding, site)?;
        let kills = filter.kills();
        let verdict = match deployment.judge(filter, &view) {
            Err(error) if error.may_be_of_a_record() && !is_worker => Err(Trouble::Worker),
            Err(error) if error.may_be_of_a_record() => deployment
                .search(filter, &view, error)
                .map_err(|error| of_batch(&error)),
            judged => judged.map_err(|error| of_batch(&error)),
        };
        let kills = filter.kills() - kills;
        if kills > 0 {
            counts.of(&binding.name, |count| count.kills += kills);
        }
        verdict
    }

    /// The warm instance of a binding; started when there is none or the binding has changed.
    fn instance(
        &mut self,
        binding: &FilterBinding,
        site: &Site<'_>,
    ) -> Result<&mut Instance, Trouble> {
        self.uses += 1;
        let none = Parameters::new();
        let parameters = site.own.map_or(&none, |own| own.parameters);
        let whose = site.whose();
        let of_name = |i: &Instance| {
            i.binding.name == binding.name
                && i.binding.stage == binding.stage
                && i.parameters == *parameters
        };
        let instances = self.warm.entry(whose).or_default();
        let found = instances.iter().position(of_name);
        let is_current = |i: &Instance| i.binding == *binding && !i.deployment.is_retired();
        let current = found.filter(|at| is_current(&instances[*at]));
        if current.is_none() {
            if let Some(at) = found {
                instances.remove(at);
            }
            let started = self.start(binding, parameters, whose);
            let instances = self.warm.entry(whose).or_default();
            match started {
                Ok(instance) => instances.push(instance),
                Err(trouble) => {
                    if instances.is_empty() {
                        self.warm.remove(&whose);
                    }
                    return Err(trouble);
                }
            }
        }
        let instances = self.warm.entry(whose).or_default();
        let last = instances.len() - 1;
        let instance = &mut instances[current.unwrap_or(last)];
        instance.used = self.uses;
        Ok(instance)
    }

    fn start(
        &mut self,
        binding: &FilterBinding,
        parameters: &Parameters,
        whose: Whose,
    ) -> Result<Instance, Trouble> {
        let deployment = self.deployments.obtain(whose, binding)?;
        let share = self.deployments.share();
        if let Whose::Subscription(owner) = whose {
            let same = |whose: &Whose| matches!(whose, Whose::Subscription(of) if of.connection == owner.connection);
            let most = CONNECTION_INSTANCES_MAX.min(share / 2).max(1);
            while self.held(same) >= most && self.evict_coldest(same) {}
        }
        while self.held(|_| true) >= share && self.evict_coldest(|_| true) {}
        loop {
            match deployment.filter(parameters) {
                Ok(filter) => {
                    return Ok(Instance {
                        binding: binding.clone(),
                        parameters: parameters.clone(),
                        deployment,
                        filter,
                        used: self.uses,
                    });
                }
                Err(StartError::NoRoom(_)) if self.evict_coldest(|_| true) => {}
                Err(error) => {
                    if error.erred() == Erred::Component {
                        self.counts.of(&binding.name, |count| count.kills += 1);
                    }
                    return Err(Trouble::Filter {
                        retriable: is_retriable(&error),
                        message: error.to_string(),
                    });
                }
            }
        }
    }

    /// Let go of instances whose deployment is not the topic's any more.
    fn drop_gone(&mut self, bindings: &[FilterBinding], site: &Site<'_>) {
        let whose = site.whose();
        if site.own.is_some() || self.warm.is_empty() {
            return;
        }
        let Some(instances) = self.warm.get_mut(&whose) else {
            return;
        };
        let of_stage = |binding: &&FilterBinding| binding.stage == site.stage;
        if instances.len() > bindings.iter().filter(of_stage).count() {
            instances.retain(|instance| bindings.contains(&instance.binding));
            if instances.is_empty() {
                self.warm.remove(&whose);
            }
        }
    }

    /// Instances held for some.
    fn held(&self, of: impl Fn(&Whose) -> bool) -> usize {
        let held = self.warm.iter().filter(|(whose, _)| of(whose));
        held.map(|(_, instances)| instances.len()).sum()
    }

    /// Let go of the instance that was needed longest ago, among those of some. Whether there was one.
    fn evict_coldest(&mut self, of: impl Fn(&Whose) -> bool) -> bool {
        let coldest = self
            .warm
            .iter()
            .filter(|(whose, _)| of(whose))
            .flat_map(|(whose, instances)| {
                let numbered = instances.iter().enumerate();
                numbered.map(|(at, instance)| (instance.used, *whose, at))
            })
            .min_by_key(|(used, ..)| *used);
        let Some((_, whose, at)) = coldest else {
            return false;
        };
        if let Some(instances) = self.warm.get_mut(&whose) {
            instances.remove(at);
            if instances.is_empty() {
                self.warm.remove(&whose);
            }
        }
        true
    }
}

impl Site<'_> {
    fn whose(&self) -> Whose {
        match self.own {
            Some(own) => Whose::Subscription(own.owner),
            None => Whose::Topic(self.topic),
        }
    }
}

/// Why a filter gave no verdict.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Which records are at fault is to be searched for.
    Worker,
    Loading,
    /// There is no component to ask, or it is not asked any more, until it is deployed again.
    Off(String),
    /// The producer's fault: no policy applies.
    Batch(String),
    Filter {
        message: String,
        retriable: bool,
    },
}

/// Of the records of a batch as it is stored.
fn offsets_of(site: &Site<'_>, open: &OpenBatch) -> Vec<Offset> {
    let base = site.base_offset.map_or(0, |base| base.0);
    let first = open.batch().header().base_offset;
    let offset = |record: millstream_batch::Record<'_>| record.offset.abs_diff(first) + base;
    let records = open.batch().header().records(open.raw()).flatten();
    records.map(|record| Offset(offset(record))).collect()
}

fn kept_offsets(stage: Stage) -> KeptOffsets {
    match stage {
        Stage::Produce => KeptOffsets::Renumber,
        Stage::Subscribe => KeptOffsets::Sparse,
    }
}

fn of_batch(error: &FilterError) -> Trouble {
    let message = error.to_string();
    match error {
        FilterError::Paused { .. } => Trouble::Off(message),
        FilterError::Restart(start) => Trouble::Filter {
            retriable: is_retriable(start),
            message,
        },
        _ => Trouble::Filter {
            retriable: false,
            message,
        },
    }
}

fn is_retriable(error: &StartError) -> bool {
    matches!(error, StartError::NoRoom(_) | StartError::OutOfTime { .. })
}
