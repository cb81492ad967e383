//! The topics of a producer: what the broker said of them, and the lane of each partition.
//!
//! Deliberately absent: asking the broker, and batches.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use millstream_protocol::Code;

use super::super::lanes::LaneId;
use super::super::partitioner::{Sticky, partition_of_key};
use crate::error::{Error, Result};
use crate::record::RecordRef;

/// Number of a topic in this producer.
pub(in crate::producer) type TopicIndex = usize;

/// Where a lane's batches go.
#[derive(Clone, Debug)]
pub(in crate::producer) struct Target {
    pub(in crate::producer) topic_id: Bytes,
    pub(in crate::producer) partition: u32,
    /// The topic's filters may drop records of a batch.
    pub(in crate::producer) filtered: bool,
}

/// What the broker says of a topic.
#[derive(Clone, Debug)]
pub(in crate::producer) struct Known {
    pub(in crate::producer) id: Bytes,
    pub(in crate::producer) partitions: u32,
    /// Filters at produce may drop records.
    pub(in crate::producer) filtered: bool,
    /// Its `max.message.bytes`, if it has one of its own.
    pub(in crate::producer) batch_bytes_max: Option<usize>,
}

/// See the module's header.
#[derive(Debug)]
pub(super) struct Topics {
    topics: Vec<Topic>,
    by_name: HashMap<Arc<str>, TopicIndex>,
    lanes: Vec<Lane>,
    /// Where the turns of records without a key begin.
    first_partition: u32,
    /// Topics that are growing.
    growing: usize,
}

#[derive(Debug)]
struct Topic {
    id: Bytes,
    name: Arc<str>,
    filtered: bool,
    batch_bytes_max: usize,
    lanes: Vec<LaneId>,
    sticky: Sticky,
    growing: Option<Growing>,
}

/// Partitions were added, and what was taken before is not settled yet.
#[derive(Debug)]
struct Growing {
    /// The last batch from before.
    up_to: u64,
    unsettled: usize,
    /// More were added meanwhile: for afterwards.
    next: Option<u32>,
}

/// A partition of a topic.
#[derive(Clone, Copy, Debug)]
struct Lane {
    topic: TopicIndex,
    partition: u32,
}

impl Topics {
    pub(super) fn new(first_partition: u32) -> Self {
        Self {
            topics: Vec::new(),
            by_name: HashMap::new(),
            lanes: Vec::new(),
            first_partition,
            growing: 0,
        }
    }

    /// Number of lanes there are.
    pub(super) fn lanes(&self) -> usize {
        self.lanes.len()
    }

    pub(super) fn find(&self, name: &str) -> Option<TopicIndex> {
        self.by_name.get(name).copied()
    }

    pub(super) fn name(&self, topic: TopicIndex) -> &Arc<str> {
        &self.topics[topic].name
    }

    pub(super) fn partitions(&self, topic: TopicIndex) -> u32 {
        self.topics[topic].lanes.len() as u32
    }

    /// Largest batch that the topic is known to take.
    pub(super) fn batch_bytes_max(&self, topic: TopicIndex) -> usize {
        self.topics[topic].batch_bytes_max
    }

    /// Learn of a topic, or that it has another bound or another id than was known. Its partitions are for
    /// `grow`.
    pub(super) fn learn(&mut self, name: &str, known: &Known) -> TopicIndex {
        let batch_bytes_max = known.batch_bytes_max.unwrap_or(usize::MAX);
        if let Some(index) = self.find(name)
            && self.topics[index].id == known.id
        {
            self.topics[index].filtered = known.filtered;
            self.topics[index].batch_bytes_max = batch_bytes_max;
            return index;
        }
        // A topic created anew under an old name has its own lanes: sequences do not carry over.
        let index = self.topics.len();
        let name: Arc<str> = name.into();
        let start = Sticky::new(self.first_partition);
        self.topics.push(Topic {
            id: known.id.clone(),
            name: Arc::clone(&name),
            filtered: known.filtered,
            batch_bytes_max,
            lanes: Vec::new(),
            sticky: start,
            growing: None,
        });
        self.by_name.insert(name, index);
        index
    }

    /// Whether the topic may grow now: else it does when what it waits for is settled.
    pub(super) fn may_grow(&mut self, topic: TopicIndex, partitions: u32) -> bool {
        match &mut self.topics[topic].growing {
            Some(growing) => {
                growing.next = growing.next.max(Some(partitions));
                false
            }
            None => true,
        }
    }

    /// The topic has so many partitions. Of the batches up to `up_to`, so many of its own are unsettled.
    pub(super) fn grow(
        &mut self,
        topic: TopicIndex,
        partitions: u32,
        up_to: u64,
        unsettled: usize,
    ) {
        for partition in self.partitions(topic)..partitions {
            self.topics[topic].lanes.push(self.lanes.len());
            self.lanes.push(Lane { topic, partition });
        }
        if unsettled > 0 {
            self.growing += 1;
            self.topics[topic].growing = Some(Growing {
                up_to,
                unsettled,
                next: None,
            });
        }
    }

    pub(super) fn any_growing(&self) -> bool {
        self.growing > 0
    }

    /// Whether a batch was taken after its topic grew, and those from before are not all settled.
    pub(super) fn waits(&self, topic: TopicIndex, batch: u64) -> bool {
        let growing = self.topics[topic].growing.as_ref();
        growing.is_some_and(|growing| batch > growing.up_to)
    }

    /// A batch of the topic is settled. Gives the number of partitions to grow to next, if that waited.
    pub(super) fn settled(&mut self, topic: TopicIndex, batch: u64) -> Option<u32> {
        let growing = self.topics[topic].growing.as_mut()?;
        if batch > growing.up_to {
            return None;
        }
        growing.unsettled -= 1;
        if growing.unsettled > 0 {
            return None;
        }
        let next = growing.next;
        self.topics[topic].growing = None;
        self.growing -= 1;
        next
    }

    /// The lanes of a topic's partitions.
    pub(super) fn lanes_of(&self, topic: TopicIndex) -> Vec<LaneId> {
        self.topics[topic].lanes.clone()
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
        let Lane { topic, partition } = self.lanes[lane];
        let topic = &self.topics[topic];
        Target {
            topic_id: topic.id.clone(),
            partition,
            filtered: topic.filtered,
        }
    }

    /// The topic and partition of a lane.
    pub(super) fn place(&self, lane: LaneId) -> (TopicIndex, u32) {
        let Lane { topic, partition } = self.lanes[lane];
        (topic, partition)
    }

    /// The lane of a partition.
    pub(super) fn lane(&self, topic: TopicIndex, partition: u32) -> Result<LaneId> {
        let entry = &self.topics[topic];
        entry.lanes.get(partition as usize).copied().ok_or_else(|| {
            let (name, count) = (&entry.name, entry.lanes.len());
            Error::refused(Code::UnknownPartition.error(format!(
                "topic `{name}` has no partition {partition} (partitions: {count})"
            )))
        })
    }

    /// The lane that a record goes to.
    pub(super) fn lane_of(&self, topic: TopicIndex, record: &RecordRef<'_>) -> Result<LaneId> {
        let entry = &self.topics[topic];
        let partitions = entry.lanes.len() as u32;
        let partition = match (record.partition, record.key) {
            (Some(partition), _) => partition,
            (None, Some(key)) => partition_of_key(key, partitions),
            (None, None) => entry.sticky.current(partitions),
        };
        self.lane(topic, partition)
    }

    /// A batch of the lane is on its way: records without a key go on to the next partition.
    pub(super) fn advance(&mut self, lane: LaneId) {
        self.topics[self.lanes[lane].topic].sticky.advance();
    }
}
