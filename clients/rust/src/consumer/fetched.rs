//! A batch as it came from the broker, and the records in it.

use std::sync::Arc;

use bytes::Bytes;
use millstream_batch::{Batch, BatchError, BatchHeader, Codec, Record};

use super::assignment::TopicPartition;
use crate::error::{Error, Result};
use crate::record::{ConsumedRecord, Header};

/// A batch of one partition. Its bytes are a Kafka v2 record batch whose checksum was verified.
#[derive(Clone, Debug)]
pub struct FetchedBatch {
    pub(super) name: TopicPartition,
    pub(super) batch: Batch,
    /// Records below were asked to be skipped: the batch begins before the position.
    pub(super) skip_below: u64,
    /// Found by this time: what is older at its front was not asked for.
    pub(super) skip_before_ms: Option<i64>,
    /// Offsets, inclusive.
    pub first_offset: u64,
    pub last_offset: u64,
    /// When the broker appended it, in milliseconds since the Unix epoch.
    pub append_time_ms: i64,
    /// Who produced it: 0 without an identity.
    pub pid: u64,
    pub epoch: u32,
    /// Of the first record, in this producer and partition.
    pub sequence: u64,
    /// End of the partition when the batch was read.
    pub end_offset: u64,
    /// The leader epoch that it was stored under: with the offset behind it, a position that can be
    /// checked (`StartAt::After`). It rises when the end of the log may have been lost.
    pub leader_epoch: u32,
    /// A filter may have dropped records between the first and the last offset.
    pub filtered: bool,
}

impl FetchedBatch {
    #[must_use]
    pub fn topic(&self) -> &Arc<str> {
        &self.name.topic
    }

    #[must_use]
    pub fn partition(&self) -> u32 {
        self.name.partition
    }

    /// Records in the batch, those below the position included.
    #[must_use]
    pub fn record_count(&self) -> u32 {
        self.batch.header().records
    }

    /// The batch as it came.
    #[must_use]
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    /// Its size in bytes, as on the wire.
    #[must_use]
    pub fn len(&self) -> usize {
        self.batch.bytes().len()
    }

    /// A batch is never without a header.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Decompress, to walk the records without copying them.
    ///
    /// # Errors
    /// When the records do not decompress.
    pub fn open(&self) -> Result<OpenedBatch> {
        let raw = self
            .batch
            .inflated(&mut Codec::new())
            .map_err(|error| self.unreadable(&error))?;
        Ok(OpenedBatch {
            name: self.name.clone(),
            header: *self.batch.header(),
            raw,
            skip_below: self.skip_below,
            first_offset: self.first_offset,
            last_offset: self.last_offset,
            skip_before_ms: self.skip_before_ms,
            append_time_ms: self.append_time_ms,
        })
    }

    /// All records at or behind the position. Keys and values share the batch's memory.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub fn records(&self) -> Result<Vec<ConsumedRecord>> {
        let opened = self.open()?;
        let mut records = Vec::with_capacity(self.record_count() as usize);
        for record in opened.iter() {
            records.push(opened.share(&record?));
        }
        Ok(records)
    }

    fn unreadable(&self, error: &BatchError) -> Error {
        unreadable(&self.name, self.first_offset, self.last_offset, error)
    }
}

/// A batch whose records are decompressed.
#[derive(Clone, Debug)]
pub struct OpenedBatch {
    name: TopicPartition,
    header: BatchHeader,
    raw: Bytes,
    skip_below: u64,
    first_offset: u64,
    last_offset: u64,
    skip_before_ms: Option<i64>,
    append_time_ms: i64,
}

impl OpenedBatch {
    /// Walk the records at or behind the position, borrowed.
    pub fn iter(&self) -> impl Iterator<Item = Result<Record<'_>>> {
        let mut before_ms = self.skip_before_ms;
        self.header
            .records(&self.raw)
            .filter_map(move |record| match record {
                Ok(record) if (record.offset as u64) < self.skip_below => None,
                Ok(record) if before_ms.is_some_and(|ms| record.timestamp < ms) => None,
                Ok(record) => {
                    before_ms = None;
                    Some(Ok(record))
                }
                Err(error) => Some(Err(unreadable(
                    &self.name,
                    self.first_offset,
                    self.last_offset,
                    &error,
                ))),
            })
    }

    /// A record of this batch, to keep.
    #[must_use]
    pub fn share(&self, record: &Record<'_>) -> ConsumedRecord {
        let bytes = |part: Option<&[u8]>| part.map(|part| self.raw.slice_ref(part));
        ConsumedRecord {
            topic: Arc::clone(&self.name.topic),
            partition: self.name.partition,
            offset: record.offset as u64,
            timestamp_ms: record.timestamp,
            append_time_ms: self.append_time_ms,
            key: bytes(record.key),
            value: bytes(record.value),
            headers: record
                .headers
                .map(|header| Header {
                    name: String::from_utf8_lossy(header.key).into_owned(),
                    value: bytes(header.value),
                })
                .collect(),
        }
    }
}

/// A batch that cannot be read: nobody knows how many records are lost with it, so all of it is passed over.
fn unreadable(name: &TopicPartition, first: u64, last: u64, error: &BatchError) -> Error {
    let message = format!("{name}: the batch of offsets {first} to {last} cannot be read: {error}");
    Error::unreadable(message, last + 1)
}
