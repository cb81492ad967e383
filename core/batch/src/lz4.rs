//! The LZ4 frame format, over whole buffers: one frame in, or out.
//!
//! ```text
//!  magic 0x184D2204 (le) | FLG | BD | [content size u64 le] | HC | blocks | 0 (u32) | [checksum]
//!  block: length u32 le, the highest bit set for plain bytes | bytes | [checksum]
//! ```
//!
//! Written: independent blocks (Kafka's Java reader knows no others), no checksums, no content
//! size, the least block size that holds the records. Read: all that Kafka's writers and the `lz4`
//! tools make, linked blocks and checksum fields included.
//!
//! Absent: checking the xxHash sums inside the frame. The batch's CRC-32C has covered these very
//! bytes.
//!
//! Source: `lz4_Frame_format.md` of the LZ4 project, version 1.6.

use lz4_flex::block::{
    CompressTable, compress_into_with_table, decompress_into, decompress_into_with_dict,
    get_maximum_output_size,
};

const MAGIC: [u8; 4] = 0x184D_2204_u32.to_le_bytes();
const VERSION: u8 = 1 << 6;
const INDEPENDENT: u8 = 1 << 5;
const BLOCK_CHECKSUMS: u8 = 1 << 4;
const CONTENT_SIZE: u8 = 1 << 3;
const CONTENT_CHECKSUM: u8 = 1 << 2;
const RESERVED: u8 = 1 << 1;
const DICTIONARY: u8 = 1 << 0;
const PLAIN: u32 = 1 << 31;
/// How far back a match may reach.
const WINDOW: usize = 64 << 10;
/// No block inflates further: a match length grows by 255 a byte.
const RATIO_MAX: usize = 255;

/// BD and HC by block size. HC is the second byte of xxh32 over FLG and BD, so it is a constant.
const BLOCK_SIZES: [(usize, u8, u8); 4] = [
    (64 << 10, 0x40, 0x82),
    (256 << 10, 0x50, 0xfb),
    (1 << 20, 0x60, 0x51),
    (4 << 20, 0x70, 0x73),
];

/// Why a frame cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Lz4Error {
    Malformed(&'static str),
    /// More than the bytes allowed.
    TooLarge,
}

/// Append one frame with `plain` to `out`.
pub(crate) fn deflate(plain: &[u8], out: &mut Vec<u8>, table: &mut CompressTable) {
    let last = BLOCK_SIZES[BLOCK_SIZES.len() - 1];
    let (block_max, bd, hc) = BLOCK_SIZES
        .into_iter()
        .find(|&(size, ..)| plain.len() <= size)
        .unwrap_or(last);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[VERSION | INDEPENDENT, bd, hc]);
    for block in plain.chunks(block_max) {
        let length_at = out.len();
        let at = length_at + 4;
        out.resize(at + get_maximum_output_size(block.len()), 0);
        let packed = compress_into_with_table(block, &mut out[at..], table)
            .ok()
            .filter(|&len| len < block.len());
        let length = if let Some(len) = packed {
            out.truncate(at + len);
            len as u32
        } else {
            out.truncate(at);
            out.extend_from_slice(block);
            block.len() as u32 | PLAIN
        };
        out[length_at..at].copy_from_slice(&length.to_le_bytes());
    }
    out.extend_from_slice(&[0; 4]);
}

/// Append what the one frame in `frame` holds to `out`, at most `bytes_max`.
pub(crate) fn inflate(frame: &[u8], out: &mut Vec<u8>, bytes_max: usize) -> Result<(), Lz4Error> {
    let mut rest = frame;
    if take(&mut rest, 4)? != MAGIC {
        return Err(Lz4Error::Malformed(
            "it does not begin with the magic of an LZ4 frame",
        ));
    }
    let (flg, bd) = (take(&mut rest, 1)?[0], take(&mut rest, 1)?[0]);
    if flg & (0b11 << 6) != VERSION || flg & RESERVED != 0 {
        return Err(Lz4Error::Malformed("the frame's version is unknown"));
    }
    if flg & DICTIONARY != 0 {
        return Err(Lz4Error::Malformed("the frame asks for a dictionary"));
    }
    let Some((block_max, ..)) = BLOCK_SIZES.into_iter().find(|&(_, code, _)| code == bd) else {
        return Err(Lz4Error::Malformed("the frame's block size is unknown"));
    };
    let mut content_size = None;
    if flg & CONTENT_SIZE != 0 {
        let size = u64::from_le_bytes(array(take(&mut rest, 8)?));
        if size > bytes_max as u64 {
            return Err(Lz4Error::TooLarge);
        }
        content_size = Some(size);
    }
    take(&mut rest, 1)?; // HC
    let start = out.len();
    loop {
        let length = u32::from_le_bytes(array(take(&mut rest, 4)?));
        if length == 0 {
            break;
        }
        let block = take(&mut rest, (length & !PLAIN) as usize)?;
        if block.len() > block_max {
            return Err(Lz4Error::Malformed(
                "a block is longer than the frame allows",
            ));
        }
        let room = bytes_max - (out.len() - start);
        if length & PLAIN == 0 {
            inflate_block(block, out, start, flg & INDEPENDENT != 0, block_max, room)?;
        } else if block.len() > room {
            return Err(Lz4Error::TooLarge);
        } else {
            out.extend_from_slice(block);
        }
        if flg & BLOCK_CHECKSUMS != 0 {
            take(&mut rest, 4)?;
        }
    }
    if flg & CONTENT_CHECKSUM != 0 {
        take(&mut rest, 4)?;
    }
    if !rest.is_empty() {
        return Err(Lz4Error::Malformed("bytes follow the frame"));
    }
    if content_size.is_some_and(|size| size != (out.len() - start) as u64) {
        return Err(Lz4Error::Malformed(
            "the frame's content size is not what it holds",
        ));
    }
    Ok(())
}

/// Append one compressed block. The frame's content so far begins at `start` of `out`.
fn inflate_block(
    block: &[u8],
    out: &mut Vec<u8>,
    start: usize,
    independent: bool,
    block_max: usize,
    room: usize,
) -> Result<(), Lz4Error> {
    let at = out.len();
    let size_max = block_max
        .min(block.len().saturating_mul(RATIO_MAX))
        .min(room);
    out.resize(at + size_max, 0);
    let (before, to) = out.split_at_mut(at);
    let result = if independent {
        decompress_into(block, to)
    } else {
        let window = &before[start.max(at.saturating_sub(WINDOW))..];
        decompress_into_with_dict(block, to, window)
    };
    match result {
        Ok(len) => {
            out.truncate(at + len);
            Ok(())
        }
        Err(lz4_flex::block::DecompressError::OutputTooSmall { .. })
            if size_max == room && room < block_max =>
        {
            Err(Lz4Error::TooLarge)
        }
        Err(_) => Err(Lz4Error::Malformed("a block is damaged")),
    }
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Result<&'a [u8], Lz4Error> {
    let Some((head, tail)) = rest.split_at_checked(len) else {
        return Err(Lz4Error::Malformed("the frame is cut off"));
    };
    *rest = tail;
    Ok(head)
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(bytes);
    out
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use lz4_flex::frame::{BlockMode, BlockSize, FrameDecoder, FrameEncoder, FrameInfo};

    use super::*;

    fn text(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * i / 7 % 61) as u8).collect()
    }

    /// The frames we write carry the right header checksums: another reader verifies them.
    #[test]
    fn another_reader_takes_frames_of_every_block_size() {
        for len in [
            0,
            1,
            12,
            13,
            64 << 10,
            (64 << 10) + 1,
            300 << 10,
            2 << 20,
            (4 << 20) + 5,
        ] {
            let plain = text(len);
            let mut frame = b"before".to_vec();
            deflate(&plain, &mut frame, &mut CompressTable::default());
            let mut back = Vec::new();
            FrameDecoder::new(&frame[6..])
                .read_to_end(&mut back)
                .expect("a frame another reader takes");
            assert!(back == plain, "{len} bytes");
            let mut own = b"before".to_vec();
            inflate(&frame[6..], &mut own, len).expect("a frame we take");
            assert!(own[6..] == plain, "{len} bytes");
        }
    }

    #[test]
    fn frames_of_another_writer_with_every_option_are_read() {
        let plain = text(200_000);
        for mode in [BlockMode::Independent, BlockMode::Linked] {
            for (sums, size) in [(false, None), (true, Some(plain.len() as u64))] {
                let info = FrameInfo::new()
                    .block_mode(mode)
                    .block_size(BlockSize::Max64KB)
                    .block_checksums(sums)
                    .content_checksum(sums)
                    .content_size(size);
                let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
                encoder.write_all(&plain).expect("memory takes it");
                let frame = encoder.finish().expect("memory takes it");
                let mut back = Vec::new();
                inflate(&frame, &mut back, plain.len()).expect("a frame");
                assert!(back == plain);
                assert_eq!(
                    inflate(&frame, &mut Vec::new(), plain.len() - 1),
                    Err(Lz4Error::TooLarge)
                );
                for cut in [3, 6, 7, 20, frame.len() / 2, frame.len() - 1] {
                    assert!(matches!(
                        inflate(&frame[..cut], &mut Vec::new(), 1 << 20),
                        Err(Lz4Error::Malformed(_))
                    ));
                }
            }
        }
    }

    /// A block that says it inflates without end must not make us take memory without end.
    #[test]
    fn the_bound_holds_for_a_bomb() {
        let mut frame = Vec::new();
        deflate(&vec![7; 4 << 20], &mut frame, &mut CompressTable::default());
        assert!(frame.len() < 20_000);
        let mut out = Vec::new();
        assert_eq!(inflate(&frame, &mut out, 1 << 20), Err(Lz4Error::TooLarge));
        assert!(out.capacity() <= 2 << 20);
    }
}
