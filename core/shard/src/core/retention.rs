//! Which ranges may go: the rule alone.
//!
//! By time, a range goes when its newest append is older than the topic keeps; by size, when what
//! stays behind it is at least what the topic keeps. Ranges go oldest first: a start never jumps over
//! a range that stays. By size only sealed ranges count, so a partition keeps a little more than
//! asked, never less. By time, ranges of files not yet sealed go too, since nothing may ever fill
//! those: a little late and then several at once, so that a slow partition is not trimmed by a fact a
//! batch.

use millstream_batch::ids::{Lsn, Offset, TimestampMs};
use millstream_log::{OpenRange, SealedRange};
use millstream_machine::clock::Accepted;

/// How late ranges that are not sealed go: one part in so many of what is kept, and at most so long.
const LATE_PART: i64 = 8;
const LATE_MS_MAX: i64 = 300_000;

/// Time as retention sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Age {
    pub now: TimestampMs,
    /// Logged time: whatever is ahead of it was logged before a clock was accepted.
    pub logged: TimestampMs,
    pub accepted: Option<Accepted>,
}

impl Age {
    /// When a sealed range was appended, as far as retention is concerned. `followed` is the time of
    /// the partition's next range, or of its last append.
    fn of(self, range: &SealedRange, followed: TimestampMs) -> TimestampMs {
        let logged = range.append_time_max;
        self.accepted.map_or(logged, |accepted| {
            accepted.effective(logged, range.file_last, followed, self.logged)
        })
    }

    /// As `of`, of a range in a file not yet sealed.
    fn of_open(self, range: &OpenRange) -> TimestampMs {
        let logged = range.append_time_max;
        self.accepted.map_or(logged, |accepted| {
            accepted.effective(logged, Lsn(u64::MAX), logged, self.logged) // of a group: no time passes in it
        })
    }

    fn before(self, ms: i64) -> TimestampMs {
        TimestampMs(self.now.0.saturating_sub(ms))
    }
}

/// What a topic keeps, with the broker's defaults filled in. -1 (any negative): without bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Keep {
    pub ms: i64,
    pub bytes: i64,
}

/// Where a partition's start moves to: past the last range that goes. `ranges` are of one partition,
/// in offset order; `bytes_active` is what lies behind them in files not yet sealed, `followed` the time
/// of the first of that, or of the partition's last append. Without a bound on size, no range is looked
/// at past the one after the first that stays.
pub(crate) fn new_start(
    ranges: impl Iterator<Item = SealedRange> + Clone,
    bytes_active: u64,
    followed: TimestampMs,
    keep: Keep,
    age: Age,
) -> Option<Offset> {
    let bytes_max = u64::try_from(keep.bytes).ok();
    let mut behind = match bytes_max {
        Some(_) => bytes_active + ranges.clone().map(|r| r.bytes).sum::<u64>(),
        None => 0,
    };
    let mut start = None;
    let mut ranges = ranges.peekable();
    while let Some(range) = ranges.next() {
        let followed = ranges.peek().map_or(followed, |next| next.append_time_max);
        behind = behind.saturating_sub(range.bytes);
        let too_old = keep.ms >= 0 && age.of(&range, followed) < age.before(keep.ms);
        let too_much = bytes_max.is_some_and(|bytes| behind >= bytes);
        if !too_old && !too_much {
            break;
        }
        start = Some(Offset(range.last_offset.0 + 1));
    }
    start
}

/// As `new_start`, in files not yet sealed, where nothing is left before them.
pub(crate) fn open_start(
    ranges: impl Iterator<Item = OpenRange>,
    keep: Keep,
    age: Age,
) -> Option<Offset> {
    if keep.ms < 0 {
        return None;
    }
    let mut start = None;
    for range in ranges {
        let late = match start {
            None => (keep.ms / LATE_PART).min(LATE_MS_MAX),
            Some(_) => 0,
        };
        if age.of_open(&range) >= age.before(keep.ms.saturating_add(late)) {
            break;
        }
        start = Some(Offset(range.last_offset.0 + 1));
    }
    start
}

#[cfg(test)]
mod tests {
    use millstream_batch::ids::PartitionSlot;

    use super::*;

    const LAST: TimestampMs = TimestampMs(300);

    fn at(now: i64) -> Age {
        Age {
            now: TimestampMs(now),
            logged: TimestampMs(now),
            accepted: None,
        }
    }

    fn range(first: u64, last: u64, time: i64, bytes: u64) -> SealedRange {
        SealedRange {
            file: first,
            file_last: Lsn(first),
            slot: PartitionSlot(1),
            first_offset: Offset(first),
            last_offset: Offset(last),
            append_time_max: TimestampMs(time),
            bytes,
        }
    }

    #[test]
    fn time_takes_whole_ranges_from_the_oldest() {
        let ranges = [
            range(0, 9, 100, 10),
            range(10, 19, 200, 10),
            range(20, 29, 300, 10),
        ];
        let keep = |ms| Keep { ms, bytes: -1 };
        assert_eq!(
            new_start(ranges.into_iter(), 0, LAST, keep(100), at(301)),
            Some(Offset(20))
        );
        assert_eq!(
            new_start(ranges.into_iter(), 0, LAST, keep(100), at(300)),
            Some(Offset(10)),
            "exactly as old as kept: stays"
        );
        assert_eq!(
            new_start(ranges.into_iter(), 0, LAST, keep(-1), at(i64::MAX)),
            None
        );
        assert_eq!(
            new_start(ranges.into_iter(), 0, LAST, keep(0), at(1_000)),
            Some(Offset(30))
        );
    }

    #[test]
    fn a_young_range_protects_those_behind_it() {
        let ranges = [range(0, 9, 900, 10), range(10, 19, 100, 10)]; // the clock went back between them
        assert_eq!(
            new_start(
                ranges.into_iter(),
                0,
                LAST,
                Keep { ms: 500, bytes: -1 },
                at(1_000)
            ),
            None
        );
    }

    #[test]
    fn size_keeps_at_least_what_was_asked() {
        let ranges = [
            range(0, 9, 0, 10),
            range(10, 19, 0, 10),
            range(20, 29, 0, 10),
        ];
        let keep = |bytes| Keep { ms: -1, bytes };
        assert_eq!(
            new_start(ranges.into_iter(), 0, LAST, keep(20), at(0)),
            Some(Offset(10))
        );
        assert_eq!(
            new_start(ranges.into_iter(), 0, LAST, keep(21), at(0)),
            None
        );
        assert_eq!(
            new_start(ranges.into_iter(), 25, LAST, keep(20), at(0)),
            Some(Offset(30))
        );
        assert_eq!(
            new_start(ranges.into_iter(), 0, LAST, keep(0), at(0)),
            Some(Offset(30))
        );
    }

    #[test]
    fn what_is_not_sealed_goes_by_time_in_stretches() {
        let range = |last_offset, time| OpenRange {
            last_offset: Offset(last_offset),
            append_time_max: TimestampMs(time),
        };
        let ranges = [range(9, 100), range(19, 150), range(29, 900)];
        let keep = |ms| Keep { ms, bytes: 0 };
        let start = |keep, now| open_start(ranges.into_iter(), keep, at(now));
        assert_eq!(
            start(keep(800), 1_000),
            None,
            "past its time, but a fact a batch is too much"
        );
        assert_eq!(
            start(keep(800), 1_001),
            Some(Offset(20)),
            "an eighth late, the whole stretch goes"
        );
        assert_eq!(start(keep(0), 10_000), Some(Offset(30)));
        assert_eq!(start(keep(-1), i64::MAX), None);
    }

    #[test]
    fn what_was_logged_in_the_future_goes_as_of_the_accepted_clock() {
        let keep = Keep { ms: 500, bytes: -1 };
        let age = |now| Age {
            now: TimestampMs(now),
            logged: TimestampMs(now),
            accepted: Some(Accepted {
                lsn: Lsn(5),
                time: TimestampMs(1_000),
            }),
        };
        let sealed = [range(0, 9, 90_000, 10)];
        let start = |now| new_start(sealed.into_iter(), 0, LAST, keep, age(now));
        assert_eq!(start(1_500), None);
        assert_eq!(start(1_501), Some(Offset(10)));
        let open = [OpenRange {
            last_offset: Offset(9),
            append_time_max: TimestampMs(90_000),
        }];
        assert_eq!(open_start(open.into_iter(), keep, age(1_500)), None);
        assert_eq!(
            open_start(open.into_iter(), keep, age(1_600)),
            Some(Offset(10))
        );
    }

    /// A file that was open when the clock was accepted holds records of the future and younger ones.
    #[test]
    fn what_straddles_the_acceptance_is_no_older_than_what_follows_it() {
        let keep = Keep { ms: 500, bytes: -1 };
        let age = |now| Age {
            now: TimestampMs(now),
            logged: TimestampMs(now),
            accepted: Some(Accepted {
                lsn: Lsn(0),
                time: TimestampMs(1_000),
            }),
        };
        let of_both = range(0, 9, 90_000, 10);
        let start = |ranges: &[SealedRange], last, now| {
            let ranges = ranges.iter().copied();
            new_start(ranges, 0, TimestampMs(last), keep, age(now))
        };
        assert_eq!(start(&[of_both], 1_400, 1_900), None);
        assert_eq!(start(&[of_both], 1_400, 1_901), Some(Offset(10)));
        let next = range(10, 19, 1_400, 10);
        assert_eq!(start(&[of_both, next], 1_800, 1_900), None);
        assert_eq!(start(&[of_both, next], 1_800, 1_901), Some(Offset(20)));
        assert_eq!(
            start(&[of_both], 90_000, 1_501),
            Some(Offset(10)),
            "nothing came after"
        );
    }

    /// The wall may be behind logged time by a little: what was logged then is not of before.
    #[test]
    fn a_wall_a_little_behind_makes_nothing_old() {
        let age = Age {
            now: TimestampMs(10_000),
            logged: TimestampMs(10_030),
            accepted: Some(Accepted {
                lsn: Lsn(0),
                time: TimestampMs(1_000),
            }),
        };
        let keep = Keep { ms: 500, bytes: -1 };
        let sealed = [range(0, 9, 10_020, 10)];
        let last = TimestampMs(10_030);
        assert_eq!(new_start(sealed.into_iter(), 0, last, keep, age), None);
        let open = [OpenRange {
            last_offset: Offset(9),
            append_time_max: TimestampMs(10_030),
        }];
        assert_eq!(open_start(open.into_iter(), keep, age), None);
    }
}
