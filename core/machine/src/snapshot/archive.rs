//! A slice of a snapshot as it stands on disk: sorted vectors of cells. Frozen like the facts:
//! a change is a new struct and a new version in the head.

#![allow(
    missing_debug_implementations,
    reason = "rkyv's resolvers, which no code here names"
)]

use crate::fact::archive::{HoldRecord, MemberRecord, SlotRecord, TopicRecord, archived};

archived! {
    /// Version 1 of a slice.
    pub struct Slice {
        pub as_of: u64,
        /// The slice covers the keys after `from`, up to and with `to`.
        pub from: Vec<u8>,
        pub to: Vec<u8>,
        /// One in the first slice, none in the others.
        pub shard: Vec<ShardRecord>,
        pub topics: Vec<TopicCell>,
        pub partitions: Vec<PartitionCell>,
        pub producers: Vec<ProducerCell>,
        pub epochs: Vec<EpochCell>,
        pub offsets: Vec<OffsetCell>,
        pub groups: Vec<GroupCell>,
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
}
