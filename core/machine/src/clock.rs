//! Logged time: `max(last logged, wall)`, with forward steps bounded.
//!
//! A wall clock that runs backwards leaves logged time standing; one that leaps forward moves it by
//! at most [`CLOCK_STEP_MS_MAX`] a fact. [`skew`] is what the driver reports. Absent on purpose: any
//! clock.

use millstream_batch::ids::TimestampMs;

use crate::bounds::CLOCK_STEP_MS_MAX;

/// How the wall stands to logged time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skew {
    /// Logged time follows the wall.
    Steady,
    /// The wall is behind: logged time stands still until it has caught up.
    Behind { ms: i64 },
    /// The wall is more than one step ahead: logged time follows by steps, or at once when
    /// `AdvanceClock` is asked.
    Ahead { ms: i64 },
}

/// The time a fact decided now gets. `last` 0: nothing was logged yet, so the wall is taken as it is.
pub(crate) fn logged(last: TimestampMs, now: TimestampMs) -> TimestampMs {
    if last.0 == 0 {
        return TimestampMs(now.0.max(1));
    }
    TimestampMs(
        now.0
            .clamp(last.0, last.0.saturating_add(CLOCK_STEP_MS_MAX)),
    )
}

pub(crate) fn skew(last: TimestampMs, now: TimestampMs) -> Skew {
    let ms = now.0.saturating_sub(last.0);
    if last.0 == 0 || (0..=CLOCK_STEP_MS_MAX).contains(&ms) {
        Skew::Steady
    } else if ms < 0 {
        Skew::Behind {
            ms: ms.saturating_neg(),
        }
    } else {
        Skew::Ahead { ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logged_time_never_runs_back_and_steps_are_bounded() {
        let t = TimestampMs;
        assert_eq!(logged(t(0), t(1_700_000_000_000)), t(1_700_000_000_000));
        assert_eq!(logged(t(5_000), t(4_000)), t(5_000));
        assert_eq!(logged(t(5_000), t(6_000)), t(6_000));
        assert_eq!(logged(t(5_000), t(i64::MAX)), t(5_000 + 3_600_000));
        assert_eq!(logged(t(i64::MAX - 1), t(i64::MAX)), t(i64::MAX));
        assert_eq!(logged(t(0), t(i64::MIN)), t(1));
    }

    #[test]
    fn skew_is_reported_both_ways() {
        let t = TimestampMs;
        assert_eq!(skew(t(0), t(i64::MAX)), Skew::Steady);
        assert_eq!(skew(t(5_000), t(6_000)), Skew::Steady);
        assert_eq!(skew(t(5_000), t(4_000)), Skew::Behind { ms: 1_000 });
        assert_eq!(
            skew(t(5_000), t(5_000 + 3_600_001)),
            Skew::Ahead { ms: 3_600_001 }
        );
        assert_eq!(skew(t(5_000), t(i64::MIN)), Skew::Behind { ms: i64::MAX });
    }
}
