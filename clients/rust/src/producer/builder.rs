//! The settings of a producer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use millstream_batch::Encoding;
use millstream_batch::limits::BATCH_BYTES_MAX;

use super::alone::Alone;
use super::driver::Driver;
use super::gather::{Gathering, Shape};
use super::identity::identify;
use super::shared::Shared;
use super::{Core, Producer};
use crate::connection::Link;
use crate::error::{Error, Result};

/// How batches are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    #[default]
    None,
    Lz4,
    Zstd,
}

/// Settings of a producer. Every setting has a default that suits most.
#[derive(Clone, Debug)]
pub struct ProducerBuilder {
    pub(crate) link: Arc<Link>,
    linger: Duration,
    batch_bytes: usize,
    batch_records: u32,
    buffer_bytes: usize,
    in_flight: usize,
    compression: Compression,
    delivery_timeout: Duration,
    idempotent: bool,
}

impl ProducerBuilder {
    pub(crate) fn new(link: Arc<Link>) -> Self {
        Self {
            link,
            linger: Duration::from_millis(2),
            batch_bytes: 128 << 10,
            batch_records: u32::MAX,
            buffer_bytes: 64 << 20,
            in_flight: 32,
            compression: Compression::None,
            delivery_timeout: Duration::from_secs(120),
            idempotent: true,
        }
    }

    /// How long a batch waits for more records while others are under way; with nothing under way it
    /// goes at once. Default 2 ms.
    #[must_use]
    pub fn linger(mut self, linger: Duration) -> Self {
        self.linger = linger;
        self
    }

    /// Size at which a batch is full, before compression, in bytes. A larger record makes a batch of its own,
    /// up to the topic's `max.message.bytes`. Default 128 KiB, at most what the broker takes (8 MiB).
    #[must_use]
    pub fn batch_bytes(mut self, bytes: usize) -> Self {
        self.batch_bytes = bytes;
        self
    }

    /// Number of records at which a batch is full. Default: no bound but the size.
    #[must_use]
    pub fn batch_records(mut self, records: u32) -> Self {
        self.batch_records = records.max(1);
        self
    }

    /// Memory for records that are not acknowledged yet, in bytes. When it is used up, enqueueing
    /// waits. Default 64 MiB.
    #[must_use]
    pub fn buffer_bytes(mut self, bytes: usize) -> Self {
        self.buffer_bytes = bytes;
        self
    }

    /// Batches sent and not yet answered. Default 32; the broker may allow less.
    #[must_use]
    pub fn in_flight(mut self, batches: usize) -> Self {
        self.in_flight = batches.max(1);
        self
    }

    /// Default: none.
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// From when a record was taken until it is acknowledged or fails; retries included. Default 2
    /// minutes.
    #[must_use]
    pub fn delivery_timeout(mut self, timeout: Duration) -> Self {
        self.delivery_timeout = timeout;
        self
    }

    /// Without idempotence, what is sent again after a lost answer may be stored twice, and order may
    /// change around a refusal. Default `true`.
    #[must_use]
    pub fn idempotent(mut self, idempotent: bool) -> Self {
        self.idempotent = idempotent;
        self
    }

    /// Connect if needed, and get an identity.
    ///
    /// # Errors
    /// When the broker cannot be reached within the delivery timeout (at most 30 s), or refuses; when
    /// [`batch_bytes`](Self::batch_bytes) is over what it takes.
    pub async fn build(self) -> Result<Producer> {
        let deadline = Instant::now() + self.delivery_timeout.min(Duration::from_secs(30));
        let identity = identify(&self.link, self.idempotent, deadline).await?;
        let session = self.link.session(deadline.into()).await?;
        let broker_max = match session.hello.batch_bytes_max as usize {
            0 => BATCH_BYTES_MAX,
            max => max.min(BATCH_BYTES_MAX),
        };
        if self.batch_bytes > broker_max {
            return Err(Error::usage_hint(
                format!(
                    "a batch size of {} bytes is over the {broker_max} that the broker takes",
                    self.batch_bytes
                ),
                "Choose a smaller one (`--batch-bytes`, `ProducerBuilder::batch_bytes`).",
            ));
        }
        let encoding = match self.compression {
            Compression::None => Encoding::None,
            Compression::Lz4 => Encoding::Lz4,
            Compression::Zstd => Encoding::Zstd,
        };
        let shape = Shape {
            encoding,
            batch_bytes: self.batch_bytes,
            batch_bytes_max: broker_max,
            batch_records: self.batch_records,
            buffer_bytes: self.buffer_bytes,
            linger: self.linger,
            delivery_timeout: self.delivery_timeout,
            first_partition: identity.pid as u32,
        };
        let shared = Arc::new(Shared::new(Gathering::new(shape)));
        let driver = Driver::new(
            Arc::clone(&shared),
            Arc::clone(&self.link),
            identity,
            self.in_flight,
            self.linger,
        );
        let driver = tokio::spawn(driver.run());
        let lookup_timeout = self.delivery_timeout;
        let core = Core {
            shared,
            link: self.link,
            alone: Alone {
                encoding,
                batch_bytes_max: broker_max,
            },
            lookup_timeout,
            driver: tokio::sync::Mutex::new(Some(driver)),
        };
        Ok(Producer {
            core: Arc::new(core),
        })
    }
}
