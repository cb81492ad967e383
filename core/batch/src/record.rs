//! One record, and the walk over a records section that is not compressed (any more).
//!
//! ```text
//!  length            varint   bytes after itself
//!  attributes        i8       without a meaning; ignored, as Kafka does
//!  timestamp delta   varlong  to the batch's base timestamp
//!  offset delta      varint   to the batch's base offset; rises from record to record
//!  key length        varint   -1: null        then the key
//!  value length      varint   -1: null        then the value
//!  header count      varint   then for each: key length, key, value length (-1: null), value
//! ```
//!
//! The walk is inlined by force: left to the compiler it was now a call and now not, and half as costly again
//! (row `filter-open` of `cargo xtask counts`).
//!
//! Every length is held against what is left before it is used, and the walk ends with an error
//! unless it met exactly the counted records and then exactly the end of the section. Header keys
//! are given as bytes: the layout calls them UTF-8, but brokers do not enforce it, and one odd key
//! must not make the records beside it unreadable.

use crate::header::{BatchHeader, TimestampType};
use crate::{BatchError, RecordFault, varint};

/// A record, borrowed from its section.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// The batch's base offset plus the record's delta.
    pub offset: i64,
    /// Milliseconds since the Unix epoch; the batch's max timestamp under
    /// [`TimestampType::LogAppend`].
    pub timestamp: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub headers: Headers<'a>,
}

/// The headers of one record: an iterator over what was validated with the record.
#[derive(Clone, Copy, Debug)]
pub struct Headers<'a> {
    rest: &'a [u8],
    left: usize,
}

/// One header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    /// UTF-8 by convention, not by force.
    pub key: &'a [u8],
    pub value: Option<&'a [u8]>,
}

impl<'a> Iterator for Headers<'a> {
    type Item = Header<'a>;

    fn next(&mut self) -> Option<Header<'a>> {
        self.left = self.left.checked_sub(1)?;
        let (header, end) = read_header(self.rest, 0).ok()?;
        self.rest = &self.rest[end..];
        Some(header)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Headers<'_> {}

/// Walks the records of one batch. Stops for good at the first error.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    layouts: Layouts<'a>,
    base_offset: i64,
    clock: Clock,
}

impl<'a> Records<'a> {
    /// `raw` is the inflated records section of the batch with this header.
    #[must_use]
    pub fn new(header: &BatchHeader, raw: &'a [u8]) -> Self {
        Self {
            layouts: Layouts::new(header, raw),
            base_offset: header.base_offset,
            clock: Clock::new(header),
        }
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        let layout = match self.layouts.next()? {
            Ok(layout) => layout,
            Err(error) => return Some(Err(error)),
        };
        let raw = self.layouts.raw;
        match self.clock.timestamp(layout.timestamp_delta) {
            Ok(timestamp) => Some(Ok(Record {
                // The header holds that base offset and last delta do not overflow.
                offset: self.base_offset + i64::from(layout.offset_delta),
                timestamp,
                key: layout.key.of(raw),
                value: layout.value.of(raw),
                headers: Headers {
                    rest: &raw[layout.headers_from..layout.end],
                    left: layout.headers,
                },
            })),
            Err(fault) => Some(Err(self.layouts.fail(fault))),
        }
    }
}

/// Turns the timestamp deltas of one batch into timestamps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    base: i64,
    /// Set under [`TimestampType::LogAppend`].
    append: Option<i64>,
}

impl Clock {
    pub(crate) fn new(header: &BatchHeader) -> Self {
        let append = header.attributes.timestamp_type == TimestampType::LogAppend;
        Self {
            base: header.base_timestamp,
            append: append.then_some(header.max_timestamp),
        }
    }

    #[inline]
    pub(crate) fn timestamp(self, delta: i64) -> Result<i64, RecordFault> {
        match self.append {
            Some(timestamp) => Ok(timestamp),
            None => self
                .base
                .checked_add(delta)
                .ok_or(RecordFault::Timestamp { delta }),
        }
    }
}

/// A key or value: where it is in the section. `len` is `None` for null; `at` is then where it
/// would be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) at: usize,
    pub(crate) len: Option<usize>,
}

impl Span {
    fn of(self, raw: &[u8]) -> Option<&[u8]> {
        self.len.map(|len| &raw[self.at..self.at + len])
    }
}

/// Where the parts of one record are. All positions are into the section and were checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// The record's length field.
    pub(crate) at: usize,
    /// The record's attributes: what its length counts from.
    pub(crate) body_at: usize,
    pub(crate) timestamp_delta: i64,
    /// The offset delta's bytes.
    pub(crate) offset_delta_at: usize,
    pub(crate) offset_delta: u32,
    /// Behind the offset delta: the key's length.
    pub(crate) key_length_at: usize,
    pub(crate) key: Span,
    pub(crate) value: Span,
    /// The header count.
    pub(crate) headers_at: usize,
    /// Behind the header count: the first header.
    pub(crate) headers_from: usize,
    pub(crate) headers: usize,
    /// Behind the record.
    pub(crate) end: usize,
}

/// Walks the layouts of a section's records, and holds the walk to count, order and end.
#[derive(Clone, Debug)]
pub(crate) struct Layouts<'a> {
    pub(crate) raw: &'a [u8],
    at: usize,
    /// Records met so far; `count + 1` when the walk is over.
    met: u32,
    count: u32,
    /// The least offset delta that may come next.
    least: u32,
    last_offset_delta: u32,
}

impl<'a> Layouts<'a> {
    pub(crate) fn new(header: &BatchHeader, raw: &'a [u8]) -> Self {
        Self {
            raw,
            at: 0,
            met: 0,
            count: header.records,
            least: 0,
            last_offset_delta: header.last_offset_delta,
        }
    }

    /// End the walk because of the record that was met last.
    pub(crate) fn fail(&mut self, fault: RecordFault) -> BatchError {
        let record = self.met - 1;
        self.met = self.count + 1;
        BatchError::Record { record, fault }
    }

    #[inline(always)]
    fn step(&mut self) -> Result<Layout, RecordFault> {
        let layout = read_record(self.raw, self.at)?;
        let delta = layout.offset_delta;
        if delta < self.least || delta > self.last_offset_delta {
            return Err(RecordFault::OffsetDelta {
                delta: delta as i32,
                least: self.least,
                last: self.last_offset_delta,
            });
        }
        self.at = layout.end;
        self.least = delta + 1;
        Ok(layout)
    }
}

impl Iterator for Layouts<'_> {
    type Item = Result<Layout, BatchError>;

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        if self.met >= self.count {
            if self.met > self.count || self.at == self.raw.len() {
                return None;
            }
            self.met = self.count + 1;
            return Some(Err(BatchError::TrailingBytes {
                extra: self.raw.len() - self.at,
                count: self.count,
            }));
        }
        self.met += 1;
        match self.step() {
            Ok(layout) => Some(Ok(layout)),
            Err(fault) => Some(Err(self.fail(fault))),
        }
    }
}

#[inline(always)]
fn read_record(raw: &[u8], at: usize) -> Result<Layout, RecordFault> {
    if at == raw.len() {
        return Err(RecordFault::Missing);
    }
    let mut pos = at;
    let length = number(raw, &mut pos, "length")?;
    let end = end_of(raw, pos, length, "length")?;
    // From here on nothing is read past the record's own end.
    let body = &raw[..end];
    let body_at = pos;
    if pos == end {
        return Err(RecordFault::Number {
            field: "attributes",
        });
    }
    pos += 1;
    let timestamp_delta = varint::read_i64(body, &mut pos).ok_or(RecordFault::Number {
        field: "timestamp delta",
    })?;
    let offset_delta_at = pos;
    let delta = number(body, &mut pos, "offset delta")?;
    let offset_delta = u32::try_from(delta).map_err(|_| RecordFault::OffsetDelta {
        delta,
        least: 0,
        last: 0,
    })?;
    let key_length_at = pos;
    let key = read_span(body, &mut pos, "key length")?;
    let value = read_span(body, &mut pos, "value length")?;
    let headers_at = pos;
    let count = number(body, &mut pos, "header count")?;
    let left = end - pos;
    // A header has at least two bytes, its two lengths.
    let headers = usize::try_from(count)
        .ok()
        .filter(|&headers| headers <= left / 2)
        .ok_or(RecordFault::Length {
            field: "header count",
            length: count,
            left,
        })?;
    let headers_from = pos;
    for _ in 0..headers {
        pos = read_header(body, pos)?.1;
    }
    if pos != end {
        return Err(RecordFault::Trailing { extra: end - pos });
    }
    Ok(Layout {
        at,
        body_at,
        timestamp_delta,
        offset_delta_at,
        offset_delta,
        key_length_at,
        key,
        value,
        headers_at,
        headers_from,
        headers,
        end,
    })
}

/// The header at `at` and the position behind it.
fn read_header(bytes: &[u8], at: usize) -> Result<(Header<'_>, usize), RecordFault> {
    let mut pos = at;
    let length = number(bytes, &mut pos, "header key length")?;
    let key_end = end_of(bytes, pos, length, "header key length")?;
    let key = &bytes[pos..key_end];
    pos = key_end;
    let value = read_span(bytes, &mut pos, "header value length")?;
    Ok((
        Header {
            key,
            value: value.of(bytes),
        },
        pos,
    ))
}

/// A length that may be -1 for null, and the bytes behind it; advances past them.
#[inline(always)]
fn read_span(bytes: &[u8], pos: &mut usize, field: &'static str) -> Result<Span, RecordFault> {
    let length = number(bytes, pos, field)?;
    let at = *pos;
    if length == -1 {
        return Ok(Span { at, len: None });
    }
    let end = end_of(bytes, at, length, field)?;
    *pos = end;
    Ok(Span {
        at,
        len: Some(end - at),
    })
}

/// Where `length` bytes from `at` end, if they are there.
#[inline(always)]
fn end_of(bytes: &[u8], at: usize, length: i32, field: &'static str) -> Result<usize, RecordFault> {
    let left = bytes.len() - at;
    match usize::try_from(length) {
        Ok(len) if len <= left => Ok(at + len),
        _ => Err(RecordFault::Length {
            field,
            length,
            left,
        }),
    }
}

#[inline(always)]
fn number(bytes: &[u8], pos: &mut usize, field: &'static str) -> Result<i32, RecordFault> {
    varint::read_i32(bytes, pos).ok_or(RecordFault::Number { field })
}
