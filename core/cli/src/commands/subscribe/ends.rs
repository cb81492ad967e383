//! Which partitions are read as far as they shall be: pure, fed with what comes.

use std::collections::{BTreeMap, BTreeSet};

use millstream_client::TopicPartition;

/// Where reading stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// Where each partition ends when the command begins.
    End,
    /// Before this offset of each partition.
    Offset(u64),
    /// Before each partition's first record of this time or later, in milliseconds since the Unix epoch.
    Timestamp(i64),
}

/// The partitions that are not read as far as they shall be.
#[derive(Clone, Debug, Default)]
pub(super) struct Ends {
    open: BTreeSet<TopicPartition>,
    /// The first offset of each that is not to be read.
    limits: BTreeMap<TopicPartition, u64>,
    /// The same for those that have none of their own.
    limit: Option<u64>,
    before_ms: Option<i64>,
}

impl Ends {
    /// Each partition up to the same offset.
    pub(super) fn at_offset(
        partitions: impl IntoIterator<Item = TopicPartition>,
        offset: u64,
    ) -> Self {
        Self {
            open: partitions.into_iter().collect(),
            limit: Some(offset),
            ..Self::default()
        }
    }

    /// Each partition up to an offset of its own.
    pub(super) fn at_offsets(limits: impl IntoIterator<Item = (TopicPartition, u64)>) -> Self {
        let limits: BTreeMap<_, _> = limits.into_iter().collect();
        Self {
            open: limits.keys().cloned().collect(),
            limits,
            ..Self::default()
        }
    }

    /// Each partition up to its first record of this time or later. Where there is none yet, `close` says
    /// when to stop.
    pub(super) fn before(
        partitions: impl IntoIterator<Item = TopicPartition>,
        before_ms: i64,
    ) -> Self {
        Self {
            open: partitions.into_iter().collect(),
            before_ms: Some(before_ms),
            ..Self::default()
        }
    }

    /// The time has come: nothing behind these offsets is to be read.
    pub(super) fn close(&mut self, limits: impl IntoIterator<Item = (TopicPartition, u64)>) {
        self.limits.extend(limits);
    }

    /// Whether a record at this place is to be read. If not, nothing behind it in its partition is.
    pub(super) fn admits(
        &mut self,
        partition: &TopicPartition,
        offset: u64,
        timestamp_ms: i64,
    ) -> bool {
        let limit = self.limits.get(partition).copied().or(self.limit);
        let admitted = limit.is_none_or(|limit| offset < limit)
            && self.before_ms.is_none_or(|before| timestamp_ms < before);
        if !admitted {
            self.open.remove(partition);
        }
        admitted && self.open.contains(partition)
    }

    /// Everything before `next` was read. Whether that is as far as it shall be.
    pub(super) fn reached(&mut self, partition: &TopicPartition, next: u64) -> bool {
        let limit = self.limits.get(partition).copied().or(self.limit);
        if limit.is_some_and(|limit| next >= limit) {
            self.open.remove(partition);
        }
        !self.open.contains(partition)
    }

    /// Nothing more comes of this partition.
    pub(super) fn give_up(&mut self, partition: &TopicPartition) {
        self.open.remove(partition);
    }

    /// The partitions that are not read as far as they shall be.
    pub(super) fn open(&self) -> impl Iterator<Item = &TopicPartition> {
        self.open.iter()
    }

    /// Whether all are read as far as they shall be.
    pub(super) fn is_over(&self) -> bool {
        self.open.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(number: u32) -> TopicPartition {
        TopicPartition::new("t", number)
    }

    #[test]
    fn until_an_offset() {
        let mut ends = Ends::at_offset([partition(0), partition(1)], 10);
        assert!(ends.admits(&partition(0), 9, 0));
        assert!(ends.reached(&partition(0), 10));
        assert!(!ends.admits(&partition(0), 10, 0));
        assert!(!ends.is_over());
        assert!(!ends.reached(&partition(1), 9));
        // Offsets may have holes: what follows one is enough to know.
        assert!(!ends.admits(&partition(1), 12, 0));
        assert!(ends.is_over());
    }

    #[test]
    fn until_each_ends() {
        let mut ends = Ends::at_offsets([(partition(0), 5), (partition(1), 0)]);
        // Nothing is in it: where it begins says so.
        assert!(ends.reached(&partition(1), 0));
        assert!(!ends.reached(&partition(0), 4));
        ends.give_up(&partition(0));
        assert!(ends.is_over());
    }

    #[test]
    fn until_a_time() {
        let mut ends = Ends::before([partition(0), partition(1)], 1_000);
        assert!(ends.admits(&partition(0), 0, 999));
        assert!(!ends.reached(&partition(0), 1));
        assert!(!ends.admits(&partition(0), 1, 1_000));
        // A later record may be of an earlier time: it stands behind the first of that time.
        assert!(!ends.admits(&partition(0), 2, 500));
        assert!(!ends.is_over());
        ends.close([(partition(0), 9), (partition(1), 3)]);
        assert!(!ends.reached(&partition(1), 2));
        assert!(ends.reached(&partition(1), 3) && ends.is_over());
    }
}
