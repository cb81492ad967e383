//! Makes a batch from records, encoded in one pass into memory that is used again.
//!
//! Protocol of use of [`BatchBuilder`]: `append` until it answers [`AppendError::Full`] or the
//! linger is over, `build`, and again. One allocation a batch: the one that is handed out.
//!
//! Absent: producer identity (−1 in the batch; the real one travels beside it), time and linger.

use bytes::Bytes;

use crate::batch::Batch;
use crate::check::crc_of;
use crate::codec::{Codec, Encoding};
use crate::header::{Attributes, BatchHeader, HEADER_BYTES, LENGTH_PREFIX_BYTES};
use crate::limits::{BATCH_BYTES_MAX, BATCH_INFLATED_BYTES_MAX, BATCH_RECORDS_MAX};
use crate::{Compression, varint};

/// Why a record was not appended. The builder is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// `build` first, then append again.
    #[error("the batch is full: build it, then append again")]
    Full,
    /// The record alone is over the bound: it fits in no batch of this builder.
    #[error(
        "a batch with this record alone has {bytes} bytes, over the {max} allowed: raise the batch size or split it"
    )]
    RecordTooLarge { bytes: usize, max: usize },
    /// The record's timestamp is further from the batch's first than 64 bits can say.
    #[error("timestamp {timestamp} is too far from the batch's first, {first}")]
    TimestampRange { timestamp: i64, first: i64 },
}

/// Encodes records into batches.
#[derive(Debug)]
pub struct BatchBuilder {
    encoding: Encoding,
    bytes_max: usize,
    /// Room for a header, then the encoded records.
    buffer: Vec<u8>,
    /// The compressed batch in the making.
    packed: Vec<u8>,
    records: u32,
    base_timestamp: i64,
    max_timestamp: i64,
    codec: Codec,
}

impl BatchBuilder {
    /// A builder of batches of at most `bytes_max` bytes before compression, header included. The
    /// bound is brought into 61 to [`BATCH_BYTES_MAX`].
    #[must_use]
    pub fn new(encoding: Encoding, bytes_max: usize) -> Self {
        Self {
            encoding,
            bytes_max: bytes_max.clamp(HEADER_BYTES, BATCH_BYTES_MAX),
            buffer: vec![0; HEADER_BYTES],
            packed: Vec::new(),
            records: 0,
            base_timestamp: 0,
            max_timestamp: i64::MIN,
            codec: Codec::new(),
        }
    }

    /// Another bound for the batches from now on, brought into 61 to [`BATCH_INFLATED_BYTES_MAX`]. Past
    /// [`BATCH_BYTES_MAX`] only compression makes a batch that may be sent: look at its size.
    pub fn set_bytes_max(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max.clamp(HEADER_BYTES, BATCH_INFLATED_BYTES_MAX);
    }

    /// Append a record and return its place in the batch, from 0. `timestamp` is in milliseconds
    /// since the Unix epoch.
    ///
    /// # Errors
    /// See [`AppendError`]; the builder is then unchanged.
    pub fn append<'h, H>(
        &mut self,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: H,
        timestamp: i64,
    ) -> Result<u32, AppendError>
    where
        H: IntoIterator<Item = (&'h str, Option<&'h [u8]>)>,
        H::IntoIter: ExactSizeIterator + Clone,
    {
        let headers = headers.into_iter();
        let first = if self.records == 0 {
            timestamp
        } else {
            self.base_timestamp
        };
        let timestamp_delta = timestamp
            .checked_sub(first)
            .ok_or(AppendError::TimestampRange { timestamp, first })?;
        let delta = self.records as i32;
        let body = 1 // attributes
            + varint::len_i64(timestamp_delta)
            + varint::len_i32(delta)
            + span_bytes(key)
            + span_bytes(value)
            + varint::len_i32(headers.len() as i32)
            + headers.clone().map(|(key, value)| span_bytes(Some(key.as_bytes())) + span_bytes(value)).sum::<usize>();
        let bytes = varint::len_i32(body.min(BATCH_INFLATED_BYTES_MAX) as i32) + body;
        if self.buffer.len() + bytes > self.bytes_max || self.records as usize == BATCH_RECORDS_MAX
        {
            let alone = HEADER_BYTES + bytes;
            return Err(if alone > self.bytes_max {
                AppendError::RecordTooLarge {
                    bytes: alone,
                    max: self.bytes_max,
                }
            } else {
                AppendError::Full
            });
        }
        let end = self.buffer.len() + bytes;
        let out = &mut self.buffer;
        out.reserve(bytes);
        varint::write_i32(out, body as i32);
        out.push(0);
        varint::write_i64(out, timestamp_delta);
        varint::write_i32(out, delta);
        write_span(out, key);
        write_span(out, value);
        varint::write_i32(out, headers.len() as i32);
        for (key, value) in headers {
            write_span(out, Some(key.as_bytes()));
            write_span(out, value);
        }
        debug_assert_eq!(out.len(), end, "a record has the size that was planned");
        self.base_timestamp = first;
        self.max_timestamp = self.max_timestamp.max(timestamp);
        self.records += 1;
        Ok(delta as u32)
    }

    /// Records appended since the last `build`.
    #[must_use]
    pub fn records(&self) -> u32 {
        self.records
    }

    /// Size of the batch as it stands, before compression, header included: what `bytes_max`
    /// bounds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.buffer.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// The batch of all records appended, at base offset 0; the builder starts anew. `None` when
    /// there are none. Records that compression does not shrink stay plain, so that `bytes_max`
    /// holds for every batch.
    pub fn build(&mut self) -> Option<Batch> {
        if self.records == 0 {
            return None;
        }
        let header = header_of(
            Encoding::None,
            self.records,
            self.base_timestamp,
            self.max_timestamp,
        );
        let batch = seal(
            header,
            self.encoding,
            &mut self.buffer,
            &mut self.packed,
            &mut self.codec,
        );
        self.buffer.truncate(HEADER_BYTES);
        self.records = 0;
        self.max_timestamp = i64::MIN;
        Some(batch)
    }
}

fn header_of(
    encoding: Encoding,
    records: u32,
    base_timestamp: i64,
    max_timestamp: i64,
) -> BatchHeader {
    BatchHeader {
        base_offset: 0,
        length: 0,
        leader_epoch: -1,
        crc: 0,
        attributes: Attributes {
            compression: encoding.into(),
            ..Attributes::default()
        },
        last_offset_delta: records - 1,
        base_timestamp,
        max_timestamp,
        producer_id: -1,
        producer_epoch: -1,
        base_sequence: -1,
        records,
    }
}

/// Finish a batch: `plain` holds room for a header, then the encoded records. Length, CRC and
/// compression of `header` are set here. `packed` is scratch.
pub(crate) fn seal(
    mut header: BatchHeader,
    encoding: Encoding,
    plain: &mut [u8],
    packed: &mut Vec<u8>,
    codec: &mut Codec,
) -> Batch {
    packed.clear();
    packed.resize(HEADER_BYTES, 0);
    let shrunk =
        encoding != Encoding::None && codec.deflate(encoding, &plain[HEADER_BYTES..], packed);
    header.attributes.compression = if shrunk {
        encoding.into()
    } else {
        Compression::None
    };
    let batch: &mut [u8] = if shrunk { packed } else { plain };
    header.length = (batch.len() - LENGTH_PREFIX_BYTES) as u32;
    write_header(&header, batch);
    header.crc = crc_of(batch);
    write_header(&header, batch);
    Batch::encoded(header, Bytes::copy_from_slice(batch))
}

fn write_header(header: &BatchHeader, batch: &mut [u8]) {
    let start = batch
        .first_chunk_mut::<HEADER_BYTES>()
        .expect("a batch in the making has room for its header");
    header.write(start);
}

#[inline]
fn span_bytes(bytes: Option<&[u8]>) -> usize {
    match bytes {
        // A longer one is refused for its size, whatever its length field would be.
        Some(bytes) => {
            varint::len_i32(bytes.len().min(BATCH_INFLATED_BYTES_MAX) as i32) + bytes.len()
        }
        None => 1,
    }
}

#[inline]
fn write_span(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        Some(bytes) => {
            varint::write_i32(out, bytes.len() as i32);
            out.extend_from_slice(bytes);
        }
        None => varint::write_i32(out, -1),
    }
}
