//! The facts as they stand in the log: one frozen archived struct for each kind number.
//!
//! Plain integers, strings and vectors, so that the layout hangs on nothing that may change. A field
//! is never added, removed or given another type: a change is a new struct with a new kind number.
//! `tests/golden` holds one file a kind. Absent on purpose: `usize`, hash tables, enums with data.

#![allow(
    missing_debug_implementations,
    reason = "rkyv's resolvers, which no code here names"
)]

macro_rules! archived {
    ($($(#[$doc:meta])* pub struct $name:ident { $($(#[$field_doc:meta])* pub $field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Clone, Debug, Default, PartialEq, Eq)]
        #[rkyv(derive(Debug))]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }
    )*};
}
pub(crate) use archived;

archived! {
    /// Kind 1. A batch at `base_offset ..= base_offset + kept - 1`; its bytes follow the fact.
    pub struct BatchAppended {
        pub slot: u32,
        /// Term of the shard's log when the batch was appended: its leader epoch.
        pub term: u32,
        pub base_offset: u64,
        pub append_time_ms: i64,
        pub timestamp_ms_max: i64,
        /// 0: no producer identity; then `sequence`, `epoch` and `sent` say nothing.
        pub pid: u64,
        pub sequence: u64,
        pub epoch: u32,
        /// Records the producer sent: what its sequence advances by.
        pub sent: u32,
        /// Records stored: what the offset advances by. At least 1.
        pub kept: u32,
        /// Bytes stored.
        pub bytes: u32,
    }

    /// Kind 2. A batch of which the filters kept nothing: only the producer moves on.
    pub struct ProducerAdvanced {
        pub slot: u32,
        pub epoch: u32,
        pub pid: u64,
        pub sequence: u64,
        pub append_time_ms: i64,
        pub sent: u32,
    }

    /// Kind 3. Offsets below `start` are gone.
    pub struct PartitionTrimmed {
        pub slot: u32,
        pub start: u64,
    }

    /// Kind 16. As kind 18, of topics that had three settings. Read, and no longer written.
    pub struct TopicApplied16 {
        pub topic: TopicRecord16,
        pub added: Vec<SlotRecord>,
        pub time_ms: i64,
    }

    /// Kind 18. The topic as of `revision`, and the partitions this shard newly owns.
    pub struct TopicApplied {
        pub topic: TopicRecord,
        pub added: Vec<SlotRecord>,
        pub time_ms: i64,
    }

    /// Kind 17. As kind 19, of a catalogue that did not number its deletions. Read, and no longer written.
    pub struct TopicForgotten {
        pub id: [u8; 16],
        pub slots: Vec<u32>,
        pub time_ms: i64,
    }

    /// Kind 19. The topic and everything in these slots is gone, as of this revision of the catalogue.
    pub struct TopicDeleted {
        pub id: [u8; 16],
        pub slots: Vec<u32>,
        pub time_ms: i64,
        pub revision: u64,
    }

    /// Kind 20. At the catalogue's shard: another shard has applied all changes up to this revision.
    pub struct CatalogueKnown {
        pub shard: u16,
        pub revision: u64,
    }

    /// Kind 32. A producer id given out (epoch 0), or the next epoch of one.
    pub struct ProducerGiven {
        pub pid: u64,
        pub epoch: u32,
        pub time_ms: i64,
    }

    /// Kind 33. Ids below `floor` are forgotten and refused from now on, except the survivors.
    pub struct ProducersExpired {
        pub floor: u64,
        /// Living ids below the floor. Sorted.
        pub survivors: Vec<u64>,
        pub unused_before_ms: i64,
    }

    /// Kind 34. Logged time is now at least this.
    pub struct ClockAdvanced {
        pub time_ms: i64,
    }

    /// Kind 35. An operator says that the wall clock is right: logged time is this from here on, also
    /// when that is earlier than what was logged before.
    pub struct ClockAccepted {
        pub time_ms: i64,
    }

    /// Kind 48. From here on only this member, under this epoch, commits. Member 0: nobody holds it.
    pub struct PartitionClaimed {
        pub group: String,
        pub slot: u32,
        pub member: u64,
        pub epoch: u64,
    }

    /// Kind 49. The next offset the group reads.
    pub struct OffsetCommitted {
        pub group: String,
        pub slot: u32,
        pub offset: u64,
        pub metadata: String,
        pub time_ms: i64,
    }

    /// Kind 50. As a commit, by an operator; whoever held the partition holds it no more.
    pub struct OffsetReset {
        pub group: String,
        pub slot: u32,
        pub offset: u64,
        pub time_ms: i64,
    }

    /// Kind 51. As kind 52, whatever their epochs. Read, and no longer written.
    pub struct GroupForgotten {
        pub group: String,
    }

    /// Kind 52. The group's offsets and fences on this shard, those under no epoch above this one, are gone.
    pub struct GroupOffsetsForgotten {
        pub group: String,
        pub epoch: u64,
    }

    /// Kind 64. What changed in a group, at its home. Applied in the order of the fields.
    pub struct GroupChanged {
        pub group: String,
        /// The group's new epoch; that of every hold that changed hands.
        pub epoch: u64,
        pub time_ms: i64,
        pub left: Vec<u64>,
        /// New members, and known ones whose description changed.
        pub joined: Vec<MemberRecord>,
        pub gone: Vec<PartitionRecord>,
        pub holds: Vec<HoldRecord>,
    }

    /// Kind 65. The group is gone from its home. A group of that name starts above `epoch`.
    pub struct GroupDeleted {
        pub group: String,
        pub epoch: u64,
    }

    /// Kind 80. Message `k` to another shard, and what it says: an archive of its kind.
    pub struct CourierQueued {
        pub to: u16,
        pub row: u8,
        pub k: u64,
        pub kind: u16,
        pub body: Vec<u8>,
    }

    /// Kind 81. Message `k` of another shard is applied: its effect is in the same unit.
    pub struct CourierApplied {
        pub from: u16,
        pub row: u8,
        pub k: u64,
    }

    /// Kind 82. Another shard has applied all messages up to `last`.
    pub struct CourierTrimmed {
        pub to: u16,
        pub row: u8,
        pub last: u64,
    }

    /// Message kind 1: a group was deleted at this epoch.
    pub struct ForgetGroupMessage {
        pub group: String,
        pub epoch: u64,
    }

    /// A topic's description. A setting is a row, so that a new one is no new kind.
    pub struct TopicRecord {
        pub id: [u8; 16],
        pub name: String,
        pub partitions: u32,
        pub revision: u64,
        /// Of those that the topic sets, in the order in which they are shown.
        pub settings: Vec<ParameterRecord>,
        pub filters: Vec<FilterRecord>,
    }

    /// As kind 16 has it.
    pub struct TopicRecord16 {
        pub id: [u8; 16],
        pub name: String,
        pub partitions: u32,
        pub revision: u64,
        pub retention_ms: Option<i64>,
        pub retention_bytes: Option<i64>,
        pub batch_bytes_max: Option<u32>,
        pub filters: Vec<FilterRecord>,
    }

    /// A filter bound to a topic.
    pub struct FilterRecord {
        pub name: String,
        pub digest: [u8; 32],
        /// 0 produce, 1 subscribe.
        pub stage: u8,
        /// 0 reject, 1 pass, 2 drop.
        pub on_error: u8,
        pub batch_ms_max: u32,
        pub memory_bytes_max: u64,
        pub parameters: Vec<ParameterRecord>,
    }

    pub struct ParameterRecord {
        pub key: String,
        pub value: String,
    }

    /// Partition `index` of the topic is kept in `slot`.
    pub struct SlotRecord {
        pub index: u32,
        pub slot: u32,
    }

    pub struct PartitionRecord {
        pub topic: [u8; 16],
        pub index: u32,
    }

    pub struct MemberRecord {
        pub member: u64,
        pub client: String,
        /// Sorted, each once.
        pub topics: Vec<[u8; 16]>,
        pub session_timeout_ms: u32,
    }

    /// Who owns a partition of the group. Member 0: nobody.
    pub struct HoldRecord {
        pub topic: [u8; 16],
        pub index: u32,
        pub member: u64,
        /// Group epoch when it came to this member.
        pub epoch: u64,
        /// Whether the member is asked to let go.
        pub revoking: bool,
    }
}
