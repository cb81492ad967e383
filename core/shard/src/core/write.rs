//! Calls that change something: decide, append, install, hold the answer.

use millstream_batch::Parts;
use millstream_batch::ids::{
    CATALOG_SHARD, Lsn, Offset, Partition, PartitionSlot, ShardId, TopicId,
};
use millstream_log::io::{IoError, IoErrorKind};
use millstream_log::{Append, IndexKey, Refused};
use millstream_machine::fact::{BatchPlace, Class};
use millstream_machine::request::{Produce, Refusal, Reply, Request};
use millstream_machine::{Fact, Row, decide, install};
use smallvec::SmallVec;

use super::gate::Held;
use super::{ShardCore, Writes};
use crate::call::{Answer, Error};

/// How a request stands to the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// Never writes.
    Look,
    Write,
    /// Frees space or lets go: may use the reserve of a full disk.
    Reserved,
}

impl Use {
    fn of(request: &Request) -> Self {
        use Request as R;
        match request {
            R::DescribePartition { .. }
            | R::CommittedOffset { .. }
            | R::GroupAssignment { .. }
            | R::ListTopics
            | R::TopicsAfter { .. }
            | R::DescribeTopic { .. }
            | R::TopicById { .. }
            | R::ListGroups { .. }
            | R::DescribeGroup { .. } => Self::Look,
            // Nobody owns it any more: lets go.
            R::ClaimPartition { member, .. } if member.0 == 0 => Self::Reserved,
            R::DeleteTopic { .. }
            | R::ConfigureTopic { .. }
            | R::RemoveFilter { .. }
            | R::ApplyTopic { .. }
            | R::ForgetTopic { .. }
            | R::TrimPartition { .. }
            | R::ApplyCourier { .. }
            | R::CourierAcknowledged { .. }
            | R::CatalogueKnown { .. }
            | R::LeaveGroup { .. }
            | R::ReleasePartitions { .. }
            | R::ReassignPartitions { .. }
            | R::ExpireMembers { .. }
            | R::RebalanceGroup { .. }
            | R::DeleteGroup { .. }
            | R::ExpireProducers { .. }
            | R::AdvanceClock
            | R::AcceptClock => Self::Reserved,
            R::CreateTopic { .. }
            | R::AddPartitions { .. }
            | R::InitProducer { .. }
            | R::DeployFilter { .. }
            | R::Produce(_)
            | R::ClaimPartition { .. }
            | R::Commit(_)
            | R::BeginOffset { .. }
            | R::ResetOffsets { .. }
            | R::JoinGroup { .. } => Self::Write,
        }
    }
}

impl ShardCore {
    /// A batch. The bytes were checked by the caller and filtered by the driver.
    pub(super) fn produce(&mut self, token: u64, request: Produce, raw: Parts) {
        match &self.writes {
            Writes::Open | Writes::Full(_) => {}
            Writes::ReadOnly(why) => return self.fail(token, Error::ReadOnly(why.clone())),
            Writes::Stopped(why) => return self.fail(token, Error::Stopped(why.clone())),
        }
        let decision = match decide(
            &self.state,
            self.now.wall,
            self.term,
            &Request::Produce(request),
        ) {
            Ok(decision) => decision,
            Err(refusal) => return self.refuse(token, refusal),
        };
        let Reply::Produced(produced) = decision.reply else {
            unreachable!("a batch is answered with what was produced");
        };
        let mut end = None;
        if decision.facts.is_empty() {
            self.counters.duplicates += u64::from(produced.duplicate);
        } else {
            for place in decision.facts.iter().filter_map(Fact::index_key) {
                end = Some((place.slot, Offset(place.last_offset.0 + 1)));
            }
            if let Err(error) = self.append(&decision.facts, raw, false) {
                return self.fail(token, error);
            }
            self.counters.batches_in += 1;
            self.counters.records_in += u64::from(request.kept);
            self.counters.bytes_in += u64::from(request.bytes);
        }
        let started_us = self.now.mono_us;
        self.hold(Held::Produced {
            token,
            produced,
            end,
            started_us,
        });
    }

    /// Any other request.
    pub(super) fn machine(&mut self, token: u64, request: &Request) {
        if let Request::Produce(_) = request {
            return self.fail(
                token,
                Error::BadBatch("a batch comes with its bytes".to_owned()),
            );
        }
        if let Writes::Stopped(why) = &self.writes {
            // What is installed beyond the durable point never happened, so nothing that may depend
            // on it is told.
            let mut speculative = self.installed_state > self.settled();
            if let Request::DescribePartition { .. } = request {
                speculative |= self.installed > self.gate.durable(); // it tells an end
            }
            if Use::of(request) != Use::Look || speculative {
                return self.fail(token, Error::Stopped(why.clone()));
            }
        }
        // Without an end nobody knows how far behind a group is.
        if let (Request::ListGroups { .. }, Some(error)) = (request, self.cut_short()) {
            return self.fail(token, error);
        }
        match self.carry_out(request) {
            Ok((reply, wrote)) => {
                self.sign_of_life(request, &reply);
                self.hold(Held::Answer {
                    token,
                    answer: Box::new(Answer::Reply(reply)),
                    wrote,
                });
            }
            Err(Error::Refused(refusal)) => self.refuse(token, refusal),
            Err(error) => self.fail(token, error),
        }
    }

    /// Decide, append, install, and hold what follows. The reply is for the caller to hold.
    pub(super) fn carry_out(&mut self, request: &Request) -> Result<(Reply, bool), Error> {
        let of_log = Use::of(request);
        let decision = decide(&self.state, self.now.wall, self.term, request)?;
        if decision.facts.is_empty() {
            return Ok((decision.reply, false));
        }
        assert!(of_log != Use::Look, "a look-up decided a fact: {request:?}");
        self.append(&decision.facts, Parts::default(), of_log == Use::Reserved)?;
        for fact in &decision.facts {
            self.follow(fact);
        }
        Ok((decision.reply, true))
    }

    /// Log a unit and install it. `raw` are the bytes of the batch in it, if there is one.
    fn append(&mut self, unit: &[Fact], raw: Parts, reserved: bool) -> Result<(), Error> {
        if let Writes::Full(error) = &self.writes
            && !reserved
        {
            return Err(full(error));
        }
        let mut raw = Some(raw);
        let mut bytes = 0;
        let mut entries: SmallVec<[Append; 1]> = SmallVec::new();
        for fact in unit {
            let index = fact.index_key().map(index_key);
            let raw = match index {
                Some(_) => raw.take().expect("a unit has one batch"),
                None => Parts::default(),
            };
            let fact_bytes = if let Fact::BatchAppended(_) = fact {
                fact.encode_into(&mut self.encoded);
                // The log copies it and lets go of it, so that its memory serves the next one.
                self.encoded.split().freeze()
            } else {
                fact.encode()
            };
            bytes += fact_bytes.len() + raw.bytes();
            entries.push(Append {
                kind: fact.kind(),
                fact: fact_bytes,
                raw,
                index,
            });
        }
        let taken = if reserved {
            self.log.append_unit_reserved(&entries)
        } else {
            self.log.append_unit(&entries)
        };
        let lsn = taken.map_err(|refused| match (refused, &self.writes) {
            (Refused::Full, Writes::Full(error)) => full(error),
            (Refused::Full, _) => Error::DiskFull,
            (refused @ Refused::NotYet, _) => Error::NotYet(refused.to_string()),
            (refused @ Refused::TooLarge, _) => Error::BadBatch(refused.to_string()),
            (_, Writes::ReadOnly(why)) => Error::ReadOnly(why.clone()),
            (_, Writes::Stopped(why)) => Error::Stopped(why.clone()),
            (refused @ Refused::ReadOnly, _) => Error::ReadOnly(refused.to_string()),
            (refused @ Refused::Stopped, _) => Error::Stopped(refused.to_string()),
        })?;
        self.install(lsn, unit);
        self.snapshot.grown(bytes);
        self.upkeep.busy(self.now);
        self.undurable_bytes += bytes as u64;
        self.hold(Held::Bytes(bytes));
        Ok(())
    }

    fn install(&mut self, lsn: Lsn, unit: &[Fact]) {
        assert!(
            lsn == self.installed.next(),
            "the log gave {lsn} after {}",
            self.installed
        );
        install(&mut self.state, lsn, unit);
        self.installed = lsn;
        if unit.iter().any(|fact| fact.class() == Class::State) {
            self.installed_state = lsn;
        }
    }

    /// Note what changes outside the machine when the fact just installed is durable.
    fn follow(&mut self, fact: &Fact) {
        if let Fact::TopicApplied(applied) = fact {
            for added in &applied.added {
                let partition = Partition {
                    topic: TopicId(applied.topic.id),
                    index: added.index,
                };
                self.hold(Held::Born {
                    slot: PartitionSlot(added.slot),
                    partition,
                });
            }
        }
        for slot in fact.dropped() {
            self.hold(Held::Gone { slot });
        }
        if let Some((slot, start)) = fact.trimmed() {
            self.hold(Held::Start { slot, start });
        }
        if fact.touches_topics() {
            self.upkeep.catalog_changed = true;
            self.hold(Held::Catalog);
            if self.config.shard == CATALOG_SHARD && self.config.shards > 1 {
                // As it is now: what is installed after this is not durable with it.
                let revision = self.state.catalogue_revision();
                self.hold(Held::Change { revision });
            }
        }
        match fact {
            Fact::CourierQueued(queued) => {
                let (to, k) = (ShardId(queued.to), queued.k);
                let row = Row::of(queued.row).expect("it was just decided");
                self.hold(Held::Courier { to, row, k });
            }
            Fact::CourierTrimmed(trimmed) => {
                let to = ShardId(trimmed.to);
                let row = Row::of(trimmed.row).expect("it was just decided");
                self.hold(Held::Acknowledged { to, row });
            }
            _ => {}
        }
        if let Some(group) = fact.touches_group() {
            self.hold(Held::Group {
                group: group.to_owned(),
            });
        }
    }

    /// A refusal was decided on what is installed, so it waits like any reply.
    pub(super) fn refuse(&mut self, token: u64, refusal: Refusal) {
        if let Writes::ReadOnly(why) = &self.writes
            && is_unknown(&refusal)
        {
            // It may be among what could not be replayed.
            let why = why.clone();
            return self.fail(token, Error::ReadOnly(why));
        }
        self.counters.refused += 1;
        let answer = Box::new(Answer::Error(Error::Refused(refusal)));
        self.hold(Held::Answer {
            token,
            answer,
            wrote: false,
        });
    }

    /// Hold until everything installed by now is durable; at once when it is.
    pub(super) fn hold(&mut self, held: Held) {
        if let Writes::Stopped(_) = self.writes {
            // What is installed beyond the durable point never will be. Callers told nothing of it.
            self.gate.hold(self.gate.durable(), held);
            return self.release();
        }
        // A start that readers were told of, and bytes that were let go, do not come back either.
        let is_told = matches!(
            held,
            Held::Answer { .. }
                | Held::Start { .. }
                | Held::Gone { .. }
                | Held::Change { .. }
                | Held::Courier { .. }
                | Held::Acknowledged { .. }
        );
        if !self.config.log.sync_each_group && is_told {
            self.gate
                .hold_synced(self.installed, self.installed_state, held);
            self.sync_due |= self.installed_state > self.synced();
        } else {
            self.gate.hold(self.installed, held);
        }
        if self.installed <= self.gate.durable() {
            self.release();
        }
    }

    /// What no power loss takes: with `flush = interval` that may trail the durable point.
    pub(super) fn settled(&self) -> Lsn {
        let durable = self.gate.durable();
        if self.config.log.sync_each_group {
            durable
        } else {
            durable.min(self.synced())
        }
    }

    /// How far the log is synced. A shard that is read-only syncs nothing: what it found is all there is.
    pub(super) fn synced(&self) -> Lsn {
        if let Writes::ReadOnly(_) = self.writes {
            self.gate.durable()
        } else {
            self.log.synced()
        }
    }

    /// Have synced what answers wait for, then hand the round's writes to the log.
    pub(super) fn flush_log(&mut self) {
        if std::mem::take(&mut self.sync_due) {
            self.log.sync_now();
        } else {
            self.log.flush();
        }
    }
}

/// Whether it says that something is not there.
fn is_unknown(refusal: &Refusal) -> bool {
    matches!(
        refusal,
        Refusal::UnknownTopic(_)
            | Refusal::UnknownPartition(_)
            | Refusal::UnknownProducer { .. }
            | Refusal::UnknownGroup(_)
            | Refusal::UnknownMember { .. }
            | Refusal::UnknownFilter(_)
    )
}

/// Why nothing is taken while no file can be made.
fn full(error: &IoError) -> Error {
    match error.kind {
        IoErrorKind::Limit => Error::Limited(error.to_string()),
        _ => Error::DiskFull,
    }
}

fn index_key(place: BatchPlace) -> IndexKey {
    IndexKey {
        slot: place.slot,
        base_offset: place.base_offset,
        last_offset: place.last_offset,
        append_time: place.append_time,
        max_timestamp: place.max_timestamp,
    }
}
