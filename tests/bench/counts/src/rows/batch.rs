//! `core/batch`: checking, walking, building, and what filters need of a batch.

use std::hint::black_box;

use millstream_batch::limits::BATCH_BYTES_MAX;
use millstream_batch::{
    Batch, BatchBuilder, Codec, Encoding, KeptOffsets, OpenBatch, RecordIndex, check_produced_parts,
};

use super::Work;
use crate::fixture;

/// Records in the batches of the rows that count by the record.
const RECORDS: usize = 100;
const RECORD_BYTES: usize = 100;

pub(crate) fn check() -> Work {
    let parts = fixture::chunks(fixture::large().bytes());
    Box::new(move || {
        let header = check_produced_parts(black_box(&parts)).expect("a good batch");
        black_box(header);
    })
}

pub(crate) fn check_small() -> Work {
    let parts = vec![fixture::small().into_bytes()];
    Box::new(move || {
        let header = check_produced_parts(black_box(&parts)).expect("a good batch");
        black_box(header);
    })
}

pub(crate) fn walk() -> Work {
    let bytes = fixture::batch(RECORDS, RECORD_BYTES).into_bytes();
    let mut codec = Codec::new();
    Box::new(move || {
        let batch = Batch::check(black_box(bytes.clone())).expect("a good batch");
        let raw = batch.inflated(&mut codec).expect("not compressed");
        let mut seen = 0;
        for record in batch.header().records(&raw) {
            black_box(record.expect("a good record"));
            seen += 1;
        }
        assert_eq!(seen, RECORDS);
    })
}

pub(crate) fn build() -> Work {
    let pairs = fixture::pairs(RECORDS, RECORD_BYTES);
    let mut builder = BatchBuilder::new(Encoding::None, BATCH_BYTES_MAX);
    Box::new(move || {
        fixture::fill(&mut builder, black_box(&pairs));
        black_box(builder.build().expect("records were appended"));
    })
}

pub(crate) fn open() -> Work {
    let batch = fixture::batch(RECORDS, RECORD_BYTES);
    let mut codec = Codec::new();
    let mut index = Some(RecordIndex::new());
    Box::new(move || {
        let memory = index.take().unwrap_or_default();
        let open = OpenBatch::open(black_box(batch.clone()), &mut codec, memory);
        let open = open.expect("a good batch");
        assert_eq!(open.index().len(), RECORDS);
        index = Some(black_box(open).into_index());
    })
}

pub(crate) fn retain() -> Work {
    let mut codec = Codec::new();
    let batch = fixture::batch(RECORDS, RECORD_BYTES);
    let open = OpenBatch::open(batch, &mut codec, RecordIndex::new()).expect("a good batch");
    let mut keep = vec![0_u8; RECORDS.div_ceil(8)];
    for i in (1..RECORDS).step_by(3) {
        keep[i / 8] |= 1 << (i % 8);
    }
    Box::new(move || {
        let kept = open.retain(black_box(&keep), KeptOffsets::Renumber, &mut codec);
        let kept = kept.expect("it fits").expect("a third is kept");
        assert_eq!(kept.header().records, 33);
        black_box(kept);
    })
}
