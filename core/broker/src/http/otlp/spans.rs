//! Spans in OTLP's JSON encoding (opentelemetry-proto `trace/v1`): identifiers are hexadecimal, 64-bit
//! integers are strings.

use std::fmt::Write as _;

use serde_json::{Value as Json, json};

use super::attribute;
use crate::traces::{Span, Value};

/// `SPAN_KIND_INTERNAL` and `SPAN_KIND_SERVER`.
const INTERNAL: u8 = 1;
const SERVER: u8 = 2;
/// `STATUS_CODE_ERROR`.
const ERROR: u8 = 2;

/// `ExportTraceServiceRequest`.
pub(super) fn request(resource: &Json, spans: &[Span]) -> Json {
    let spans: Vec<Json> = spans.iter().map(span).collect();
    json!({ "resourceSpans": [{
        "resource": resource,
        "scopeSpans": [{ "scope": { "name": "millstream" }, "spans": spans }],
    }] })
}

fn span(span: &Span) -> Json {
    let attributes: Vec<Json> = span
        .attributes
        .iter()
        .map(|(key, value)| match value {
            Value::Text(text) => attribute(key, text),
            Value::Number(number) => {
                json!({ "key": key, "value": { "intValue": number.to_string() } })
            }
            Value::Flag(flag) => json!({ "key": key, "value": { "boolValue": flag } }),
        })
        .collect();
    let mut json = json!({
        "traceId": hex(&span.trace),
        "spanId": hex(&span.id),
        "name": span.name,
        "kind": if span.parent.is_some() { INTERNAL } else { SERVER },
        "startTimeUnixNano": span.start_ns.to_string(),
        "endTimeUnixNano": span.end_ns.max(span.start_ns).to_string(),
        "attributes": attributes,
    });
    if let Some(parent) = &span.parent {
        json["parentSpanId"] = json!(hex(parent));
    }
    if let Some(error) = &span.error {
        json["status"] = json!({ "code": ERROR, "message": error });
    }
    json
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}
