//! The ceiling's frames: length and CRC-32C of the payload, both u32 little-endian, then the
//! payload. Taken from the stream's chunks and copied once, into the group to be written.

use anyhow::{Result, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use crc_fast::{CrcAlgorithm, Digest};
use millstream_batch::limits::BATCH_BYTES_MAX;
use millstream_log::buffer::AlignedBuf;

const HEADER_BYTES: usize = 8;

/// A frame, ready to be sent.
pub(super) fn encode(payload: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(HEADER_BYTES + payload.len());
    frame.put_u32_le(u32::try_from(payload.len()).expect("a payload is below 4 GiB"));
    frame.put_u32_le(crc(payload));
    frame.put_slice(payload);
    frame.freeze()
}

fn crc(payload: &[u8]) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    digest.update(payload);
    digest.finalize() as u32
}

/// Cuts a stream of chunks into frames and checks each.
#[derive(Debug)]
pub(super) struct Frames {
    header: [u8; HEADER_BYTES],
    header_len: usize,
    rest: usize,
    digest: Digest,
}

impl Frames {
    pub(super) fn new() -> Self {
        Self {
            header: [0; HEADER_BYTES],
            header_len: 0,
            rest: 0,
            digest: Digest::new(CrcAlgorithm::Crc32Iscsi),
        }
    }

    /// Copy a chunk to the end of `group`, which has room for it; returns how many frames became
    /// complete.
    pub(super) fn take(&mut self, mut chunk: &[u8], group: &mut AlignedBuf) -> Result<u64> {
        let mut complete = 0;
        group.extend(chunk);
        while !chunk.is_empty() {
            if self.header_len < HEADER_BYTES {
                let count = chunk.len().min(HEADER_BYTES - self.header_len);
                self.header[self.header_len..][..count].copy_from_slice(&chunk[..count]);
                self.header_len += count;
                chunk = &chunk[count..];
                if self.header_len < HEADER_BYTES {
                    break;
                }
                self.rest = self.word(0) as usize;
                ensure!(
                    (1..=BATCH_BYTES_MAX).contains(&self.rest),
                    "a frame of {}",
                    self.rest
                );
                self.digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
            }
            let count = chunk.len().min(self.rest);
            self.digest.update(&chunk[..count]);
            self.rest -= count;
            chunk = &chunk[count..];
            if self.rest == 0 {
                ensure!(
                    self.digest.finalize() as u32 == self.word(4),
                    "a frame's CRC differs"
                );
                self.header_len = 0;
                complete += 1;
            }
        }
        Ok(complete)
    }

    fn word(&self, at: usize) -> u32 {
        let word = self.header[at..at + 4].try_into().expect("four bytes");
        u32::from_le_bytes(word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_crc32c() {
        // RFC 3720, appendix B.4: 32 bytes of zeros.
        assert_eq!(crc(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn frames_survive_any_cut() {
        let frames: Vec<Bytes> = (1..40_u8)
            .map(|n| encode(&vec![n; usize::from(n) * 3]))
            .collect();
        let stream: Vec<u8> = frames.iter().flatten().copied().collect();
        for cut in 1..50 {
            let mut group = AlignedBuf::with_capacity(stream.len());
            let mut reader = Frames::new();
            let complete: u64 = stream
                .chunks(cut)
                .map(|c| reader.take(c, &mut group).expect("it is whole"))
                .sum();
            assert_eq!(complete, frames.len() as u64);
            assert_eq!(group[..], stream[..]);
        }
    }

    #[test]
    fn a_flipped_bit_is_found() {
        let mut frame = encode(&[7; 100]).to_vec();
        frame[50] ^= 1;
        assert!(
            Frames::new()
                .take(&frame, &mut AlignedBuf::with_capacity(4096))
                .is_err()
        );
    }
}
