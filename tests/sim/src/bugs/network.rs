//! Answers that lie: given too early, with something left out, or to the wrong one.

use std::collections::BTreeMap;

use bytes::Bytes;
use millstream_batch::ids::{Offset, Partition, ProducerId, TimestampMs};
use millstream_machine::request::{Produced, Reply, Request};
use millstream_machine::{Message, State};
use millstream_shard::call::{Answer, Call, Error, Fetched, Served};

use crate::disk::SimDisk;
use crate::layer::Layer;
use crate::payload::Payload;

#[derive(Debug)]
pub(super) struct EarlyAck;

impl Layer for EarlyAck {
    fn early(&mut self, call: &Call, state: &State) -> Option<Answer> {
        let Call::Produce { request, .. } = call else {
            return None;
        };
        if request.pid.0 != 0 || request.kept == 0 {
            return None; // what a producer with identity gets depends on its past
        }
        let end = state.partition(request.partition)?.end;
        let produced = Produced {
            base_offset: Some(end),
            append_time: TimestampMs(0),
            duplicate: false,
        };
        Some(Answer::Reply(Reply::Produced(produced)))
    }
}

/// Remembers batches as they come in and shows them to readers at once.
#[derive(Debug, Default)]
pub(super) struct EarlyRead {
    tails: BTreeMap<Partition, Served>,
}

impl Layer for EarlyRead {
    fn call(&mut self, call: Call, state: &State) -> Call {
        if let Call::Produce { request, raw } = &call
            && request.kept > 0
            && let Some(view) = state.partition(request.partition)
        {
            let served = Served {
                base_offset: view.end,
                last_offset: Offset(view.end.0 + u64::from(request.kept) - 1),
                records: request.kept,
                append_time: TimestampMs(0),
                leader_epoch: 0,
                pid: request.pid.0,
                epoch: request.epoch.0,
                sequence: request.sequence.0,
                batch: raw.iter().fold(Bytes::new(), |_, part| part.clone()),
            };
            self.tails.insert(request.partition, served);
        }
        call
    }

    fn early(&mut self, call: &Call, _state: &State) -> Option<Answer> {
        let Call::Fetch(fetch) = call else {
            return None;
        };
        let tail = self.tails.get(&fetch.partition)?;
        (tail.base_offset == fetch.offset).then(|| {
            let end = Offset(tail.last_offset.0 + 1);
            Answer::Fetched(Fetched {
                end_known: true,
                batches: vec![tail.clone()],
                start: Offset(0),
                end,
            })
        })
    }
}

/// After a restart, producers are taken for strangers.
#[derive(Debug, Default)]
pub(super) struct ForgottenProducers {
    starts: u64,
}

impl Layer for ForgottenProducers {
    fn restarting(&mut self, _disk: &mut SimDisk) {
        self.starts += 1;
    }

    fn call(&mut self, mut call: Call, _state: &State) -> Call {
        if let Call::Produce { request, .. } = &mut call
            && self.starts > 1
        {
            request.pid = ProducerId(0);
        }
        call
    }

    fn answer(&mut self, mut answer: Answer) -> Answer {
        if let Answer::Fetched(fetched) = &mut answer {
            for batch in &mut fetched.batches {
                if let Some(sent) = Payload::decode(&batch.batch) {
                    (batch.pid, batch.epoch, batch.sequence) =
                        (sent.pid, sent.epoch, sent.sequence);
                }
            }
        }
        answer
    }
}

#[derive(Debug, Default)]
pub(super) struct SkippedBatch {
    fetches: u64,
}

impl Layer for SkippedBatch {
    fn answer(&mut self, mut answer: Answer) -> Answer {
        if let Answer::Fetched(fetched) = &mut answer
            && fetched.batches.len() > 2
        {
            self.fetches += 1;
            if self.fetches.is_multiple_of(3) {
                fetched.batches.remove(1);
            }
        }
        answer
    }
}

#[derive(Debug, Default)]
pub(super) struct OffsetTwice {
    last: Option<Offset>,
}

impl Layer for OffsetTwice {
    fn answer(&mut self, mut answer: Answer) -> Answer {
        if let Answer::Reply(Reply::Produced(produced)) = &mut answer
            && let Some(base) = produced.base_offset
        {
            produced.base_offset = self.last.take().or(Some(base));
            self.last = (base.0 % 5 == 0).then_some(base);
        }
        answer
    }
}

/// Commits are taken under whatever epoch holds.
#[derive(Debug, Default)]
pub(super) struct Zombie {
    newest: BTreeMap<
        (String, Partition),
        (
            millstream_batch::ids::MemberId,
            millstream_batch::ids::GroupEpoch,
        ),
    >,
}

impl Layer for Zombie {
    fn call(&mut self, mut call: Call, _state: &State) -> Call {
        match &mut call {
            Call::Machine(Request::ClaimPartition {
                group,
                partition,
                member,
                epoch,
            }) => {
                let newest = self
                    .newest
                    .entry((group.clone(), *partition))
                    .or_insert((*member, *epoch));
                if *epoch > newest.1 {
                    *newest = (*member, *epoch);
                }
            }
            Call::Machine(Request::Commit(commit)) => {
                if let Some((member, epoch)) =
                    self.newest.get(&(commit.group.clone(), commit.partition))
                {
                    (commit.member, commit.epoch) = (*member, *epoch);
                }
            }
            _ => {}
        }
        call
    }
}

/// Damage is made, and answered with the batch after it, or with nothing.
#[derive(Debug, Default)]
pub(super) struct SwallowedDamage {
    made: u64,
}

impl Layer for SwallowedDamage {
    fn answer(&mut self, answer: Answer) -> Answer {
        match answer {
            Answer::Error(Error::Damaged { .. }) => Answer::Fetched(Fetched {
                end_known: true,
                batches: Vec::new(),
                start: Offset(0),
                end: Offset(0),
            }),
            // Stands for a damaged batch at the start of what is read.
            Answer::Fetched(mut fetched) if fetched.batches.len() > 1 => {
                self.made += 1;
                if self.made.is_multiple_of(3) {
                    fetched.batches.remove(0);
                }
                Answer::Fetched(fetched)
            }
            answer => answer,
        }
    }
}

/// A counter that outlives runs.
#[derive(Debug)]
pub(super) struct Leak;

impl Layer for Leak {
    fn jitter_us(&mut self) -> u64 {
        use std::sync::atomic::{AtomicU64, Ordering};
        static LEAK: AtomicU64 = AtomicU64::new(0);
        LEAK.fetch_add(1, Ordering::Relaxed) % 7
    }
}

/// Positions lose their epoch on the way.
#[derive(Debug)]
pub(super) struct CutNotTold;

impl Layer for CutNotTold {
    fn call(&mut self, mut call: Call, _state: &State) -> Call {
        match &mut call {
            Call::Fetch(fetch) => fetch.leader_epoch = None,
            Call::Machine(Request::Commit(commit)) => commit.leader_epoch = None,
            _ => {}
        }
        call
    }
}

/// A message is acknowledged before its effect is on the disk.
#[derive(Debug)]
pub(super) struct EarlyReceipt;

impl Layer for EarlyReceipt {
    fn early(&mut self, call: &Call, state: &State) -> Option<Answer> {
        let Call::Machine(Request::ApplyCourier { from, row, k, .. }) = call else {
            return None;
        };
        let last = state.courier_applied(*from, *row);
        (*k == last + 1).then_some(Answer::Reply(Reply::CourierTaken { last: *k }))
    }
}

/// A message is taken, and does nothing.
#[derive(Debug)]
pub(super) struct EmptyMessage;

impl Layer for EmptyMessage {
    fn call(&mut self, mut call: Call, _state: &State) -> Call {
        if let Call::Machine(Request::ApplyCourier { message, .. }) = &mut call {
            let Message::ForgetGroup { epoch, .. } = message;
            *epoch = millstream_batch::ids::GroupEpoch(0);
        }
        call
    }
}

/// A change of the catalogue is said to be known, and is not.
#[derive(Debug, Default)]
pub(super) struct UntoldChange {
    changes: u64,
}

impl Layer for UntoldChange {
    fn call(&mut self, call: Call, _state: &State) -> Call {
        if let Call::Machine(Request::ApplyTopic { .. }) = &call {
            self.changes += 1;
            if self.changes.is_multiple_of(5) {
                return Call::Machine(Request::ListTopics);
            }
        }
        call
    }
}
