//! Filters on one thread: warm instances by deployment, run over batches, with the failure policy.
//!
//! One host a thread: the shard's task runs the produce stage with it before the machine decides, and
//! a broker's core runs the subscribe stage with another. Absent on purpose: compiling components and
//! finding them (their [`ComponentSource`]), counting kills and pausing (the sandbox's deployment).

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use millstream_batch::ids::{Offset, TimestampMs, TopicId};
use millstream_batch::{Batch, Codec, KeptOffsets, OpenBatch, RecordIndex};
use millstream_machine::request::Produce;
use millstream_machine::topic::{FilterBinding, OnError, Stage};
use millstream_sandbox::{
    Bitmap, Budget, Component, Context, Deployment, Filter, FilterError, Parameters, StartError,
};
use rustc_hash::FxHashMap;

use crate::call::{Error, FilterStatus};
use crate::core::{Now, ShardCore};

/// Instances that the subscriptions of one connection hold at most; past it they take turns.
const CONNECTION_INSTANCES_MAX: usize = 16;
/// A host's share of the pool when its source does not say.
const SHARE: usize = 64;

/// Where compiled components come from. Never blocks.
pub trait ComponentSource: fmt::Debug + Send + Sync {
    /// The component with this SHA-256.
    fn component(&self, digest: &[u8; 32]) -> Lookup;

    /// Instances that one host may hold, so that none takes the room of another.
    fn share(&self) -> usize {
        SHARE
    }
}

/// What a source knows of a component.
#[derive(Clone, Debug)]
pub enum Lookup {
    Ready(Arc<Component>),
    /// It is being compiled or fetched: ask again.
    Loading,
    /// It cannot be had, and why.
    Lost(String),
}

/// A source without components.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoComponents;

impl ComponentSource for NoComponents {
    fn component(&self, _digest: &[u8; 32]) -> Lookup {
        Lookup::Lost("this process holds no components".to_owned())
    }
}

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

/// A subscription, to one host. See [`FilterHost::owner`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    connection: u64,
    subscription: u64,
}

/// Whom instances are kept for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Whose {
    Topic(TopicId),
    Subscription(Owner),
}

/// A batch that is refused: it could not be filtered and the policy is `reject`, or there was no
/// component to filter it with, whatever the policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("filter `{filter}`: {message}")]
pub struct FilterFailure {
    /// The deployment.
    pub filter: String,
    pub message: String,
    pub retriable: bool,
}

/// A deployment as its fact says it.
#[must_use]
pub fn deployment(binding: &FilterBinding, component: Arc<Component>) -> Arc<Deployment> {
    let budget = Budget {
        memory_bytes_max: usize::try_from(binding.budget.memory_bytes_max).unwrap_or(usize::MAX),
        batch_ms_max: binding.budget.batch_ms_max,
        ..Budget::default()
    };
    let parameters = binding.parameters.iter().cloned().collect();
    Deployment::new(&binding.name, component, parameters, budget)
}

/// Warm filters of one thread.
#[derive(Debug)]
pub struct FilterHost {
    source: Arc<dyn ComponentSource>,
    warm: FxHashMap<Whose, Vec<Instance>>,
    counts: FxHashMap<String, FilterStatus>,
    codec: Codec,
    index: Option<RecordIndex>,
    uses: u64,
    owners: u64,
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
    #[must_use]
    pub fn new(source: Arc<dyn ComponentSource>) -> Self {
        Self {
            source,
            warm: FxHashMap::default(),
            counts: FxHashMap::default(),
            codec: Codec::new(),
            index: None,
            uses: 0,
            owners: 0,
        }
    }

    /// A subscription of a connection begins; [`end`](Self::end) it.
    pub fn owner(&mut self, connection: u64) -> Owner {
        self.owners += 1;
        Owner {
            connection,
            subscription: self.owners,
        }
    }

    /// A subscription is over, and so are its instances.
    pub fn end(&mut self, owner: Owner) {
        self.warm.remove(&Whose::Subscription(owner));
    }

    /// Run every filter of `bindings` that belongs to the site's stage over `batch`, in order. The
    /// batch that is left: the same one when nothing was dropped, `None` when nothing was kept. At the
    /// produce stage offsets close up; for a subscription they stay.
    pub fn run(
        &mut self,
        bindings: &[FilterBinding],
        site: &Site<'_>,
        mut batch: Batch,
    ) -> Result<Option<Batch>, FilterFailure> {
        self.drop_gone(bindings, site);
        for binding in bindings
            .iter()
            .filter(|binding| binding.stage == site.stage)
        {
            match self.run_one(binding, site, &batch) {
                Ok(Some(rest)) => batch = rest,
                Ok(None) => return Ok(None),
                Err(Trouble::Batch(message)) => {
                    return Err(FilterFailure {
                        filter: binding.name.clone(),
                        message,
                        retriable: false,
                    });
                }
                Err(Trouble::Loading) => {
                    // Not a fault: neither passing nor dropping would be what was asked for.
                    let message = "the component is loading: try again".to_owned();
                    return Err(FilterFailure {
                        filter: binding.name.clone(),
                        message,
                        retriable: true,
                    });
                }
                Err(Trouble::Lost(message)) => {
                    // No policy applies: it says what to do with a filter's faults, not without one.
                    self.count(&binding.name).errors += 1;
                    return Err(FilterFailure {
                        filter: binding.name.clone(),
                        message,
                        retriable: false,
                    });
                }
                Err(Trouble::Filter { message, retriable }) => {
                    self.count(&binding.name).errors += 1;
                    match binding.on_error {
                        OnError::Pass => {}
                        OnError::Drop => return Ok(None),
                        OnError::Reject => {
                            return Err(FilterFailure {
                                filter: binding.name.clone(),
                                message,
                                retriable,
                            });
                        }
                    }
                }
            }
        }
        Ok(Some(batch))
    }

    /// Counters by deployment, sorted by name.
    #[must_use]
    pub fn status(&self) -> Vec<FilterStatus> {
        let mut rows: Vec<FilterStatus> = self.counts.values().cloned().collect();
        rows.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        for instances in self.warm.values() {
            for instance in instances
                .iter()
                .filter(|instance| instance.deployment.is_paused())
            {
                if let Ok(at) =
                    rows.binary_search_by(|row| row.name.as_str().cmp(&instance.binding.name))
                {
                    rows[at].paused = true;
                }
            }
        }
        rows
    }

    /// Whether there are instances for a topic, of deployments that may be gone by now.
    pub(super) fn is_warm(&self, topic: TopicId) -> bool {
        self.warm.contains_key(&Whose::Topic(topic))
    }

    /// The produce stage: the request and the bytes as they will be appended.
    pub(super) fn produce(
        &mut self,
        core: &ShardCore,
        now: Now,
        request: Produce,
        raw: Vec<Bytes>,
    ) -> Result<(Produce, Vec<Bytes>), Error> {
        let bindings = core.state().filters(request.partition);
        let Some(topic) = core.state().topic(request.partition.topic) else {
            return Ok((request, raw));
        };
        if bindings
            .iter()
            .all(|binding| binding.stage != Stage::Produce)
        {
            self.warm.remove(&Whose::Topic(topic.id));
            return Ok((request, raw));
        }
        if core.decides_duplicate(now, request) {
            return Ok((request, raw));
        }
        let batch = Batch::parse(join(raw)).map_err(|error| Error::BadBatch(error.to_string()))?;
        let site = Site {
            topic: topic.id,
            topic_name: &topic.name,
            partition: request.partition.index,
            stage: Stage::Produce,
            time: now.wall,
            base_offset: None,
            own: None,
        };
        let rest = self
            .run(bindings, &site, batch)
            .map_err(|failure| Error::Filter {
                filter: failure.filter,
                message: failure.message,
                retriable: failure.retriable,
            })?;
        let Some(rest) = rest else {
            return Ok((
                Produce {
                    kept: 0,
                    bytes: 0,
                    ..request
                },
                Vec::new(),
            ));
        };
        let header = rest.header();
        let request = Produce {
            kept: header.records,
            bytes: header.size() as u32,
            max_timestamp: TimestampMs(header.max_timestamp),
            ..request
        };
        Ok((request, vec![rest.into_bytes()]))
    }

    fn run_one(
        &mut self,
        binding: &FilterBinding,
        site: &Site<'_>,
        batch: &Batch,
    ) -> Result<Option<Batch>, Trouble> {
        let started = Instant::now();
        let index = self.index.take().unwrap_or_default();
        let open = OpenBatch::open(batch.clone(), &mut self.codec, index)
            .map_err(|error| Trouble::Batch(format!("the records cannot be read: {error}")))?;
        let bitmap = self.judge(binding, site, &open);
        let kept = match &bitmap {
            Ok(bitmap) => open
                .retain(bitmap.as_bytes(), offsets(site.stage), &mut self.codec)
                .map_err(|error| Trouble::Batch(format!("what is kept cannot be stored: {error}"))),
            Err(_) => Ok(None),
        };
        if !matches!(bitmap, Err(Trouble::Loading)) {
            let count = self.count(&binding.name);
            count.calls += 1;
            count.records += u64::from(batch.header().records);
            count.kept += bitmap.as_ref().map_or(0, |bitmap| bitmap.kept() as u64);
            count.micros += started.elapsed().as_micros() as u64;
        }
        self.index = Some(open.into_index());
        bitmap.and(kept)
    }

    fn judge(
        &mut self,
        binding: &FilterBinding,
        site: &Site<'_>,
        open: &OpenBatch,
    ) -> Result<Bitmap, Trouble> {
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
        let Instance {
            deployment, filter, ..
        } = self.instance(binding, site)?;
        deployment
            .call(
                filter,
                &context,
                open.index().index(),
                open.index().timestamps(),
                open.raw(),
            )
            .map_err(|error| Trouble::Filter {
                retriable: match &error {
                    FilterError::OutOfTime { .. } => true,
                    FilterError::Restart(start) => is_retriable(start),
                    _ => false,
                },
                message: error.to_string(),
            })
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
        let current = found.filter(|at| instances[*at].binding == *binding);
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
        let component = match self.source.component(&binding.digest) {
            Lookup::Ready(component) => component,
            Lookup::Loading => return Err(Trouble::Loading),
            Lookup::Lost(why) => return Err(Trouble::Lost(why)),
        };
        let share = self.source.share().max(1);
        if let Whose::Subscription(owner) = whose {
            let same = |whose: &Whose| matches!(whose, Whose::Subscription(of) if of.connection == owner.connection);
            let most = CONNECTION_INSTANCES_MAX.min(share / 2).max(1);
            while self.held(same) >= most && self.evict_coldest(same) {}
        }
        while self.held(|_| true) >= share && self.evict_coldest(|_| true) {}
        let deployment = deployment(binding, component);
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

    fn count(&mut self, name: &str) -> &mut FilterStatus {
        if !self.counts.contains_key(name) {
            self.counts.insert(
                name.to_owned(),
                FilterStatus {
                    name: name.to_owned(),
                    ..FilterStatus::default()
                },
            );
        }
        self.counts.get_mut(name).expect("it was inserted")
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
enum Trouble {
    Loading,
    /// There is no component to ask, until it is deployed again.
    Lost(String),
    /// The producer's fault: no policy applies.
    Batch(String),
    Filter {
        message: String,
        retriable: bool,
    },
}

fn offsets(stage: Stage) -> KeptOffsets {
    match stage {
        Stage::Produce => KeptOffsets::Renumber,
        Stage::Subscribe => KeptOffsets::Sparse,
    }
}

fn is_retriable(error: &StartError) -> bool {
    matches!(error, StartError::NoRoom(_) | StartError::OutOfTime { .. })
}

/// One piece: copied only when it came in several.
fn join(mut raw: Vec<Bytes>) -> Bytes {
    if raw.len() == 1 {
        return raw.remove(0);
    }
    let mut whole = BytesMut::with_capacity(raw.iter().map(Bytes::len).sum());
    for part in raw {
        whole.extend_from_slice(&part);
    }
    whole.freeze()
}
