//! Export of the same metrics, and of spans, to an OpenTelemetry collector: OTLP over HTTP in its JSON
//! encoding (opentelemetry-proto `metrics/v1`, `trace/v1`), so that no code generator and no gRPC stack is
//! needed: the `opentelemetry-otlp` of today brings 19 crates, tonic and h2 among them, also for HTTP.
//!
//! Absent: logs, and TLS: the collector is on this machine or behind a local agent.

mod spans;

use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use millstream_shard::call::LATENCY_BOUNDS_US;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::metrics::{Family, Labels, Samples, families};
use super::report::Report;
use crate::broker::Shared;
use crate::traces::now_ns;

/// A collector that does not answer in time is tried again at the next interval.
const ANSWER_WAIT: Duration = Duration::from_secs(5);
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// `AGGREGATION_TEMPORALITY_CUMULATIVE`.
const CUMULATIVE: u8 = 2;

/// Export for ever, when the setting says so.
pub(super) async fn export(shared: &Shared) {
    let telemetry = &shared.config.telemetry;
    let Some(endpoint) = telemetry.otlp_endpoint.as_deref() else {
        return std::future::pending().await;
    };
    let started = now_ns();
    let mut failing = false;
    loop {
        tokio::time::sleep(Duration::from_millis(telemetry.interval_ms)).await;
        let report = Report::with_topics(shared).await;
        let resource = resource(&shared.meta.broker_id);
        let metrics = request(&resource, &families(shared, &report), started, now_ns());
        let mut outcome = post(endpoint, "/v1/metrics", &metrics).await;
        let spans = shared.traces.take();
        if !spans.is_empty() {
            let sent = post(endpoint, "/v1/traces", &spans::request(&resource, &spans)).await;
            if sent.is_err() {
                shared.traces.dropped.add(spans.len() as u64);
            }
            outcome = outcome.and(sent);
        }
        match &outcome {
            Err(why) if !failing => {
                tracing::warn!(endpoint, "telemetry is not exported: {why}; trying on");
            }
            Ok(()) if failing => tracing::info!(endpoint, "telemetry is exported again"),
            _ => {}
        }
        failing = outcome.is_err();
    }
}

async fn post(endpoint: &str, path: &str, body: &Value) -> Result<(), String> {
    let sent = tokio::time::timeout(ANSWER_WAIT, send(endpoint, path, body.to_string())).await;
    sent.unwrap_or_else(|_| Err("it does not answer in time".to_owned()))
}

async fn send(endpoint: &str, path: &str, body: String) -> Result<(), String> {
    let authority = endpoint.trim_start_matches("http://").trim_end_matches('/');
    let stream = TcpStream::connect(authority)
        .await
        .map_err(|error| format!("cannot connect: {error}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let request = Request::post(path)
        .header(HOST, authority)
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| error.to_string())?;
    let exchange = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| error.to_string())?;
        let status = response.status();
        let answer = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await;
        let answer = answer.map(|body| body.to_bytes()).unwrap_or_default();
        if status.is_success() {
            return Ok(());
        }
        Err(format!(
            "{status}: {}",
            String::from_utf8_lossy(&answer).trim()
        ))
    };
    tokio::select! {
        outcome = exchange => outcome,
        ended = connection => Err(ended.map_or_else(|error| error.to_string(), |()| "the connection ended".to_owned())),
    }
}

/// `ExportMetricsServiceRequest`. 64-bit integers are strings, as protobuf's JSON form wants.
fn request(resource: &Value, families: &[Family], started: u64, now: u64) -> Value {
    let metrics: Vec<Value> = families
        .iter()
        .map(|family| metric(family, started, now))
        .collect();
    json!({ "resourceMetrics": [{
        "resource": resource,
        "scopeMetrics": [{ "scope": { "name": "millstream" }, "metrics": metrics }],
    }] })
}

/// Who speaks.
fn resource(broker_id: &str) -> Value {
    json!({ "attributes": [
        attribute("service.name", "millstream"),
        attribute("service.version", env!("CARGO_PKG_VERSION")),
        attribute("service.instance.id", broker_id),
    ] })
}

fn metric(family: &Family, started: u64, now: u64) -> Value {
    let point = |labels: &Labels| {
        let attributes: Vec<Value> = labels
            .iter()
            .map(|(key, value)| attribute(key, value))
            .collect();
        json!({ "attributes": attributes, "startTimeUnixNano": started.to_string(), "timeUnixNano": now.to_string() })
    };
    let number = |(labels, value): &(Labels, f64)| {
        let mut point = point(labels);
        point["asDouble"] = json!(value);
        point
    };
    let mut metric = json!({ "name": family.name, "description": family.help });
    match &family.samples {
        Samples::Gauge(samples) => {
            metric["gauge"] =
                json!({ "dataPoints": samples.iter().map(number).collect::<Vec<_>>() });
        }
        Samples::Counter(samples) => {
            metric["sum"] = json!({
                "dataPoints": samples.iter().map(number).collect::<Vec<_>>(),
                "aggregationTemporality": CUMULATIVE, "isMonotonic": true,
            });
        }
        Samples::Histogram(samples) => {
            let bounds: Vec<f64> = LATENCY_BOUNDS_US
                .iter()
                .map(|bound| *bound as f64 / 1e6)
                .collect();
            let points: Vec<Value> = samples
                .iter()
                .map(|(labels, cumulative)| {
                    let mut point = point(labels);
                    let all = cumulative.last().copied().unwrap_or(0);
                    point["count"] = json!(all.to_string());
                    point["explicitBounds"] = json!(bounds);
                    point["bucketCounts"] = json!(per_bucket(cumulative));
                    point
                })
                .collect();
            metric["histogram"] =
                json!({ "dataPoints": points, "aggregationTemporality": CUMULATIVE });
        }
    }
    metric
}

/// Cumulative counts as counts of each bucket, one more than there are bounds.
fn per_bucket(cumulative: &[u64]) -> Vec<String> {
    let all = cumulative.last().copied().unwrap_or(0);
    let mut before = 0;
    (0..=LATENCY_BOUNDS_US.len())
        .map(|at| {
            let until = cumulative.get(at).copied().unwrap_or(all);
            let count = until.saturating_sub(before);
            before = until;
            count.to_string()
        })
        .collect()
}

fn attribute(key: &str, value: &str) -> Value {
    json!({ "key": key, "value": { "stringValue": value } })
}
