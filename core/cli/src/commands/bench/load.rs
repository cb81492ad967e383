//! The records that are sent: values that do not compress to nothing, made without cost.

use millstream_client::RecordRef;
use millstream_client::batch::{Batch, BatchBuilder, Encoding};

use super::Load;
use crate::commands::publish::Codec;
use crate::exit::{Failure, Outcome};

/// Different values made beforehand; records take turns.
const VALUES: usize = 64;

/// Values and keys of one producer.
#[derive(Debug)]
pub(crate) struct Source {
    values: Vec<Vec<u8>>,
    keys: Vec<String>,
    next: u64,
}

impl Source {
    pub(crate) fn new(load: &Load, producer: u32) -> Self {
        // Text-like, half of it repeated words, so that compression has something to do.
        let mut state = u64::from(producer).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let mut value = || {
            let mut value = Vec::with_capacity(load.size + 16);
            while value.len() < load.size {
                value.extend_from_slice(format!("{:016x} ", random()).as_bytes());
                value.extend_from_slice(b"millstream.bench ");
            }
            value.truncate(load.size);
            value
        };
        Self {
            values: (0..VALUES).map(|_| value()).collect(),
            keys: (0..load.keys).map(|key| format!("key-{key}")).collect(),
            next: 0,
        }
    }

    /// The next records, borrowed.
    pub(crate) fn slice<'a>(&'a self, from: u64, count: usize, into: &mut Vec<RecordRef<'a>>) {
        into.clear();
        into.extend((from..from + count as u64).map(|number| RecordRef {
            key: self.key(number),
            value: Some(&self.values[number as usize % VALUES]),
            ..RecordRef::default()
        }));
    }

    fn key(&self, number: u64) -> Option<&[u8]> {
        (!self.keys.is_empty())
            .then(|| self.keys[(number % self.keys.len() as u64) as usize].as_bytes())
    }

    /// The next batch of `count` records. `stamp`, when given, goes over the first bytes of each value.
    pub(crate) fn batch(
        &mut self,
        builder: &mut BatchBuilder,
        count: u32,
        stamp: Option<u64>,
    ) -> Outcome<Batch> {
        let now = jiff::Timestamp::now().as_millisecond();
        for _ in 0..count {
            let number = self.next;
            self.next += 1;
            let at = number as usize % VALUES;
            if let Some(stamp) = stamp {
                self.values[at][..8].copy_from_slice(&stamp.to_le_bytes());
            }
            builder
                .append(self.key(number), Some(&self.values[at]), [], now)
                .map_err(|error| {
                    Failure::usage(format!("--batch {count} of such records: {error}"))
                })?;
        }
        builder
            .build()
            .ok_or_else(|| Failure::usage("--batch is at least 1"))
    }
}

/// A builder that takes any batch that the broker does.
pub(crate) fn builder(compression: Codec) -> BatchBuilder {
    let encoding = match compression {
        Codec::None => Encoding::None,
        Codec::Lz4 => Encoding::Lz4,
        Codec::Zstd => Encoding::Zstd,
    };
    BatchBuilder::new(encoding, usize::MAX)
}

/// The part of `total` that is number `of` of `parts`.
pub(crate) fn share(total: u64, of: u32, parts: u32) -> u64 {
    let (of, parts) = (u64::from(of), u64::from(parts));
    total / parts + u64::from(of < total % parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up() {
        for total in [0, 1, 7, 100] {
            assert_eq!((0..3).map(|of| share(total, of, 3)).sum::<u64>(), total);
        }
    }
}
