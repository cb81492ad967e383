//! Frames. The first byte says in how small pieces the rest arrives.

use bytes::Bytes;
use millstream_protocol::frame::{Frame, any_payload};
use millstream_protocol::{Decoder, FrameError};

/// The frame decoder: cut in pieces or in one, the same frames come out.
pub fn frame(data: &[u8]) {
    let Some((&size, rest)) = data.split_first() else {
        return;
    };
    let pieces = in_pieces(rest, usize::from(size).max(1));
    let at_once = Decoder::decode_all(rest);
    match (&pieces, &at_once) {
        (Ok(pieces), Ok(at_once)) => {
            assert_eq!(pieces.len(), at_once.len());
            for (a, b) in pieces.iter().zip(at_once) {
                assert_eq!((a.kind, &a.header), (b.kind, &b.header));
                assert_eq!(a.payload.len(), b.payload.len());
                assert_eq!(
                    a.payload.clone().into_contiguous(),
                    b.payload.clone().into_contiguous()
                );
            }
            let bytes: usize = at_once
                .iter()
                .map(|f| 8 + f.header.len() + f.payload.len())
                .sum();
            assert_eq!(bytes, rest.len());
        }
        (pieces, at_once) => assert_eq!(pieces.as_ref().err(), at_once.as_ref().err()),
    }
}

fn in_pieces(data: &[u8], size: usize) -> Result<Vec<Frame>, FrameError> {
    let mut decoder = Decoder::new(any_payload);
    let mut frames = Vec::new();
    for piece in data.chunks(size) {
        decoder.push(Bytes::copy_from_slice(piece));
        while let Some(frame) = decoder.next_frame()? {
            frames.push(frame);
        }
        assert!(decoder.buffered() <= data.len());
    }
    decoder.finish()?;
    Ok(frames)
}
