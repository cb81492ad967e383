//! The 61 bytes before the records, as numbers that are consistent with each other.
//!
//! ```text
//!   0  base offset        i64  ┐
//!   8  length             i32  │ head: outside the CRC, so that the broker may write offset and
//!  12  leader epoch       i32  ┘ epoch when it serves a batch without touching the rest
//!  16  magic = 2          i8
//!  17  CRC-32C            u32    of everything from byte 21 to the end
//!  21  attributes         i16    bits 0-2 compression, 3 log-append time, 4 transactional, 5 control
//!  23  last offset delta  i32
//!  27  base timestamp     i64    ms since the Unix epoch; record timestamps are deltas to it
//!  35  max timestamp      i64
//!  43  producer id        i64  ┐
//!  51  producer epoch     i16  │ -1: the real ones are wider and travel beside the batch
//!  53  base sequence      i32  ┘
//!  57  records            i32
//!  61  the records, compressed as one block if the attributes say so
//! ```
//!
//! All integers are big-endian. `length` counts the bytes after itself. Source: Kafka's
//! documentation, "Record Batch" (KIP-98, KIP-82).
//!
//! Absent: the CRC over bytes that are not here yet (see [`crate::Checker`]) and the records (see
//! [`crate::Records`]).

use std::fmt;

use crate::BatchError;
use crate::ids::{Offset, Term, TimestampMs};
use crate::limits::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX};

/// Length of the header, and the position of the records section.
pub const HEADER_BYTES: usize = 61;
/// Length of the head that the broker writes afresh when it serves a batch: base offset, length,
/// leader epoch.
pub const HEAD_BYTES: usize = 16;
/// Bytes up to and with the length field, which counts what follows them.
pub const LENGTH_PREFIX_BYTES: usize = 12;
/// The least bytes of a record: seven numbers of one byte each.
pub const RECORD_BYTES_MIN: usize = 7;
/// Where the bytes covered by the CRC begin.
pub(crate) const CRC_FROM: usize = 21;
const MAGIC: i8 = 2;

const LOG_APPEND_TIME: i16 = 1 << 3;
const TRANSACTIONAL: i16 = 1 << 4;
const CONTROL: i16 = 1 << 5;
const DEFINED: i16 = 0b11_1111;

/// How the records section is packed. The number is the code in the attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Compression {
    #[default]
    None = 0,
    /// Read, never written.
    Gzip = 1,
    /// Read (raw and in xerial's framing), never written.
    Snappy = 2,
    /// The LZ4 frame format.
    Lz4 = 3,
    Zstd = 4,
}

/// Whose clock the record timestamps are from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TimestampType {
    /// The producer's: base timestamp plus the record's delta.
    #[default]
    Create,
    /// The broker's: the max timestamp, for every record.
    LogAppend,
}

/// The attributes of a batch, decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Attributes {
    pub compression: Compression,
    pub timestamp_type: TimestampType,
    pub transactional: bool,
    pub control: bool,
}

/// The header of a batch whose numbers agree with each other. Says nothing about the CRC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// At least 0, and so that the last offset is at most `i64::MAX`. What a client sends here is
    /// not looked at further: offsets are given at commit.
    pub base_offset: i64,
    /// Bytes after the length field; [`BatchHeader::size`] is the whole.
    pub length: u32,
    pub leader_epoch: i32,
    /// As stored; [`crate::Checker`] compares it.
    pub crc: u32,
    pub attributes: Attributes,
    /// Offset of the last record slot, from the base offset. At least `records - 1`; more when
    /// records inside the batch were filtered away.
    pub last_offset_delta: u32,
    /// Milliseconds since the Unix epoch, as are record timestamps.
    pub base_timestamp: i64,
    /// As the encoder claims: only a walk over the records can tell.
    pub max_timestamp: i64,
    pub producer_id: i64,
    pub producer_epoch: i16,
    pub base_sequence: i32,
    /// Records in the batch, at most [`BATCH_RECORDS_MAX`].
    pub records: u32,
}

/// What the log and the machine keep of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchNumbers {
    pub records: u32,
    /// Offset of the first record slot.
    pub first: Offset,
    /// Offset of the last record slot, inclusive.
    pub last: Offset,
    pub max_timestamp: TimestampMs,
    /// Size of the whole batch.
    pub bytes: u32,
}

impl BatchHeader {
    /// Parse the header from the start of a batch. Looks at 61 bytes only; the rest may still be on
    /// its way.
    ///
    /// # Errors
    /// Every fault of framing and header fields in [`BatchError`], except those that need the rest
    /// of the batch.
    pub fn parse(start: &[u8]) -> Result<Self, BatchError> {
        let Some(bytes) = start.first_chunk::<HEADER_BYTES>() else {
            return Err(BatchError::Truncated {
                have: start.len(),
                need: HEADER_BYTES,
            });
        };
        let magic = i8::from_be_bytes(field(bytes, 16));
        if magic != MAGIC {
            return Err(BatchError::Magic { magic });
        }
        let length = i32::from_be_bytes(field(bytes, 8));
        let size = match usize::try_from(length) {
            Ok(length) if length + LENGTH_PREFIX_BYTES >= HEADER_BYTES => {
                length + LENGTH_PREFIX_BYTES
            }
            _ => return Err(BatchError::Length { length }),
        };
        if size > BATCH_BYTES_MAX {
            return Err(BatchError::TooLarge { bytes: size });
        }
        let attributes = Attributes::from_bits(i16::from_be_bytes(field(bytes, 21)))?;
        let count = i32::from_be_bytes(field(bytes, 57));
        let records = match u32::try_from(count) {
            Ok(records) if records as usize <= BATCH_RECORDS_MAX => records,
            _ => return Err(BatchError::RecordCount { count }),
        };
        let section = size - HEADER_BYTES;
        if attributes.compression == Compression::None {
            check_record_count(records, section)?;
        }
        let base_offset = i64::from_be_bytes(field(bytes, 0));
        if base_offset < 0 {
            return Err(BatchError::BaseOffset { base_offset });
        }
        let last_offset_delta = i32::from_be_bytes(field(bytes, 23));
        let Some(last_delta) = u32::try_from(last_offset_delta)
            .ok()
            .filter(|&delta| delta >= records.saturating_sub(1))
        else {
            return Err(BatchError::LastOffsetDelta {
                last_offset_delta,
                count: records,
            });
        };
        if base_offset.checked_add(i64::from(last_delta)).is_none() {
            return Err(BatchError::OffsetOverflow {
                base_offset,
                last_offset_delta,
            });
        }
        Ok(Self {
            base_offset,
            length: length as u32,
            leader_epoch: i32::from_be_bytes(field(bytes, 12)),
            crc: u32::from_be_bytes(field(bytes, 17)),
            attributes,
            last_offset_delta: last_delta,
            base_timestamp: i64::from_be_bytes(field(bytes, 27)),
            max_timestamp: i64::from_be_bytes(field(bytes, 35)),
            producer_id: i64::from_be_bytes(field(bytes, 43)),
            producer_epoch: i16::from_be_bytes(field(bytes, 51)),
            base_sequence: i32::from_be_bytes(field(bytes, 53)),
            records,
        })
    }

    /// Size of the whole batch in bytes, at most [`BATCH_BYTES_MAX`].
    #[must_use]
    pub fn size(&self) -> usize {
        self.length as usize + LENGTH_PREFIX_BYTES
    }

    /// The rules for a batch that a client produces: records, in create time, with dense offsets,
    /// without anything that only the broker may say.
    ///
    /// # Errors
    /// The faults of produced batches in [`BatchError`].
    pub fn check_produced(&self) -> Result<(), BatchError> {
        let attributes = self.attributes;
        if attributes.control {
            return Err(BatchError::Control);
        }
        if attributes.transactional {
            return Err(BatchError::Transactional);
        }
        if attributes.timestamp_type == TimestampType::LogAppend {
            return Err(BatchError::LogAppendTime);
        }
        if self.records == 0 {
            return Err(BatchError::Empty);
        }
        if self.last_offset_delta != self.records - 1 {
            return Err(BatchError::SparseOffsets {
                last_offset_delta: self.last_offset_delta,
                count: self.records,
            });
        }
        if (self.producer_id, self.producer_epoch, self.base_sequence) != (-1, -1, -1) {
            return Err(BatchError::ProducerFields {
                producer_id: self.producer_id,
                producer_epoch: self.producer_epoch,
                base_sequence: self.base_sequence,
            });
        }
        Ok(())
    }

    /// The numbers of this batch once it stands at `base`.
    #[must_use]
    pub fn numbers(&self, base: Offset) -> BatchNumbers {
        BatchNumbers {
            records: self.records,
            first: base,
            last: Offset(base.0 + u64::from(self.last_offset_delta)),
            max_timestamp: TimestampMs(self.max_timestamp),
            bytes: self.size() as u32,
        }
    }

    /// Write the header over the first 61 bytes of a batch, all fields as they stand here.
    pub(crate) fn write(&self, to: &mut [u8; HEADER_BYTES]) {
        to[..8].copy_from_slice(&self.base_offset.to_be_bytes());
        to[8..12].copy_from_slice(&self.length.to_be_bytes());
        to[12..16].copy_from_slice(&self.leader_epoch.to_be_bytes());
        to[16] = MAGIC as u8;
        to[17..21].copy_from_slice(&self.crc.to_be_bytes());
        to[21..23].copy_from_slice(&self.attributes.bits().to_be_bytes());
        to[23..27].copy_from_slice(&self.last_offset_delta.to_be_bytes());
        to[27..35].copy_from_slice(&self.base_timestamp.to_be_bytes());
        to[35..43].copy_from_slice(&self.max_timestamp.to_be_bytes());
        to[43..51].copy_from_slice(&self.producer_id.to_be_bytes());
        to[51..53].copy_from_slice(&self.producer_epoch.to_be_bytes());
        to[53..57].copy_from_slice(&self.base_sequence.to_be_bytes());
        to[57..].copy_from_slice(&self.records.to_be_bytes());
    }
}

/// The first 16 bytes of a batch as it is served: where it stands, and under which epoch. All that
/// follows is served as it was stored, CRC included.
#[must_use]
pub fn served_head(base: Offset, leader_epoch: Term, header: &BatchHeader) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    head[..8].copy_from_slice(&base.0.to_be_bytes());
    head[8..12].copy_from_slice(&header.length.to_be_bytes());
    head[12..].copy_from_slice(&leader_epoch.0.to_be_bytes());
    head
}

/// Refuse a count that cannot fit in a section of `bytes` plain bytes, so that it may size memory.
pub(crate) fn check_record_count(count: u32, bytes: usize) -> Result<(), BatchError> {
    if count as usize > bytes / RECORD_BYTES_MIN {
        return Err(BatchError::RecordCountTooHigh { count, bytes });
    }
    Ok(())
}

impl Attributes {
    /// The attributes as they stand in the header.
    #[must_use]
    pub fn bits(self) -> i16 {
        let mut bits = i16::from(self.compression as u8);
        if self.timestamp_type == TimestampType::LogAppend {
            bits |= LOG_APPEND_TIME;
        }
        if self.transactional {
            bits |= TRANSACTIONAL;
        }
        if self.control {
            bits |= CONTROL;
        }
        bits
    }

    fn from_bits(bits: i16) -> Result<Self, BatchError> {
        if bits & !DEFINED != 0 {
            return Err(BatchError::Attributes { attributes: bits });
        }
        Ok(Self {
            compression: Compression::from_code((bits & 0b111) as u8)?,
            timestamp_type: if bits & LOG_APPEND_TIME == 0 {
                TimestampType::Create
            } else {
                TimestampType::LogAppend
            },
            transactional: bits & TRANSACTIONAL != 0,
            control: bits & CONTROL != 0,
        })
    }
}

impl Compression {
    /// As settings and tables spell it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    fn from_code(code: u8) -> Result<Self, BatchError> {
        Ok(match code {
            0 => Self::None,
            1 => Self::Gzip,
            2 => Self::Snappy,
            3 => Self::Lz4,
            4 => Self::Zstd,
            _ => return Err(BatchError::Compression { code }),
        })
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// `N` bytes at `at`, as an array.
fn field<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}
