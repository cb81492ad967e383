//! What becomes of a batch's records, by a filter's verdict and its deployment's policy. Pure.
//!
//! ```text
//!             judged        at fault
//!   pass      as it says    kept
//!   drop      as it says    dropped
//!   reject    as it says    refused; for a subscription the partition stops before the first
//! ```
//! Absent on purpose: faults that are no record's, for which the policy speaks of the whole batch.

use millstream_batch::ids::Offset;
use millstream_machine::topics::OnError;
use millstream_sandbox::{Bitmap, FilterError, Verdict};

/// See the module's header.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ruling {
    pub(super) keep: Bitmap,
    /// Records to tell the producer of: positions, and why for the first of them.
    pub(super) refused: Vec<u32>,
    pub(super) reasons: Vec<FilterError>,
    pub(super) stop: Option<Stop>,
}

/// The first record that a subscription is not to pass, and why.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stop {
    pub(super) offset: Offset,
    pub(super) why: FilterError,
}

impl Ruling {
    pub(super) fn at_produce(verdict: Verdict, on_error: OnError) -> Self {
        let mut ruling = Self::of(verdict);
        if on_error != OnError::Reject {
            ruling.settle(on_error);
        }
        ruling
    }

    /// `offsets` of the records, which only `reject` looks at; what is below `from` is not wanted, and stops
    /// nothing.
    pub(super) fn for_subscription(
        verdict: Verdict,
        on_error: OnError,
        offsets: &[Offset],
        from: Offset,
    ) -> Self {
        let mut ruling = Self::of(verdict);
        if on_error == OnError::Reject {
            let reasons = std::mem::take(&mut ruling.reasons);
            let stops = |record: u32| offsets.get(record as usize).filter(|at| **at >= from);
            let first = ruling.refused.iter().enumerate();
            let first = first.map(|(i, record)| (i, *record, stops(*record)));
            let mut first = first.filter_map(|(i, record, at)| Some((i, record, *at?)));
            if let Some((i, record, offset)) = first.next() {
                for record in record as usize..ruling.keep.records() {
                    ruling.keep.set(record, false);
                }
                // Reasons are kept of the first records at fault; of later ones the last that is known says it.
                let why = reasons.get(i).or(reasons.last()).cloned();
                ruling.stop = why.map(|why| Stop { offset, why });
            }
        }
        ruling.settle(on_error);
        ruling
    }

    fn of(verdict: Verdict) -> Self {
        Self {
            keep: verdict.kept,
            refused: verdict.failed,
            reasons: verdict.reasons,
            stop: None,
        }
    }

    /// Nobody is told.
    fn settle(&mut self, on_error: OnError) {
        self.reasons.clear();
        for record in std::mem::take(&mut self.refused) {
            if on_error == OnError::Pass {
                self.keep.set(record as usize, true);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of six records 1 and 4 are at fault, and 2 is dropped.
    fn verdict() -> Verdict {
        let mut kept = Bitmap::all(6);
        for record in [1, 2, 4] {
            kept.set(record, false);
        }
        let why = |text: &str| FilterError::Refused(text.into());
        Verdict {
            kept,
            failed: vec![1, 4],
            reasons: vec![why("one"), why("four")],
        }
    }

    fn kept(ruling: &Ruling) -> Vec<usize> {
        ruling.keep.iter_kept().collect()
    }

    #[test]
    fn a_policy_acts_on_the_records_at_fault_alone() {
        let offsets: Vec<Offset> = (10..16).map(Offset).collect();
        for (on_error, left) in [
            (OnError::Pass, vec![0, 1, 3, 4, 5]),
            (OnError::Drop, vec![0, 3, 5]),
        ] {
            let produced = Ruling::at_produce(verdict(), on_error);
            assert_eq!(
                (kept(&produced), &produced.refused[..]),
                (left.clone(), &[][..])
            );
            let read = Ruling::for_subscription(verdict(), on_error, &offsets, Offset(0));
            assert_eq!((kept(&read), read.stop), (left, None));
        }
        let produced = Ruling::at_produce(verdict(), OnError::Reject);
        assert_eq!(
            (kept(&produced), &produced.refused[..]),
            (vec![0, 3, 5], &[1, 4][..])
        );
        assert_eq!(produced.reasons.len(), 2);
    }

    #[test]
    fn a_subscription_stops_before_the_first_that_it_wants() {
        let offsets: Vec<Offset> = (10..16).map(Offset).collect();
        let read = |from: u64| {
            let from = Offset(from);
            let ruling = Ruling::for_subscription(verdict(), OnError::Reject, &offsets, from);
            let stop = ruling.stop.as_ref();
            (
                kept(&ruling),
                stop.map(|stop| (stop.offset.0, stop.why.of_record())),
            )
        };
        assert_eq!(read(0), (vec![0], Some((11, "one".to_owned()))));
        assert_eq!(read(12), (vec![0, 3], Some((14, "four".to_owned()))));
        assert_eq!(read(15), (vec![0, 3, 5], None));
    }
}
