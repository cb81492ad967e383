//! Cells to archives.

use bytes::Bytes;
use millstream_batch::ids::{PartitionSlot, ProducerId, TopicId};

use super::archive::{
    AcceptedRecord, EpochCell, GroupCell3, JoinedMember, LeaderEpochRecord, MarkRecord, OffsetCell,
    PartitionCell2, ProducerCell, RememberedRecord, ShardRecord, Slice3, TopicCell,
};
use super::key::{self, Key};
use super::{Cursor, Cut, HEAD_BYTES, MAGIC};
use crate::fact::archive::{HoldRecord, MemberRecord, SlotRecord};
use crate::fact::encode;
use crate::groups::Group;
use crate::offsets::Held;
use crate::producers::Producer;
use crate::shard::ShardCell;
use crate::state::State;
use crate::topics::Topic;

pub(super) fn cut(state: &State, after: Option<&Key>, bytes_target: usize) -> Cut {
    let slice = gather(state, after, bytes_target);
    let next = (slice.to != key::end()).then(|| Cursor(slice.to.clone()));
    let mut bytes = Vec::with_capacity(HEAD_BYTES + bytes_target.min(1 << 20));
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&state.id.0.to_le_bytes());
    bytes.extend_from_slice(&state.shards.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    assert_eq!(bytes.len(), HEAD_BYTES);
    bytes.extend_from_slice(&encode(&slice));
    Cut {
        bytes: Bytes::from(bytes),
        as_of: state.installed,
        next,
    }
}

pub(super) fn digest(state: &State) -> u64 {
    let mut slice = gather(state, None, usize::MAX);
    slice.as_of = 0;
    slice
        .accepted
        .iter_mut()
        .for_each(|accepted| accepted.lsn = 0);
    encode(&slice)
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
}

/// Cells after a key until about `bytes_target` bytes are gathered.
fn gather(state: &State, after: Option<&Key>, bytes_target: usize) -> Slice3 {
    let mut slice = Slice3 {
        as_of: state.installed.0,
        from: after.cloned().unwrap_or_default(),
        ..Slice3::default()
    };
    let section = after.map_or(0, |key| key[0]);
    let at = |wanted: u8| after.filter(|key| key[0] == wanted).map(|key| &key[1..]);
    let mut room = Room(bytes_target);
    slice.to = 'full: {
        if section < key::SHARD {
            slice.shard.push(shard(&state.shard));
            let accepted = state.shard.accepted.map(|accepted| AcceptedRecord {
                lsn: accepted.lsn.0,
                time_ms: accepted.time.0,
            });
            slice.accepted.extend(accepted);
            if room.take(
                96 + state.shard.survivors.len() * 8
                    + state.shard.marks.len() * 16
                    + state.shard.forgotten.len() * 16,
            ) {
                break 'full key::shard();
            }
        }
        if section <= key::TOPICS {
            for cell in state
                .topics
                .after(at(key::TOPICS).map(|key| TopicId(fixed(key))))
            {
                slice.topics.push(topic(cell));
                if room.take(topic_bytes(cell)) {
                    break 'full key::topic(cell.meta.id);
                }
            }
        }
        if section <= key::PARTITIONS {
            let last = at(key::PARTITIONS).map(|key| PartitionSlot(u32::from_be_bytes(fixed(key))));
            for (slot, cell) in state.partitions.after(last) {
                slice.partitions.push(partition(slot, cell));
                if room.take(64 + cell.epochs.starts().len() * 16) {
                    break 'full key::partition(slot);
                }
            }
        }
        if section <= key::PRODUCERS {
            let last = at(key::PRODUCERS).map(|key| {
                let (slot, pid) = (
                    u32::from_be_bytes(fixed(&key[..4])),
                    u64::from_be_bytes(fixed(&key[4..])),
                );
                (PartitionSlot(slot), ProducerId(pid))
            });
            for (slot, pid, cell) in state.producers.after(last) {
                slice.producers.push(producer(slot, pid, cell));
                if room.take(48 + cell.batches.len() * 40) {
                    break 'full key::producer(slot, pid);
                }
            }
        }
        if section <= key::EPOCHS {
            use std::ops::Bound::{Excluded, Unbounded};
            let last = at(key::EPOCHS).map(|key| ProducerId(u64::from_be_bytes(fixed(key))));
            for (pid, given) in state
                .epochs
                .range((last.map_or(Unbounded, Excluded), Unbounded))
            {
                slice.epochs.push(EpochCell {
                    pid: pid.0,
                    epoch: given.epoch.0,
                    given_ms: given.given.0,
                });
                if room.take(24) {
                    break 'full key::epoch(*pid);
                }
            }
        }
        if section <= key::OFFSETS {
            let last = at(key::OFFSETS).map(|key| {
                let (group, slot) = key.split_at(key.len() - 5);
                (
                    text(group),
                    PartitionSlot(u32::from_be_bytes(fixed(&slot[1..]))),
                )
            });
            for (group, slot, held) in state.offsets.after(last) {
                slice.offsets.push(offset(group, slot, held));
                if room.take(64 + group.len() + held.metadata.len()) {
                    break 'full key::offset(group, slot);
                }
            }
        }
        if section <= key::GROUPS {
            use std::ops::Bound::{Excluded, Unbounded};
            let last = at(key::GROUPS).map(text);
            for (name, cell) in state
                .groups
                .range::<str, _>((last.map_or(Unbounded, Excluded), Unbounded))
            {
                slice.groups.push(group(name, cell));
                let members: usize = cell
                    .members
                    .values()
                    .map(|member| 72 + member.topics.len() * 16)
                    .sum();
                if room.take(64 + members + cell.holds.len() * 48) {
                    break 'full key::group(name);
                }
            }
        }
        key::end()
    };
    slice
}

/// Bytes left in the slice.
struct Room(usize);

impl Room {
    /// Whether that filled it.
    fn take(&mut self, bytes: usize) -> bool {
        self.0 = self.0.saturating_sub(bytes);
        self.0 == 0
    }
}

fn fixed<const N: usize>(key: &[u8]) -> [u8; N] {
    key.try_into().expect("a cursor's key was made here")
}

fn text(key: &[u8]) -> &str {
    std::str::from_utf8(key).expect("a cursor's key was made from a name")
}

fn shard(cell: &ShardCell) -> ShardRecord {
    ShardRecord {
        clock_ms: cell.clock.0,
        revision: cell.revision,
        slot_next: cell.slot_next.0,
        pid_next: cell.pid_next.0,
        producer_floor: cell.producer_floor.0,
        survivors: cell.survivors.iter().map(|pid| pid.0).collect(),
        group_epoch_floor: cell.group_epoch_floor.0,
        marks: cell
            .marks
            .iter()
            .map(|(time, pid)| MarkRecord {
                time_ms: time.0,
                pid: pid.0,
            })
            .collect(),
        forgotten: cell.forgotten.iter().map(|id| id.0).collect(),
    }
}

fn topic(cell: &Topic) -> TopicCell {
    let slots = cell
        .slots
        .iter()
        .map(|(index, slot)| SlotRecord {
            index: *index,
            slot: slot.0,
        })
        .collect();
    TopicCell {
        topic: (&cell.meta).into(),
        slots,
    }
}

fn topic_bytes(cell: &Topic) -> usize {
    let filters: usize = cell
        .meta
        .filters
        .iter()
        .map(|filter| {
            128 + filter
                .parameters
                .iter()
                .map(|(key, value)| 16 + key.len() + value.len())
                .sum::<usize>()
        })
        .sum();
    96 + cell.meta.name.len() + cell.slots.len() * 8 + filters
}

fn partition(slot: PartitionSlot, cell: &crate::partitions::PartitionCell) -> PartitionCell2 {
    let epochs = cell.epochs.starts().iter();
    PartitionCell2 {
        slot: slot.0,
        topic: cell.partition.topic.0,
        index: cell.partition.index,
        start: cell.start.0,
        end: cell.end.0,
        bytes: cell.bytes,
        last_append_ms: cell.last_append.0,
        leader_epochs: epochs
            .map(|start| LeaderEpochRecord {
                epoch: start.epoch.0,
                start: start.start.0,
            })
            .collect(),
    }
}

fn producer(slot: PartitionSlot, pid: ProducerId, cell: &Producer) -> ProducerCell {
    let batches = cell.batches.iter().map(|batch| RememberedRecord {
        sequence: batch.sequence.0,
        sent: batch.sent,
        base_offset: batch.base_offset.map(|offset| offset.0),
        append_time_ms: batch.append_time.0,
    });
    ProducerCell {
        slot: slot.0,
        pid: pid.0,
        epoch: cell.epoch.0,
        next: cell.next.0,
        last_used_ms: cell.last_used.0,
        batches: batches.collect(),
    }
}

fn offset(group: &str, slot: PartitionSlot, held: &Held) -> OffsetCell {
    OffsetCell {
        group: group.to_owned(),
        slot: slot.0,
        member: held.member.0,
        epoch: held.epoch.0,
        offset: held.offset.map(|offset| offset.0),
        metadata: held.metadata.to_string(),
        committed_ms: held.committed.0,
    }
}

fn group(name: &str, cell: &Group) -> GroupCell3 {
    let members = cell.members.iter().map(|(id, member)| JoinedMember {
        member: MemberRecord {
            member: id.0,
            client: member.client.to_string(),
            topics: member.topics.iter().map(|topic| topic.0).collect(),
            session_timeout_ms: member.session_timeout_ms,
        },
        joined: member.joined.0,
        version: member.version,
    });
    let holds = cell.holds.iter().map(|(partition, hold)| HoldRecord {
        topic: partition.topic.0,
        index: partition.index,
        member: hold.member.0,
        epoch: hold.epoch.0,
        revoking: hold.revoking,
    });
    GroupCell3 {
        name: name.to_owned(),
        epoch: cell.epoch.0,
        members: members.collect(),
        holds: holds.collect(),
    }
}
