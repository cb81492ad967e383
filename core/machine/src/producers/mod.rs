//! Idempotent producers: what a sequence number means, per (partition, producer id).
//!
//! ```text
//!   stored:   0 ───────────── next          sequences count records
//!   sent:              [first … last]
//!   first = next            appends         last < next     duplicate, for ever
//!   first > next            gap, refused    otherwise       partial overlap, refused
//! ```
//!
//! A lower epoch is fenced, a higher one starts again at 0. An unknown producer may start only at 0,
//! and not below the shard's floor: its state may have been expired, and an old batch must never be
//! taken as new. Nothing here hangs on retention. Ids are given out and expired in [`identities`]. Absent on
//! purpose: transactions.

mod cell;
mod identities;
mod section;

use millstream_batch::ids::{
    Lsn, Offset, PartitionSlot, ProducerEpoch, ProducerId, Sequence, Term, TimestampMs,
};
use millstream_batch::limits::BATCH_BYTES_MAX;

use crate::decide::{Decision, full};
use crate::fact::archive::{BatchAppended, ProducerAdvanced, TopicDeleted};
use crate::fact::{Fact, Sound};
use crate::partitions;
use crate::request::{Produce, Produced, Refusal, Reply};
use crate::state::State;
use crate::unit::View;
pub(crate) use cell::{Producer, Producers, Remembered};
pub(crate) use identities::{
    Identities, ProducerFloor, expire, init, install_expired, install_given,
};
use section::key;
pub(crate) use section::{EpochsSection, FloorSection, IdentitiesSection, ProducersSection};

/// What the sequence of a batch says about it.
enum Verdict {
    /// It follows what is stored (or the producer is new here, or has no identity).
    New,
    Duplicate(Produced),
}

pub(crate) fn produce(
    state: &State,
    time: TimestampMs,
    term: Term,
    batch: &Produce,
) -> Result<Decision, Refusal> {
    let (fact, produced) = part(View::plain(state), time, term, batch)?;
    let reply = Reply::Produced(produced);
    Ok(match fact {
        Some(fact) => Decision::of(fact, reply),
        None => Decision::look(reply),
    })
}

/// A batch as part of a unit: nothing when it is a duplicate, or when nothing of it is kept and nobody
/// counts it.
pub(crate) fn part(
    view: View<'_>,
    time: TimestampMs,
    term: Term,
    batch: &Produce,
) -> Result<(Option<Fact>, Produced), Refusal> {
    let state = view.state;
    let (slot, cell) = partitions::find(state, batch.partition)?;
    let config = &state
        .topics
        .cell(batch.partition.topic)
        .expect("found above")
        .meta
        .config;
    let max = config
        .batch_bytes_max
        .unwrap_or(state.limits.batch_bytes)
        .min(BATCH_BYTES_MAX as u32);
    if batch.bytes > max {
        return Err(Refusal::BatchTooLarge {
            bytes: batch.bytes,
            max,
        });
    }
    if batch.sent == 0 {
        return Err(Refusal::BadConfig(
            "a batch holds at least one record".to_owned(),
        ));
    }
    if let Verdict::Duplicate(produced) = judge(view, slot, cell.producers, batch)? {
        return Ok((None, produced));
    }
    let base = view.end(slot, cell);
    let produced = Produced {
        base_offset: (batch.kept > 0).then_some(base),
        append_time: time,
        duplicate: false,
    };
    if batch.kept == 0 {
        if batch.pid.0 == 0 {
            return Ok((None, produced));
        }
        let fact = ProducerAdvanced {
            slot: slot.0,
            epoch: batch.epoch.0,
            pid: batch.pid.0,
            sequence: batch.sequence.0,
            append_time_ms: time.0,
            sent: batch.sent,
        };
        return Ok((Some(Fact::ProducerAdvanced(fact)), produced));
    }
    let end = base.0.checked_add(u64::from(batch.kept));
    if end.is_none_or(|end| i64::try_from(end).is_err()) {
        return Err(Refusal::StateFull(format!(
            "partition {} has no offsets left",
            batch.partition
        )));
    }
    let fact = BatchAppended {
        slot: slot.0,
        term: term.0,
        base_offset: base.0,
        append_time_ms: time.0,
        timestamp_ms_max: batch.max_timestamp.0,
        pid: batch.pid.0,
        sequence: batch.sequence.0,
        epoch: batch.epoch.0,
        sent: batch.sent,
        kept: batch.kept,
        bytes: batch.bytes,
    };
    Ok((Some(Fact::BatchAppended(fact)), produced))
}

fn judge(
    view: View<'_>,
    slot: PartitionSlot,
    known_here: u32,
    batch: &Produce,
) -> Result<Verdict, Refusal> {
    let Produce {
        pid,
        epoch,
        sequence: first,
        sent,
        ..
    } = *batch;
    if pid.0 == 0 {
        return Ok(Verdict::New);
    }
    let known = view.producer(slot, pid);
    let next = match known {
        None => {
            if view.state.producer_floor.is_expired(pid) {
                return Err(Refusal::ProducerExpired { pid });
            }
            room(view, slot, known_here)?;
            Sequence(0)
        }
        Some(known) if epoch < known.epoch => {
            return Err(Refusal::ProducerFenced {
                pid,
                sent: epoch,
                current: known.epoch,
            });
        }
        Some(known) if epoch > known.epoch => Sequence(0),
        Some(known) => known.next,
    };
    if first == next && first.0.checked_add(u64::from(sent)).is_some() {
        return Ok(Verdict::New);
    }
    let last = Sequence(first.0.saturating_add(u64::from(sent) - 1));
    if first >= next {
        Err(Refusal::SequenceGap {
            pid,
            sent: first,
            expected: next,
        })
    } else if last >= next {
        Err(Refusal::SequenceOverlap {
            pid,
            first,
            last,
            expected: next,
        })
    } else {
        let known = known.expect("something is stored before `next`");
        Ok(Verdict::Duplicate(known.answer(first, sent)))
    }
}

fn room(view: View<'_>, slot: PartitionSlot, known_here: u32) -> Result<(), Refusal> {
    let limits = &view.state.limits;
    let (new, new_here) = view.producers_new(slot);
    let known = view.state.producers.len() + new;
    if known >= limits.producers {
        return Err(full("producers on the shard", known + 1, limits.producers));
    }
    let known_here = known_here as usize + new_here;
    if known_here >= limits.producers_per_partition {
        return Err(full(
            "producers in the partition",
            known_here + 1,
            limits.producers_per_partition,
        ));
    }
    Ok(())
}

pub(crate) fn install_appended(state: &mut State, lsn: Lsn, fact: &BatchAppended) {
    let slot = PartitionSlot(fact.slot);
    let (pid, epoch, batch) = remembered(fact);
    advance(state, lsn, slot, pid, epoch, batch);
}

pub(crate) fn install_advanced(state: &mut State, lsn: Lsn, fact: &ProducerAdvanced) {
    let (pid, epoch, batch) = remembered_empty(fact);
    advance(state, lsn, PartitionSlot(fact.slot), pid, epoch, batch);
}

/// What is kept of a batch for its producer.
pub(crate) fn remembered(fact: &BatchAppended) -> (ProducerId, ProducerEpoch, Remembered) {
    let batch = Remembered {
        sequence: Sequence(fact.sequence),
        sent: fact.sent,
        base_offset: Some(Offset(fact.base_offset)),
        append_time: TimestampMs(fact.append_time_ms),
    };
    (ProducerId(fact.pid), ProducerEpoch(fact.epoch), batch)
}

/// As [`remembered`], of a batch that filters emptied.
pub(crate) fn remembered_empty(fact: &ProducerAdvanced) -> (ProducerId, ProducerEpoch, Remembered) {
    let batch = Remembered {
        sequence: Sequence(fact.sequence),
        sent: fact.sent,
        base_offset: None,
        append_time: TimestampMs(fact.append_time_ms),
    };
    (ProducerId(fact.pid), ProducerEpoch(fact.epoch), batch)
}

/// A producer in a partition after one more batch. `None`: it was not known there.
pub(crate) fn advanced(
    known: Option<Producer>,
    epoch: ProducerEpoch,
    batch: Remembered,
) -> Producer {
    let mut producer = known.unwrap_or(Producer {
        epoch,
        next: Sequence(0),
        last_used: batch.append_time,
        batches: Vec::new(),
    });
    producer.accept(epoch, batch);
    producer
}

fn advance(
    state: &mut State,
    lsn: Lsn,
    slot: PartitionSlot,
    pid: ProducerId,
    epoch: ProducerEpoch,
    batch: Remembered,
) {
    if pid.0 == 0 || state.guard.holds(lsn, || key(slot, pid)) {
        return;
    }
    if let Some(producer) = state.producers.cells.get_mut(&(slot, pid)) {
        producer.accept(epoch, batch);
        return;
    }
    state.producers.put(slot, pid, advanced(None, epoch, batch));
    if let Some(cell) = state.partitions.at_mut(slot) {
        cell.producers += 1; // a partition whose creation is still to be replayed counts then
    }
}

/// Slots are not used again, so what a snapshot holds of them was taken before this fact.
pub(crate) fn install_deleted(state: &mut State, _: Lsn, fact: &TopicDeleted) {
    for slot in &fact.slots {
        state.producers.remove_slot(PartitionSlot(*slot));
    }
}

impl Sound for ProducerAdvanced {
    fn is_sound(&self) -> bool {
        self.sequence.checked_add(self.sent.into()).is_some()
    }
}
