//! The bytes as others write them: every vector of `clients/vectors/batch` decodes to its
//! description. `kafka-*` were written by kafka-python, `rust-*` by us and read by kafka-python
//! (see the README there).

use std::path::PathBuf;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use millstream_batch::{
    Batch, BatchBuilder, BatchError, Codec, Encoding, KeptOffsets, NULL, OpenBatch, RecordIndex,
    STRIDE, check_parts,
};
use serde_json::Value;

struct Vector {
    name: String,
    bytes: Vec<u8>,
    description: Value,
}

#[derive(Debug, PartialEq)]
struct Record {
    offset: i64,
    timestamp: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

fn dir() -> PathBuf {
    PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs this"))
        .join("../../clients/vectors/batch")
}

fn vectors() -> Vec<Vector> {
    let mut vectors = Vec::new();
    for entry in std::fs::read_dir(dir()).expect("the vectors are there") {
        let path = entry.expect("a readable directory").path();
        if path.extension().is_some_and(|extension| extension == "bin") {
            let text = std::fs::read_to_string(path.with_extension("json")).expect("a description");
            vectors.push(Vector {
                name: path
                    .file_stem()
                    .expect("a name")
                    .to_string_lossy()
                    .into_owned(),
                bytes: std::fs::read(&path).expect("a readable vector"),
                description: serde_json::from_str(&text).expect("a description is JSON"),
            });
        }
    }
    vectors.sort_by(|a, b| a.name.cmp(&b.name));
    vectors
}

fn field(value: &Value) -> Option<Vec<u8>> {
    let decode = |text: &Value| {
        BASE64_STANDARD
            .decode(text.as_str().expect("text"))
            .expect("base64")
    };
    match value {
        Value::Null => None,
        Value::Object(long) => {
            let length = long["length"].as_u64().expect("a length") as usize;
            Some(
                decode(&long["repeat"])
                    .into_iter()
                    .cycle()
                    .take(length)
                    .collect(),
            )
        }
        text => Some(decode(text)),
    }
}

fn described(description: &Value) -> Vec<Record> {
    let list = |value: &Value| value.as_array().expect("a list").clone();
    list(&description["records"])
        .iter()
        .map(|record| Record {
            offset: record["offset"].as_i64().expect("a number"),
            timestamp: record["timestamp"].as_i64().expect("a number"),
            key: field(&record["key"]),
            value: field(&record["value"]),
            headers: list(&record["headers"])
                .iter()
                .map(|header| (header[0].as_str().expect("a key").into(), field(&header[1])))
                .collect(),
        })
        .collect()
}

fn decode(batch: &Batch, raw: &[u8]) -> Vec<Record> {
    let record = |record: Result<millstream_batch::Record<'_>, BatchError>| {
        let record = record.expect("a whole record");
        let headers = record
            .headers
            .map(|header| (header.key.to_vec(), header.value.map(<[u8]>::to_vec)));
        Record {
            offset: record.offset,
            timestamp: record.timestamp,
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            headers: headers.collect(),
        }
    };
    batch.header().records(raw).map(record).collect()
}

#[test]
fn every_vector_decodes_to_its_description() {
    let vectors = vectors();
    let count = |prefix| {
        vectors
            .iter()
            .filter(|vector| vector.name.starts_with(prefix))
            .count()
    };
    assert!(
        count("kafka-") >= 20 && count("rust-") >= 10,
        "vectors are missing"
    );
    let mut codec = Codec::new();
    for Vector {
        name,
        bytes,
        description,
    } in vectors
    {
        let number = |field: &str| {
            description[field]
                .as_i64()
                .unwrap_or_else(|| panic!("{name}: {field}"))
        };
        let parts: Vec<&[u8]> = bytes.chunks(40).collect();
        let in_parts = check_parts(&parts).unwrap_or_else(|error| panic!("{name}: {error}"));
        let batch = Batch::check(bytes.into()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let header = *batch.header();
        assert_eq!(in_parts, header);

        assert_eq!(
            header.attributes.compression.name(),
            description["codec"].as_str().expect("a codec"),
            "{name}"
        );
        assert_eq!(header.size() as i64, number("size"), "{name}");
        assert_eq!(i64::from(header.crc), number("crc"), "{name}");
        assert_eq!(header.base_offset, number("base_offset"), "{name}");
        assert_eq!(
            i64::from(header.leader_epoch),
            number("leader_epoch"),
            "{name}"
        );
        assert_eq!(
            i64::from(header.last_offset_delta),
            number("last_offset_delta"),
            "{name}"
        );
        assert_eq!(header.base_timestamp, number("base_timestamp"), "{name}");
        assert_eq!(header.max_timestamp, number("max_timestamp"), "{name}");
        assert_eq!(header.producer_id, number("producer_id"), "{name}");
        assert_eq!(
            i64::from(header.producer_epoch),
            number("producer_epoch"),
            "{name}"
        );
        assert_eq!(
            i64::from(header.base_sequence),
            number("base_sequence"),
            "{name}"
        );
        assert_eq!(
            Some(header.attributes.transactional),
            description["transactional"].as_bool(),
            "{name}"
        );
        assert!(!header.attributes.control, "{name}");

        let expected = described(&description);
        assert_eq!(header.records as usize, expected.len(), "{name}");
        let raw = batch
            .inflated(&mut codec)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(decode(&batch, &raw) == expected, "{name}: records differ");

        let mut index = RecordIndex::new();
        index
            .build(&header, &raw)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(index.len(), expected.len());
        for (i, record) in expected.iter().enumerate() {
            let stride = &index.index()[i * STRIDE..][..STRIDE];
            let field = |at: u32, len: u32| {
                (len != NULL).then(|| raw[at as usize..at as usize + len as usize].to_vec())
            };
            assert_eq!(field(stride[1], stride[2]), record.key, "{name}");
            assert_eq!(field(stride[3], stride[4]), record.value, "{name}");
            assert_eq!(index.timestamps()[i], record.timestamp, "{name}");
        }
    }
}

/// What another producer may say in a batch and ours may not.
#[test]
fn only_plain_batches_are_taken_from_clients() {
    for vector in vectors() {
        let header = *Batch::check(vector.bytes.into()).expect("whole").header();
        let result = header.check_produced();
        match vector.name.as_str() {
            "kafka-transactional-none" => assert_eq!(result, Err(BatchError::Transactional)),
            "kafka-idempotent-none" => {
                assert!(matches!(result, Err(BatchError::ProducerFields { .. })));
            }
            "rust-sparse-zstd" => assert!(matches!(result, Err(BatchError::SparseOffsets { .. }))),
            name => assert_eq!(result, Ok(()), "{name}"),
        }
    }
}

/// Filtering another encoder's batch leaves exactly the records that were kept, in every codec.
#[test]
fn another_encoders_batches_can_be_filtered() {
    let mut codec = Codec::new();
    for vector in vectors() {
        let expected = described(&vector.description);
        let batch = Batch::check(vector.bytes.into()).expect("whole");
        let first = batch.header().base_offset;
        let open = OpenBatch::open(batch, &mut codec, RecordIndex::new()).expect("whole records");
        let keep = vec![0b0101_0101; expected.len().div_ceil(8)];
        for offsets in [KeptOffsets::Sparse, KeptOffsets::Renumber] {
            let left = open
                .retain(&keep, offsets, &mut codec)
                .expect("a bitmap that fits")
                .expect("the first is kept");
            let left = Batch::check(left.into_bytes()).expect("whole");
            let raw = left.inflated(&mut codec).expect("whole");
            let found = decode(&left, &raw);
            let kept: Vec<Record> = described(&vector.description)
                .into_iter()
                .step_by(2)
                .enumerate()
                .map(|(i, record)| match offsets {
                    KeptOffsets::Sparse => record,
                    KeptOffsets::Renumber => Record {
                        offset: first + i as i64,
                        ..record
                    },
                })
                .collect();
            assert!(found == kept, "{} {offsets:?}", vector.name);
        }
    }
}

/// The plain layout that we write is pinned to the byte: kafka-python wrote the same records.
#[test]
fn our_plain_bytes_are_kafka_pythons() {
    let mut compared = 0;
    for vector in vectors() {
        let plain = vector.name.starts_with("kafka-") && vector.name.ends_with("-none");
        if !plain || vector.description["producer_id"] != -1 {
            continue;
        }
        let mut builder = BatchBuilder::new(Encoding::None, 8 << 20);
        for record in described(&vector.description) {
            let headers: Vec<_> = record
                .headers
                .iter()
                .map(|(key, value)| (str::from_utf8(key).expect("UTF-8"), value.as_deref()))
                .collect();
            builder
                .append(
                    record.key.as_deref(),
                    record.value.as_deref(),
                    headers,
                    record.timestamp,
                )
                .expect("it fits");
        }
        let ours = builder.build().expect("records");
        // The leader epoch is the broker's to set: kafka-python starts with 0, we with -1.
        assert!(
            ours.bytes()[..12] == vector.bytes[..12],
            "{}: head",
            vector.name
        );
        assert!(
            ours.bytes()[16..] == vector.bytes[16..],
            "{}: body",
            vector.name
        );
        compared += 1;
    }
    assert!(compared >= 5, "only {compared} plain vectors");
}
