//! The Prometheus text exposition (version 0.0.4), written by hand: families, help, samples.
//!
//! Labels are bounded: shards, deployments, and as many groups as the shards report.

use std::fmt::{Display, Write as _};

use millstream_shard::call::{LATENCY_BOUNDS_US, Status};

use super::report::Report;
use crate::broker::{Phase, Shared};
use crate::metrics::Counter;

/// All metrics.
pub(super) fn exposition(shared: &Shared, report: &Report) -> String {
    let mut page = Page(String::with_capacity(16 << 10));
    page.gauge(
        "millstream_ready",
        "1 when clients are served",
        u64::from(report.phase == Phase::Serving),
    );
    page.gauge(
        "millstream_uptime_seconds",
        "Seconds since start",
        shared.started.elapsed().as_secs(),
    );
    sessions(&mut page, shared);
    page.gauge(
        "process_resident_memory_bytes",
        "Resident memory",
        report.process.resident_bytes,
    );
    page.gauge("process_open_fds", "Open files", report.process.open_files);
    page.family(
        "process_cpu_seconds_total",
        "counter",
        "CPU time, user and system",
    );
    page.sample(
        "process_cpu_seconds_total",
        "",
        report.process.cpu_ms as f64 / 1_000.0,
    );
    shards(&mut page, &report.shards);
    histograms(&mut page, &report.shards);
    filters(&mut page, &report.shards);
    lag(&mut page, &report.shards);
    page.0
}

fn sessions(page: &mut Page, shared: &Shared) {
    let metrics = &shared.metrics;
    let gauges: [(&str, &str, u64); 6] = [
        (
            "millstream_connections",
            "Open connections",
            metrics.connections.value(),
        ),
        (
            "millstream_streams",
            "Open streams",
            metrics.streams.value(),
        ),
        (
            "millstream_producers",
            "Open producer streams",
            metrics.producers.value(),
        ),
        (
            "millstream_subscriptions",
            "Open subscriptions",
            metrics.subscriptions.value(),
        ),
        (
            "millstream_ingress_bytes",
            "Frames on their way in, unanswered batches included",
            shared.bounds.ingress_bytes() as u64,
        ),
        (
            "millstream_send_bytes",
            "Records on their way out, QUIC's queues included",
            shared.bounds.send.bytes() as u64,
        ),
    ];
    for (name, help, value) in gauges {
        page.gauge(name, help, value);
    }
    let counters: [(&str, &str, &Counter); 11] = [
        (
            "millstream_connections_total",
            "Connections taken",
            &metrics.connections_total,
        ),
        (
            "millstream_connections_refused_total",
            "Connections over the limit",
            &metrics.connections_refused,
        ),
        (
            "millstream_handshakes_failed_total",
            "Handshakes that failed",
            &metrics.handshakes_failed,
        ),
        ("millstream_requests_total", "Requests", &metrics.requests),
        (
            "millstream_requests_refused_total",
            "Requests answered with an error",
            &metrics.requests_refused,
        ),
        (
            "millstream_frames_malformed_total",
            "Frames that could not be read",
            &metrics.frames_malformed,
        ),
        (
            "millstream_received_bytes_total",
            "Bytes of frames received",
            &metrics.bytes_in,
        ),
        (
            "millstream_sent_bytes_total",
            "Bytes of batches sent to consumers",
            &metrics.bytes_out,
        ),
        (
            "millstream_batches_received_total",
            "Batches from producers",
            &metrics.batches_in,
        ),
        (
            "millstream_batches_refused_total",
            "Batches answered with an error",
            &metrics.batches_refused,
        ),
        (
            "millstream_batches_lost_total",
            "Refused batches of producers that want no answer",
            &metrics.batches_lost,
        ),
    ];
    for (name, help, counter) in counters {
        page.family(name, "counter", help);
        page.sample(name, "", counter.value());
    }
    page.family(
        "millstream_batches_sent_total",
        "counter",
        "Batches to consumers",
    );
    page.sample(
        "millstream_batches_sent_total",
        "",
        metrics.batches_out.value(),
    );
}

type Column = (&'static str, &'static str, &'static str, fn(&Status) -> u64);

fn shards(page: &mut Page, shards: &[Status]) {
    let columns: [Column; 18] = [
        (
            "millstream_shard_serving",
            "gauge",
            "1 when the shard takes writes",
            |s| u64::from(s.state == "serving"),
        ),
        ("millstream_shard_topics", "gauge", "Topics known", |s| {
            s.topics as u64
        }),
        (
            "millstream_shard_partitions",
            "gauge",
            "Partitions owned",
            |s| s.partitions as u64,
        ),
        (
            "millstream_shard_groups",
            "gauge",
            "Groups at home here",
            |s| s.groups as u64,
        ),
        (
            "millstream_shard_last_lsn",
            "gauge",
            "Last entry of the log",
            |s| s.last_lsn,
        ),
        (
            "millstream_shard_durable_lsn",
            "gauge",
            "Last durable entry of the log",
            |s| s.durable_lsn,
        ),
        (
            "millstream_shard_log_bytes",
            "gauge",
            "Bytes of log files",
            |s| s.log_bytes,
        ),
        ("millstream_shard_log_files", "gauge", "Log files", |s| {
            s.log_files as u64
        }),
        (
            "millstream_shard_hot_tail_bytes",
            "gauge",
            "Memory of the hot tail",
            |s| s.hot_tail_bytes as u64,
        ),
        (
            "millstream_shard_batches_total",
            "counter",
            "Batches appended",
            |s| s.batches_in,
        ),
        (
            "millstream_shard_records_total",
            "counter",
            "Records appended",
            |s| s.records_in,
        ),
        (
            "millstream_shard_bytes_total",
            "counter",
            "Bytes appended",
            |s| s.bytes_in,
        ),
        (
            "millstream_shard_duplicates_total",
            "counter",
            "Batches that were there already",
            |s| s.duplicates,
        ),
        (
            "millstream_shard_refused_total",
            "counter",
            "Calls refused",
            |s| s.refused,
        ),
        (
            "millstream_shard_fetches_hot_total",
            "counter",
            "Fetches from memory",
            |s| s.fetches_hot,
        ),
        (
            "millstream_shard_fetches_cold_total",
            "counter",
            "Fetches from disk",
            |s| s.fetches_cold,
        ),
        (
            "millstream_shard_fetched_bytes_total",
            "counter",
            "Bytes fetched",
            |s| s.bytes_out,
        ),
        (
            "millstream_shard_syncs_total",
            "counter",
            "Syncs of the log",
            |s| s.syncs,
        ),
    ];
    for (name, kind, help, value) in columns {
        page.family(name, kind, help);
        for status in shards {
            page.sample(name, &format!("shard=\"{}\"", status.shard), value(status));
        }
    }
}

fn histograms(page: &mut Page, shards: &[Status]) {
    type Histogram = (&'static str, &'static str, fn(&Status) -> &[u64]);
    let families: [Histogram; 3] = [
        (
            "millstream_produce_seconds",
            "From a batch taken up to its durable answer",
            |s| &s.produce_us,
        ),
        (
            "millstream_sync_seconds",
            "Write and sync of one group",
            |s| &s.sync_us,
        ),
        (
            "millstream_fetch_seconds",
            "Fetches that found records",
            |s| &s.fetch_us,
        ),
    ];
    for (name, help, counts) in families {
        page.family(name, "histogram", help);
        for status in shards {
            let counts = counts(status);
            let cumulative = |at: usize| counts.get(at).or(counts.last()).copied().unwrap_or(0);
            let bucket = format!("{name}_bucket");
            for (at, bound) in LATENCY_BOUNDS_US.iter().enumerate() {
                let labels = format!("shard=\"{}\",le=\"{}\"", status.shard, *bound as f64 / 1e6);
                page.sample(&bucket, &labels, cumulative(at));
            }
            let all = cumulative(LATENCY_BOUNDS_US.len());
            page.sample(
                &bucket,
                &format!("shard=\"{}\",le=\"+Inf\"", status.shard),
                all,
            );
            page.sample(
                &format!("{name}_count"),
                &format!("shard=\"{}\"", status.shard),
                all,
            );
        }
    }
}

fn filters(page: &mut Page, shards: &[Status]) {
    type Column = (
        &'static str,
        &'static str,
        fn(&millstream_shard::call::FilterStatus) -> f64,
    );
    let columns: [Column; 5] = [
        (
            "millstream_filter_batches_total",
            "Batches filtered at produce",
            |f| f.calls as f64,
        ),
        (
            "millstream_filter_records_total",
            "Records filtered at produce",
            |f| f.records as f64,
        ),
        (
            "millstream_filter_kept_total",
            "Records kept at produce",
            |f| f.kept as f64,
        ),
        (
            "millstream_filter_errors_total",
            "Batches without a verdict",
            |f| f.errors as f64,
        ),
        (
            "millstream_filter_seconds_total",
            "Time spent in filters at produce",
            |f| f.micros as f64 / 1e6,
        ),
    ];
    for (name, help, value) in columns {
        page.family(name, "counter", help);
        for status in shards {
            for filter in &status.filters {
                let labels = format!(
                    "shard=\"{}\",filter=\"{}\"",
                    status.shard,
                    escaped(&filter.name)
                );
                page.sample(name, &labels, value(filter));
            }
        }
    }
}

fn lag(page: &mut Page, shards: &[Status]) {
    page.family(
        "millstream_group_lag",
        "gauge",
        "Records after a group's committed offset",
    );
    for status in shards {
        for (group, topic, partition, lag) in &status.lag {
            let labels = format!(
                "group=\"{}\",topic=\"{}\",partition=\"{partition}\"",
                escaped(group),
                escaped(topic)
            );
            page.sample("millstream_group_lag", &labels, lag);
        }
    }
}

/// Label values: backslash, quote and line end are escaped.
fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _infallible = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        let _infallible = match labels {
            "" => writeln!(self.0, "{name} {value}"),
            labels => writeln!(self.0, "{name}{{{labels}}} {value}"),
        };
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "gauge", help);
        self.sample(name, "", value);
    }
}
