//! A unit while it is decided: what its parts so far would make of the state.
//!
//! ```text
//!   rule(view, …) ──▶ part (one fact, no answer) ──add──▶ draft      again, for each part
//!   composite: draft.decided(answer) ──▶ one lsn: all of its facts, or none
//! ```
//! A rule that a plain request and a composite share looks at a [`View`] only, so that the second commit
//! of a unit sees the first. What a part changes is laid over the state by the same code that installs
//! its fact. Absent on purpose: answers (the composite's), bytes of batches.

use std::collections::BTreeMap;

use millstream_batch::ids::{Offset, PartitionSlot, ProducerId, ShardId};
use smallvec::SmallVec;

use crate::couriers::Row;
use crate::decide::Decision;
use crate::fact::Fact;
use crate::offsets::{Held, Offsets};
use crate::partitions::PartitionCell;
use crate::producers::{self, Producer};
use crate::request::Reply;
use crate::state::State;

/// What a unit has changed so far.
#[derive(Default)]
struct Changed {
    ends: BTreeMap<PartitionSlot, Offset>,
    producers: BTreeMap<(PartitionSlot, ProducerId), Producer>,
    /// Cells that this unit changed, whole.
    offsets: Offsets,
    /// Those of them that are new, and bytes of metadata that the others had.
    offsets_new: usize,
    metadata_before: usize,
    /// Messages to other shards.
    queued: BTreeMap<(ShardId, Row), u64>,
}

/// What a rule looks at: the state, with what was decided for this unit so far laid over it.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) state: &'a State,
    /// `None`: nothing yet, as for a plain request.
    changed: Option<&'a Changed>,
}

impl<'a> View<'a> {
    /// The state alone.
    pub(crate) fn plain(state: &'a State) -> Self {
        let changed = None;
        Self { state, changed }
    }

    /// The next offset of a partition.
    pub(crate) fn end(self, slot: PartitionSlot, cell: &PartitionCell) -> Offset {
        let over = self.changed.and_then(|changed| changed.ends.get(&slot));
        over.copied().unwrap_or(cell.end)
    }

    pub(crate) fn producer(self, slot: PartitionSlot, pid: ProducerId) -> Option<&'a Producer> {
        let over = self
            .changed
            .and_then(|changed| changed.producers.get(&(slot, pid)));
        over.or_else(|| self.state.producers.cell(slot, pid))
    }

    /// Producers that this unit makes known: on the shard, and in one partition.
    pub(crate) fn producers_new(self, slot: PartitionSlot) -> (usize, usize) {
        let base = &self.state.producers;
        let new = self
            .changed
            .into_iter()
            .flat_map(|changed| changed.producers.keys());
        let new = new.filter(|(slot, pid)| base.cell(*slot, *pid).is_none());
        new.fold((0, 0), |(all, here), (at, _)| {
            (all + 1, here + usize::from(*at == slot))
        })
    }

    /// What a group has in a partition.
    pub(crate) fn held(self, group: &str, slot: PartitionSlot) -> Option<&'a Held> {
        let over = self
            .changed
            .and_then(|changed| changed.offsets.cell(group, slot));
        over.or_else(|| self.state.offsets.cell(group, slot))
    }

    /// Offsets of groups on the shard.
    pub(crate) fn offsets(self) -> usize {
        self.state.offsets.len() + self.changed.map_or(0, |changed| changed.offsets_new)
    }

    /// Bytes of commit metadata on the shard.
    pub(crate) fn metadata_bytes(self) -> usize {
        let before = self.state.offsets.metadata_bytes();
        self.changed.map_or(before, |changed| {
            before - changed.metadata_before + changed.offsets.metadata_bytes()
        })
    }

    /// Messages that this unit sends to a shard.
    pub(crate) fn queued(self, to: ShardId, row: Row) -> u64 {
        let over = self
            .changed
            .and_then(|changed| changed.queued.get(&(to, row)));
        over.copied().unwrap_or(0)
    }
}

/// A unit being put together.
pub(crate) struct Draft<'a> {
    state: &'a State,
    facts: SmallVec<[Fact; 1]>,
    changed: Changed,
}

impl<'a> Draft<'a> {
    pub(crate) fn new(state: &'a State) -> Self {
        Self {
            state,
            facts: SmallVec::new(),
            changed: Changed::default(),
        }
    }

    /// What the next part looks at.
    pub(crate) fn view(&self) -> View<'_> {
        View {
            state: self.state,
            changed: Some(&self.changed),
        }
    }

    /// Take a part in.
    pub(crate) fn add(&mut self, fact: Fact) {
        match &fact {
            Fact::BatchAppended(batch) => {
                let slot = PartitionSlot(batch.slot);
                self.changed
                    .ends
                    .insert(slot, Offset(batch.base_offset + u64::from(batch.kept)));
                let (pid, epoch, batch) = producers::remembered(batch);
                self.advance(slot, pid, |known| producers::advanced(known, epoch, batch));
            }
            Fact::ProducerAdvanced(fact) => {
                let (pid, epoch, batch) = producers::remembered_empty(fact);
                let slot = PartitionSlot(fact.slot);
                self.advance(slot, pid, |known| producers::advanced(known, epoch, batch));
            }
            Fact::OffsetCommitted(fact) => {
                self.touch(&fact.group, PartitionSlot(fact.slot));
                self.changed.offsets.committed(fact);
            }
            Fact::OffsetReset(fact) => {
                self.touch(&fact.group, PartitionSlot(fact.slot));
                self.changed.offsets.reset(fact);
            }
            Fact::CourierQueued(fact) => {
                let row = Row::of(fact.row).expect("it was just made");
                *self
                    .changed
                    .queued
                    .entry((ShardId(fact.to), row))
                    .or_default() += 1;
            }
            // No rule of a composite looks at these again.
            Fact::CourierApplied(_) | Fact::GroupDeleted(_) | Fact::GroupOffsetsForgotten(_) => {}
            other => unreachable!("{other:?} is no part of a composite"),
        }
        self.facts.push(fact);
    }

    pub(crate) fn decided(self, reply: Reply) -> Decision {
        Decision {
            facts: self.facts,
            reply,
        }
    }

    fn advance(
        &mut self,
        slot: PartitionSlot,
        pid: ProducerId,
        to: impl FnOnce(Option<Producer>) -> Producer,
    ) {
        if pid.0 != 0 {
            let known = self.view().producer(slot, pid).cloned();
            self.changed.producers.insert((slot, pid), to(known));
        }
    }

    /// Lay a cell of the state over itself before it is changed.
    fn touch(&mut self, group: &str, slot: PartitionSlot) {
        if self.changed.offsets.cell(group, slot).is_some() {
            return;
        }
        match self.state.offsets.cell(group, slot) {
            None => self.changed.offsets_new += 1,
            Some(held) => {
                self.changed.metadata_before += held.metadata.len();
                let held = held.clone();
                self.changed
                    .offsets
                    .change(group, slot, |cell| *cell = held);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use millstream_batch::ids::{
        GroupEpoch, MemberId, Partition, ProducerEpoch, Sequence, Term, TimestampMs, TopicId,
    };

    use super::*;
    use crate::request::{Commit, Produce, Refusal, Request};
    use crate::topics::TopicConfig;
    use crate::{Limits, decide, install, offsets};

    const NOW: TimestampMs = TimestampMs(1_700_000_000_000);
    const TERM: Term = Term(1);

    fn world() -> State {
        let limits = Limits {
            producers: 3,
            producers_per_partition: 2,
            offsets: 4,
            metadata_bytes: 12,
            ..Limits::default()
        };
        let mut state = State::new(ShardId(0), 1, limits);
        let create = Request::CreateTopic {
            id: TopicId([1; 16]),
            name: "t".to_owned(),
            partitions: 3,
            config: TopicConfig::default(),
        };
        apply(&mut state, &create).expect("created");
        state
    }

    fn apply(state: &mut State, request: &Request) -> Result<Reply, Refusal> {
        let decision = decide(state, NOW, TERM, request)?;
        if !decision.facts.is_empty() {
            let lsn = state.installed().next();
            install(state, lsn, &decision.facts);
        }
        Ok(decision.reply)
    }

    fn partition(index: u32) -> Partition {
        Partition {
            topic: TopicId([1; 16]),
            index,
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Produce(Produce),
        Commit(Commit),
    }

    /// What came of a step: its answer in short.
    fn part(draft: &mut Draft<'_>, step: &Step) -> Result<(), Refusal> {
        let fact = match step {
            Step::Produce(batch) => producers::part(draft.view(), NOW, TERM, batch)?.0,
            Step::Commit(commit) => offsets::commit_part(draft.view(), NOW, commit)?,
        };
        if let Some(fact) = fact {
            draft.add(fact);
        }
        Ok(())
    }

    fn step(random: &mut impl FnMut(u64) -> u64) -> Step {
        if random(2) == 0 {
            let sent = 1 + random(3) as u32;
            return Step::Produce(Produce {
                partition: partition(random(3) as u32),
                pid: ProducerId(random(4)),
                epoch: ProducerEpoch(u32::from(random(9) == 0)),
                sequence: Sequence([0, 0, 1, 2, 3, 4][random(6) as usize]),
                sent,
                kept: random(u64::from(sent) + 1) as u32,
                bytes: 100,
                max_timestamp: NOW,
            });
        }
        Step::Commit(Commit {
            group: ["g", "h"][random(2) as usize].to_owned(),
            partition: partition(random(3) as u32),
            member: MemberId(0),
            epoch: GroupEpoch(0),
            offset: Offset(random(6)),
            leader_epoch: None,
            metadata: "m".repeat(random(7) as usize),
        })
    }

    /// The parts of one unit decide as the same requests one after the other: the same refusals, the same
    /// facts, the same state.
    #[test]
    fn a_unit_decides_as_its_parts_one_by_one() {
        let (mut refused, mut taken) = (0, 0);
        for seed in 1..=3_000_u64 {
            let mut dice = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut random = |n: u64| {
                dice ^= dice << 13;
                dice ^= dice >> 7;
                dice ^= dice << 17;
                (dice >> 11) % n
            };
            let mut one_by_one = world();
            for _ in 0..random(4) {
                let request = match step(&mut random) {
                    Step::Produce(batch) => Request::Produce(batch),
                    Step::Commit(commit) => Request::Commit(commit),
                };
                drop(apply(&mut one_by_one, &request));
            }
            let mut together = one_by_one.clone();
            let base = one_by_one.clone();
            let mut draft = Draft::new(&base);
            for _ in 0..random(12) {
                let step = step(&mut random);
                let request = match step.clone() {
                    Step::Produce(batch) => Request::Produce(batch),
                    Step::Commit(commit) => Request::Commit(commit),
                };
                let alone = apply(&mut one_by_one, &request).map(drop);
                let of_unit = part(&mut draft, &step);
                assert_eq!(alone, of_unit, "seed {seed}: {step:?}");
                refused += usize::from(alone.is_err());
                taken += usize::from(alone.is_ok());
            }
            let Decision { facts, .. } = draft.decided(Reply::Done);
            if !facts.is_empty() {
                let lsn = together.installed().next();
                install(&mut together, lsn, &facts);
            }
            assert!(one_by_one == together, "seed {seed}");
        }
        assert!(refused > 3_000 && taken > 3_000, "{refused} {taken}");
    }
}
