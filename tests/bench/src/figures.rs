//! The figures that a run can have: names, units, and which way is better.
//!
//! MB and GB are powers of ten (as in MB/s), MiB and KiB are powers of two (memory). Rates are all
//! records over all time.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::meter::Work;

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    More,
    Less,
    /// It explains others.
    Neither,
}

/// One kind of figure.
#[derive(Debug)]
pub(crate) struct Metric {
    /// In JSON.
    pub(crate) name: &'static str,
    /// In tables.
    pub(crate) label: &'static str,
    /// Digits after the point.
    pub(crate) digits: usize,
    pub(crate) better: Better,
}

/// All there are, in the order they are shown.
#[rustfmt::skip]
pub(crate) const METRICS: &[Metric] = &[
    metric("records_per_s", "records/s", 0, Better::More),
    metric("batches_per_s", "batches/s", 0, Better::More),
    metric("mb_per_s", "MB/s", 1, Better::More),
    metric("p50_ms", "p50 ms", 3, Better::Less),
    metric("p99_ms", "p99 ms", 3, Better::Less),
    metric("p999_ms", "p999 ms", 3, Better::Less),
    metric("ping_p50_ms", "ping alone, p50 ms", 3, Better::Less),
    metric("append_p50_ms", "append alone, p50 ms", 3, Better::Less),
    metric("first_record_ms", "first record ms", 2, Better::Less),
    metric("ready_ms", "ready after ms", 1, Better::Less),
    metric("filter_ns", "filter ns/record", 1, Better::Less),
    metric("small_cpu_ns", "broker CPU ns/record of 100 B", 1, Better::Less),
    metric("filter_cpu_ns", "broker CPU added ns/record", 1, Better::Less),
    metric("cpu_s_per_gb", "CPU-s/GB", 3, Better::Less),
    metric("cpu_s_per_million", "CPU-s/M records", 3, Better::Less),
    metric("cores", "cores busy", 2, Better::Neither),
    metric("client_cpu_s_per_gb", "client CPU-s/GB", 3, Better::Neither),
    metric("client_cores", "client cores busy", 2, Better::Neither),
    metric("idle_cpu_ms_per_s", "idle CPU ms/s", 3, Better::Less),
    metric("idle_switches_per_s", "idle switches/s", 1, Better::Less),
    metric("idle_syscalls_per_s", "idle syscalls/s", 1, Better::Neither),
    metric("rss_idle_mib", "memory idle MiB", 1, Better::Less),
    metric("rss_peak_mib", "memory peak MiB", 1, Better::Less),
    metric("small_rss_peak_mib", "memory peak MiB, small bounds", 1, Better::Less),
    metric("bound_used", "grown / bounds", 2, Better::Less),
    metric("small_bound_used", "grown / bounds, small ones", 2, Better::Less),
    metric("kib_per_partition", "KiB/idle partition", 2, Better::Less),
    metric("kib_per_connection", "KiB/connection", 1, Better::Less),
    metric("kib_per_subscription", "KiB/subscription", 1, Better::Less),
    metric("connections_per_s", "connects/s", 0, Better::More),
    metric("switches_per_batch", "switches/batch", 2, Better::Less),
    metric("syscalls_per_batch", "syscalls/batch", 2, Better::Less),
];

const fn metric(name: &'static str, label: &'static str, digits: usize, better: Better) -> Metric {
    Metric {
        name,
        label,
        digits,
        better,
    }
}

/// A kind of figure by its name.
pub(crate) fn find(name: &str) -> Option<&'static Metric> {
    METRICS.iter().find(|metric| metric.name == name)
}

/// The figures of one run of one program, by name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Run(BTreeMap<String, f64>);

impl Run {
    /// What a second saw.
    pub(crate) fn rates(work: &Work) -> Self {
        let mut run = Self::default();
        run.set("records_per_s", work.records as f64 / work.seconds);
        run.set("batches_per_s", work.batches as f64 / work.seconds);
        run.set("mb_per_s", work.bytes as f64 / 1e6 / work.seconds);
        run
    }

    /// Set a figure, which is one of [`METRICS`]. One that cannot be told (0 / 0) is left out.
    pub(crate) fn set(&mut self, name: &'static str, value: f64) {
        assert!(find(name).is_some(), "`{name}` is not among METRICS");
        if value.is_finite() {
            self.0.insert(name.to_owned(), value);
        }
    }

    /// With the figures of another; the same figure is the other's.
    pub(crate) fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub(crate) fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }

    /// The median and the tails of latencies in microseconds.
    pub(crate) fn set_latencies(&mut self, micros: &Histogram<u64>) {
        for (name, quantile) in [("p50_ms", 0.5), ("p99_ms", 0.99), ("p999_ms", 0.999)] {
            self.set(name, micros.value_at_quantile(quantile) as f64 / 1e3);
        }
    }
}

/// A ceiling run (or what a row has instead of one) and the product's run right after it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pair {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ceiling: Option<Run>,
    pub(crate) product: Run,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        for (at, metric) in METRICS.iter().enumerate() {
            assert!(METRICS[..at].iter().all(|other| other.name != metric.name));
        }
    }

    #[test]
    fn what_cannot_be_told_is_left_out() {
        let mut run = Run::default();
        run.set("mb_per_s", f64::NAN);
        assert_eq!(run.get("mb_per_s"), None);
    }
}
