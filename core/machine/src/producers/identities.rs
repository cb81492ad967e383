//! Who is a producer: ids given out at the catalog's shard, their epochs, and the floor below which they are
//! expired on every shard.

use std::collections::BTreeMap;

use millstream_batch::ids::{Lsn, ProducerEpoch, ProducerId, TimestampMs};

use super::section::{epoch_key, floor_key, identities_key};
use crate::bounds::PRODUCER_MARK_MS;
use crate::decide::{Decision, full};
use crate::fact::archive::{ProducerGiven, ProducersExpired};
use crate::fact::{Fact, Sound};
use crate::request::{Refusal, Reply};
use crate::state::State;
use crate::topics;

/// At the catalog's shard: what was given out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identities {
    /// The next producer id. Ids start at 1.
    pub(crate) next: ProducerId,
    /// `(time, pid)`, "from this time on ids were at least this", at most one a `PRODUCER_MARK_MS`.
    pub(crate) marks: Vec<(TimestampMs, ProducerId)>,
    /// Of each id the epoch that was given last. Ids still at epoch 0 have none.
    pub(crate) epochs: BTreeMap<ProducerId, GivenEpoch>,
}

/// The epoch the catalog gave a producer last, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GivenEpoch {
    pub(crate) epoch: ProducerEpoch,
    pub(crate) given: TimestampMs,
}

/// On every shard: who is expired.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProducerFloor {
    /// Producers below this are expired, except the survivors.
    pub(crate) floor: ProducerId,
    /// Those below the floor that lived when it was raised. Sorted.
    pub(crate) survivors: Vec<ProducerId>,
}

impl ProducerFloor {
    pub(crate) fn is_expired(&self, pid: ProducerId) -> bool {
        pid < self.floor && self.survivors.binary_search(&pid).is_err()
    }
}

impl Default for Identities {
    fn default() -> Self {
        Self {
            next: ProducerId(1),
            marks: Vec::new(),
            epochs: BTreeMap::new(),
        }
    }
}

impl Identities {
    /// The smallest id that may have been given out at or after `before`: a mark's ids were all given
    /// out within `PRODUCER_MARK_MS` of it.
    pub(crate) fn given_since(&self, before: TimestampMs) -> ProducerId {
        self.marks
            .get(self.marks_all_before(before))
            .map_or(self.next, |(_, pid)| *pid)
    }

    fn marks_all_before(&self, before: TimestampMs) -> usize {
        self.marks
            .partition_point(|(time, _)| time.0.saturating_add(PRODUCER_MARK_MS) <= before.0)
    }

    fn mark(&mut self, time: TimestampMs, pid: ProducerId) {
        if self
            .marks
            .last()
            .is_none_or(|(last, _)| time.0 - last.0 >= PRODUCER_MARK_MS)
        {
            self.marks.push((time, pid));
        }
    }

    /// Drops the marks that no later question can need.
    fn prune_marks(&mut self, before: TimestampMs) {
        self.marks.drain(..self.marks_all_before(before));
    }
}

/// `pid` 0 gives a new id at epoch 0; a known id gets its next epoch, which fences the older.
pub(crate) fn init(state: &State, time: TimestampMs, pid: ProducerId) -> Result<Decision, Refusal> {
    topics::catalog(state)?;
    let (pid, epoch) = if pid.0 == 0 {
        if state.identities.next.0 == u64::MAX {
            return Err(Refusal::StateFull(
                "all producer ids were given out".to_owned(),
            ));
        }
        (state.identities.next, ProducerEpoch(0))
    } else if pid >= state.identities.next {
        return Err(Refusal::UnknownProducer { pid });
    } else if state.producer_floor.is_expired(pid) {
        return Err(Refusal::ProducerExpired { pid });
    } else {
        let known = state.identities.epochs.get(&pid);
        if known.is_none() && state.identities.epochs.len() >= state.limits.producers {
            return Err(full(
                "producers with a raised epoch",
                state.identities.epochs.len() + 1,
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
    if fact.epoch == 0 {
        if !state.guard.holds(lsn, identities_key) {
            assert_eq!(
                state.identities.next, pid,
                "producer ids are given out once, in order"
            );
            state.identities.mark(given, pid);
            state.identities.next = ProducerId(pid.0 + 1);
        }
    } else if !state.guard.holds(lsn, || epoch_key(pid)) {
        state.identities.epochs.insert(
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
    let floor = bound.max(state.producer_floor.floor);
    let mut survivors = state.producers_living(before);
    survivors.retain(|pid| *pid < floor && !state.producer_floor.is_expired(*pid));
    if floor == state.producer_floor.floor && survivors.iter().eq(&state.producer_floor.survivors) {
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
    state.producer_floor.floor = state.producer_floor.floor.max(ProducerId(fact.floor));
    if !state.guard.holds(lsn, floor_key) {
        let survivors = fact.survivors.iter().map(|pid| ProducerId(*pid));
        state.producer_floor.survivors = survivors.collect();
    }
    if !state.guard.holds(lsn, identities_key) {
        let before = TimestampMs(fact.unused_before_ms);
        state.identities.prune_marks(before);
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
    state.identities.epochs.retain(|pid, _| stays(*pid));
}

impl Sound for ProducerGiven {
    fn is_sound(&self) -> bool {
        self.pid < u64::MAX
    }
}

impl Sound for ProducersExpired {
    fn is_sound(&self) -> bool {
        self.survivors.is_sorted_by(|a, b| a < b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_bound_the_ids_given_since_a_time_from_below() {
        let mut cell = Identities::default();
        let t = |minutes: i64| TimestampMs(minutes * 60_000);
        for pid in 1..=100 {
            cell.mark(t(pid), ProducerId(pid as u64));
            cell.next = ProducerId(pid as u64 + 1);
        }
        assert_eq!(cell.marks.len(), 10);
        for minute in 0..=100 {
            let first_given = minute.max(1) as u64;
            let bound = cell.given_since(t(minute)).0;
            assert!(
                bound <= first_given && first_given - bound < 10,
                "{minute}: {bound}"
            );
        }
        let before = cell.given_since(t(55));
        cell.prune_marks(t(55));
        assert_eq!(cell.given_since(t(55)), before);
        assert_eq!(
            cell.given_since(t(200)),
            ProducerId(101),
            "all were given before"
        );
        assert!(cell.marks.len() <= 6);
    }
}
