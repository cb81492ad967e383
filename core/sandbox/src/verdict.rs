//! What a filter says of each record of a batch, and the search for the records that it cannot judge.
//!
//! ```text
//! the whole failed ─▶ halves ─▶ … ─▶ one record fails alone: it is at fault
//!                        └─▶ a part that passes is judged, whatever its neighbours do
//! ```
//! Plain data and pure: [`Search`] says which part to ask about next and is told the answer.
//! Deliberately absent: asking (`deployment`), and what becomes of a record at fault (the policy).

use std::ops::Range;
use std::time::Duration;

use crate::bitmap::Bitmap;
use crate::error::FilterError;

/// Records at fault whose reason is kept; of more, only which they are.
const REASONS_MAX: usize = 16;
/// Calls of one search. Past them, or past the kills, what fails is not halved any more.
const CALLS_MAX: u32 = 1 << 16;
/// Instances killed by one search: a new one takes about a tenth of a millisecond.
const KILLS_MAX: u32 = 1 << 10;
/// Time budgets used up by one search, by calls that ran out of it or by all together.
const TIMEOUTS_MAX: u32 = 64;

/// What a filter says of each record of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Records to keep; those at fault are not among them.
    pub kept: Bitmap,
    /// Positions of the records that it could not judge, ascending.
    pub failed: Vec<u32>,
    /// Why, for the first of them: at most 16.
    pub reasons: Vec<FilterError>,
}

impl Verdict {
    /// All records were judged.
    pub(crate) fn of(kept: Bitmap) -> Self {
        Self {
            kept,
            failed: Vec::new(),
            reasons: Vec::new(),
        }
    }

    /// Whether some record was judged.
    pub(crate) fn judged_some(&self) -> bool {
        self.failed.len() < self.kept.records()
    }
}

/// A search under way. Ask about [`part`](Self::part), [`answer`](Self::answer), until there is none.
#[derive(Debug)]
pub(crate) struct Search {
    verdict: Verdict,
    /// Parts to ask about, the next one last.
    parts: Vec<Part>,
    calls: u32,
    kills: u32,
    timeouts: u32,
    /// Time that it may still take.
    left: Duration,
}

#[derive(Clone, Debug)]
struct Part {
    records: Range<usize>,
    /// It is one record, which ran out of time before: that alone proves nothing.
    again: bool,
}

impl Search {
    /// A batch of so many records failed so.
    ///
    /// # Errors
    /// The fault is no record's.
    pub(crate) fn new(records: usize, error: FilterError) -> Result<Self, FilterError> {
        let mut search = Self {
            verdict: Verdict::of(Bitmap::none(records)),
            parts: vec![Part {
                records: 0..records,
                again: false,
            }],
            calls: 0,
            kills: 0,
            timeouts: 0,
            left: Duration::MAX,
        };
        search.answer(Err(error))?;
        Ok(search)
    }

    /// A search of calls that may take so long each.
    pub(crate) fn of_calls_within(mut self, budget: Duration) -> Self {
        self.left = budget * TIMEOUTS_MAX;
        self
    }

    /// The next answer took so long.
    pub(crate) fn spend(&mut self, took: Duration) {
        self.left = self.left.saturating_sub(took);
    }

    /// What to ask about next.
    pub(crate) fn part(&self) -> Option<Range<usize>> {
        self.parts.last().map(|part| part.records.clone())
    }

    /// The answer about that part.
    ///
    /// # Errors
    /// The fault is no record's: the search is over.
    pub(crate) fn answer(
        &mut self,
        answer: Result<Bitmap, FilterError>,
    ) -> Result<(), FilterError> {
        let Some(Part { records, again }) = self.parts.pop() else {
            return Ok(());
        };
        self.calls += 1;
        let error = match answer {
            Ok(kept) => {
                self.verdict.kept.put(records.start, &kept);
                return Ok(());
            }
            Err(error) if error.may_be_of_a_record() && !records.is_empty() => error,
            Err(error) => return Err(error),
        };
        self.kills += u32::from(error.is_kill());
        self.timeouts += u32::from(!error.is_proof());
        if records.len() == 1 && !error.is_proof() && !again {
            let again = true;
            self.parts.push(Part { records, again });
        } else if records.len() == 1 || self.is_used_up() {
            self.condemn(records, &error);
        } else {
            let middle = records.start + records.len() / 2;
            for records in [middle..records.end, records.start..middle] {
                let again = false;
                self.parts.push(Part { records, again });
            }
        }
        Ok(())
    }

    pub(crate) fn verdict(self) -> Verdict {
        self.verdict
    }

    fn is_used_up(&self) -> bool {
        self.calls >= CALLS_MAX
            || self.kills >= KILLS_MAX
            || self.timeouts >= TIMEOUTS_MAX
            || self.left.is_zero()
    }

    fn condemn(&mut self, records: Range<usize>, error: &FilterError) {
        for record in records {
            self.verdict.failed.push(record as u32);
            if self.verdict.reasons.len() < REASONS_MAX {
                self.verdict.reasons.push(error.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> FilterError {
        FilterError::Refused("no".into())
    }

    fn out_of_time() -> FilterError {
        FilterError::OutOfTime { ms_max: 1 }
    }

    /// A component that keeps all but the bad records, and fails when one is in a part.
    fn judge(records: usize, bad: &[usize], error: &FilterError) -> (Verdict, u32) {
        let mut search = Search::new(records, error.clone()).expect("a record may be at fault");
        while let Some(part) = search.part() {
            let answer = if bad.iter().any(|record| part.contains(record)) {
                Err(error.clone())
            } else {
                Ok(Bitmap::all(part.len()))
            };
            search.answer(answer).expect("a record may be at fault");
        }
        let calls = search.calls;
        (search.verdict(), calls)
    }

    #[test]
    fn exactly_the_records_at_fault_are_found_wherever_they_are() {
        for records in [1, 2, 3, 7, 8, 9, 64, 1_000] {
            for bad in [
                vec![0],
                vec![records - 1],
                vec![records / 2],
                vec![0, records - 1],
                (0..records).step_by(3).collect(),
                (0..records).collect(),
            ] {
                let mut bad: Vec<usize> = bad;
                bad.dedup();
                for error in [refused(), out_of_time()] {
                    if error == out_of_time() && bad.len() > 4 {
                        continue; // past what one search may spend
                    }
                    let (verdict, _) = judge(records, &bad, &error);
                    let failed: Vec<usize> = verdict.failed.iter().map(|r| *r as usize).collect();
                    assert_eq!(failed, bad, "of {records}");
                    assert!((0..records).all(|r| verdict.kept.keeps(r) != bad.contains(&r)));
                    assert_eq!(verdict.reasons.len(), bad.len().min(REASONS_MAX));
                }
            }
        }
    }

    #[test]
    fn one_of_many_takes_few_calls() {
        let (_, calls) = judge(100_000, &[77_777], &refused());
        assert!(calls <= 2 * 17 + 1, "{calls}");
    }

    #[test]
    fn a_fault_of_the_whole_is_no_records() {
        let mut search = Search::new(10, FilterError::Trap("together".into())).expect("it may be");
        while let Some(part) = search.part() {
            search.answer(Ok(Bitmap::all(part.len()))).expect("judged");
        }
        let verdict = search.verdict();
        assert!(verdict.failed.is_empty() && verdict.kept.keeps_all());
    }

    #[test]
    fn time_condemns_a_record_only_when_it_runs_out_again() {
        let mut search = Search::new(1, out_of_time()).expect("it may be");
        assert_eq!(search.part(), Some(0..1));
        search.answer(Ok(Bitmap::all(1))).expect("judged");
        assert!(search.verdict().failed.is_empty(), "the machine was busy");
        assert_eq!(judge(1, &[0], &out_of_time()).0.failed, [0]);
    }

    #[test]
    fn a_search_ends_however_much_fails_and_condemns_nothing_unasked() {
        let records = 100_000;
        let bad: Vec<usize> = (0..records / 2).collect();
        let (verdict, calls) = judge(records, &bad, &out_of_time());
        assert!(calls < 2 * TIMEOUTS_MAX, "{calls}");
        assert_eq!(
            verdict.failed.len(),
            records / 2,
            "the other half passes whole"
        );
    }

    /// Answers that come just within the budget are no timeouts, and yet add up.
    #[test]
    fn a_search_of_slow_answers_ends() {
        let budget = Duration::from_secs(1);
        let mut search = Search::new(1 << 20, refused())
            .expect("a record may be at fault")
            .of_calls_within(budget);
        while search.part().is_some() {
            search.spend(budget * 9 / 10);
            search.answer(Err(refused())).expect("it goes on");
        }
        let calls = search.calls;
        assert!(calls < 2 * TIMEOUTS_MAX, "{calls}");
        assert_eq!(
            search.verdict().failed.len(),
            1 << 20,
            "all were asked about"
        );
    }

    #[test]
    fn what_is_no_records_fault_ends_it() {
        let paused = FilterError::Paused {
            kills: 3,
            window_ms: 1,
        };
        assert!(Search::new(2, paused.clone()).is_err());
        let mut search = Search::new(2, refused()).expect("it may be");
        assert_eq!(search.answer(Err(paused.clone())), Err(paused));
        assert!(Search::new(0, refused()).is_err());
    }
}
