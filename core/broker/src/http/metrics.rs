//! What the broker measures, as families of samples: one list, from which the Prometheus page and the
//! OpenTelemetry export are both made.
//!
//! Labels are bounded: shards, codes, deployments, and as many groups and topics as the shards report.

mod topics;

use millstream_shard::call::{FilterStatus, Status};

use super::report::Report;
use crate::broker::{Phase, Shared};
use crate::metrics::{Counter, Metrics};

/// A metric with all its samples.
#[derive(Debug)]
pub(crate) struct Family {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) samples: Samples,
}

pub(crate) type Labels = Vec<(&'static str, String)>;

#[derive(Debug)]
pub(crate) enum Samples {
    Gauge(Vec<(Labels, f64)>),
    /// Only rises.
    Counter(Vec<(Labels, f64)>),
    /// Cumulative counts for the bounds of `LATENCY_BOUNDS_US`, and one for all.
    Histogram(Vec<(Labels, Vec<u64>)>),
}

/// All families.
pub(crate) fn families(shared: &Shared, report: &Report) -> Vec<Family> {
    let mut all = broker(shared, report);
    all.extend(certificate(shared));
    all.extend(sessions(shared));
    all.extend(refusals(&shared.metrics));
    all.extend(shards(&report.shards));
    all.extend(histograms(&report.shards));
    all.extend(produce_filters(&report.shards));
    all.extend(subscribe_filters(&shared.metrics.subscribe_filters.rows()));
    all.extend(topics::families(&report.topics));
    all.extend(topics::deployments(shared, &report.topics));
    all.push(counter(
        "millstream_spans_dropped_total",
        "Spans that were not exported",
        shared.traces.dropped.value() as f64,
    ));
    all.push(lag(&report.shards));
    all
}

fn gauge(name: &'static str, help: &'static str, value: f64) -> Family {
    Family {
        name,
        help,
        samples: Samples::Gauge(vec![(Labels::new(), value)]),
    }
}

fn counter(name: &'static str, help: &'static str, value: f64) -> Family {
    Family {
        name,
        help,
        samples: Samples::Counter(vec![(Labels::new(), value)]),
    }
}

fn broker(shared: &Shared, report: &Report) -> Vec<Family> {
    let process = report.process;
    let ready = f64::from(u8::from(report.phase == Phase::Serving));
    let build = vec![
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("arch", std::env::consts::ARCH.to_owned()),
    ];
    vec![
        Family {
            name: "millstream_build_info",
            help: "1, with what runs as labels",
            samples: Samples::Gauge(vec![(build, 1.0)]),
        },
        gauge("millstream_ready", "1 when clients are served", ready),
        gauge(
            "millstream_uptime_seconds",
            "Seconds since start",
            shared.started.elapsed().as_secs_f64(),
        ),
        gauge(
            "process_resident_memory_bytes",
            "Resident memory",
            process.resident_bytes as f64,
        ),
        gauge("process_open_fds", "Open files", process.open_files as f64),
        counter(
            "process_cpu_seconds_total",
            "CPU time, user and system",
            process.cpu_ms as f64 / 1_000.0,
        ),
    ]
}

fn certificate(shared: &Shared) -> Option<Family> {
    let validity = shared.live().certificate?;
    Some(gauge(
        "millstream_certificate_expiry_timestamp_seconds",
        "When the broker's certificate expires, in seconds since 1970",
        validity.not_after_s as f64,
    ))
}

fn sessions(shared: &Shared) -> Vec<Family> {
    let metrics = &shared.metrics;
    let bounds = &shared.bounds;
    let gauges: [(&'static str, &'static str, u64); 9] = [
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
            "millstream_requests_running",
            "Requests taken and not answered yet",
            metrics.requests_running.value(),
        ),
        (
            "millstream_handshakes",
            "Handshakes under way",
            metrics.handshakes.value(),
        ),
        (
            "millstream_strangers",
            "Connections and handshakes that have not said who they are",
            metrics.strangers.value(),
        ),
        (
            "millstream_subscriptions",
            "Open subscriptions",
            metrics.subscriptions.value(),
        ),
        (
            "millstream_ingress_bytes",
            "Frames on their way in, until answered",
            bounds.ingress_bytes() as u64,
        ),
        (
            "millstream_send_bytes",
            "Records on their way out, QUIC's queues included",
            bounds.send.bytes() as u64,
        ),
    ];
    let counters: [(&'static str, &'static str, &Counter); 12] = [
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
            "millstream_handshakes_retried_total",
            "Handshakes asked to prove their address first",
            &metrics.handshakes_retried,
        ),
        (
            "millstream_handshakes_ignored_total",
            "Handshakes over the limit, left unanswered",
            &metrics.handshakes_ignored,
        ),
        (
            "millstream_streams_refused_total",
            "Streams past the share of their connection",
            &metrics.streams_refused,
        ),
        ("millstream_requests_total", "Requests", &metrics.requests),
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
            "millstream_batches_lost_total",
            "Refused batches that nobody was told of",
            &metrics.batches_lost,
        ),
        (
            "millstream_batches_sent_total",
            "Batches to consumers",
            &metrics.batches_out,
        ),
    ];
    let gauges = gauges
        .into_iter()
        .map(|(name, help, value)| gauge(name, help, value as f64));
    let counters = counters
        .into_iter()
        .map(|(name, help, value)| counter(name, help, value.value() as f64));
    gauges.chain(counters).collect()
}

/// What was turned away, by reason.
fn refusals(metrics: &Metrics) -> Vec<Family> {
    fn family<'a>(
        name: &'static str,
        help: &'static str,
        rows: impl Iterator<Item = (&'a str, u64)>,
    ) -> Family {
        let samples =
            rows.map(|(reason, count)| (vec![("reason", reason.to_owned())], count as f64));
        Family {
            name,
            help,
            samples: Samples::Counter(samples.collect()),
        }
    }
    vec![
        family(
            "millstream_handshakes_failed_total",
            "Handshakes that failed, by reason",
            metrics.handshakes_failed.rows(),
        ),
        family(
            "millstream_hellos_refused_total",
            "Connections refused after the handshake, by error code",
            metrics.hellos_refused.rows(),
        ),
        family(
            "millstream_requests_refused_total",
            "Requests answered with an error, by its code",
            metrics.requests_refused.rows(),
        ),
        family(
            "millstream_batches_refused_total",
            "Batches answered with an error, by its code",
            metrics.batches_refused.rows(),
        ),
    ]
}

fn shard_label(status: &Status) -> (&'static str, String) {
    ("shard", status.shard.to_string())
}

fn shards(shards: &[Status]) -> impl Iterator<Item = Family> + '_ {
    type Column = (&'static str, &'static str, fn(&Status) -> u64);
    let columns: [Column; 22] = [
        (
            "millstream_shard_serving",
            "1 when the shard takes writes",
            |s| u64::from(s.state == "serving"),
        ),
        (
            "millstream_shard_stopped",
            "1 when the shard takes no writes until a restart or a repair: after a failed write, or read-only",
            |s| u64::from(matches!(s.state.as_str(), "stopped" | "read-only")),
        ),
        (
            "millstream_shard_damaged_ranges",
            "Ranges of the log found damaged since the start, by it and by reads",
            |s| s.damaged as u64,
        ),
        (
            "millstream_shard_untold",
            "Messages that other shards have not acknowledged, and shards that do not know the whole catalogue",
            |s| s.untold as u64,
        ),
        (
            "millstream_clock_doubted",
            "1 when the wall clock is in doubt: retention and expiry rest until it is right, or accepted",
            |s| u64::from(s.clock.is_some()),
        ),
        ("millstream_shard_topics", "Topics known", |s| {
            s.topics as u64
        }),
        ("millstream_shard_partitions", "Partitions owned", |s| {
            s.partitions as u64
        }),
        ("millstream_shard_groups", "Groups at home here", |s| {
            s.groups as u64
        }),
        ("millstream_shard_last_lsn", "Last entry of the log", |s| {
            s.last_lsn
        }),
        (
            "millstream_shard_durable_lsn",
            "Last durable entry of the log",
            |s| s.durable_lsn,
        ),
        ("millstream_shard_log_bytes", "Bytes of log files", |s| {
            s.log_bytes
        }),
        ("millstream_shard_log_files", "Log files", |s| {
            s.log_files as u64
        }),
        (
            "millstream_shard_hot_tail_bytes",
            "Memory of the hot tail",
            |s| s.hot_tail_bytes as u64,
        ),
        ("millstream_shard_batches_total", "Batches appended", |s| {
            s.batches_in
        }),
        ("millstream_shard_records_total", "Records appended", |s| {
            s.records_in
        }),
        ("millstream_shard_bytes_total", "Bytes appended", |s| {
            s.bytes_in
        }),
        (
            "millstream_shard_duplicates_total",
            "Batches that were there already",
            |s| s.duplicates,
        ),
        ("millstream_shard_refused_total", "Calls refused", |s| {
            s.refused
        }),
        (
            "millstream_shard_fetches_hot_total",
            "Fetches from memory",
            |s| s.fetches_hot,
        ),
        (
            "millstream_shard_fetches_cold_total",
            "Fetches from disk",
            |s| s.fetches_cold,
        ),
        (
            "millstream_shard_fetched_bytes_total",
            "Bytes fetched",
            |s| s.bytes_out,
        ),
        ("millstream_shard_syncs_total", "Syncs of the log", |s| {
            s.syncs
        }),
    ];
    columns.into_iter().map(move |(name, help, value)| {
        let samples = shards
            .iter()
            .map(|status| (vec![shard_label(status)], value(status) as f64))
            .collect();
        let counts = name.ends_with("_total");
        Family {
            name,
            help,
            samples: if counts {
                Samples::Counter(samples)
            } else {
                Samples::Gauge(samples)
            },
        }
    })
}

fn histograms(shards: &[Status]) -> impl Iterator<Item = Family> + '_ {
    type Column = (&'static str, &'static str, fn(&Status) -> &Vec<u64>);
    let columns: [Column; 3] = [
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
    columns.into_iter().map(move |(name, help, counts)| {
        let samples = shards
            .iter()
            .map(|status| (vec![shard_label(status)], counts(status).clone()))
            .collect();
        Family {
            name,
            help,
            samples: Samples::Histogram(samples),
        }
    })
}

/// A counter that filters have at both stages.
struct FilterCounter {
    /// Name and help of the filters at produce.
    produce: (&'static str, &'static str),
    /// Of those on the way to subscriptions.
    subscribe: (&'static str, &'static str),
    value: fn(&FilterStatus) -> f64,
}

const FILTER_COUNTERS: [FilterCounter; 7] = [
    FilterCounter {
        produce: (
            "millstream_filter_batches_total",
            "Batches filtered at produce",
        ),
        subscribe: (
            "millstream_subscribe_filter_batches_total",
            "Batches filtered for subscriptions",
        ),
        value: |f| f.calls as f64,
    },
    FilterCounter {
        produce: (
            "millstream_filter_records_total",
            "Records filtered at produce",
        ),
        subscribe: (
            "millstream_subscribe_filter_records_total",
            "Records filtered for subscriptions",
        ),
        value: |f| f.records as f64,
    },
    FilterCounter {
        produce: ("millstream_filter_kept_total", "Records kept at produce"),
        subscribe: (
            "millstream_subscribe_filter_kept_total",
            "Records kept for subscriptions",
        ),
        value: |f| f.kept as f64,
    },
    FilterCounter {
        produce: (
            "millstream_filter_errors_total",
            "Batches without a verdict at produce",
        ),
        subscribe: (
            "millstream_subscribe_filter_errors_total",
            "Batches without a verdict for subscriptions",
        ),
        value: |f| f.errors as f64,
    },
    FilterCounter {
        produce: (
            "millstream_filter_failed_records_total",
            "Records that could not be judged at produce",
        ),
        subscribe: (
            "millstream_subscribe_filter_failed_records_total",
            "Records that could not be judged for subscriptions",
        ),
        value: |f| f.failed as f64,
    },
    FilterCounter {
        produce: (
            "millstream_filter_kills_total",
            "Instances killed at produce",
        ),
        subscribe: (
            "millstream_subscribe_filter_kills_total",
            "Instances killed for subscriptions",
        ),
        value: |f| f.kills as f64,
    },
    FilterCounter {
        produce: (
            "millstream_filter_seconds_total",
            "Time spent in filters at produce",
        ),
        subscribe: (
            "millstream_subscribe_filter_seconds_total",
            "Time spent in filters for subscriptions",
        ),
        value: |f| f.nanos as f64 / 1e9,
    },
];

impl FilterCounter {
    fn family<'a>(
        &self,
        (name, help): (&'static str, &'static str),
        rows: impl Iterator<Item = (Labels, &'a FilterStatus)>,
    ) -> Family {
        let samples = rows.map(|(labels, filter)| (labels, (self.value)(filter)));
        Family {
            name,
            help,
            samples: Samples::Counter(samples.collect()),
        }
    }
}

/// At produce: by shard and deployment.
fn produce_filters(shards: &[Status]) -> impl Iterator<Item = Family> + '_ {
    FILTER_COUNTERS.iter().map(move |counter| {
        let rows = shards.iter().flat_map(|status| {
            let of = move |filter| (vec![shard_label(status), filter_label(filter)], filter);
            status.filters.iter().map(of)
        });
        counter.family(counter.produce, rows)
    })
}

/// On the way to subscriptions, those that they brought included: by deployment.
fn subscribe_filters(rows: &[FilterStatus]) -> impl Iterator<Item = Family> + '_ {
    FILTER_COUNTERS.iter().map(move |counter| {
        let rows = rows
            .iter()
            .map(|filter| (vec![filter_label(filter)], filter));
        counter.family(counter.subscribe, rows)
    })
}

fn filter_label(filter: &FilterStatus) -> (&'static str, String) {
    ("filter", filter.name.clone())
}

fn lag(shards: &[Status]) -> Family {
    let samples = shards
        .iter()
        .flat_map(|status| &status.lag)
        .map(|(group, topic, partition, lag)| {
            let partition = ("partition", partition.to_string());
            (
                vec![
                    ("group", group.clone()),
                    ("topic", topic.clone()),
                    partition,
                ],
                *lag as f64,
            )
        })
        .collect();
    Family {
        name: "millstream_group_lag",
        help: "Records after a group's committed offset",
        samples: Samples::Gauge(samples),
    }
}
