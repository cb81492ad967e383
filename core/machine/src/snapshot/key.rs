//! Names of cells as byte strings that sort as the snapshot lists them.
//!
//! ```text
//!   section u8 │ topic id, slot, pid: big-endian │ group names end with a zero, which none holds
//! ```

use millstream_batch::ids::{PartitionSlot, ProducerId, TopicId};

pub(crate) type Key = Vec<u8>;

pub(super) const SHARD: u8 = 1;
pub(super) const TOPICS: u8 = 2;
pub(super) const PARTITIONS: u8 = 3;
pub(super) const PRODUCERS: u8 = 4;
pub(super) const EPOCHS: u8 = 5;
pub(super) const OFFSETS: u8 = 6;
pub(super) const GROUPS: u8 = 7;
/// Past every key.
pub(super) const END: u8 = u8::MAX;

pub(crate) fn shard() -> Key {
    vec![SHARD]
}

pub(crate) fn topic(id: TopicId) -> Key {
    [&[TOPICS], id.0.as_slice()].concat()
}

pub(crate) fn partition(slot: PartitionSlot) -> Key {
    [&[PARTITIONS], slot.0.to_be_bytes().as_slice()].concat()
}

pub(crate) fn producer(slot: PartitionSlot, pid: ProducerId) -> Key {
    [
        &[PRODUCERS],
        slot.0.to_be_bytes().as_slice(),
        &pid.0.to_be_bytes(),
    ]
    .concat()
}

pub(crate) fn epoch(pid: ProducerId) -> Key {
    [&[EPOCHS], pid.0.to_be_bytes().as_slice()].concat()
}

pub(crate) fn offset(group: &str, slot: PartitionSlot) -> Key {
    [&[OFFSETS], group.as_bytes(), &[0], &slot.0.to_be_bytes()].concat()
}

pub(crate) fn group(name: &str) -> Key {
    [&[GROUPS], name.as_bytes()].concat()
}

pub(super) fn end() -> Key {
    vec![END]
}
