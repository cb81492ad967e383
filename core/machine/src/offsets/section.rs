//! Groups' offsets in a snapshot.

#![allow(
    missing_debug_implementations,
    reason = "rkyv's resolvers, which no code here names"
)]

use millstream_batch::ids::{GroupEpoch, MemberId, Offset, PartitionSlot, TimestampMs};

use super::cell::{Held, Offsets};
use crate::fact::archive::archived;
use crate::snapshot::key::{self, Key};
use crate::snapshot::table::Section;
use crate::state::State;

archived! {
    pub struct OffsetRecord {
        pub group: String,
        pub slot: u32,
        pub member: u64,
        pub epoch: u64,
        pub offset: Option<u64>,
        pub metadata: String,
        pub committed_ms: i64,
    }

    pub struct ForgottenRecord {
        /// Oldest first.
        pub groups: Vec<ForgottenGroup>,
    }

    pub struct ForgottenGroup {
        pub name: String,
        pub epoch: u64,
    }
}

pub(super) fn forgotten_key() -> Key {
    key::of::<ForgottenSection>(&[])
}

pub(super) fn key(group: &str, slot: PartitionSlot) -> Key {
    let rest = [group.as_bytes(), &[0], &slot.0.to_be_bytes()].concat();
    key::of::<OffsetsSection>(&rest)
}

/// By group and slot.
pub(crate) struct OffsetsSection;

impl Section for OffsetsSection {
    type Cell<'a> = (&'a str, PartitionSlot, &'a Held);
    type Record = OffsetRecord;

    fn after<'a>(
        state: &'a State,
        last: Option<&[u8]>,
    ) -> impl Iterator<Item = Self::Cell<'a>> + 'a {
        let last = last.map(|key| {
            let (group, slot) = key.split_at(key.len() - 5);
            let slot = PartitionSlot(u32::from_be_bytes(key::fixed(&slot[1..])));
            (key::text(group), slot)
        });
        state.offsets.after(last)
    }

    fn key((group, slot, _): Self::Cell<'_>) -> Key {
        key(group, slot)
    }

    fn record((group, slot, held): Self::Cell<'_>) -> OffsetRecord {
        OffsetRecord {
            group: group.to_owned(),
            slot: slot.0,
            member: held.member.0,
            epoch: held.epoch.0,
            offset: held.offset.map(|offset| offset.0),
            metadata: held.metadata.to_string(),
            committed_ms: held.committed.0,
        }
    }

    fn bytes((group, _, held): Self::Cell<'_>) -> usize {
        64 + group.len() + held.metadata.len()
    }

    fn restore(state: &mut State, record: OffsetRecord) -> Result<(), &'static str> {
        let slot = PartitionSlot(record.slot);
        state.offsets.change(&record.group, slot, |held| {
            *held = Held {
                member: MemberId(record.member),
                epoch: GroupEpoch(record.epoch),
                offset: record.offset.map(Offset),
                metadata: record.metadata.as_str().into(),
                committed: TimestampMs(record.committed_ms),
            };
        });
        Ok(())
    }
}

/// One cell: the groups that were deleted last.
pub(crate) struct ForgottenSection;

impl Section for ForgottenSection {
    type Cell<'a> = &'a Offsets;
    type Record = ForgottenRecord;

    fn after<'a>(
        state: &'a State,
        last: Option<&[u8]>,
    ) -> impl Iterator<Item = Self::Cell<'a>> + 'a {
        last.is_none().then_some(&state.offsets).into_iter()
    }

    fn key(_: &Offsets) -> Key {
        forgotten_key()
    }

    fn record(cell: &Offsets) -> ForgottenRecord {
        let groups = cell.forgotten.iter().map(|(name, epoch)| ForgottenGroup {
            name: name.to_string(),
            epoch: epoch.0,
        });
        ForgottenRecord {
            groups: groups.collect(),
        }
    }

    fn bytes(cell: &Offsets) -> usize {
        16 + cell.forgotten.len() * 48
    }

    fn restore(state: &mut State, record: ForgottenRecord) -> Result<(), &'static str> {
        let groups = record.groups.iter();
        let groups = groups.map(|group| (group.name.as_str().into(), GroupEpoch(group.epoch)));
        state.offsets.forgotten = groups.collect();
        Ok(())
    }
}
