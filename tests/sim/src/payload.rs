//! The bytes that simulated producers send: they say who sent what, and any change in them shows.
//!
//! ```text
//!  0  producer u64 │ 8 pid u64 │ 16 epoch u32 │ 20 sent u32 │ 24 sequence u64 │ 32 kept u32 │ 36 nonce u32
//!  40 len u32 │ 44 zero │ 48 filler, drawn from the numbers above
//! ```
//! Not Kafka batches: the shard passes the bytes on unread, which is what these runs watch.

use bytes::Bytes;

const HEAD_BYTES: usize = 48;

/// Who sent what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Payload {
    /// The simulated client.
    pub client: u64,
    pub pid: u64,
    pub epoch: u32,
    pub sent: u32,
    pub sequence: u64,
    pub kept: u32,
    /// Tells apart batches without identity.
    pub nonce: u32,
}

impl Payload {
    /// The bytes, `len` of them or a few more.
    #[must_use]
    pub fn encode(&self, len: usize) -> Bytes {
        let len = len.max(HEAD_BYTES).next_multiple_of(8);
        let mut bytes = Vec::with_capacity(len);
        bytes.extend_from_slice(&self.client.to_le_bytes());
        bytes.extend_from_slice(&self.pid.to_le_bytes());
        bytes.extend_from_slice(&self.epoch.to_le_bytes());
        bytes.extend_from_slice(&self.sent.to_le_bytes());
        bytes.extend_from_slice(&self.sequence.to_le_bytes());
        bytes.extend_from_slice(&self.kept.to_le_bytes());
        bytes.extend_from_slice(&self.nonce.to_le_bytes());
        bytes.extend_from_slice(&(len as u64).to_le_bytes());
        let mut filler = Filler::of(&bytes);
        while bytes.len() < len {
            bytes.extend_from_slice(&filler.next().to_le_bytes());
        }
        bytes.into()
    }

    /// Reads them back. `None` when a single bit is not as it was sent.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, rest) = bytes.split_at_checked(HEAD_BYTES)?;
        let mut filler = Filler::of(head);
        let (words, tail) = rest.as_chunks::<8>();
        if head[40..] != (bytes.len() as u64).to_le_bytes()
            || !tail.is_empty()
            || words
                .iter()
                .any(|word| u64::from_le_bytes(*word) != filler.next())
        {
            return None;
        }
        let u64_at =
            |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"));
        let u32_at =
            |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
        Some(Self {
            client: u64_at(0),
            pid: u64_at(8),
            epoch: u32_at(16),
            sent: u32_at(20),
            sequence: u64_at(24),
            kept: u32_at(32),
            nonce: u32_at(36),
        })
    }
}

/// A splitmix64 sequence seeded by the head.
struct Filler(u64);

impl Filler {
    fn of(head: &[u8]) -> Self {
        let mut seed = 0xcbf2_9ce4_8422_2325_u64;
        for byte in head {
            seed = (seed ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x ^ (x >> 29)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_shows() {
        let payload = Payload {
            client: 1,
            pid: 2,
            epoch: 3,
            sent: 4,
            sequence: 5,
            kept: 6,
            nonce: 7,
        };
        let mut bytes = payload.encode(100).to_vec();
        assert_eq!((bytes.len(), Payload::decode(&bytes)), (104, Some(payload)));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(Payload::decode(&bytes), Some(payload), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
