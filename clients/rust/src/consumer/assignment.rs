//! One partition as this consumer holds it: what its task and its user both know.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Leader epochs remembered of one partition; one rises with each unclean stop of the broker.
const EPOCHS_MAX: usize = 64;

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
    /// The group's epoch at which it came to us: the same for as long as nobody else had it, also after
    /// we joined again. 0 without a group.
    pub(super) since: u64,
    /// Still ours: what is queued of a partition that is not is dropped.
    live: AtomicBool,
    /// Raised by every seek: what was queued under an earlier one is dropped.
    generation: AtomicU32,
    /// The next offset that the application has not been given (or has not come back from).
    processed: AtomicU64,
    committed: AtomicU64,
    paused: AtomicBool,
    /// A batch of it cannot be read: nothing behind it is given before a seek.
    stopped: AtomicBool,
    epochs: Mutex<Epochs>,
}

/// Leader epochs of what came off the wire: from which offset on each, both rising.
#[derive(Debug, Default)]
struct Epochs(VecDeque<(u64, u32)>);

impl Epochs {
    /// The records from `offset` on are of this epoch.
    fn note(&mut self, offset: u64, epoch: u32) {
        if self.0.back().is_none_or(|(_, last)| *last != epoch) {
            self.0.push_back((offset, epoch));
        }
        if self.0.len() > EPOCHS_MAX {
            self.0.pop_front();
        }
    }

    /// Of the record before `offset`, if that came off the wire.
    fn before(&self, offset: u64) -> Option<u32> {
        let mut at_or_below = self.0.iter().rev();
        at_or_below
            .find(|(start, _)| *start < offset)
            .map(|(_, epoch)| *epoch)
    }
}

impl Assignment {
    pub(super) fn new(name: TopicPartition, topic_id: Bytes, since: u64, offset: u64) -> Self {
        Self {
            name,
            topic_id,
            since,
            live: AtomicBool::new(true),
            generation: AtomicU32::new(0),
            processed: AtomicU64::new(offset),
            committed: AtomicU64::new(offset),
            paused: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            epochs: Mutex::default(),
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

    /// Records from `offset` on came off the wire under this leader epoch.
    pub(super) fn note_epoch(&self, offset: u64, epoch: u32) {
        self.epochs().note(offset, epoch);
    }

    /// The leader epoch of the record before `offset`, if that came off the wire.
    pub(super) fn epoch_before(&self, offset: u64) -> Option<u32> {
        self.epochs().before(offset)
    }

    /// What came off the wire is not what comes next: of the record before it nothing is known, or this.
    pub(super) fn begin_epochs(&self, position: u64, before: Option<u32>) {
        let mut epochs = self.epochs();
        epochs.0.clear();
        if let (Some(epoch), Some(last)) = (before, position.checked_sub(1)) {
            epochs.note(last, epoch);
        }
    }

    /// What was read from here on is lost.
    pub(super) fn truncate(&self, safe: u64) {
        self.processed.fetch_min(safe, Ordering::AcqRel);
        let mut epochs = self.epochs();
        epochs.0.retain(|(start, _)| *start < safe);
    }

    fn epochs(&self) -> MutexGuard<'_, Epochs> {
        self.epochs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    /// Go on; whether it was stopped.
    pub(super) fn take_stopped(&self) -> bool {
        self.stopped.swap(false, Ordering::AcqRel)
    }

    pub(super) fn set_paused(&self, paused: bool) {
        self.paused.store(paused, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_knows_the_epoch_of_the_record_before_it() {
        let assignment = Assignment::new(TopicPartition::new("t", 0), Bytes::new(), 0, 0);
        assert_eq!(assignment.epoch_before(10), None, "nothing was read");
        for (offset, epoch) in [(10, 3), (14, 3), (20, 5)] {
            assignment.note_epoch(offset, epoch);
        }
        let before = |offset| assignment.epoch_before(offset);
        assert_eq!(
            (before(10), before(11), before(20)),
            (None, Some(3), Some(3))
        );
        assert_eq!((before(21), before(99)), (Some(5), Some(5)));
        assignment.begin_epochs(15, Some(3));
        assert_eq!((before(14), before(15)), (None, Some(3)));
        assignment.begin_epochs(15, None);
        assert_eq!(before(15), None);
    }
}
