//! Where the fields of each record are: what a component of the *view* world gets beside the bytes.
//!
//! `raw` is the inflated records section (see [`crate::Records`] for its layout). For `n` records
//! the index holds `6 n` numbers (`u32`, [`STRIDE`] a record, in record order) and `n` timestamps
//! (`i64`). All positions are byte offsets into `raw`, all lengths are in bytes:
//!
//! | number `6 i + …` | meaning |
//! |---|---|
//! | 0 `record_at` | first byte of record `i`: its length field. It ends where the next begins; the last one at the end of `raw` |
//! | 1 `key_at` | first byte of the key; where it would be, when it is null or empty |
//! | 2 `key_len` | length of the key; [`NULL`] (`u32::MAX`) for a null key |
//! | 3 `value_at` | first byte of the value; where it would be, when it is null or empty |
//! | 4 `value_len` | length of the value; [`NULL`] (`u32::MAX`) for a null value |
//! | 5 `headers_at` | first byte of the header count: a zigzag varint, then for each header a key length (varint, ≥ 0), the key, a value length (varint, −1 for null), the value. They end where the record ends |
//!
//! `timestamps[i]` is record `i`'s timestamp in milliseconds since the Unix epoch (absolute, no
//! delta). Every position and length was checked: a reader inside the sandbox that follows this
//! table never leaves `raw`. The WIT package and the SDKs rely on it; a change is a new version.

use crate::BatchError;
use crate::header::{BatchHeader, check_record_count};
use crate::limits::BATCH_INFLATED_BYTES_MAX;
use crate::record::{Clock, Layouts, Span};

/// Numbers of the index a record.
pub const STRIDE: usize = 6;
/// The length of a null key or value.
pub const NULL: u32 = u32::MAX;

const _: () = assert!(BATCH_INFLATED_BYTES_MAX < NULL as usize);

/// The index of one batch's records; its memory is used again by the next `build`.
#[derive(Clone, Debug, Default)]
pub struct RecordIndex {
    index: Vec<u32>,
    timestamps: Vec<i64>,
}

impl RecordIndex {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Index the records of `raw`, the inflated records section of the batch with this header.
    /// Every record is validated, and the walk is held to count and end.
    ///
    /// # Errors
    /// Faults of the records section in [`BatchError`]; the index is then empty.
    pub fn build(&mut self, header: &BatchHeader, raw: &[u8]) -> Result<(), BatchError> {
        self.clear();
        let result = self.fill(header, raw);
        if result.is_err() {
            self.clear();
        }
        result
    }

    /// `STRIDE` numbers a record.
    #[must_use]
    pub fn index(&self) -> &[u32] {
        &self.index
    }

    /// One timestamp a record, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn timestamps(&self) -> &[i64] {
        &self.timestamps
    }

    /// Number of records.
    #[must_use]
    pub fn len(&self) -> usize {
        self.timestamps.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.timestamps.is_empty()
    }

    /// Where record `i` begins in `raw`; for `i == len()`, where the last one ends.
    pub(crate) fn record_at(&self, i: usize, raw: &[u8]) -> usize {
        self.index
            .get(i * STRIDE)
            .map_or(raw.len(), |&at| at as usize)
    }

    fn clear(&mut self) {
        self.index.clear();
        self.timestamps.clear();
    }

    fn fill(&mut self, header: &BatchHeader, raw: &[u8]) -> Result<(), BatchError> {
        assert!(
            raw.len() <= BATCH_INFLATED_BYTES_MAX,
            "a records section is inflated within its bound"
        );
        check_record_count(header.records, raw.len())?;
        self.index.reserve(header.records as usize * STRIDE);
        self.timestamps.reserve(header.records as usize);
        let clock = Clock::new(header);
        let mut layouts = Layouts::new(header, raw);
        while let Some(layout) = layouts.next() {
            let layout = layout?;
            let timestamp = match clock.timestamp(layout.timestamp_delta) {
                Ok(timestamp) => timestamp,
                Err(fault) => return Err(layouts.fail(fault)),
            };
            self.index.extend_from_slice(&[
                layout.at as u32,
                layout.key.at as u32,
                length(layout.key),
                layout.value.at as u32,
                length(layout.value),
                layout.headers_at as u32,
            ]);
            self.timestamps.push(timestamp);
        }
        Ok(())
    }
}

fn length(span: Span) -> u32 {
    span.len.map_or(NULL, |len| len as u32)
}
