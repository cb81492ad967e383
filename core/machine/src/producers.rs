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
//! taken as new. Nothing here hangs on retention. Absent on purpose: transactions.

use std::collections::{BTreeMap, BTreeSet};

use millstream_batch::ids::{
    Lsn, Offset, PartitionSlot, ProducerEpoch, ProducerId, Sequence, Term, TimestampMs,
};
use millstream_batch::limits::{BATCH_BYTES_MAX, PRODUCER_BATCHES_REMEMBERED};

use crate::decide::{Decision, full};
use crate::fact::Fact;
use crate::fact::archive::{BatchAppended, ProducerAdvanced, ProducerGiven, ProducersExpired};
use crate::partitions;
use crate::request::{Produce, Produced, Refusal, Reply};
use crate::snapshot::key;
use crate::state::{GivenEpoch, State};
use crate::topics;
use crate::unit::Draft;

/// One producer in one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Producer {
    pub(crate) epoch: ProducerEpoch,
    /// The sequence that appends: one past the last record stored.
    pub(crate) next: Sequence,
    pub(crate) last_used: TimestampMs,
    /// The batches accepted last in this epoch, oldest first; at most
    /// `PRODUCER_BATCHES_REMEMBERED`.
    pub(crate) batches: Vec<Remembered>,
}

/// Enough of a batch to answer its duplicate as it was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remembered {
    pub(crate) sequence: Sequence,
    pub(crate) sent: u32,
    /// `None`: the filters kept nothing.
    pub(crate) base_offset: Option<Offset>,
    pub(crate) append_time: TimestampMs,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Producers {
    cells: BTreeMap<(PartitionSlot, ProducerId), Producer>,
}

impl Producers {
    pub(crate) fn len(&self) -> usize {
        self.cells.len()
    }

    pub(crate) fn cell(&self, slot: PartitionSlot, pid: ProducerId) -> Option<&Producer> {
        self.cells.get(&(slot, pid))
    }

    pub(crate) fn after(
        &self,
        last: Option<(PartitionSlot, ProducerId)>,
    ) -> impl Iterator<Item = (PartitionSlot, ProducerId, &Producer)> + '_ {
        use std::ops::Bound::{Excluded, Unbounded};
        let range = self
            .cells
            .range((last.map_or(Unbounded, Excluded), Unbounded));
        range.map(|((slot, pid), cell)| (*slot, *pid, cell))
    }

    pub(crate) fn put(&mut self, slot: PartitionSlot, pid: ProducerId, cell: Producer) {
        self.cells.insert((slot, pid), cell);
    }

    /// Producers known in one partition.
    pub(crate) fn count(&self, slot: PartitionSlot) -> u32 {
        self.cells
            .range((slot, ProducerId(0))..=(slot, ProducerId(u64::MAX)))
            .count() as u32
    }

    pub(crate) fn remove_slot(&mut self, slot: PartitionSlot) {
        let range = (slot, ProducerId(0))..=(slot, ProducerId(u64::MAX));
        let keys: Vec<_> = self.cells.range(range).map(|(key, _)| *key).collect();
        for key in keys {
            self.cells.remove(&key);
        }
    }

    /// The producers used since `before`, in any partition.
    pub(crate) fn used_since(&self, before: TimestampMs) -> BTreeSet<ProducerId> {
        self.cells
            .iter()
            .filter(|(_, cell)| cell.last_used >= before)
            .map(|((_, pid), _)| *pid)
            .collect()
    }
}

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
    let (fact, produced) = part(&Draft::new(state), time, term, batch)?;
    let reply = Reply::Produced(produced);
    Ok(match fact {
        Some(fact) => Decision::of(fact, reply),
        None => Decision::look(reply),
    })
}

/// A batch as part of a unit: nothing when it is a duplicate, or when nothing of it is kept and nobody
/// counts it.
pub(crate) fn part(
    draft: &Draft<'_>,
    time: TimestampMs,
    term: Term,
    batch: &Produce,
) -> Result<(Option<Fact>, Produced), Refusal> {
    let state = draft.state;
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
    if let Verdict::Duplicate(produced) = judge(draft, slot, cell.producers, batch)? {
        return Ok((None, produced));
    }
    let base = draft.end(slot, cell);
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
    draft: &Draft<'_>,
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
    let known = draft.producer(slot, pid);
    let next = match known {
        None => {
            if draft.state.shard.is_expired(pid) {
                return Err(Refusal::ProducerExpired { pid });
            }
            room(draft, slot, known_here)?;
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

fn room(draft: &Draft<'_>, slot: PartitionSlot, known_here: u32) -> Result<(), Refusal> {
    let limits = &draft.state.limits;
    let (new, new_here) = draft.producers_new(slot);
    let known = draft.state.producers.len() + new;
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

impl Producer {
    fn answer(&self, first: Sequence, sent: u32) -> Produced {
        let batch = self
            .batches
            .iter()
            .find(|batch| batch.sequence == first && batch.sent == sent);
        Produced {
            base_offset: batch.and_then(|batch| batch.base_offset),
            append_time: batch.map_or(self.last_used, |batch| batch.append_time),
            duplicate: true,
        }
    }

    fn accept(&mut self, epoch: ProducerEpoch, batch: Remembered) {
        if epoch > self.epoch {
            self.epoch = epoch;
            self.next = Sequence(0);
            self.batches.clear();
        }
        assert_eq!(
            (self.epoch, self.next),
            (epoch, batch.sequence),
            "a logged batch follows the one before"
        );
        self.next = Sequence(batch.sequence.0 + u64::from(batch.sent));
        self.last_used = batch.append_time;
        if self.batches.len() == PRODUCER_BATCHES_REMEMBERED {
            self.batches.remove(0);
        } else {
            self.batches.reserve_exact(1); // most producers send little: five are not reserved at once
        }
        self.batches.push(batch);
    }
}

pub(crate) fn install_batch(state: &mut State, lsn: Lsn, fact: &BatchAppended) {
    let slot = PartitionSlot(fact.slot);
    state.shard.tick(fact.append_time_ms);
    if !state.guard.holds(lsn, || key::partition(slot)) {
        let cell = state
            .partitions
            .at_mut(slot)
            .expect("a batch goes to a known partition");
        assert_eq!(
            cell.end.0, fact.base_offset,
            "slot {slot}: offsets are dense"
        );
        cell.epochs.note(Term(fact.term), cell.end);
        cell.end = Offset(fact.base_offset + u64::from(fact.kept));
        cell.bytes += u64::from(fact.bytes);
        cell.last_append = TimestampMs(fact.append_time_ms);
    }
    let (pid, epoch, batch) = remembered(fact);
    advance(state, lsn, slot, pid, epoch, batch);
}

pub(crate) fn install_advanced(state: &mut State, lsn: Lsn, fact: &ProducerAdvanced) {
    state.shard.tick(fact.append_time_ms);
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
    if pid.0 == 0 || state.guard.holds(lsn, || key::producer(slot, pid)) {
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

// --- identities ----------------------------------------------------------------------------------

/// `pid` 0 gives a new id at epoch 0; a known id gets its next epoch, which fences the older.
pub(crate) fn init(state: &State, time: TimestampMs, pid: ProducerId) -> Result<Decision, Refusal> {
    topics::catalog(state)?;
    let (pid, epoch) = if pid.0 == 0 {
        if state.shard.pid_next.0 == u64::MAX {
            return Err(Refusal::StateFull(
                "all producer ids were given out".to_owned(),
            ));
        }
        (state.shard.pid_next, ProducerEpoch(0))
    } else if pid >= state.shard.pid_next {
        return Err(Refusal::UnknownProducer { pid });
    } else if state.shard.is_expired(pid) {
        return Err(Refusal::ProducerExpired { pid });
    } else {
        let known = state.epochs.get(&pid);
        if known.is_none() && state.epochs.len() >= state.limits.producers {
            return Err(full(
                "producers with a raised epoch",
                state.epochs.len() + 1,
                state.limits.producers,
            ));
        }
        let epoch = known.map_or(0, |given| given.epoch.0).checked_add(1);
        (
            pid,
            ProducerEpoch(epoch.ok_or(Refusal::ProducerExpired { pid })?),
        )
    };
    let fact = ProducerGiven {
        pid: pid.0,
        epoch: epoch.0,
        time_ms: time.0,
    };
    Ok(Decision::of(
        Fact::ProducerGiven(fact),
        Reply::Producer { pid, epoch },
    ))
}

pub(crate) fn install_given(state: &mut State, lsn: Lsn, fact: &ProducerGiven) {
    let (pid, given) = (ProducerId(fact.pid), TimestampMs(fact.time_ms));
    state.shard.tick(fact.time_ms);
    if fact.epoch == 0 {
        if !state.guard.holds(lsn, key::shard) {
            assert_eq!(
                state.shard.pid_next, pid,
                "producer ids are given out once, in order"
            );
            state.shard.mark(given, pid);
            state.shard.pid_next = ProducerId(pid.0 + 1);
        }
    } else if !state.guard.holds(lsn, || key::epoch(pid)) {
        state.epochs.insert(
            pid,
            GivenEpoch {
                epoch: ProducerEpoch(fact.epoch),
                given,
            },
        );
    }
}

/// Ids below the new floor are forgotten, except the survivors: those that lived since `before`. With
/// more shards than one the floor stays at or below every living id (see `floor_max`), so that there
/// are none. An id that was forgotten once never survives: its sequences are gone.
pub(crate) fn expire(state: &State, before: TimestampMs, floor_max: ProducerId) -> Decision {
    let bound = floor_max.min(state.producer_floor_bound(before));
    if bound.0 == u64::MAX {
        return Decision::look(Reply::Done); // nobody said which ids were given out
    }
    let floor = bound.max(state.shard.producer_floor);
    let mut survivors = state.producers_living(before);
    survivors.retain(|pid| *pid < floor && !state.shard.is_expired(*pid));
    if floor == state.shard.producer_floor && survivors.iter().eq(&state.shard.survivors) {
        return Decision::look(Reply::Done);
    }
    let fact = ProducersExpired {
        floor: floor.0,
        survivors: survivors.iter().map(|pid| pid.0).collect(),
        unused_before_ms: before.0,
    };
    Decision::of(Fact::ProducersExpired(Box::new(fact)), Reply::Done)
}

pub(crate) fn install_expired(state: &mut State, lsn: Lsn, fact: &ProducersExpired) {
    state.shard.producer_floor = state.shard.producer_floor.max(ProducerId(fact.floor));
    if !state.guard.holds(lsn, key::shard) {
        state.shard.survivors = fact.survivors.iter().map(|pid| ProducerId(*pid)).collect();
        state.shard.prune_marks(TimestampMs(fact.unused_before_ms));
    }
    // A forgotten id never comes back, so what a snapshot holds of it was taken before this fact.
    let stays =
        |pid: ProducerId| pid.0 >= fact.floor || fact.survivors.binary_search(&pid.0).is_ok();
    let partitions = &mut state.partitions;
    state.producers.cells.retain(|(slot, pid), _| {
        let stays = stays(*pid);
        if !stays && let Some(cell) = partitions.at_mut(*slot) {
            cell.producers -= 1;
        }
        stays
    });
    state.epochs.retain(|pid, _| stays(*pid));
}
