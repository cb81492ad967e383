//! Records as an application sees them: on the way in, and on the way out.

use std::sync::Arc;

use bytes::Bytes;

/// A header of a record: a name and a value that may be null.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub name: String,
    pub value: Option<Bytes>,
}

impl Header {
    /// A header with a value.
    pub fn new(name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        Self {
            name: name.into(),
            value: Some(value.into()),
        }
    }
}

/// A record to send, owned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    pub key: Option<Bytes>,
    /// `None` is a null value, which is not the same as an empty one.
    pub value: Option<Bytes>,
    pub headers: Vec<Header>,
    /// Milliseconds since the Unix epoch; the time of sending when not set.
    pub timestamp_ms: Option<i64>,
    /// `None` leaves the choice to the key, or without one to the producer.
    pub partition: Option<u32>,
}

impl Record {
    /// A record of a value alone.
    pub fn new(value: impl Into<Bytes>) -> Self {
        Self {
            value: Some(value.into()),
            ..Self::default()
        }
    }

    /// The same record with a key: records of one key go to one partition, in order.
    #[must_use]
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// The same record with one more header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.headers.push(Header::new(name, value));
        self
    }

    /// The same record for this partition.
    #[must_use]
    pub fn partition(mut self, partition: u32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// The same record with this time, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn timestamp_ms(mut self, timestamp_ms: i64) -> Self {
        self.timestamp_ms = Some(timestamp_ms);
        self
    }
}

/// A record to send, borrowed: it is copied once, into its batch.
#[derive(Clone, Copy, Debug, Default)]
pub struct RecordRef<'a> {
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub headers: &'a [Header],
    /// Milliseconds since the Unix epoch; the time of sending when not set.
    pub timestamp_ms: Option<i64>,
    pub partition: Option<u32>,
}

impl<'a> RecordRef<'a> {
    /// A record of a value alone.
    #[must_use]
    pub fn new(value: &'a [u8]) -> Self {
        Self {
            value: Some(value),
            ..Self::default()
        }
    }
}

impl<'a> From<&'a Record> for RecordRef<'a> {
    fn from(record: &'a Record) -> Self {
        Self {
            key: record.key.as_deref(),
            value: record.value.as_deref(),
            headers: &record.headers,
            timestamp_ms: record.timestamp_ms,
            partition: record.partition,
        }
    }
}

/// Where an acknowledged record is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordMetadata {
    pub topic: Arc<str>,
    pub partition: u32,
    /// `None` when the record was [`filtered`](Self::filtered), or when the broker does not say: a repeated
    /// batch whose offset is forgotten or of a topic with filters, a filtered batch of more than 65,536
    /// records.
    pub offset: Option<u64>,
    /// A filter of the topic dropped it: it is acknowledged, and not stored.
    pub filtered: bool,
    /// When the broker appended it, in milliseconds since the Unix epoch.
    pub append_time_ms: i64,
    /// An earlier try of the same batch had already been stored.
    pub duplicate: bool,
}

/// A record as consumed. Key, value and headers share the memory of the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumedRecord {
    pub topic: Arc<str>,
    pub partition: u32,
    pub offset: u64,
    /// The producer's, in milliseconds since the Unix epoch.
    pub timestamp_ms: i64,
    /// The broker's.
    pub append_time_ms: i64,
    pub key: Option<Bytes>,
    pub value: Option<Bytes>,
    pub headers: Vec<Header>,
}
