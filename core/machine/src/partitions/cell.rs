//! The cells of partitions, by slot.

use std::collections::BTreeMap;

use millstream_batch::ids::{Offset, Partition, PartitionSlot, Term, TimestampMs};

use super::leader_epochs::LeaderEpochs;
use crate::state::PartitionView;

/// ```text
///   0 ── trimmed ── start ── stored ── end
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PartitionCell {
    pub(crate) partition: Partition,
    pub(crate) start: Offset,
    pub(crate) end: Offset,
    pub(crate) bytes: u64,
    pub(crate) last_append: TimestampMs,
    pub(crate) epochs: LeaderEpochs,
    /// Producers known here. Counted, not archived.
    pub(crate) producers: u32,
}

impl PartitionCell {
    /// Whether a position was cut away: who read up to `offset`, the last record under `epoch`, goes on
    /// from here instead. `None`: what it read is what is stored.
    pub(crate) fn truncated(&self, offset: Offset, epoch: Term) -> Option<Offset> {
        let kept = self.epochs.end_of(epoch).unwrap_or(self.end).min(self.end);
        (offset > kept).then(|| kept.max(self.start))
    }

    pub(crate) fn view(&self, slot: PartitionSlot) -> PartitionView {
        let Self {
            partition,
            start,
            end,
            bytes,
            last_append,
            ..
        } = *self;
        PartitionView {
            partition,
            slot,
            start,
            end,
            bytes,
            last_append,
        }
    }
}

/// Cells by slot. Slots are never reused, and what is deleted takes no room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Partitions {
    cells: BTreeMap<PartitionSlot, Box<PartitionCell>>,
}

impl Partitions {
    pub(crate) fn len(&self) -> usize {
        self.cells.len()
    }

    pub(crate) fn at(&self, slot: PartitionSlot) -> Option<&PartitionCell> {
        self.cells.get(&slot).map(|cell| &**cell)
    }

    pub(crate) fn at_mut(&mut self, slot: PartitionSlot) -> Option<&mut PartitionCell> {
        self.cells.get_mut(&slot).map(|cell| &mut **cell)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (PartitionSlot, &PartitionCell)> + '_ {
        self.after(None)
    }

    pub(crate) fn after(
        &self,
        last: Option<PartitionSlot>,
    ) -> impl Iterator<Item = (PartitionSlot, &PartitionCell)> + '_ {
        use std::ops::Bound::{Excluded, Unbounded};
        let range = self
            .cells
            .range((last.map_or(Unbounded, Excluded), Unbounded));
        range.map(|(slot, cell)| (*slot, &**cell))
    }

    pub(crate) fn create(&mut self, slot: PartitionSlot, partition: Partition, producers: u32) {
        let cell = PartitionCell {
            partition,
            start: Offset(0),
            end: Offset(0),
            bytes: 0,
            last_append: TimestampMs(0),
            epochs: LeaderEpochs::default(),
            producers,
        };
        self.put(slot, cell);
    }

    pub(crate) fn put(&mut self, slot: PartitionSlot, cell: PartitionCell) {
        let before = self.cells.insert(slot, Box::new(cell));
        assert!(before.is_none(), "slot {slot} is given out once");
    }

    pub(crate) fn remove(&mut self, slot: PartitionSlot) {
        self.cells.remove(&slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cell, its place in the map (nodes at least half full) and the topic's list of slots.
    #[test]
    fn an_idle_partition_takes_little_memory() {
        let place = 2 * (size_of::<PartitionSlot>() + size_of::<Box<PartitionCell>>());
        let bytes = size_of::<PartitionCell>() + place + size_of::<(u32, PartitionSlot)>();
        assert!(bytes <= 128, "{bytes}");
    }
}
