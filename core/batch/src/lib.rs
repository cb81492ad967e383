//! The record batch and the vocabulary of the whole broker: ids, limits, the Kafka v2 layout.
//!
//! Pure: bytes in, bytes out. No clock, entropy, I/O or thread. This crate is the root of the
//! import graph, so it holds only what every other crate must agree on.
//!
//! ```text
//!  produce   parts ──Checker──▶ BatchHeader                     header, length, CRC; nothing copied
//!  filter    Batch ──open─────▶ OpenBatch ──retain──▶ Batch     inflate, index, keep a bitmap's records
//!  serve     Batch ──served───▶ head [16] + shared body         offset and epoch are outside the CRC
//!  consume   Batch ──inflated─▶ Bytes ──records──▶ Record…      every length checked before it is used
//!  encode    BatchBuilder ──build──▶ Batch                      none, lz4 or zstd
//! ```
//!
//! Absent: producer identity, append time, TTL (they travel beside the batch), and the older
//! message formats (magic 0 and 1).

pub mod ids;
pub mod limits;
pub mod units;

mod batch;
mod builder;
mod check;
mod codec;
mod error;
mod header;
mod index;
mod lz4;
mod open;
mod parts;
mod record;
mod snappy;
mod varint;
mod walk;

pub use batch::{Batch, BatchView, Served};
pub use builder::{AppendError, BatchBuilder};
pub use check::{Checker, check_parts, check_produced_parts};
pub use codec::{Codec, Encoding};
pub use error::{BatchError, RecordFault};
pub use header::{
    Attributes, BatchHeader, BatchNumbers, Compression, HEAD_BYTES, HEADER_BYTES,
    LENGTH_PREFIX_BYTES, RECORD_BYTES_MIN, TimestampType, served_head,
};
pub use index::{NULL, RecordIndex, STRIDE};
pub use open::{KeptOffsets, OpenBatch};
pub use parts::Parts;
pub use record::{Header, Headers, Record, Records};
pub use walk::check_records;
