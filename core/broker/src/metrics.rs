//! Counters of the broker's own work. Shards count theirs (`Call::Status`); the two meet in
//! `/metrics`. One set a broker: counters are touched once a frame or batch, never once a record.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use millstream_shard::driver::FilterCounts;

/// A number that only rises, or rises and falls.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }

    pub(crate) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What sessions count.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) connections: Counter,
    pub(crate) connections_total: Counter,
    pub(crate) connections_refused: Counter,
    /// Taken, and not established yet.
    pub(crate) handshakes: Counter,
    /// Taken, and HELLO not answered yet.
    pub(crate) strangers: Counter,
    pub(crate) handshakes_failed: Counter,
    /// Asked to prove their address first.
    pub(crate) handshakes_retried: Counter,
    /// Over the limit, and left unanswered.
    pub(crate) handshakes_ignored: Counter,
    pub(crate) streams: Counter,
    /// Past the share of their connection.
    pub(crate) streams_refused: Counter,
    pub(crate) producers: Counter,
    pub(crate) subscriptions: Counter,
    pub(crate) requests: Counter,
    /// Taken, and not answered yet.
    pub(crate) requests_running: Counter,
    pub(crate) requests_refused: Counter,
    pub(crate) frames_malformed: Counter,
    pub(crate) bytes_in: Counter,
    pub(crate) bytes_out: Counter,
    pub(crate) batches_in: Counter,
    pub(crate) batches_refused: Counter,
    /// Batches sent with `ack = none` that failed: nobody was told.
    pub(crate) batches_lost: Counter,
    pub(crate) batches_out: Counter,
    /// Filters on the way to subscriptions, on all threads.
    pub(crate) subscribe_filters: Arc<FilterCounts>,
}

/// Counts one more of something while it lives.
#[derive(Debug)]
pub(crate) struct Alive<'a>(&'a Counter);

impl<'a> Alive<'a> {
    pub(crate) fn new(counter: &'a Counter) -> Self {
        counter.add(1);
        Self(counter)
    }
}

impl Drop for Alive<'_> {
    fn drop(&mut self) {
        self.0.sub(1);
    }
}
