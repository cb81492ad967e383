//! What happened in a run, as an outsider with a stopwatch would write it down: what was asked, what
//! was promised, what was seen. The checkers hold it against what is found on disk.
//!
//! An answer counts from the moment the core gives it: from then on somebody may rely on it. A call
//! without an answer may have happened or not.

use std::collections::{BTreeMap, BTreeSet};

use millstream_batch::ids::{
    GroupEpoch, MemberId, Offset, Partition, ProducerEpoch, ProducerId, Term, TopicId,
};
use millstream_machine::request::{Refusal, Reply, Request};
use millstream_machine::topics::TopicMeta;
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
        leader_epoch: Option<Term>,
        at: u64,
    },
    Claim {
        group: String,
        partition: Partition,
        epoch: GroupEpoch,
    },
    /// An operator's, whoever holds the partition.
    Reset {
        group: String,
        places: Vec<(Partition, Offset)>,
    },
    Other(&'static str),
}

#[derive(Debug, Default)]
pub struct History {
    pub topics: BTreeMap<TopicId, TopicHistory>,
    pub partitions: BTreeMap<Partition, PartitionHistory>,
    pub commits: BTreeMap<(String, Partition), CommitHistory>,
    /// Groups of which a deletion was asked, with the epoch that they had: what was done under no higher one
    /// may be gone at any time from then on.
    pub deleted: BTreeMap<String, GroupEpoch>,
    /// Groups of which every shard was said to have forgotten all up to an epoch.
    pub forgotten: BTreeMap<String, GroupEpoch>,
    pub violations: Vec<Violation>,
    /// Bits flipped at rest.
    pub flips: u64,
    /// The shard said that it is read-only because of damage.
    pub read_only: bool,
    /// Producer ids and epochs that were told.
    pub identities: BTreeSet<(ProducerId, ProducerEpoch)>,
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
    /// Batches that were acknowledged or read and rightly lost.
    pub lost: u64,
    /// Readers and committers who were told that what they read is lost.
    pub truncated: u64,
    /// Messages sent from shard to shard, each time.
    pub messages: u64,
    /// Groups deleted.
    pub deletions: u64,
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
        self.messages += other.messages;
        self.deletions += other.deletions;
        self.recycled += other.recycled;
        self.lost += other.lost;
        self.truncated += other.truncated;
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
    /// What was rightly lost, and is no longer in `acked` and `seen`.
    pub lost: Vec<Lost>,
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
    /// The leader epoch that it was served with.
    pub epoch: Term,
}

/// A batch that was acknowledged or read under `flush = interval`, and that an unclean stop took
/// before it was synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    pub base: u64,
    pub last: u64,
    pub epoch: Term,
}

#[derive(Debug, Default)]
pub struct CommitHistory {
    /// The commit acknowledged last, in the order of the shard's answers.
    pub acked: Option<u64>,
    /// The epoch it was made under.
    pub epoch: GroupEpoch,
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
                        leader_epoch: commit.leader_epoch,
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
                Request::ResetOffsets { group, places, .. } => {
                    return Self::Reset {
                        group: group.clone(),
                        places: places.clone(),
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
                self.went_on(fetch.partition, fetch.offset.0, fetch.leader_epoch);
            }
            (_, Answer::Error(Error::Refused(refusal @ Refusal::OffsetTruncated { .. }))) => {
                self.counts.truncated += 1;
                self.truncated(asked, refusal);
            }
            (_, Answer::Reply(Reply::Producer { pid, epoch })) => self.identified(*pid, *epoch),
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
                    leader_epoch,
                    at,
                },
                Answer::Reply(_),
            ) => {
                self.counts.commits += 1;
                self.went_on(*partition, *offset, *leader_epoch);
                let deleted = self.deleted.get(group).copied().unwrap_or_default();
                let known = self.commits.entry((group.clone(), *partition)).or_default();
                // Claims up to the epoch of a deletion may be forgotten.
                let claims = known.claims.iter();
                let mut claims = claims.filter(|(claimed, _)| *claimed > deleted);
                let fence = claims.find(|(claimed, when)| claimed > epoch && when < at);
                if let Some((claimed, _)) = fence {
                    let what = format!(
                        "{partition}: group {group} commit {offset} of member {member} under epoch {epoch} was accepted \
                         after epoch {claimed} had claimed"
                    );
                    self.violation("commits_fenced", what);
                    return;
                }
                known.acked = Some(*offset);
                known.epoch = *epoch;
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
            (Asked::Reset { group, places }, Answer::Reply(Reply::Reset { fences })) => {
                let moment = self.moment;
                for ((partition, offset), fence) in places.iter().zip(fences) {
                    let known = self.commits.entry((group.clone(), *partition)).or_default();
                    known.acked = Some(offset.0);
                    known.epoch = *fence;
                    known.maybe.clear();
                    // Whoever is above the fence joined, or was given the partition, since.
                    known.claims.push((GroupEpoch(fence.0 + 1), moment));
                }
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

    /// Somebody who read up to `offset`, the last record under `epoch`, was let go on from there.
    fn went_on(&mut self, partition: Partition, offset: u64, epoch: Option<Term>) {
        if let Some(lost) = self.cut_below(partition, offset, epoch) {
            let what = format!(
                "{partition}: went on at {offset} after epoch {epoch:?}, of which {lost:?} was lost, and was not told"
            );
            self.violation("truncation_told", what);
        }
    }

    /// An identity was given out.
    fn identified(&mut self, pid: ProducerId, epoch: ProducerEpoch) {
        if !self.identities.insert((pid, epoch)) {
            let what = format!("producer {pid} epoch {epoch} was given to two");
            self.violation("told_is_kept", what);
        }
    }

    /// Somebody was told that what it read is lost from the safe offset on.
    fn truncated(&mut self, asked: &Asked, refusal: &Refusal) {
        let (
            Asked::Fetch(Fetch { partition, .. }) | Asked::Commit { partition, .. },
            Refusal::OffsetTruncated {
                offset,
                leader_epoch,
                safe,
            },
        ) = (asked, refusal)
        else {
            return;
        };
        if self.read_only {
            return; // a commit is refused either way
        }
        let cut = self.cut_below(*partition, offset.0, Some(*leader_epoch));
        let topic = self.topics.get(&partition.topic);
        let expires = topic.is_some_and(|topic| topic.expires);
        let known = self.partitions.entry(*partition).or_default();
        let trimmed = |cut: &Lost| safe.0 > cut.base && (expires || known.trims(*safe));
        let fits = cut.is_some_and(|cut| safe.0 == cut.base || trimmed(&cut));
        if !fits {
            let what =
                format!("{partition}: {refusal}, and what was lost of it begins with {cut:?}");
            self.violation("truncation_told", what);
        }
    }

    /// The first batch that was lost of what somebody read up to `offset`, the last record under `epoch`.
    fn cut_below(&self, partition: Partition, offset: u64, epoch: Option<Term>) -> Option<Lost> {
        let lost = &self.partitions.get(&partition)?.lost;
        let mut cut = lost
            .iter()
            .filter(|lost| Some(lost.epoch) == epoch && lost.base < offset);
        let first = cut.clone().map(|lost| lost.base).min()?;
        cut.find(|lost| lost.base == first).copied()
    }

    /// A batch was served. Says what does not fit with what was seen before.
    pub fn saw(&mut self, partition: Partition, base: u64, seen: Seen) -> Option<String> {
        let known = self.partitions.entry(partition).or_default();
        if let Some(lost) = known.lost_over(base, seen) {
            let what = format!(
                "{partition} offset {base}: served under epoch {}, though {lost:?} was told",
                seen.epoch
            );
            self.violation("epochs_rise", what);
        }
        let known = self.partitions.entry(partition).or_default();
        let before = known
            .seen
            .insert(base, seen)
            .filter(|before| *before != seen)?;
        Some(format!(
            "{partition} offset {base}: {before:?} was seen, then {seen:?}"
        ))
    }

    /// A batch that was not synced is gone; the shard goes on in this term.
    pub fn lose(&mut self, partition: Partition, lost: Lost, term: Term) {
        let known = self.partitions.entry(partition).or_default();
        let told = known.acked.len();
        known.acked.retain(|acked| acked.base != Some(lost.base));
        let was_acked = known.acked.len() < told;
        let was_seen = known.seen.remove(&lost.base).is_some();
        if was_acked || was_seen {
            known.lost.push(lost);
            self.counts.lost += 1;
            if term <= lost.epoch {
                let what = format!("{partition}: {lost:?} is lost, and the term is {term}");
                self.violation("epochs_rise", what);
            }
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
            let key = (group.clone(), *partition);
            self.commits.entry(key).or_default().maybe.push(*offset);
        }
        if let Asked::Reset { group, places } = asked {
            for (partition, offset) in places {
                let key = (group.clone(), *partition);
                self.commits.entry(key).or_default().maybe.push(offset.0);
            }
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

    /// The group is to be deleted at its home, where it has this epoch.
    pub fn deleting(&mut self, group: &str, epoch: GroupEpoch) {
        self.counts.deletions += 1;
        let known = self.deleted.entry(group.to_owned()).or_default();
        *known = epoch.max(*known);
    }

    /// Every shard is said to have forgotten the group as it was when this deletion was asked.
    pub fn is_forgotten(&mut self, group: &str, epoch: GroupEpoch) {
        let known = self.forgotten.entry(group.to_owned()).or_default();
        *known = epoch.max(*known);
    }

    /// Whether what was done under this epoch may be forgotten with the group.
    #[must_use]
    pub fn is_deleted(&self, group: &str, epoch: GroupEpoch) -> bool {
        self.deleted
            .get(group)
            .is_some_and(|deleted| epoch <= *deleted)
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

    /// The leader epoch of the record before this offset, if anybody read it.
    #[must_use]
    pub fn epoch_before(&self, partition: Partition, offset: u64) -> Option<Term> {
        let seen = &self.partitions.get(&partition)?.seen;
        let (_, seen) = seen.range(..offset).next_back()?;
        (seen.last + 1 >= offset).then_some(seen.epoch)
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
    /// A lost batch whose offsets were given again to this one, and not under a higher epoch.
    #[must_use]
    pub fn lost_over(&self, base: u64, seen: Seen) -> Option<Lost> {
        let same = |lost: &&Lost| lost.base <= seen.last && base <= lost.last;
        let mut over = self.lost.iter().filter(same);
        over.find(|lost| lost.epoch >= seen.epoch).copied()
    }

    /// Whether the partition's start may be there.
    fn trims(&self, start: Offset) -> bool {
        start.0 <= self.start_asked || start.0 == self.start_told
    }

    /// Whether this offset was reported as damaged.
    #[must_use]
    pub fn is_damaged(&self, offset: u64) -> bool {
        self.damaged
            .iter()
            .any(|(from, to)| (*from..=*to).contains(&offset))
    }
}
