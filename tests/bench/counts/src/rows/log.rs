//! `core/log`: from an append to its durable point, and from an offset to its batch.

use std::hint::black_box;

use bytes::Bytes;
use millstream_batch::Parts;
use millstream_batch::ids::{Offset, PartitionSlot, TimestampMs};
use millstream_log::{Event, Fetch, IndexKey, TimeQuery};

use super::Work;
use crate::disk::{Shard, entry};
use crate::fixture::{self, TIMESTAMP};

/// Length of the fact that tells of a batch.
const FACT_BYTES: usize = 80;
const SLOTS: u32 = 64;

pub(crate) fn append() -> Work {
    let parts = fixture::chunks(fixture::large().bytes());
    appending(parts.into(), 16, 64 << 20)
}

pub(crate) fn append_small() -> Work {
    appending(fixture::small().into_bytes().into(), 64, 2 << 20)
}

/// Groups of `batches` batches, each of another partition. The hot tail is large against a group, as
/// the product's is, and small enough to be full when counting begins: memory then goes round.
fn appending(parts: Parts, batches: u64, hot_tail_bytes: usize) -> Work {
    let mut shard = Shard::open(hot_tail_bytes);
    let fact = Bytes::from(vec![7; FACT_BYTES]);
    let mut offset = 0;
    Box::new(move || {
        let mut last = shard.durable;
        for i in 0..batches {
            let key = key((i % u64::from(SLOTS)) as u32, offset);
            last = shard.append(entry(fact.clone(), black_box(parts.clone()), key));
        }
        offset += 1;
        shard.flush();
        assert_eq!(shard.durable, last);
    })
}

/// 512 groups of 64 small batches over 64 partitions, all in the hot tail.
const GROUPS: u64 = 512;

fn filled() -> Shard {
    let mut shard = Shard::open(1 << 30);
    let fact = Bytes::from(vec![7; FACT_BYTES]);
    let raw = fixture::small().into_bytes();
    for offset in 0..GROUPS {
        for slot in 0..SLOTS {
            shard.append(entry(fact.clone(), raw.clone().into(), key(slot, offset)));
        }
        shard.flush();
    }
    shard
}

pub(crate) fn look_up() -> Work {
    let mut shard = filled();
    let mut places = Places(0);
    Box::new(move || {
        let (slot, offset) = places.next();
        shard.log.fetch(Fetch {
            token: 1,
            slot,
            offset: Offset(offset),
            end: Offset(GROUPS),
            bytes_max: 1,
        });
        let mut found = 0;
        shard.carry(|event| {
            if let Event::Fetched { result, .. } = event {
                found = black_box(result.expect("it is in memory")).len();
            }
        });
        assert_eq!(found, 1);
    })
}

pub(crate) fn look_up_by_time() -> Work {
    let mut shard = filled();
    let mut places = Places(0);
    Box::new(move || {
        let (slot, offset) = places.next();
        shard.log.offset_for_timestamp(TimeQuery {
            token: 1,
            slot,
            timestamp: TimestampMs(TIMESTAMP + offset as i64),
            end: Offset(GROUPS),
        });
        let mut found = None;
        shard.carry(|event| {
            if let Event::OffsetFound { result, .. } = event {
                found = result.expect("it is in memory");
            }
        });
        assert_eq!(found.map(|key| key.base_offset), Some(Offset(offset)));
    })
}

/// Slots and offsets without order, always the same.
struct Places(u64);

impl Places {
    fn next(&mut self) -> (PartitionSlot, u64) {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let high = self.0 >> 33;
        let slot = high as u32 % SLOTS;
        (PartitionSlot(slot), high / u64::from(SLOTS) % GROUPS)
    }
}

fn key(slot: u32, offset: u64) -> IndexKey {
    let time = TimestampMs(TIMESTAMP + offset as i64);
    IndexKey {
        slot: PartitionSlot(slot),
        base_offset: Offset(offset),
        last_offset: Offset(offset),
        append_time: time,
        max_timestamp: time,
    }
}
