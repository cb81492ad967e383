//! Topics in a snapshot.

#![allow(
    missing_debug_implementations,
    reason = "rkyv's resolvers, which no code here names"
)]

use millstream_batch::ids::{PartitionSlot, ShardId, TopicId};

use super::cell::{Catalogue, Topic};
use super::meta::TopicMeta;
use crate::fact::archive::{SlotRecord, TopicRecord, archived};
use crate::snapshot::key::{self, Key};
use crate::snapshot::table::Section;
use crate::state::State;

archived! {
    pub struct CatalogueRecord {
        pub revision: u64,
        pub slot_next: u32,
        pub deleted: Vec<DeletedRecord>,
        /// At the catalogue's shard: by shard, up to which revision it has applied all changes.
        pub known: Vec<KnownRecord>,
    }

    pub struct DeletedRecord {
        pub id: [u8; 16],
        pub revision: u64,
    }

    pub struct KnownRecord {
        pub shard: u16,
        pub revision: u64,
    }

    pub struct TopicCellRecord {
        pub topic: TopicRecord,
        pub slots: Vec<SlotRecord>,
    }
}

pub(super) fn catalogue_key() -> Key {
    key::of::<CatalogueSection>(&[])
}

pub(super) fn key(id: TopicId) -> Key {
    key::of::<TopicsSection>(&id.0)
}

/// One cell.
pub(crate) struct CatalogueSection;

impl Section for CatalogueSection {
    type Cell<'a> = &'a Catalogue;
    type Record = CatalogueRecord;

    fn after<'a>(
        state: &'a State,
        last: Option<&[u8]>,
    ) -> impl Iterator<Item = Self::Cell<'a>> + 'a {
        last.is_none().then_some(&state.catalogue).into_iter()
    }

    fn key(_: &Catalogue) -> Key {
        catalogue_key()
    }

    fn record(cell: &Catalogue) -> CatalogueRecord {
        CatalogueRecord {
            revision: cell.revision,
            slot_next: cell.slot_next.0,
            deleted: cell
                .deleted
                .iter()
                .map(|(id, revision)| DeletedRecord {
                    id: id.0,
                    revision: *revision,
                })
                .collect(),
            known: cell
                .known
                .iter()
                .map(|(shard, revision)| KnownRecord {
                    shard: shard.0,
                    revision: *revision,
                })
                .collect(),
        }
    }

    fn bytes(cell: &Catalogue) -> usize {
        32 + cell.deleted.len() * 24 + cell.known.len() * 16
    }

    fn restore(state: &mut State, record: CatalogueRecord) -> Result<(), &'static str> {
        state.catalogue = Catalogue {
            revision: record.revision,
            slot_next: PartitionSlot(record.slot_next),
            deleted: record
                .deleted
                .iter()
                .map(|deleted| (TopicId(deleted.id), deleted.revision))
                .collect(),
            known: record
                .known
                .iter()
                .map(|known| (ShardId(known.shard), known.revision))
                .collect(),
        };
        Ok(())
    }
}

/// By id.
pub(crate) struct TopicsSection;

impl Section for TopicsSection {
    type Cell<'a> = &'a Topic;
    type Record = TopicCellRecord;

    fn after<'a>(
        state: &'a State,
        last: Option<&[u8]>,
    ) -> impl Iterator<Item = Self::Cell<'a>> + 'a {
        let last = last.map(|key| TopicId(key::fixed(key)));
        state.topics.after(last)
    }

    fn key(cell: &Topic) -> Key {
        key(cell.meta.id)
    }

    fn record(cell: &Topic) -> TopicCellRecord {
        let slots = cell.slots.iter().map(|(index, slot)| SlotRecord {
            index: *index,
            slot: slot.0,
        });
        TopicCellRecord {
            topic: (&cell.meta).into(),
            slots: slots.collect(),
        }
    }

    fn bytes(cell: &Topic) -> usize {
        let filters = cell.meta.filters.iter().map(|filter| {
            let parameters = filter.parameters.iter();
            128 + parameters
                .map(|(key, value)| 16 + key.len() + value.len())
                .sum::<usize>()
        });
        96 + cell.meta.name.len() + cell.slots.len() * 8 + filters.sum::<usize>()
    }

    fn restore(state: &mut State, record: TopicCellRecord) -> Result<(), &'static str> {
        let id = TopicId(record.topic.id);
        let sorted = record
            .slots
            .is_sorted_by(|a, b| a.index < b.index && a.slot < b.slot);
        if !record.topic.is_sound() || !sorted || state.topics.cell(id).is_some() {
            return Err("a topic that cannot be");
        }
        let slots = record.slots.iter();
        let slots = slots.map(|record| (record.index, PartitionSlot(record.slot)));
        state.topics.put(TopicMeta::from(&record.topic), slots);
        Ok(())
    }
}
