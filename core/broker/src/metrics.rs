//! Counters of the broker's own work. Shards count theirs (`Call::Status`); the two meet in
//! `/metrics`. One set a broker: counters are touched once a frame or batch, never once a record.
//! What is refused is counted by reason, of which there are few.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use millstream_protocol::Code;
use millstream_shard::driver::FilterCounts;
use quinn::{ConnectionError, TransportErrorCode};

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

/// Numbers of one thing by the code of the protocol that says why. Codes are few, so that labels are too.
#[derive(Debug)]
pub(crate) struct ByCode([Counter; CODES_MAX]);

/// Above every code there is; what a peer makes up is counted as INTERNAL.
const CODES_MAX: usize = 128;
const _: () = {
    let mut at = 0;
    while at < Code::ALL.len() {
        assert!((Code::ALL[at] as usize) < CODES_MAX);
        at += 1;
    }
};

impl Default for ByCode {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl ByCode {
    pub(crate) fn add(&self, code: u32) {
        let code = Code::from_number(code).unwrap_or(Code::Internal);
        self.0[code as usize].add(1);
    }

    /// Codes that were counted, with their numbers.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let of = |code: &Code| (code.name(), self.0[*code as usize].value());
        Code::ALL.iter().map(of).filter(|(_, count)| *count > 0)
    }
}

/// Why a handshake came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HandshakeFailure {
    /// Nothing was heard in time.
    Timeout,
    /// This side refused the client's certificate, or its TLS.
    Tls,
    /// The client refused this side's certificate, or its TLS.
    RefusedByClient,
    /// The client gave up for another reason.
    ClosedByClient,
    /// Packets that make no sense, a version that is not spoken, or a fault of this side.
    Transport,
}

impl HandshakeFailure {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Timeout, "timeout"),
        (Self::Tls, "tls"),
        (Self::RefusedByClient, "refused_by_client"),
        (Self::ClosedByClient, "closed_by_client"),
        (Self::Transport, "transport"),
    ];

    pub(crate) fn of(error: &ConnectionError) -> Self {
        let is_tls = |code: TransportErrorCode| (0x100..0x200).contains(&u64::from(code)); // RFC 9001, 4.8
        match error {
            ConnectionError::TimedOut => Self::Timeout,
            ConnectionError::TransportError(error) if is_tls(error.code) => Self::Tls,
            ConnectionError::ConnectionClosed(close) if is_tls(close.error_code) => {
                Self::RefusedByClient
            }
            ConnectionError::ConnectionClosed(_)
            | ConnectionError::ApplicationClosed(_)
            | ConnectionError::Reset => Self::ClosedByClient,
            _ => Self::Transport,
        }
    }
}

/// Handshakes that failed, by reason.
#[derive(Debug, Default)]
pub(crate) struct HandshakesFailed([Counter; HandshakeFailure::ALL.len()]);

impl HandshakesFailed {
    pub(crate) fn add(&self, why: HandshakeFailure) {
        self.0[why as usize].add(1);
    }

    /// Every reason with its number.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let of = |(why, name): (HandshakeFailure, _)| (name, self.0[why as usize].value());
        HandshakeFailure::ALL.into_iter().map(of)
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
    pub(crate) handshakes_failed: HandshakesFailed,
    /// HELLO refused: who does not say who it is, or speaks another version.
    pub(crate) hellos_refused: ByCode,
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
    pub(crate) requests_refused: ByCode,
    pub(crate) frames_malformed: Counter,
    pub(crate) bytes_in: Counter,
    pub(crate) bytes_out: Counter,
    pub(crate) batches_in: Counter,
    pub(crate) batches_refused: ByCode,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_counted_by_code_and_made_up_codes_as_one() {
        let refused = ByCode::default();
        for code in [Code::UnknownTopic.number(), 20, 127, 128, u32::MAX] {
            refused.add(code);
        }
        let rows: Vec<_> = refused.rows().collect();
        assert_eq!(rows, [("INTERNAL", 3), ("UNKNOWN_TOPIC", 2)]);
    }

    #[test]
    fn handshakes_that_fail_say_why() {
        let failed = HandshakesFailed::default();
        failed.add(HandshakeFailure::of(&ConnectionError::TimedOut));
        failed.add(HandshakeFailure::of(&ConnectionError::Reset));
        failed.add(HandshakeFailure::of(&ConnectionError::VersionMismatch));
        let counted: Vec<_> = failed.rows().filter(|(_, count)| *count > 0).collect();
        assert_eq!(
            counted,
            [("timeout", 1), ("closed_by_client", 1), ("transport", 1)]
        );
        for (at, (why, _)) in HandshakeFailure::ALL.into_iter().enumerate() {
            assert_eq!(why as usize, at, "each has a place of its own");
        }
    }
}
