//! Partitions in a snapshot.

#![allow(
    missing_debug_implementations,
    reason = "rkyv's resolvers, which no code here names"
)]

use millstream_batch::ids::{Offset, Partition, PartitionSlot, Term, TimestampMs, TopicId};

use super::cell::PartitionCell;
use super::leader_epochs::{EpochStart, LeaderEpochs};
use crate::fact::archive::archived;
use crate::snapshot::key::{self, Key};
use crate::snapshot::table::Section;
use crate::state::State;

archived! {
    pub struct PartitionRecord {
        pub slot: u32,
        pub topic: [u8; 16],
        pub index: u32,
        pub start: u64,
        pub end: u64,
        pub bytes: u64,
        pub last_append_ms: i64,
        pub leader_epochs: Vec<LeaderEpochRecord>,
    }

    /// From `start` on batches are of this epoch, until the next one's start. Both rise.
    pub struct LeaderEpochRecord {
        pub epoch: u32,
        pub start: u64,
    }
}

pub(crate) fn key(slot: PartitionSlot) -> Key {
    key::of::<PartitionsSection>(&slot.0.to_be_bytes())
}

/// By slot.
pub(crate) struct PartitionsSection;

impl Section for PartitionsSection {
    type Cell<'a> = (PartitionSlot, &'a PartitionCell);
    type Record = PartitionRecord;

    fn after<'a>(
        state: &'a State,
        last: Option<&[u8]>,
    ) -> impl Iterator<Item = Self::Cell<'a>> + 'a {
        let last = last.map(|key| PartitionSlot(u32::from_be_bytes(key::fixed(key))));
        state.partitions.after(last)
    }

    fn key((slot, _): Self::Cell<'_>) -> Key {
        key(slot)
    }

    fn record((slot, cell): Self::Cell<'_>) -> PartitionRecord {
        let epochs = cell.epochs.starts().iter();
        PartitionRecord {
            slot: slot.0,
            topic: cell.partition.topic.0,
            index: cell.partition.index,
            start: cell.start.0,
            end: cell.end.0,
            bytes: cell.bytes,
            last_append_ms: cell.last_append.0,
            leader_epochs: epochs
                .map(|start| LeaderEpochRecord {
                    epoch: start.epoch.0,
                    start: start.start.0,
                })
                .collect(),
        }
    }

    fn bytes((_, cell): Self::Cell<'_>) -> usize {
        64 + cell.epochs.starts().len() * 16
    }

    fn restore(state: &mut State, record: PartitionRecord) -> Result<(), &'static str> {
        let slot = PartitionSlot(record.slot);
        let starts = record.leader_epochs.iter().map(|record| EpochStart {
            epoch: Term(record.epoch),
            start: Offset(record.start),
        });
        let epochs = LeaderEpochs::of(starts.collect());
        let (Some(epochs), None) = (epochs, state.partitions.at(slot)) else {
            return Err("a partition that cannot be");
        };
        if record.start > record.end {
            return Err("a partition that cannot be");
        }
        let cell = PartitionCell {
            partition: Partition {
                topic: TopicId(record.topic),
                index: record.index,
            },
            start: Offset(record.start),
            end: Offset(record.end),
            bytes: record.bytes,
            last_append: TimestampMs(record.last_append_ms),
            epochs,
            producers: 0,
        };
        state.partitions.put(slot, cell);
        Ok(())
    }
}
