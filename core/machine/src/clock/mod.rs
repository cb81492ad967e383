//! Logged time: `max(last logged, wall)`, with forward steps bounded.
//!
//! A wall clock that runs backwards leaves logged time standing; one that leaps forward moves it by
//! at most [`CLOCK_STEP_MS_MAX`] a fact. Only an operator, who accepts a clock, sets it otherwise, and
//! back: records logged before keep their time, and are [as old as the accepted one](Accepted) where
//! theirs is later. [`skew`] is what the driver reports. Absent on purpose: any clock.

mod section;

use millstream_batch::ids::{Lsn, TimestampMs};

use crate::bounds::CLOCK_STEP_MS_MAX;
use crate::decide::Decision;
use crate::fact::archive::{ClockAccepted, ClockAdvanced};
use crate::fact::{Fact, Sound};
use crate::request::{Refusal, Reply};
use crate::state::State;
pub(crate) use section::ClockSection;

/// A clock that an operator accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Of the fact.
    pub lsn: Lsn,
    pub time: TimestampMs,
}

impl Accepted {
    /// When something was logged, whose entries end at `last` and whose newest time is `logged`. Logged
    /// time is `now`; `followed` is the time of what came next, or of the last of it.
    #[must_use]
    pub fn effective(
        self,
        logged: TimestampMs,
        last: Lsn,
        followed: TimestampMs,
        now: TimestampMs,
    ) -> TimestampMs {
        if last < self.lsn {
            logged.min(self.time)
        } else if logged <= now {
            logged
        } else if followed <= now {
            // Its newest time is of before, and more of it may have come after: at latest then.
            followed.max(self.time)
        } else {
            self.time // nothing of it came after
        }
    }
}

/// Logged time of a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Clock {
    /// Time of the newest fact that has one. 0: none yet.
    pub(crate) logged: TimestampMs,
    /// The clock that was accepted last.
    pub(crate) accepted: Option<Accepted>,
}

impl Clock {
    pub(crate) fn tick(&mut self, time_ms: i64) {
        self.logged = self.logged.max(TimestampMs(time_ms));
    }
}

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

/// Logged time up to `now`, however far.
pub(crate) fn advance(state: &State, now: TimestampMs) -> Decision {
    if now <= state.clock.logged {
        return Decision::look(Reply::Done);
    }
    let time_ms = now.0;
    Decision::of(Fact::ClockAdvanced(ClockAdvanced { time_ms }), Reply::Done)
}

/// Logged time is `now`, whatever it was.
pub(crate) fn accept(now: TimestampMs) -> Result<Decision, Refusal> {
    let time_ms = now.0;
    if time_ms <= 0 {
        return Err(Refusal::BadConfig(format!(
            "the wall clock says {time_ms} ms since 1970: that is no time to accept"
        )));
    }
    let fact = Fact::ClockAccepted(ClockAccepted { time_ms });
    Ok(Decision::of(fact, Reply::Done))
}

/// Replayed over a snapshot that holds it, it sets the clock again, as facts before it have moved it
/// on and facts after it will.
pub(crate) fn install_accepted(state: &mut State, lsn: Lsn, fact: &ClockAccepted) {
    let time = TimestampMs(fact.time_ms);
    state.clock.logged = time;
    state.clock.accepted = Some(Accepted { lsn, time });
}

impl Sound for ClockAdvanced {
    fn is_sound(&self) -> bool {
        true
    }
}

impl Sound for ClockAccepted {
    fn is_sound(&self) -> bool {
        self.time_ms > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_logged_in_the_future_is_as_old_as_the_accepted_clock() {
        let (t, accepted) = (
            TimestampMs,
            Accepted {
                lsn: Lsn(10),
                time: TimestampMs(1_000),
            },
        );
        let effective = |logged, last, followed, now| {
            accepted.effective(t(logged), Lsn(last), t(followed), t(now))
        };
        assert_eq!(effective(9_000, 9, 1_200, 1_500), t(1_000));
        assert_eq!(effective(9_000, 9, 1_200, 20_000), t(1_000));
        assert_eq!(effective(500, 9, 1_200, 1_500), t(500));
        assert_eq!(effective(1_200, 11, 1_300, 1_500), t(1_200));
        // Logged before and after it: at latest when the next was.
        assert_eq!(effective(9_000, 11, 1_300, 1_500), t(1_300));
        assert_eq!(effective(9_000, 11, 500, 1_500), t(1_000));
        assert_eq!(effective(9_000, 11, 9_000, 1_500), t(1_000));
    }

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
