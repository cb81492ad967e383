//! The frame decoder against bytes that arrive in any cut, and against bytes that are no frames.

use bytes::{Bytes, BytesMut};
use millstream_batch::limits::{FRAME_HEADER_BYTES_MAX, FRAME_PAYLOAD_BYTES_MAX};
use millstream_protocol::frame::{any_payload, encode, encode_head, fits};
use millstream_protocol::messages::{
    DeployFilterResponse, FilterInfo, ListTopicsResponse, PingRequest, Produce, TopicInfo,
};
use millstream_protocol::{Decoder, FrameError, Kind};

fn produce_frame(payload: &[u8]) -> Vec<u8> {
    let header = Produce {
        tag: 7,
        topic_id: Bytes::from_static(&[3; 16]),
        partition: 2,
        sequence: 41,
    };
    let mut out = BytesMut::new();
    encode_head(&mut out, Kind::Produce, &header, payload.len());
    out.extend_from_slice(payload);
    out.to_vec()
}

#[test]
fn the_prefix_is_as_drawn() {
    // Drawn by hand from the picture in protocol.md: PING, no header, no payload.
    assert_eq!(
        &encode(Kind::Ping, &PingRequest {})[..],
        [4, 0, 0, 0, 3, 0, 0, 0]
    );
    // PRODUCE with tag 7 (08 07), topic id (12 10 ...), partition 2 (18 02), sequence 41 (20 29), "ab".
    let mut expected = vec![4 + 24 + 2, 0, 0, 0, 35, 0, 24, 0, 0x08, 7, 0x12, 16];
    expected.extend([3; 16]);
    expected.extend([0x18, 2, 0x20, 41, b'a', b'b']);
    assert_eq!(produce_frame(b"ab"), expected);
}

#[test]
fn every_cut_gives_the_same_frames() {
    let payload: Vec<u8> = (0..1500_u32).map(|i| i as u8).collect();
    let mut bytes = produce_frame(&payload);
    bytes.extend(encode(Kind::Ping, &PingRequest {}));
    bytes.extend(produce_frame(b""));
    for step in [1, 2, 3, 7, 8, 9, 100, 511, 512, 513, 1400, bytes.len()] {
        let mut decoder = Decoder::new(any_payload);
        let mut frames = Vec::new();
        for chunk in bytes.chunks(step) {
            decoder.push(Bytes::copy_from_slice(chunk));
            while let Some(frame) = decoder.next_frame().expect("well formed") {
                frames.push(frame);
            }
        }
        decoder.finish().expect("whole");
        assert_eq!(frames.len(), 3, "step {step}");
        let header: Produce = frames[0].message().expect("a PRODUCE header");
        assert_eq!((header.tag, header.partition, header.sequence), (7, 2, 41));
        assert_eq!(frames[0].payload.len(), 1500);
        assert_eq!(frames[0].payload.clone().into_contiguous(), payload);
        assert_eq!(frames[1].known(), Some(Kind::Ping));
        assert!(frames[2].payload.is_empty());
    }
}

#[test]
fn a_large_chunk_is_passed_on_without_a_copy() {
    let bytes = Bytes::from(produce_frame(&[9; 4000]));
    let mut decoder = Decoder::new(any_payload);
    decoder.push(bytes.clone());
    let frame = decoder.next_frame().expect("well formed").expect("whole");
    let part = frame.payload.into_contiguous();
    assert!(bytes.as_ptr_range().contains(&part.as_ptr()));
}

#[test]
fn small_chunks_do_not_pile_up() {
    let bytes = produce_frame(&[9; 100_000]);
    let mut decoder = Decoder::new(any_payload);
    for byte in &bytes {
        decoder.push(Bytes::copy_from_slice(std::slice::from_ref(byte)));
    }
    let frame = decoder.next_frame().expect("well formed").expect("whole");
    assert!(
        frame.payload.parts().len() <= 100_000 / 512 + 2,
        "{} parts",
        frame.payload.parts().len()
    );
}

#[test]
fn lengths_are_checked_before_anything_is_held() {
    let cases: [(&[u8], FrameError); 4] = [
        (
            &[3, 0, 0, 0, 3, 0, 0, 0],
            FrameError::Length {
                length: 3,
                header: 0,
            },
        ),
        (
            &[8, 0, 0, 0, 3, 0, 5, 0],
            FrameError::Length {
                length: 8,
                header: 5,
            },
        ),
        (
            &[255, 255, 0, 0, 3, 0, 1, 240],
            FrameError::HeaderTooLarge {
                kind: 3,
                bytes: 61_441,
                max: FRAME_HEADER_BYTES_MAX,
            },
        ),
        (
            &[255, 255, 255, 255, 35, 0, 0, 0],
            FrameError::PayloadTooLarge {
                kind: 35,
                bytes: 0xffff_ffff - 4,
                max: FRAME_PAYLOAD_BYTES_MAX,
            },
        ),
    ];
    for (bytes, expected) in cases {
        assert_eq!(Decoder::decode_all(bytes).expect_err("no frame"), expected);
    }
    assert_eq!(
        Decoder::decode_all(&[4, 0, 0]).expect_err("cut"),
        FrameError::Truncated { missing: 5 }
    );
    assert_eq!(
        Decoder::decode_all(&[6, 0, 0, 0, 3, 0, 0, 0, 1]).expect_err("cut"),
        FrameError::Truncated { missing: 1 }
    );
}

#[test]
fn a_reader_s_own_limit_holds_by_kind() {
    let mut decoder = Decoder::new(|kind| {
        if kind == Kind::Produce.number() {
            10
        } else {
            0
        }
    });
    decoder.push(Bytes::from(produce_frame(&[0; 11])));
    assert!(matches!(
        decoder.next_frame(),
        Err(FrameError::PayloadTooLarge {
            kind: 35,
            bytes: 11,
            max: 10
        })
    ));
}

#[test]
fn a_message_too_long_for_a_header_travels_as_the_payload() {
    let topic = TopicInfo {
        name: "t".repeat(200),
        ..TopicInfo::default()
    };
    let long = ListTopicsResponse {
        topics: vec![topic; 1000],
        ..ListTopicsResponse::default()
    };
    assert!(fits(&long));
    let frames = Decoder::decode_all(&encode(Kind::ListTopics, &long)).expect("well formed");
    assert!(frames[0].header.is_empty());
    assert_eq!(
        frames[0].message::<ListTopicsResponse>().expect("the list"),
        long
    );
}

/// Of every size around the limit: neither side has to know where it is.
#[test]
fn the_answer_to_a_deployment_may_be_long() {
    for bytes in [
        10,
        FRAME_HEADER_BYTES_MAX - 40,
        FRAME_HEADER_BYTES_MAX,
        1 << 20,
    ] {
        let filter = FilterInfo {
            name: "n".repeat(bytes),
            ..FilterInfo::default()
        };
        let answer = DeployFilterResponse {
            filter: Some(filter),
            revision: 7,
        };
        let frames = Decoder::decode_all(&encode(Kind::DeployFilter, &answer)).expect("a frame");
        assert_eq!(
            frames[0].message::<DeployFilterResponse>(),
            Ok(answer),
            "{bytes}"
        );
    }
}

#[test]
fn a_header_that_is_another_message_is_an_error() {
    let bytes = [7, 0, 0, 0, 35, 0, 3, 0, 0x08, 0xff, 0xff];
    let frames = Decoder::decode_all(&bytes).expect("a frame");
    assert_eq!(
        frames[0].message::<Produce>().expect_err("cut varint"),
        FrameError::Header { kind: 35 }
    );
}
