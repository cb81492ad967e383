//! Which partition a record without one goes to.
//!
//! With a key: Kafka's murmur2, so that every client agrees. Without: one partition for a whole batch,
//! then the next, so that batches fill. Deliberately absent: the number of partitions, which the caller
//! looks up.

/// The partition of a key: `toPositive(murmur2(key)) % partitions`, as Kafka's default partitioner.
///
/// # Panics
/// When `partitions` is 0: a topic has at least one.
#[must_use]
pub fn partition_of_key(key: &[u8], partitions: u32) -> u32 {
    (murmur2(key) & 0x7fff_ffff) % partitions
}

/// Austin Appleby's MurmurHash2, 32 bits, with Kafka's seed.
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    const SEED: u32 = 0x9747_b28c;
    let mut hash = SEED ^ data.len() as u32;
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (at, &byte) in rest.iter().enumerate() {
            hash ^= u32::from(byte) << (8 * at);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

/// The partition for records without a key.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sticky {
    current: u32,
}

impl Sticky {
    /// Start somewhere, so that many producers do not all begin with partition 0.
    pub(crate) fn new(start: u32) -> Self {
        Self { current: start }
    }

    /// The partition now.
    pub(crate) fn current(self, partitions: u32) -> u32 {
        self.current % partitions
    }

    /// A batch is full or on its way: go on to the next partition.
    pub(crate) fn advance(&mut self) {
        self.current = self.current.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From Kafka's own `UtilsTest.testMurmur2`.
    #[test]
    fn murmur2_is_kafkas() {
        for (key, hash) in [
            (&b"21"[..], -973_932_308i32),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (
                b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
                -58_897_971,
            ),
            (b"abc", 479_470_107),
        ] {
            assert_eq!(
                murmur2(key) as i32,
                hash,
                "{}",
                String::from_utf8_lossy(key)
            );
        }
    }

    #[test]
    fn keys_keep_their_partition_and_stay_in_range() {
        assert_eq!(partition_of_key(b"abc", 7), 479_470_107 % 7);
        assert_eq!(partition_of_key(b"foobar", 1), 0);
        assert!(partition_of_key(b"21", 3) < 3);
    }
}
