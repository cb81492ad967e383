//! Writes `rust-*.bin` and their descriptions into `clients/vectors/batch`, for
//! `check_vectors.py` to read with kafka-python: `cargo run -p millstream-batch --example
//! write_batch_vectors`. The descriptions are made from what goes in, never from what we decode.

use std::error::Error;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use millstream_batch::ids::{Offset, Term};
use millstream_batch::{Batch, BatchBuilder, Codec, Encoding, KeptOffsets, OpenBatch, RecordIndex};
use serde_json::{Value, json};

const NOW: i64 = 1_760_000_000_000;

struct Record {
    timestamp: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(&'static str, Option<Vec<u8>>)>,
}

/// What the header of a vector says beyond its records.
struct Stands {
    base_offset: u64,
    leader_epoch: i64,
    last_offset_delta: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs this");
    let dir = Path::new(&package).join("../../clients/vectors/batch");
    let encodings = [
        ("none", Encoding::None),
        ("lz4", Encoding::Lz4),
        ("zstd", Encoding::Zstd),
    ];
    for (case, records) in [("plain", plain()), ("edges", edges()), ("blocks", blocks())] {
        for (name, encoding) in encodings {
            // Large and uncompressed says nothing new.
            if (case, name) != ("blocks", "none") {
                let batch = encode(encoding, &records);
                write(
                    &dir,
                    &format!("rust-{case}-{name}"),
                    name,
                    &batch,
                    &records,
                    &produced(&records),
                )?;
            }
        }
    }
    write_retained(&dir, "kafka-blocks-gzip", "gzip")?;
    write_retained(&dir, "kafka-blocks-snappy", "snappy")?;
    write_sparse(&dir)?;
    write_served(&dir)
}

fn plain() -> Vec<Record> {
    (0..80)
        .map(|i| Record {
            timestamp: NOW + i / 7,
            key: Some(format!("key-{}", i % 11).into_bytes()),
            value: Some(text(i as usize % 60 + 10, 5)),
            headers: Vec::new(),
        })
        .collect()
}

fn edges() -> Vec<Record> {
    let record = |delta: i64, key: Option<Vec<u8>>, value: Option<Vec<u8>>| Record {
        timestamp: NOW + delta,
        key,
        value,
        headers: Vec::new(),
    };
    let mut records = vec![
        record(0, None, Some(text(90, 7))),
        record(-1, Some(text(90, 7)), None),
        record(1 << 35, None, None),
        record(-(1 << 35), Some(Vec::new()), Some(Vec::new())),
    ];
    for len in [62, 63, 64, 65, 8190, 8191, 8192, 8193] {
        records.push(record(len as i64, Some(text(len, 3)), Some(text(len, 7))));
    }
    records[1].headers = vec![("", Some(text(3, 1))), ("größe/尺寸", None)];
    records[2].headers = (0..70).map(|i| ("h", Some(text(i, 2)))).collect();
    records
}

/// More than one 256 KiB block of LZ4.
fn blocks() -> Vec<Record> {
    (0..9)
        .map(|i| Record {
            timestamp: NOW,
            key: None,
            value: Some(text(35_000, 7 + i)),
            headers: Vec::new(),
        })
        .collect()
}

fn text(len: usize, step: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * i / step) % 23 + 97) as u8).collect()
}

fn encode(encoding: Encoding, records: &[Record]) -> Batch {
    let mut builder = BatchBuilder::new(encoding, 8 << 20);
    for record in records {
        let headers = record
            .headers
            .iter()
            .map(|(key, value)| (*key, value.as_deref()));
        builder
            .append(
                record.key.as_deref(),
                record.value.as_deref(),
                headers,
                record.timestamp,
            )
            .expect("a vector fits");
    }
    builder.build().expect("a vector has records")
}

/// The middle one of the three records of kafka-python's `blocks`, in a codec that we only read.
fn write_retained(dir: &Path, source: &str, name: &str) -> Result<(), Box<dyn Error>> {
    let batch = Batch::check(std::fs::read(dir.join(format!("{source}.bin")))?.into())?;
    let mut codec = Codec::new();
    let open = OpenBatch::open(batch, &mut codec, RecordIndex::new())?;
    let kept = open
        .retain(&[0b010], KeptOffsets::Renumber, &mut codec)?
        .expect("one is kept");
    let record = Record {
        timestamp: NOW,
        key: None,
        value: Some(text(35_000, 8)),
        headers: Vec::new(),
    };
    let stands = Stands {
        leader_epoch: open.batch().header().leader_epoch.into(),
        ..produced(std::slice::from_ref(&record))
    };
    write(
        dir,
        &format!("rust-retained-{name}-lz4"),
        "lz4",
        &kept,
        &[record],
        &stands,
    )
}

/// Every third record of ours, with the offsets they had.
fn write_sparse(dir: &Path) -> Result<(), Box<dyn Error>> {
    let records = plain();
    let mut codec = Codec::new();
    let open = OpenBatch::open(
        encode(Encoding::Zstd, &records),
        &mut codec,
        RecordIndex::new(),
    )?;
    let keep: Vec<u8> = (0..records.len().div_ceil(8))
        .map(|byte| {
            (0..8)
                .filter(|bit| (byte * 8 + bit) % 3 == 0)
                .fold(0, |bits, bit| bits | 1 << bit)
        })
        .collect();
    let kept = open
        .retain(&keep, KeptOffsets::Sparse, &mut codec)?
        .expect("some are kept");
    let offsets = (0..records.len()).step_by(3);
    let left: Vec<&Record> = offsets.clone().map(|i| &records[i]).collect();
    let described = offsets.zip(&left).map(|(i, record)| describe(i, record));
    let mut description = header("zstd", &kept, &produced(&records));
    description["records"] = described.collect();
    description["max_timestamp"] = left.iter().map(|record| record.timestamp).max().into();
    save(dir, "rust-sparse-zstd", kept.bytes(), &description)
}

/// As a consumer gets it: another head before the stored body.
fn write_served(dir: &Path) -> Result<(), Box<dyn Error>> {
    let records = plain();
    let batch = encode(Encoding::Lz4, &records);
    let served = batch.served(Offset(1 << 40), Term(9));
    let joined = Batch::parse([&served.head[..], &served.body[..]].concat().into())?;
    let stands = Stands {
        base_offset: 1 << 40,
        leader_epoch: 9,
        ..produced(&records)
    };
    write(dir, "rust-served-lz4", "lz4", &joined, &records, &stands)
}

fn produced(records: &[Record]) -> Stands {
    Stands {
        base_offset: 0,
        leader_epoch: -1,
        last_offset_delta: records.len() - 1,
    }
}

fn write(
    dir: &Path,
    stem: &str,
    codec: &str,
    batch: &Batch,
    records: &[Record],
    stands: &Stands,
) -> Result<(), Box<dyn Error>> {
    let mut description = header(codec, batch, stands);
    let base = stands.base_offset as usize;
    let described = records
        .iter()
        .enumerate()
        .map(|(i, record)| describe(base + i, record));
    description["records"] = described.collect();
    let max = records.iter().map(|record| record.timestamp).max();
    description["base_timestamp"] = records[0].timestamp.into();
    description["max_timestamp"] = max.into();
    save(dir, stem, batch.bytes(), &description)
}

fn header(codec: &str, batch: &Batch, stands: &Stands) -> Value {
    json!({
        "codec": codec,
        "size": batch.bytes().len(),
        "crc": u32::from_be_bytes(batch.bytes()[17..21].try_into().expect("four bytes")),
        "base_offset": stands.base_offset,
        "leader_epoch": stands.leader_epoch,
        "last_offset_delta": stands.last_offset_delta,
        "base_timestamp": NOW,
        "transactional": false,
        "producer_id": -1,
        "producer_epoch": -1,
        "base_sequence": -1,
    })
}

fn describe(offset: usize, record: &Record) -> Value {
    let headers: Vec<Value> = record
        .headers
        .iter()
        .map(|(key, value)| json!([key, field(value.as_ref())]))
        .collect();
    json!({
        "offset": offset,
        "timestamp": record.timestamp,
        "key": field(record.key.as_ref()),
        "value": field(record.value.as_ref()),
        "headers": headers,
    })
}

/// null, base64, or for long periodic bytes one period and the length.
fn field(bytes: Option<&Vec<u8>>) -> Value {
    let Some(bytes) = bytes else {
        return Value::Null;
    };
    if bytes.len() > 1000 {
        let period = (1..1000).find(|&period| bytes[period..] == bytes[..bytes.len() - period]);
        if let Some(period) = period {
            return json!({"repeat": BASE64_STANDARD.encode(&bytes[..period]), "length": bytes.len()});
        }
    }
    BASE64_STANDARD.encode(bytes).into()
}

fn save(dir: &Path, stem: &str, bytes: &[u8], description: &Value) -> Result<(), Box<dyn Error>> {
    let path: PathBuf = dir.join(stem);
    std::fs::write(path.with_extension("bin"), bytes)?;
    let text = serde_json::to_string_pretty(description)?;
    std::fs::write(path.with_extension("json"), text + "\n")?;
    Ok(())
}
