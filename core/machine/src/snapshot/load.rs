//! Archives to cells.

use millstream_batch::ids::{
    GroupEpoch, Lsn, MemberId, Offset, Partition, PartitionSlot, ProducerEpoch, ProducerId,
    Sequence, ShardId, Term, TimestampMs, TopicId,
};

use super::archive::{
    GroupCell3, OffsetCell, PartitionCell2, ProducerCell, ShardRecord, Slice, Slice2, Slice3,
    TopicCell,
};
use super::{HEAD_BYTES, MAGIC, MAGIC_1, MAGIC_2, SnapshotError};
use crate::clock::Accepted;
use crate::epochs::{EpochStart, LeaderEpochs};
use crate::fact::decode;
use crate::groups::{Group, Hold, Member};
use crate::offsets::Held;
use crate::partitions::PartitionCell;
use crate::producers::{Producer, Remembered};
use crate::shard::ShardCell;
use crate::state::{GivenEpoch, State};
use crate::topic::TopicMeta;

/// The shard that a part says it is of, and of how many.
pub(super) fn shard_of(bytes: &[u8]) -> Result<(ShardId, u16), SnapshotError> {
    let malformed = SnapshotError::Malformed {
        bytes: bytes.len(),
        what: "no head of a shard",
    };
    let head = bytes.get(..HEAD_BYTES).ok_or_else(|| malformed.clone())?;
    let shard = u16::from_le_bytes([head[8], head[9]]);
    let shards = u16::from_le_bytes([head[10], head[11]]);
    if shard >= shards {
        return Err(malformed);
    }
    Ok((ShardId(shard), shards))
}

pub(super) fn part(state: &mut State, bytes: &[u8]) -> Result<(), SnapshotError> {
    let malformed = |what| SnapshotError::Malformed {
        bytes: bytes.len(),
        what,
    };
    let Some((head, archive)) = bytes.split_at_checked(HEAD_BYTES) else {
        return Err(malformed("too short"));
    };
    let read: fn(&[u8]) -> Option<Slice3> = match &head[..8] {
        magic if *magic == MAGIC => decode,
        magic if *magic == MAGIC_2 => |archive| decode::<Slice2>(archive).map(Slice3::from),
        magic if *magic == MAGIC_1 => {
            |archive| decode::<Slice>(archive).map(|slice| Slice2::from(slice).into())
        }
        _ => return Err(SnapshotError::UnknownVersion),
    };
    if head[12..] != [0; 4] {
        return Err(SnapshotError::UnknownVersion);
    }
    let shard = ShardId(u16::from_le_bytes([head[8], head[9]]));
    let shards = u16::from_le_bytes([head[10], head[11]]);
    if (shard, shards) != (state.id, state.shards) {
        return Err(SnapshotError::OtherShard { shard, shards });
    }
    let slice = read(archive).ok_or_else(|| malformed("not an archive"))?;
    if state.guard.covered_to().map_or(&[][..], |to| to.as_slice()) != slice.from
        || slice.to <= slice.from
    {
        return Err(SnapshotError::Incomplete);
    }
    cells(state, &slice).map_err(malformed)?;
    state.guard.cover(slice.to, Lsn(slice.as_of));
    Ok(())
}

fn cells(state: &mut State, slice: &Slice3) -> Result<(), &'static str> {
    for record in &slice.shard {
        state.shard = shard(record);
    }
    if let Some(record) = slice.accepted.first() {
        state.shard.accepted = Some(Accepted {
            lsn: Lsn(record.lsn),
            time: TimestampMs(record.time_ms),
        });
    }
    for cell in &slice.topics {
        topic(state, cell)?;
    }
    for cell in &slice.partitions {
        partition(state, cell)?;
    }
    for cell in &slice.producers {
        producer(state, cell)?;
    }
    for cell in &slice.epochs {
        let given = GivenEpoch {
            epoch: ProducerEpoch(cell.epoch),
            given: TimestampMs(cell.given_ms),
        };
        state.epochs.insert(ProducerId(cell.pid), given);
    }
    for cell in &slice.offsets {
        offset(state, cell);
    }
    for cell in &slice.groups {
        state.groups.insert(cell.name.as_str().into(), group(cell));
    }
    Ok(())
}

fn shard(record: &ShardRecord) -> ShardCell {
    ShardCell {
        clock: TimestampMs(record.clock_ms),
        accepted: None, // beside it in the slice
        revision: record.revision,
        slot_next: PartitionSlot(record.slot_next),
        pid_next: ProducerId(record.pid_next),
        producer_floor: ProducerId(record.producer_floor),
        survivors: record
            .survivors
            .iter()
            .map(|pid| ProducerId(*pid))
            .collect(),
        group_epoch_floor: GroupEpoch(record.group_epoch_floor),
        marks: record
            .marks
            .iter()
            .map(|mark| (TimestampMs(mark.time_ms), ProducerId(mark.pid)))
            .collect(),
        forgotten: record.forgotten.iter().map(|id| TopicId(*id)).collect(),
    }
}

fn topic(state: &mut State, cell: &TopicCell) -> Result<(), &'static str> {
    let id = TopicId(cell.topic.id);
    let sorted = cell
        .slots
        .is_sorted_by(|a, b| a.index < b.index && a.slot < b.slot);
    if !cell.topic.is_sound() || !sorted || state.topics.cell(id).is_some() {
        return Err("a topic that cannot be");
    }
    let slots = cell
        .slots
        .iter()
        .map(|record| (record.index, PartitionSlot(record.slot)));
    state.topics.put(TopicMeta::from(&cell.topic), slots);
    Ok(())
}

fn partition(state: &mut State, cell: &PartitionCell2) -> Result<(), &'static str> {
    let slot = PartitionSlot(cell.slot);
    let starts = cell.leader_epochs.iter().map(|record| EpochStart {
        epoch: Term(record.epoch),
        start: Offset(record.start),
    });
    let epochs = LeaderEpochs::of(starts.collect());
    let (Some(epochs), None) = (epochs, state.partitions.at(slot)) else {
        return Err("a partition that cannot be");
    };
    if cell.start > cell.end {
        return Err("a partition that cannot be");
    }
    let partition = PartitionCell {
        partition: Partition {
            topic: TopicId(cell.topic),
            index: cell.index,
        },
        start: Offset(cell.start),
        end: Offset(cell.end),
        bytes: cell.bytes,
        last_append: TimestampMs(cell.last_append_ms),
        epochs,
        producers: 0,
    };
    state.partitions.put(slot, partition);
    Ok(())
}

fn producer(state: &mut State, cell: &ProducerCell) -> Result<(), &'static str> {
    let (slot, pid) = (PartitionSlot(cell.slot), ProducerId(cell.pid));
    if state.producers.cell(slot, pid).is_some() {
        return Err("a producer twice");
    }
    let batches = cell.batches.iter().map(|batch| Remembered {
        sequence: Sequence(batch.sequence),
        sent: batch.sent,
        base_offset: batch.base_offset.as_ref().copied().map(Offset),
        append_time: TimestampMs(batch.append_time_ms),
    });
    let producer = Producer {
        epoch: ProducerEpoch(cell.epoch),
        next: Sequence(cell.next),
        last_used: TimestampMs(cell.last_used_ms),
        batches: batches.collect(),
    };
    state.producers.put(slot, pid, producer);
    if let Some(partition) = state.partitions.at_mut(slot) {
        partition.producers += 1; // a partition that the tail creates counts then
    }
    Ok(())
}

fn offset(state: &mut State, cell: &OffsetCell) {
    state
        .offsets
        .change(&cell.group, PartitionSlot(cell.slot), |held| {
            *held = Held {
                member: MemberId(cell.member),
                epoch: GroupEpoch(cell.epoch),
                offset: cell.offset.map(Offset),
                metadata: cell.metadata.as_str().into(),
                committed: TimestampMs(cell.committed_ms),
            };
        });
}

fn group(cell: &GroupCell3) -> Group {
    let members = cell.members.iter().map(|record| {
        let topics = record.member.topics.iter();
        let member = Member {
            client: record.member.client.as_str().into(),
            topics: topics.map(|topic| TopicId(*topic)).collect(),
            session_timeout_ms: record.member.session_timeout_ms,
            joined: GroupEpoch(record.joined),
            version: record.version,
        };
        (MemberId(record.member.member), member)
    });
    let holds = cell.holds.iter().map(|record| {
        let hold = Hold {
            member: MemberId(record.member),
            epoch: GroupEpoch(record.epoch),
            revoking: record.revoking,
        };
        (
            Partition {
                topic: TopicId(record.topic),
                index: record.index,
            },
            hold,
        )
    });
    Group {
        epoch: GroupEpoch(cell.epoch),
        members: members.collect(),
        holds: holds.collect(),
    }
}
