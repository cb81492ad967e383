//! A slice of a snapshot as it stands on disk: sorted vectors of cells. Frozen like the facts:
//! a change is a new struct and a new version in the head.

#![allow(
    missing_debug_implementations,
    reason = "rkyv's resolvers, which no code here names"
)]

use crate::fact::archive::{
    HoldRecord, MemberRecord, SlotRecord, TopicRecord, TopicRecord16, archived,
};

archived! {
    /// Version 1 of a slice.
    pub struct Slice {
        pub as_of: u64,
        /// The slice covers the keys after `from`, up to and with `to`.
        pub from: Vec<u8>,
        pub to: Vec<u8>,
        /// One in the first slice, none in the others.
        pub shard: Vec<ShardRecord>,
        pub topics: Vec<TopicCell1>,
        pub partitions: Vec<PartitionCell>,
        pub producers: Vec<ProducerCell>,
        pub epochs: Vec<EpochCell>,
        pub offsets: Vec<OffsetCell>,
        pub groups: Vec<GroupCell>,
    }

    /// Version 2: partitions have their leader epochs.
    pub struct Slice2 {
        pub as_of: u64,
        /// The slice covers the keys after `from`, up to and with `to`.
        pub from: Vec<u8>,
        pub to: Vec<u8>,
        /// One in the first slice, none in the others.
        pub shard: Vec<ShardRecord>,
        pub topics: Vec<TopicCell1>,
        pub partitions: Vec<PartitionCell2>,
        pub producers: Vec<ProducerCell>,
        pub epochs: Vec<EpochCell>,
        pub offsets: Vec<OffsetCell>,
        pub groups: Vec<GroupCell>,
    }

    /// Version 3: the shard knows the clock that was accepted, members have the epoch of their last join, and a
    /// topic's settings are rows.
    pub struct Slice3 {
        pub as_of: u64,
        /// The slice covers the keys after `from`, up to and with `to`.
        pub from: Vec<u8>,
        pub to: Vec<u8>,
        /// One in the first slice, none in the others.
        pub shard: Vec<ShardRecord>,
        /// None, or one in the first slice.
        pub accepted: Vec<AcceptedRecord>,
        pub topics: Vec<TopicCell>,
        pub partitions: Vec<PartitionCell2>,
        pub producers: Vec<ProducerCell>,
        pub epochs: Vec<EpochCell>,
        pub offsets: Vec<OffsetCell>,
        pub groups: Vec<GroupCell3>,
    }

    pub struct AcceptedRecord {
        pub lsn: u64,
        pub time_ms: i64,
    }

    pub struct ShardRecord {
        pub clock_ms: i64,
        pub revision: u64,
        pub slot_next: u32,
        pub pid_next: u64,
        pub producer_floor: u64,
        pub survivors: Vec<u64>,
        pub group_epoch_floor: u64,
        pub marks: Vec<MarkRecord>,
        pub forgotten: Vec<[u8; 16]>,
    }

    pub struct MarkRecord {
        pub time_ms: i64,
        pub pid: u64,
    }

    pub struct TopicCell1 {
        pub topic: TopicRecord16,
        pub slots: Vec<SlotRecord>,
    }

    pub struct TopicCell {
        pub topic: TopicRecord,
        pub slots: Vec<SlotRecord>,
    }

    pub struct PartitionCell {
        pub slot: u32,
        pub topic: [u8; 16],
        pub index: u32,
        pub start: u64,
        pub end: u64,
        pub bytes: u64,
        pub last_append_ms: i64,
    }

    pub struct PartitionCell2 {
        pub slot: u32,
        pub topic: [u8; 16],
        pub index: u32,
        pub start: u64,
        pub end: u64,
        pub bytes: u64,
        pub last_append_ms: i64,
        pub leader_epochs: Vec<LeaderEpochRecord>,
    }

    /// From `start` on batches are of this epoch, until the next one's start. Both rise.
    pub struct LeaderEpochRecord {
        pub epoch: u32,
        pub start: u64,
    }

    pub struct ProducerCell {
        pub slot: u32,
        pub pid: u64,
        pub epoch: u32,
        pub next: u64,
        pub last_used_ms: i64,
        pub batches: Vec<RememberedRecord>,
    }

    pub struct RememberedRecord {
        pub sequence: u64,
        pub sent: u32,
        pub base_offset: Option<u64>,
        pub append_time_ms: i64,
    }

    pub struct EpochCell {
        pub pid: u64,
        pub epoch: u32,
        pub given_ms: i64,
    }

    pub struct OffsetCell {
        pub group: String,
        pub slot: u32,
        pub member: u64,
        pub epoch: u64,
        pub offset: Option<u64>,
        pub metadata: String,
        pub committed_ms: i64,
    }

    pub struct GroupCell {
        pub name: String,
        pub epoch: u64,
        pub members: Vec<VersionedMember>,
        pub holds: Vec<HoldRecord>,
    }

    pub struct VersionedMember {
        pub member: MemberRecord,
        pub version: u64,
    }

    pub struct GroupCell3 {
        pub name: String,
        pub epoch: u64,
        pub members: Vec<JoinedMember>,
        pub holds: Vec<HoldRecord>,
    }

    pub struct JoinedMember {
        pub member: MemberRecord,
        /// Group epoch of its last join.
        pub joined: u64,
        pub version: u64,
    }
}

impl From<Slice> for Slice2 {
    fn from(slice: Slice) -> Self {
        let partitions = slice.partitions.into_iter().map(|cell| PartitionCell2 {
            slot: cell.slot,
            topic: cell.topic,
            index: cell.index,
            start: cell.start,
            end: cell.end,
            bytes: cell.bytes,
            last_append_ms: cell.last_append_ms,
            leader_epochs: Vec::new(), // those before are not known
        });
        Self {
            as_of: slice.as_of,
            from: slice.from,
            to: slice.to,
            shard: slice.shard,
            topics: slice.topics,
            partitions: partitions.collect(),
            producers: slice.producers,
            epochs: slice.epochs,
            offsets: slice.offsets,
            groups: slice.groups,
        }
    }
}

impl From<Slice2> for Slice3 {
    fn from(slice: Slice2) -> Self {
        Self {
            as_of: slice.as_of,
            from: slice.from,
            to: slice.to,
            shard: slice.shard,
            accepted: Vec::new(),
            topics: slice.topics.into_iter().map(TopicCell::from).collect(),
            partitions: slice.partitions,
            producers: slice.producers,
            epochs: slice.epochs,
            offsets: slice.offsets,
            groups: slice.groups.into_iter().map(GroupCell3::from).collect(),
        }
    }
}

impl From<TopicCell1> for TopicCell {
    fn from(cell: TopicCell1) -> Self {
        Self {
            topic: cell.topic.into(),
            slots: cell.slots,
        }
    }
}

impl From<GroupCell> for GroupCell3 {
    fn from(cell: GroupCell) -> Self {
        let members = cell.members.into_iter().map(|versioned| JoinedMember {
            joined: versioned.member.member, // a member's id is the epoch at which it first joined
            member: versioned.member,
            version: versioned.version,
        });
        Self {
            name: cell.name,
            epoch: cell.epoch,
            members: members.collect(),
            holds: cell.holds,
        }
    }
}
