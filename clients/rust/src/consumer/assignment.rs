//! One partition as this consumer holds it: what its task and its user both know.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use bytes::Bytes;

/// A partition by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    pub topic: Arc<str>,
    pub partition: u32,
}

impl TopicPartition {
    /// A partition by name.
    pub fn new(topic: impl Into<Arc<str>>, partition: u32) -> Self {
        Self {
            topic: topic.into(),
            partition,
        }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

/// A partition that was given to this consumer, until it is taken away. Outlives connections.
#[derive(Debug)]
pub(super) struct Assignment {
    pub(super) name: TopicPartition,
    pub(super) topic_id: Bytes,
    /// Of the group; 0 without one.
    pub(super) epoch: u64,
    /// Still ours: what is queued of a partition that is not is dropped.
    live: AtomicBool,
    /// Raised by every seek: what was queued under an earlier one is dropped.
    generation: AtomicU32,
    /// The next offset that the application has not been given (or has not come back from).
    processed: AtomicU64,
    committed: AtomicU64,
    paused: AtomicBool,
}

impl Assignment {
    pub(super) fn new(name: TopicPartition, topic_id: Bytes, epoch: u64, offset: u64) -> Self {
        Self {
            name,
            topic_id,
            epoch,
            live: AtomicBool::new(true),
            generation: AtomicU32::new(0),
            processed: AtomicU64::new(offset),
            committed: AtomicU64::new(offset),
            paused: AtomicBool::new(false),
        }
    }

    pub(super) fn is_live(&self) -> bool {
        self.live.load(Ordering::Acquire)
    }

    pub(super) fn end(&self) {
        self.live.store(false, Ordering::Release);
    }

    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    pub(super) fn next_generation(&self) -> u32 {
        self.generation.fetch_add(1, Ordering::AcqRel) + 1
    }

    pub(super) fn processed(&self) -> u64 {
        self.processed.load(Ordering::Acquire)
    }

    pub(super) fn set_processed(&self, offset: u64) {
        self.processed.store(offset, Ordering::Release);
    }

    pub(super) fn committed(&self) -> u64 {
        self.committed.load(Ordering::Acquire)
    }

    pub(super) fn set_committed(&self, offset: u64) {
        self.committed.store(offset, Ordering::Release);
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }

    pub(super) fn set_paused(&self, paused: bool) {
        self.paused.store(paused, Ordering::Release);
    }
}
