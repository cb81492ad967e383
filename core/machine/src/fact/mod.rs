//! Facts: what was decided, as the log keeps it and as the driver needs to read it.
//!
//! The table of facts ([`table`]) pairs each kind number with its archived struct and with what installs
//! it; from it come [`Fact`], encoding and decoding. Here are the driver's questions about one fact: which
//! batch it places, which slots it trims or drops, which group it touches. Absent on purpose: what a fact
//! does to the state (the feature's `install`).

pub mod archive;
mod batch;
mod table;

use bytes::{BufMut, Bytes};
use millstream_batch::ids::{Offset, PartitionSlot};
use rkyv::rancor;
use rkyv::util::AlignedVec;

pub use batch::{BatchMeta, BatchPlace, batch_meta};
pub use table::{Fact, class, install, kind};

/// What depends on a fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Only a partition's end and its producers' sequences: other look-ups need not wait for it.
    Batch,
    /// Anything else.
    State,
}

/// What a well-formed archive may still get wrong: a batch with no record, numbers past their end,
/// slots out of order, names that no request could have carried.
pub(crate) trait Sound {
    fn is_sound(&self) -> bool;
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

    /// Reads what [`Fact::encode`] wrote. Every length and every string is checked first; `bytes`
    /// need no alignment.
    pub fn decode(kind: u16, bytes: &[u8]) -> Result<Self, FactError> {
        let fact = Self::unarchive(kind, bytes).ok_or(FactError::UnknownKind { kind })?;
        match fact {
            Some(fact) if fact.is_sound() => Ok(fact),
            _ => Err(FactError::Malformed {
                kind,
                bytes: bytes.len(),
            }),
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
        matches!(self, Self::TopicApplied(_) | Self::TopicDeleted(_))
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
            Self::TopicDeleted(fact) => fact.slots.as_slice(),
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
