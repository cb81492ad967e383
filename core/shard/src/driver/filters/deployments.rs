//! The deployments of a broker, over all its threads: one [`Deployment`] for each binding, so that what it
//! costs and how often it is killed is counted once, wherever it runs.
//!
//! Absent on purpose: instances (each thread's host), and deployments as facts (the catalog): whoever
//! changes those says so with [`Deployments::keep`] and [`Deployments::renew`].

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use millstream_batch::ids::TopicId;
use millstream_machine::topics::FilterBinding;
use millstream_sandbox::{Budget, Component, Deployment, Parameters, Placement, StartError};
use rustc_hash::FxHashMap;

use super::{Owner, Trouble};

/// A host's share of the pool of instances when its source does not say.
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

/// Whom a deployment runs for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Whose {
    Topic(TopicId),
    Subscription(Owner),
}

/// See the module's header. One a broker.
#[derive(Debug)]
pub struct Deployments {
    source: Arc<dyn ComponentSource>,
    by_whose: Mutex<FxHashMap<Whose, Vec<Known>>>,
    owners: AtomicU64,
}

#[derive(Debug)]
struct Known {
    binding: FilterBinding,
    deployment: Arc<Deployment>,
}

impl Deployments {
    #[must_use]
    pub fn new(source: Arc<dyn ComponentSource>) -> Arc<Self> {
        Arc::new(Self {
            source,
            by_whose: Mutex::default(),
            owners: AtomicU64::new(0),
        })
    }

    /// A subscription of a connection begins; [`FilterHost::end`](super::FilterHost::end) it.
    #[must_use]
    pub fn owner(&self, connection: u64) -> Owner {
        Owner {
            connection,
            subscription: self.owners.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// A topic now has these filters and no others.
    pub fn keep(&self, topic: TopicId, bindings: &[FilterBinding]) {
        self.retire(Whose::Topic(topic), |known| {
            !bindings.contains(&known.binding)
        });
    }

    /// A filter was deployed again: it begins anew, also when nothing of it has changed.
    pub fn renew(&self, topic: TopicId, name: &str) {
        self.retire(Whose::Topic(topic), |known| known.binding.name == name);
    }

    /// Start a topic's filter once and throw the instance away: what does not start is known, and kept from
    /// the shards' threads, before its first batch. Blocks for as long as that may take.
    ///
    /// # Errors
    /// Why it does not start.
    pub fn try_start(&self, topic: TopicId, binding: &FilterBinding) -> Result<(), StartError> {
        match self.obtain(Whose::Topic(topic), binding) {
            Ok(deployment) => deployment.filter(&Parameters::new()).map(drop),
            Err(_) => Ok(()), // its component is lost, or still loading: that is told elsewhere
        }
    }

    /// A topic's filter, once it has run: where, and what went wrong.
    #[must_use]
    pub fn of_topic(&self, topic: TopicId, binding: &FilterBinding) -> Option<Arc<Deployment>> {
        let known = self.known();
        let of_topic = known.get(&Whose::Topic(topic))?.iter();
        let found = of_topic.rev().find(|known| known.binding == *binding)?;
        Some(Arc::clone(&found.deployment))
    }

    /// Where each of a topic's filters runs, by name, of those that have run.
    #[must_use]
    pub fn placed_by_name(&self, topic: TopicId) -> Vec<(String, Placement)> {
        let known = self.known();
        let of_topic = known.get(&Whose::Topic(topic)).into_iter().flatten();
        of_topic
            .map(|known| (known.binding.name.clone(), known.deployment.placement()))
            .collect()
    }

    /// Where the topics' filters of this name run.
    pub(super) fn placements(&self, name: &str) -> Vec<Placement> {
        self.known()
            .iter()
            .filter(|(whose, _)| matches!(whose, Whose::Topic(_)))
            .flat_map(|(_, known)| known)
            .filter(|known| known.binding.name == name)
            .map(|known| known.deployment.placement())
            .collect()
    }

    /// Where a batch for this binding is to be run.
    pub(super) fn placement(&self, whose: Whose, binding: &FilterBinding) -> Placement {
        let known = self.known();
        let of_whose = known.get(&whose).into_iter().flatten();
        of_whose
            .filter(|known| known.binding == *binding)
            .map(|known| known.deployment.placement())
            .next_back()
            .unwrap_or_else(|| start(whose))
    }

    /// The deployment of a binding. Its component is looked up anew.
    pub(super) fn obtain(
        &self,
        whose: Whose,
        binding: &FilterBinding,
    ) -> Result<Arc<Deployment>, Trouble> {
        let component = match self.source.component(&binding.digest) {
            Lookup::Ready(component) => component,
            Lookup::Loading => return Err(Trouble::Loading),
            Lookup::Lost(why) => return Err(Trouble::Off(why)),
        };
        let mut known = self.known();
        let of_whose = known.entry(whose).or_default();
        if let Some(known) = of_whose.iter().find(|known| known.binding == *binding) {
            return Ok(Arc::clone(&known.deployment));
        }
        let deployment = deployment(binding, component, start(whose));
        of_whose.push(Known {
            binding: binding.clone(),
            deployment: Arc::clone(&deployment),
        });
        Ok(deployment)
    }

    /// Instances that one host may hold.
    pub(super) fn share(&self) -> usize {
        self.source.share().max(1)
    }

    pub(super) fn end(&self, owner: Owner) {
        self.retire(Whose::Subscription(owner), |_| true);
    }

    fn retire(&self, whose: Whose, gone: impl Fn(&Known) -> bool) {
        let mut known = self.known();
        let Some(of_whose) = known.get_mut(&whose) else {
            return;
        };
        of_whose.retain(|known| {
            let gone = gone(known);
            if gone {
                known.deployment.retire();
            }
            !gone
        });
        if of_whose.is_empty() {
            known.remove(&whose);
        }
    }

    fn known(&self) -> MutexGuard<'_, FxHashMap<Whose, Vec<Known>>> {
        // Nothing panics while it holds the lock; if it did, the map would still be whole.
        self.by_whose.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A deployment as its fact says it.
#[must_use]
pub fn deployment(
    binding: &FilterBinding,
    component: Arc<Component>,
    placement: Placement,
) -> Arc<Deployment> {
    let budget = Budget {
        memory_bytes_max: usize::try_from(binding.budget.memory_bytes_max).unwrap_or(usize::MAX),
        batch_ms_max: binding.budget.batch_ms_max,
        ..Budget::default()
    };
    let parameters = binding.parameters.iter().cloned().collect();
    Deployment::new(&binding.name, component, parameters, budget, placement)
}

/// Where a deployment begins. Whoever deploys on a topic is trusted to, and the component was started
/// once before; parameters that a subscriber brings are anyone's, and prove themselves on a worker first.
fn start(whose: Whose) -> Placement {
    match whose {
        Whose::Topic(_) => Placement::Shard,
        Whose::Subscription(_) => Placement::Worker,
    }
}
