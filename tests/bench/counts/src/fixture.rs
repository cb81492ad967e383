//! The bytes that rows work on: records as a log service writes them, and chunks as QUIC brings them.

use bytes::Bytes;
use millstream_batch::limits::BATCH_BYTES_MAX;
use millstream_batch::{Batch, BatchBuilder, Encoding};

/// What a packet of 1,452 bytes carries of a stream, about.
pub(crate) const CHUNK_BYTES: usize = 1_400;
/// Every record's timestamp.
pub(crate) const TIMESTAMP: i64 = 1_700_000_000_000;

/// `records` records whose keys are `user-0` to `user-2` in turn and whose values have `bytes` bytes.
pub(crate) fn batch(records: usize, bytes: usize) -> Batch {
    let mut builder = BatchBuilder::new(Encoding::None, BATCH_BYTES_MAX);
    fill(&mut builder, &pairs(records, bytes));
    builder.build().expect("records were appended")
}

/// A batch of 64 KiB: 64 records of 1 KiB.
pub(crate) fn large() -> Batch {
    batch(64, 1_024)
}

/// A batch of one record of 100 bytes.
pub(crate) fn small() -> Batch {
    batch(1, 100)
}

/// Keys and values.
pub(crate) fn pairs(records: usize, bytes: usize) -> Vec<(String, Vec<u8>)> {
    let value = |i: usize| {
        let mut value = format!(
            r#"{{"level":"info","latency_ms":{},"message":""#,
            i * 37 % 400
        );
        value.extend(std::iter::repeat_n(
            'x',
            bytes.saturating_sub(value.len() + 2),
        ));
        value.push_str("\"}");
        value.into_bytes()
    };
    (0..records)
        .map(|i| (format!("user-{}", i % 3), value(i)))
        .collect()
}

pub(crate) fn fill(builder: &mut BatchBuilder, pairs: &[(String, Vec<u8>)]) {
    for (key, value) in pairs {
        let (key, value) = (Some(key.as_bytes()), Some(&value[..]));
        builder
            .append(key, value, [], TIMESTAMP)
            .expect("there is room");
    }
}

/// `bytes` in parts that share its memory.
pub(crate) fn chunks(bytes: &Bytes) -> Vec<Bytes> {
    (0..bytes.len())
        .step_by(CHUNK_BYTES)
        .map(|at| bytes.slice(at..bytes.len().min(at + CHUNK_BYTES)))
        .collect()
}
