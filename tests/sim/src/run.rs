//! Whole runs: the clients' time, then healing, then audits after a stop and after a power cut.

use std::panic::{AssertUnwindSafe, catch_unwind};

use millstream_batch::ids::{Offset, Partition, ShardId, Term, TopicId};
use millstream_machine::Row;
use millstream_machine::request::{Reply, Request};
use millstream_shard::call::{Answer, Call, Error, Fetch};

use crate::checkers::{self, Audit, Found};
use crate::disk::Faults;
use crate::history::{Counts, Seen, Violation};
use crate::layer::{Honest, Layer};
use crate::payload::Payload;
use crate::world::{Event, Shard, World};

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub seed: u64,
    /// Empty: every promise was kept.
    pub violations: Vec<Violation>,
    pub counts: Counts,
    /// Equal for equal seeds.
    pub digest: u64,
}

/// The run of a seed, with nothing planted.
#[must_use]
pub fn run(seed: u64, trace: bool) -> Outcome {
    run_with(seed, &|| Box::new(Honest), trace)
}

/// The run of a seed with a layer between each shard and the world. A panic is a broken promise too.
#[must_use]
pub fn run_with(seed: u64, layer: &dyn Fn() -> Box<dyn Layer>, trace: bool) -> Outcome {
    let result = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(seed, layer, trace);
        world.live();
        world.finish()
    }));
    let (violations, counts, digest) = result.unwrap_or_else(|panic| {
        let what = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
            .unwrap_or_default();
        (
            vec![Violation {
                promise: "no_panic",
                what,
            }],
            Counts::default(),
            0,
        )
    });
    Outcome {
        seed,
        violations,
        counts,
        digest,
    }
}

impl World {
    /// The clients' time: everything that the plan has in store happens.
    fn live(&mut self) {
        self.run_until(self.plan.length_us);
    }

    /// Heal, let the clients finish, then look at everything: live, after a stop, after a power cut.
    fn finish(mut self) -> (Vec<Violation>, Counts, u64) {
        self.closing = true;
        self.plan.read_fails = 0;
        self.plan.loss = 0;
        for at in 0..self.shards.len() {
            self.shards[at].disk.set_capacity(u64::MAX);
            self.shards[at].disk.set_faults(Faults::default());
            self.after(100_000, Event::Restart(at));
        }
        self.wake_all();
        for _ in 0..200_000 * self.shards.len() {
            let quiet = self.are_ready() && self.clients_are_idle() && self.undurable() == 0;
            if quiet
                || !self.history.violations.is_empty()
                || self.history.read_only
                || !self.step()
            {
                break;
            }
        }
        if self.history.violations.is_empty() && !self.history.read_only {
            if !self.clients_are_idle() || !self.are_ready() {
                self.history.violation(
                    "no_acked_loss",
                    "clients cannot finish though everything is healed".to_owned(),
                );
            }
            self.compare_live();
            self.compare_catalogues();
            self.compare_couriers();
        }
        self.audit("live");
        self.auditing = true;
        if self.are_ready() && self.history.violations.is_empty() {
            self.stop_and_open();
            self.audit("after a stop");
        }
        if self.history.violations.is_empty() {
            for at in 0..self.shards.len() {
                self.crash(at);
            }
            self.open();
            self.audit("after a power cut");
        }
        (
            std::mem::take(&mut self.history.violations),
            self.history.counts,
            self.digest(),
        )
    }

    fn are_ready(&self) -> bool {
        self.shards.iter().all(|shard| shard.ready)
    }

    /// Units that are not durable, and messages that are not acknowledged.
    fn undurable(&self) -> u64 {
        let cores = self.shards.iter().filter_map(|shard| shard.core.as_ref());
        let undurable = cores.map(|core| {
            let (installed, durable) = core.lsns();
            installed.0 - durable.0 + core.state().outboxes().count() as u64
        });
        undurable.sum::<u64>() + self.untold()
    }

    /// Shards that are not known to know the whole catalogue.
    fn untold(&self) -> u64 {
        let Some(core) = &self.shards[0].core else {
            return 0;
        };
        let state = core.state();
        let others = (1..self.plan.shards).map(ShardId);
        let untold =
            others.filter(|shard| state.catalogue_known(*shard) < state.catalogue_revision());
        untold.count() as u64
    }

    /// `couriers_kept`: every message was applied, once; and of a group that is forgotten nothing is left.
    fn compare_couriers(&mut self) {
        let mut wrong = Vec::new();
        for (from, source) in self.shards.iter().enumerate() {
            for (to, destination) in self.shards.iter().enumerate() {
                let (Some(source), Some(destination)) = (&source.core, &destination.core) else {
                    continue;
                };
                let queued = source
                    .state()
                    .courier_queued(ShardId(to as u16), Row::Control);
                let applied = destination
                    .state()
                    .courier_applied(ShardId(from as u16), Row::Control);
                if queued != applied {
                    wrong.push(format!(
                        "shard {from} queued {queued} messages for {to}, which applied {applied}"
                    ));
                }
            }
        }
        for (at, shard) in self.shards.iter().enumerate() {
            let fences = shard.core.iter().flat_map(|core| core.state().fences());
            for (group, slot, epoch) in fences {
                let forgotten = self.history.forgotten.get(group).copied();
                // Epoch 0 is that of consumers without a group: they may have committed since.
                if epoch.0 > 0 && forgotten.is_some_and(|forgotten| epoch <= forgotten) {
                    wrong.push(format!(
                        "group {group} is forgotten up to {forgotten:?}, and has {epoch} in slot {slot} of shard {at}"
                    ));
                }
            }
        }
        for what in wrong {
            self.history.violation("couriers_kept", what);
        }
        if self.history.violations.is_empty() && self.undurable() > 0 {
            let what = "something waits for ever to be known by another shard".to_owned();
            self.history.violation("couriers_kept", what);
        }
    }

    /// `catalogue_spread`: what the catalogue's shard decided, every other one has applied.
    fn compare_catalogues(&mut self) {
        let topics = |shard: &Shard| -> Option<Vec<(TopicId, u64)>> {
            let topics = shard.core.as_ref()?.state().topics();
            Some(topics.map(|meta| (meta.id, meta.revision)).collect())
        };
        let truth = topics(&self.shards[0]);
        for (at, shard) in self.shards.iter().enumerate() {
            let known = topics(shard);
            if known != truth {
                let what = format!("shard {at} knows {known:?}, the catalogue is {truth:?}");
                self.history.violation("catalogue_spread", what);
                return;
            }
        }
    }

    /// The live state is what its facts make.
    fn compare_live(&mut self) {
        for shard in &mut self.shards {
            let Some(core) = &shard.core else { continue };
            let (installed, _) = core.lsns();
            if let Err(what) = shard.shadow.compare(installed, core.state()) {
                self.history.violation("rebuilt_equals_live", what);
            }
        }
    }

    fn stop_and_open(&mut self) {
        for at in 0..self.shards.len() {
            let Some(answer) = self.ask_shard(at, Call::Stop) else {
                return;
            };
            assert!(
                matches!(answer, Answer::Stopped | Answer::Error(Error::Stopping)),
                "{answer:?}"
            );
        }
        for _ in 0..100_000 {
            if self.shards.iter().all(|shard| shard.core.is_none()) {
                break;
            }
            self.step();
        }
        self.open();
    }

    fn open(&mut self) {
        for at in 0..self.shards.len() {
            self.restart(at);
        }
        for _ in 0..100_000 * self.shards.len() {
            if self.are_ready() {
                return;
            }
            self.step();
        }
        self.history
            .violation("no_acked_loss", "the shard does not open".to_owned());
    }

    /// Read everything back, and hold it against what was promised.
    fn audit(&mut self, when: &'static str) {
        if !self.history.violations.is_empty() || !self.are_ready() {
            return;
        }
        self.say(|_| format!("--- audit {when}"));
        let mut audit = Audit {
            read_only: self.history.read_only,
            ..Audit::default()
        };
        let mut partitions = self.history.live_partitions();
        partitions.extend(self.history.partitions.keys().copied());
        partitions.sort_unstable();
        partitions.dedup();
        for partition in partitions {
            let found = self.read_all(partition);
            audit.partitions.insert(partition, found);
        }
        for (group, partition) in self.history.commits.keys().cloned().collect::<Vec<_>>() {
            let request = Request::CommittedOffset {
                group: group.clone(),
                partition,
            };
            if let Some(Answer::Reply(Reply::Committed { offset, .. })) =
                self.ask(Call::Machine(request))
            {
                audit
                    .committed
                    .insert((group, partition), offset.map(|offset| offset.0));
            }
        }
        checkers::check(&mut self.history, &audit);
        for violation in &mut self.history.violations {
            violation.what = format!("({when}) {}", violation.what);
        }
    }

    fn read_all(&mut self, partition: Partition) -> Found {
        let mut found = Found::default();
        let info = self.ask(Call::Machine(Request::DescribePartition { partition }));
        let Some(Answer::Reply(Reply::Partition(info))) = info else {
            return found;
        };
        (found.exists, found.start, found.end) = (true, info.start.0, info.end.0);
        let mut next = found.start;
        while next < found.end {
            let fetch = Fetch {
                partition,
                offset: Offset(next),
                leader_epoch: None,
                bytes_max: 60_000,
                wait_ms: 0,
            };
            match self.ask(Call::Fetch(fetch)) {
                Some(Answer::Fetched(fetched)) if !fetched.batches.is_empty() => {
                    for batch in fetched.batches {
                        next = batch.last_offset.0 + 1;
                        if let Some(payload) = Payload::decode(&batch.batch) {
                            found.batches.insert(
                                batch.base_offset.0,
                                Seen {
                                    last: batch.last_offset.0,
                                    payload,
                                    epoch: Term(batch.leader_epoch),
                                },
                            );
                        }
                    }
                }
                Some(Answer::Error(Error::Damaged { from, to })) if to.0 >= next => {
                    found.damaged.push((from.0, to.0));
                    next = to.0 + 1;
                }
                // A batch that should be there is not, and nothing is said about it.
                other => {
                    self.say(|_| format!("{partition} offset {next}: {other:?}"));
                    break;
                }
            }
        }
        found
    }
}
