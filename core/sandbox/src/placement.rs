//! Which thread a deployment belongs on, decided by what it cost and how often it was killed. Pure.
//!
//! ```text
//! Shard ──costs too much, or killed once──▶ Worker ──cheap for long, never killed──▶ Shard
//!    any ──three kills within a minute──▶ Paused, until it is deployed again
//! ```
//! Deliberately absent: measuring and counting (`deployment`), and the threads.

use std::time::Duration;

/// Kills that pause a deployment, when they come within [`KILL_WINDOW`].
pub(crate) const KILLS_MAX: u32 = 3;
/// How close together they must be.
pub(crate) const KILL_WINDOW: Duration = Duration::from_secs(60);
/// A deployment that costs more than this for a batch, in nanoseconds, leaves the shard's thread.
const SHARD_COST_NS_MAX: u64 = 200_000;
/// It comes back when it costs at most this: well below, so that it does not go to and fro.
const BACK_COST_NS_MAX: u64 = 100_000;
/// And when it has shown so with this many batches.
const BACK_BATCHES_MIN: u64 = 256;
/// The moving average forgets at this rate: each batch counts one sixteenth.
const AVERAGE_SHIFT: u32 = 4;
/// Most that one batch counts, so that a thread which the system stopped for a while proves nothing:
/// it takes three such batches to move.
const SAMPLE_NS_MAX: u64 = 8 * SHARD_COST_NS_MAX;

/// Which thread a deployment belongs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Cheap and never killed: the shard's own thread.
    Shard,
    /// Too slow, or killed once: a worker thread, order kept for each partition.
    Worker,
    /// Killed too often: it is not called at all.
    Paused,
}

/// What a deployment has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Record {
    /// Moving average of the cost of a batch, in nanoseconds: see [`average`].
    pub(crate) batch_ns_average: u64,
    /// Batches since it was placed where it is.
    pub(crate) batches_here: u64,
    /// Kills ever.
    pub(crate) kills: u64,
    /// Kills within the last [`KILL_WINDOW`].
    pub(crate) kills_recent: u32,
}

/// Where a deployment belongs that is placed at `now`. A kill keeps it from the shard's thread for
/// good: what loops once loops again, and would hold every partition of the shard.
pub(crate) fn place(now: Placement, record: Record) -> Placement {
    if now == Placement::Paused || record.kills_recent >= KILLS_MAX {
        return Placement::Paused;
    }
    let is_slow = record.batch_ns_average > SHARD_COST_NS_MAX;
    let is_cheap_again =
        record.batch_ns_average <= BACK_COST_NS_MAX && record.batches_here >= BACK_BATCHES_MIN;
    let stays_away = now == Placement::Worker && !is_cheap_again;
    if record.kills > 0 || is_slow || stays_away {
        Placement::Worker
    } else {
        Placement::Shard
    }
}

/// The moving average after one more batch, in nanoseconds. It begins at 0.
pub(crate) fn average(before_ns: u64, cost_ns: u64) -> u64 {
    before_ns - (before_ns >> AVERAGE_SHIFT) + (cost_ns.min(SAMPLE_NS_MAX) >> AVERAGE_SHIFT)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Batches of one cost until the deployment stands elsewhere, at most `batches_max`.
    fn batches_until_it_moves(
        now: Placement,
        from_ns: u64,
        cost: Duration,
        most: u64,
    ) -> Option<u64> {
        let mut record = Record {
            batch_ns_average: from_ns,
            ..Record::default()
        };
        for batch in 1..=most {
            record.batch_ns_average = average(record.batch_ns_average, cost.as_nanos() as u64);
            record.batches_here = batch;
            if place(now, record) != now {
                return Some(batch);
            }
        }
        None
    }

    #[test]
    fn under_200_us_a_batch_it_stays_on_the_shard() {
        let moves =
            |us| batches_until_it_moves(Placement::Shard, 0, Duration::from_micros(us), 10_000);
        assert_eq!(moves(5), None);
        assert_eq!(moves(200), None);
        assert!(
            moves(220).is_some_and(|batches| batches < 64),
            "{:?}",
            moves(220)
        );
        assert_eq!(moves(3_000), Some(3), "milliseconds a batch: at once");
        assert_eq!(moves(1_000_000), Some(3));
    }

    #[test]
    fn one_batch_that_the_system_interrupted_moves_nothing() {
        let usual = 20_000;
        let mut record = Record {
            batch_ns_average: usual,
            ..Record::default()
        };
        record.batch_ns_average = average(usual, 500_000_000);
        assert_eq!(place(Placement::Shard, record), Placement::Shard);
        for _ in 0..100 {
            record.batch_ns_average = average(record.batch_ns_average, usual);
        }
        record.batch_ns_average = average(record.batch_ns_average, 500_000_000);
        assert_eq!(place(Placement::Shard, record), Placement::Shard);
    }

    #[test]
    fn it_comes_back_when_it_is_cheap_for_long() {
        let back = |us| {
            batches_until_it_moves(
                Placement::Worker,
                1_600_000,
                Duration::from_micros(us),
                10_000,
            )
        };
        assert_eq!(back(50), Some(BACK_BATCHES_MIN));
        assert_eq!(back(150), None, "under the limit, and too close to it");
    }

    #[test]
    fn a_kill_moves_it_for_good_and_three_within_the_window_pause_it() {
        let killed = Record {
            kills: 1,
            kills_recent: 1,
            ..Record::default()
        };
        assert_eq!(place(Placement::Shard, killed), Placement::Worker);
        let long_ago = Record {
            kills: 1,
            kills_recent: 0,
            batch_ns_average: 10,
            batches_here: 1 << 40,
        };
        assert_eq!(place(Placement::Worker, long_ago), Placement::Worker);
        let spread_out = Record {
            kills: 9,
            kills_recent: 2,
            ..Record::default()
        };
        assert_eq!(place(Placement::Worker, spread_out), Placement::Worker);
        let too_many = Record {
            kills: 3,
            kills_recent: 3,
            ..Record::default()
        };
        assert_eq!(place(Placement::Shard, too_many), Placement::Paused);
        assert_eq!(
            place(Placement::Paused, Record::default()),
            Placement::Paused,
            "until it is deployed again"
        );
    }
}
