//! The cells of groups' offsets, by group and slot.

use std::collections::{BTreeMap, VecDeque};

use millstream_batch::ids::{GroupEpoch, MemberId, Offset, PartitionSlot, TimestampMs};

use crate::bounds::FORGOTTEN_GROUPS_REMEMBERED;
use crate::fact::archive::{OffsetCommitted, OffsetReset};

/// What a group has in one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// 0: nobody; consumers with fixed partitions may commit.
    pub(crate) member: MemberId,
    /// Of the last claim, also after it was given up: never goes back.
    pub(crate) epoch: GroupEpoch,
    /// The next offset to read.
    pub(crate) offset: Option<Offset>,
    pub(crate) metadata: Box<str>,
    pub(crate) committed: TimestampMs,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Offsets {
    groups: BTreeMap<Box<str>, BTreeMap<PartitionSlot, Held>>,
    /// The groups deleted last, oldest first, each with the epoch that it had.
    pub(super) forgotten: VecDeque<(Box<str>, GroupEpoch)>,
    /// Counted, not archived.
    count: usize,
    metadata_bytes: usize,
}

impl Offsets {
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    pub(crate) fn cell(&self, group: &str, slot: PartitionSlot) -> Option<&Held> {
        self.groups.get(group)?.get(&slot)
    }

    /// Bytes of metadata of all commits.
    pub(crate) fn metadata_bytes(&self) -> usize {
        self.metadata_bytes
    }

    /// The epoch that a deleted group of this name had; 0 when none is remembered.
    pub(super) fn forgotten(&self, group: &str) -> GroupEpoch {
        let known = self.forgotten.iter().filter(|(name, _)| **name == *group);
        known.map(|(_, epoch)| *epoch).max().unwrap_or_default()
    }

    pub(super) fn remember_forgotten(&mut self, group: &str, epoch: GroupEpoch) {
        self.forgotten.retain(|(name, _)| **name != *group);
        if self.forgotten.len() == FORGOTTEN_GROUPS_REMEMBERED {
            self.forgotten.pop_front();
        }
        self.forgotten.push_back((group.into(), epoch));
    }

    pub(crate) fn groups_after(&self, after: &str) -> impl Iterator<Item = &str> + '_ {
        use std::ops::Bound::{Excluded, Unbounded};
        let groups = self.groups.range::<str, _>((Excluded(after), Unbounded));
        groups.map(|(group, _)| &**group)
    }

    pub(crate) fn of_group(
        &self,
        group: &str,
    ) -> impl Iterator<Item = (PartitionSlot, &Held)> + '_ {
        self.groups
            .get(group)
            .into_iter()
            .flatten()
            .map(|(slot, held)| (*slot, held))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, PartitionSlot, &Held)> + '_ {
        self.after(None)
    }

    pub(crate) fn after(
        &self,
        last: Option<(&str, PartitionSlot)>,
    ) -> impl Iterator<Item = (&str, PartitionSlot, &Held)> + '_ {
        use std::ops::Bound::{Excluded, Unbounded};
        let rest = last.and_then(|(group, slot)| Some((self.groups.get_key_value(group)?, slot)));
        let rest = rest.into_iter().flat_map(|((group, cells), slot)| {
            cells
                .range((Excluded(slot), Unbounded))
                .map(move |(slot, held)| (&**group, *slot, held))
        });
        let groups = self.groups.range::<str, _>((
            last.map_or(Unbounded, |(group, _)| Excluded(group)),
            Unbounded,
        ));
        rest.chain(groups.flat_map(|(group, cells)| {
            cells
                .iter()
                .map(move |(slot, held)| (&**group, *slot, held))
        }))
    }

    /// Changes a cell, made empty if there is none.
    pub(crate) fn change(
        &mut self,
        group: &str,
        slot: PartitionSlot,
        change: impl FnOnce(&mut Held),
    ) {
        if !self.groups.contains_key(group) {
            self.groups.insert(group.into(), BTreeMap::new());
        }
        let cells = self.groups.get_mut(group).expect("inserted above");
        let before = cells.len();
        let held = cells.entry(slot).or_default();
        let metadata_before = held.metadata.len();
        change(held);
        self.metadata_bytes = self.metadata_bytes + held.metadata.len() - metadata_before;
        self.count += cells.len() - before;
    }

    pub(crate) fn committed(&mut self, fact: &OffsetCommitted) {
        self.change(&fact.group, PartitionSlot(fact.slot), |held| {
            held.offset = Some(Offset(fact.offset));
            held.metadata = fact.metadata.as_str().into();
            held.committed = TimestampMs(fact.time_ms);
        });
    }

    pub(crate) fn reset(&mut self, fact: &OffsetReset) {
        self.change(&fact.group, PartitionSlot(fact.slot), |held| {
            held.member = MemberId(0);
            held.offset = Some(Offset(fact.offset));
            held.metadata = Box::default();
            held.committed = TimestampMs(fact.time_ms);
        });
    }

    pub(super) fn remove(&mut self, group: &str, slot: PartitionSlot) {
        let Some(cells) = self.groups.get_mut(group) else {
            return;
        };
        if let Some(held) = cells.remove(&slot) {
            self.count -= 1;
            self.metadata_bytes -= held.metadata.len();
        }
        if cells.is_empty() {
            self.groups.remove(group);
        }
    }

    /// `slots` are sorted.
    pub(crate) fn remove_slots(&mut self, slots: &[u32]) {
        let (Some(first), Some(last)) = (slots.first(), slots.last()) else {
            return;
        };
        let range = PartitionSlot(*first)..=PartitionSlot(*last);
        let gone: Vec<(Box<str>, PartitionSlot)> = self
            .groups
            .iter()
            .flat_map(|(group, cells)| {
                cells
                    .range(range.clone())
                    .map(move |(slot, _)| (group.clone(), *slot))
            })
            .filter(|(_, slot)| slots.binary_search(&slot.0).is_ok())
            .collect();
        for (group, slot) in gone {
            self.remove(&group, slot);
        }
    }
}
