//! The Rust client of Millstream: produce, consume and administer over QUIC.
//!
//! ```no_run
//! use millstream_client::{Client, Record};
//!
//! # async fn example() -> millstream_client::Result<()> {
//! let client = Client::from_context(None).await?;
//! let producer = client.producer().build().await?;
//! let stored = producer.send("orders", Record::new("hello").key("customer-7")).await?;
//! println!("durable at {:?}", stored.offset);
//!
//! let mut consumer = client.consumer().group("billing").topic("orders").build().await?;
//! while let Some(record) = consumer.next().await {
//!     println!("{:?}", record?.value);
//! }
//! # Ok(()) }
//! ```
//!
//! - [`Client`] is one broker; its [`Context`] says where and with which certificates.
//! - [`Producer`] is idempotent; a send resolves when the record is durable.
//! - [`Consumer`] reads partitions of its choice, or those that its group gives it.
//! - [`Admin`] asks everything else.
//! - [`Error`] says who erred, whether to retry and what to do.
//!
//! Deliberately absent: transactions and queues.

mod admin;
mod backoff;
mod client;
mod connection;
mod consumer;
mod context;
mod contexts;
mod error;
mod producer;
mod record;
mod transport;

pub use admin::{
    Admin, FilterSpec, GroupDescription, GroupList, GroupMember, GroupOffset, GroupSummary,
    OffsetSpec, PartitionInfo, ResetOptions, TopicDescription,
};
pub use client::{BrokerInfo, Client, ClientBuilder};
pub use connection::Connections;
pub use consumer::{
    CommitFailure, Consumer, ConsumerBuilder, ConsumerEvent, FetchedBatch, OnLost, OnTruncation,
    OpenedBatch, StartAt, TopicPartition,
};
pub use context::{
    CONTEXT_FILE, CONTEXT_VARIABLE, Context, DEFAULT_PORT, DEV_DIRECTORY, Origins, TOKEN_VARIABLE,
};
pub use contexts::{Contexts, locate};
pub use error::{Error, Kind as ErrorKind, Result};
/// Batches, for those who build or read them whole.
pub use millstream_batch as batch;
/// The broker's error codes.
pub use millstream_protocol::Code;
pub use producer::{
    Compression, Deliveries, Delivery, Enqueued, Producer, ProducerBuilder, Report, Topic,
    partition_of_key,
};
/// What a connection ended with: the [`source`](std::error::Error::source) of an [`Error`].
pub use quinn::ConnectionError;
pub use record::{ConsumedRecord, Header, Record, RecordMetadata, RecordRef};

/// The programs of the pages compile.
#[doc = include_str!("../README.md")]
#[doc = include_str!("../../../README.md")]
#[cfg(doctest)]
#[derive(Debug)]
pub struct Pages;
