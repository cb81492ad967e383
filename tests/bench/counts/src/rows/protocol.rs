//! `core/protocol`: frames in and out, as the broker's streams use them.

use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use millstream_batch::Batch;
use millstream_batch::ids::{Offset, Term};
use millstream_protocol::frame::{any_payload, encode_head, encode_into};
use millstream_protocol::messages::{self, Produce, Produced};
use millstream_protocol::{Decoder, Kind};

use super::Work;
use crate::fixture::{self, TIMESTAMP};

const SMALL_FRAMES: u64 = 64;
const ACKS: u64 = 64;

pub(crate) fn decode() -> Work {
    decoding(&fixture::large(), 1)
}

pub(crate) fn decode_small() -> Work {
    decoding(&fixture::small(), SMALL_FRAMES)
}

fn decoding(batch: &Batch, frames: u64) -> Work {
    let mut wire = BytesMut::new();
    for tag in 1..=frames {
        let header = Produce {
            tag,
            topic_id: vec![7; 16].into(),
            partition: 3,
            sequence: tag * 64,
        };
        encode_head(&mut wire, Kind::Produce, &header, batch.bytes().len());
        wire.extend_from_slice(batch.bytes());
    }
    let chunks = fixture::chunks(&wire.freeze());
    let bytes = batch.bytes().len();
    let mut decoder = Decoder::new(any_payload);
    Box::new(move || {
        let mut seen = 0;
        for chunk in black_box(&chunks) {
            decoder.push(chunk.clone());
            while let Some(frame) = decoder.next_frame().expect("a frame") {
                let header: Produce = frame.message().expect("its message");
                seen += 1;
                assert_eq!((header.tag, frame.payload.len()), (seen, bytes));
                black_box(frame);
            }
        }
        assert_eq!(seen, frames);
    })
}

pub(crate) fn encode_acks() -> Work {
    let mut out = BytesMut::new();
    let mut offset = 1_000_000;
    Box::new(move || {
        for tag in 1..=ACKS {
            offset += 64;
            let ack = Produced {
                tag,
                base_offset: Some(offset),
                append_time_ms: TIMESTAMP,
                ..Produced::default()
            };
            encode_into(&mut out, Kind::Produced, black_box(&ack));
        }
        black_box(out.split().freeze());
    })
}

pub(crate) fn encode_batch() -> Work {
    let stored: Bytes = fixture::large().into_bytes();
    let mut out = BytesMut::new();
    let mut offset = 1_000_000;
    Box::new(move || {
        // The log's checksum has just covered these bytes, so they are not checked again.
        let batch = Batch::parse(black_box(stored.clone())).expect("a good batch");
        let records = u64::from(batch.header().records);
        let served = batch.served(Offset(offset), Term(1));
        let header = messages::Batch {
            handle: 3,
            base_offset: offset,
            last_offset: offset + records - 1,
            append_time_ms: TIMESTAMP,
            pid: 41,
            epoch: 2,
            sequence: offset,
            end_offset: offset + 10 * records,
            filtered: false,
        };
        let payload_bytes = served.head.len() + served.body.len();
        encode_head(&mut out, Kind::Batch, &header, payload_bytes);
        out.extend_from_slice(&served.head);
        black_box((out.split().freeze(), served.body));
        offset += records;
    })
}
