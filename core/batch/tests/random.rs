//! What is written is what is read, for batches drawn from seeds; and bytes that were changed are
//! an error, never a panic. The model is a plain `Vec` of records.

use bytes::Bytes;
use millstream_batch::ids::{Offset, Term};
use millstream_batch::{
    AppendError, Batch, BatchBuilder, BatchError, BatchView, Checker, Codec, Encoding,
    HEADER_BYTES, KeptOffsets, NULL, OpenBatch, RecordIndex, STRIDE, check_parts,
    check_produced_parts, check_records,
};

const ENCODINGS: [Encoding; 3] = [Encoding::None, Encoding::Lz4, Encoding::Zstd];

/// splitmix64, so that a seed is a run.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn bytes(&mut self) -> Vec<u8> {
        // Small, empty, and around the lengths where varints grow.
        let len = match self.below(6) {
            0 => 0,
            1 => 62 + self.below(4),
            2 => 8_190 + self.below(4),
            _ => self.below(40),
        };
        let repeat = self.next() as u8;
        (0..len)
            .map(|_| {
                if self.below(4) == 0 {
                    self.next() as u8
                } else {
                    repeat
                }
            })
            .collect()
    }

    fn maybe(&mut self) -> Option<Vec<u8>> {
        (self.below(4) > 0).then(|| self.bytes())
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Model {
    offset: i64,
    timestamp: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
}

fn draw_records(draw: &mut Draw) -> Vec<Model> {
    let start = 1_700_000_000_000 + draw.below(1 << 30) as i64;
    (0..1 + draw.below(150))
        .map(|i| Model {
            offset: i as i64,
            timestamp: start + draw.below(200_000) as i64 - 100_000,
            key: draw.maybe(),
            value: draw.maybe(),
            headers: (0..draw.below(4))
                .map(|h| (format!("h{h}-{}", draw.below(100)), draw.maybe()))
                .collect(),
        })
        .collect()
}

fn append(builder: &mut BatchBuilder, record: &Model) -> Result<u32, AppendError> {
    let headers = record
        .headers
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_deref()));
    builder.append(
        record.key.as_deref(),
        record.value.as_deref(),
        headers,
        record.timestamp,
    )
}

fn encode(encoding: Encoding, records: &[Model]) -> Batch {
    let mut builder = BatchBuilder::new(encoding, 8 << 20);
    for (i, record) in records.iter().enumerate() {
        assert_eq!(append(&mut builder, record), Ok(i as u32));
    }
    builder.build().expect("records were appended")
}

fn decode(batch: &Batch) -> Vec<Model> {
    let raw = batch
        .inflated(&mut Codec::new())
        .expect("our own bytes inflate");
    batch
        .header()
        .records(&raw)
        .map(|record| {
            let record = record.expect("our own records are whole");
            Model {
                offset: record.offset,
                timestamp: record.timestamp,
                key: record.key.map(<[u8]>::to_vec),
                value: record.value.map(<[u8]>::to_vec),
                headers: record
                    .headers
                    .map(|h| {
                        (
                            String::from_utf8(h.key.to_vec()).expect("UTF-8"),
                            h.value.map(<[u8]>::to_vec),
                        )
                    })
                    .collect(),
            }
        })
        .collect()
}

#[test]
fn written_batches_are_read_as_they_were() {
    for seed in 0..60 {
        let mut draw = Draw(seed);
        let records = draw_records(&mut draw);
        for encoding in ENCODINGS {
            let batch = encode(encoding, &records);
            let header = *batch.header();
            assert_eq!(header.records as usize, records.len());
            assert_eq!(header.last_offset_delta as usize, records.len() - 1);
            assert_eq!(header.base_timestamp, records[0].timestamp);
            assert_eq!(
                Some(header.max_timestamp),
                records.iter().map(|r| r.timestamp).max()
            );
            let checked = Batch::check(batch.bytes().clone()).expect("whole");
            assert_eq!(*checked.header(), header);
            assert_eq!(decode(&checked), records, "seed {seed} {encoding:?}");
        }
    }
}

#[test]
fn a_batch_in_parts_is_checked_as_one_in_one_piece() {
    for seed in 0..200 {
        let mut draw = Draw(seed);
        let batch = encode(ENCODINGS[draw.below(3)], &draw_records(&mut draw));
        let bytes = batch.bytes();
        let mut parts: Vec<Bytes> = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            // Often cut inside the header.
            let most = if draw.below(2) == 0 { 30 } else { bytes.len() };
            let len = draw.below(most).min(bytes.len() - at);
            parts.push(bytes.slice(at..at + len));
            at += len;
        }
        assert_eq!(check_produced_parts(&parts), Ok(*batch.header()));

        // One bit, anywhere behind the head, in the same parts.
        let mut damaged: Vec<Vec<u8>> = parts.iter().map(|part| part.to_vec()).collect();
        let mut flip = 16 + draw.below(bytes.len() - 16);
        for part in &mut damaged {
            if flip < part.len() {
                part[flip] ^= 1 << draw.below(8);
                break;
            }
            flip -= part.len();
        }
        check_parts(&damaged).expect_err("a flipped bit");

        parts.pop();
        if parts.iter().map(Bytes::len).sum::<usize>() < bytes.len() {
            assert!(matches!(
                check_parts(&parts),
                Err(BatchError::Truncated { .. })
            ));
        }
    }
}

#[test]
fn the_index_says_where_everything_is() {
    for seed in 0..60 {
        let mut draw = Draw(seed);
        let records = draw_records(&mut draw);
        let batch = encode(ENCODINGS[draw.below(3)], &records);
        let open = OpenBatch::open(batch, &mut Codec::new(), RecordIndex::new()).expect("whole");
        let (raw, index) = (open.raw(), open.index());
        assert_eq!(index.index().len(), records.len() * STRIDE);
        let field = |at: u32, len: u32| {
            (len != NULL).then(|| raw[at as usize..at as usize + len as usize].to_vec())
        };
        for (i, record) in records.iter().enumerate() {
            let [record_at, key_at, key_len, value_at, value_len, headers_at] = index.index()
                [i * STRIDE..][..STRIDE]
                .try_into()
                .expect("a stride");
            assert_eq!(index.timestamps()[i], record.timestamp);
            assert_eq!(field(key_at, key_len), record.key);
            assert_eq!(field(value_at, value_len), record.value);
            assert_eq!(
                usize::from(raw[headers_at as usize]),
                record.headers.len() * 2,
                "zigzag of a small count"
            );
            let end = index
                .index()
                .get((i + 1) * STRIDE)
                .map_or(raw.len(), |&at| at as usize);
            let (body_bytes, length_bytes) = varint(&raw[record_at as usize..]);
            assert_eq!(record_at as usize + length_bytes + body_bytes as usize, end);
        }
    }
}

#[test]
fn retain_keeps_what_the_bitmap_names() {
    let mut codec = Codec::new();
    let mut index = RecordIndex::new();
    for seed in 0..60 {
        let mut draw = Draw(seed);
        let records = draw_records(&mut draw);
        for encoding in ENCODINGS {
            let batch = encode(encoding, &records);
            let density = [1, 2, 10, 100][draw.below(4)];
            let kept: Vec<bool> = records.iter().map(|_| draw.below(density) == 0).collect();
            let mut bitmap = vec![0; records.len().div_ceil(8)];
            for (i, _) in kept.iter().enumerate().filter(|(_, kept)| **kept) {
                bitmap[i / 8] |= 1 << (i % 8);
            }
            let sparse: Vec<Model> = records
                .iter()
                .zip(&kept)
                .filter(|(_, kept)| **kept)
                .map(|(record, _)| record.clone())
                .collect();
            let mut dense = sparse.clone();
            for (i, record) in dense.iter_mut().enumerate() {
                record.offset = i as i64;
            }
            let open = OpenBatch::open(batch, &mut codec, index).expect("whole");
            for (mode, expected) in [
                (KeptOffsets::Sparse, &sparse),
                (KeptOffsets::Renumber, &dense),
            ] {
                let Some(left) = open
                    .retain(&bitmap, mode, &mut codec)
                    .expect("a bitmap that fits")
                else {
                    assert!(expected.is_empty());
                    continue;
                };
                let left = Batch::check(left.into_bytes()).expect("whole");
                assert_eq!(
                    &decode(&left),
                    expected,
                    "seed {seed} {encoding:?} {mode:?}"
                );
                let header = left.header();
                assert_eq!(
                    Some(header.max_timestamp),
                    expected.iter().map(|r| r.timestamp).max()
                );
                match mode {
                    KeptOffsets::Renumber => {
                        header.check_produced().expect("still fit to be produced");
                    }
                    KeptOffsets::Sparse => {
                        assert_eq!(
                            header.last_offset_delta,
                            open.batch().header().last_offset_delta
                        );
                        // And a filter over what a filter left.
                        let again =
                            OpenBatch::open(left, &mut codec, RecordIndex::new()).expect("whole");
                        let all = vec![0xff; expected.len().div_ceil(8)];
                        let dense_again = again
                            .retain(&all, KeptOffsets::Renumber, &mut codec)
                            .expect("fits");
                        assert_eq!(decode(&dense_again.expect("not empty")), dense);
                    }
                }
            }
            index = open.into_index();
        }
    }
}

/// Kept whole means the same memory, and a wrong bitmap is the filter's error.
#[test]
fn retain_of_everything_copies_nothing() {
    let batch = encode(Encoding::Lz4, &draw_records(&mut Draw(7)));
    let mut codec = Codec::new();
    let open = OpenBatch::open(batch.clone(), &mut codec, RecordIndex::new()).expect("whole");
    let bytes = open.index().len().div_ceil(8);
    for mode in [KeptOffsets::Sparse, KeptOffsets::Renumber] {
        let all = open
            .retain(&vec![0xff; bytes], mode, &mut codec)
            .expect("fits")
            .expect("all");
        assert_eq!(all.bytes().as_ptr(), batch.bytes().as_ptr());
        assert!(
            open.retain(&vec![0; bytes], mode, &mut codec)
                .expect("fits")
                .is_none()
        );
        for wrong in [bytes - 1, bytes + 1] {
            assert!(matches!(
                open.retain(&vec![0xff; wrong], mode, &mut codec),
                Err(BatchError::Bitmap { .. })
            ));
        }
    }
}

#[test]
fn changed_bytes_never_panic_and_every_reader_agrees_on_the_header() {
    let mut codec = Codec::new();
    let mut index = RecordIndex::new();
    let mut survived = 0;
    for seed in 0..1_000 {
        let mut draw = Draw(seed);
        let records = draw_records(&mut draw);
        let mut bytes = encode(ENCODINGS[draw.below(3)], &records[..records.len().min(6)])
            .into_bytes()
            .to_vec();
        for _ in 0..1 + draw.below(3) {
            match draw.below(4) {
                0 => bytes.truncate(draw.below(bytes.len()) + 1),
                1 => bytes.push(draw.next() as u8),
                _ => {
                    let at = draw.below(bytes.len());
                    bytes[at] = draw.next() as u8;
                }
            }
        }
        let mut checker = Checker::new();
        let pushed = bytes
            .chunks(1 + draw.below(70))
            .try_for_each(|part| checker.push(part));
        let in_parts = pushed.and_then(|()| checker.finish());
        let whole = BatchView::check(&bytes).map(|view| *view.header());
        assert_eq!(in_parts.is_ok(), whole.is_ok(), "{in_parts:?} {whole:?}");

        // Past the CRC, as an attacker would come.
        let Ok(batch) = Batch::parse(bytes.into()) else {
            continue;
        };
        if let Ok(open) = OpenBatch::open(batch, &mut codec, std::mem::take(&mut index)) {
            survived += 1;
            let n = open.batch().header().records as usize;
            let keep: Vec<u8> = (0..n.div_ceil(8)).map(|_| draw.next() as u8).collect();
            for mode in [KeptOffsets::Sparse, KeptOffsets::Renumber] {
                open.retain(&keep, mode, &mut codec)
                    .expect("an open batch can be retained");
            }
            assert_eq!(
                open.batch()
                    .header()
                    .records(open.raw())
                    .filter(Result::is_ok)
                    .count(),
                n
            );
            index = open.into_index();
        }
    }
    assert!(
        survived > 50,
        "the changes reach past the header: {survived}"
    );
}

#[test]
fn the_builder_holds_its_bound_and_starts_anew() {
    for encoding in ENCODINGS {
        let mut draw = Draw(3);
        let mut builder = BatchBuilder::new(encoding, 16 << 10);
        assert!(builder.build().is_none());
        let mut batches = 0;
        for i in 0..2_000 {
            let value: Vec<u8> = (0..draw.below(300)).map(|_| draw.next() as u8).collect();
            match builder.append(None, Some(&value), [], i) {
                Ok(_) => {}
                Err(AppendError::Full) => {
                    let bytes = builder.bytes();
                    let batch = builder.build().expect("a full batch");
                    assert!(batch.header().size() <= bytes && bytes <= 16 << 10);
                    assert_eq!(builder.append(None, Some(&value), [], i), Ok(0));
                    batches += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert!(batches > 10);
        let too_large = builder.append(None, Some(&[0; 16 << 10]), [], 0);
        assert!(matches!(too_large, Err(AppendError::RecordTooLarge { .. })));
        let before = (builder.records(), builder.bytes());
        assert!(matches!(
            builder.append(None, None, [], i64::MIN),
            Err(AppendError::TimestampRange { .. })
        ));
        assert_eq!((builder.records(), builder.bytes()), before);
    }
}

/// Nothing of one batch is in the next.
#[test]
fn batches_of_one_builder_are_strangers() {
    for encoding in ENCODINGS {
        let mut builder = BatchBuilder::new(encoding, 1 << 20);
        for seed in 0..10 {
            // Earlier and earlier, so that an old maximum would show.
            let mut records = draw_records(&mut Draw(seed));
            for record in &mut records {
                record.timestamp -= seed as i64 * 10_000_000_000;
                append(&mut builder, record).expect("it fits");
            }
            let batch = builder.build().expect("records were appended");
            let alone = encode(encoding, &records);
            assert_eq!(decode(&batch), records);
            // lz4 may find other matches with a table that has grown.
            if encoding != Encoding::Lz4 {
                assert_eq!(batch.bytes(), alone.bytes());
            }
            let (found, fresh) = (*batch.header(), *alone.header());
            assert_eq!(found.max_timestamp, fresh.max_timestamp);
            assert_eq!(found.base_timestamp, fresh.base_timestamp);
            assert_eq!(found.records, fresh.records);
        }
    }
}

#[test]
fn a_served_batch_is_the_stored_one_with_another_head() {
    let stored = encode(Encoding::Zstd, &draw_records(&mut Draw(1)));
    let served = stored.served(Offset(1 << 40), Term(7));
    assert_eq!(served.body.as_ptr(), stored.bytes()[16..].as_ptr());
    let joined: Bytes = [&served.head[..], &served.body[..]].concat().into();
    let seen = Batch::check(joined).expect("the CRC does not cover the head");
    assert_eq!(
        (seen.header().base_offset, seen.header().leader_epoch),
        (1 << 40, 7)
    );
    let offsets: Vec<i64> = decode(&seen).iter().map(|record| record.offset).collect();
    let expected: Vec<i64> = (0..i64::from(stored.header().records))
        .map(|i| (1 << 40) + i)
        .collect();
    assert_eq!(offsets, expected);
    let numbers = stored.header().numbers(Offset(1 << 40));
    assert_eq!(numbers.last.0 as i64, *offsets.last().expect("records"));
    assert_eq!(numbers.bytes as usize, stored.bytes().len());
}

/// Protocol Buffers' varint, zigzag: value and bytes. Written apart from the crate's own.
fn varint(bytes: &[u8]) -> (i64, usize) {
    let len = bytes
        .iter()
        .position(|byte| byte & 0x80 == 0)
        .expect("an end")
        + 1;
    let value = bytes[..len]
        .iter()
        .rev()
        .fold(0_u64, |value, byte| value << 7 | u64::from(byte & 0x7f));
    ((value >> 1) as i64 ^ -((value & 1) as i64), len)
}

#[test]
fn header_bytes_is_where_records_begin() {
    let batch = encode(Encoding::None, &draw_records(&mut Draw(2)));
    assert_eq!(
        batch.section().as_ptr(),
        batch.bytes()[HEADER_BYTES..].as_ptr()
    );
}

/// The walk over parts and the walk over one piece say the same of every batch, whole or changed.
#[test]
fn the_walk_at_the_door_agrees_with_who_reads_the_records() {
    let (mut refused, mut survived) = (0, 0);
    for seed in 0..2_000 {
        let mut draw = Draw(seed);
        let batch = encode(Encoding::None, &draw_records(&mut draw));
        let mut bytes = batch.bytes().to_vec();
        let section = HEADER_BYTES..bytes.len();
        for _ in 0..draw.below(3) {
            let at = section.start + draw.below(section.len().min(40));
            bytes[at] = match draw.below(3) {
                0 => draw.below(256) as u8,
                1 => 0xff,
                _ => bytes[at] ^ (1 << draw.below(8)),
            };
        }
        let read = batch
            .header()
            .records(&bytes[HEADER_BYTES..])
            .find_map(Result::err);
        let mut parts: Vec<&[u8]> = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let most = [3, 30, 500, bytes.len()][draw.below(4)];
            let (part, behind) = rest.split_at(draw.below(most + 1).min(rest.len()));
            parts.push(part);
            rest = behind;
        }
        let walked = check_records(batch.header(), &parts);
        refused += usize::from(walked.is_err());
        survived += usize::from(walked.is_ok());
        assert_eq!(walked.err(), read, "seed {seed}");
    }
    assert!(refused > 300 && survived > 300, "{refused} {survived}");
}
