//! Typed ids. Two ids of different meaning cannot be mixed; those that are ordered say so.
//!
//! ```text
//!  shard log:      lsn 0 ─────────────── durable_lsn ────────── last_lsn      (one a shard)
//!  partition:      start_offset ──────── released_end ───────── end_offset    (one a partition)
//! ```

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
        impl From<$inner> for $name {
            fn from(value: $inner) -> Self {
                Self(value)
            }
        }
    };
}

number!(
    /// Position of an entry in a shard's log. The first entry is 1; 0 means "before all".
    Lsn(u64)
);
number!(
    /// Position of a record in a partition, from 0. At most `i64::MAX`, as in Kafka.
    Offset(u64)
);
number!(
    /// Raised whenever a shard's log was cut at start. Also the Kafka leader epoch of its batches.
    Term(u32)
);
number!(
    /// A producer's identity. Never reused; 0 means "no producer identity".
    ProducerId(u64)
);
number!(
    /// Fences older incarnations of one producer id.
    ProducerEpoch(u32)
);
number!(
    /// Number of a producer's record in one partition, from 0. A batch names its first record.
    Sequence(u64)
);
number!(
    /// A group member. Never reused inside a group; 0 means "no member" (fixed partitions).
    MemberId(u64)
);
number!(
    /// Raised by the group's home shard with every change of owner; fences commits.
    GroupEpoch(u64)
);
number!(
    /// Milliseconds since the Unix epoch.
    TimestampMs(i64)
);
number!(
    /// A shard of this data directory, from 0.
    ShardId(u16)
);
number!(
    /// Dense local number of a partition in its shard. Never reused in a data directory.
    PartitionSlot(u32)
);

impl Lsn {
    /// The next position.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A topic's identity: a UUID (version 7). A topic deleted and created again has another.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicId(pub [u8; 16]);

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One partition of one topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition {
    pub topic: TopicId,
    pub index: u32,
}

impl Partition {
    /// The shard that owns this partition: a pure function, so that no look-up table can be stale.
    #[must_use]
    pub fn shard(self, shards: u16) -> ShardId {
        assert!(shards > 0, "a data directory has at least one shard");
        let mut tail = [0; 8];
        tail.copy_from_slice(&self.topic.0[8..]); // the random half of a UUIDv7
        let base = u64::from_be_bytes(tail);
        ShardId((base.wrapping_add(u64::from(self.index)) % u64::from(shards)) as u16)
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.index)
    }
}

/// The home shard of a group: FNV-1a of its name, modulo shards.
#[must_use]
pub fn group_home(group: &str, shards: u16) -> ShardId {
    assert!(shards > 0, "a data directory has at least one shard");
    let hash = group.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    ShardId((hash % u64::from(shards)) as u16)
}

/// The catalog's home: topics, producer ids and deployments are decided here.
pub const CATALOG_SHARD: ShardId = ShardId(0);
