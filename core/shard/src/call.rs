//! What can be asked of a shard, as plain data, and what it answers.
//!
//! A shard is the machine and its log behind one queue. Everything here is `Send`: calls cross
//! cores by being moved, payloads by reference count.

use bytes::Bytes;
use millstream_batch::Parts;
use millstream_batch::ids::{
    GroupEpoch, MemberId, Offset, Partition, ProducerId, ShardId, Term, TimestampMs, TopicId,
};
use millstream_machine::request::{Assignment, Produced, Refusal, Reply, Request};
use millstream_machine::topics::{Stage, TopicMeta};

/// One call. Each gets exactly one [`Answer`], unless it is cancelled or the shard is gone.
#[derive(Debug)]
pub enum Call {
    /// A request to the machine without a batch.
    Machine(Request),
    /// A batch: the machine's request and the bytes, in parts as they arrived, already checked
    /// (header, CRC, limits). The shard runs the topic's produce filters before it decides.
    Produce {
        request: millstream_machine::request::Produce,
        raw: Parts,
    },
    Fetch(Fetch),
    /// Resolve a position to an offset.
    OffsetAt {
        partition: Partition,
        at: Position,
    },
    /// Answered when the member's assignment is another than `seen`, or after `wait_ms` with what
    /// holds. Counts as a sign of life of the member. Refused when the member joined again.
    WatchAssignment {
        group: String,
        member: MemberId,
        /// The epoch of the join that asks.
        joined: GroupEpoch,
        seen: Seen,
        wait_ms: u32,
    },
    /// Answered when the catalog on this shard is newer than `seen`, or after `wait_ms`.
    WatchCatalog {
        seen: u64,
        wait_ms: u32,
    },
    /// Answered with `Reply::Done` when every shard has forgotten a group that was deleted at this one; refused
    /// when that is not so after `wait_ms`: it goes on, and the name is free then.
    WatchForgotten {
        group: String,
        wait_ms: u32,
    },
    /// At the catalogue's shard: answered with `Reply::Spread` when every other shard knows the catalogue up to
    /// this revision, but for those that refuse, or after `wait_ms`.
    WatchSpread {
        revision: u64,
        wait_ms: u32,
    },
    /// Of another shard: what came of an `Effect::Tell`.
    Told {
        shard: ShardId,
        about: About,
        outcome: Outcome,
    },
    /// Of another shard: no producer id below this lives there.
    ProducerFloor {
        shard: ShardId,
        floor: ProducerId,
    },
    /// A partition as its readers see it.
    DescribePartition {
        partition: Partition,
    },
    /// What was appended to each topic, of this shard's partitions.
    TopicTotals,
    /// What `/metrics` and `doctor` want to know.
    Status,
    /// Stop taking calls, flush, seal and snapshot; answered when that is durable.
    Stop,
}

/// What a member knows of its assignment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub version: u64,
    /// Whether the group moved partitions.
    pub moves: bool,
}

impl Seen {
    #[must_use]
    pub fn of(assignment: &Assignment) -> Self {
        Self {
            version: assignment.version,
            moves: assignment.moves,
        }
    }

    /// Whether this assignment is news.
    pub(crate) fn is_behind(&self, assignment: &Assignment) -> bool {
        assignment.version > self.version || assignment.moves != self.moves
    }
}

/// What one shard asks of another again and again, until it is so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum About {
    /// The change of the catalogue that has this revision.
    Catalogue { revision: u64 },
    /// That nobody owns a partition since this epoch.
    Claim {
        group: String,
        partition: Partition,
        epoch: GroupEpoch,
    },
}

/// What came of asking another shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is so there, durably.
    Done,
    /// The machine there refuses, and will while nothing changes.
    Refused,
    /// The shard could not be asked, or could not do it now.
    Failed,
}

impl Outcome {
    /// What an answer to a machine's request says.
    #[must_use]
    pub fn of(answer: &Answer) -> Self {
        match answer {
            Answer::Reply(_) => Self::Done,
            Answer::Error(Error::Refused(_)) => Self::Refused,
            _ => Self::Failed,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Fetch {
    pub partition: Partition,
    pub offset: Offset,
    /// Of the last record that the reader has read, if it knows: should that record have been cut away
    /// by an unclean stop, it is told so, with the offset to go on from, instead of being given others.
    pub leader_epoch: Option<Term>,
    /// Stop after this many bytes; at least one batch is returned when there is one.
    pub bytes_max: usize,
    /// With nothing to return, wait so long for the next released batch. 0 answers at once.
    pub wait_ms: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    Start,
    /// The released end: the next offset a consumer could not read yet.
    End,
    /// The first record whose batch's largest timestamp is at or after this.
    Timestamp(TimestampMs),
}

#[derive(Debug)]
pub enum Answer {
    Reply(Reply),
    /// In place of [`Reply::Produced`], when the topic's filters did not keep the whole batch. `None`: it is
    /// a repetition, and what they did to the first is forgotten.
    Filtered {
        produced: Produced,
        kept: Option<Kept>,
    },
    Fetched(Fetched),
    /// `offset` and, for `Timestamp`, whether a record was found (else it is the end).
    Offset {
        offset: Offset,
        found: bool,
    },
    Assignment(Assignment),
    Catalog {
        version: u64,
        topics: Vec<TopicMeta>,
    },
    Partition(PartitionStatus),
    TopicTotals(Vec<TopicTotals>),
    Status(Box<Status>),
    /// To what one shard tells another: it was heard, and nothing hangs on it.
    Heard,
    Stopped,
    Error(Error),
}

/// A partition as its readers see it.
#[derive(Clone, Debug)]
pub struct PartitionStatus {
    pub start: Offset,
    /// The released end, or the least that it can be.
    pub end: Offset,
    /// Why there may be more behind the end.
    pub cut_short: Option<Error>,
    pub leader_epoch: Term,
    /// Appended since the partition was created.
    pub bytes: u64,
    /// Appended, over the last seconds.
    pub records_per_second: f64,
}

/// What was appended to a topic since it was created, of one shard's partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicTotals {
    pub id: TopicId,
    pub topic: String,
    /// Its deployments.
    pub filters: Vec<(String, Stage)>,
    pub records: u64,
    pub bytes: u64,
}

/// What filters left of a batch that was produced, when that is less than was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub records: u32,
    /// Bit `i % 8` of byte `i / 8` is set when record `i` was kept. `None` for a batch of more than
    /// [`KEPT_MAP_RECORDS_MAX`](millstream_batch::limits::KEPT_MAP_RECORDS_MAX) records.
    pub map: Option<Bytes>,
    /// Of those that were not kept, the ones that a filter could not judge and whose policy is `reject`.
    pub refused: Option<Refused>,
}

/// Records that are refused: whoever sent them is to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub records: u32,
    /// As [`Kept::map`].
    pub map: Option<Bytes>,
    /// Why, for the first of them.
    pub reasons: Vec<RefusedRecord>,
}

/// Why a record is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedRecord {
    /// Its place in the batch as it was sent.
    pub record: u32,
    pub filter: String,
    pub message: String,
}

impl Kept {
    /// Memory that it takes, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let map = |map: &Option<Bytes>| map.as_ref().map_or(0, Bytes::len);
        let refused = self.refused.as_ref().map_or(0, |refused| {
            let reasons = refused.reasons.iter();
            map(&refused.map)
                + reasons
                    .map(|r| size_of::<RefusedRecord>() + r.filter.len() + r.message.len())
                    .sum::<usize>()
        });
        map(&self.map) + refused
    }
}

#[derive(Debug)]
pub struct Fetched {
    /// In offset order. The first may begin before the offset asked for; records below it are for
    /// the reader to skip.
    pub batches: Vec<Served>,
    pub start: Offset,
    /// Released end at the time of the answer.
    pub end: Offset,
    /// Whether that is all there is. A read-only shard does not know what follows.
    pub end_known: bool,
}

/// A batch as served: the stored bytes, shared, and beside them what the layout cannot hold.
#[derive(Clone, Debug)]
pub struct Served {
    pub base_offset: Offset,
    pub last_offset: Offset,
    pub records: u32,
    pub append_time: TimestampMs,
    pub leader_epoch: u32,
    /// Producer identity, 0 when it had none.
    pub pid: u64,
    pub epoch: u32,
    pub sequence: u64,
    /// The Kafka batch as stored. Base offset and leader epoch inside are not to be trusted: send a
    /// fresh head with those above and the shared body.
    pub batch: Bytes,
}

/// Why a call failed. `NotApplied` classes are safe to repeat; `Unknown` is not known to either side.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Refused(#[from] Refusal),
    #[error("offset {offset} is outside {start}..={end}")]
    OffsetOutOfRange {
        offset: Offset,
        start: Offset,
        end: Offset,
    },
    #[error(
        "offsets {from} to {to} are damaged on disk: see `millstream log verify`; seek past {to} to go on behind them"
    )]
    Damaged { from: Offset, to: Offset },
    #[error("the disk is full: free space or lower retention; the broker resumes by itself")]
    DiskFull,
    #[error(
        "the shard stopped writing after a disk failure ({0}); what is durable is still served"
    )]
    Stopped(String),
    #[error("the outcome is unknown: the shard stopped while the write was under way ({0})")]
    Unknown(String),
    #[error("the shard is read-only: {0}")]
    ReadOnly(String),
    #[error("filter `{filter}`: {message}")]
    Filter {
        filter: String,
        message: String,
        retriable: bool,
    },
    #[error("the batch cannot be read: {0}")]
    BadBatch(String),
    #[error("shard {shard} has {calls} calls waiting: slow down")]
    Busy { shard: ShardId, calls: usize },
    #[error(
        "a limit of the broker's process keeps it from making files ({0}): the operator raises it, or waits"
    )]
    Limited(String),
    #[error("{0}")]
    NotYet(String),
    #[error("the shard is stopping")]
    Stopping,
    #[error("reading failed: {0}")]
    Read(String),
}

/// A shard's health and counters, for operators.
#[derive(Clone, Debug, Default)]
pub struct Status {
    pub shard: ShardId,
    pub topics: usize,
    pub partitions: usize,
    pub groups: usize,
    pub last_lsn: u64,
    pub durable_lsn: u64,
    pub term: u32,
    pub disk: String,
    /// `serving`, `disk-full`, `limited`, `read-only`, `stopped`, with why.
    pub state: String,
    pub why: Option<String>,
    /// Ranges found damaged, at the start and by reads since.
    pub damaged: usize,
    /// Messages that other shards have not acknowledged, and shards that do not know the whole catalogue.
    pub untold: usize,
    /// Why the wall clock is in doubt, and what to do about it.
    pub clock: Option<String>,
    pub log_bytes: u64,
    pub log_files: usize,
    pub hot_tail_bytes: usize,
    /// What keeps each old file: `wal-…: topic/3 below offset 71 (retention.ms = -1)`.
    pub holders: Vec<String>,
    pub batches_in: u64,
    pub records_in: u64,
    pub bytes_in: u64,
    pub duplicates: u64,
    pub refused: u64,
    pub fetches_hot: u64,
    pub fetches_cold: u64,
    pub bytes_out: u64,
    pub groups_written: u64,
    pub syncs: u64,
    /// Latency histograms in microseconds, as cumulative counts for the bounds in `LATENCY_BOUNDS_US`.
    pub produce_us: Vec<u64>,
    pub sync_us: Vec<u64>,
    pub fetch_us: Vec<u64>,
    /// Produce filters, by deployment.
    pub filters: Vec<FilterStatus>,
    /// Lag by (group, topic, partition), bounded in number.
    pub lag: Vec<(String, String, u32, u64)>,
    pub recovery: String,
}

/// What a deployment did, and where it runs.
#[derive(Clone, Debug, Default)]
pub struct FilterStatus {
    pub name: String,
    /// Batches.
    pub calls: u64,
    pub records: u64,
    pub kept: u64,
    /// Batches without a verdict.
    pub errors: u64,
    /// Records that could not be judged.
    pub failed: u64,
    /// Instances killed, of those that ran as well as of those that did not start.
    pub kills: u64,
    pub nanos: u64,
    /// Slow or killed once: it runs on worker threads.
    pub worker: bool,
    /// Killed too often: it does not run until it is deployed again.
    pub paused: bool,
}

/// Upper bounds of the latency histograms; the last bucket has none.
pub const LATENCY_BOUNDS_US: [u64; 14] = [
    50, 100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 51_200, 102_400, 409_600,
    1_638_400,
];
