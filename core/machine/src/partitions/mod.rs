//! Partitions: where each starts and ends, by slot.
//!
//! Absent on purpose: batches and where they lie (the log's index); retention's choice of what to
//! trim (the driver's, from the log's files).

mod cell;
mod leader_epochs;
mod section;

use millstream_batch::ids::{Lsn, Offset, Partition, PartitionSlot, Term, TimestampMs, TopicId};

use crate::decide::Decision;
use crate::fact::archive::{BatchAppended, PartitionTrimmed, TopicApplied, TopicDeleted};
use crate::fact::{Fact, Sound};
use crate::request::{PartitionInfo, Refusal, Reply};
use crate::state::State;
pub(crate) use cell::{PartitionCell, Partitions};
pub(crate) use section::{PartitionsSection, key};

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
    if state.guard.holds(lsn, || key(slot)) {
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

pub(crate) fn install_appended(state: &mut State, lsn: Lsn, fact: &BatchAppended) {
    let slot = PartitionSlot(fact.slot);
    if state.guard.holds(lsn, || key(slot)) {
        return;
    }
    let cell = state
        .partitions
        .at_mut(slot)
        .expect("a batch goes to a known partition");
    assert_eq!(
        cell.end.0, fact.base_offset,
        "slot {slot}: offsets are dense"
    );
    cell.epochs.note(Term(fact.term), cell.end);
    cell.end = Offset(fact.base_offset + u64::from(fact.kept));
    cell.bytes += u64::from(fact.bytes);
    cell.last_append = TimestampMs(fact.append_time_ms);
}

pub(crate) fn install_applied(state: &mut State, lsn: Lsn, fact: &TopicApplied) {
    for added in &fact.added {
        let slot = PartitionSlot(added.slot);
        if !state.guard.holds(lsn, || key(slot)) {
            let producers = state.producers.count(slot);
            let partition = Partition {
                topic: TopicId(fact.topic.id),
                index: added.index,
            };
            state.partitions.create(slot, partition, producers);
        }
    }
}

/// Slots are not used again, so what a snapshot holds of them was taken before this fact.
pub(crate) fn install_deleted(state: &mut State, _: Lsn, fact: &TopicDeleted) {
    for slot in &fact.slots {
        state.partitions.remove(PartitionSlot(*slot));
    }
}

impl Sound for PartitionTrimmed {
    fn is_sound(&self) -> bool {
        true
    }
}
