//! Where records wait for their batch to fill: the part of a producer that its callers touch.
//!
//! One short lock for all callers. A record is encoded once, straight into its batch's memory; what is
//! full goes over to the driver whole. Memory is bounded by what the caller is told to wait for.
//! Deliberately absent: sequences and sending (see `lanes` and `driver`), and clocks.

mod topics;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use millstream_batch::limits::TOPIC_PARTITIONS_MAX;
use millstream_batch::{AppendError, Batch, BatchBuilder, Encoding};

use super::alone;
use super::delivery::Completion;
use super::lanes::LaneId;
use crate::error::{Error, Result};
use crate::record::RecordRef;
use topics::Topics;
pub(super) use topics::{Known, Target, TopicIndex};

/// What a record costs in memory beside its key, value and headers.
const RECORD_OVERHEAD_BYTES: usize = 24;
/// Builders kept for the next batches.
const SPARE_BUILDERS_MAX: usize = 16;

/// What a record costs of the memory bound, in bytes.
pub(super) fn cost(record: &RecordRef<'_>) -> usize {
    let headers = record.headers.iter();
    RECORD_OVERHEAD_BYTES
        + record.key.map_or(0, <[u8]>::len)
        + record.value.map_or(0, <[u8]>::len)
        + headers
            .map(|h| h.name.len() + h.value.as_ref().map_or(0, |v| v.len()))
            .sum::<usize>()
}

/// Settings that shape batches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) encoding: Encoding,
    /// Size at which a batch is full, before compression.
    pub(super) batch_bytes: usize,
    /// The largest batch that the broker takes.
    pub(super) batch_bytes_max: usize,
    pub(super) batch_records: u32,
    pub(super) buffer_bytes: usize,
    pub(super) linger: Duration,
    pub(super) delivery_timeout: Duration,
    /// Where the turns of records without a key begin.
    pub(super) first_partition: u32,
}

/// A batch on its way to the driver.
#[derive(Debug)]
pub(super) struct Gathered {
    pub(super) lane: LaneId,
    pub(super) content: Content,
    pub(super) ticket: Ticket,
    pub(super) deadline: Instant,
}

#[derive(Debug)]
pub(super) enum Content {
    /// To be built (checksum, compression) outside the lock.
    Records(Box<BatchBuilder>),
    /// Given whole by the caller.
    Whole(Batch),
}

/// What is settled when a batch is.
#[derive(Clone, Debug)]
pub(super) struct Ticket {
    pub(super) id: u64,
    pub(super) completion: Arc<Completion>,
    /// Bytes that it holds of the memory bound.
    pub(super) charged: usize,
    pub(super) records: u32,
}

#[derive(Debug)]
struct Open {
    id: u64,
    builder: Box<BatchBuilder>,
    completion: Arc<Completion>,
    charged: usize,
    opened: Instant,
}

/// What became of a record.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is this record of the lane's open batch.
    At { lane: LaneId, index: u32 },
    /// It is over the size of a batch and makes one of its own: build that, then `append_alone`. Nothing
    /// was taken.
    Alone,
    /// The memory bound is reached; nothing was taken.
    Full,
}

#[derive(Debug)]
pub(super) struct Gathering {
    shape: Shape,
    topics: Topics,
    /// The open batch of each lane.
    open: Vec<Option<Open>>,
    /// Lanes with an open batch, oldest first. Entries of batches that are sealed already are skipped.
    opened: VecDeque<(LaneId, u64)>,
    sealed: Vec<Gathered>,
    #[expect(
        clippy::vec_box,
        reason = "a builder is large and moves boxed between here and the driver"
    )]
    spare: Vec<Box<BatchBuilder>>,
    /// Batches given out and not settled, with their topics.
    outstanding: BTreeMap<u64, TopicIndex>,
    next_id: u64,
    used: usize,
    /// What the last record that found no room needs.
    wanted: usize,
    /// Somebody waits for memory.
    pub(super) starved: bool,
    /// The driver sleeps and wants to be woken when a batch is opened.
    pub(super) wake_on_open: bool,
    /// The driver sleeps and wants to be woken when a batch is sealed.
    pub(super) wake_on_seal: bool,
    /// Everything open is to go out now, until this batch is settled.
    pub(super) flush_up_to: u64,
    pub(super) closing: bool,
    /// The producer is done for, with why.
    pub(super) failed: Option<Error>,
}

impl Gathering {
    pub(super) fn new(shape: Shape) -> Self {
        Self {
            shape,
            topics: Topics::new(shape.first_partition),
            open: Vec::new(),
            opened: VecDeque::new(),
            sealed: Vec::new(),
            spare: Vec::new(),
            outstanding: BTreeMap::new(),
            next_id: 1,
            used: 0,
            wanted: 0,
            starved: false,
            wake_on_open: false,
            wake_on_seal: false,
            flush_up_to: 0,
            closing: false,
            failed: None,
        }
    }

    pub(super) fn topic(&self, name: &str) -> Option<TopicIndex> {
        self.topics.find(name)
    }

    pub(super) fn topic_name(&self, topic: TopicIndex) -> &Arc<str> {
        self.topics.name(topic)
    }

    pub(super) fn partitions(&self, topic: TopicIndex) -> u32 {
        self.topics.partitions(topic)
    }

    /// Size at which a topic's batches are full, before compression: what was asked for, or less where the
    /// topic takes less.
    pub(super) fn batch_bytes(&self, topic: TopicIndex) -> usize {
        self.shape
            .batch_bytes
            .min(self.topics.batch_bytes_max(topic))
    }

    /// Learn of a topic, or that it has more partitions, another bound or another id than was known.
    pub(super) fn learn(&mut self, name: &str, known: &Known) -> TopicIndex {
        let topic = self.topics.learn(name, known);
        self.grow(topic, known.partitions);
        topic
    }

    /// A topic has so many partitions now. Keys have other partitions from here on, so what was taken
    /// before goes out and is settled before anything that is taken later is sent: the records of a key
    /// stay in order, one after the other, wherever they are.
    pub(super) fn grow(&mut self, topic: TopicIndex, partitions: u32) {
        let partitions = partitions.min(TOPIC_PARTITIONS_MAX);
        if partitions <= self.topics.partitions(topic) || !self.topics.may_grow(topic, partitions) {
            return;
        }
        for lane in self.topics.lanes_of(topic) {
            self.seal(lane);
        }
        let before = self.outstanding.iter().filter(|(_, of)| **of == topic);
        let unsettled = before.count();
        self.topics
            .grow(topic, partitions, self.newest_id(), unsettled);
        self.open.resize_with(self.topics.lanes(), || None);
    }

    /// Forget a name, so that the next look-up asks the broker. Handles to the topic stay usable.
    pub(super) fn forget(&mut self, lane: LaneId) {
        self.topics.forget(lane);
    }

    /// The topic of a lane.
    pub(super) fn topic_of(&self, lane: LaneId) -> TopicIndex {
        self.topics.place(lane).0
    }

    pub(super) fn target(&self, lane: LaneId) -> Target {
        self.topics.target(lane)
    }

    /// Put a record into its batch.
    pub(super) fn append(
        &mut self,
        topic: TopicIndex,
        record: &RecordRef<'_>,
        now_ms: i64,
        now: Instant,
    ) -> Result<Taken> {
        self.check_open()?;
        let size = cost(record);
        if !self.has_room(size) {
            self.wanted = size;
            return Ok(Taken::Full);
        }
        let timestamp = record.timestamp_ms.unwrap_or(now_ms);
        loop {
            let lane = self.topics.lane_of(topic, record)?;
            let open = self.open(lane, now);
            let headers = record
                .headers
                .iter()
                .map(|header| (header.name.as_str(), header.value.as_deref()));
            match open
                .builder
                .append(record.key, record.value, headers, timestamp)
            {
                Ok(index) => {
                    open.charged += size;
                    let full = open.builder.records() >= self.shape.batch_records;
                    self.used += size;
                    if full {
                        self.seal(lane);
                    }
                    return Ok(Taken::At { lane, index });
                }
                // A record of another time than the batch may also ask for a batch of its own. Without
                // a key, the next round is with the next partition.
                Err(AppendError::Full | AppendError::TimestampRange { .. })
                    if !open.builder.is_empty() =>
                {
                    self.seal(lane);
                }
                Err(error) => {
                    if open.builder.is_empty() {
                        self.abandon(lane);
                    }
                    return match error {
                        AppendError::RecordTooLarge { .. } => Ok(Taken::Alone),
                        error => Err(Error::batch(error.to_string())),
                    };
                }
            }
        }
    }

    /// Take a batch whole. `None`: the memory bound is reached.
    pub(super) fn append_batch(
        &mut self,
        topic: TopicIndex,
        partition: u32,
        batch: &Batch,
        now: Instant,
    ) -> Result<Option<Arc<Completion>>> {
        self.check_open()?;
        let lane = self.topics.lane(topic, partition)?;
        self.append_whole(lane, batch, now)
    }

    /// Take the batch of a record that [`append`](Self::append) sent away as too large. `None`: the memory
    /// bound is reached.
    pub(super) fn append_alone(
        &mut self,
        topic: TopicIndex,
        record: &RecordRef<'_>,
        batch: &Batch,
        now: Instant,
    ) -> Result<Option<Arc<Completion>>> {
        self.check_open()?;
        let lane = self.topics.lane_of(topic, record)?;
        // What is sealed moves records without a key on; a batch of its own does too.
        let moves_on = self.open[lane].is_none();
        let completion = self.append_whole(lane, batch, now)?;
        if completion.is_some() && moves_on {
            self.topics.advance(lane);
        }
        Ok(completion)
    }

    fn append_whole(
        &mut self,
        lane: LaneId,
        batch: &Batch,
        now: Instant,
    ) -> Result<Option<Arc<Completion>>> {
        let charged = batch.bytes().len();
        if charged > self.shape.batch_bytes_max {
            return Err(alone::too_large(batch, self.shape.batch_bytes_max));
        }
        if !self.has_room(charged) {
            self.wanted = charged;
            return Ok(None);
        }
        // Records that came before in this partition go out before.
        self.seal(lane);
        let (topic, partition) = self.topics.place(lane);
        let name = Arc::clone(self.topics.name(topic));
        let completion = Arc::new(Completion::new(name, partition));
        let id = self.next_id(topic);
        self.used += charged;
        let records = batch.header().records;
        let ticket = Ticket {
            id,
            completion: Arc::clone(&completion),
            charged,
            records,
        };
        let deadline = now + self.shape.delivery_timeout;
        self.sealed.push(Gathered {
            lane,
            content: Content::Whole(batch.clone()),
            ticket,
            deadline,
        });
        Ok(Some(completion))
    }

    /// The outcome of the lane's newest batch: call it under the lock that `append` was called under.
    pub(super) fn newest(&self, lane: LaneId) -> Option<Arc<Completion>> {
        match &self.open[lane] {
            Some(open) => Some(Arc::clone(&open.completion)),
            None => self
                .sealed
                .iter()
                .rev()
                .find(|gathered| gathered.lane == lane)
                .map(|gathered| Arc::clone(&gathered.ticket.completion)),
        }
    }

    /// Seal what has lingered, or with `all` everything.
    pub(super) fn seal_due(&mut self, now: Instant, all: bool) {
        while let Some(&(lane, id)) = self.opened.front() {
            let open = self.open[lane].as_ref().filter(|open| open.id == id);
            if open.is_some_and(|open| !all && open.opened + self.shape.linger > now) {
                break;
            }
            let is_open = open.is_some();
            self.opened.pop_front();
            if is_open {
                self.seal(lane);
            }
        }
    }

    /// When the oldest open batch has lingered.
    pub(super) fn next_due(&mut self) -> Option<Instant> {
        while let Some(&(lane, id)) = self.opened.front() {
            if let Some(open) = self.open[lane].as_ref().filter(|open| open.id == id) {
                return Some(open.opened + self.shape.linger);
            }
            self.opened.pop_front();
        }
        None
    }

    /// Hand what is sealed to the driver, except what has to wait for its topic's growth. A producer
    /// that is done for lets go of all.
    pub(super) fn take_sealed(&mut self, into: &mut Vec<Gathered>) {
        if self.failed.is_some() || !self.topics.any_growing() {
            into.append(&mut self.sealed);
            return;
        }
        for gathered in std::mem::take(&mut self.sealed) {
            let (topic, _) = self.topics.place(gathered.lane);
            if self.topics.waits(topic, gathered.ticket.id) {
                self.sealed.push(gathered);
            } else {
                into.push(gathered);
            }
        }
    }

    /// Whether the driver is to be woken now; says so once.
    pub(super) fn wakes(&mut self) -> bool {
        let wake = self.wake_on_seal && !self.sealed.is_empty()
            || self.wake_on_open && !self.opened.is_empty();
        if wake {
            self.wake_on_open = false;
            self.wake_on_seal = false;
        }
        wake
    }

    /// A builder back from the driver.
    pub(super) fn recycle(&mut self, builder: Box<BatchBuilder>) {
        if self.spare.len() < SPARE_BUILDERS_MAX && builder.is_empty() {
            self.spare.push(builder);
        }
    }

    /// A batch is settled: its memory is free.
    pub(super) fn settled(&mut self, ticket: &Ticket) {
        self.used -= ticket.charged;
        if let Some(topic) = self.outstanding.remove(&ticket.id)
            && let Some(partitions) = self.topics.settled(topic, ticket.id)
        {
            self.grow(topic, partitions);
        }
    }

    /// Whether every batch given out is settled.
    pub(super) fn is_idle(&self) -> bool {
        self.outstanding.is_empty()
    }

    /// The newest batch given out so far; 0 when there was none.
    pub(super) fn newest_id(&self) -> u64 {
        self.next_id - 1
    }

    /// Whether every batch up to `id` is settled.
    pub(super) fn is_settled(&self, id: u64) -> bool {
        self.outstanding
            .first_key_value()
            .is_none_or(|(&oldest, _)| oldest > id)
    }

    /// Memory in use, in bytes.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    fn check_open(&self) -> Result<()> {
        match &self.failed {
            Some(error) => Err(error.clone()),
            None if self.closing => Err(Error::closed("producer")),
            None => Ok(()),
        }
    }

    /// A record larger than the whole bound may go alone.
    fn has_room(&self, bytes: usize) -> bool {
        self.used == 0 || self.used + bytes <= self.shape.buffer_bytes
    }

    /// Whether those who wait for `bytes` may go on: only when there is room for many, so that a full
    /// buffer does not wake its callers for every batch.
    pub(super) fn has_ample_room(&self, bytes: usize) -> bool {
        self.has_room(bytes.max(self.wanted).max(self.shape.buffer_bytes / 8))
    }

    fn next_id(&mut self, topic: TopicIndex) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.outstanding.insert(id, topic);
        id
    }

    fn open(&mut self, lane: LaneId, now: Instant) -> &mut Open {
        if self.open[lane].is_none() {
            let (topic, partition) = self.topics.place(lane);
            let batch_bytes = self.batch_bytes(topic);
            let mut builder = self
                .spare
                .pop()
                .unwrap_or_else(|| Box::new(BatchBuilder::new(self.shape.encoding, batch_bytes)));
            builder.set_bytes_max(batch_bytes);
            let name = Arc::clone(self.topics.name(topic));
            let completion = Arc::new(Completion::new(name, partition));
            let id = self.next_id(topic);
            self.opened.push_back((lane, id));
            self.open[lane] = Some(Open {
                id,
                builder,
                completion,
                charged: 0,
                opened: now,
            });
        }
        self.open[lane].as_mut().expect("it was just opened")
    }

    fn seal(&mut self, lane: LaneId) {
        let Some(open) = self.open[lane].take() else {
            return;
        };
        let Open {
            id,
            builder,
            completion,
            charged,
            opened,
        } = open;
        let ticket = Ticket {
            id,
            completion,
            charged,
            records: builder.records(),
        };
        let deadline = opened + self.shape.delivery_timeout;
        self.sealed.push(Gathered {
            lane,
            content: Content::Records(builder),
            ticket,
            deadline,
        });
        self.topics.advance(lane);
        if self.opened.front() == Some(&(lane, id)) {
            self.opened.pop_front();
        }
    }

    /// An open batch that got no record.
    fn abandon(&mut self, lane: LaneId) {
        if let Some(open) = self.open[lane].take() {
            self.outstanding.remove(&open.id);
            self.recycle(open.builder);
        }
    }
}

#[cfg(test)]
mod tests;
