//! The table of sections: each kind of cell that a snapshot holds, once, in the order of its keys.
//!
//! A section says how its cells are listed, named, archived and put back; numbers and versions stand here. A
//! changed archive is a new version: its row reads the old one beside it. Absent on purpose: what cells
//! mean (the feature's).

use super::key::{self, Key};
use crate::fact::{decode, encode};
use crate::state::State;
use crate::{clock, couriers, groups, offsets, partitions, producers, topics};

/// One kind of cell.
pub(crate) trait Section: Numbered {
    /// A cell as the state has it, with what names it.
    type Cell<'a>: Copy;
    /// A cell as it is archived.
    type Record;

    /// Cells behind one, named by its key without the number, in the order of their keys.
    fn after<'a>(
        state: &'a State,
        last: Option<&[u8]>,
    ) -> impl Iterator<Item = Self::Cell<'a>> + 'a;

    fn key(cell: Self::Cell<'_>) -> Key;

    fn record(cell: Self::Cell<'_>) -> Self::Record;

    /// About what it takes in the slice.
    fn bytes(cell: Self::Cell<'_>) -> usize;

    /// Puts a cell back. Says what cannot be.
    fn restore(state: &mut State, record: Self::Record) -> Result<(), &'static str>;
}

/// What the table gives a section.
pub(crate) trait Numbered {
    const NUMBER: u8;
}

/// Cells of one section in one slice.
pub(super) struct Gathered {
    pub(super) number: u8,
    pub(super) version: u8,
    /// An archived vector of the section's records.
    pub(super) records: Vec<u8>,
}

macro_rules! sections {
    ($($number:literal v $version:literal $section:ty;)*) => {
        $(impl Numbered for $section {
            const NUMBER: u8 = $number;
        })*

        /// Cells behind a key, until about `bytes_target` bytes are gathered. With the key of the last.
        pub(super) fn gather(
            state: &State,
            after: Option<&Key>,
            bytes_target: usize,
        ) -> (Vec<Gathered>, Key) {
            let mut gathered = Vec::new();
            let mut left = bytes_target;
            let begin = after.map_or(0, |key| key[0]);
            $(if begin <= $number {
                let last = after.filter(|key| key[0] == $number).map(|key| &key[1..]);
                let mut records = Vec::new();
                let mut full = None;
                for cell in <$section>::after(state, last) {
                    records.push(<$section>::record(cell));
                    left = left.saturating_sub(<$section>::bytes(cell));
                    if left == 0 {
                        full = Some(<$section>::key(cell));
                        break;
                    }
                }
                if !records.is_empty() {
                    gathered.push(Gathered {
                        number: $number,
                        version: $version,
                        records: encode(&records).into_vec(),
                    });
                }
                if let Some(last) = full {
                    return (gathered, last);
                }
            })*
            (gathered, key::end())
        }

        /// Puts back what was gathered. `None`: of a section or a version that is not known here.
        pub(super) fn restore(
            state: &mut State,
            number: u8,
            version: u8,
            records: &[u8],
        ) -> Option<Result<(), &'static str>> {
            match (number, version) {
                $(($number, $version) => {
                    let Some(records) = decode::<Vec<<$section as Section>::Record>>(records) else {
                        return Some(Err("not an archive"));
                    };
                    let mut records = records.into_iter();
                    Some(records.try_for_each(|record| <$section>::restore(state, record)))
                })*
                _ => None,
            }
        }
    };
}

sections! {
    1 v 1 clock::ClockSection;
    2 v 1 topics::CatalogueSection;
    3 v 1 producers::IdentitiesSection;
    4 v 1 producers::FloorSection;
    5 v 1 groups::FloorSection;
    6 v 1 offsets::ForgottenSection;
    16 v 1 topics::TopicsSection;
    17 v 1 partitions::PartitionsSection;
    18 v 1 producers::ProducersSection;
    19 v 1 producers::EpochsSection;
    20 v 1 offsets::OffsetsSection;
    21 v 1 groups::GroupsSection;
    22 v 1 couriers::OutboxSection;
    23 v 1 couriers::InboxSection;
}
