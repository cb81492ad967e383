//! All that can be asked of one shard's machine, what it answers, and how it refuses.
//!
//! Requests that change something yield a fact; the others only look. A reply is released when the
//! log is durable up to the last lsn that was installed when the reply was decided.

use millstream_batch::ids::{
    GroupEpoch, MemberId, Offset, Partition, PartitionSlot, ProducerEpoch, ProducerId, Sequence,
    ShardId, Term, TimestampMs, TopicId,
};

use crate::couriers::{Message, Row};
use crate::topics::{FilterBinding, TopicConfig, TopicMeta};

/// Topics of one page of a listing, fewer when their filters' parameters are long.
pub const TOPICS_A_PAGE: usize = 500;

/// Partitions that one reset moves: its unit stays small.
pub const RESETS_MAX: usize = 1_000;

#[derive(Clone, Debug)]
pub enum Request {
    // --- catalog shard only -------------------------------------------------------------------
    /// `id` is drawn by the caller (the machine has no entropy).
    CreateTopic {
        id: TopicId,
        name: String,
        partitions: u32,
        config: TopicConfig,
    },
    DeleteTopic {
        name: String,
    },
    /// Replaces the named settings; `None` inside a setting resets it to the default.
    ConfigureTopic {
        name: String,
        set: Vec<(String, Option<String>)>,
    },
    AddPartitions {
        name: String,
        total: u32,
    },
    /// A new producer id, or with `pid` set the next epoch of that id (fences the older).
    InitProducer {
        pid: ProducerId,
    },
    DeployFilter {
        topic: String,
        binding: FilterBinding,
    },
    RemoveFilter {
        topic: String,
        name: String,
    },

    /// Another shard has applied all changes up to this revision.
    CatalogueKnown {
        shard: ShardId,
        revision: u64,
    },

    // --- every shard: the catalog's decisions applied; idempotent by `revision` -------------
    ApplyTopic {
        meta: TopicMeta,
    },
    /// `revision`: that of the deletion.
    ForgetTopic {
        id: TopicId,
        revision: u64,
    },

    // --- the partition's shard ---------------------------------------------------------------
    Produce(Produce),
    /// Raise the start offset (retention, `delete records`). Below the current start: no effect.
    TrimPartition {
        partition: Partition,
        start: Offset,
    },
    /// Offsets by time are resolved by the log's index; this gives the bounds.
    DescribePartition {
        partition: Partition,
    },
    /// Fence older owners and learn where to go on. `epoch` must be above the one that holds, or
    /// repeat the claim that holds. `member` 0 gives the partition up: sent for every
    /// `State::unowned` partition of the group once its last owner is gone.
    ClaimPartition {
        group: String,
        partition: Partition,
        member: MemberId,
        epoch: GroupEpoch,
    },
    Commit(Commit),
    CommittedOffset {
        group: String,
        partition: Partition,
    },
    /// Where a group begins in a partition: committed unless something is, whoever holds it. Past the end
    /// it is the end. Answered as `CommittedOffset`, with what holds from now on.
    BeginOffset {
        group: String,
        partition: Partition,
        offset: Offset,
    },
    /// An operator's reset, of all these partitions or of none; at most [`RESETS_MAX`]. Refused while a
    /// member holds one of them, unless `force`, which also fences that member: the home is told with
    /// `ReassignPartitions`.
    ResetOffsets {
        group: String,
        places: Vec<(Partition, Offset)>,
        force: bool,
    },

    // --- the group's home shard --------------------------------------------------------------
    /// `member` 0 asks for a new one; a known member joins again and keeps what it owns, under a new
    /// epoch that fences its stream of before. What that one was asked to let go is let go. With `again`
    /// it is that stream itself that joins, under this epoch: refused when another took the member since.
    JoinGroup {
        group: String,
        member: MemberId,
        again: Option<GroupEpoch>,
        client: String,
        topics: Vec<TopicId>,
        session_timeout_ms: u32,
    },
    /// `joined` here and below: the epoch of the join that asks. Refused when the member joined again.
    LeaveGroup {
        group: String,
        member: MemberId,
        joined: GroupEpoch,
    },
    /// The member has stopped reading these partitions and committed what it wanted.
    ReleasePartitions {
        group: String,
        member: MemberId,
        joined: GroupEpoch,
        partitions: Vec<Partition>,
    },
    /// Where these partitions are kept their owner is fenced, each at this epoch, by a forced reset: those
    /// that are still owned under no higher one are given out anew.
    ReassignPartitions {
        group: String,
        fenced: Vec<(Partition, GroupEpoch)>,
    },
    /// What a member owns now; answered at once (the shard does the waiting for changes).
    GroupAssignment {
        group: String,
        member: MemberId,
        joined: GroupEpoch,
    },
    /// Members unseen past their session timeout. Liveness is volatile; expiry is a fact.
    ExpireMembers {
        group: String,
        members: Vec<MemberId>,
    },
    /// Groups whose topics changed: assign anew.
    RebalanceGroup {
        group: String,
    },
    /// Done also for a group that is not known: its offsets may lie on other shards, which are sent word. Refused
    /// while it has members, unless `force`. Until all have forgotten it, see `State::is_forgetting`.
    DeleteGroup {
        group: String,
        force: bool,
    },

    // --- between shards ------------------------------------------------------------------------
    /// Message `k` of another shard. Answered with `CourierTaken`, however often it comes.
    ApplyCourier {
        from: ShardId,
        row: Row,
        k: u64,
        message: Message,
    },
    /// A shard has applied, durably, all messages up to `last`.
    CourierAcknowledged {
        to: ShardId,
        row: Row,
        last: u64,
    },

    // --- look-ups --------------------------------------------------------------------------
    ListTopics,
    /// Topics in the order of their ids, behind `after`: a page of them, see [`TOPICS_A_PAGE`].
    TopicsAfter {
        after: Option<TopicId>,
    },
    DescribeTopic {
        name: String,
    },
    /// As `DescribeTopic`, by id.
    TopicById {
        id: TopicId,
    },
    /// The next groups after this name, some at a time.
    ListGroups {
        after: String,
    },
    /// `of`: offsets and owners of these partitions alone, and nothing of those that nobody owns; `None`: of all.
    DescribeGroup {
        group: String,
        of: Option<Vec<Partition>>,
    },

    // --- logged maintenance, every shard -----------------------------------------------------
    /// Forget producers unused since `producer_unused_before` and raise the floor below which an
    /// unknown id is refused. `floor_max` is the smallest `State::producer_floor_bound` of **all**
    /// shards for the same time, so that an id that lives on another shard is not refused here.
    ExpireProducers {
        producer_unused_before: TimestampMs,
        floor_max: ProducerId,
    },
    /// Bring logged time up to `now` however far that is. Sent by the driver when its monotonic
    /// clock vouches for the gap (a start, an idle night); every other request moves logged time by
    /// at most `CLOCK_STEP_MS_MAX`.
    AdvanceClock,
    /// The wall clock is right, an operator says, whatever was logged: logged time is `now` from here
    /// on, also when that is earlier.
    AcceptClock,
}

/// A batch to append, by its header's numbers; the bytes travel beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Produce {
    pub partition: Partition,
    /// 0: no identity, no idempotence.
    pub pid: ProducerId,
    pub epoch: ProducerEpoch,
    /// Sequence of the first record as the producer sent it.
    pub sequence: Sequence,
    /// Records as the producer sent them: what the sequence advances by.
    pub sent: u32,
    /// Records kept by the filters: what the offset advances by. 0 appends no batch, only the
    /// producer's progress.
    pub kept: u32,
    /// Bytes of the batch as it will be stored.
    pub bytes: u32,
    pub max_timestamp: TimestampMs,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    pub group: String,
    pub partition: Partition,
    /// 0 and epoch 0 for consumers with fixed partitions: allowed while no member holds it.
    pub member: MemberId,
    pub epoch: GroupEpoch,
    /// The next offset to read.
    pub offset: Offset,
    /// Of the last record read, if it is known: refused when that record was cut away since.
    pub leader_epoch: Option<Term>,
    pub metadata: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Done,
    /// The topic as it is now: the broker carries it to the other shards.
    Topic(TopicMeta),
    TopicGone {
        id: TopicId,
        revision: u64,
    },
    Topics(Vec<TopicMeta>),
    Producer {
        pid: ProducerId,
        epoch: ProducerEpoch,
    },
    Produced(Produced),
    Partition(PartitionInfo),
    Claimed {
        committed: Option<Offset>,
    },
    Committed {
        offset: Option<Offset>,
        metadata: String,
    },
    /// To `ResetOffsets`, for each partition in turn: members under this epoch or an older one are fenced.
    Reset {
        fences: Vec<GroupEpoch>,
    },
    Joined {
        member: MemberId,
        assignment: Assignment,
    },
    Assignment(Assignment),
    Groups {
        groups: Vec<GroupSummary>,
        /// There may be others after the last of these.
        more: bool,
    },
    Group(GroupInfo),
    /// These shards do not know the catalogue up to the revision that was asked about.
    Spread {
        behind: Vec<ShardId>,
    },
    /// All messages up to this one are applied here.
    CourierTaken {
        last: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Produced {
    /// Offset of the first record kept. `None`: nothing was kept, or the batch is a duplicate whose
    /// offset is no longer remembered.
    pub base_offset: Option<Offset>,
    pub append_time: TimestampMs,
    pub duplicate: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionInfo {
    pub partition: Partition,
    pub slot: PartitionSlot,
    pub start: Offset,
    /// The next offset to be given, installed but perhaps not yet released.
    pub end: Offset,
    pub term: Term,
    /// Bytes appended since creation.
    pub bytes: u64,
}

/// What one member may read and must let go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// Rises with every change that touches this member.
    pub version: u64,
    /// The epoch of the member's newest join.
    pub joined: GroupEpoch,
    /// Owned and not `revoking`, with the epoch at which it came to the member: the same for as long as
    /// nobody else had it and no reset overruled the member. Claims and commits go
    /// [`under`](Self::under) it.
    pub owned: Vec<(Partition, GroupEpoch)>,
    /// Still owned, but to be released: another member waits for these.
    pub revoking: Vec<Partition>,
    /// The group is [`Rebalancing`](Standing::Rebalancing): more may be coming to this member. No change of this
    /// alone raises `version`.
    pub moves: bool,
}

impl Assignment {
    /// The epoch to claim and commit under what came to the member at `since`.
    #[must_use]
    pub fn under(&self, since: GroupEpoch) -> GroupEpoch {
        since.max(self.joined)
    }
}

/// How a group stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// It has no members.
    #[default]
    Empty,
    /// Every partition is where it is to be.
    Stable,
    /// Partitions are asked back, or topics changed.
    Rebalancing,
}

/// A group in a list, as one shard knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupSummary {
    pub name: String,
    /// At its home: how it stands, and its number of members.
    pub home: Option<(Standing, usize)>,
    /// By topic that the group has an offset in here: records that are still to be read in all of this
    /// shard's partitions.
    pub lag: Vec<(TopicId, u64)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupInfo {
    pub name: String,
    pub epoch: GroupEpoch,
    pub standing: Standing,
    pub members: Vec<MemberInfo>,
    /// At the home: partitions that had an owner and have none, each with the epoch under which
    /// member 0 claims it, so that consumers with fixed partitions may commit again.
    pub unowned: Vec<(Partition, GroupEpoch)>,
    /// Topics of which an offset is committed on this shard.
    pub topics: Vec<TopicId>,
    /// Offsets committed on this shard's partitions.
    pub offsets: Vec<(Partition, Offset, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberInfo {
    pub member: MemberId,
    /// The epoch of its newest join.
    pub joined: GroupEpoch,
    pub client: String,
    pub topics: Vec<TopicId>,
    pub partitions: Vec<Partition>,
}

/// Why a request was refused. Nothing changed. Each has one error code on the wire.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("no topic `{0}`")]
    UnknownTopic(String),
    #[error("topic `{0}` exists already")]
    TopicExists(String),
    #[error("no partition {0}")]
    UnknownPartition(Partition),
    #[error("`{0}` is not a name: use 1 to 249 of A-Z a-z 0-9 . _ -")]
    BadName(String),
    #[error("{0}")]
    BadConfig(String),
    #[error(
        "a topic has 1 to {max} partitions, and their number only grows: asked {asked}, has {has}"
    )]
    BadPartitionCount { asked: u32, has: u32, max: u32 },
    #[error("batch of {bytes} bytes is over the topic's max.message.bytes of {max}")]
    BatchTooLarge { bytes: u32, max: u32 },
    #[error("producer {pid}: epoch {sent} is fenced by {current}")]
    ProducerFenced {
        pid: ProducerId,
        sent: ProducerEpoch,
        current: ProducerEpoch,
    },
    #[error(
        "producer {pid}: sequence {sent} does not follow {expected}: records were lost or reordered"
    )]
    SequenceGap {
        pid: ProducerId,
        sent: Sequence,
        expected: Sequence,
    },
    #[error(
        "producer {pid}: sequences {first} to {last} overlap the end of what is stored ({expected})"
    )]
    SequenceOverlap {
        pid: ProducerId,
        first: Sequence,
        last: Sequence,
        expected: Sequence,
    },
    #[error("producer {pid} expired: ask for a new id")]
    ProducerExpired { pid: ProducerId },
    #[error("producer id {pid} was never given out")]
    UnknownProducer { pid: ProducerId },
    #[error("no group `{0}`")]
    UnknownGroup(String),
    #[error("group `{group}` has no member {member}: join again")]
    UnknownMember { group: String, member: MemberId },
    #[error("member {member} (epoch {sent}) does not hold this partition (epoch {current})")]
    MemberFenced {
        member: MemberId,
        sent: GroupEpoch,
        current: GroupEpoch,
    },
    #[error(
        "member {member} of group `{group}` joined again (epoch {current}): what joined at epoch {joined} is over"
    )]
    MemberReplaced {
        group: String,
        member: MemberId,
        joined: GroupEpoch,
        current: GroupEpoch,
    },
    #[error("group `{0}` has members")]
    GroupBusy(String),
    #[error("offset {offset} is outside {start}..={end}")]
    OffsetOutOfRange {
        offset: Offset,
        start: Offset,
        end: Offset,
    },
    #[error(
        "the log was cut after an unclean stop: what was read up to {offset} under leader epoch {leader_epoch} is kept only up to {safe}"
    )]
    OffsetTruncated {
        offset: Offset,
        leader_epoch: Term,
        /// Up to here nothing was lost: where to go on.
        safe: Offset,
    },
    #[error("no filter `{0}` on this topic")]
    UnknownFilter(String),
    #[error(
        "group `{0}` was deleted, and not every shard has forgotten it yet: try again in a moment"
    )]
    GroupBeingDeleted(String),
    #[error("shard {to} has not taken what is queued for it: try again when it answers")]
    OutboxFull { to: ShardId },
    #[error("the shard's state is full: {0}")]
    StateFull(String),
    #[error("this shard is not the home of what was asked")]
    NotHome,
}
