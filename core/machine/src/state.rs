//! One shard's state: cells, and the look-ups of the driver.
//!
//! ```text
//!   clock, catalogue, identities, floors                  one cell each
//!   topics     id → description, slots owned here         ┐
//!   partitions slot → start, end, bytes                   │
//!   producers  (slot, pid) → epoch, sequence, memory      │ one cell a key, sorted: a snapshot
//!   epochs     pid → epoch given (catalog)                │ is cut anywhere between two keys
//!   offsets    (group, slot) → fence, committed offset    │
//!   groups     name → members, holds (home)               │
//!   outboxes   (to, row) → messages; inboxes (from, row)  ┘
//! ```
//!
//! Protocol of use: [`State::new`] (or [`State::restore`]), then [`crate::install`] for every fact in
//! log order. [`crate::decide`] and everything here only look. Absent on purpose: what is volatile
//! (who is waiting, who was seen when), which the driver keeps.

use std::collections::{BTreeMap, BTreeSet};

use millstream_batch::ids::{
    CATALOG_SHARD, GroupEpoch, Lsn, MemberId, Offset, Partition, PartitionSlot, ProducerId,
    ShardId, Term, TimestampMs, TopicId, group_home,
};

use crate::bounds::{Limits, SURVIVORS_MAX};
use crate::clock::{self, Accepted, Clock, Skew};
use crate::couriers::{Couriers, Message, Row};
use crate::groups::Group;
use crate::offsets::Offsets;
use crate::partitions::Partitions;
use crate::producers::{Identities, ProducerFloor, Producers};
use crate::snapshot::Guard;
use crate::topics::{Catalogue, FilterBinding, TopicMeta, Topics};

/// The state of one shard. Two states are equal when the same facts made them, whether live or from
/// a snapshot and the tail.
#[derive(Clone, Debug)]
pub struct State {
    pub(crate) id: ShardId,
    pub(crate) shards: u16,
    pub(crate) limits: Limits,
    /// Lsn of the last fact installed.
    pub(crate) installed: Lsn,
    /// While the tail is replayed: what the snapshot holds already.
    pub(crate) guard: Guard,
    pub(crate) clock: Clock,
    pub(crate) catalogue: Catalogue,
    pub(crate) topics: Topics,
    pub(crate) partitions: Partitions,
    pub(crate) identities: Identities,
    pub(crate) producer_floor: ProducerFloor,
    pub(crate) producers: Producers,
    pub(crate) offsets: Offsets,
    /// A group created anew starts above this, so that no fence of its namesake outranks it.
    pub(crate) group_floor: GroupEpoch,
    pub(crate) groups: BTreeMap<Box<str>, Group>,
    pub(crate) couriers: Couriers,
}

/// A partition as the driver sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionView {
    pub partition: Partition,
    pub slot: PartitionSlot,
    pub start: Offset,
    /// The next offset to be given.
    pub end: Offset,
    /// Bytes appended since creation.
    pub bytes: u64,
    pub last_append: TimestampMs,
}

/// A change of the catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    Topic(&'a TopicMeta),
    Gone(TopicId),
}

/// How much the state holds, for metrics and `StateFull`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub topics: usize,
    pub partitions: usize,
    /// (partition, producer) pairs.
    pub producers: usize,
    pub groups: usize,
    pub members: usize,
    /// (group, partition) pairs.
    pub offsets: usize,
}

impl State {
    /// An empty shard.
    #[must_use]
    pub fn new(shard: ShardId, shards: u16, limits: Limits) -> Self {
        assert!(shard.0 < shards, "shard {shard} of {shards}");
        Self {
            id: shard,
            shards,
            limits,
            installed: Lsn(0),
            guard: Guard::default(),
            clock: Clock::default(),
            catalogue: Catalogue::default(),
            topics: Topics::default(),
            partitions: Partitions::default(),
            identities: Identities::default(),
            producer_floor: ProducerFloor::default(),
            producers: Producers::default(),
            offsets: Offsets::default(),
            group_floor: GroupEpoch(0),
            groups: BTreeMap::new(),
            couriers: Couriers::default(),
        }
    }

    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.id
    }

    #[must_use]
    pub fn shards(&self) -> u16 {
        self.shards
    }

    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Lsn of the last fact installed.
    #[must_use]
    pub fn installed(&self) -> Lsn {
        self.installed
    }

    /// Logged time: that of the newest fact.
    #[must_use]
    pub fn clock(&self) -> TimestampMs {
        self.clock.logged
    }

    /// The clock that an operator accepted last.
    #[must_use]
    pub fn accepted_clock(&self) -> Option<Accepted> {
        self.clock.accepted
    }

    /// How the wall stands to logged time: for a warning and a metric.
    #[must_use]
    pub fn clock_skew(&self, now: TimestampMs) -> Skew {
        clock::skew(self.clock.logged, now)
    }

    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            topics: self.topics.len(),
            partitions: self.partitions.len(),
            producers: self.producers.len(),
            groups: self.groups.len(),
            members: self.groups.values().map(|group| group.members.len()).sum(),
            offsets: self.offsets.len(),
        }
    }

    // --- topics and partitions -----------------------------------------------------------------

    #[must_use]
    pub fn topic(&self, id: TopicId) -> Option<&TopicMeta> {
        self.topics.cell(id).map(|topic| &topic.meta)
    }

    #[must_use]
    pub fn topic_by_name(&self, name: &str) -> Option<&TopicMeta> {
        self.topics.by_name(name).map(|topic| &topic.meta)
    }

    /// All topics, by id.
    pub fn topics(&self) -> impl Iterator<Item = &TopicMeta> + '_ {
        self.topics.iter().map(|topic| &topic.meta)
    }

    /// A partition owned by this shard.
    #[must_use]
    pub fn partition(&self, partition: Partition) -> Option<PartitionView> {
        self.partition_of(self.slot(partition)?)
    }

    /// The partition kept in a slot.
    #[must_use]
    pub fn partition_of(&self, slot: PartitionSlot) -> Option<PartitionView> {
        self.partitions.at(slot).map(|cell| cell.view(slot))
    }

    /// The partitions of this shard, by slot.
    pub fn partitions(&self) -> impl Iterator<Item = PartitionView> + '_ {
        self.partitions.iter().map(|(slot, cell)| cell.view(slot))
    }

    /// Whether what a reader has read was cut away: it read up to `offset`, the last record under
    /// `epoch`. Then the offset up to which it is the same as what is stored.
    #[must_use]
    pub fn truncated(&self, partition: Partition, offset: Offset, epoch: Term) -> Option<Offset> {
        let cell = self.partitions.at(self.slot(partition)?)?;
        cell.truncated(offset, epoch)
    }

    /// The slot that keeps a partition of this shard.
    #[must_use]
    pub fn slot(&self, partition: Partition) -> Option<PartitionSlot> {
        self.topics.cell(partition.topic)?.slot(partition.index)
    }

    /// The slots of a topic's partitions on this shard.
    pub fn slots(&self, topic: TopicId) -> impl Iterator<Item = PartitionSlot> + '_ {
        let topic = self.topics.cell(topic).into_iter();
        topic.flat_map(|topic| topic.slots.iter().map(|(_, slot)| *slot))
    }

    /// The filters bound to a partition's topic, in the order in which they run.
    #[must_use]
    pub fn filters(&self, partition: Partition) -> &[FilterBinding] {
        self.topics
            .cell(partition.topic)
            .map_or(&[], |topic| &topic.meta.filters)
    }

    // --- producers -----------------------------------------------------------------------------

    /// How far `ExpireProducers` may raise the floor as far as this shard knows. `u64::MAX`: any far.
    /// The smallest over all shards is what it takes as `floor_max`.
    ///
    /// On the catalog's shard no id given out since `before` is below it. With more shards than one,
    /// neither is one used here since: the others do not know that it lives. A single shard knows,
    /// lets such ids survive below the floor, and only bounds their number.
    #[must_use]
    pub fn producer_floor_bound(&self, before: TimestampMs) -> ProducerId {
        let survivors_max = if self.shards == 1 { SURVIVORS_MAX } else { 0 };
        let living = self.producers_living(before).into_iter().nth(survivors_max);
        let given = (self.id == CATALOG_SHARD).then(|| self.identities.given_since(before));
        living
            .into_iter()
            .chain(given)
            .min()
            .unwrap_or(ProducerId(u64::MAX))
    }

    /// Producers used here, or given a higher epoch, since `before`.
    pub(crate) fn producers_living(&self, before: TimestampMs) -> BTreeSet<ProducerId> {
        let mut living = self.producers.used_since(before);
        living.extend(
            self.identities
                .epochs
                .iter()
                .filter(|(_, given)| given.given >= before)
                .map(|(pid, _)| *pid),
        );
        living
    }

    /// Producers below this are forgotten and refused, except those that lived when it was raised.
    #[must_use]
    pub fn producer_floor(&self) -> ProducerId {
        self.producer_floor.floor
    }

    // --- groups --------------------------------------------------------------------------------

    /// The epoch of a group at home here, or the one that a new group of that name starts above.
    #[must_use]
    pub fn group_epoch(&self, group: &str) -> GroupEpoch {
        let group = self.groups.get(group);
        group.map_or(self.group_floor, |group| group.epoch)
    }

    /// Every member of the groups at home here, with its session timeout in milliseconds: whom the
    /// driver must hear from.
    pub fn members(&self) -> impl Iterator<Item = (&str, MemberId, u32)> + '_ {
        self.groups.iter().flat_map(|(name, group)| {
            group
                .members
                .iter()
                .map(|(id, member)| (&**name, *id, member.session_timeout_ms))
        })
    }

    /// Names of the groups at home here.
    pub fn groups_at_home(&self) -> impl Iterator<Item = &str> + '_ {
        self.groups.keys().map(|name| &**name)
    }

    /// The version of each member's assignment: a member whose version rose is to be told.
    pub fn assignment_versions(&self, group: &str) -> impl Iterator<Item = (MemberId, u64)> + '_ {
        let group = self.groups.get(group);
        group.into_iter().flat_map(|group| {
            group
                .members
                .iter()
                .map(|(id, member)| (*id, member.version))
        })
    }

    /// Partitions of the group that had an owner and have none, with the epoch to claim them under
    /// for member 0, so that consumers with fixed partitions may commit again. Claiming twice does
    /// nothing, so the driver may repeat it at start.
    pub fn unowned(&self, group: &str) -> impl Iterator<Item = (Partition, GroupEpoch)> + '_ {
        let group = self.groups.get(group);
        group.into_iter().flat_map(|group| {
            group
                .holds
                .iter()
                .filter(|(_, hold)| hold.member.0 == 0)
                .map(|(partition, hold)| (*partition, hold.epoch))
        })
    }

    /// Whether nobody owns a partition of the group since this epoch.
    #[must_use]
    pub fn is_unowned(&self, group: &str, partition: Partition, epoch: GroupEpoch) -> bool {
        let hold = self
            .groups
            .get(group)
            .and_then(|group| group.holds.get(&partition));
        hold.is_some_and(|hold| hold.member.0 == 0 && hold.epoch == epoch)
    }

    /// Groups whose topics gained partitions or are gone. Looks at every group: ask at start and
    /// after a fact that [`crate::Fact::touches_topics`].
    #[must_use]
    pub fn groups_to_rebalance(&self) -> Vec<String> {
        let stale = |group: &Group| group.is_stale(|topic| self.partition_count(topic));
        self.groups
            .iter()
            .filter(|(_, group)| stale(group))
            .map(|(name, _)| name.to_string())
            .collect()
    }

    /// Every committed offset on this shard: (group, slot, next offset to read), for lag.
    pub fn committed(&self) -> impl Iterator<Item = (&str, PartitionSlot, Offset)> + '_ {
        self.offsets
            .iter()
            .filter_map(|(group, slot, held)| Some((group, slot, held.offset?)))
    }

    /// Whether a deleted group has still offsets on some shard: until all have forgotten it, no group of its
    /// name begins.
    #[must_use]
    pub fn is_forgetting(&self, group: &str) -> bool {
        self.couriers.is_forgetting(group)
    }

    // --- the catalogue's spreading ---------------------------------------------------------------

    /// Newest revision of the catalogue.
    #[must_use]
    pub fn catalogue_revision(&self) -> u64 {
        self.catalogue.revision
    }

    /// At the catalogue's shard: up to which revision another shard has said that it knows all changes.
    #[must_use]
    pub fn catalogue_known(&self, shard: ShardId) -> u64 {
        self.catalogue.known.get(&shard).copied().unwrap_or(0)
    }

    /// What changed after a revision, in order: each topic as it is now, and those that are gone.
    pub fn catalogue_changes(&self, after: u64) -> impl Iterator<Item = (u64, Change<'_>)> + '_ {
        let changed = self.topics.changed_after(after);
        let mut changed = changed
            .map(|topic| (topic.meta.revision, Change::Topic(&topic.meta)))
            .peekable();
        let deleted = &self.catalogue.deleted;
        let first = deleted.partition_point(|(_, revision)| *revision <= after);
        let gone = deleted.range(first..);
        let mut gone = gone
            .map(|(id, revision)| (*revision, Change::Gone(*id)))
            .peekable();
        std::iter::from_fn(move || match (changed.peek(), gone.peek()) {
            (Some((topic, _)), Some((deletion, _))) if topic < deletion => changed.next(),
            (Some(_), None) => changed.next(),
            _ => gone.next(),
        })
    }

    // --- couriers --------------------------------------------------------------------------------

    /// The shards that have not acknowledged all that was queued for them, by row.
    pub fn outboxes(&self) -> impl Iterator<Item = (ShardId, Row)> + '_ {
        self.couriers.waiting().map(|(to, row, _)| (to, row))
    }

    /// Messages to other shards that are not acknowledged.
    #[must_use]
    pub fn messages_waiting(&self) -> usize {
        let outboxes = self.couriers.waiting();
        outboxes.map(|(.., outbox)| outbox.messages.len()).sum()
    }

    /// The last message to a shard that was queued; 0: none yet.
    #[must_use]
    pub fn courier_queued(&self, to: ShardId, row: Row) -> u64 {
        self.couriers
            .outbox(to, row)
            .map_or(0, |outbox| outbox.next - 1)
    }

    /// The last message of a shard that was applied; 0: none yet.
    #[must_use]
    pub fn courier_applied(&self, from: ShardId, row: Row) -> u64 {
        self.couriers.applied(from, row)
    }

    /// Messages to a shard that it has not acknowledged, behind this one, in order.
    pub fn outbox(
        &self,
        to: ShardId,
        row: Row,
        after: u64,
    ) -> impl Iterator<Item = (u64, &Message)> + '_ {
        let outbox = self.couriers.outbox(to, row).into_iter();
        outbox.flat_map(move |outbox| {
            let from = after.max(outbox.trimmed) + 1;
            let messages = outbox.messages.range(from..);
            messages.map(|(k, message)| (*k, message))
        })
    }

    /// What every group has here in a partition: the epoch of the last claim.
    pub fn fences(&self) -> impl Iterator<Item = (&str, PartitionSlot, GroupEpoch)> + '_ {
        let held = self.offsets.iter();
        held.map(|(group, slot, held)| (group, slot, held.epoch))
    }

    pub(crate) fn partition_count(&self, topic: TopicId) -> u32 {
        self.topic(topic).map_or(0, |meta| meta.partitions)
    }

    pub(crate) fn is_home(&self, group: &str) -> bool {
        group_home(group, self.shards) == self.id
    }
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
            && self.shards == other.shards
            && self.clock == other.clock
            && self.catalogue == other.catalogue
            && self.topics == other.topics
            && self.partitions == other.partitions
            && self.identities == other.identities
            && self.producer_floor == other.producer_floor
            && self.producers == other.producers
            && self.offsets == other.offsets
            && self.group_floor == other.group_floor
            && self.groups == other.groups
            && self.couriers == other.couriers
    }
}
