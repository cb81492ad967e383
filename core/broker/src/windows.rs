//! What QUIC itself may hold of what clients send, before anybody reads it: a part of the ingress bound,
//! shared by the connections that produce.
//!
//! A connection may send as much as its receive window before the broker reads (RFC 9000, section 4.1), and
//! a producer whose batches wait for room is not read. Windows of one size for everybody would be either
//! too small for one fast producer or, with a hundred, much more than the bound. So each connection that
//! produces has an equal part, and the others enough for requests. Credit once given is not taken back
//! (QUIC cannot): a smaller window shows when what was given is used up.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::config::Config;

/// Of the ingress bound, what lies in QUIC's windows; the rest is for frames that are being read.
const PART_OF_INGRESS: usize = 4;
/// A connection that does not produce; and for one that does, what is left beside a stream that is not read.
const LEAST_BYTES: u32 = 256 << 10;
/// A connection that has not said who it is: HELLO fits, and little else is held for it.
pub(crate) const UNKNOWN_BYTES: u32 = 64 << 10;
/// Streams that all windows together have room for.
const STREAMS_MIN: u32 = 8;

/// The windows of one broker, in bytes.
#[derive(Debug)]
pub(crate) struct Windows {
    total: usize,
    /// `quic.connection_window_bytes`.
    most: u32,
    /// See [`first`].
    first: u32,
    /// For a connection that produces, however many do: a stream that is not read does not stop its others.
    least: u32,
    /// Connections with a producer's stream.
    producing: AtomicUsize,
}

impl Windows {
    /// For a connection that does not produce.
    pub(crate) fn first(&self) -> u32 {
        self.first
    }

    pub(crate) fn new(config: &Config) -> Self {
        Self {
            total: total(config),
            most: config.quic.connection_window_bytes,
            first: first(config),
            least: of_stream(config).saturating_add(LEAST_BYTES),
            producing: AtomicUsize::new(0),
        }
    }

    /// For each of `producing` connections.
    fn share(&self, producing: usize) -> u32 {
        let share = self.total / producing.max(1);
        let share = u32::try_from(share).unwrap_or(u32::MAX);
        share.max(self.least).min(self.most)
    }
}

fn total(config: &Config) -> usize {
    config.memory.ingress_bytes / PART_OF_INGRESS
}

/// What is left of the ingress bound for frames that are being read, or wait for their answer.
pub(crate) fn rest_of_ingress(ingress_bytes: usize) -> usize {
    ingress_bytes - ingress_bytes / PART_OF_INGRESS
}

/// The window that every connection has from HELLO on.
pub(crate) fn first(config: &Config) -> u32 {
    LEAST_BYTES.min(config.quic.connection_window_bytes)
}

/// The window of every stream.
pub(crate) fn of_stream(config: &Config) -> u32 {
    let part = total(config) / STREAMS_MIN as usize;
    let part = u32::try_from(part).unwrap_or(u32::MAX);
    config.quic.stream_window_bytes.min(part)
}

/// The window of one connection. Each call gives the window to set, in bytes, when that changes.
#[derive(Debug, Default)]
pub(crate) struct Window {
    /// Producers' streams of this connection.
    streams: Cell<usize>,
    /// How many connections produced when its window was set; 0: it has the first one.
    among: Cell<usize>,
}

impl Window {
    /// A producer's stream begins.
    pub(crate) fn begin(&self, windows: &Windows) -> Option<u32> {
        self.streams.set(self.streams.get() + 1);
        if self.streams.get() == 1 {
            windows.producing.fetch_add(1, Ordering::Relaxed);
        }
        self.fit(windows)
    }

    /// A producer's stream is over.
    pub(crate) fn end(&self, windows: &Windows) -> Option<u32> {
        self.streams.set(self.streams.get() - 1);
        if self.streams.get() > 0 {
            return None;
        }
        windows.producing.fetch_sub(1, Ordering::Relaxed);
        self.among.set(0);
        Some(windows.first)
    }

    /// Follow the number of connections that produce. For every batch of one that does: it costs a look.
    pub(crate) fn fit(&self, windows: &Windows) -> Option<u32> {
        let producing = windows.producing.load(Ordering::Relaxed);
        let before = self.among.replace(producing);
        (producing != before).then(|| windows.share(producing))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(ingress_bytes: usize) -> Config {
        let mut config = Config::default();
        config.memory.ingress_bytes = ingress_bytes;
        config
    }

    #[test]
    fn all_windows_together_stay_within_their_part_of_the_bound() {
        let ingress = 96 << 20;
        let windows = Windows::new(&config(ingress));
        for producing in 1..=10 {
            let all = producing * windows.share(producing) as usize;
            assert!(
                all + rest_of_ingress(ingress) <= ingress,
                "{producing}: {all}"
            );
        }
        let stream = of_stream(&config(ingress));
        assert_eq!(
            windows.share(1_000),
            stream + LEAST_BYTES,
            "one stream that is not read leaves room for others"
        );
    }

    #[test]
    fn one_producer_has_what_the_configuration_allows() {
        let windows = Windows::new(&config(96 << 20));
        assert_eq!(windows.share(1), config(0).quic.connection_window_bytes);
    }

    #[test]
    fn a_small_bound_makes_small_windows_and_streams() {
        let small = config(32 << 20);
        let windows = Windows::new(&small);
        assert_eq!(windows.share(1), 8 << 20);
        assert_eq!(windows.share(4), 2 << 20);
        assert_eq!(of_stream(&small), 1 << 20);
    }

    #[test]
    fn a_window_follows_who_produces_and_shrinks_when_its_last_stream_ends() {
        let windows = Windows::new(&config(32 << 20));
        let [one, other] = [Window::default(), Window::default()];
        assert_eq!(one.begin(&windows), Some(8 << 20));
        assert_eq!(one.begin(&windows), None, "a second stream of the same");
        assert_eq!(other.begin(&windows), Some(4 << 20));
        assert_eq!(
            (one.fit(&windows), one.fit(&windows)),
            (Some(4 << 20), None)
        );
        assert_eq!(one.end(&windows), None, "one of its streams is left");
        assert_eq!(one.end(&windows), Some(LEAST_BYTES));
        assert_eq!(other.fit(&windows), Some(8 << 20));
        assert_eq!(other.end(&windows), Some(LEAST_BYTES));
        assert_eq!(one.begin(&windows), Some(8 << 20), "nobody else produces");
    }
}
