//! What a frame says, by the schema alone: the generated code has no part in it.

use std::path::Path;

use millstream_protocol::Decoder;
use prost_reflect::{DescriptorPool, DynamicMessage};
use serde_json::{Value, json};

use super::Sample;

/// The schema, read from its file.
pub(crate) fn schema() -> DescriptorPool {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs this");
    let include = Path::new(&package).join("proto");
    let files = protox::compile(["millstream.proto"], [include]).expect("the schema compiles");
    DescriptorPool::from_file_descriptor_set(files).expect("a whole schema")
}

/// The JSON that stands beside a frame's bytes.
pub(crate) fn describe(schema: &DescriptorPool, sample: &Sample) -> Value {
    let frames = Decoder::decode_all(&sample.frame).expect("one frame");
    let frame = &frames[0];
    let descriptor = schema
        .get_message_by_name(&format!("millstream.v1.{}", sample.message))
        .expect("in the schema");
    let long =
        frame.header.is_empty() && !frame.payload.is_empty() && !sample.kind.has_raw_payload();
    let payload = frame.payload.clone().into_contiguous();
    let bytes = if long {
        payload.clone()
    } else {
        frame.header.clone()
    };
    let message = DynamicMessage::decode(descriptor, bytes).expect("the message it should be");
    json!({
        "kind": sample.kind.number(),
        "name": sample.kind.name(),
        "message_type": sample.message,
        "message_in": if long { "payload" } else { "header" },
        "header_bytes": frame.header.len(),
        "payload_bytes": payload.len(),
        "message": serde_json::to_value(&message).expect("protobuf has a JSON form"),
    })
}
