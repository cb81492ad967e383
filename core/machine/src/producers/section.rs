//! Producers in a snapshot: where they write, which were given out, which are expired.

#![allow(
    missing_debug_implementations,
    reason = "rkyv's resolvers, which no code here names"
)]

use std::ops::Bound::{Excluded, Unbounded};

use millstream_batch::ids::{
    Offset, PartitionSlot, ProducerEpoch, ProducerId, Sequence, TimestampMs,
};

use super::cell::{Producer, Remembered};
use super::identities::{GivenEpoch, Identities, ProducerFloor};
use crate::fact::archive::archived;
use crate::snapshot::key::{self, Key};
use crate::snapshot::table::Section;
use crate::state::State;

archived! {
    pub struct ProducerRecord {
        pub slot: u32,
        pub pid: u64,
        pub epoch: u32,
        pub next: u64,
        pub last_used_ms: i64,
        pub batches: Vec<RememberedRecord>,
    }

    pub struct RememberedRecord {
        pub sequence: u64,
        pub sent: u32,
        pub base_offset: Option<u64>,
        pub append_time_ms: i64,
    }

    pub struct IdentitiesRecord {
        pub next: u64,
        pub marks: Vec<MarkRecord>,
    }

    pub struct MarkRecord {
        pub time_ms: i64,
        pub pid: u64,
    }

    pub struct EpochRecord {
        pub pid: u64,
        pub epoch: u32,
        pub given_ms: i64,
    }

    pub struct FloorRecord {
        pub floor: u64,
        pub survivors: Vec<u64>,
    }
}

pub(crate) fn key(slot: PartitionSlot, pid: ProducerId) -> Key {
    let rest = [slot.0.to_be_bytes().as_slice(), &pid.0.to_be_bytes()].concat();
    key::of::<ProducersSection>(&rest)
}

pub(super) fn identities_key() -> Key {
    key::of::<IdentitiesSection>(&[])
}

pub(super) fn epoch_key(pid: ProducerId) -> Key {
    key::of::<EpochsSection>(&pid.0.to_be_bytes())
}

pub(super) fn floor_key() -> Key {
    key::of::<FloorSection>(&[])
}

/// By slot and id.
pub(crate) struct ProducersSection;

impl Section for ProducersSection {
    type Cell<'a> = (PartitionSlot, ProducerId, &'a Producer);
    type Record = ProducerRecord;

    fn after<'a>(
        state: &'a State,
        last: Option<&[u8]>,
    ) -> impl Iterator<Item = Self::Cell<'a>> + 'a {
        let last = last.map(|key| {
            let (slot, pid) = key.split_at(4);
            (
                PartitionSlot(u32::from_be_bytes(key::fixed(slot))),
                ProducerId(u64::from_be_bytes(key::fixed(pid))),
            )
        });
        state.producers.after(last)
    }

    fn key((slot, pid, _): Self::Cell<'_>) -> Key {
        key(slot, pid)
    }

    fn record((slot, pid, cell): Self::Cell<'_>) -> ProducerRecord {
        let batches = cell.batches.iter().map(|batch| RememberedRecord {
            sequence: batch.sequence.0,
            sent: batch.sent,
            base_offset: batch.base_offset.map(|offset| offset.0),
            append_time_ms: batch.append_time.0,
        });
        ProducerRecord {
            slot: slot.0,
            pid: pid.0,
            epoch: cell.epoch.0,
            next: cell.next.0,
            last_used_ms: cell.last_used.0,
            batches: batches.collect(),
        }
    }

    fn bytes((.., cell): Self::Cell<'_>) -> usize {
        48 + cell.batches.len() * 40
    }

    fn restore(state: &mut State, record: ProducerRecord) -> Result<(), &'static str> {
        let (slot, pid) = (PartitionSlot(record.slot), ProducerId(record.pid));
        if state.producers.cell(slot, pid).is_some() {
            return Err("a producer twice");
        }
        let batches = record.batches.iter().map(|batch| Remembered {
            sequence: Sequence(batch.sequence),
            sent: batch.sent,
            base_offset: batch.base_offset.map(Offset),
            append_time: TimestampMs(batch.append_time_ms),
        });
        let producer = Producer {
            epoch: ProducerEpoch(record.epoch),
            next: Sequence(record.next),
            last_used: TimestampMs(record.last_used_ms),
            batches: batches.collect(),
        };
        state.producers.put(slot, pid, producer);
        if let Some(partition) = state.partitions.at_mut(slot) {
            partition.producers += 1; // a partition that the tail creates counts then
        }
        Ok(())
    }
}

/// One cell; the epochs are a section of their own.
pub(crate) struct IdentitiesSection;

impl Section for IdentitiesSection {
    type Cell<'a> = &'a Identities;
    type Record = IdentitiesRecord;

    fn after<'a>(
        state: &'a State,
        last: Option<&[u8]>,
    ) -> impl Iterator<Item = Self::Cell<'a>> + 'a {
        last.is_none().then_some(&state.identities).into_iter()
    }

    fn key(_: &Identities) -> Key {
        identities_key()
    }

    fn record(cell: &Identities) -> IdentitiesRecord {
        let marks = cell.marks.iter().map(|(time, pid)| MarkRecord {
            time_ms: time.0,
            pid: pid.0,
        });
        IdentitiesRecord {
            next: cell.next.0,
            marks: marks.collect(),
        }
    }

    fn bytes(cell: &Identities) -> usize {
        16 + cell.marks.len() * 16
    }

    fn restore(state: &mut State, record: IdentitiesRecord) -> Result<(), &'static str> {
        let marks = record.marks.iter();
        let marks = marks.map(|mark| (TimestampMs(mark.time_ms), ProducerId(mark.pid)));
        state.identities.next = ProducerId(record.next);
        state.identities.marks = marks.collect();
        Ok(())
    }
}

/// By id.
pub(crate) struct EpochsSection;

impl Section for EpochsSection {
    type Cell<'a> = (ProducerId, GivenEpoch);
    type Record = EpochRecord;

    fn after<'a>(
        state: &'a State,
        last: Option<&[u8]>,
    ) -> impl Iterator<Item = Self::Cell<'a>> + 'a {
        let last = last.map(|key| ProducerId(u64::from_be_bytes(key::fixed(key))));
        let from = last.map_or(Unbounded, Excluded);
        let epochs = state.identities.epochs.range((from, Unbounded));
        epochs.map(|(pid, given)| (*pid, *given))
    }

    fn key((pid, _): Self::Cell<'_>) -> Key {
        epoch_key(pid)
    }

    fn record((pid, given): Self::Cell<'_>) -> EpochRecord {
        EpochRecord {
            pid: pid.0,
            epoch: given.epoch.0,
            given_ms: given.given.0,
        }
    }

    fn bytes(_: Self::Cell<'_>) -> usize {
        24
    }

    fn restore(state: &mut State, record: EpochRecord) -> Result<(), &'static str> {
        let given = GivenEpoch {
            epoch: ProducerEpoch(record.epoch),
            given: TimestampMs(record.given_ms),
        };
        state
            .identities
            .epochs
            .insert(ProducerId(record.pid), given);
        Ok(())
    }
}

/// One cell.
pub(crate) struct FloorSection;

impl Section for FloorSection {
    type Cell<'a> = &'a ProducerFloor;
    type Record = FloorRecord;

    fn after<'a>(
        state: &'a State,
        last: Option<&[u8]>,
    ) -> impl Iterator<Item = Self::Cell<'a>> + 'a {
        last.is_none().then_some(&state.producer_floor).into_iter()
    }

    fn key(_: &ProducerFloor) -> Key {
        floor_key()
    }

    fn record(cell: &ProducerFloor) -> FloorRecord {
        FloorRecord {
            floor: cell.floor.0,
            survivors: cell.survivors.iter().map(|pid| pid.0).collect(),
        }
    }

    fn bytes(cell: &ProducerFloor) -> usize {
        16 + cell.survivors.len() * 8
    }

    fn restore(state: &mut State, record: FloorRecord) -> Result<(), &'static str> {
        state.producer_floor = ProducerFloor {
            floor: ProducerId(record.floor),
            survivors: record.survivors.into_iter().map(ProducerId).collect(),
        };
        Ok(())
    }
}
