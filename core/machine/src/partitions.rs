//! Partitions: where each starts and ends, by slot.
//!
//! Absent on purpose: batches and where they lie (the log's index); retention's choice of what to
//! trim (the driver's, from the log's files).

use std::collections::BTreeMap;

use millstream_batch::ids::{Lsn, Offset, Partition, PartitionSlot, Term, TimestampMs};

use crate::decide::Decision;
use crate::epochs::LeaderEpochs;
use crate::fact::Fact;
use crate::fact::archive::PartitionTrimmed;
use crate::request::{PartitionInfo, Refusal, Reply};
use crate::snapshot::key;
use crate::state::{PartitionView, State};

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

/// The slot and cell of a partition, or why this shard has none.
pub(crate) fn find(
    state: &State,
    partition: Partition,
) -> Result<(PartitionSlot, &PartitionCell), Refusal> {
    let topic = state
        .topics
        .cell(partition.topic)
        .ok_or(Refusal::UnknownPartition(partition))?;
    if let Some(slot) = topic.slot(partition.index) {
        let cell = state
            .partitions
            .at(slot)
            .expect("a topic's slot holds its partition");
        return Ok((slot, cell));
    }
    if partition.shard(state.shards) == state.id {
        Err(Refusal::UnknownPartition(partition))
    } else {
        Err(Refusal::NotHome)
    }
}

pub(crate) fn describe(
    state: &State,
    term: Term,
    partition: Partition,
) -> Result<Decision, Refusal> {
    let (slot, cell) = find(state, partition)?;
    let PartitionCell {
        start, end, bytes, ..
    } = *cell;
    Ok(Decision::look(Reply::Partition(PartitionInfo {
        partition,
        slot,
        start,
        end,
        term,
        bytes,
    })))
}

/// A start that is not above the present one does nothing.
pub(crate) fn trim(
    state: &State,
    partition: Partition,
    start: Offset,
) -> Result<Decision, Refusal> {
    let (slot, cell) = find(state, partition)?;
    if start > cell.end {
        return Err(Refusal::OffsetOutOfRange {
            offset: start,
            start: cell.start,
            end: cell.end,
        });
    }
    if start <= cell.start {
        return Ok(Decision::look(Reply::Done));
    }
    Ok(Decision::of(
        Fact::PartitionTrimmed(PartitionTrimmed {
            slot: slot.0,
            start: start.0,
        }),
        Reply::Done,
    ))
}

pub(crate) fn install_trimmed(state: &mut State, lsn: Lsn, fact: &PartitionTrimmed) {
    let slot = PartitionSlot(fact.slot);
    if state.guard.holds(lsn, || key::partition(slot)) {
        return;
    }
    let cell = state
        .partitions
        .at_mut(slot)
        .expect("a trimmed partition is known");
    assert!(
        cell.start.0 < fact.start && fact.start <= cell.end.0,
        "trim of slot {slot} to {}",
        fact.start
    );
    cell.start = Offset(fact.start);
    cell.epochs.trim(cell.start);
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
