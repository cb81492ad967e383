//! The shard's own cell: logged time, counters that never go back, floors.

use std::collections::VecDeque;

use millstream_batch::ids::{GroupEpoch, PartitionSlot, ProducerId, TimestampMs, TopicId};

use crate::bounds::{FORGOTTEN_TOPICS_REMEMBERED, PRODUCER_MARK_MS};
use crate::clock::Accepted;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ShardCell {
    /// Time of the newest fact that has one. 0: none yet.
    pub(crate) clock: TimestampMs,
    /// The clock that was accepted last.
    pub(crate) accepted: Option<Accepted>,
    /// Newest revision of any topic; on the catalog's shard the next change takes the one after.
    pub(crate) revision: u64,
    pub(crate) slot_next: PartitionSlot,
    /// Catalog: the next producer id. Ids start at 1.
    pub(crate) pid_next: ProducerId,
    /// Producers below this are expired, except the survivors.
    pub(crate) producer_floor: ProducerId,
    /// Those below the floor that lived when it was raised. Sorted.
    pub(crate) survivors: Vec<ProducerId>,
    /// A group created anew starts above this, so that no fence of its namesake outranks it.
    pub(crate) group_epoch_floor: GroupEpoch,
    /// Catalog: `(time, pid)`, "from this time on ids were at least this", at most one a
    /// `PRODUCER_MARK_MS`.
    pub(crate) marks: Vec<(TimestampMs, ProducerId)>,
    /// The topics deleted last, oldest first.
    pub(crate) forgotten: VecDeque<TopicId>,
}

impl Default for ShardCell {
    fn default() -> Self {
        Self {
            clock: TimestampMs(0),
            accepted: None,
            revision: 0,
            slot_next: PartitionSlot(0),
            pid_next: ProducerId(1),
            producer_floor: ProducerId(0),
            survivors: Vec::new(),
            group_epoch_floor: GroupEpoch(0),
            marks: Vec::new(),
            forgotten: VecDeque::new(),
        }
    }
}

impl ShardCell {
    pub(crate) fn tick(&mut self, time_ms: i64) {
        self.clock = self.clock.max(TimestampMs(time_ms));
    }

    pub(crate) fn is_expired(&self, pid: ProducerId) -> bool {
        pid < self.producer_floor && self.survivors.binary_search(&pid).is_err()
    }

    /// The smallest id that may have been given out at or after `before`: a mark's ids were all given
    /// out within `PRODUCER_MARK_MS` of it.
    pub(crate) fn given_since(&self, before: TimestampMs) -> ProducerId {
        self.marks
            .get(self.marks_all_before(before))
            .map_or(self.pid_next, |(_, pid)| *pid)
    }

    fn marks_all_before(&self, before: TimestampMs) -> usize {
        self.marks
            .partition_point(|(time, _)| time.0.saturating_add(PRODUCER_MARK_MS) <= before.0)
    }

    pub(crate) fn mark(&mut self, time: TimestampMs, pid: ProducerId) {
        if self
            .marks
            .last()
            .is_none_or(|(last, _)| time.0 - last.0 >= PRODUCER_MARK_MS)
        {
            self.marks.push((time, pid));
        }
    }

    /// Drops the marks that no later question can need.
    pub(crate) fn prune_marks(&mut self, before: TimestampMs) {
        self.marks.drain(..self.marks_all_before(before));
    }

    pub(crate) fn forget(&mut self, id: TopicId) {
        if self.forgotten.len() == FORGOTTEN_TOPICS_REMEMBERED {
            self.forgotten.pop_front();
        }
        self.forgotten.push_back(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_bound_the_ids_given_since_a_time_from_below() {
        let mut cell = ShardCell::default();
        let t = |minutes: i64| TimestampMs(minutes * 60_000);
        for pid in 1..=100 {
            cell.mark(t(pid), ProducerId(pid as u64));
            cell.pid_next = ProducerId(pid as u64 + 1);
        }
        assert_eq!(cell.marks.len(), 10);
        for minute in 0..=100 {
            let first_given = minute.max(1) as u64;
            let bound = cell.given_since(t(minute)).0;
            assert!(
                bound <= first_given && first_given - bound < 10,
                "{minute}: {bound}"
            );
        }
        let before = cell.given_since(t(55));
        cell.prune_marks(t(55));
        assert_eq!(cell.given_since(t(55)), before);
        assert_eq!(
            cell.given_since(t(200)),
            ProducerId(101),
            "all were given before"
        );
        assert!(cell.marks.len() <= 6);
    }
}
