//! Progress of long work: one line on stderr that is written over, only on a terminal.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often the line changes.
const EVERY: Duration = Duration::from_millis(250);

/// A line on stderr that shows how far the work is.
#[derive(Debug)]
pub(crate) struct Progress {
    shown: bool,
    enabled: bool,
    next: Instant,
}

impl Progress {
    pub(crate) fn new(wanted: bool) -> Self {
        Self {
            shown: false,
            enabled: wanted && io::stderr().is_terminal(),
            next: Instant::now() + EVERY,
        }
    }

    /// Show this, if it is time to. The words are made only then.
    pub(crate) fn show(&mut self, words: impl FnOnce() -> String) {
        let now = Instant::now();
        if self.enabled && now >= self.next {
            self.next = now + EVERY;
            self.shown = true;
            let mut stderr = io::stderr().lock();
            let _ = write!(stderr, "\r\x1b[K{}", words());
            let _ = stderr.flush();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            let _ = write!(io::stderr().lock(), "\r\x1b[K");
        }
    }
}
