//! The cells of topics, and what the shard knows of the catalogue as a whole.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use millstream_batch::ids::{PartitionSlot, ShardId, TopicId};
use rustc_hash::FxHashMap;

use super::meta::TopicMeta;
use crate::bounds::FORGOTTEN_TOPICS_REMEMBERED;

/// Counters that never go back, and the topics that are gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Catalogue {
    /// Newest revision of any topic; on the catalog's shard the next change takes the one after.
    pub(crate) revision: u64,
    pub(crate) slot_next: PartitionSlot,
    /// The topics deleted last, oldest first, with the revision of their deletion.
    pub(crate) deleted: VecDeque<(TopicId, u64)>,
    /// At the catalogue's shard: up to which revision every other shard has applied all changes, as it
    /// said. One that never did is at 0.
    pub(crate) known: BTreeMap<ShardId, u64>,
}

impl Catalogue {
    /// Whether a topic was deleted lately.
    pub(super) fn is_deleted(&self, id: TopicId) -> bool {
        self.deleted.iter().any(|(deleted, _)| *deleted == id)
    }

    /// The revision up to which all of these shards know the catalogue.
    pub(super) fn known_to_all(&self, shards: u16) -> u64 {
        let others = (1..shards).map(|shard| self.known.get(&ShardId(shard)).copied());
        others
            .map(Option::unwrap_or_default)
            .min()
            .unwrap_or(u64::MAX)
    }

    /// Deletions that some shard has not heard of.
    pub(super) fn untold(&self, shards: u16) -> usize {
        let known = self.known_to_all(shards);
        let told = self
            .deleted
            .partition_point(|(_, revision)| *revision <= known);
        self.deleted.len() - told
    }

    /// At most [`FORGOTTEN_TOPICS_REMEMBERED`] are kept of those that every shard knows of.
    pub(super) fn delete(&mut self, id: TopicId, revision: u64, known_to_all: u64) {
        while self.deleted.len() >= FORGOTTEN_TOPICS_REMEMBERED
            && self
                .deleted
                .front()
                .is_some_and(|(_, told)| *told <= known_to_all)
        {
            self.deleted.pop_front();
        }
        self.deleted.push_back((id, revision));
    }
}

/// A topic and where this shard keeps its part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Topic {
    pub(crate) meta: TopicMeta,
    /// (index, slot) of the partitions owned here, by index.
    pub(crate) slots: Vec<(u32, PartitionSlot)>,
}

impl Topic {
    pub(crate) fn slot(&self, index: u32) -> Option<PartitionSlot> {
        let at = self
            .slots
            .binary_search_by_key(&index, |(index, _)| *index)
            .ok()?;
        Some(self.slots[at].1)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Topics {
    pub(super) cells: BTreeMap<TopicId, Topic>,
    /// By the revision of the description.
    revisions: BTreeSet<(u64, TopicId)>,
    /// Ids by name. More than one while a deletion has not reached this shard yet.
    names: FxHashMap<String, Vec<TopicId>>,
}

impl Topics {
    pub(crate) fn len(&self) -> usize {
        self.cells.len()
    }

    pub(crate) fn cell(&self, id: TopicId) -> Option<&Topic> {
        self.cells.get(&id)
    }

    /// The topic of that name; the newest if a deleted namesake is still here.
    pub(crate) fn by_name(&self, name: &str) -> Option<&Topic> {
        let ids = self.names.get(name)?;
        ids.iter()
            .filter_map(|id| self.cells.get(id))
            .max_by_key(|topic| topic.meta.revision)
    }

    /// Topics that changed after this revision, in the order in which they did.
    pub(crate) fn changed_after(&self, revision: u64) -> impl Iterator<Item = &Topic> + '_ {
        let first = (revision.saturating_add(1), TopicId::default());
        let changed = self.revisions.range(first..);
        changed.filter_map(|(_, id)| self.cells.get(id))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Topic> + '_ {
        self.cells.values()
    }

    pub(crate) fn after(&self, id: Option<TopicId>) -> impl Iterator<Item = &Topic> + '_ {
        use std::ops::Bound::{Excluded, Unbounded};
        self.cells
            .range((id.map_or(Unbounded, Excluded), Unbounded))
            .map(|(_, topic)| topic)
    }

    /// Puts a description in place of an older one and adds slots.
    pub(crate) fn put(
        &mut self,
        meta: TopicMeta,
        added: impl Iterator<Item = (u32, PartitionSlot)>,
    ) {
        let ids = self.names.entry(meta.name.clone()).or_default();
        if let Err(at) = ids.binary_search(&meta.id) {
            ids.insert(at, meta.id);
        }
        match self.cells.entry(meta.id) {
            std::collections::btree_map::Entry::Occupied(cell) => {
                let cell = cell.into_mut();
                self.revisions.remove(&(cell.meta.revision, meta.id));
                self.revisions.insert((meta.revision, meta.id));
                cell.meta = meta;
                cell.slots.extend(added);
            }
            std::collections::btree_map::Entry::Vacant(cell) => {
                self.revisions.insert((meta.revision, meta.id));
                cell.insert(Topic {
                    meta,
                    slots: added.collect(),
                });
            }
        }
    }

    pub(super) fn remove(&mut self, id: TopicId) {
        let Some(topic) = self.cells.remove(&id) else {
            return;
        };
        self.revisions.remove(&(topic.meta.revision, id));
        let ids = self
            .names
            .get_mut(&topic.meta.name)
            .expect("every topic is listed under its name");
        ids.retain(|other| *other != id);
        if ids.is_empty() {
            self.names.remove(&topic.meta.name);
        }
    }
}
