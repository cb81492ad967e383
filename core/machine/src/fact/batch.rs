//! The hot fact, read in place: where a batch lies and what its head says.
//!
//! Absent on purpose: allocation. A served batch costs one check of 64 bytes.

use millstream_batch::ids::{
    Offset, PartitionSlot, ProducerEpoch, ProducerId, Sequence, Term, TimestampMs,
};
use rkyv::rancor::Failure;
use rkyv::ser::allocator::SubAllocator;
use rkyv::ser::writer::Buffer;
use rkyv::util::Align;

use super::archive::{ArchivedBatchAppended, BatchAppended};
use super::{FactError, Sound, kind};

/// Length of an archived [`BatchAppended`].
pub(super) const BYTES: usize = size_of::<ArchivedBatchAppended>();
const _: () = assert!(BYTES == 64);

/// How a batch is found again: what the log's index is given. Offsets are inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchPlace {
    pub slot: PartitionSlot,
    pub base_offset: Offset,
    pub last_offset: Offset,
    pub append_time: TimestampMs,
    pub max_timestamp: TimestampMs,
}

impl BatchPlace {
    pub(super) fn of(fact: &BatchAppended) -> Self {
        Self {
            slot: PartitionSlot(fact.slot),
            base_offset: Offset(fact.base_offset),
            last_offset: Offset(fact.base_offset + u64::from(fact.kept) - 1),
            append_time: TimestampMs(fact.append_time_ms),
            max_timestamp: TimestampMs(fact.timestamp_ms_max),
        }
    }
}

/// All that is served beside a batch's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchMeta {
    pub slot: PartitionSlot,
    /// The leader epoch of the batch.
    pub term: Term,
    pub base_offset: Offset,
    /// Inclusive.
    pub last_offset: Offset,
    /// Records stored.
    pub records: u32,
    /// Bytes stored.
    pub bytes: u32,
    pub append_time: TimestampMs,
    pub max_timestamp: TimestampMs,
    /// 0: no producer identity.
    pub pid: ProducerId,
    pub epoch: ProducerEpoch,
    /// Sequence of the first record that the producer sent.
    pub sequence: Sequence,
    /// Records that the producer sent: more than `records` when filters dropped some.
    pub sent: u32,
}

/// Reads the fact of a served batch (an entry of kind `BATCH_APPENDED`).
pub fn batch_meta(fact: &[u8]) -> Result<BatchMeta, FactError> {
    let malformed = FactError::Malformed {
        kind: kind::BATCH_APPENDED,
        bytes: fact.len(),
    };
    let Ok(fact): Result<&[u8; BYTES], _> = fact.try_into() else {
        return Err(malformed);
    };
    let copy; // the log aligns entries for its own needs, not for ours
    let aligned = if fact
        .as_ptr()
        .addr()
        .is_multiple_of(align_of::<ArchivedBatchAppended>())
    {
        fact.as_slice()
    } else {
        copy = Align(*fact);
        copy.0.as_slice()
    };
    let fact = rkyv::access::<ArchivedBatchAppended, Failure>(aligned).map_err(|_| malformed)?;
    let base_offset = fact.base_offset.to_native();
    let kept = fact.kept.to_native();
    let last_offset = last_offset(base_offset, kept).ok_or(malformed)?;
    Ok(BatchMeta {
        slot: PartitionSlot(fact.slot.to_native()),
        term: Term(fact.term.to_native()),
        base_offset: Offset(base_offset),
        last_offset: Offset(last_offset),
        records: kept,
        bytes: fact.bytes.to_native(),
        append_time: TimestampMs(fact.append_time_ms.to_native()),
        max_timestamp: TimestampMs(fact.timestamp_ms_max.to_native()),
        pid: ProducerId(fact.pid.to_native()),
        epoch: ProducerEpoch(fact.epoch.to_native()),
        sequence: Sequence(fact.sequence.to_native()),
        sent: fact.sent.to_native(),
    })
}

impl Sound for BatchAppended {
    fn is_sound(&self) -> bool {
        let sequence_end = self.sequence.checked_add(self.sent.into());
        last_offset(self.base_offset, self.kept).is_some()
            && (self.pid == 0 || sequence_end.is_some())
    }
}

/// A struct of integers needs no scratch space, so nothing is allocated.
pub(super) fn archive(fact: &BatchAppended) -> Align<[u8; BYTES]> {
    let mut bytes = Align([0; BYTES]);
    rkyv::api::low::to_bytes_in_with_alloc::<_, _, rkyv::rancor::Error>(
        fact,
        Buffer::from(&mut bytes.0),
        SubAllocator::empty(),
    )
    .expect("the struct has exactly this length");
    bytes
}

fn last_offset(base_offset: u64, kept: u32) -> Option<u64> {
    let last = base_offset.checked_add(u64::from(kept).checked_sub(1)?)?;
    i64::try_from(last).is_ok().then_some(last)
}
