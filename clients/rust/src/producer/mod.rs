//! Producing: records in, durable acknowledgements out.
//!
//! ```text
//!  callers ──append──▶ gather (one short lock) ──full or lingered──▶ driver ──▶ one QUIC stream
//!     ▲                                                                │  lanes: order, sequences
//!     └──────────── Delivery (one completion a batch) ◀────────────────┘
//! ```
//!
//! Idempotent by default: batches carry (producer id, epoch, sequence), so what is repeated after a
//! lost answer or connection is stored once. One deadline bounds every record, from the moment it was
//! taken; there are no retry counts. Deliberately absent: transactions.

mod alone;
mod builder;
mod delivery;
mod driver;
mod gather;
mod identity;
mod lanes;
mod partitioner;
mod refusals;
mod shared;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use millstream_batch::Batch;
use millstream_protocol::Kind;
use millstream_protocol::messages::{DescribeTopicRequest, DescribeTopicResponse};

pub use builder::{Compression, ProducerBuilder};
pub use delivery::{Deliveries, Delivery};
pub use partitioner::partition_of_key;

use crate::connection::{Link, Repeat};
use crate::error::{Error, Result};
use crate::record::{Record, RecordMetadata, RecordRef};
use alone::Alone;
use delivery::Completion;
use gather::{Known, Taken, TopicIndex};
use shared::Shared;

/// The topic's setting for the largest batch.
const MAX_MESSAGE_BYTES: &str = "max.message.bytes";

/// Sends records. Cheap to clone; usable from any thread. Dropping the last handle sends what was
/// enqueued in the background; [`close`](Self::close) waits for it.
#[derive(Clone, Debug)]
pub struct Producer {
    core: Arc<Core>,
}

#[derive(Debug)]
struct Core {
    shared: Arc<Shared>,
    link: Arc<Link>,
    alone: Alone,
    lookup_timeout: Duration,
    driver: tokio::sync::Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl Drop for Core {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.wake.notify_one();
    }
}

/// What a producer has done so far.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Records that the broker has acknowledged.
    pub acknowledged: u64,
    /// Of those, records that an earlier try had already stored.
    pub duplicates: u64,
    /// Of those acknowledged, records that the topic's filters dropped.
    pub filtered: u64,
    /// Records given up.
    pub failed: u64,
    /// Of those, records that may have been stored all the same.
    pub unknown: u64,
    /// Batches acknowledged, and their bytes.
    pub batches: u64,
    pub bytes: u64,
    /// The first failure, when there was one.
    pub first_error: Option<Error>,
}

/// What became of a slice of records.
#[derive(Debug)]
pub struct Enqueued {
    /// Records taken, from the front of the slice.
    pub taken: usize,
    /// Why the record after those was refused. `None` with fewer taken than given: the memory bound is
    /// reached, see [`Producer::room`].
    pub refused: Option<Error>,
}

impl Producer {
    /// A handle for sending many records to one topic.
    ///
    /// # Errors
    /// When the topic does not exist or the broker cannot be reached.
    pub async fn topic(&self, name: &str) -> Result<Topic> {
        let known = self.core.shared.lock().topic(name);
        let index = match known {
            Some(index) => index,
            None => self.look_up(name).await?,
        };
        Ok(Topic {
            core: Arc::clone(&self.core),
            index,
        })
    }

    /// Send one record and wait until it is acknowledged. Many calls at once share batches.
    ///
    /// # Errors
    /// When the record cannot be taken or was not acknowledged before its deadline.
    pub async fn send(&self, topic: &str, record: Record) -> Result<RecordMetadata> {
        self.enqueue(topic, record).await?.await
    }

    /// Take one record, waiting for memory if need be, and go on: the [`Delivery`] resolves on the
    /// acknowledgement.
    ///
    /// # Errors
    /// When the record cannot be taken.
    pub async fn enqueue(&self, topic: &str, record: Record) -> Result<Delivery> {
        self.topic(topic)
            .await?
            .enqueue(RecordRef::from(&record))
            .await
    }

    /// Wait until an eighth of the memory is free.
    ///
    /// # Errors
    /// When the producer is closed or cannot go on.
    pub async fn room(&self) -> Result<()> {
        self.core.room(1).await
    }

    /// Send everything enqueued so far without lingering, and wait until each record is acknowledged
    /// or has failed.
    ///
    /// # Errors
    /// When the producer cannot go on. Failures of records are theirs, and in [`report`](Self::report).
    pub async fn flush(&self) -> Result<()> {
        self.core.flush().await
    }

    /// Totals so far.
    #[must_use]
    pub fn report(&self) -> Report {
        let counters = &self.core.shared.counters;
        Report {
            acknowledged: counters.acknowledged.load(Ordering::Relaxed),
            duplicates: counters.duplicates.load(Ordering::Relaxed),
            filtered: counters.filtered.load(Ordering::Relaxed),
            failed: counters.failed.load(Ordering::Relaxed),
            unknown: counters.unknown.load(Ordering::Relaxed),
            batches: counters.batches.load(Ordering::Relaxed),
            bytes: counters.bytes.load(Ordering::Relaxed),
            first_error: counters
                .first_error
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .clone(),
        }
    }

    /// Memory in use for records not yet acknowledged, in bytes.
    #[must_use]
    pub fn buffered_bytes(&self) -> usize {
        self.core.shared.lock().used()
    }

    /// Take nothing more, settle everything and let the stream go.
    ///
    /// # Errors
    /// The first failure of a record, if there was one; [`report`](Self::report) has the numbers.
    pub async fn close(self) -> Result<Report> {
        self.core.shared.lock().closing = true;
        self.core.shared.wake.notify_one();
        if let Some(driver) = self.core.driver.lock().await.take() {
            let _ = driver.await;
        }
        let report = self.report();
        match &report.first_error {
            Some(error) => Err(error.clone()),
            None => Ok(report),
        }
    }

    async fn look_up(&self, name: &str) -> Result<TopicIndex> {
        let request = DescribeTopicRequest {
            name: name.to_owned(),
            partitions: false,
            from_partition: 0,
        };
        let deadline = tokio::time::Instant::now() + self.core.lookup_timeout;
        let answer: DescribeTopicResponse = self
            .core
            .link
            .request(
                Kind::DescribeTopic,
                &request,
                Bytes::new(),
                Repeat::Safe,
                deadline,
            )
            .await?;
        let topic = answer
            .topic
            .ok_or_else(|| Error::protocol("a topic was described without its description"))?;
        if topic.partitions == 0 {
            return Err(Error::protocol(format!("topic `{name}` has no partitions")));
        }
        let known = Known {
            filtered: topic.filters.iter().any(|filter| filter.stage == "produce"),
            batch_bytes_max: topic
                .config
                .iter()
                .find(|setting| setting.key == MAX_MESSAGE_BYTES)
                .and_then(|setting| setting.value.as_ref()?.parse().ok()),
            partitions: topic.partitions,
            id: topic.id,
        };
        Ok(self.core.shared.lock().learn(name, &known))
    }
}

/// One topic of a producer. Cheap to clone; usable from any thread.
#[derive(Clone, Debug)]
pub struct Topic {
    core: Arc<Core>,
    index: TopicIndex,
}

impl Topic {
    /// The topic's name.
    #[must_use]
    pub fn name(&self) -> Arc<str> {
        Arc::clone(self.core.shared.lock().topic_name(self.index))
    }

    /// Number of its partitions, as the broker last said it: at the look-up, or with an acknowledgement.
    #[must_use]
    pub fn partitions(&self) -> u32 {
        self.core.shared.lock().partitions(self.index)
    }

    /// Size at which its batches are full, before compression, in bytes: [`ProducerBuilder::batch_bytes`], or
    /// less where the topic's `max.message.bytes` is less, as of the look-up.
    #[must_use]
    pub fn batch_bytes(&self) -> usize {
        self.core.shared.lock().batch_bytes(self.index)
    }

    /// Take one record, waiting for memory if need be.
    ///
    /// # Errors
    /// When the record cannot be taken: too large, no such partition, producer closed.
    pub async fn enqueue(&self, record: RecordRef<'_>) -> Result<Delivery> {
        loop {
            match self.try_enqueue(record)? {
                Some(delivery) => return Ok(delivery),
                None => self.core.room(gather::cost(&record)).await?,
            }
        }
    }

    /// Take one record if there is memory for it now.
    ///
    /// # Errors
    /// As [`enqueue`](Self::enqueue).
    pub fn try_enqueue(&self, record: RecordRef<'_>) -> Result<Option<Delivery>> {
        let (now, now_ms) = (Instant::now(), now_ms());
        let (taken, wake) = {
            let mut gathering = self.core.shared.lock();
            let taken = match gathering.append(self.index, &record, now_ms, now)? {
                Taken::At { lane, index } => gathering
                    .newest(lane)
                    .map(|completion| Delivery::new(completion, index)),
                Taken::Full => None,
                Taken::Alone => {
                    drop(gathering);
                    let completion = self.append_alone(&record, now_ms, now)?;
                    return Ok(completion.map(|completion| Delivery::new(completion, 0)));
                }
            };
            (taken, gathering.wakes())
        };
        if wake {
            self.core.shared.wake.notify_one();
        }
        Ok(taken)
    }

    /// Take as many records as there is memory for, without a future each: outcomes are in
    /// [`Producer::report`]. The fastest way in.
    #[must_use]
    pub fn try_enqueue_all(&self, records: &[RecordRef<'_>]) -> Enqueued {
        self.enqueue_slice(records, |_, _, _| {})
    }

    /// The same, with the outcomes of the records taken, in their order: one [`Deliveries`] for each stretch of
    /// them that went into one batch.
    #[must_use]
    pub fn try_enqueue_tracked(
        &self,
        records: &[RecordRef<'_>],
        deliveries: &mut Vec<Deliveries>,
    ) -> Enqueued {
        let mut last_lane = None;
        self.enqueue_slice(records, |lane, index, completion| {
            match deliveries.last_mut() {
                // Index 0 begins another batch, even of the same partition.
                Some(last) if last_lane == lane && lane.is_some() && last.next() == index => {
                    last.extend();
                }
                _ => {
                    deliveries
                        .extend(completion().map(|completion| Deliveries::new(completion, index)));
                }
            }
            last_lane = lane;
        })
    }

    /// Calls `taken` for each record taken, under the lock: with its lane (`None`: it has a batch of its own),
    /// its place in the batch, and a way to the batch's outcome.
    fn enqueue_slice(
        &self,
        records: &[RecordRef<'_>],
        mut taken: impl FnMut(Option<usize>, u32, &dyn Fn() -> Option<Arc<Completion>>),
    ) -> Enqueued {
        let (now, now_ms) = (Instant::now(), now_ms());
        let mut enqueued = Enqueued {
            taken: 0,
            refused: None,
        };
        let mut gathering = self.core.shared.lock();
        for record in records {
            match gathering.append(self.index, record, now_ms, now) {
                Ok(Taken::At { lane, index }) => {
                    taken(Some(lane), index, &|| gathering.newest(lane));
                }
                Ok(Taken::Alone) => {
                    drop(gathering);
                    let outcome = self.append_alone(record, now_ms, now);
                    gathering = self.core.shared.lock();
                    match outcome {
                        Ok(Some(completion)) => taken(None, 0, &|| Some(Arc::clone(&completion))),
                        Ok(None) => break,
                        Err(error) => {
                            enqueued.refused = Some(error);
                            break;
                        }
                    }
                }
                Ok(Taken::Full) => break,
                Err(error) => {
                    enqueued.refused = Some(error);
                    break;
                }
            }
            enqueued.taken += 1;
        }
        let wake = gathering.wakes();
        drop(gathering);
        if wake {
            self.core.shared.wake.notify_one();
        }
        enqueued
    }

    /// A record in a batch of its own. `None`: the memory bound is reached.
    fn append_alone(
        &self,
        record: &RecordRef<'_>,
        now_ms: i64,
        now: Instant,
    ) -> Result<Option<Arc<Completion>>> {
        let batch = self.core.alone.build(record, now_ms)?;
        let mut gathering = self.core.shared.lock();
        let completion = gathering.append_alone(self.index, record, &batch, now)?;
        if gathering.wakes() {
            self.core.shared.wake.notify_one();
        }
        Ok(completion)
    }

    /// Send a batch as it is, waiting for memory if need be. The delivery is that of its first record.
    ///
    /// # Errors
    /// When it cannot be taken.
    pub async fn enqueue_batch(&self, partition: u32, batch: &Batch) -> Result<Delivery> {
        loop {
            let taken = {
                let mut gathering = self.core.shared.lock();
                let taken = gathering.append_batch(self.index, partition, batch, Instant::now())?;
                if gathering.wakes() {
                    self.core.shared.wake.notify_one();
                }
                taken
            };
            match taken {
                Some(completion) => return Ok(Delivery::new(completion, 0)),
                None => self.core.room(batch.bytes().len()).await?,
            }
        }
    }

    /// Send one record and wait until it is acknowledged.
    ///
    /// # Errors
    /// When the record cannot be taken or was not acknowledged before its deadline.
    pub async fn send(&self, record: RecordRef<'_>) -> Result<RecordMetadata> {
        self.enqueue(record).await?.await
    }
}

impl Core {
    async fn room(&self, bytes: usize) -> Result<()> {
        loop {
            let mut woken = std::pin::pin!(self.shared.room.notified());
            woken.as_mut().enable();
            {
                let mut gathering = self.shared.lock();
                if let Some(error) = &gathering.failed {
                    return Err(error.clone());
                }
                if gathering.closing {
                    return Err(Error::closed("producer"));
                }
                if gathering.has_ample_room(bytes) {
                    return Ok(());
                }
                // Something is under way, or the driver would have sent what is open: an answer comes.
                gathering.starved = true;
            }
            woken.await;
        }
    }

    async fn flush(&self) -> Result<()> {
        let up_to = {
            let mut gathering = self.shared.lock();
            gathering.flush_up_to = gathering.newest_id();
            gathering.flush_up_to
        };
        self.shared.wake.notify_one();
        loop {
            let mut woken = std::pin::pin!(self.shared.settled.notified());
            woken.as_mut().enable();
            {
                let gathering = self.shared.lock();
                if let Some(error) = &gathering.failed {
                    return Err(error.clone());
                }
                if gathering.is_settled(up_to) {
                    return Ok(());
                }
            }
            woken.await;
        }
    }
}

fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as i64)
}
