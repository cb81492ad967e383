//! Which kills count against a deployment. Pure. Deliberately absent: what so many lead to (`placement`).

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use crate::placement::{KILL_WINDOW, KILLS_MAX};

/// Records that are remembered for what they did; past it, all are forgotten.
const KNOWN_MAX: usize = 1_024;

/// The latest kills that count, as times since the deployment was made.
///
/// A record that kills counts once, however often it is tried again. While the component judges others,
/// further records count only when it was time that ran out: a crash of one record costs little, a
/// component that does nothing but crash is to be paused.
#[derive(Debug, Default)]
pub(crate) struct Kills {
    recent: VecDeque<Duration>,
    /// Records, by hash.
    known: BTreeSet<u64>,
    /// Something was judged since the last kill that counted.
    judged: bool,
}

impl Kills {
    /// The component judged records.
    pub(crate) fn judged(&mut self) {
        self.judged = true;
    }

    /// An instance was killed, by this record or by none alone: how many that count there have now been
    /// within the window.
    pub(crate) fn add(&mut self, now: Duration, record: Option<u64>, is_proof: bool) -> u32 {
        if self.counts(record, is_proof) {
            self.recent.push_back(now);
            self.judged = false;
        }
        let too_old = |at: &Duration| now.saturating_sub(*at) > KILL_WINDOW;
        while self.recent.front().is_some_and(too_old) {
            self.recent.pop_front();
        }
        // More than pause it say nothing more.
        if self.recent.len() > KILLS_MAX as usize {
            self.recent.pop_front();
        }
        self.recent.len() as u32
    }

    /// A batch was too large for the budget, and was judged in parts. That is one for a worker, so it counts
    /// where nothing else does; however many there are, they do not add up. As [`add`](Self::add).
    pub(crate) fn too_large(&mut self, now: Duration) -> u32 {
        let too_old = |at: &Duration| now.saturating_sub(*at) > KILL_WINDOW;
        while self.recent.front().is_some_and(too_old) {
            self.recent.pop_front();
        }
        if self.recent.is_empty() {
            self.recent.push_back(now);
        }
        self.recent.len() as u32
    }

    fn counts(&mut self, record: Option<u64>, is_proof: bool) -> bool {
        let Some(record) = record else {
            return true;
        };
        if self.known.len() >= KNOWN_MAX {
            self.known.clear();
        }
        let is_new = self.known.insert(record);
        let is_first = self.recent.is_empty();
        is_new && (is_first || !is_proof || !self.judged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn kills_of_the_whole_are_counted_within_a_minute() {
        let mut kills = Kills::default();
        assert_eq!(
            [0, 59, 60].map(|at| kills.add(s(at), None, true)),
            [1, 2, 3],
            "0, 59 and 60 s are within a minute"
        );
        let mut slow = Kills::default();
        assert_eq!(
            [0, 30, 61, 92].map(|at| slow.add(s(at), None, true)),
            [1, 2, 2, 2]
        );
        assert_eq!(
            slow.add(s(93), None, true),
            3,
            "61, 92 and 93 s are within a minute"
        );
    }

    #[test]
    fn a_record_counts_once_however_often_it_comes() {
        for is_proof in [true, false] {
            let mut kills = Kills::default();
            for at in 0..50 {
                assert_eq!(kills.add(s(at), Some(7), is_proof), 1);
            }
        }
    }

    #[test]
    fn records_that_crash_pause_nothing_while_others_are_judged() {
        let mut kills = Kills::default();
        for record in 0..50 {
            assert_eq!(kills.add(s(1), Some(record), true), 1);
            kills.judged();
        }
        for record in 50..52 {
            kills.add(s(2), Some(record), false);
            kills.judged();
        }
        assert_eq!(kills.recent.len(), 3, "each that used up its time counts");
    }

    #[test]
    fn a_component_that_only_crashes_is_seen() {
        let mut kills = Kills::default();
        assert_eq!([1, 2, 3].map(|r| kills.add(s(1), Some(r), true)), [1, 2, 3]);
    }
}
