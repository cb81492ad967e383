//! The state of the whole broker at one moment: what shards say, what sessions counted, what the
//! process uses.

use std::time::Duration;

use millstream_batch::ids::ShardId;
use millstream_shard::call::{Answer, Call, Status, TopicTotals};
use serde_json::json;

use crate::broker::{Phase, Shared};
use crate::preflight::{certificate_warning, now_s};

/// A shard that does not answer in time is reported as such.
const SHARD_WAIT: Duration = Duration::from_secs(2);

/// The state of a shard that did not answer.
const SILENT: &str = "silent";

#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) phase: Phase,
    pub(crate) shards: Vec<Status>,
    pub(crate) process: Process,
    /// Of each shard, when they were asked for.
    pub(crate) topics: Vec<(ShardId, Vec<TopicTotals>)>,
    sessions: serde_json::Value,
    broker: serde_json::Value,
}

/// What the process uses, as Linux says.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Process {
    pub(crate) resident_bytes: u64,
    pub(crate) cpu_ms: u64,
    pub(crate) open_files: u64,
}

impl Report {
    pub(crate) async fn gather(shared: &Shared) -> Self {
        let phase = shared.phase();
        let mut shards = Vec::new();
        let calls: Vec<_> = shared
            .shards
            .all()
            .iter()
            .filter(|_| phase != Phase::Starting) // they answer when they have recovered
            .map(|shard| {
                let (to, answer) = tokio::sync::oneshot::channel();
                shard.send(Call::Status, millstream_shard::handle::ReplyTo::Once(to));
                (shard.shard(), answer)
            })
            .collect();
        for (shard, answer) in calls {
            shards.push(match tokio::time::timeout(SHARD_WAIT, answer).await {
                Ok(Ok(Answer::Status(status))) => *status,
                Ok(Ok(Answer::Error(error))) => silent(shard, &error.to_string()),
                _ => silent(shard, "it does not answer"),
            });
        }
        let metrics = &shared.metrics;
        Self {
            phase,
            shards,
            process: Process::read(),
            topics: Vec::new(),
            sessions: json!({
                "connections": metrics.connections.value(),
                "connections_total": metrics.connections_total.value(),
                "streams": metrics.streams.value(),
                "producers": metrics.producers.value(),
                "subscriptions": metrics.subscriptions.value(),
                "requests": metrics.requests.value(),
                "batches_in": metrics.batches_in.value(),
                "batches_out": metrics.batches_out.value(),
                "bytes_in": metrics.bytes_in.value(),
                "bytes_out": metrics.bytes_out.value(),
                "ingress_bytes": shared.bounds.ingress_bytes(),
                "send_bytes": shared.bounds.send.bytes(),
            }),
            broker: json!({
                "version": env!("CARGO_PKG_VERSION"),
                "cluster_id": shared.meta.cluster_id,
                "broker_id": shared.meta.broker_id,
                "address": shared.address.to_string(),
                "uptime_ms": shared.started.elapsed().as_millis() as u64,
                "phase": format!("{phase:?}").to_lowercase(),
                "grants_all": shared.live().authority.grants_all(),
                "certificate": certificate(shared),
            }),
        }
    }

    /// With what was appended to each topic: for metrics.
    pub(crate) async fn with_topics(shared: &Shared) -> Self {
        let mut report = Self::gather(shared).await;
        for status in report.shards.iter().filter(|status| status.state != SILENT) {
            let call = shared.shards.shard(status.shard).call(Call::TopicTotals);
            if let Ok(Answer::TopicTotals(rows)) = tokio::time::timeout(SHARD_WAIT, call).await {
                report.topics.push((status.shard, rows));
            }
        }
        report
    }

    pub(crate) fn to_json(&self) -> String {
        let shards: Vec<_> = self.shards.iter().map(shard_json).collect();
        let process = json!({
            "resident_bytes": self.process.resident_bytes,
            "cpu_ms": self.process.cpu_ms,
            "open_files": self.process.open_files,
        });
        let all = json!({ "broker": self.broker, "sessions": self.sessions, "process": process, "shards": shards });
        all.to_string()
    }
}

/// When the broker's certificate holds, in seconds since 1970, and what is to be said of that.
fn certificate(shared: &Shared) -> serde_json::Value {
    let live = shared.live();
    live.certificate
        .map_or(serde_json::Value::Null, |validity| {
            json!({
                "not_before_s": validity.not_before_s,
                "not_after_s": validity.not_after_s,
                "left_s": validity.not_after_s - now_s(),
                "warning": certificate_warning(&live.config, validity),
            })
        })
}

fn shard_json(status: &Status) -> serde_json::Value {
    let filters: Vec<_> = status
        .filters
        .iter()
        .map(|filter| {
            json!({
                "name": filter.name, "calls": filter.calls, "records": filter.records, "kept": filter.kept,
                "errors": filter.errors, "failed": filter.failed, "kills": filter.kills, "micros": filter.nanos / 1_000,
                "worker": filter.worker, "paused": filter.paused,
            })
        })
        .collect();
    let lag: Vec<_> = status
        .lag
        .iter()
        .map(|(group, topic, partition, lag)| {
            json!({ "group": group, "topic": topic, "partition": partition, "lag": lag })
        })
        .collect();
    json!({
        "shard": status.shard.0, "state": status.state, "why": status.why, "damaged": status.damaged, "clock": status.clock, "disk": status.disk,
        "topics": status.topics, "partitions": status.partitions, "groups": status.groups,
        "last_lsn": status.last_lsn, "durable_lsn": status.durable_lsn, "term": status.term,
        "log_bytes": status.log_bytes, "log_files": status.log_files, "hot_tail_bytes": status.hot_tail_bytes,
        "holders": status.holders, "recovery": status.recovery,
        "batches_in": status.batches_in, "records_in": status.records_in, "bytes_in": status.bytes_in,
        "duplicates": status.duplicates, "refused": status.refused,
        "fetches_hot": status.fetches_hot, "fetches_cold": status.fetches_cold, "bytes_out": status.bytes_out,
        "groups_written": status.groups_written, "syncs": status.syncs,
        "filters": filters, "lag": lag,
    })
}

fn silent(shard: ShardId, why: &str) -> Status {
    Status {
        shard,
        state: SILENT.to_owned(),
        why: Some(why.to_owned()),
        ..Status::default()
    }
}

impl Process {
    /// From `/proc/self`; zeros where it is not to be had.
    fn read() -> Self {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // Fields after the command, which is in parentheses: utime and stime are 12th and 13th
        // (proc(5)), in ticks of 10 ms; the resident set is 22nd, in pages.
        let fields: Vec<u64> = stat
            .rsplit_once(')')
            .map(|(_, rest)| {
                rest.split_whitespace()
                    .map(|field| field.parse().unwrap_or(0))
                    .collect()
            })
            .unwrap_or_default();
        let field = |at: usize| fields.get(at).copied().unwrap_or(0);
        Self {
            resident_bytes: field(21) * 4096,
            cpu_ms: (field(11) + field(12)) * 10,
            open_files: std::fs::read_dir("/proc/self/fd").map_or(0, |files| files.count() as u64),
        }
    }
}
