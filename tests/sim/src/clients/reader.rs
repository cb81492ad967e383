//! A reader of one partition after another, from anywhere: at the tail, waiting, or far behind.

use std::collections::BTreeMap;

use millstream_batch::ids::{Offset, Partition, Term, TimestampMs};
use millstream_machine::request::Refusal;
use millstream_shard::call::{Answer, Call, Error, Fetch, Position};

use crate::clients::{Client, Scene};

#[derive(Debug, Default)]
pub struct Reader {
    /// Where it is, and the leader epoch of the record before if it read that.
    next: BTreeMap<Partition, (u64, Option<Term>)>,
    flying: BTreeMap<u64, Option<Partition>>,
    tag: u64,
    pace_us: u64,
}

impl Reader {
    #[must_use]
    pub fn new(pace_us: u64) -> Self {
        Self {
            pace_us,
            ..Self::default()
        }
    }
}

impl Client for Reader {
    fn wake(&mut self, scene: &mut Scene<'_>) {
        if scene.closing {
            return;
        }
        let partitions = scene.history.live_partitions();
        if let Some(partition) = scene.dice.pick(&partitions).copied()
            && self.flying.len() < 4
        {
            self.tag += 1;
            let (next, epoch) = *self.next.entry(partition).or_insert((0, None));
            let call = match scene.dice.range(0, 20) {
                0 => Call::OffsetAt {
                    partition,
                    at: Position::Timestamp(TimestampMs(scene.now_us as i64 / 2_000)),
                },
                1 => Call::OffsetAt {
                    partition,
                    at: Position::End,
                },
                2 => Call::Status,
                _ => {
                    let (offset, leader_epoch) = if scene.dice.one_in(4) {
                        (scene.dice.range(0, next + 1), None)
                    } else {
                        (next, epoch)
                    };
                    let bytes_max = scene.dice.skewed(1, 30_000) as usize;
                    let wait_ms = if scene.dice.one_in(2) {
                        scene.dice.skewed(1, 200) as u32
                    } else {
                        0
                    };
                    Call::Fetch(Fetch {
                        partition,
                        offset: Offset(offset),
                        leader_epoch,
                        bytes_max,
                        wait_ms,
                    })
                }
            };
            let of = matches!(call, Call::Fetch(_)).then_some(partition);
            self.flying.insert(self.tag, of);
            scene.send(self.tag, call);
        }
        let pace = scene.dice.skewed(1_000, self.pace_us);
        scene.wake_in(pace);
    }

    fn answer(&mut self, scene: &mut Scene<'_>, tag: u64, answer: Answer) {
        let Some(Some(partition)) = self.flying.remove(&tag) else {
            return;
        };
        let next = self.next.entry(partition).or_default();
        match answer {
            Answer::Fetched(fetched) => {
                if let Some(last) = fetched.batches.last()
                    && last.last_offset.0 >= next.0
                {
                    *next = (last.last_offset.0 + 1, Some(Term(last.leader_epoch)));
                }
                if scene.dice.one_in(50) {
                    *next = (0, None);
                }
            }
            Answer::Error(Error::Refused(Refusal::OffsetTruncated { safe, .. })) => {
                *next = (safe.0, None);
            }
            Answer::Error(Error::OffsetOutOfRange { start, .. }) => *next = (start.0, None),
            Answer::Error(Error::Damaged { to, .. }) if to.0 >= next.0 => {
                *next = (to.0 + 1, None);
            }
            _ => {}
        }
    }

    fn lost(&mut self, _scene: &mut Scene<'_>, tag: u64) {
        self.flying.remove(&tag);
    }

    fn is_idle(&self) -> bool {
        self.flying.is_empty()
    }
}
