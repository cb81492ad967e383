//! The log as its user sees it: plain data in, [`Event`]s out.
//!
//! Protocol of use of [`crate::Log`] (sans-io; the caller owns the storage):
//!
//! 1. `Log::open(config)`, then carry every [`Event::Io`] to a storage and every answer back with
//!    `io_done`, until [`Event::Recovered`]. On the way the log gives [`Event::SnapshotPart`]s (the newest
//!    published snapshot, whole parts in order), then every unit after the snapshot's begin as
//!    [`Event::Replay`], in lsn order. The log rebuilds its own index: keys are stored with entries.
//!    Then the caller says what is alive: `set_start` for each partition it knows, `drop_slot` for
//!    each of `slots()` that it does not.
//! 2. `append` any number of entries (they join the gathering group), then `flush` once: a group is
//!    written when no pair is in flight, else when the one in flight is done. Entries that hold together
//!    are a unit (`append_unit`): one lsn, in one group, so that a crash leaves all of them or none.
//!    [`Event::Durable`] says how far the log is safe. When there has been nothing to do for a while
//!    (tens of milliseconds), `idle` once: it proves the last group with an empty one.
//! 3. `fetch` batches by slot and offset; answered by [`Event::Fetched`], at once from the hot
//!    tail or after reads.
//! 4. `begin_snapshot`, `snapshot_part`…, `publish_snapshot`; `set_start` as partitions are trimmed;
//!    files that hold nothing alive are recycled by the log itself.
//! 5. `retry_space` on a timer while there is no space; `sync_now` on a timer with
//!    `sync_each_group = false`. `seal` at shutdown, then carry I/O until `is_quiet`.
//! 6. After [`Event::Failed`] nothing more is written, ever; fetches at or below the durable point
//!    go on being served.
//!
//! Every call may leave events: poll until `None` after each.

use bytes::Bytes;
use millstream_batch::Parts;
use millstream_batch::ids::{Lsn, Offset, PartitionSlot, Term, TimestampMs};
use smallvec::SmallVec;

use crate::io::{Io, IoError};

/// Settings of one shard's log. Sizes in bytes.
#[derive(Clone, Debug)]
pub struct Config {
    /// Length of a WAL file: allocated whole. Multiple of `BLOCK_BYTES`, ≥ 4 × `group_bytes_max`.
    /// Limits of entries follow it, whatever the length of the file they go into.
    pub segment_bytes: u64,
    /// Length of the first files: later ones are a quarter of what the log holds, up to
    /// `segment_bytes`. Multiple of `BLOCK_BYTES`, at most `segment_bytes`.
    pub first_segment_bytes: u64,
    /// Most that one write carries.
    pub group_bytes_max: usize,
    /// Memory for recently written groups, so that consumers near the end never touch the disk.
    /// Charged by whole group buffers, those that an outside slice still pins included.
    pub hot_tail_bytes_max: usize,
    /// Memory for reads from the disk: those in flight and those kept. A single read may be larger, and is
    /// then the only one.
    pub read_bytes_max: usize,
    /// Zeroed files kept ready (beside the one spare for deletes, retention and snapshots).
    pub spares_ready: usize,
    /// Recycled files kept beyond that before they are removed, so that space returns.
    pub recycle_max: usize,
    /// `true`: a group is durable when written **and** synced. `false` (`flush = interval`): the
    /// caller calls `sync_now` on its interval and visibility follows the written point.
    pub sync_each_group: bool,
    /// Drawn by the caller from entropy; seeds the checksums of files made in this run.
    pub incarnation: u64,
}

/// One entry to append. `kind` and `fact` belong to the machine; the log never looks inside.
#[derive(Clone, Debug)]
pub struct Append {
    pub kind: u16,
    pub fact: Bytes,
    /// The batch's bytes in parts, as they arrived: copied once, into the group buffer.
    pub raw: Parts,
    /// Set when `raw` is a record batch that consumers may fetch.
    pub index: Option<IndexKey>,
}

/// How a batch is found again. Offsets are inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexKey {
    pub slot: PartitionSlot,
    pub base_offset: Offset,
    pub last_offset: Offset,
    /// Append time: retention and fetch by time go by it.
    pub append_time: TimestampMs,
    /// Largest record timestamp in the batch (fetch by timestamp goes by it).
    pub max_timestamp: TimestampMs,
}

/// An entry read back.
#[derive(Clone, Debug)]
pub struct Entry {
    pub lsn: Lsn,
    pub term: Term,
    pub kind: u16,
    pub fact: Bytes,
    /// Empty when the entry has none. During replay, raw bytes are not read and this is empty:
    /// `raw_len` tells.
    pub raw: Bytes,
    pub raw_len: usize,
}

/// All that one lsn holds, read back in the order in which it was appended. Never empty.
#[derive(Clone, Debug)]
pub struct Unit {
    pub lsn: Lsn,
    pub entries: SmallVec<[Entry; 1]>,
}

impl Entry {
    /// Copy what is held, so that the memory it was read into can go.
    pub(crate) fn let_go(&mut self) {
        self.fact = Bytes::copy_from_slice(&self.fact);
        self.raw = Bytes::copy_from_slice(&self.raw);
    }
}

/// What to fetch. `token` comes back with the answer.
#[derive(Clone, Copy, Debug)]
pub struct Fetch {
    pub token: u64,
    pub slot: PartitionSlot,
    /// The first batch returned is the one that holds this offset or, if none does, the next.
    pub offset: Offset,
    /// Batches whose base offset is at or past this are not returned (the released end).
    pub end: Offset,
    /// Stop after this many raw bytes; at least one batch is returned when there is one.
    pub bytes_max: usize,
}

/// Look for the first batch whose largest timestamp is at or past `timestamp`. `token` comes back
/// with [`Event::OffsetFound`].
#[derive(Clone, Copy, Debug)]
pub struct TimeQuery {
    pub token: u64,
    pub slot: PartitionSlot,
    pub timestamp: TimestampMs,
    /// Batches whose base offset is at or past this are not looked at (the released end).
    pub end: Offset,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchError {
    /// The stored bytes of these offsets do not match their checksum; everything else is served.
    Damaged { from: Offset, to: Offset },
    /// The disk failed to read.
    Io(IoError),
}

#[derive(Debug)]
pub enum Event {
    /// Carry this to the storage.
    Io(Io),
    /// One archive of the newest snapshot, during open. `begin` is the lsn it was begun at.
    SnapshotPart {
        begin: Lsn,
        bytes: Bytes,
    },
    /// One unit after the snapshot's begin, during open. Each `raw` is empty.
    Replay(Unit),
    /// Open is over; appends may begin.
    Recovered(Box<Recovery>),
    /// All entries up to here survive a crash (with `sync_each_group = false`: are written).
    Durable(Lsn),
    Fetched {
        token: u64,
        result: Result<Vec<Entry>, FetchError>,
    },
    /// Answers a [`TimeQuery`]: the batch found, by its key, or `None` when all are older.
    OffsetFound {
        token: u64,
        result: Result<Option<IndexKey>, FetchError>,
    },
    /// A snapshot begun with `begin_snapshot` is published (its parts and manifest are durable).
    SnapshotPublished {
        begin: Lsn,
    },
    /// The snapshot was given up for want of space; the one before it still holds. Begin another
    /// when there is space.
    SnapshotAbandoned {
        begin: Lsn,
        error: IoError,
    },
    /// The active file was sealed: a good moment for a snapshot and for retention.
    Sealed {
        file: u64,
        last: Lsn,
    },
    /// No room for the next file. `append` is refused with `Full` once the active file is full,
    /// until `SpaceBack`, except entries appended with `append_reserved` (deletes, retention,
    /// aborts, snapshots).
    SpaceGone(IoError),
    SpaceBack,
    /// A write or sync failed: nothing more is written, for good. Says what failed.
    Failed(IoError),
}

/// What was found at start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    pub last: Lsn,
    pub term: Term,
    /// Units replayed, and bytes of log read for it.
    pub replayed: u64,
    pub bytes_read: u64,
    /// Bytes of a torn last group that were cut (never acknowledged), 0 for a clean end.
    pub cut_bytes: u64,
    /// Bytes at the end of the log that were read back and written anew, because nothing proved that
    /// they are on the disk: the last group, under `flush = interval` all since the last sync, and the
    /// newest footer.
    pub rewritten_bytes: u64,
    /// Damage found below the durable point: served around, never skipped silently.
    pub damage: Vec<Damage>,
    /// Set when a damaged *fact* after the last snapshot makes the shard read-only, with why.
    pub read_only: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub file: String,
    /// Byte position in the file.
    pub at: u64,
    /// What is wrong, in words a person can act on.
    pub what: String,
}

/// Why an append was not taken. Nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the disk is full: free space or raise retention; the broker resumes by itself")]
    Full,
    #[error("the log stopped after a failed write; restart the broker once the disk is healthy")]
    Stopped,
    #[error("the log is read-only because a fact is damaged; see `millstream log verify`")]
    ReadOnly,
    #[error(
        "the entry, or what is to hold together with it, is larger than a WAL file or a group can hold; raise the segment size"
    )]
    TooLarge,
    /// It does not fit into the short file that comes next. A longer one is being made.
    #[error("the entry needs a longer file than the next one, which is being made: try again")]
    NotYet,
}

/// Per sealed file and partition: what retention needs to decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealedRange {
    pub file: u64,
    /// Last entry of the file.
    pub file_last: Lsn,
    pub slot: PartitionSlot,
    pub first_offset: Offset,
    pub last_offset: Offset,
    /// Newest append time in the range.
    pub append_time_max: TimestampMs,
    pub bytes: u64,
}

/// A stretch of one partition in a file that is not sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenRange {
    pub last_offset: Offset,
    /// Newest append time in the stretch.
    pub append_time_max: TimestampMs,
}

/// A WAL file that is not freed yet, and what keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub file: String,
    pub bytes: u64,
    /// In words, most important first.
    pub by: Vec<String>,
}

/// Counters and gauges. Counters start at 0 with the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Space that WAL files and spares take on disk.
    pub disk_bytes: u64,
    pub wal_files: u64,
    pub spare_files: u64,
    /// Memory of the groups gathered, under way and in the hot tail, what readers still hold included.
    pub hot_bytes: u64,
    /// Memory of groups that wait for their write.
    pub queued_bytes: u64,
    /// Memory of cached cold reads and footer sections.
    pub cache_bytes: u64,
    /// Groups written (marks included), entries in them and bytes of them, padding included.
    pub groups: u64,
    pub entries: u64,
    pub bytes_written: u64,
    pub writes: u64,
    pub syncs: u64,
    /// Fetches answered from memory, and those that waited for the disk.
    pub fetches_hot: u64,
    pub fetches_cold: u64,
    pub bytes_read: u64,
    /// Files that returned to the pool or to the file system.
    pub files_freed: u64,
}
