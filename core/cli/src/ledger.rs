//! What `sub` has printed as a member of a group, and what of that is committed.
//!
//! Printed and not committed is printed again by the group's next member: a command that ends like that
//! has not done what it was asked. Absent: committing itself.

use std::collections::{BTreeMap, BTreeSet};

use millstream_client::TopicPartition;

/// See the module's header.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Next offset to read of what was printed and not yet committed.
    printed: BTreeMap<TopicPartition, u64>,
    /// Partitions whose newest commit failed, until one succeeds or they are given anew.
    failed: BTreeSet<TopicPartition>,
}

impl Ledger {
    /// Everything below `next` is printed.
    pub(crate) fn print(&mut self, partition: TopicPartition, next: u64) {
        self.printed.insert(partition, next);
    }

    pub(crate) fn has_printed(&self) -> bool {
        !self.printed.is_empty()
    }

    /// What is to be committed now, of the partitions that are `ours`. It is taken.
    pub(crate) fn due(
        &mut self,
        ours: &[TopicPartition],
    ) -> Vec<(TopicPartition, u64, &'static str)> {
        let printed = std::mem::take(&mut self.printed).into_iter();
        printed
            .filter(|(partition, _)| ours.contains(partition))
            .map(|(partition, next)| (partition, next, ""))
            .collect()
    }

    /// What was due is committed, but for these.
    pub(crate) fn committed<'a>(
        &mut self,
        due: &[(TopicPartition, u64, &'static str)],
        failed: impl Iterator<Item = &'a TopicPartition>,
    ) {
        for (partition, ..) in due {
            self.failed.remove(partition);
        }
        self.failed.extend(failed.cloned());
    }

    /// What was due is not committed, and will be due again.
    pub(crate) fn not_committed(&mut self, due: Vec<(TopicPartition, u64, &'static str)>) {
        for (partition, next, _) in due {
            self.printed.entry(partition).or_insert(next);
        }
    }

    /// The group took these away. Those of which something was printed and not committed: it comes again.
    pub(crate) fn take_away(&mut self, partitions: &[TopicPartition]) -> Vec<TopicPartition> {
        let again = partitions
            .iter()
            .filter(|partition| self.printed.remove(partition).is_some());
        again.cloned().collect()
    }

    /// The group gave this one: what was printed of it before is of another time.
    pub(crate) fn give(&mut self, partition: &TopicPartition) {
        self.failed.remove(partition);
    }

    /// Whether all that was printed is committed, or was given away to be read again.
    pub(crate) fn is_settled(&self) -> bool {
        self.printed.is_empty() && self.failed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(index: u32) -> TopicPartition {
        TopicPartition::new("t", index)
    }

    #[test]
    fn what_is_printed_and_not_committed_is_not_settled() {
        let (a, b) = (partition(0), partition(1));
        let mut ledger = Ledger::default();
        assert!(ledger.is_settled());
        ledger.print(a.clone(), 3);
        ledger.print(b.clone(), 5);
        assert!(ledger.has_printed() && !ledger.is_settled());
        let due = ledger.due(&[a.clone(), b.clone()]);
        assert_eq!(due, [(a.clone(), 3, ""), (b.clone(), 5, "")]);
        ledger.committed(&due, [&b].into_iter());
        assert!(!ledger.is_settled(), "one of the commits failed");
        ledger.print(b.clone(), 6);
        let due = ledger.due(&[a.clone(), b.clone()]);
        ledger.committed(&due, [].into_iter());
        assert!(ledger.is_settled(), "a later commit made up for it");
    }

    #[test]
    fn a_connection_that_was_lost_leaves_it_due_and_newer_prints_stand() {
        let a = partition(0);
        let mut ledger = Ledger::default();
        ledger.print(a.clone(), 3);
        let due = ledger.due(std::slice::from_ref(&a));
        ledger.print(a.clone(), 4);
        ledger.not_committed(due);
        assert_eq!(ledger.due(std::slice::from_ref(&a)), [(a, 4, "")]);
    }

    #[test]
    fn what_was_taken_away_is_said_once_and_given_anew_it_is_of_another_time() {
        let a = partition(0);
        let mut ledger = Ledger::default();
        ledger.print(a.clone(), 3);
        let due = ledger.due(std::slice::from_ref(&a));
        ledger.committed(&due, [&a].into_iter());
        ledger.print(a.clone(), 4);
        let one = std::slice::from_ref(&a);
        assert_eq!(ledger.take_away(one), one);
        assert_eq!(ledger.take_away(one), []);
        assert!(!ledger.is_settled(), "nobody said yet who has it");
        ledger.give(&a);
        assert!(ledger.is_settled());
        ledger.print(a.clone(), 4);
        assert_eq!(ledger.due(&[]), [], "not ours any more");
    }
}
