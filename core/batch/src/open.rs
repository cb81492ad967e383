//! A batch laid open for filters: its records inflated, indexed and validated; and the batch that
//! is left when a filter has spoken.
//!
//! A filter answers with a bitmap: record `i` is kept when bit `i % 8` (the least significant is
//! bit 0) of byte `i / 8` is set. Bits past the last record are not looked at.

use bytes::Bytes;

use crate::batch::Batch;
use crate::builder::seal;
use crate::codec::{Codec, Encoding};
use crate::header::HEADER_BYTES;
use crate::index::RecordIndex;
use crate::limits::BATCH_BYTES_MAX;
use crate::record::{Layout, Layouts};
use crate::{BatchError, varint};

/// What becomes of the offsets of the records that are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeptOffsets {
    /// Closed up, from 0: before the append, when no offsets have been given yet.
    Renumber,
    /// As they are, with holes, and the last offset of the batch as it was: for one subscription,
    /// where an offset is a name.
    Sparse,
}

/// A batch whose records were walked and found whole.
#[derive(Debug)]
pub struct OpenBatch {
    batch: Batch,
    raw: Bytes,
    index: RecordIndex,
}

impl OpenBatch {
    /// Inflate and index `batch`. `index` gives its memory; take it back with
    /// [`OpenBatch::into_index`].
    ///
    /// # Errors
    /// Faults of the records section in [`BatchError`].
    pub fn open(
        batch: Batch,
        codec: &mut Codec,
        mut index: RecordIndex,
    ) -> Result<Self, BatchError> {
        let raw = batch.inflated(codec)?;
        index.build(batch.header(), &raw)?;
        Ok(Self { batch, raw, index })
    }

    #[must_use]
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    /// The inflated records section that the index points into.
    #[must_use]
    pub fn raw(&self) -> &Bytes {
        &self.raw
    }

    #[must_use]
    pub fn index(&self) -> &RecordIndex {
        &self.index
    }

    /// The index's memory, for the next batch.
    #[must_use]
    pub fn into_index(self) -> RecordIndex {
        self.index
    }

    /// The batch with only the records whose bit is set; `None` when that is none. It is the
    /// same batch, not a copy, when nothing changes. Compression stays ([`Encoding::after`]), max
    /// timestamp becomes that of what is kept; base offset, base timestamp and leader epoch stay.
    ///
    /// # Errors
    /// [`BatchError::Bitmap`] when `keep` has not ⌈n/8⌉ bytes; [`BatchError::TooLarge`] when the
    /// rest, encoded again, passes [`BATCH_BYTES_MAX`] (only where a denser encoder came before).
    pub fn retain(
        &self,
        keep: &[u8],
        offsets: KeptOffsets,
        codec: &mut Codec,
    ) -> Result<Option<Batch>, BatchError> {
        let count = self.index.len();
        let mut header = *self.batch.header();
        if keep.len() != count.div_ceil(8) {
            return Err(BatchError::Bitmap {
                bytes: keep.len(),
                count: header.records,
            });
        }
        let kept = |i: usize| keep[i / 8] >> (i % 8) & 1 == 1;
        let records = (0..count).filter(|&i| kept(i)).count() as u32;
        if records == 0 {
            return Ok(None);
        }
        let dense = header.last_offset_delta == header.records - 1;
        if records == header.records && (dense || offsets == KeptOffsets::Sparse) {
            return Ok(Some(self.batch.clone()));
        }

        let mut plain = std::mem::take(&mut codec.scratch);
        plain.clear();
        plain.resize(HEADER_BYTES, 0);
        match offsets {
            KeptOffsets::Sparse => self.copy_runs(kept, &mut plain),
            KeptOffsets::Renumber => {
                self.copy_renumbered(kept, &mut plain)?;
                header.last_offset_delta = records - 1;
            }
        }
        header.records = records;
        header.max_timestamp = (0..count)
            .filter(|&i| kept(i))
            .map(|i| self.index.timestamps()[i])
            .max()
            .unwrap_or(header.max_timestamp);
        let encoding = Encoding::after(header.attributes.compression);
        let mut packed = Vec::new();
        let batch = seal(header, encoding, &mut plain, &mut packed, codec);
        codec.scratch = plain;
        if batch.header().size() > BATCH_BYTES_MAX {
            return Err(BatchError::TooLarge {
                bytes: batch.header().size(),
            });
        }
        Ok(Some(batch))
    }

    /// Copy kept records as they are, neighbours in one go.
    fn copy_runs(&self, kept: impl Fn(usize) -> bool, out: &mut Vec<u8>) {
        let count = self.index.len();
        let mut i = 0;
        while i < count {
            let from = i;
            while i < count && kept(i) {
                i += 1;
            }
            out.extend_from_slice(
                &self.raw
                    [self.index.record_at(from, &self.raw)..self.index.record_at(i, &self.raw)],
            );
            i += 1;
        }
    }

    /// Copy kept records with offset deltas from 0.
    fn copy_renumbered(
        &self,
        kept: impl Fn(usize) -> bool,
        out: &mut Vec<u8>,
    ) -> Result<(), BatchError> {
        let mut next = 0;
        for (i, layout) in Layouts::new(self.batch.header(), &self.raw).enumerate() {
            let layout = layout?; // found whole when the batch was opened
            if kept(i) {
                copy_with_delta(&self.raw, &layout, next, out);
                next += 1;
            }
        }
        Ok(())
    }
}

fn copy_with_delta(raw: &[u8], layout: &Layout, delta: u32, out: &mut Vec<u8>) {
    if layout.offset_delta == delta {
        out.extend_from_slice(&raw[layout.at..layout.end]);
        return;
    }
    let before = &raw[layout.body_at..layout.offset_delta_at];
    let behind = &raw[layout.key_length_at..layout.end];
    let delta = delta as i32;
    varint::write_i32(
        out,
        (before.len() + varint::len_i32(delta) + behind.len()) as i32,
    );
    out.extend_from_slice(before);
    varint::write_i32(out, delta);
    out.extend_from_slice(behind);
}
