//! A batch and its records, looked at where they lie. Nothing is parsed until it is asked for, and
//! nothing is copied. Deliberately absent: checks of the index (the broker has made them; a wrong one
//! panics, and cannot read outside the batch).

use crate::context::Context;
use crate::varint;

/// Numbers of the index for each record: record at, key at, key length, value at, value length,
/// headers at.
const STRIDE: usize = 6;
/// A length that means null.
const NULL: u32 = u32::MAX;

/// A batch as the broker hands it over: see `wit/types.wit`.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    context: &'a Context<'a>,
    index: &'a [u32],
    timestamps: &'a [i64],
    raw: &'a [u8],
}

/// One record of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    context: &'a Context<'a>,
    index: &'a [u32; STRIDE],
    timestamp: i64,
    position: u32,
    raw: &'a [u8],
}

/// One header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    /// UTF-8 by convention; the broker does not insist.
    pub key: &'a [u8],
    /// None: null.
    pub value: Option<&'a [u8]>,
}

/// The headers of one record, in order.
#[derive(Clone, Debug)]
pub struct Headers<'a> {
    rest: &'a [u8],
    left: usize,
}

impl<'a> Batch<'a> {
    /// A batch of `timestamps.len()` records. Panics if the index has another number.
    #[must_use]
    pub fn new(
        context: &'a Context<'a>,
        index: &'a [u32],
        timestamps: &'a [i64],
        raw: &'a [u8],
    ) -> Self {
        assert_eq!(
            index.len(),
            timestamps.len() * STRIDE,
            "the index has {STRIDE} numbers a record"
        );
        Self {
            context,
            index,
            timestamps,
            raw,
        }
    }

    /// Number of records.
    #[must_use]
    pub fn len(&self) -> usize {
        self.timestamps.len()
    }

    /// Whether there is no record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.timestamps.is_empty()
    }

    /// The records, in order.
    #[inline]
    pub fn records(&self) -> impl ExactSizeIterator<Item = Record<'a>> + use<'a> {
        let Self { context, raw, .. } = *self;
        let (index, _) = self.index.as_chunks::<STRIDE>();
        index
            .iter()
            .zip(self.timestamps)
            .enumerate()
            .map(move |(position, (index, timestamp))| Record {
                context,
                index,
                timestamp: *timestamp,
                position: position as u32,
                raw,
            })
    }
}

impl<'a> Record<'a> {
    /// The key; None: null.
    #[inline]
    #[must_use]
    pub fn key(&self) -> Option<&'a [u8]> {
        self.field(self.index[1], self.index[2])
    }

    /// The value; None: null, a tombstone.
    #[inline]
    #[must_use]
    pub fn value(&self) -> Option<&'a [u8]> {
        self.field(self.index[3], self.index[4])
    }

    /// The value as text, if it is UTF-8.
    #[must_use]
    pub fn text(&self) -> Option<&'a str> {
        self.value().and_then(|value| str::from_utf8(value).ok())
    }

    /// The client's timestamp, in milliseconds since the Unix epoch.
    #[inline]
    #[must_use]
    pub fn timestamp(&self) -> i64 {
        self.timestamp
    }

    /// Position in the batch, from 0.
    #[inline]
    #[must_use]
    pub fn position(&self) -> u32 {
        self.position
    }

    /// The offset in the partition, once the batch has one. Not `base_offset + position`: a compacted
    /// batch has gaps.
    #[must_use]
    pub fn offset(&self) -> Option<u64> {
        let base = self.context.base_offset?;
        // Length, attributes (one byte), timestamp delta, offset delta.
        let mut at = self.index[0] as usize;
        at += varint::read(&self.raw[at..])?.1 + 1;
        at += varint::read(&self.raw[at..])?.1;
        let (delta, _) = varint::read(&self.raw[at..])?;
        base.checked_add_signed(delta)
    }

    /// The headers, in order.
    #[must_use]
    pub fn headers(&self) -> Headers<'a> {
        let at = &self.raw[self.index[5] as usize..];
        let (count, len) = varint::read(at).unwrap_or((0, 0));
        Headers {
            rest: &at[len..],
            left: usize::try_from(count).unwrap_or(0),
        }
    }

    /// The value of the last header of this name; None if there is none, or its value is null.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        let named = self.headers().filter(|h| h.key == name.as_bytes());
        named.last().and_then(|header| header.value)
    }

    /// The place and time of the batch.
    #[inline]
    #[must_use]
    pub fn context(&self) -> &'a Context<'a> {
        self.context
    }

    #[inline]
    fn field(&self, at: u32, len: u32) -> Option<&'a [u8]> {
        (len != NULL).then(|| &self.raw[at as usize..][..len as usize])
    }
}

impl<'a> Headers<'a> {
    fn bytes(&mut self) -> Option<Option<&'a [u8]>> {
        let (len, len_len) = varint::read(self.rest)?;
        let rest = &self.rest[len_len..];
        match usize::try_from(len) {
            Ok(len) => {
                let (bytes, rest) = rest.split_at_checked(len)?;
                self.rest = rest;
                Some(Some(bytes))
            }
            Err(_) => {
                self.rest = rest;
                Some(None)
            }
        }
    }
}

impl<'a> Iterator for Headers<'a> {
    type Item = Header<'a>;

    fn next(&mut self) -> Option<Header<'a>> {
        self.left = self.left.checked_sub(1)?;
        let key = self.bytes()?.unwrap_or_default();
        let value = self.bytes()?;
        Some(Header { key, value })
    }
}
