//! The record batch. The first byte says which door the rest comes through: 0 to 4 the records
//! section of that compression, 5 plain records under a header of the fuzzer's choice, and above
//! that a whole batch, checked in parts of that many bytes.

use std::cell::RefCell;

use bytes::Bytes;
use millstream_batch::limits::BATCH_INFLATED_BYTES_MAX;
use millstream_batch::{
    Attributes, Batch, BatchBuilder, BatchError, BatchHeader, BatchView, Checker, Codec,
    Compression, Encoding, KeptOffsets, NULL, OpenBatch, RecordIndex, STRIDE,
};

thread_local! {
    /// Used again from one input to the next, as a broker does: no input may spoil it.
    static CODEC: RefCell<Codec> = RefCell::new(Codec::new());
}

/// One record, owned.
#[derive(Clone, Debug, PartialEq)]
struct Owned {
    offset: i64,
    timestamp: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

/// Batches, record sections and compressed sections.
pub fn batch(data: &[u8]) {
    let Some((&door, rest)) = data.split_first() else {
        return;
    };
    CODEC.with_borrow_mut(|codec| match door {
        0 => section(codec, Compression::None, rest),
        1 => section(codec, Compression::Gzip, rest),
        2 => section(codec, Compression::Snappy, rest),
        3 => section(codec, Compression::Lz4, rest),
        4 => section(codec, Compression::Zstd, rest),
        5 => records(rest),
        size => whole(codec, usize::from(size), rest),
    });
}

fn section(codec: &mut Codec, compression: Compression, data: &[u8]) {
    let mut raw = Vec::new();
    if codec.inflate(compression, data, &mut raw).is_ok() {
        assert!(raw.len() <= BATCH_INFLATED_BYTES_MAX);
    }
    // Room beside what was put out: doubling, and zstd's window is not counted here.
    assert!(raw.capacity() <= 3 * BATCH_INFLATED_BYTES_MAX + (1 << 20));
}

fn records(data: &[u8]) {
    let Some((numbers, raw)) = data.split_first_chunk::<6>() else {
        return;
    };
    let [count, last, t0, t1, log_append, base] = *numbers;
    let mut attributes = Attributes::default();
    if log_append & 1 == 1 {
        attributes.timestamp_type = millstream_batch::TimestampType::LogAppend;
    }
    let header = BatchHeader {
        base_offset: i64::from(base),
        length: raw.len() as u32 + 49,
        leader_epoch: 0,
        crc: 0,
        attributes,
        last_offset_delta: u32::from(last),
        base_timestamp: i64::from_be_bytes([t0, t1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        max_timestamp: 1,
        producer_id: -1,
        producer_epoch: -1,
        base_sequence: -1,
        records: u32::from(count),
    };
    let mut index = RecordIndex::new();
    let indexed = index.build(&header, raw);
    agree(&header, raw, &index, &indexed);
}

fn whole(codec: &mut Codec, size: usize, data: &[u8]) {
    let mut checker = Checker::new();
    let pushed = data.chunks(size).try_for_each(|part| checker.push(part));
    let in_parts = pushed.and_then(|()| checker.finish());
    let in_one = BatchView::check(data).map(|view| *view.header());
    assert_eq!(in_parts.as_ref().ok(), in_one.as_ref().ok());

    let Ok(batch) = Batch::parse(Bytes::copy_from_slice(data)) else {
        return;
    };
    let header = *batch.header();
    let Ok(raw) = batch.inflated(codec) else {
        return;
    };
    let mut index = RecordIndex::new();
    let indexed = index.build(&header, &raw);
    agree(&header, &raw, &index, &indexed);
    let Ok(open) = OpenBatch::open(batch, codec, index) else {
        assert!(indexed.is_err());
        return;
    };
    retained(codec, &open, data);
    built_again(codec, &open);
}

/// The walk, the index and the bytes tell of the same records.
fn agree(header: &BatchHeader, raw: &[u8], index: &RecordIndex, indexed: &Result<(), BatchError>) {
    let mut met = 0;
    for (i, record) in header.records(raw).enumerate() {
        match record {
            Ok(record) => {
                met += 1;
                let headers = record.headers.len();
                assert_eq!(record.headers.count(), headers);
                if indexed.is_ok() {
                    let stride = &index.index()[i * STRIDE..][..STRIDE];
                    let field = |at: u32, len: u32| {
                        (len != NULL).then(|| &raw[at as usize..][..len as usize])
                    };
                    assert_eq!(record.key, field(stride[1], stride[2]));
                    assert_eq!(record.value, field(stride[3], stride[4]));
                    assert_eq!(record.timestamp, index.timestamps()[i]);
                    assert!(stride[0] < stride[1] && (stride[5] as usize) < raw.len());
                }
            }
            Err(error) => {
                assert!(
                    indexed.as_ref() == Err(&error)
                        || matches!(indexed, Err(BatchError::RecordCountTooHigh { .. })),
                    "{error} but {indexed:?}"
                );
                assert!(index.is_empty());
                return;
            }
        }
    }
    assert_eq!(met, header.records);
    assert_eq!(*indexed, Ok(()));
    assert_eq!(index.len(), header.records as usize);
}

/// What a filter leaves is a batch with exactly the records that it named.
fn retained(codec: &mut Codec, open: &OpenBatch, seed: &[u8]) {
    let count = open.index().len();
    let keep: Vec<u8> = seed
        .iter()
        .rev()
        .copied()
        .cycle()
        .take(count.div_ceil(8))
        .collect();
    let all = owned(open.batch().header(), open.raw());
    let expected: Vec<Owned> = all
        .into_iter()
        .enumerate()
        .filter(|(i, _)| keep[i / 8] >> (i % 8) & 1 == 1)
        .map(|(_, record)| record)
        .collect();
    for offsets in [KeptOffsets::Sparse, KeptOffsets::Renumber] {
        let left = match open.retain(&keep, offsets, codec) {
            Ok(left) => left,
            Err(BatchError::TooLarge { .. }) => continue,
            Err(error) => panic!("an open batch can be filtered: {error}"),
        };
        let Some(left) = left else {
            assert!(expected.is_empty());
            continue;
        };
        // Kept whole it is the same memory, and its CRC as the fuzzer made it.
        let same = left.bytes().as_ptr() == open.batch().bytes().as_ptr();
        assert!(same || BatchView::check(left.bytes()).is_ok());
        let raw = left.inflated(codec).expect("what we wrote inflates");
        let mut expected = expected.clone();
        if offsets == KeptOffsets::Renumber {
            for (i, record) in expected.iter_mut().enumerate() {
                record.offset = left.header().base_offset + i as i64;
            }
        }
        let mut found = owned(left.header(), &raw);
        if left.header().attributes.timestamp_type == millstream_batch::TimestampType::LogAppend {
            for record in found.iter_mut().chain(&mut expected) {
                record.timestamp = 0;
            }
        }
        assert_eq!(found, expected);
    }
}

/// The builder can say again what the batch said.
fn built_again(codec: &mut Codec, open: &OpenBatch) {
    let records = owned(open.batch().header(), open.raw());
    for encoding in [Encoding::None, Encoding::Lz4, Encoding::Zstd] {
        let mut builder = BatchBuilder::new(encoding, usize::MAX);
        for record in &records {
            let headers: Option<Vec<_>> = record
                .headers
                .iter()
                .map(|(key, value)| Some((str::from_utf8(key).ok()?, value.as_deref())))
                .collect();
            let Some(headers) = headers else { return };
            let (key, value) = (record.key.as_deref(), record.value.as_deref());
            if builder
                .append(key, value, headers, record.timestamp)
                .is_err()
            {
                return;
            }
        }
        let Some(batch) = builder.build() else { return };
        let batch = Batch::check(batch.into_bytes()).expect("what we wrote is whole");
        batch
            .header()
            .check_produced()
            .expect("what we wrote may be produced");
        let raw = batch.inflated(codec).expect("what we wrote inflates");
        let found = owned(batch.header(), &raw);
        assert!(found.len() == records.len());
        for (i, (found, record)) in found.into_iter().zip(&records).enumerate() {
            assert_eq!(
                found,
                Owned {
                    offset: i as i64,
                    ..record.clone()
                }
            );
        }
    }
}

fn owned(header: &BatchHeader, raw: &[u8]) -> Vec<Owned> {
    let own = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
    header
        .records(raw)
        .map(|record| {
            let record = record.expect("an open batch has whole records");
            Owned {
                offset: record.offset,
                timestamp: record.timestamp,
                key: own(record.key),
                value: own(record.value),
                headers: record
                    .headers
                    .map(|h| (h.key.to_vec(), own(h.value)))
                    .collect(),
            }
        })
        .collect()
}
