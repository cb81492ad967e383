//! A filter without a sandbox: `key-filter`'s rule in native code, over the record index that a broker
//! makes of a batch, into the same bitmap.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Context as _, Result};
use millstream_batch::{Batch, BatchBuilder, Codec, Encoding, NULL, RecordIndex, STRIDE};

/// Records of 1 to this many keys, as `millstream bench --keys` makes them.
const KEYS: u64 = 1_000;

/// A batch of so many records with keys `key-N` and values of so many bytes.
pub(crate) fn batch(records: u64, size: usize) -> Result<Batch> {
    let mut builder = BatchBuilder::new(Encoding::None, usize::MAX);
    let value = vec![b'v'; size];
    for number in 0..records {
        let key = format!("key-{}", number % KEYS);
        builder.append(Some(key.as_bytes()), Some(&value), [], 1_700_000_000_000)?;
    }
    builder.build().context("a batch has records")
}

/// Index the batch and judge its records so many times: nanoseconds a record.
pub(crate) fn nanoseconds(batch: &Batch, times: u64, prefix: &[u8]) -> Result<f64> {
    let raw = batch.inflated(&mut Codec::new())?;
    let mut index = RecordIndex::new();
    let mut bitmap = vec![0_u8; (batch.header().records as usize).div_ceil(8)];
    let began = Instant::now();
    for _ in 0..times {
        index.build(batch.header(), black_box(&raw))?;
        bitmap.fill(0);
        for (number, fields) in index.index().chunks_exact(STRIDE).enumerate() {
            let (at, len) = (fields[1] as usize, fields[2]);
            let keep = len != NULL && raw[at..at + len as usize].starts_with(prefix);
            bitmap[number / 8] |= u8::from(keep) << (number % 8);
        }
        black_box(&bitmap);
    }
    let nanos = began.elapsed().as_nanos() as f64;
    Ok(nanos / (times * u64::from(batch.header().records)) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_costs_something() {
        let batch = batch(10, 100).expect("it is built");
        assert!(nanoseconds(&batch, 10, b"key-").expect("it is judged") > 0.0);
    }
}
