//! How much one shard's machine may hold. Past a bound a request answers `StateFull`; nothing is
//! evicted to make room.
//!
//! Absent on purpose: limits of the bytes themselves, which every crate shares
//! (`millstream_batch::limits`).

use millstream_batch::limits::{BATCH_BYTES_MAX, SHARD_PARTITIONS_MAX};

/// Bounds of one shard's state, and the defaults that topics fall back to. Counts unless said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Topics known to the shard.
    pub topics: usize,
    /// Partitions owned by the shard. At most `SHARD_PARTITIONS_MAX`.
    pub partitions: usize,
    /// (partition, producer) pairs: about 250 bytes each.
    pub producers: usize,
    /// Of those, in one partition.
    pub producers_per_partition: usize,
    /// Groups whose home is this shard.
    pub groups: usize,
    pub members_per_group: usize,
    /// Topics one member may subscribe to.
    pub topics_per_member: usize,
    /// (group, partition) pairs with an offset or a fence.
    pub offsets: usize,
    /// Bytes of all commits' metadata together.
    pub metadata_bytes: usize,
    /// Messages that wait for one other shard, in one row.
    pub outbox: usize,
    /// Filters bound to one topic.
    pub filters_per_topic: usize,
    /// Bytes of one filter binding's parameters, keys and values together.
    pub parameter_bytes: usize,
    /// Default of `max.message.bytes`.
    pub batch_bytes: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            topics: 100_000,
            partitions: SHARD_PARTITIONS_MAX,
            producers: 200_000,
            producers_per_partition: 20_000,
            groups: 10_000,
            members_per_group: 1_000,
            topics_per_member: 1_000,
            offsets: 1_000_000,
            metadata_bytes: 32 << 20,
            outbox: 4_096,
            filters_per_topic: 16,
            parameter_bytes: 64 << 10,
            batch_bytes: BATCH_BYTES_MAX as u32,
        }
    }
}

/// Furthest that one fact moves logged time forward, in milliseconds: one hour. A single bad reading
/// of the clock then shortens retention by at most that much.
pub const CLOCK_STEP_MS_MAX: i64 = 3_600_000;
/// Spacing of the marks that tell which producer ids were given out when, in milliseconds.
pub const PRODUCER_MARK_MS: i64 = 600_000;
/// Living producers below the floor: past so many the floor stops at the next one.
pub const SURVIVORS_MAX: usize = 4_096;
/// Deleted topics remembered, so that a late description does not bring one back.
pub const FORGOTTEN_TOPICS_REMEMBERED: usize = 1_024;
/// Deleted groups remembered where partitions are kept, so that a late claim does not bring one back.
pub const FORGOTTEN_GROUPS_REMEMBERED: usize = 1_024;
/// Leader epochs of one partition that are told apart: unclean ends of the log since the oldest kept record.
pub const LEADER_EPOCHS_MAX: usize = 64;
/// A member's session timeout, in milliseconds.
pub const SESSION_TIMEOUT_MS_MAX: u32 = 86_400_000;
/// A member's own name for itself, in bytes.
pub const CLIENT_BYTES_MAX: usize = 255;

const _: () = assert!(BATCH_BYTES_MAX <= u32::MAX as usize);
const _: () = assert!(CLOCK_STEP_MS_MAX > PRODUCER_MARK_MS);
