//! What happened in a run, as an outsider with a stopwatch would write it down: what was asked, what
//! was promised, what was seen. The checkers hold it against what is found on disk.
//!
//! An answer counts from the moment the core gives it: from then on somebody may rely on it. A call
//! without an answer may have happened or not.

use std::collections::BTreeMap;

use millstream_batch::ids::{GroupEpoch, MemberId, Partition, TopicId};
use millstream_machine::request::{Reply, Request};
use millstream_machine::topic::TopicMeta;
use millstream_shard::call::{Answer, Call, Error, Fetch};

use crate::payload::Payload;

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The checker.
    pub promise: &'static str,
    pub what: String,
}

/// The part of a call that the history needs when its answer comes.
#[derive(Clone, Debug)]
pub enum Asked {
    Produce {
        partition: Partition,
        payload: Payload,
    },
    Fetch(Fetch),
    Commit {
        group: String,
        partition: Partition,
        member: MemberId,
        epoch: GroupEpoch,
        offset: u64,
        at: u64,
    },
    Claim {
        group: String,
        partition: Partition,
        epoch: GroupEpoch,
    },
    Other(&'static str),
}

#[derive(Debug, Default)]
pub struct History {
    pub topics: BTreeMap<TopicId, TopicHistory>,
    pub partitions: BTreeMap<Partition, PartitionHistory>,
    pub commits: BTreeMap<(String, Partition), CommitHistory>,
    pub violations: Vec<Violation>,
    /// Bits flipped at rest.
    pub flips: u64,
    /// Writes and syncs that were made to fail: what they left half written may show as damage.
    pub io_faults: u64,
    /// The shard said that it is read-only because of damage.
    pub read_only: bool,
    /// Answers given so far: a clock of events.
    pub moment: u64,
    pub counts: Counts,
}

/// How much a run covered. For the summary, and for asserting that runs are not idle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub acked: u64,
    pub duplicates: u64,
    pub refused: u64,
    pub read: u64,
    pub commits: u64,
    pub claims: u64,
    pub crashes: u64,
    pub kills: u64,
    pub failures: u64,
    pub full: u64,
    pub snapshots: u64,
    pub flips: u64,
    /// Fetches answered with damage.
    pub damaged: u64,
    /// Shards found read-only at a start.
    pub read_only: u64,
    /// WAL files that became spares.
    pub recycled: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.acked += other.acked;
        self.duplicates += other.duplicates;
        self.refused += other.refused;
        self.read += other.read;
        self.commits += other.commits;
        self.claims += other.claims;
        self.crashes += other.crashes;
        self.kills += other.kills;
        self.failures += other.failures;
        self.full += other.full;
        self.snapshots += other.snapshots;
        self.flips += other.flips;
        self.damaged += other.damaged;
        self.read_only += other.read_only;
        self.recycled += other.recycled;
    }
}

#[derive(Debug, Default)]
pub struct TopicHistory {
    pub name: String,
    /// Partitions it certainly has.
    pub partitions: u32,
    /// Somebody asked to delete it: it may be gone.
    pub deletion_asked: bool,
    /// Retention may have raised starts.
    pub expires: bool,
}

#[derive(Debug, Default)]
pub struct PartitionHistory {
    pub acked: Vec<Acked>,
    /// What readers saw, by base offset.
    pub seen: BTreeMap<u64, Seen>,
    /// The highest start that anybody asked for.
    pub start_asked: u64,
    /// Highest start that was told.
    pub start_told: u64,
    /// Offset ranges reported as damaged, inclusive.
    pub damaged: Vec<(u64, u64)>,
}

#[derive(Clone, Copy, Debug)]
pub struct Acked {
    pub payload: Payload,
    /// `None`: nothing was kept, or the offset is no longer remembered.
    pub base: Option<u64>,
    pub duplicate: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub last: u64,
    pub payload: Payload,
}

#[derive(Debug, Default)]
pub struct CommitHistory {
    /// The commit acknowledged last, in the order of the shard's answers.
    pub acked: Option<u64>,
    /// Commits after it without an answer: any of them may be what holds.
    pub maybe: Vec<u64>,
    /// Epochs of claims acknowledged, and when.
    pub claims: Vec<(GroupEpoch, u64)>,
}

impl Asked {
    /// What to remember of a call, and what its mere arrival makes possible.
    pub fn arrived(call: &Call, history: &mut History) -> Self {
        match call {
            Call::Produce { request, raw } => {
                let payload = Payload::decode(&raw[0]).expect("producers send payloads");
                return Self::Produce {
                    partition: request.partition,
                    payload,
                };
            }
            Call::Fetch(fetch) => return Self::Fetch(*fetch),
            Call::Machine(request) => match request {
                Request::TrimPartition { partition, start } => {
                    let known = history.partitions.entry(*partition).or_default();
                    known.start_asked = known.start_asked.max(start.0);
                }
                Request::DeleteTopic { name } => {
                    history.named(name, |topic| topic.deletion_asked = true);
                }
                Request::ConfigureTopic { name, .. } => {
                    history.named(name, |topic| topic.expires = true);
                }
                Request::Commit(commit) => {
                    return Self::Commit {
                        group: commit.group.clone(),
                        partition: commit.partition,
                        member: commit.member,
                        epoch: commit.epoch,
                        offset: commit.offset.0,
                        at: history.moment,
                    };
                }
                Request::ClaimPartition {
                    group,
                    partition,
                    epoch,
                    ..
                } => {
                    return Self::Claim {
                        group: group.clone(),
                        partition: *partition,
                        epoch: *epoch,
                    };
                }
                _ => {}
            },
            _ => {}
        }
        Self::Other("request")
    }
}

impl History {
    pub fn violation(&mut self, promise: &'static str, what: String) {
        if self.violations.len() < 20 {
            self.violations.push(Violation { promise, what });
        }
    }

    /// The core answered.
    pub fn answered(&mut self, asked: &Asked, answer: &Answer) {
        self.moment += 1;
        match (asked, answer) {
            (Asked::Produce { partition, payload }, Answer::Reply(Reply::Produced(produced))) => {
                let acked = Acked {
                    payload: *payload,
                    base: produced.base_offset.map(|o| o.0),
                    duplicate: produced.duplicate,
                };
                self.partitions
                    .entry(*partition)
                    .or_default()
                    .acked
                    .push(acked);
                self.counts.acked += 1;
                self.counts.duplicates += u64::from(produced.duplicate);
            }
            (Asked::Fetch(fetch), Answer::Fetched(fetched)) => {
                let known = self.partitions.entry(fetch.partition).or_default();
                known.start_told = known.start_told.max(fetched.start.0);
                self.counts.read += fetched.batches.len() as u64;
            }
            (Asked::Fetch(fetch), Answer::Error(Error::Damaged { from, to })) => {
                self.counts.damaged += 1;
                self.partitions
                    .entry(fetch.partition)
                    .or_default()
                    .damaged
                    .push((from.0, to.0));
            }
            (
                Asked::Commit {
                    group,
                    partition,
                    member,
                    epoch,
                    offset,
                    at,
                },
                Answer::Reply(_),
            ) => {
                self.counts.commits += 1;
                let known = self.commits.entry((group.clone(), *partition)).or_default();
                let fence = known
                    .claims
                    .iter()
                    .find(|(claimed, when)| claimed > epoch && when < at);
                if let Some((claimed, _)) = fence {
                    let what = format!(
                        "{partition}: group {group} commit {offset} of member {member} under epoch {epoch} was accepted \
                         after epoch {claimed} had claimed"
                    );
                    self.violation("commits_fenced", what);
                    return;
                }
                known.acked = Some(*offset);
                known.maybe.clear();
            }
            (
                Asked::Claim {
                    group,
                    partition,
                    epoch,
                },
                Answer::Reply(_),
            ) => {
                self.counts.claims += 1;
                let moment = self.moment;
                self.commits
                    .entry((group.clone(), *partition))
                    .or_default()
                    .claims
                    .push((*epoch, moment));
            }
            (_, Answer::Error(_)) => {
                self.counts.refused += 1;
                if let Answer::Error(Error::Unknown(_)) = answer {
                    self.unanswered(asked);
                }
            }
            _ => {}
        }
    }

    /// The call may have happened or not.
    pub fn unanswered(&mut self, asked: &Asked) {
        if let Asked::Commit {
            group,
            partition,
            offset,
            ..
        } = asked
        {
            self.commits
                .entry((group.clone(), *partition))
                .or_default()
                .maybe
                .push(*offset);
        }
    }

    /// The topic exists: its creation, or a later look, was answered.
    pub fn topic_is(&mut self, meta: &TopicMeta) {
        let topic = self.topics.entry(meta.id).or_default();
        topic.name.clone_from(&meta.name);
        topic.partitions = topic.partitions.max(meta.partitions);
        topic.expires |=
            meta.config.retention_bytes.is_some() || meta.config.retention_ms.is_some();
    }

    /// Partitions that can be worked with.
    #[must_use]
    pub fn live_partitions(&self) -> Vec<Partition> {
        let live = self
            .topics
            .iter()
            .filter(|(_, topic)| !topic.deletion_asked);
        live.flat_map(|(id, topic)| {
            (0..topic.partitions).map(|index| Partition { topic: *id, index })
        })
        .collect()
    }

    /// Whether all records of this partition may be gone, and rightly so.
    #[must_use]
    pub fn may_be_gone(&self, partition: Partition) -> bool {
        self.topics
            .get(&partition.topic)
            .is_none_or(|topic| topic.deletion_asked)
    }

    /// One past the highest offset known to be taken.
    #[must_use]
    pub fn end_known(&self, partition: Partition) -> u64 {
        let Some(known) = self.partitions.get(&partition) else {
            return 0;
        };
        let acked = known
            .acked
            .iter()
            .filter_map(|a| Some(a.base? + u64::from(a.payload.kept)))
            .max();
        let seen = known.seen.values().next_back().map(|seen| seen.last + 1);
        acked.max(seen).unwrap_or(0)
    }

    fn named(&mut self, name: &str, change: impl Fn(&mut TopicHistory)) {
        self.topics
            .values_mut()
            .filter(|topic| topic.name == name)
            .for_each(change);
    }
}

impl PartitionHistory {
    /// Whether this offset was reported as damaged.
    #[must_use]
    pub fn is_damaged(&self, offset: u64) -> bool {
        self.damaged
            .iter()
            .any(|(from, to)| (*from..=*to).contains(&offset))
    }
}
