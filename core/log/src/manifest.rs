//! The manifest of a published snapshot: which archives it has, and what the log was then.
//!
//! Absent on purpose: what the archives hold (that is the machine's).

use millstream_batch::ids::{Lsn, Term};

use crate::format::{
    NUMBER_MAX, TERM_MAX, VERSION, checksum, put_u16, put_u32, put_u64, u16_at, u32_at, u64_at,
};

pub const MANIFEST_MAGIC: u32 = u32::from_le_bytes(*b"MSmf");
const HEADER_BYTES: usize = 64;
const PART_BYTES: usize = 16;
/// Largest manifest that is read.
pub const MANIFEST_BYTES_MAX: u64 = 64 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The snapshot holds the effect of every entry up to here.
    pub begin: Lsn,
    pub term: Term,
    /// When it was published the log was durable up to this entry and this group.
    pub durable: Lsn,
    pub durable_group: u64,
    /// WAL files that were not freed, and the number of the one after the last of them.
    pub files: Vec<u64>,
    pub next_file: u64,
    pub parts: Vec<Part>,
}

/// One archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub len: u64,
    /// Seeded with `begin`.
    pub sum: u64,
}

impl Part {
    #[must_use]
    pub fn of(begin: Lsn, bytes: &[u8]) -> Self {
        Self {
            len: bytes.len() as u64,
            sum: checksum(begin.0, bytes),
        }
    }
}

impl Manifest {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let len = HEADER_BYTES + self.parts.len() * PART_BYTES + self.files.len() * 8 + 8;
        let mut out = vec![0; len];
        put_u32(&mut out, 0, MANIFEST_MAGIC);
        put_u16(&mut out, 4, VERSION);
        put_u64(&mut out, 8, self.begin.0);
        put_u32(&mut out, 16, self.term.0);
        put_u32(&mut out, 20, self.parts.len() as u32);
        put_u64(&mut out, 24, self.durable.0);
        put_u64(&mut out, 32, self.durable_group);
        put_u64(&mut out, 40, self.next_file);
        put_u32(&mut out, 48, self.files.len() as u32);
        let mut at = HEADER_BYTES;
        for part in &self.parts {
            put_u64(&mut out, at, part.len);
            put_u64(&mut out, at + 8, part.sum);
            at += PART_BYTES;
        }
        for file in &self.files {
            put_u64(&mut out, at, *file);
            at += 8;
        }
        let sum = checksum(self.begin.0, &out[..at]);
        put_u64(&mut out, at, sum);
        out
    }

    /// `None` when the bytes are not a whole manifest.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let header = bytes.get(..HEADER_BYTES)?;
        if u32_at(header, 0) != MANIFEST_MAGIC || u16_at(header, 4) != VERSION {
            return None;
        }
        let begin = Lsn(u64_at(header, 8));
        let parts = u32_at(header, 20) as usize;
        let files = u32_at(header, 48) as usize;
        let end = HEADER_BYTES
            .checked_add(parts.checked_mul(PART_BYTES)?)?
            .checked_add(files.checked_mul(8)?)?;
        if bytes.len() != end + 8 || u64_at(bytes, end) != checksum(begin.0, &bytes[..end]) {
            return None;
        }
        let (part_bytes, file_bytes) = bytes[HEADER_BYTES..end].split_at(parts * PART_BYTES);
        let manifest = Self {
            begin,
            term: Term(u32_at(header, 16)),
            durable: Lsn(u64_at(header, 24)),
            durable_group: u64_at(header, 32),
            next_file: u64_at(header, 40),
            files: file_bytes.chunks_exact(8).map(|b| u64_at(b, 0)).collect(),
            parts: part_bytes
                .chunks_exact(PART_BYTES)
                .map(|b| Part {
                    len: u64_at(b, 0),
                    sum: u64_at(b, 8),
                })
                .collect(),
        };
        let sane = manifest.begin <= manifest.durable
            && manifest.durable.0.max(manifest.durable_group) <= NUMBER_MAX
            && manifest.next_file <= NUMBER_MAX
            && manifest.term.0 <= TERM_MAX
            && manifest.files.iter().all(|n| (1..=NUMBER_MAX).contains(n));
        sane.then_some(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_and_every_flipped_bit_is_seen() {
        let manifest = Manifest {
            begin: Lsn(77),
            term: Term(2),
            durable: Lsn(80),
            durable_group: 12,
            files: vec![1, 4],
            next_file: 5,
            parts: vec![Part::of(Lsn(77), b"one"), Part::of(Lsn(77), b"")],
        };
        let mut bytes = manifest.encode();
        assert_eq!(Manifest::decode(&bytes), Some(manifest));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Manifest::decode(&bytes), None, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(Manifest::decode(&bytes[..bytes.len() - 1]), None);
    }
}
