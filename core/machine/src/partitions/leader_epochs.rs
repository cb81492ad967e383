//! The leader epochs of one partition: which term of the shard's log wrote from which offset on.
//!
//! ```text
//!   offset   0 ────────── 41 ────────── 90 ──── end
//!   epoch    0             3             4            stored as (3, 41) (4, 90)
//! ```
//!
//! A term rises when an end of the log may have been lost, so offsets past a cut are given again only
//! under a higher epoch. A reader that names the epoch of the last record it read can then be told
//! whether that record is still there: it is not when a higher epoch begins below its position.
//!
//! Absent on purpose: who raises the term (the log, at start); the reader's own comparison.

use millstream_batch::ids::{Offset, Term};

use crate::bounds::LEADER_EPOCHS_MAX;

/// Where an epoch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EpochStart {
    pub(crate) epoch: Term,
    pub(crate) start: Offset,
}

/// Epochs and starts, both rising. What is before the first is of epoch 0, or of epochs forgotten.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LeaderEpochs(Vec<EpochStart>);

impl LeaderEpochs {
    /// `None`: not rising, so no partition's.
    pub(crate) fn of(starts: Vec<EpochStart>) -> Option<Self> {
        let rising = starts.is_sorted_by(|a, b| a.epoch < b.epoch && a.start < b.start);
        let above = starts.first().is_none_or(|first| first.epoch > Term(0));
        (rising && above && starts.len() <= LEADER_EPOCHS_MAX).then_some(Self(starts))
    }

    pub(crate) fn starts(&self) -> &[EpochStart] {
        &self.0
    }

    /// A batch of this epoch was appended. Past the bound the two oldest become one, of the higher
    /// epoch: a reader that old may then be told of a cut further down than it was, never of none.
    pub(crate) fn note(&mut self, epoch: Term, base: Offset) {
        let last = self.0.last().map_or(Term(0), |last| last.epoch);
        if epoch <= last {
            return;
        }
        if self.0.len() >= LEADER_EPOCHS_MAX {
            self.0[1].start = self.0[0].start;
            self.0.remove(0);
        }
        self.0.push(EpochStart { epoch, start: base });
    }

    /// Nothing below `start` is read any more: epochs that end there are forgotten.
    pub(crate) fn trim(&mut self, start: Offset) {
        let ended = self.0.iter().skip(1).take_while(|next| next.start <= start);
        let ended = ended.count();
        self.0.drain(..ended);
    }

    /// Where the first epoch above this one begins, if one does.
    pub(crate) fn end_of(&self, epoch: Term) -> Option<Offset> {
        let above = self.0.iter().find(|start| start.epoch > epoch);
        above.map(|start| start.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epochs(starts: &[(u32, u64)]) -> LeaderEpochs {
        let mut epochs = LeaderEpochs::default();
        for (epoch, base) in starts {
            epochs.note(Term(*epoch), Offset(*base));
        }
        epochs
    }

    #[test]
    fn an_epoch_ends_where_a_higher_one_begins() {
        let mut epochs = epochs(&[(0, 0), (0, 7), (3, 41), (3, 50), (4, 90)]);
        assert_eq!(epochs.starts().len(), 2, "epoch 0 needs no entry");
        let end = |epochs: &LeaderEpochs, epoch| epochs.end_of(Term(epoch)).map(|end| end.0);
        assert_eq!(end(&epochs, 0), Some(41));
        assert_eq!((end(&epochs, 2), end(&epochs, 3)), (Some(41), Some(90)));
        assert_eq!((end(&epochs, 4), end(&epochs, 9)), (None, None));
        epochs.trim(Offset(89));
        assert_eq!(end(&epochs, 0), Some(41));
        epochs.trim(Offset(90));
        assert_eq!(end(&epochs, 0), Some(90), "nothing below is read any more");
        assert!(LeaderEpochs::of(epochs.starts().to_vec()) == Some(epochs));
    }

    #[test]
    fn forgotten_epochs_err_on_the_side_of_telling() {
        let starts: Vec<(u32, u64)> = (1..=LEADER_EPOCHS_MAX as u32 + 10)
            .map(|epoch| (epoch, u64::from(epoch) * 10))
            .collect();
        let epochs = epochs(&starts);
        assert_eq!(epochs.starts().len(), LEADER_EPOCHS_MAX);
        for (epoch, _) in &starts {
            let exact = starts.get(*epoch as usize).map(|(_, start)| *start);
            let told = epochs.end_of(Term(*epoch)).map(|end| end.0);
            assert!(told <= exact && told.is_some() == exact.is_some());
            assert!(*epoch <= 11 || told == exact, "the newest are exact");
        }
    }

    #[test]
    fn what_does_not_rise_is_no_partitions() {
        let start = |epoch, start| EpochStart {
            epoch: Term(epoch),
            start: Offset(start),
        };
        assert!(LeaderEpochs::of(vec![]).is_some());
        assert!(LeaderEpochs::of(vec![start(1, 0), start(2, 5)]).is_some());
        assert!(LeaderEpochs::of(vec![start(2, 0), start(1, 5)]).is_none());
        assert!(LeaderEpochs::of(vec![start(1, 5), start(2, 5)]).is_none());
        assert!(LeaderEpochs::of(vec![start(0, 5)]).is_none());
    }
}
