//! Records a second of one partition, over a window that slides: a few words of memory and a comparison a
//! batch, so that every partition has one.
//!
//! ```text
//!   before ───────────▶│ base ── this window ──▶ end
//!                      since                     now
//! ```
//! What this window has not seen yet is taken to go on as in the window before. Absent: history.

use millstream_batch::ids::Offset;

/// Length of the window.
const WINDOW_US: u64 = 10_000_000;
/// The least time that a rate is said of.
const LEAST_US: u64 = 1_000_000;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rate {
    /// When this window began, and the partition's end then.
    since_us: u64,
    base: Offset,
    /// When the end last moved.
    moved_us: u64,
    /// Of the window before, if there was one.
    before: Option<f32>,
}

impl Rate {
    /// The end moves from `end`.
    pub(super) fn moved(&mut self, now_us: u64, end: Offset) {
        let idle = self.moved_us == 0 || now_us.saturating_sub(self.moved_us) >= WINDOW_US;
        let elapsed = now_us.saturating_sub(self.since_us);
        if idle || elapsed >= WINDOW_US {
            self.before = (!idle).then(|| (records(self.base, end) / seconds(elapsed)) as f32);
            self.since_us = now_us;
            self.base = end;
        }
        self.moved_us = now_us;
    }

    /// Records a second now that the end is here.
    pub(super) fn per_second(&self, now_us: u64, end: Offset) -> f64 {
        if self.moved_us == 0 || now_us.saturating_sub(self.moved_us) >= WINDOW_US {
            return 0.0;
        }
        let elapsed = now_us.saturating_sub(self.since_us);
        let here = records(self.base, end);
        match self.before {
            Some(before) if elapsed < WINDOW_US => {
                let rest = seconds(WINDOW_US - elapsed);
                (here + f64::from(before) * rest) / seconds(WINDOW_US)
            }
            _ => here / seconds(elapsed.max(LEAST_US)),
        }
    }
}

fn records(from: Offset, to: Offset) -> f64 {
    to.0.saturating_sub(from.0) as f64
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    /// Feed `records` each second for so many seconds; the end and the time after it.
    fn feed(rate: &mut Rate, (end, now): (u64, u64), records: u64, seconds: u64) -> (u64, u64) {
        (0..seconds).fold((end, now), |(end, now), _| {
            rate.moved(now, Offset(end));
            (end + records, now + SECOND)
        })
    }

    #[test]
    fn it_follows_the_load_and_falls_to_nothing() {
        let mut rate = Rate::default();
        assert_eq!(rate.per_second(SECOND, Offset(0)), 0.0);
        let at = feed(&mut rate, (0, SECOND), 100, 3);
        assert_eq!(rate.per_second(at.1, Offset(at.0)), 100.0);
        let at = feed(&mut rate, at, 100, 40);
        assert_eq!(rate.per_second(at.1, Offset(at.0)), 100.0);
        let at = feed(&mut rate, at, 1_000, 30);
        assert_eq!(rate.per_second(at.1, Offset(at.0)), 1_000.0);
        assert_eq!(rate.per_second(at.1 + 30 * SECOND, Offset(at.0)), 0.0);
        // After a rest it begins anew: what was before says nothing.
        let at = feed(&mut rate, (at.0, at.1 + 30 * SECOND), 50, 5);
        assert_eq!(rate.per_second(at.1, Offset(at.0)), 50.0);
    }

    #[test]
    fn one_burst_is_no_rate_of_a_moment() {
        let mut rate = Rate::default();
        rate.moved(SECOND, Offset(0));
        assert_eq!(rate.per_second(SECOND + 1, Offset(500)), 500.0);
        assert_eq!(rate.per_second(6 * SECOND, Offset(500)), 100.0);
    }
}
