//! Settings of one shard's core, and what time looks like to it.

use millstream_batch::ids::{ShardId, TimestampMs};
use millstream_machine::Limits;

/// Time as the caller reads it. The core has no clock of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Wall clock: what is logged. May step, also backwards.
    pub wall: TimestampMs,
    /// Microseconds since some fixed moment of this process, never backwards: deadlines, latencies.
    pub mono_us: u64,
}

impl Now {
    /// The monotonic moment `ms` milliseconds from now.
    #[must_use]
    pub(crate) fn after_ms(self, ms: u64) -> u64 {
        self.mono_us.saturating_add(ms.saturating_mul(1_000))
    }
}

/// Settings of [`super::ShardCore`]. Times in milliseconds, sizes in bytes.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    pub shard: ShardId,
    /// Shards of the data directory.
    pub shards: u16,
    pub log: millstream_log::Config,
    /// How much the machine may hold.
    pub limits: Limits,
    /// `retention.ms` of topics that do not say. -1: for ever.
    pub retention_ms: i64,
    /// `retention.bytes` of each partition of topics that do not say. -1: unbounded.
    pub retention_bytes: i64,
    /// How often retention looks, besides each time that a file is sealed.
    pub retention_check_ms: u64,
    /// A wall clock further ahead of logged time than this is doubted at a start.
    pub clock_ahead_max_ms: i64,
    /// How often silent members are looked for.
    pub members_check_ms: u64,
    /// A snapshot is begun after so many bytes of log since the last one (and four times its size),
    /// and when a file is sealed: this bounds what a restart replays.
    pub snapshot_after_bytes: u64,
    /// Bytes of one snapshot slice: what is encoded without a break, so that the shard's other work
    /// waits less than a millisecond.
    pub snapshot_slice_bytes: usize,
    /// Producers unused for so long are forgotten, and their ids refused.
    pub producer_expiry_ms: i64,
    /// How often producer expiry looks.
    pub producer_check_ms: u64,
    /// With `log.sync_each_group = false`: how often the log is synced.
    pub sync_interval_ms: u64,
    /// Calls that may wait for records, assignments or the catalog at a time.
    pub waiting_max: usize,
}

impl CoreConfig {
    /// Defaults around the log's settings.
    #[must_use]
    pub fn new(shard: ShardId, shards: u16, log: millstream_log::Config) -> Self {
        Self {
            shard,
            shards,
            log,
            limits: Limits::default(),
            retention_ms: 7 * 24 * 3_600_000,
            retention_bytes: -1,
            retention_check_ms: 10_000,
            clock_ahead_max_ms: 7 * 24 * 3_600_000,
            members_check_ms: 500,
            snapshot_after_bytes: 64 << 20,
            snapshot_slice_bytes: 128 << 10,
            producer_expiry_ms: 7 * 24 * 3_600_000,
            producer_check_ms: 600_000,
            sync_interval_ms: 50,
            waiting_max: 100_000,
        }
    }
}
