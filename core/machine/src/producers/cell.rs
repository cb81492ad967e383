//! The cells of producers, by partition and id.

use std::collections::{BTreeMap, BTreeSet};

use millstream_batch::ids::{
    Offset, PartitionSlot, ProducerEpoch, ProducerId, Sequence, TimestampMs,
};
use millstream_batch::limits::PRODUCER_BATCHES_REMEMBERED;

use crate::request::Produced;

/// One producer in one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Producer {
    pub(crate) epoch: ProducerEpoch,
    /// The sequence that appends: one past the last record stored.
    pub(crate) next: Sequence,
    pub(crate) last_used: TimestampMs,
    /// The batches accepted last in this epoch, oldest first; at most
    /// `PRODUCER_BATCHES_REMEMBERED`.
    pub(crate) batches: Vec<Remembered>,
}

/// Enough of a batch to answer its duplicate as it was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remembered {
    pub(crate) sequence: Sequence,
    pub(crate) sent: u32,
    /// `None`: the filters kept nothing.
    pub(crate) base_offset: Option<Offset>,
    pub(crate) append_time: TimestampMs,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Producers {
    pub(super) cells: BTreeMap<(PartitionSlot, ProducerId), Producer>,
}

impl Producers {
    pub(crate) fn len(&self) -> usize {
        self.cells.len()
    }

    pub(crate) fn cell(&self, slot: PartitionSlot, pid: ProducerId) -> Option<&Producer> {
        self.cells.get(&(slot, pid))
    }

    pub(crate) fn after(
        &self,
        last: Option<(PartitionSlot, ProducerId)>,
    ) -> impl Iterator<Item = (PartitionSlot, ProducerId, &Producer)> + '_ {
        use std::ops::Bound::{Excluded, Unbounded};
        let range = self
            .cells
            .range((last.map_or(Unbounded, Excluded), Unbounded));
        range.map(|((slot, pid), cell)| (*slot, *pid, cell))
    }

    pub(crate) fn put(&mut self, slot: PartitionSlot, pid: ProducerId, cell: Producer) {
        self.cells.insert((slot, pid), cell);
    }

    /// Producers known in one partition.
    pub(crate) fn count(&self, slot: PartitionSlot) -> u32 {
        self.cells
            .range((slot, ProducerId(0))..=(slot, ProducerId(u64::MAX)))
            .count() as u32
    }

    pub(crate) fn remove_slot(&mut self, slot: PartitionSlot) {
        let range = (slot, ProducerId(0))..=(slot, ProducerId(u64::MAX));
        let keys: Vec<_> = self.cells.range(range).map(|(key, _)| *key).collect();
        for key in keys {
            self.cells.remove(&key);
        }
    }

    /// The producers used since `before`, in any partition.
    pub(crate) fn used_since(&self, before: TimestampMs) -> BTreeSet<ProducerId> {
        self.cells
            .iter()
            .filter(|(_, cell)| cell.last_used >= before)
            .map(|((_, pid), _)| *pid)
            .collect()
    }
}

impl Producer {
    pub(super) fn answer(&self, first: Sequence, sent: u32) -> Produced {
        let batch = self
            .batches
            .iter()
            .find(|batch| batch.sequence == first && batch.sent == sent);
        Produced {
            base_offset: batch.and_then(|batch| batch.base_offset),
            append_time: batch.map_or(self.last_used, |batch| batch.append_time),
            duplicate: true,
        }
    }

    pub(super) fn accept(&mut self, epoch: ProducerEpoch, batch: Remembered) {
        if epoch > self.epoch {
            self.epoch = epoch;
            self.next = Sequence(0);
            self.batches.clear();
        }
        assert_eq!(
            (self.epoch, self.next),
            (epoch, batch.sequence),
            "a logged batch follows the one before"
        );
        self.next = Sequence(batch.sequence.0 + u64::from(batch.sent));
        self.last_used = batch.append_time;
        if self.batches.len() == PRODUCER_BATCHES_REMEMBERED {
            self.batches.remove(0);
        } else {
            self.batches.reserve_exact(1); // most producers send little: five are not reserved at once
        }
        self.batches.push(batch);
    }
}
