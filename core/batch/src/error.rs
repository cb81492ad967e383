//! Everything that can be wrong with the bytes of a record batch, one variant a fault.
//!
//! All of these are faults of whoever sent the bytes (or of the medium that kept them): the same
//! bytes fail again, so a sender must not retry them unchanged. Only [`BatchError::Crc`] and
//! [`BatchError::Truncated`] may pass when the same batch is sent again from its source:
//! [`BatchError::is_retriable`]. Misuse of the builder is [`crate::AppendError`] instead.

use crate::Compression;
use crate::limits::{BATCH_BYTES_MAX, BATCH_INFLATED_BYTES_MAX, BATCH_RECORDS_MAX};

/// Why bytes are not a record batch, or not one that may be produced.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BatchError {
    // --- framing ---------------------------------------------------------------------------------
    /// Fewer bytes than the batch claims, or than a header has.
    #[error("the batch is cut off: {have} of {need} bytes arrived; send it again")]
    Truncated { have: usize, need: usize },
    /// More bytes than the batch claims.
    #[error("{extra} bytes follow the batch's end: send one batch a frame")]
    Excess { extra: usize },
    /// The length field is negative or shorter than the header.
    #[error(
        "batch length {length} is not possible: the header alone takes 49 bytes after the length"
    )]
    Length { length: i32 },
    /// The batch is over [`BATCH_BYTES_MAX`].
    #[error("batch of {bytes} bytes is over the limit of {BATCH_BYTES_MAX}: send smaller batches")]
    TooLarge { bytes: usize },
    /// Not the v2 layout.
    #[error("record batch magic {magic}: only 2 is spoken (Kafka 0.11 and later)")]
    Magic { magic: i8 },
    /// The bytes changed between their encoder and here.
    #[error(
        "CRC-32C is {computed:08x}, the batch says {stored:08x}: bytes were damaged on the way; send it again"
    )]
    Crc { stored: u32, computed: u32 },

    // --- header fields ---------------------------------------------------------------------------
    /// Compression code 5 to 7.
    #[error("compression code {code} is unknown: use none, gzip, snappy, lz4 or zstd (0 to 4)")]
    Compression { code: u8 },
    /// Bits above the fifth: the delete horizon of a compacted batch, or ones without a meaning.
    #[error(
        "attributes {attributes:#06x} have bits without a meaning here: only bits 0 to 5 are defined"
    )]
    Attributes { attributes: i16 },
    /// Base offset below 0.
    #[error("base offset {base_offset} is negative")]
    BaseOffset { base_offset: i64 },
    /// Base offset and last delta pass `i64::MAX`.
    #[error("base offset {base_offset} plus {last_offset_delta} is past the largest offset")]
    OffsetOverflow {
        base_offset: i64,
        last_offset_delta: i32,
    },
    /// Record count below 0 or over [`BATCH_RECORDS_MAX`].
    #[error("record count {count} is outside 0 to {BATCH_RECORDS_MAX}")]
    RecordCount { count: i32 },
    /// The records cannot be that many in that few bytes.
    #[error("{count} records cannot fit in {bytes} bytes: a record has at least 7")]
    RecordCountTooHigh { count: u32, bytes: usize },
    /// Negative, or smaller than the record count demands.
    #[error("last offset delta {last_offset_delta} is not possible with {count} records")]
    LastOffsetDelta { last_offset_delta: i32, count: u32 },

    // --- rules for a batch that a client produces ------------------------------------------------
    /// No records.
    #[error("the batch is empty: a produced batch has at least one record")]
    Empty,
    /// Control batches are the broker's own.
    #[error("control batches are not taken from clients: clear attribute bit 5")]
    Control,
    /// Transactions are named beside the batch, not in it.
    #[error("the transactional bit is not taken from clients: clear attribute bit 4")]
    Transactional,
    /// The log-append time is the broker's to give.
    #[error("timestamp type log-append is not taken from clients: clear attribute bit 3")]
    LogAppendTime,
    /// Offsets of a produced batch have no holes.
    #[error("last offset delta {last_offset_delta} of a produced batch must be {} for {count} records", count - 1)]
    SparseOffsets { last_offset_delta: u32, count: u32 },
    /// Producer id, epoch and sequence travel beside the batch.
    #[error(
        "producer id {producer_id}, epoch {producer_epoch}, sequence {base_sequence} must be -1 in the batch: \
         they travel in the frame header"
    )]
    ProducerFields {
        producer_id: i64,
        producer_epoch: i16,
        base_sequence: i32,
    },

    // --- the records section ---------------------------------------------------------------------
    /// The compressed records cannot be inflated.
    #[error("the {compression} records do not decompress: {what}")]
    Inflate {
        compression: Compression,
        what: String,
    },
    /// The records inflate past [`BATCH_INFLATED_BYTES_MAX`].
    #[error(
        "the {compression} records inflate past {BATCH_INFLATED_BYTES_MAX} bytes: send smaller batches"
    )]
    InflatedTooLarge { compression: Compression },
    /// One record is malformed.
    #[error("record {record}: {fault}")]
    Record { record: u32, fault: RecordFault },
    /// Bytes after the last record.
    #[error("{extra} bytes follow the last of {count} records")]
    TrailingBytes { extra: usize, count: u32 },

    // --- an answer of a filter -------------------------------------------------------------------
    /// The bitmap does not have one bit a record.
    #[error("a bitmap of {bytes} bytes does not fit {count} records: {} are needed", count.div_ceil(8))]
    Bitmap { bytes: usize, count: u32 },
}

/// What is wrong with one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordFault {
    /// The section ends before the counted records do.
    #[error("the records end before it")]
    Missing,
    /// A variable-length number is cut off or longer than its type allows.
    #[error("its {field} is not a number: cut off, or too long")]
    Number { field: &'static str },
    /// A length is negative (other than -1 for null, where null may stand) or past what is left.
    #[error("its {field} is {length}, but {left} bytes are left")]
    Length {
        field: &'static str,
        length: i32,
        left: usize,
    },
    /// Bytes between its last field and its end.
    #[error("{extra} bytes follow its last header")]
    Trailing { extra: usize },
    /// Offset deltas must rise, and stay at or below the batch's last.
    #[error("its offset delta {delta} is not between {least} and {last}")]
    OffsetDelta { delta: i32, least: u32, last: u32 },
    /// Base timestamp and delta pass the range of 64 bits.
    #[error("its timestamp delta {delta} passes the range of timestamps")]
    Timestamp { delta: i64 },
}

impl BatchError {
    /// Whether the same batch, sent again from its source, may pass. The same *bytes* never do.
    #[must_use]
    pub fn is_retriable(&self) -> bool {
        matches!(self, Self::Crc { .. } | Self::Truncated { .. })
    }
}
