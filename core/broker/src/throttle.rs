//! A line of the log for what strangers can cause as often as they like: a few in a row, then one with the
//! number of those left out.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines in one window.
const LINES: u32 = 10;
const WINDOW: Duration = Duration::from_secs(10);

/// Whether to write another line.
#[derive(Debug, Default)]
pub(crate) struct Throttle(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    begun: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl Throttle {
    /// `Some` with how many were left out since the last line, when this one is to be written.
    pub(crate) fn pass(&self) -> Option<u64> {
        self.pass_at(Instant::now())
    }

    fn pass_at(&self, now: Instant) -> Option<u64> {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if window.begun.is_none_or(|begun| now >= begun + WINDOW) {
            window.begun = Some(now);
            window.lines = 0;
        }
        if window.lines == LINES {
            window.left_out += 1;
            return None;
        }
        window.lines += 1;
        Some(std::mem::take(&mut window.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_lines_pass_and_the_rest_is_counted() {
        let throttle = Throttle::default();
        let begin = Instant::now();
        for _ in 0..LINES {
            assert_eq!(throttle.pass_at(begin), Some(0));
        }
        for _ in 0..7 {
            assert_eq!(throttle.pass_at(begin), None);
        }
        assert_eq!(throttle.pass_at(begin + WINDOW), Some(7));
        assert_eq!(throttle.pass_at(begin + WINDOW), Some(0));
    }
}
