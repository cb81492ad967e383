//! What components say, in the broker's log: under the deployment's name, cleaned, cut and rationed.
//! Deliberately absent: keeping the lines (that is the log's business).

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use wasmtime::component::{ComponentType, Lift};

/// Lines that may come at once.
const LINES_BURST: f64 = 100.0;
/// Lines a second after that.
const LINES_PER_S: f64 = 20.0;
/// Bytes of one message that are kept.
const MESSAGE_BYTES_MAX: usize = 4 << 10;

/// How important a component says a message is: `level` of `wasi:logging`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ComponentType, Lift)]
#[component(enum)]
#[repr(u8)]
#[expect(dead_code, reason = "they come out of components")]
pub(crate) enum Level {
    #[component(name = "trace")]
    Trace,
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
    #[component(name = "critical")]
    Critical,
}

/// The log of one deployment. Its instances share one ration of lines.
#[derive(Debug)]
pub struct GuestLog {
    deployment: Arc<str>,
    ration: Mutex<Ration>,
}

impl GuestLog {
    /// A log whose lines carry this name.
    #[must_use]
    pub fn new(deployment: &str) -> Arc<Self> {
        Arc::new(Self {
            deployment: deployment.into(),
            ration: Mutex::new(Ration::full()),
        })
    }

    /// The name.
    pub(crate) fn deployment(&self) -> &str {
        &self.deployment
    }

    pub(crate) fn line(&self, level: Level, context: &str, message: &str) {
        let mut ration = self.ration.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(dropped) = ration.take(Instant::now()) else {
            return;
        };
        drop(ration);
        let deployment = &*self.deployment;
        if dropped > 0 {
            tracing::warn!(target: "plugin", deployment, dropped, "lines of this deployment were dropped: it logs too much");
        }
        let context = Clean(context);
        let message = Clean(message);
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(target: "plugin", deployment, %context, "{message}")
            };
        }
        match level {
            Level::Trace => line!(trace),
            Level::Debug => line!(debug),
            Level::Info => line!(info),
            Level::Warn => line!(warn),
            Level::Error | Level::Critical => line!(error),
        }
    }
}

/// A token bucket that counts what it refused.
#[derive(Debug)]
struct Ration {
    lines: f64,
    at: Option<Instant>,
    dropped: u64,
}

impl Ration {
    fn full() -> Self {
        Self {
            lines: LINES_BURST,
            at: None,
            dropped: 0,
        }
    }

    /// Takes one line: how many were refused before it, or none if this one is refused.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let passed = self
            .at
            .map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64());
        self.at = Some(now);
        self.lines = (self.lines + passed * LINES_PER_S).min(LINES_BURST);
        if self.lines < 1.0 {
            self.dropped += 1;
            return None;
        }
        self.lines -= 1.0;
        Some(std::mem::take(&mut self.dropped))
    }
}

/// A text that a component had a hand in, as one bounded line for people: no terminal escapes, no line ends.
pub(crate) fn one_line(text: &str, bytes_max: usize) -> String {
    let text = text.trim();
    let cut = text.floor_char_boundary(bytes_max);
    let mut line = String::with_capacity(cut);
    for c in text[..cut].chars() {
        match c {
            '\n' | '\t' => line.push(' '),
            c if c.is_control() => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
    if cut < text.len() {
        line.push('…');
    }
    line
}

/// Text from a component: bounded, and unable to write line ends or terminal escapes.
struct Clean<'a>(&'a str);

impl fmt::Display for Clean<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        let cut = self.0.floor_char_boundary(MESSAGE_BYTES_MAX);
        for c in self.0[..cut].chars() {
            if c.is_control() && c != '\t' {
                write!(f, "{}", c.escape_default())?;
            } else {
                f.write_char(c)?;
            }
        }
        if cut < self.0.len() {
            write!(f, "… ({} bytes more)", self.0.len() - cut)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_passes_then_lines_are_counted_and_dropped() {
        let start = Instant::now();
        let mut ration = Ration::full();
        for _ in 0..LINES_BURST as usize {
            assert_eq!(ration.take(start), Some(0));
        }
        assert_eq!(ration.take(start), None);
        assert_eq!(ration.take(start), None);
        let later = start + Duration::from_secs(1);
        assert_eq!(ration.take(later), Some(2));
        assert_eq!(ration.take(later), Some(0));
    }

    #[test]
    fn a_text_becomes_one_bounded_line() {
        assert_eq!(one_line("a\nb\x1b[31m\tc\n", 100), "a b\\u{1b}[31m c");
        let long = one_line(&"é".repeat(1 << 20), 99);
        assert_eq!((long.chars().count(), long.ends_with('…')), (50, true));
    }

    #[test]
    fn text_cannot_forge_a_line() {
        assert_eq!(Clean("a\nb\x1b[31m").to_string(), "a\\nb\\u{1b}[31m");
        let long = "é".repeat(MESSAGE_BYTES_MAX);
        let cleaned = Clean(&long).to_string();
        assert!(cleaned.ends_with(&format!("({MESSAGE_BYTES_MAX} bytes more)")));
    }
}
