//! Spans of what the broker does for the few requests that are sampled: made, kept for a while, taken by
//! the export.
//!
//! With sampling off, which is the default, nothing is made and a request costs one comparison. Absent on
//! purpose: the wire format (`http::otlp`), and trace contexts that clients put into record headers:
//! reading those would mean inflating every batch.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use millstream_shard::handle::Stamps;

use crate::config::Telemetry;
use crate::metrics::Counter;

/// Spans that wait for the export; more are counted and dropped.
const SPANS_MAX: usize = 8_192;
/// Bytes of an error text that a span keeps.
const ERROR_BYTES_MAX: usize = 256;

/// See the module's header. One a broker.
#[derive(Debug)]
pub(crate) struct Traces {
    /// The share that is sampled, as a fraction of 2³².
    share: u64,
    /// Adds up shares; each time it passes a multiple of 2³², a request is sampled.
    sum: AtomicU64,
    spans: Mutex<Vec<Span>>,
    pub(crate) dropped: Counter,
}

/// A piece of work that is over. Times are in nanoseconds since 1970.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Span {
    pub(crate) trace: [u8; 16],
    pub(crate) id: [u8; 8],
    /// `None`: the whole request.
    pub(crate) parent: Option<[u8; 8]>,
    pub(crate) name: &'static str,
    pub(crate) start_ns: u64,
    pub(crate) end_ns: u64,
    pub(crate) attributes: Vec<(&'static str, Value)>,
    pub(crate) error: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Text(String),
    Number(u64),
    Flag(bool),
}

/// A sampled request under way.
#[derive(Debug)]
pub(crate) struct Trace {
    whole: Span,
    parts: Vec<Span>,
}

impl Traces {
    pub(crate) fn new(telemetry: &Telemetry) -> Self {
        let share = if telemetry.otlp_endpoint.is_some() {
            telemetry.trace_share
        } else {
            0.0
        };
        Self {
            share: (share.clamp(0.0, 1.0) * f64::from(u32::MAX)).ceil() as u64
                + u64::from(share >= 1.0),
            sum: AtomicU64::new(0),
            spans: Mutex::default(),
            dropped: Counter::default(),
        }
    }

    /// A request begins. `None`: it is not sampled.
    pub(crate) fn begin(&self, name: &'static str) -> Option<Box<Trace>> {
        if self.share == 0 {
            return None;
        }
        let before = self.sum.fetch_add(self.share, Ordering::Relaxed);
        if before >> 32 == before.wrapping_add(self.share) >> 32 {
            return None;
        }
        let trace = uuid::Uuid::new_v4().into_bytes();
        Some(Box::new(Trace {
            whole: Span {
                trace,
                id: span_id(),
                parent: None,
                name,
                start_ns: now_ns(),
                end_ns: 0,
                attributes: Vec::new(),
                error: None,
            },
            parts: Vec::new(),
        }))
    }

    /// A request is over.
    pub(crate) fn end(&self, trace: Trace, error: Option<&str>) {
        let Trace { mut whole, parts } = trace;
        whole.end_ns = now_ns();
        whole.error = error.map(cut);
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        if spans.len() + parts.len() >= SPANS_MAX {
            drop(spans);
            return self.dropped.add(parts.len() as u64 + 1);
        }
        spans.push(whole);
        spans.extend(parts);
    }

    /// What is over since the last time.
    pub(crate) fn take(&self) -> Vec<Span> {
        std::mem::take(&mut *self.spans.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Trace {
    pub(crate) fn set(&mut self, key: &'static str, value: Value) {
        self.whole.attributes.push((key, value));
    }

    pub(crate) fn start_ns(&self) -> u64 {
        self.whole.start_ns
    }

    /// When its newest part was over.
    pub(crate) fn newest_ns(&self) -> u64 {
        self.parts
            .last()
            .map_or(self.whole.start_ns, |part| part.end_ns)
    }

    /// A part of the request that is over.
    pub(crate) fn part(&mut self, name: &'static str, start_ns: u64, end_ns: u64) {
        self.parts.push(Span {
            trace: self.whole.trace,
            id: span_id(),
            parent: Some(self.whole.id),
            name,
            start_ns,
            end_ns,
            attributes: Vec::new(),
            error: None,
        });
    }

    /// The parts of a batch's way through its shard, which has answered now.
    pub(crate) fn shard_parts(&mut self, sent_ns: u64, stamps: &Stamps) {
        let read = |stamp: &AtomicU64| Some(stamp.load(Ordering::Relaxed)).filter(|at| *at > 0);
        let Some(taken) = read(&stamps.taken_ns) else {
            return; // refused before the shard saw it
        };
        self.part("queue", sent_ns, taken);
        let filtered = read(&stamps.filtered_ns);
        if let Some(filtered) = filtered {
            self.part("filter", taken, filtered);
        }
        if let Some(appended) = read(&stamps.appended_ns) {
            self.part("append", filtered.unwrap_or(taken), appended);
            self.part("durable", appended, now_ns());
        }
    }
}

pub(crate) fn now_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos() as u64
}

/// Random, and never all zeros: version and variant bits are set.
fn span_id() -> [u8; 8] {
    let (_, id) = uuid::Uuid::new_v4().as_u64_pair();
    id.to_be_bytes()
}

fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(ERROR_BYTES_MAX)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traces(trace_share: f64) -> Traces {
        Traces::new(&Telemetry {
            otlp_endpoint: Some("http://127.0.0.1:4318".to_owned()),
            trace_share,
            ..Telemetry::default()
        })
    }

    #[test]
    fn the_share_that_is_asked_for_is_sampled() {
        for (share, of, expected) in [
            (0.0, 1_000, 0),
            (1.0, 1_000, 1_000),
            (0.25, 1_000, 250),
            (0.001, 10_000, 10),
        ] {
            let traces = traces(share);
            let sampled = (0..of)
                .filter(|_| traces.begin("produce").is_some())
                .count();
            assert_eq!(sampled, expected, "{share} of {of}");
        }
        let off = Traces::new(&Telemetry {
            trace_share: 1.0,
            ..Telemetry::default()
        });
        assert!(
            off.begin("produce").is_none(),
            "there is nobody to send it to"
        );
    }

    #[test]
    fn what_nobody_takes_is_bounded_and_counted() {
        let traces = traces(1.0);
        let rounds = SPANS_MAX as u64 + 5;
        for _ in 0..rounds {
            let mut trace = traces.begin("produce").expect("sampled");
            trace.part("append", 1, 2);
            traces.end(*trace, Some("é".repeat(1_000).as_str()));
        }
        let spans = traces.take();
        assert!(spans.len() <= SPANS_MAX);
        assert_eq!(spans.len() as u64 + traces.dropped.value(), 2 * rounds);
        let (whole, part) = (&spans[0], &spans[1]);
        assert_eq!(
            (whole.parent, part.parent, part.trace),
            (None, Some(whole.id), whole.trace)
        );
        assert_eq!(whole.error.as_ref().map(String::len), Some(ERROR_BYTES_MAX));
        assert!(traces.take().is_empty());
    }
}
