//! The wall clock as the shard lets it in: no further ahead than time passed here vouches for.
//!
//! ```text
//!  wall let in = min(wall, wall at start + monotonic time since then + one step)
//! ```
//! A clock that leaps, however often facts are logged meanwhile, so moves logged time by one step in
//! all. At start the wall is taken as it is: nobody can say how long the stop was. Absent on purpose:
//! logged time itself, which is the machine's.

use millstream_batch::ids::TimestampMs;
use millstream_machine::Skew;
use millstream_machine::bounds::CLOCK_STEP_MS_MAX;
use millstream_machine::request::Request;

use super::{Effect, Now, Phase, ShardCore, Writes};

/// After so long a clock that went at the right pace is the new anchor: it may drift for ever.
const ANCHOR_MS: i64 = 3_600_000;
/// One part in so many is drift.
const DRIFT: i64 = 100;
/// A wall clock so far behind logged time is worth a word.
const BEHIND_MS: i64 = 60_000;

/// Since when the wall clock is held against monotonic time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Anchor {
    at: Now,
    /// It was said that the clock is off.
    told: bool,
}

impl ShardCore {
    /// After recovery: from here on the clock is held against time that passes here.
    pub(super) fn anchor_clock(&mut self) {
        self.anchor = Anchor {
            at: self.now,
            told: false,
        };
    }

    /// A new input, with the time as the caller reads it.
    pub(super) fn at(&mut self, now: Now) {
        self.now = now;
        if self.phase == Phase::Recovering {
            return;
        }
        let passed_us = now.mono_us.saturating_sub(self.anchor.at.mono_us);
        let passed = i64::try_from(passed_us / 1_000).unwrap_or(i64::MAX);
        let expected = self.anchor.at.wall.0.saturating_add(passed);
        let ahead = now.wall.0.saturating_sub(expected);
        if passed >= ANCHOR_MS && ahead.saturating_abs() <= passed / DRIFT {
            self.anchor.at = now;
        }
        let latest = expected.saturating_add(CLOCK_STEP_MS_MAX);
        self.now.wall = TimestampMs(now.wall.0.min(latest));
        self.tell_skew(now.wall, ahead);
    }

    /// Once per time that the clock is off.
    fn tell_skew(&mut self, wall: TimestampMs, ahead: i64) {
        let words = match self.state.clock_skew(wall) {
            _ if ahead > CLOCK_STEP_MS_MAX => format!(
                "the wall clock leapt {ahead} ms ahead of the time that passed: logged time follows by one hour; set \
                 the clock right, or restart if it is right now"
            ),
            Skew::Behind { ms } if ms > BEHIND_MS => format!(
                "the wall clock is {ms} ms behind logged time, which stands still until it has caught up: set the \
                 clock right"
            ),
            _ => {
                self.anchor.told = false;
                return;
            }
        };
        if !std::mem::replace(&mut self.anchor.told, true) {
            self.effects.push_back(Effect::ClockOff(words));
        }
    }

    /// Before anything is decided at a new time: after a long stop or a long quiet, logged time catches
    /// up at once with the wall that was let in.
    pub(super) fn vouch_for_clock(&mut self) {
        if let Skew::Ahead { .. } = self.state.clock_skew(self.now.wall)
            && self.writes == Writes::Open
        {
            let _refused = self.carry_out(&Request::AdvanceClock);
        }
    }
}
