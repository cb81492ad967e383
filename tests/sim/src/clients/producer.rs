//! A producer: with identity (idempotent, several batches in flight, resends) or without.

use std::collections::{BTreeMap, VecDeque};

use millstream_batch::ids::{Partition, ProducerEpoch, ProducerId, Sequence, TimestampMs};
use millstream_machine::request::{Produce, Refusal, Reply, Request};
use millstream_shard::call::{Answer, Call, Error};

use crate::clients::{Client, Scene};
use crate::payload::Payload;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Identity {
    /// Without: batches may appear twice.
    Never,
    None,
    Asking,
    Have,
}

#[derive(Debug)]
struct Batch {
    payload: Payload,
    len: usize,
    flying: bool,
    tries: u32,
}

/// The batches of one partition that are not acknowledged, in order.
#[derive(Debug, Default)]
struct Line {
    next: u64,
    batches: VecDeque<Batch>,
}

#[derive(Debug)]
pub struct Producer {
    id: u64,
    identity: Identity,
    pid: u64,
    epoch: u32,
    /// Counts identities: answers to batches of an older one are late.
    life: u64,
    lines: BTreeMap<Partition, Line>,
    sent: BTreeMap<u64, Option<(u64, Partition, u32)>>,
    tag: u64,
    nonce: u32,
    /// Batches in flight of one partition.
    in_flight_max: usize,
    bytes_max: u64,
    pace_us: u64,
}

impl Producer {
    #[must_use]
    pub fn new(
        id: u64,
        idempotent: bool,
        in_flight_max: usize,
        bytes_max: u64,
        pace_us: u64,
    ) -> Self {
        Self {
            id,
            identity: if idempotent {
                Identity::None
            } else {
                Identity::Never
            },
            pid: 0,
            epoch: 0,
            life: 0,
            lines: BTreeMap::new(),
            sent: BTreeMap::new(),
            tag: 0,
            nonce: 0,
            in_flight_max,
            bytes_max,
            pace_us,
        }
    }

    fn ask_identity(&mut self, scene: &mut Scene<'_>) {
        self.identity = Identity::Asking;
        self.tag += 1;
        self.sent.insert(self.tag, None);
        scene.send(
            self.tag,
            Call::Machine(Request::InitProducer {
                pid: ProducerId(self.pid),
            }),
        );
    }

    /// Whatever was under way belongs to an identity that is no more.
    fn new_life(&mut self, pid: u64) {
        self.pid = pid;
        self.life += 1;
        self.lines.clear();
        self.identity = Identity::None;
    }

    fn make(&mut self, scene: &mut Scene<'_>) {
        let partitions = scene.history.live_partitions();
        let Some(partition) = scene.dice.pick(&partitions).copied() else {
            return;
        };
        let line = self.lines.entry(partition).or_default();
        if line.batches.len() >= self.in_flight_max {
            return;
        }
        let sent = scene.dice.skewed(1, 20) as u32;
        // As if a filter had dropped some: what is kept follows from the batch, so a resend keeps the same.
        let kept = match scene.dice.range(0, 10) {
            0 => 0,
            1 => scene.dice.range(0, u64::from(sent)) as u32 + 1,
            _ => sent,
        };
        self.nonce += 1;
        let payload = Payload {
            client: self.id,
            pid: self.pid,
            epoch: self.epoch,
            sent,
            sequence: line.next,
            kept: kept.min(sent),
            nonce: self.nonce,
        };
        line.next += u64::from(sent);
        let len = scene.dice.skewed(48, self.bytes_max) as usize;
        line.batches.push_back(Batch {
            payload,
            len,
            flying: false,
            tries: 0,
        });
    }

    fn fly(&mut self, scene: &mut Scene<'_>) {
        for (partition, line) in &mut self.lines {
            for batch in line.batches.iter_mut().filter(|batch| !batch.flying) {
                batch.flying = true;
                batch.tries += 1;
                self.tag += 1;
                self.sent
                    .insert(self.tag, Some((self.life, *partition, batch.payload.nonce)));
                let raw = batch.payload.encode(batch.len);
                let request = Produce {
                    partition: *partition,
                    pid: ProducerId(self.pid),
                    epoch: ProducerEpoch(self.epoch),
                    sequence: Sequence(batch.payload.sequence),
                    sent: batch.payload.sent,
                    kept: batch.payload.kept,
                    bytes: raw.len() as u32,
                    max_timestamp: TimestampMs(scene.now_us as i64 / 1_000),
                };
                scene.send(
                    self.tag,
                    Call::Produce {
                        request,
                        raw: vec![raw].into(),
                    },
                );
            }
        }
    }

    fn batch_answered(
        &mut self,
        scene: &mut Scene<'_>,
        partition: Partition,
        nonce: u32,
        answer: &Answer,
    ) {
        let Some(line) = self.lines.get_mut(&partition) else {
            return;
        };
        let Some(at) = line
            .batches
            .iter()
            .position(|batch| batch.payload.nonce == nonce)
        else {
            return;
        };
        match answer {
            Answer::Reply(Reply::Produced(_)) => {
                line.batches.remove(at);
            }
            Answer::Error(Error::Refused(Refusal::UnknownPartition(_))) => {
                self.lines.remove(&partition);
            }
            Answer::Error(Error::Refused(
                Refusal::ProducerFenced { .. }
                | Refusal::ProducerExpired { .. }
                | Refusal::UnknownProducer { .. },
            )) => self.new_life(0),
            Answer::Error(Error::Refused(Refusal::SequenceGap { .. })) => {
                // One before it was lost on the way. Should it be the first in line, one that was
                // acknowledged is lost: the audit will tell.
                line.batches[at].flying = false;
                if at == 0 && line.batches[at].tries > 20 {
                    self.new_life(0);
                }
            }
            Answer::Error(Error::Refused(refusal)) => {
                scene.history.violation(
                    "no_acked_loss",
                    format!("{partition}: a batch was refused: {refusal}"),
                );
                self.new_life(0);
            }
            _ => line.batches[at].flying = false,
        }
    }
}

impl Client for Producer {
    fn wake(&mut self, scene: &mut Scene<'_>) {
        match self.identity {
            Identity::None => self.ask_identity(scene),
            Identity::Asking => {}
            Identity::Have if !scene.closing && scene.dice.one_in(300) => {
                self.new_life(self.pid); // a restart under the same name: the epoch rises
                self.ask_identity(scene);
            }
            Identity::Have | Identity::Never => {
                if !scene.closing {
                    for _ in 0..scene.dice.range(0, 4) {
                        self.make(scene);
                    }
                }
                self.fly(scene);
            }
        }
        if !scene.closing || !self.is_idle() {
            // At the end there is no hurry: space that is full is looked for once a second.
            let pace = if scene.closing {
                20_000
            } else {
                scene.dice.skewed(1_000, self.pace_us)
            };
            scene.wake_in(pace);
        }
    }

    fn answer(&mut self, scene: &mut Scene<'_>, tag: u64, answer: Answer) {
        match self.sent.remove(&tag) {
            None => {} // the second answer to a batch that arrived twice
            Some(Some((life, partition, nonce))) if life == self.life => {
                self.batch_answered(scene, partition, nonce, &answer);
            }
            Some(Some(_)) => {} // to a batch of an older life
            Some(None) => match answer {
                Answer::Reply(Reply::Producer { pid, epoch }) => {
                    self.new_life(pid.0);
                    self.epoch = epoch.0;
                    self.identity = Identity::Have;
                }
                Answer::Error(Error::Refused(_)) => self.new_life(0),
                _ => self.identity = Identity::None,
            },
        }
    }

    fn lost(&mut self, _scene: &mut Scene<'_>, tag: u64) {
        match self.sent.remove(&tag) {
            None => {}
            Some(None) => self.identity = Identity::None,
            Some(Some((life, partition, nonce))) => {
                if life == self.life
                    && let Some(line) = self.lines.get_mut(&partition)
                    && let Some(at) = line
                        .batches
                        .iter()
                        .position(|batch| batch.payload.nonce == nonce)
                {
                    if self.identity == Identity::Never {
                        line.batches.remove(at); // sending again might store it twice
                    } else {
                        line.batches[at].flying = false;
                    }
                }
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.sent.is_empty() && self.lines.values().all(|line| line.batches.is_empty())
    }
}
