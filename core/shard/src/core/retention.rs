//! Which sealed ranges may go: the rule alone.
//!
//! By time, a range goes when its newest append is older than the topic keeps; by size, when what
//! stays behind it is at least what the topic keeps. Only sealed ranges count, so a partition keeps
//! a little more than asked, never less. Ranges go oldest first: a start never jumps over a range
//! that stays.

use millstream_batch::ids::{Offset, TimestampMs};
use millstream_log::SealedRange;

/// What a topic keeps, with the broker's defaults filled in. -1 (any negative): without bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Keep {
    pub ms: i64,
    pub bytes: i64,
}

/// Where a partition's start moves to: past the last range that goes. `ranges` are of one partition,
/// in offset order; `bytes_active` is what lies behind them in files not yet sealed. Without a bound
/// on size, no range is looked at past the first that stays.
pub(crate) fn new_start(
    ranges: impl Iterator<Item = SealedRange> + Clone,
    bytes_active: u64,
    keep: Keep,
    now: TimestampMs,
) -> Option<Offset> {
    let bytes_max = u64::try_from(keep.bytes).ok();
    let mut behind = match bytes_max {
        Some(_) => bytes_active + ranges.clone().map(|r| r.bytes).sum::<u64>(),
        None => 0,
    };
    let mut start = None;
    for range in ranges {
        behind = behind.saturating_sub(range.bytes);
        let too_old = keep.ms >= 0 && range.append_time_max.0 < now.0.saturating_sub(keep.ms);
        let too_much = bytes_max.is_some_and(|bytes| behind >= bytes);
        if !too_old && !too_much {
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

    fn range(first: u64, last: u64, time: i64, bytes: u64) -> SealedRange {
        SealedRange {
            file: first,
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
            new_start(ranges.into_iter(), 0, keep(100), TimestampMs(301)),
            Some(Offset(20))
        );
        assert_eq!(
            new_start(ranges.into_iter(), 0, keep(100), TimestampMs(300)),
            Some(Offset(10)),
            "exactly as old as kept: stays"
        );
        assert_eq!(
            new_start(ranges.into_iter(), 0, keep(-1), TimestampMs(i64::MAX)),
            None
        );
        assert_eq!(
            new_start(ranges.into_iter(), 0, keep(0), TimestampMs(1_000)),
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
                Keep { ms: 500, bytes: -1 },
                TimestampMs(1_000)
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
            new_start(ranges.into_iter(), 0, keep(20), TimestampMs(0)),
            Some(Offset(10))
        );
        assert_eq!(
            new_start(ranges.into_iter(), 0, keep(21), TimestampMs(0)),
            None
        );
        assert_eq!(
            new_start(ranges.into_iter(), 25, keep(20), TimestampMs(0)),
            Some(Offset(30))
        );
        assert_eq!(
            new_start(ranges.into_iter(), 0, keep(0), TimestampMs(0)),
            Some(Offset(30))
        );
    }
}
