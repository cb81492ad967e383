//! Every rule of the layout has its own error: a good batch with one field changed, and record
//! sections written by hand. Positions and meanings are those of Kafka's documentation of the
//! record batch.

use millstream_batch::limits::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX};
use millstream_batch::{
    Batch, BatchBuilder, BatchError, BatchHeader, BatchView, Checker, Compression, Encoding,
    HEADER_BYTES, RecordFault, RecordIndex, TimestampType,
};

/// Three small records, not compressed.
fn good() -> Vec<u8> {
    let mut builder = BatchBuilder::new(Encoding::None, 1 << 20);
    for i in 0..3 {
        builder
            .append(Some(b"key"), Some(b"value"), [("h", None)], 1_000 + i)
            .expect("it fits");
    }
    builder.build().expect("records").into_bytes().to_vec()
}

fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut batch = good();
    batch[at..at + bytes.len()].copy_from_slice(bytes);
    batch
}

fn parse(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
    BatchView::parse(bytes).map(|view| *view.header())
}

#[test]
fn a_header_field_out_of_range_is_named() {
    let size = good().len();
    assert!(parse(&good()).is_ok());

    assert_eq!(parse(&with(16, &[1])), Err(BatchError::Magic { magic: 1 }));
    assert_eq!(
        parse(&with(16, &[0xff])),
        Err(BatchError::Magic { magic: -1 })
    );
    for length in [-1, 0, 48, i32::MIN] {
        assert_eq!(
            parse(&with(8, &length.to_be_bytes())),
            Err(BatchError::Length { length })
        );
    }
    assert_eq!(
        parse(&with(8, &(BATCH_BYTES_MAX as i32 - 11).to_be_bytes())),
        Err(BatchError::TooLarge {
            bytes: BATCH_BYTES_MAX + 1
        })
    );
    assert_eq!(
        parse(&with(8, &i32::MAX.to_be_bytes())),
        Err(BatchError::TooLarge {
            bytes: i32::MAX as usize + 12
        })
    );
    assert_eq!(
        parse(&with(8, &(size as i32 - 11).to_be_bytes())),
        Err(BatchError::Truncated {
            have: size,
            need: size + 1
        })
    );
    assert_eq!(
        parse(&with(8, &(size as i32 - 13).to_be_bytes())),
        Err(BatchError::Excess { extra: 1 })
    );
    for code in [5, 6, 7] {
        assert_eq!(
            parse(&with(22, &[code])),
            Err(BatchError::Compression { code })
        );
    }
    // The delete horizon (KIP-534), and the first and last bits without a meaning.
    for attributes in [1 << 6, 1 << 7, i16::MIN] {
        assert_eq!(
            parse(&with(21, &attributes.to_be_bytes())),
            Err(BatchError::Attributes { attributes })
        );
    }
    assert_eq!(
        parse(&with(0, &(-1_i64).to_be_bytes())),
        Err(BatchError::BaseOffset { base_offset: -1 })
    );
    assert_eq!(
        parse(&with(0, &i64::MAX.to_be_bytes())),
        Err(BatchError::OffsetOverflow {
            base_offset: i64::MAX,
            last_offset_delta: 2
        })
    );
    assert!(parse(&with(0, &(i64::MAX - 2).to_be_bytes())).is_ok());
    for count in [-1, i32::MIN, BATCH_RECORDS_MAX as i32 + 1, i32::MAX] {
        assert_eq!(
            parse(&with(57, &count.to_be_bytes())),
            Err(BatchError::RecordCount { count })
        );
    }
    assert_eq!(
        parse(&with(57, &100_i32.to_be_bytes())),
        Err(BatchError::RecordCountTooHigh {
            count: 100,
            bytes: size - HEADER_BYTES
        })
    );
    for last_offset_delta in [-1, 0, 1, i32::MIN] {
        assert_eq!(
            parse(&with(23, &last_offset_delta.to_be_bytes())),
            Err(BatchError::LastOffsetDelta {
                last_offset_delta,
                count: 3
            })
        );
    }
}

#[test]
fn what_only_the_broker_says_is_refused_from_clients() {
    let refused = |bytes: &[u8]| parse(bytes).expect("well-formed").check_produced();
    assert_eq!(refused(&good()), Ok(()));
    assert_eq!(refused(&with(22, &[1 << 5])), Err(BatchError::Control));
    assert_eq!(
        refused(&with(22, &[1 << 4])),
        Err(BatchError::Transactional)
    );
    assert_eq!(
        refused(&with(22, &[1 << 3])),
        Err(BatchError::LogAppendTime)
    );
    assert_eq!(
        refused(&with(23, &3_i32.to_be_bytes())),
        Err(BatchError::SparseOffsets {
            last_offset_delta: 3,
            count: 3
        })
    );
    let no_records = refused(&with(57, &0_i32.to_be_bytes()));
    assert_eq!(no_records, Err(BatchError::Empty));
    for (at, len) in [(43, 8), (51, 2), (53, 4)] {
        let result = refused(&with(at, &vec![0; len]));
        assert!(
            matches!(result, Err(BatchError::ProducerFields { .. })),
            "{result:?}"
        );
    }
}

#[test]
fn only_damage_on_the_way_is_worth_sending_again() {
    let mut damaged = good();
    *damaged.last_mut().expect("bytes") ^= 1;
    let crc = Batch::check(damaged.clone().into()).expect_err("another CRC");
    assert!(matches!(crc, BatchError::Crc { .. }) && crc.is_retriable());
    damaged.pop();
    assert!(
        Batch::check(damaged.into())
            .expect_err("cut off")
            .is_retriable()
    );
    assert!(
        !parse(&with(16, &[1]))
            .expect_err("another magic")
            .is_retriable()
    );
}

/// The check value of CRC-32C (iSCSI) is E3069283 over "123456789"; the batch's covers all from
/// byte 21 on, and nothing before.
#[test]
fn the_crc_is_castagnolis_from_the_attributes_on() {
    let digits = crc32c(b"123456789");
    assert_eq!(digits, 0xe306_9283);
    let batch = good();
    let stored = u32::from_be_bytes(batch[17..21].try_into().expect("four"));
    assert_eq!(stored, crc32c(&batch[21..]));
    for at in [0, 7, 12, 15] {
        let mut head = good();
        head[at] ^= 1;
        assert!(BatchView::check(&head).is_ok(), "byte {at} is outside");
    }
}

/// Bit by bit, as the polynomial says.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            if crc & 1 == 1 {
                crc >> 1 ^ 0x82f6_3b78
            } else {
                crc >> 1
            }
        })
    })
}

#[test]
fn a_checker_says_no_as_soon_as_it_can() {
    let mut checker = Checker::new();
    checker
        .push(&with(16, &[1])[..60])
        .expect("not yet a header");
    assert_eq!(checker.header(), None);
    let refused = checker.push(&[0]);
    assert_eq!(refused, Err(BatchError::Magic { magic: 1 }));

    let mut checker = Checker::new();
    checker.push(&good()).expect("whole");
    assert_eq!(checker.push(&[0, 0]), Err(BatchError::Excess { extra: 2 }));

    let mut checker = Checker::new();
    checker.push(&good()[..70]).expect("a header and some");
    assert_eq!(checker.header().map(|header| header.records), Some(3));
    assert!(matches!(
        checker.finish(),
        Err(BatchError::Truncated { have: 70, .. })
    ));
    assert_eq!(
        Checker::new().finish(),
        Err(BatchError::Truncated { have: 0, need: 61 })
    );
}

/// A header for sections written by hand.
fn header(records: u32, last_offset_delta: u32) -> BatchHeader {
    BatchHeader {
        records,
        last_offset_delta,
        ..parse(&good()).expect("whole")
    }
}

/// The fault of record `record` in a section; the iterator and the index must agree on it.
fn fault(header: &BatchHeader, raw: &[u8]) -> BatchError {
    let walked = header
        .records(raw)
        .find_map(Result::err)
        .expect("an error in the walk");
    let mut index = RecordIndex::new();
    match index.build(header, raw) {
        // The index sizes its memory first.
        Err(BatchError::RecordCountTooHigh { .. }) => {}
        result => assert_eq!(result, Err(walked.clone())),
    }
    assert!(index.is_empty());
    walked
}

#[test]
fn a_record_that_is_not_whole_is_named() {
    let one = header(1, 0);
    // length 6, attributes, timestamp delta, offset delta, key -1, value -1, no headers
    let null = [12, 0, 0, 0, 1, 1, 0];
    assert_eq!(one.records(&null).filter(Result::is_ok).count(), 1);

    let record = |fault| BatchError::Record { record: 0, fault };
    let length = |field, length, left| {
        record(RecordFault::Length {
            field,
            length,
            left,
        })
    };
    let number = |field| record(RecordFault::Number { field });
    assert_eq!(fault(&one, &[]), record(RecordFault::Missing));
    assert_eq!(fault(&one, &[0x80]), number("length"));
    assert_eq!(fault(&one, &[14, 0, 0, 0, 1, 1, 0]), length("length", 7, 6));
    assert_eq!(fault(&one, &[1, 0, 0, 0, 1, 1, 0]), length("length", -1, 6));
    assert_eq!(fault(&one, &[0, 0, 0, 0, 1, 1, 0]), number("attributes"));
    assert_eq!(
        fault(&one, &[2, 0, 0, 0, 1, 1, 0]),
        number("timestamp delta")
    );
    assert_eq!(fault(&one, &[4, 0, 0, 0, 1, 1, 0]), number("offset delta"));
    assert_eq!(fault(&one, &[6, 0, 0, 0, 1, 1, 0]), number("key length"));
    assert_eq!(fault(&one, &[8, 0, 0, 0, 1, 1, 0]), number("value length"));
    assert_eq!(fault(&one, &[10, 0, 0, 0, 1, 1, 0]), number("header count"));
    assert_eq!(
        fault(&one, &[12, 0, 0, 0, 3, 1, 0]),
        length("key length", -2, 2)
    );
    assert_eq!(
        fault(&one, &[12, 0, 0, 0, 6, 1, 0]),
        length("key length", 3, 2)
    );
    assert_eq!(
        fault(&one, &[12, 0, 0, 0, 1, 4, 0]),
        length("value length", 2, 1)
    );
    assert_eq!(
        fault(&one, &[12, 0, 0, 0, 1, 1, 1]),
        length("header count", -1, 0)
    );
    assert_eq!(
        fault(&one, &[16, 0, 0, 0, 1, 1, 4, 0, 0]),
        length("header count", 2, 2)
    );
    // A null header key is no key.
    assert_eq!(
        fault(&one, &[16, 0, 0, 0, 1, 1, 2, 1, 0]),
        length("header key length", -1, 1)
    );
    assert_eq!(
        fault(&one, &[16, 0, 0, 0, 1, 1, 2, 0, 4]),
        length("header value length", 2, 0)
    );
    assert_eq!(
        fault(&one, &[14, 0, 0, 0, 1, 1, 0, 9]),
        record(RecordFault::Trailing { extra: 1 })
    );
    assert_eq!(
        fault(&one, &[12, 0, 0, 0, 1, 1, 0, 9]),
        BatchError::TrailingBytes { extra: 1, count: 1 }
    );
    assert_eq!(
        fault(&header(2, 1), &null),
        BatchError::Record {
            record: 1,
            fault: RecordFault::Missing
        }
    );
}

#[test]
fn offsets_rise_and_stay_in_the_batch() {
    let at = |delta: u8| [12, 0, 0, delta * 2, 1, 1, 0];
    let two = |first, second| [at(first), at(second)].concat();
    let record = |record, delta, least, last| BatchError::Record {
        record,
        fault: RecordFault::OffsetDelta { delta, least, last },
    };
    assert_eq!(fault(&header(2, 1), &two(0, 0)), record(1, 0, 1, 1));
    assert_eq!(fault(&header(2, 1), &two(1, 0)), record(1, 0, 2, 1));
    assert_eq!(fault(&header(2, 1), &two(0, 2)), record(1, 2, 1, 1));
    let negative = fault(&header(1, 0), &[12, 0, 0, 1, 1, 1, 0]);
    assert!(matches!(
        negative,
        BatchError::Record {
            fault: RecordFault::OffsetDelta { delta: -1, .. },
            ..
        }
    ));
    let sparse: Vec<i64> = header(2, 9)
        .records(&two(3, 7))
        .map(|record| record.expect("whole").offset)
        .collect();
    assert_eq!(sparse, [3, 7]);
}

#[test]
fn timestamps_stay_in_range_and_log_append_time_is_the_batchs() {
    let raw = [12, 0, 2, 0, 1, 1, 0]; // timestamp delta 1
    let mut last = header(1, 0);
    last.base_timestamp = i64::MAX;
    assert_eq!(
        fault(&last, &raw),
        BatchError::Record {
            record: 0,
            fault: RecordFault::Timestamp { delta: 1 }
        }
    );
    last.attributes.timestamp_type = TimestampType::LogAppend;
    last.max_timestamp = 77;
    let record = last
        .records(&raw)
        .next()
        .expect("a record")
        .expect("a whole one");
    assert_eq!(record.timestamp, 77);
}

/// The walk is over at its first error, also when it is asked again.
#[test]
fn an_error_ends_the_walk() {
    let two = header(2, 1);
    let mut records = two.records(&[12, 0, 0, 0, 1, 1]);
    assert!(records.next().is_some_and(|record| record.is_err()));
    assert!(records.next().is_none());
    assert!(records.next().is_none());
}

#[test]
fn attributes_are_written_as_they_are_read() {
    for bits in 0..=0b11_1111_i16 {
        if bits & 7 > 4 {
            continue;
        }
        let header = parse(&with(21, &bits.to_be_bytes())).expect("defined bits");
        assert_eq!(header.attributes.bits(), bits);
    }
    let zstd = parse(&with(22, &[4])).expect("defined");
    assert_eq!(zstd.attributes.compression, Compression::Zstd);
}
