//! Facts: what was decided, as the log keeps it and as the driver needs to read it.
//!
//! [`Fact`] pairs each kind number with its archived struct, encodes and decodes, and answers the
//! driver's questions about one fact: which batch it places, which slots it trims or drops, which
//! group it touches. Absent on purpose: what a fact does to the state (the area's `install`).

pub mod archive;
mod batch;
mod convert;

use bytes::{BufMut, Bytes};
use millstream_batch::ids::{Offset, PartitionSlot};
use millstream_batch::limits::is_name;
use rkyv::rancor;
use rkyv::util::AlignedVec;

pub use batch::{BatchMeta, BatchPlace, batch_meta};

use archive::{
    BatchAppended, ClockAccepted, ClockAdvanced, GroupChanged, GroupDeleted, GroupForgotten,
    OffsetCommitted, OffsetReset, PartitionClaimed, PartitionTrimmed, ProducerAdvanced,
    ProducerGiven, ProducersExpired, TopicApplied, TopicApplied16, TopicForgotten,
};

/// Kind numbers, as they stand in a log entry's header. Never reused.
pub mod kind {
    pub const BATCH_APPENDED: u16 = 1;
    pub const PRODUCER_ADVANCED: u16 = 2;
    pub const PARTITION_TRIMMED: u16 = 3;
    /// Before topics had settings as rows. Still read.
    pub const TOPIC_APPLIED_16: u16 = 16;
    pub const TOPIC_FORGOTTEN: u16 = 17;
    pub const TOPIC_APPLIED: u16 = 18;
    pub const PRODUCER_GIVEN: u16 = 32;
    pub const PRODUCERS_EXPIRED: u16 = 33;
    pub const CLOCK_ADVANCED: u16 = 34;
    pub const CLOCK_ACCEPTED: u16 = 35;
    pub const PARTITION_CLAIMED: u16 = 48;
    pub const OFFSET_COMMITTED: u16 = 49;
    pub const OFFSET_RESET: u16 = 50;
    pub const GROUP_FORGOTTEN: u16 = 51;
    pub const GROUP_CHANGED: u16 = 64;
    pub const GROUP_DELETED: u16 = 65;
}

/// One thing that was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    BatchAppended(BatchAppended),
    ProducerAdvanced(ProducerAdvanced),
    PartitionTrimmed(PartitionTrimmed),
    TopicApplied(Box<TopicApplied>),
    TopicForgotten(Box<TopicForgotten>),
    ProducerGiven(ProducerGiven),
    ProducersExpired(Box<ProducersExpired>),
    ClockAdvanced(ClockAdvanced),
    ClockAccepted(ClockAccepted),
    PartitionClaimed(Box<PartitionClaimed>),
    OffsetCommitted(Box<OffsetCommitted>),
    OffsetReset(Box<OffsetReset>),
    GroupForgotten(Box<GroupForgotten>),
    GroupChanged(Box<GroupChanged>),
    GroupDeleted(Box<GroupDeleted>),
}

/// Why bytes are not a fact. The log's checksums held, so either the log was written by a newer
/// version, or one of the two is broken; nothing is gained by trying again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FactError {
    #[error(
        "fact kind {kind} is not known to this version: start the version that wrote the log, or a newer one"
    )]
    UnknownKind { kind: u16 },
    #[error("a fact of kind {kind} and {bytes} bytes is malformed: run `millstream log verify`")]
    Malformed { kind: u16, bytes: usize },
}

impl Fact {
    /// The number that names this fact's archived struct.
    #[must_use]
    pub fn kind(&self) -> u16 {
        match self {
            Self::BatchAppended(_) => kind::BATCH_APPENDED,
            Self::ProducerAdvanced(_) => kind::PRODUCER_ADVANCED,
            Self::PartitionTrimmed(_) => kind::PARTITION_TRIMMED,
            Self::TopicApplied(_) => kind::TOPIC_APPLIED,
            Self::TopicForgotten(_) => kind::TOPIC_FORGOTTEN,
            Self::ProducerGiven(_) => kind::PRODUCER_GIVEN,
            Self::ProducersExpired(_) => kind::PRODUCERS_EXPIRED,
            Self::ClockAdvanced(_) => kind::CLOCK_ADVANCED,
            Self::ClockAccepted(_) => kind::CLOCK_ACCEPTED,
            Self::PartitionClaimed(_) => kind::PARTITION_CLAIMED,
            Self::OffsetCommitted(_) => kind::OFFSET_COMMITTED,
            Self::OffsetReset(_) => kind::OFFSET_RESET,
            Self::GroupForgotten(_) => kind::GROUP_FORGOTTEN,
            Self::GroupChanged(_) => kind::GROUP_CHANGED,
            Self::GroupDeleted(_) => kind::GROUP_DELETED,
        }
    }

    /// The archive, to be logged under [`Fact::kind`].
    #[must_use]
    pub fn encode(&self) -> Bytes {
        match self {
            Self::BatchAppended(fact) => Bytes::copy_from_slice(&batch::archive(fact).0),
            _ => Bytes::from_owner(self.archive()),
        }
    }

    /// As [`Fact::encode`], at the end of `into`. A batch's fact is written without allocating.
    pub fn encode_into(&self, into: &mut impl BufMut) {
        match self {
            Self::BatchAppended(fact) => into.put_slice(&batch::archive(fact).0),
            _ => into.put_slice(&self.archive()),
        }
    }

    fn archive(&self) -> AlignedVec {
        match self {
            Self::BatchAppended(fact) => encode(fact),
            Self::ProducerAdvanced(fact) => encode(fact),
            Self::PartitionTrimmed(fact) => encode(fact),
            Self::TopicApplied(fact) => encode(&**fact),
            Self::TopicForgotten(fact) => encode(&**fact),
            Self::ProducerGiven(fact) => encode(fact),
            Self::ProducersExpired(fact) => encode(&**fact),
            Self::ClockAdvanced(fact) => encode(fact),
            Self::ClockAccepted(fact) => encode(fact),
            Self::PartitionClaimed(fact) => encode(&**fact),
            Self::OffsetCommitted(fact) => encode(&**fact),
            Self::OffsetReset(fact) => encode(&**fact),
            Self::GroupForgotten(fact) => encode(&**fact),
            Self::GroupChanged(fact) => encode(&**fact),
            Self::GroupDeleted(fact) => encode(&**fact),
        }
    }

    /// Reads what [`Fact::encode`] wrote. Every length and every string is checked first; `bytes`
    /// need no alignment.
    pub fn decode(kind: u16, bytes: &[u8]) -> Result<Self, FactError> {
        let fact = match kind {
            kind::BATCH_APPENDED => decode(bytes).map(Self::BatchAppended),
            kind::PRODUCER_ADVANCED => decode(bytes).map(Self::ProducerAdvanced),
            kind::PARTITION_TRIMMED => decode(bytes).map(Self::PartitionTrimmed),
            kind::TOPIC_APPLIED_16 => decode::<TopicApplied16>(bytes)
                .map(|fact| Self::TopicApplied(Box::new(fact.into()))),
            kind::TOPIC_APPLIED => decode(bytes).map(|fact| Self::TopicApplied(Box::new(fact))),
            kind::TOPIC_FORGOTTEN => decode(bytes).map(|fact| Self::TopicForgotten(Box::new(fact))),
            kind::PRODUCER_GIVEN => decode(bytes).map(Self::ProducerGiven),
            kind::PRODUCERS_EXPIRED => {
                decode(bytes).map(|fact| Self::ProducersExpired(Box::new(fact)))
            }
            kind::CLOCK_ADVANCED => decode(bytes).map(Self::ClockAdvanced),
            kind::CLOCK_ACCEPTED => decode(bytes).map(Self::ClockAccepted),
            kind::PARTITION_CLAIMED => {
                decode(bytes).map(|fact| Self::PartitionClaimed(Box::new(fact)))
            }
            kind::OFFSET_COMMITTED => {
                decode(bytes).map(|fact| Self::OffsetCommitted(Box::new(fact)))
            }
            kind::OFFSET_RESET => decode(bytes).map(|fact| Self::OffsetReset(Box::new(fact))),
            kind::GROUP_FORGOTTEN => decode(bytes).map(|fact| Self::GroupForgotten(Box::new(fact))),
            kind::GROUP_CHANGED => decode(bytes).map(|fact| Self::GroupChanged(Box::new(fact))),
            kind::GROUP_DELETED => decode(bytes).map(|fact| Self::GroupDeleted(Box::new(fact))),
            _ => return Err(FactError::UnknownKind { kind }),
        };
        match fact {
            Some(fact) if fact.is_sound() => Ok(fact),
            _ => Err(FactError::Malformed {
                kind,
                bytes: bytes.len(),
            }),
        }
    }

    /// What a well-formed archive may still get wrong: a batch with no record, numbers past their end,
    /// slots out of order, names that no request could have carried.
    fn is_sound(&self) -> bool {
        match self {
            Self::BatchAppended(fact) => batch::is_sound(fact),
            Self::ProducerAdvanced(fact) => fact.sequence.checked_add(fact.sent.into()).is_some(),
            Self::TopicApplied(fact) => {
                let sorted = fact
                    .added
                    .is_sorted_by(|a, b| a.index < b.index && a.slot < b.slot);
                fact.topic.is_sound()
                    && sorted
                    && fact.added.last().is_none_or(|last| last.slot < u32::MAX)
            }
            Self::TopicForgotten(fact) => fact.slots.is_sorted_by(|a, b| a < b),
            Self::ProducerGiven(fact) => fact.pid < u64::MAX,
            Self::ProducersExpired(fact) => fact.survivors.is_sorted_by(|a, b| a < b),
            Self::PartitionClaimed(fact) => is_name(&fact.group),
            Self::OffsetCommitted(fact) => is_name(&fact.group),
            Self::OffsetReset(fact) => is_name(&fact.group),
            Self::GroupForgotten(fact) => is_name(&fact.group),
            Self::GroupChanged(fact) => is_name(&fact.group),
            Self::GroupDeleted(fact) => is_name(&fact.group),
            Self::ClockAccepted(fact) => fact.time_ms > 0,
            Self::PartitionTrimmed(_) | Self::ClockAdvanced(_) => true,
        }
    }

    /// How the batch that travels with this fact is found again, if one does.
    #[must_use]
    pub fn index_key(&self) -> Option<BatchPlace> {
        match self {
            Self::BatchAppended(fact) => Some(BatchPlace::of(fact)),
            _ => None,
        }
    }

    /// The group whose members, assignment or epochs this fact changes at its home.
    #[must_use]
    pub fn touches_group(&self) -> Option<&str> {
        match self {
            Self::GroupChanged(fact) => Some(&fact.group),
            Self::GroupDeleted(fact) => Some(&fact.group),
            _ => None,
        }
    }

    /// Whether topics changed: compiled filters are to be looked up again, and
    /// `State::groups_to_rebalance` asked.
    #[must_use]
    pub fn touches_topics(&self) -> bool {
        matches!(self, Self::TopicApplied(_) | Self::TopicForgotten(_))
    }

    /// The slot whose start offset this fact raises: for the log's `set_start`.
    #[must_use]
    pub fn trimmed(&self) -> Option<(PartitionSlot, Offset)> {
        match self {
            Self::PartitionTrimmed(fact) => Some((PartitionSlot(fact.slot), Offset(fact.start))),
            _ => None,
        }
    }

    /// The slots this fact drops: for the log's `drop_slot`.
    pub fn dropped(&self) -> impl Iterator<Item = PartitionSlot> + '_ {
        let slots = match self {
            Self::TopicForgotten(fact) => fact.slots.as_slice(),
            _ => &[],
        };
        slots.iter().map(|slot| PartitionSlot(*slot))
    }
}

pub(crate) fn encode<T>(value: &T) -> AlignedVec
where
    T: for<'a> rkyv::Serialize<
            rkyv::api::high::HighSerializer<
                AlignedVec,
                rkyv::ser::allocator::ArenaHandle<'a>,
                rancor::Error,
            >,
        >,
{
    rkyv::to_bytes::<rancor::Error>(value).expect("an archive in memory fails only past 2 GiB")
}

pub(crate) fn decode<T>(bytes: &[u8]) -> Option<T>
where
    T: rkyv::Archive,
    T::Archived: for<'a> rkyv::bytecheck::CheckBytes<rkyv::api::high::HighValidator<'a, rancor::Failure>>
        + rkyv::Deserialize<T, rkyv::api::high::HighDeserializer<rancor::Failure>>,
{
    if bytes.as_ptr().addr().is_multiple_of(16) {
        return rkyv::from_bytes::<T, rancor::Failure>(bytes).ok();
    }
    let mut aligned = AlignedVec::<16>::with_capacity(bytes.len());
    aligned.extend_from_slice(bytes);
    rkyv::from_bytes::<T, rancor::Failure>(&aligned).ok()
}
