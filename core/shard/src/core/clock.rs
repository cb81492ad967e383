//! The wall clock as the shard lets it in: no further ahead than something vouches for.
//!
//! ```text
//!  wall let in = min(wall, vouched + monotonic time since then + one step)
//!  vouched     = at a start, the newest logged time; from the first wall clock believed on, that
//! ```
//! **At a start** nobody can say how long the stop was. A wall clock that is a minute behind what was
//! logged, or further ahead of it than `clock_ahead_max_ms`, is doubted. **While running** monotonic
//! time says how far the wall may have come: one that leaps by more than a step is doubted, and so is
//! one that falls behind logged time. **Until something is logged** there is nothing to doubt it by.
//!
//! While the clock is in doubt the shard serves. Logged time moves by one step in all, retention and
//! the expiry of producers rest, and status says so, until the wall is right again or an operator
//! accepts it as it is, which is a fact. Absent on purpose: logged time itself, which is the machine's.

use std::fmt;

use millstream_batch::ids::TimestampMs;
use millstream_machine::Skew;
use millstream_machine::bounds::CLOCK_STEP_MS_MAX;
use millstream_machine::request::Request;

use super::{Effect, Now, Phase, ShardCore, Writes};

/// After so long a clock that went at the right pace is the new anchor: it may drift for ever.
const ANCHOR_MS: i64 = 3_600_000;
/// One part in so many is drift.
const DRIFT: i64 = 100;
/// A wall clock so far behind logged time is doubted.
const BEHIND_MS: i64 = 60_000;

/// Why the wall clock is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doubt {
    /// Of the time that passed here since it was believed.
    Leapt { ms: i64 },
    /// Of what was logged before the start.
    Ahead { ms: i64 },
    /// Behind what was logged.
    Behind { ms: i64 },
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leapt { ms } => write!(
                f,
                "the wall clock leapt {} ahead of the time that passed",
                Span(*ms)
            ),
            Self::Ahead { ms } => write!(
                f,
                "the wall clock is {} ahead of the newest logged time",
                Span(*ms)
            ),
            Self::Behind { ms } => write!(
                f,
                "the wall clock is {} behind the newest logged time",
                Span(*ms)
            ),
        }
    }
}

/// Milliseconds as people say them.
struct Span(i64);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0 / 1_000;
        match seconds {
            0..120 => write!(f, "{seconds} s"),
            120..7_200 => write!(f, "{} min", seconds / 60),
            7_200..172_800 => write!(f, "{} h", seconds / 3_600),
            _ => write!(f, "{} days", seconds / 86_400),
        }
    }
}

/// What the wall clock is held against.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Anchor {
    at: Now,
    /// `at.wall` is the newest logged time: no wall clock of this run was believed yet.
    from_log: bool,
    doubt: Option<Doubt>,
    /// It was said that the clock is in doubt.
    told: bool,
}

impl Anchor {
    fn believed(at: Now) -> Self {
        Self {
            at,
            ..Self::default()
        }
    }

    /// Milliseconds since the anchor, by the clock that does not step.
    fn passed(&self, now: Now) -> i64 {
        let passed_us = now.mono_us.saturating_sub(self.at.mono_us);
        i64::try_from(passed_us / 1_000).unwrap_or(i64::MAX)
    }

    fn judge(&self, now: Now, logged: TimestampMs, ahead_max: i64) -> Option<Doubt> {
        let expected = self.at.wall.0.saturating_add(self.passed(now));
        let ahead = now.wall.0.saturating_sub(expected);
        let behind = logged.0.saturating_sub(now.wall.0);
        if self.from_log && ahead > ahead_max {
            Some(Doubt::Ahead { ms: ahead })
        } else if !self.from_log && ahead > CLOCK_STEP_MS_MAX {
            Some(Doubt::Leapt { ms: ahead })
        } else if behind > BEHIND_MS {
            Some(Doubt::Behind { ms: behind })
        } else {
            None
        }
    }

    /// What is let in of a wall clock.
    fn let_in(&self, now: Now) -> TimestampMs {
        let vouched = self.at.wall.0.saturating_add(self.passed(now));
        TimestampMs(now.wall.0.min(vouched.saturating_add(CLOCK_STEP_MS_MAX)))
    }
}

impl ShardCore {
    /// After recovery: from here on the clock is held against what was logged and the time that
    /// passes.
    pub(super) fn anchor_clock(&mut self) {
        self.anchor = Anchor::believed(self.now);
        let logged = self.state.clock();
        if logged.0 > 0 {
            self.anchor.at.wall = logged;
            self.anchor.from_log = true;
        } // else: nothing was logged that a wrong clock could hurt
        self.at(self.now);
    }

    /// A new input, with the time as the caller reads it.
    pub(super) fn at(&mut self, now: Now) {
        self.now = now;
        self.wall = now.wall;
        if self.phase == Phase::Recovering {
            return;
        }
        let logged = self.state.clock();
        if logged.0 == 0 {
            // Nothing was logged that a wrong clock could hurt: as at the start.
            self.anchor = Anchor::believed(now);
            return;
        }
        let doubt = self
            .anchor
            .judge(now, logged, self.config.clock_ahead_max_ms);
        let passed = self.anchor.passed(now);
        let drift = now
            .wall
            .0
            .saturating_sub(self.anchor.at.wall.0)
            .saturating_sub(passed);
        if doubt.is_none()
            && (self.anchor.from_log
                || passed >= ANCHOR_MS && drift.saturating_abs() <= passed / DRIFT)
        {
            self.anchor = Anchor {
                told: self.anchor.told,
                ..Anchor::believed(now)
            };
        }
        self.anchor.doubt = doubt;
        self.now.wall = self.anchor.let_in(now);
        self.tell_doubt();
    }

    /// Once per time that the clock is in doubt, and once when it is not any more.
    fn tell_doubt(&mut self) {
        let told = std::mem::replace(&mut self.anchor.told, self.anchor.doubt.is_some());
        if told != self.anchor.told {
            let words = self.clock_words();
            self.effects.push_back(Effect::ClockDoubted(words));
        }
    }

    /// Why the clock is in doubt, and what to do about it.
    pub(super) fn clock_words(&self) -> Option<String> {
        let doubt = self.anchor.doubt?;
        Some(format!(
            "{doubt}: retention and the expiry of producers rest, and logged time all but stands; set the clock \
             right, or run `millstream clock accept` if it is right now"
        ))
    }

    /// Nothing is deleted by a clock that is in doubt.
    pub(super) fn doubts_clock(&self) -> bool {
        self.anchor.doubt.is_some()
    }

    /// An operator says that the wall clock is right.
    pub(super) fn accept_clock(&mut self, token: u64) {
        let let_in = std::mem::replace(&mut self.now.wall, self.wall);
        let before = self.installed;
        self.machine(token, &Request::AcceptClock);
        if self.installed > before {
            self.anchor = Anchor {
                told: self.anchor.told,
                ..Anchor::believed(self.now)
            };
            self.tell_doubt();
        } else {
            self.now.wall = let_in; // it was refused
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
