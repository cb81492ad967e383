//! What the shard refuses, as the wire says it: one table, and the small refusals of sessions.

use millstream_machine::request::Refusal;
use millstream_protocol::messages;
use millstream_protocol::{Code, FrameError};
use millstream_shard::call::{Answer, Error};

/// How long a client waits before it repeats what met a full queue.
const BUSY_RETRY_MS: u32 = 20;
/// The same for a full disk, which heals more slowly.
const DISK_FULL_RETRY_MS: u32 = 1_000;

/// A shard's error as ERROR.
pub(crate) fn of_shard(error: &Error) -> messages::Error {
    let code = match error {
        Error::Refused(refusal) => of_machine(refusal),
        Error::OffsetOutOfRange { .. } => Code::OffsetOutOfRange,
        Error::Damaged { .. } => Code::DataDamaged,
        Error::DiskFull => Code::DiskFull,
        Error::Stopped(_) => Code::ShardStopped,
        Error::Unknown(_) => Code::UnknownOutcome,
        Error::ReadOnly(_) => Code::ReadOnly,
        Error::Filter { .. } => Code::FilterFailed,
        Error::BadBatch(_) => Code::BadBatch,
        Error::Busy { .. } | Error::NotYet(_) | Error::Limited(_) => Code::Busy,
        Error::Stopping => Code::Stopping,
        Error::Read(_) => Code::ReadFailed,
    };
    let mut wire = code.error(error.to_string());
    match error {
        Error::Busy { .. } | Error::NotYet(_) | Error::Limited(_) => {
            wire.retry_after_ms = BUSY_RETRY_MS;
        }
        // Another shard is waited for, which heals more slowly.
        Error::Refused(Refusal::GroupBeingDeleted(_) | Refusal::OutboxFull { .. }) => {
            wire.retry_after_ms = DISK_FULL_RETRY_MS;
        }
        Error::DiskFull => wire.retry_after_ms = DISK_FULL_RETRY_MS,
        Error::Refused(Refusal::OffsetTruncated { safe, .. }) => wire.safe_offset = Some(safe.0),
        Error::Damaged { to, .. } => wire.next_offset = to.0.checked_add(1),
        Error::Filter { retriable, .. } => wire.retriable = *retriable,
        _ => {}
    }
    wire
}

fn of_machine(refusal: &Refusal) -> Code {
    match refusal {
        Refusal::UnknownTopic(_) => Code::UnknownTopic,
        Refusal::TopicExists(_) => Code::TopicExists,
        Refusal::UnknownPartition(_) => Code::UnknownPartition,
        Refusal::BadName(_) => Code::BadName,
        Refusal::BadConfig(_) => Code::BadConfig,
        Refusal::BadPartitionCount { .. } => Code::BadPartitionCount,
        Refusal::BatchTooLarge { .. } => Code::BatchTooLarge,
        Refusal::ProducerFenced { .. } => Code::ProducerFenced,
        Refusal::SequenceGap { .. } => Code::SequenceGap,
        Refusal::SequenceOverlap { .. } => Code::SequenceOverlap,
        Refusal::ProducerExpired { .. } => Code::ProducerExpired,
        Refusal::UnknownProducer { .. } => Code::UnknownProducer,
        Refusal::UnknownGroup(_) => Code::UnknownGroup,
        Refusal::UnknownMember { .. } => Code::UnknownMember,
        Refusal::MemberFenced { .. } | Refusal::MemberReplaced { .. } => Code::MemberFenced,
        Refusal::GroupBusy(_) => Code::GroupBusy,
        Refusal::GroupBeingDeleted(_) | Refusal::OutboxFull { .. } => Code::Busy,
        Refusal::OffsetOutOfRange { .. } => Code::OffsetOutOfRange,
        Refusal::OffsetTruncated { .. } => Code::OffsetTruncated,
        Refusal::UnknownFilter(_) => Code::UnknownFilter,
        Refusal::StateFull(_) => Code::StateFull,
        Refusal::NotHome => Code::NotHome,
    }
}

/// What a frame that cannot be read is answered.
pub(crate) fn of_frame(error: FrameError) -> messages::Error {
    let code = if error.is_limit() {
        Code::TooLarge
    } else {
        Code::BadRequest
    };
    code.error(error.to_string())
}

/// An answer of a shard that is not the one its call has: our fault.
pub(crate) fn unexpected(answer: &Answer) -> messages::Error {
    match answer {
        Answer::Error(error) => of_shard(error),
        other => Code::Internal.error(format!("a shard answered {other:?}")),
    }
}
