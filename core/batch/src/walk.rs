//! The walk at the door: the records of a batch that lies in parts, looked at without joining or keeping
//! anything. A batch that passes is one that [`Records`](crate::Records) reads to its end, and what it
//! refuses, that walk refuses with the same words.
//!
//! Absent: compressed records, which have to be inflated first ([`crate::OpenBatch`]).

use crate::header::{BatchHeader, HEADER_BYTES};
use crate::record::Clock;
use crate::varint::{self, VARLONG_BYTES_MAX};
use crate::{BatchError, RecordFault};

/// Walk the records of a whole batch, its 61 bytes of header first. They are not compressed.
///
/// # Errors
/// The faults of the records section in [`BatchError`].
pub fn check_records<P: AsRef<[u8]>>(header: &BatchHeader, parts: &[P]) -> Result<(), BatchError> {
    let mut walk = Walk {
        here: &[],
        parts: parts.iter(),
        at: 0,
        total: header.size() - HEADER_BYTES,
    };
    walk.skip(HEADER_BYTES);
    walk.at = 0;
    let clock = Clock::new(header);
    let mut least = 0;
    for record in 0..header.records {
        let step = walk.record(least, header.last_offset_delta, clock);
        least = step.map_err(|fault| BatchError::Record { record, fault })? + 1;
    }
    if walk.at < walk.total {
        return Err(BatchError::TrailingBytes {
            extra: walk.total - walk.at,
            count: header.records,
        });
    }
    Ok(())
}

struct Walk<'a, P> {
    /// What is left of the part that the walk stands in.
    here: &'a [u8],
    /// The parts behind it.
    parts: std::slice::Iter<'a, P>,
    /// The place in the records section.
    at: usize,
    /// Bytes of the section.
    total: usize,
}

impl<P: AsRef<[u8]>> Walk<'_, P> {
    /// One record; its offset delta.
    #[inline]
    fn record(&mut self, least: u32, last: u32, clock: Clock) -> Result<u32, RecordFault> {
        if self.at == self.total {
            return Err(RecordFault::Missing);
        }
        let length = self.number(self.total, "length", varint::read_i32)?;
        let end = self.end_of(self.total, length, "length")?;
        if self.at == end {
            return Err(RecordFault::Number {
                field: "attributes",
            });
        }
        self.skip(1);
        let timestamp_delta = self.number(end, "timestamp delta", varint::read_i64)?;
        let delta = self.number(end, "offset delta", varint::read_i32)?;
        let offset_delta = u32::try_from(delta).map_err(|_| RecordFault::OffsetDelta {
            delta,
            least: 0,
            last: 0,
        })?;
        self.span(end, "key length")?;
        self.span(end, "value length")?;
        let count = self.number(end, "header count", varint::read_i32)?;
        let left = end - self.at;
        // A header has at least two bytes, its two lengths.
        let headers = usize::try_from(count)
            .ok()
            .filter(|&headers| headers <= left / 2)
            .ok_or(RecordFault::Length {
                field: "header count",
                length: count,
                left,
            })?;
        for _ in 0..headers {
            let length = self.number(end, "header key length", varint::read_i32)?;
            let key_end = self.end_of(end, length, "header key length")?;
            self.skip(key_end - self.at);
            self.span(end, "header value length")?;
        }
        if self.at != end {
            return Err(RecordFault::Trailing {
                extra: end - self.at,
            });
        }
        if offset_delta < least || offset_delta > last {
            return Err(RecordFault::OffsetDelta { delta, least, last });
        }
        clock.timestamp(timestamp_delta)?;
        Ok(offset_delta)
    }

    /// A number that ends before `end`.
    #[inline]
    fn number<T>(
        &mut self,
        end: usize,
        field: &'static str,
        read: impl Fn(&[u8], &mut usize) -> Option<T>,
    ) -> Result<T, RecordFault> {
        let mut taken = 0;
        let within = self.here.len().min(end - self.at);
        if let Some(number) = read(&self.here[..within], &mut taken) {
            self.here = &self.here[taken..];
            self.at += taken;
            return Ok(number);
        }
        self.number_across(end, read)
            .ok_or(RecordFault::Number { field })
    }

    /// A number that goes on in another part.
    #[cold]
    fn number_across<T>(
        &mut self,
        end: usize,
        read: impl Fn(&[u8], &mut usize) -> Option<T>,
    ) -> Option<T> {
        let mut bytes = [0; VARLONG_BYTES_MAX];
        let most = (end - self.at).min(bytes.len());
        let next = self.parts.as_slice().iter().map(AsRef::as_ref);
        let mut have = 0;
        for part in std::iter::once(self.here).chain(next) {
            let take = part.len().min(most - have);
            bytes[have..have + take].copy_from_slice(&part[..take]);
            have += take;
            if have == most {
                break;
            }
        }
        let mut taken = 0;
        let number = read(&bytes[..have], &mut taken)?;
        self.skip(taken);
        Some(number)
    }

    /// Pass over a length that may be -1 for null, and what it counts.
    #[inline]
    fn span(&mut self, end: usize, field: &'static str) -> Result<(), RecordFault> {
        let length = self.number(end, field, varint::read_i32)?;
        if length != -1 {
            let behind = self.end_of(end, length, field)?;
            self.skip(behind - self.at);
        }
        Ok(())
    }

    /// Where `length` bytes from here end, if they are there.
    #[inline]
    fn end_of(&self, end: usize, length: i32, field: &'static str) -> Result<usize, RecordFault> {
        let left = end - self.at;
        match usize::try_from(length) {
            Ok(bytes) if bytes <= left => Ok(self.at + bytes),
            _ => Err(RecordFault::Length {
                field,
                length,
                left,
            }),
        }
    }

    /// Pass over bytes that were held against what is there.
    #[inline]
    fn skip(&mut self, bytes: usize) {
        self.at += bytes;
        let mut rest = bytes;
        while rest > self.here.len() {
            rest -= self.here.len();
            let Some(next) = self.parts.next() else {
                self.here = &[];
                return; // the batch is shorter than its header says, which was checked before
            };
            self.here = next.as_ref();
        }
        self.here = &self.here[rest..];
    }
}
