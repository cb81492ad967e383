//! What filters did, by the deployment's name: counted once a batch.
//!
//! Absent on purpose: labels beyond the name, which would be unbounded.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rustc_hash::FxHashMap;

use crate::call::FilterStatus;

/// Names that are counted on their own; more are counted together under [`OTHERS`].
const NAMES_MAX: usize = 1_000;
/// The row of all names past that. No deployment can have it: it is no name.
const OTHERS: &str = "(others)";

/// See the module's header. Shared by hosts that are counted together.
#[derive(Debug, Default)]
pub struct FilterCounts(Mutex<FxHashMap<String, FilterStatus>>);

impl FilterCounts {
    /// All rows, sorted by name.
    #[must_use]
    pub fn rows(&self) -> Vec<FilterStatus> {
        sorted(self.lock().values().cloned().collect())
    }

    /// All rows; afterwards there are none.
    pub(super) fn take(&self) -> Vec<FilterStatus> {
        let rows = std::mem::take(&mut *self.lock());
        rows.into_values().collect()
    }

    /// Add what was counted elsewhere.
    pub fn add(&self, rows: Vec<FilterStatus>) {
        for row in rows {
            self.of(&row.name, |count| {
                count.calls += row.calls;
                count.records += row.records;
                count.kept += row.kept;
                count.errors += row.errors;
                count.failed += row.failed;
                count.kills += row.kills;
                count.nanos += row.nanos;
            });
        }
    }

    pub(super) fn of(&self, name: &str, count: impl FnOnce(&mut FilterStatus)) {
        let mut rows = self.lock();
        let name = if rows.contains_key(name) || rows.len() < NAMES_MAX {
            name
        } else {
            OTHERS
        };
        if let Some(row) = rows.get_mut(name) {
            return count(row);
        }
        let row = rows.entry(name.to_owned()).or_default();
        name.clone_into(&mut row.name);
        count(row);
    }

    fn lock(&self) -> MutexGuard<'_, FxHashMap<String, FilterStatus>> {
        // Rows are numbers: a panic leaves nothing half done that matters.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sorted(mut rows: Vec<FilterStatus>) -> Vec<FilterStatus> {
    rows.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_and_nothing_is_lost() {
        let counts = FilterCounts::default();
        for name in 0..NAMES_MAX + 7 {
            counts.of(&format!("f{name:04}"), |count| count.kills += 1);
        }
        counts.of("f0000", |count| count.kills += 1);
        let rows = counts.rows();
        assert_eq!(rows.len(), NAMES_MAX + 1);
        assert_eq!((rows[0].name.as_str(), rows[0].kills), (OTHERS, 7));
        assert_eq!((rows[1].name.as_str(), rows[1].kills), ("f0000", 2));

        let more = FilterCounts::default();
        more.add(counts.take());
        assert_eq!(counts.rows().len(), 0);
        let all: u64 = more.rows().iter().map(|row| row.kills).sum();
        assert_eq!(all, NAMES_MAX as u64 + 8);
    }
}
