//! What a restored snapshot holds already, so that the replay of the tail does not do it twice.
//!
//! Each slice of a snapshot covers a range of keys as of one lsn, cells that were absent included. A
//! fact at or below that lsn is in the slice; one above is not.

use millstream_batch::ids::Lsn;

use super::key::Key;

#[derive(Clone, Debug, Default)]
pub(crate) struct Guard {
    /// (last key of the range, as of), by key; a range begins after the one before.
    ranges: Vec<(Key, Lsn)>,
    /// The newest of them. 0: nothing is guarded.
    newest: Lsn,
}

impl Guard {
    pub(super) fn cover(&mut self, last: Key, as_of: Lsn) {
        self.newest = self.newest.max(as_of);
        self.ranges.push((last, as_of));
    }

    pub(super) fn covered_to(&self) -> Option<&Key> {
        self.ranges.last().map(|(last, _)| last)
    }

    /// Whether the snapshot's state of this cell includes the fact at `lsn`.
    pub(crate) fn holds(&self, lsn: Lsn, key: impl FnOnce() -> Key) -> bool {
        if lsn > self.newest {
            return false; // always so once the tail is replayed
        }
        let key = key();
        let range = self.ranges.partition_point(|(last, _)| *last < key);
        self.ranges
            .get(range)
            .is_some_and(|(_, as_of)| lsn <= *as_of)
    }

    /// Forgets everything once no later fact can be in the snapshot.
    pub(crate) fn passed(&mut self, lsn: Lsn) {
        if self.newest.0 > 0 && lsn >= self.newest {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_holds_what_was_done_up_to_its_lsn() {
        let mut guard = Guard::default();
        guard.cover(vec![3, 5], Lsn(10));
        guard.cover(vec![4, 0], Lsn(20));
        guard.cover(vec![255], Lsn(30));
        let holds = |guard: &Guard, lsn, key: &[u8]| guard.holds(Lsn(lsn), || key.to_vec());
        assert!(holds(&guard, 10, &[1]) && !holds(&guard, 11, &[1]));
        assert!(holds(&guard, 10, &[3, 5]) && !holds(&guard, 11, &[3, 5]));
        assert!(
            holds(&guard, 20, &[3, 6]) && !holds(&guard, 21, &[3, 6]),
            "absent cells are covered too"
        );
        assert!(holds(&guard, 30, &[7]) && !holds(&guard, 31, &[7]));
        guard.passed(Lsn(29));
        assert!(holds(&guard, 30, &[7]));
        guard.passed(Lsn(30));
        assert!(!holds(&guard, 1, &[1]));
    }
}
