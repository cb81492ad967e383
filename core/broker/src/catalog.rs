//! Topics as one thread sees them (a cache kept fresh by the thread's own shard), and the way a
//! change of the catalog takes: decided at shard 0, then applied on every other shard.
//!
//! A name that is not in the cache is looked up at the shard before it is refused: whoever was told
//! that a topic exists may use it at once, from any connection.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millstream_batch::ids::{CATALOG_SHARD, TopicId};
use millstream_machine::request::{Reply, Request};
use millstream_machine::topics::TopicMeta;
use millstream_protocol::{Code, messages};
use millstream_shard::call::{Answer, Call};
use millstream_shard::handle::ShardHandle;
use rustc_hash::{FxHashMap, FxHashSet};
use tokio::sync::watch;

use crate::refusals;
use crate::shards::{Shards, ask, unexpected};

/// How long one look for changes waits at the shard.
const WATCH_MS: u32 = 10_000;
/// Changes that come together are taken together: each look carries the whole catalog.
const SETTLE: Duration = Duration::from_millis(20);
/// Ids remembered that no topic has; past it they are forgotten and asked for again.
const STRANGERS_MAX: usize = 4_096;
/// Pause before a failed look is repeated.
const RETRY: Duration = Duration::from_millis(200);

/// Topics as this thread knows them.
#[derive(Debug)]
pub(crate) struct Catalog {
    shard: ShardHandle,
    version: Cell<u64>,
    generation: Cell<u64>,
    changes: watch::Sender<()>,
    by_name: RefCell<FxHashMap<String, Rc<TopicMeta>>>,
    by_id: RefCell<FxHashMap<TopicId, Rc<TopicMeta>>>,
    /// Ids that no topic has. None will: an id is drawn when its topic is created, and told when every shard
    /// knows it; of a deleted one it is never used again.
    strangers: RefCell<FxHashSet<TopicId>>,
}

impl Catalog {
    /// `shard` is one that this thread drives.
    pub(crate) fn new(shard: ShardHandle) -> Self {
        Self {
            shard,
            version: Cell::new(0),
            generation: Cell::new(0),
            changes: watch::Sender::new(()),
            by_name: RefCell::default(),
            by_id: RefCell::default(),
            strangers: RefCell::default(),
        }
    }

    /// Rises whenever anything changed: what was looked up before may be stale then.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.get()
    }

    /// Hears of every change that comes after.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// All topics, in no order.
    pub(crate) fn topics(&self) -> Vec<Rc<TopicMeta>> {
        self.by_id.borrow().values().cloned().collect()
    }

    /// The topic of this id, if the cache has it.
    pub(crate) fn cached(&self, id: TopicId) -> Option<Rc<TopicMeta>> {
        self.by_id.borrow().get(&id).cloned()
    }

    /// The topic that has this name now, if the cache has it.
    pub(crate) fn named(&self, name: &str) -> Option<Rc<TopicMeta>> {
        self.by_name.borrow().get(name).cloned()
    }

    /// The topic of this name, or UNKNOWN_TOPIC.
    pub(crate) async fn topic(&self, name: &str) -> Result<Rc<TopicMeta>, messages::Error> {
        let cached = self.by_name.borrow().get(name).cloned();
        if let Some(topic) = cached {
            return Ok(topic);
        }
        match ask(
            &self.shard,
            Request::DescribeTopic {
                name: name.to_owned(),
            },
        )
        .await?
        {
            Reply::Topic(meta) => Ok(self.insert(meta)),
            other => Err(unexpected(&other)),
        }
    }

    /// The topic of this id, or UNKNOWN_TOPIC.
    pub(crate) async fn topic_by_id(&self, id: TopicId) -> Result<Rc<TopicMeta>, messages::Error> {
        if let Some(topic) = self.cached(id) {
            return Ok(topic);
        }
        let unknown = || Code::UnknownTopic.error(format!("no topic with the id {id}"));
        if self.strangers.borrow().contains(&id) {
            return Err(unknown());
        }
        match ask(&self.shard, Request::TopicById { id }).await {
            Ok(Reply::Topic(meta)) => {
                let newest = self.insert(meta);
                (newest.id == id).then_some(newest).ok_or_else(unknown)
            }
            Ok(other) => Err(unexpected(&other)),
            Err(error) if error.code == Code::UnknownTopic.number() => {
                let mut strangers = self.strangers.borrow_mut();
                if strangers.len() >= STRANGERS_MAX {
                    strangers.clear();
                }
                strangers.insert(id);
                Err(unknown())
            }
            Err(error) => Err(error),
        }
    }

    /// Read the whole catalog now.
    pub(crate) async fn load(&self) -> Result<(), messages::Error> {
        self.refresh(0).await
    }

    /// Follow changes for ever.
    pub(crate) async fn watch(&self) {
        loop {
            if self.refresh(WATCH_MS).await.is_err() {
                tokio::time::sleep(RETRY).await;
            }
            tokio::time::sleep(SETTLE).await;
        }
    }

    async fn refresh(&self, wait_ms: u32) -> Result<(), messages::Error> {
        let seen = self.version.get();
        match self.shard.call(Call::WatchCatalog { seen, wait_ms }).await {
            Answer::Catalog { version, topics } => {
                // An answer that was overtaken says nothing new.
                if version > self.version.get() || (wait_ms == 0 && version == self.version.get()) {
                    self.replace(version, topics);
                }
                Ok(())
            }
            other => Err(refusals::unexpected(&other)),
        }
    }

    fn replace(&self, version: u64, topics: Vec<TopicMeta>) {
        let mut by_name = self.by_name.borrow_mut();
        let mut by_id = self.by_id.borrow_mut();
        by_name.clear();
        let mut fresh = FxHashMap::default();
        for meta in topics {
            // Unchanged topics keep their allocation, and whoever holds it sees that it is the same.
            let topic = match by_id.remove(&meta.id) {
                Some(old) if old.revision >= meta.revision => old,
                _ => Rc::new(meta),
            };
            by_name.insert(topic.name.clone(), Rc::clone(&topic));
            fresh.insert(topic.id, topic);
        }
        *by_id = fresh;
        self.version.set(version);
        self.changed();
    }

    /// A topic has changed, and its shards know.
    pub(crate) fn learn(&self, meta: &TopicMeta) {
        self.insert(meta.clone());
    }

    /// A topic is gone.
    pub(crate) fn forget(&self, id: TopicId) {
        let Some(topic) = self.by_id.borrow_mut().remove(&id) else {
            return;
        };
        let mut by_name = self.by_name.borrow_mut();
        if by_name.get(&topic.name).is_some_and(|named| named.id == id) {
            by_name.remove(&topic.name);
        }
        drop(by_name);
        self.changed();
    }

    /// Take one description into the cache, unless a newer one came meanwhile: the newest of that name.
    fn insert(&self, meta: TopicMeta) -> Rc<TopicMeta> {
        let mut by_name = self.by_name.borrow_mut();
        // Revisions rise over the whole catalog, so this holds for a namesake created again as well.
        if let Some(newer) = by_name
            .get(&meta.name)
            .filter(|known| known.revision >= meta.revision)
        {
            return Rc::clone(newer);
        }
        let topic = Rc::new(meta);
        by_name.insert(topic.name.clone(), Rc::clone(&topic));
        self.by_id.borrow_mut().insert(topic.id, Rc::clone(&topic));
        self.changed();
        topic
    }

    fn changed(&self) {
        self.generation.set(self.generation.get() + 1);
        self.changes.send_replace(());
    }
}

/// The spreading of catalog changes from shard 0 to the others.
#[derive(Debug, Default)]
pub(crate) struct Spread {
    /// A shard could not be told: reconcile.
    behind: AtomicBool,
}

impl Spread {
    /// A topic changed at shard 0: tell every other shard.
    pub(crate) async fn apply(
        &self,
        shards: &Shards,
        meta: &TopicMeta,
    ) -> Result<(), messages::Error> {
        self.tell(shards, || Request::ApplyTopic { meta: meta.clone() })
            .await
    }

    /// A topic is gone at shard 0.
    pub(crate) async fn forget(&self, shards: &Shards, id: TopicId) -> Result<(), messages::Error> {
        self.tell(shards, || Request::ForgetTopic { id }).await
    }

    /// Whether [`reconcile`] has work, and from now on not any more.
    pub(crate) fn take_behind(&self) -> bool {
        self.behind.swap(false, Ordering::Relaxed)
    }

    /// There is still work for [`reconcile`].
    pub(crate) fn set_behind(&self) {
        self.behind.store(true, Ordering::Relaxed);
    }

    async fn tell(
        &self,
        shards: &Shards,
        request: impl Fn() -> Request,
    ) -> Result<(), messages::Error> {
        // All are told before any is waited for: the slowest gives the time, not the sum.
        let mut waiting = tokio::task::JoinSet::new();
        for shard in shards
            .all()
            .iter()
            .filter(|shard| shard.shard() != CATALOG_SHARD)
        {
            let (shard, request) = (shard.clone(), request());
            waiting.spawn_local(async move { (shard.shard(), ask(&shard, request).await) });
        }
        let mut result = Ok(());
        while let Some(told) = waiting.join_next().await {
            let Ok((shard, told)) = told else { continue };
            if let Err(error) = told {
                self.behind.store(true, Ordering::Relaxed);
                let message = format!(
                    "the change is made, but shard {shard} does not know of it yet: {}; it will be told again",
                    error.message
                );
                result = Err(messages::Error {
                    message,
                    retriable: true,
                    ..error
                });
            }
        }
        result
    }
}

/// Make every shard know what shard 0 knows: at start, and after a shard could not be told.
///
/// Shard 0 is asked last. A topic is created there first and its id is never used again: what another
/// shard knew before and shard 0 does not know afterwards is deleted, not merely newer than the list.
pub(crate) async fn reconcile(shards: &Shards) -> Result<(), messages::Error> {
    let mut others = Vec::new();
    for shard in shards
        .all()
        .iter()
        .filter(|shard| shard.shard() != CATALOG_SHARD)
    {
        let known: FxHashMap<TopicId, u64> = list(shard)
            .await?
            .into_iter()
            .map(|meta| (meta.id, meta.revision))
            .collect();
        others.push((shard, known));
    }
    let truth = list(shards.catalog()).await?;
    let alive: FxHashSet<TopicId> = truth.iter().map(|meta| meta.id).collect();
    for (shard, known) in others {
        for gone in known.keys().filter(|&id| !alive.contains(id)) {
            ask(shard, Request::ForgetTopic { id: *gone }).await?;
        }
        for meta in truth.iter().filter(|meta| {
            known
                .get(&meta.id)
                .is_none_or(|&revision| revision < meta.revision)
        }) {
            ask(shard, Request::ApplyTopic { meta: meta.clone() }).await?;
        }
    }
    Ok(())
}

async fn list(shard: &ShardHandle) -> Result<Vec<TopicMeta>, messages::Error> {
    match ask(shard, Request::ListTopics).await? {
        Reply::Topics(topics) => Ok(topics),
        other => Err(unexpected(&other)),
    }
}
