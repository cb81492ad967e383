//! Topics as one thread sees them (a cache kept fresh by the thread's own shard), and how long a change of the
//! catalogue is waited for: decided at shard 0, which tells the others until they know.
//!
//! A name that is not in the cache is looked up at the shard before it is refused: whoever was told
//! that a topic exists may use it at once, from any connection.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use millstream_batch::ids::TopicId;
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

/// How long the other shards are waited for before a change of the catalogue is answered.
const SPREAD_MS: u32 = 2_000;

/// Wait until every shard that answers knows the catalogue up to a revision. One that does not is told as soon as
/// it can be: nobody is refused for it.
pub(crate) async fn spread(shards: &Shards, revision: u64) -> Result<(), messages::Error> {
    let call = Call::WatchSpread {
        revision,
        wait_ms: SPREAD_MS,
    };
    match shards.catalog().call(call).await {
        Answer::Reply(Reply::Spread { behind }) => {
            if !behind.is_empty() {
                let shards: Vec<u16> = behind.iter().map(|shard| shard.0).collect();
                tracing::warn!(
                    ?shards,
                    revision,
                    "these shards do not know the whole catalogue yet"
                );
            }
            Ok(())
        }
        other => Err(refusals::unexpected(&other)),
    }
}
