//! Where records wait for their batch to fill: the part of a producer that its callers touch.
//!
//! One short lock for all callers. A record is encoded once, straight into its batch's memory; what is
//! full goes over to the driver whole. Memory is bounded by what the caller is told to wait for.
//! Deliberately absent: sequences and sending (see `lanes` and `driver`), and clocks.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use millstream_batch::{AppendError, Batch, BatchBuilder, Encoding};

use super::delivery::Completion;
use super::lanes::LaneId;
use super::partitioner::{Sticky, partition_of_key};
use crate::error::{Error, Result};
use crate::record::RecordRef;

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

/// Number of a topic in this producer.
pub(super) type TopicIndex = usize;

/// Settings that shape batches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) encoding: Encoding,
    pub(super) batch_bytes: usize,
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

#[derive(Debug)]
struct Topic {
    id: Bytes,
    name: Arc<str>,
    filtered: bool,
    lanes: Vec<LaneId>,
    sticky: Sticky,
}

#[derive(Debug)]
struct Lane {
    topic: TopicIndex,
    partition: u32,
    open: Option<Open>,
}

/// Where a lane's batches go.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) topic_id: Bytes,
    pub(super) partition: u32,
    /// The topic's filters may drop records of a batch.
    pub(super) filtered: bool,
}

/// What became of a record.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is this record of the lane's open batch.
    At { lane: LaneId, index: u32 },
    /// The memory bound is reached; nothing was taken.
    Full,
}

#[derive(Debug)]
pub(super) struct Gathering {
    shape: Shape,
    topics: Vec<Topic>,
    by_name: HashMap<Arc<str>, TopicIndex>,
    lanes: Vec<Lane>,
    /// Lanes with an open batch, oldest first. Entries of batches that are sealed already are skipped.
    opened: VecDeque<(LaneId, u64)>,
    sealed: Vec<Gathered>,
    #[expect(
        clippy::vec_box,
        reason = "a builder is large and moves boxed between here and the driver"
    )]
    spare: Vec<Box<BatchBuilder>>,
    outstanding: BTreeSet<u64>,
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
            topics: Vec::new(),
            by_name: HashMap::new(),
            lanes: Vec::new(),
            opened: VecDeque::new(),
            sealed: Vec::new(),
            spare: Vec::new(),
            outstanding: BTreeSet::new(),
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
        self.by_name.get(name).copied()
    }

    pub(super) fn topic_name(&self, topic: TopicIndex) -> &Arc<str> {
        &self.topics[topic].name
    }

    pub(super) fn partitions(&self, topic: TopicIndex) -> u32 {
        self.topics[topic].lanes.len() as u32
    }

    /// Learn of a topic, or that it has more partitions or another id than was known.
    pub(super) fn learn(
        &mut self,
        name: &str,
        id: &Bytes,
        partitions: u32,
        filtered: bool,
    ) -> TopicIndex {
        if let Some(index) = self.topic(name)
            && self.topics[index].id == *id
        {
            self.topics[index].filtered = filtered;
            self.add_lanes(index, partitions);
            return index;
        }
        // A topic created anew under an old name has its own lanes: sequences do not carry over.
        let index = self.topics.len();
        let name: Arc<str> = name.into();
        let start = Sticky::new(self.shape.first_partition);
        self.topics.push(Topic {
            id: id.clone(),
            name: Arc::clone(&name),
            filtered,
            lanes: Vec::new(),
            sticky: start,
        });
        self.by_name.insert(name, index);
        self.add_lanes(index, partitions);
        index
    }

    /// Forget a name, so that the next look-up asks the broker. Handles to the topic stay usable.
    pub(super) fn forget(&mut self, lane: LaneId) {
        let topic = self.lanes[lane].topic;
        let name = &self.topics[topic].name;
        if self.by_name.get(name) == Some(&topic) {
            let name = Arc::clone(name);
            self.by_name.remove(&name);
        }
    }

    pub(super) fn target(&self, lane: LaneId) -> Target {
        let Lane {
            topic, partition, ..
        } = self.lanes[lane];
        let topic = &self.topics[topic];
        Target {
            topic_id: topic.id.clone(),
            partition,
            filtered: topic.filtered,
        }
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
            let lane = self.lane_of(topic, record)?;
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
                    return Err(Error::batch(error.to_string()));
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
        let entry = &self.topics[topic];
        let Some(&lane) = entry.lanes.get(partition as usize) else {
            return Err(Error::usage(format!(
                "topic `{}` has no partition {partition}",
                entry.name
            )));
        };
        let charged = batch.bytes().len();
        if !self.has_room(charged) {
            return Ok(None);
        }
        // Records that came before in this partition go out before.
        self.seal(lane);
        let completion = Arc::new(Completion::new(
            Arc::clone(&self.topics[topic].name),
            partition,
        ));
        let id = self.next_id();
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
        match &self.lanes[lane].open {
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
            let open = self.lanes[lane].open.as_ref().filter(|open| open.id == id);
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
            if let Some(open) = self.lanes[lane].open.as_ref().filter(|open| open.id == id) {
                return Some(open.opened + self.shape.linger);
            }
            self.opened.pop_front();
        }
        None
    }

    /// Hand everything sealed to the driver.
    pub(super) fn take_sealed(&mut self, into: &mut Vec<Gathered>) {
        into.append(&mut self.sealed);
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
        self.outstanding.remove(&ticket.id);
    }

    /// The newest batch given out so far; 0 when there was none.
    pub(super) fn newest_id(&self) -> u64 {
        self.next_id - 1
    }

    /// Whether every batch up to `id` is settled.
    pub(super) fn is_settled(&self, id: u64) -> bool {
        self.outstanding.first().is_none_or(|&oldest| oldest > id)
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

    fn lane_of(&self, topic: TopicIndex, record: &RecordRef<'_>) -> Result<LaneId> {
        let entry = &self.topics[topic];
        let partitions = entry.lanes.len() as u32;
        let partition = match (record.partition, record.key) {
            (Some(partition), _) => partition,
            (None, Some(key)) => partition_of_key(key, partitions),
            (None, None) => entry.sticky.current(partitions),
        };
        entry.lanes.get(partition as usize).copied().ok_or_else(|| {
            Error::usage(format!(
                "topic `{}` has partitions 0 to {}, not {partition}",
                entry.name,
                partitions - 1
            ))
        })
    }

    fn add_lanes(&mut self, topic: TopicIndex, partitions: u32) {
        for partition in self.topics[topic].lanes.len() as u32..partitions {
            self.topics[topic].lanes.push(self.lanes.len());
            self.lanes.push(Lane {
                topic,
                partition,
                open: None,
            });
        }
    }

    fn next_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.outstanding.insert(id);
        id
    }

    fn open(&mut self, lane: LaneId, now: Instant) -> &mut Open {
        if self.lanes[lane].open.is_none() {
            let builder = self.spare.pop().unwrap_or_else(|| {
                Box::new(BatchBuilder::new(
                    self.shape.encoding,
                    self.shape.batch_bytes,
                ))
            });
            let Lane {
                topic, partition, ..
            } = self.lanes[lane];
            let completion = Arc::new(Completion::new(
                Arc::clone(&self.topics[topic].name),
                partition,
            ));
            let id = self.next_id();
            self.opened.push_back((lane, id));
            self.lanes[lane].open = Some(Open {
                id,
                builder,
                completion,
                charged: 0,
                opened: now,
            });
        }
        self.lanes[lane].open.as_mut().expect("it was just opened")
    }

    fn seal(&mut self, lane: LaneId) {
        let Some(open) = self.lanes[lane].open.take() else {
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
        self.topics[self.lanes[lane].topic].sticky.advance();
        if self.opened.front() == Some(&(lane, id)) {
            self.opened.pop_front();
        }
    }

    /// An open batch that got no record.
    fn abandon(&mut self, lane: LaneId) {
        if let Some(open) = self.lanes[lane].open.take() {
            self.outstanding.remove(&open.id);
            self.recycle(open.builder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        Shape {
            encoding: Encoding::None,
            batch_bytes: 1_000,
            batch_records: u32::MAX,
            buffer_bytes: 10_000,
            linger: Duration::from_millis(5),
            delivery_timeout: Duration::from_secs(60),
            first_partition: 0,
        }
    }

    fn gathering(shape: Shape) -> (Gathering, TopicIndex) {
        let mut gathering = Gathering::new(shape);
        let topic = gathering.learn("t", &Bytes::from_static(&[0; 16]), 3, false);
        (gathering, topic)
    }

    fn sealed(gathering: &mut Gathering) -> Vec<(LaneId, u32)> {
        let mut out = Vec::new();
        gathering.take_sealed(&mut out);
        out.iter()
            .map(|gathered| (gathered.lane, gathered.ticket.records))
            .collect()
    }

    #[test]
    fn batches_fill_by_bytes_and_keyless_records_move_on_with_each() {
        let (mut gathering, topic) = gathering(shape());
        let t = Instant::now();
        for _ in 0..25 {
            let record = RecordRef::new(&[7; 100]);
            assert!(matches!(
                gathering.append(topic, &record, 0, t),
                Ok(Taken::At { .. })
            ));
        }
        // 61 bytes of header and 108 a record: 8 in 1,000 bytes.
        assert_eq!(sealed(&mut gathering), [(0, 8), (1, 8), (2, 8)]);
        assert!(gathering.next_due().is_some());
    }

    #[test]
    fn a_batch_closes_at_its_number_of_records() {
        let (mut gathering, topic) = gathering(Shape {
            batch_records: 2,
            ..shape()
        });
        let record = RecordRef {
            partition: Some(1),
            ..RecordRef::new(b"x")
        };
        let t = Instant::now();
        let at = |index| Taken::At { lane: 1, index };
        assert_eq!(gathering.append(topic, &record, 0, t).unwrap(), at(0));
        assert_eq!(gathering.append(topic, &record, 0, t).unwrap(), at(1));
        assert!(
            gathering.newest(1).is_some(),
            "the second record's batch is sealed already"
        );
        assert_eq!(gathering.append(topic, &record, 0, t).unwrap(), at(0));
        assert_eq!(sealed(&mut gathering), [(1, 2)]);
    }

    #[test]
    fn lingering_batches_go_oldest_first() {
        let (mut gathering, topic) = gathering(shape());
        let t = Instant::now();
        let ms = Duration::from_millis;
        for (partition, after) in [(2, 0), (0, 3)] {
            let record = RecordRef {
                partition: Some(partition),
                ..RecordRef::new(b"x")
            };
            gathering.append(topic, &record, 0, t + ms(after)).unwrap();
        }
        assert_eq!(gathering.next_due(), Some(t + ms(5)));
        gathering.seal_due(t + ms(4), false);
        assert_eq!(sealed(&mut gathering), []);
        gathering.seal_due(t + ms(5), false);
        assert_eq!(sealed(&mut gathering), [(2, 1)]);
        gathering.seal_due(t + ms(5), true);
        assert_eq!(sealed(&mut gathering), [(0, 1)]);
        assert_eq!(gathering.next_due(), None);
    }

    #[test]
    fn memory_is_bounded_and_comes_back() {
        let (mut gathering, topic) = gathering(Shape {
            buffer_bytes: 300,
            ..shape()
        });
        let record = RecordRef::new(&[0; 100]);
        let t = Instant::now();
        assert!(matches!(
            gathering.append(topic, &record, 0, t),
            Ok(Taken::At { .. })
        ));
        assert!(matches!(
            gathering.append(topic, &record, 0, t),
            Ok(Taken::At { .. })
        ));
        assert_eq!(gathering.append(topic, &record, 0, t).unwrap(), Taken::Full);
        assert!(
            !gathering.has_ample_room(1),
            "whoever is told of room must find it"
        );
        gathering.seal_due(t, true);
        let mut out = Vec::new();
        gathering.take_sealed(&mut out);
        assert!(!gathering.is_settled(gathering.newest_id()));
        for gathered in &out {
            gathering.settled(&gathered.ticket);
        }
        assert_eq!(gathering.used(), 0);
        assert!(gathering.is_settled(gathering.newest_id()));
    }

    #[test]
    fn a_record_over_the_batch_size_is_refused_alone() {
        let (mut gathering, topic) = gathering(shape());
        let t = Instant::now();
        let error = gathering
            .append(topic, &RecordRef::new(&[0; 2_000]), 0, t)
            .unwrap_err();
        assert!(error.message().contains("over the 1000 allowed"), "{error}");
        assert!(gathering.is_settled(gathering.newest_id()));
        let bad = RecordRef {
            partition: Some(3),
            ..RecordRef::new(b"x")
        };
        assert!(
            gathering
                .append(topic, &bad, 0, t)
                .unwrap_err()
                .message()
                .contains("partitions 0 to 2")
        );
    }

    #[test]
    fn a_topic_created_anew_has_its_own_lanes() {
        let (mut gathering, topic) = gathering(shape());
        assert_eq!(
            gathering.learn("t", &Bytes::from_static(&[0; 16]), 5, false),
            topic
        );
        assert_eq!(gathering.partitions(topic), 5);
        let again = gathering.learn("t", &Bytes::from_static(&[1; 16]), 2, true);
        assert_ne!(again, topic);
        assert_eq!(
            (gathering.topic("t"), gathering.partitions(again)),
            (Some(again), 2)
        );
    }
}
