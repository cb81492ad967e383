//! A member of a consumer group: joins, claims, commits, lets go; and sometimes sleeps so long that it
//! comes back as a zombie.

use std::collections::BTreeMap;

use millstream_batch::ids::{GroupEpoch, MemberId, Offset, Partition};
use millstream_machine::request::{Assignment, Commit, Refusal, Reply, Request};
use millstream_shard::call::{Answer, Call, Error, Seen};

use crate::clients::{Client, Scene};

#[derive(Clone, Debug)]
enum Step {
    Join,
    Watch,
    Claim(Partition, GroupEpoch),
    Commit(Partition, u64),
    Other,
}

#[derive(Debug)]
pub struct Member {
    id: u64,
    group: String,
    member: MemberId,
    /// The epoch of the join that the rest rests on.
    joined: GroupEpoch,
    seen: Seen,
    /// Claimed: the epoch and the next offset to commit.
    holds: BTreeMap<Partition, (GroupEpoch, u64)>,
    revoking: Vec<Partition>,
    claiming: Vec<(Partition, GroupEpoch)>,
    /// Refused where they are kept: the home is told.
    overruled: Vec<(Partition, GroupEpoch)>,
    flying: BTreeMap<u64, Step>,
    tag: u64,
    pace_us: u64,
}

impl Member {
    #[must_use]
    pub fn new(id: u64, group: &str, pace_us: u64) -> Self {
        Self {
            id,
            group: group.to_owned(),
            member: MemberId(0),
            joined: GroupEpoch(0),
            seen: Seen::default(),
            holds: BTreeMap::new(),
            revoking: Vec::new(),
            claiming: Vec::new(),
            overruled: Vec::new(),
            flying: BTreeMap::new(),
            tag: 0,
            pace_us,
        }
    }

    fn send(&mut self, scene: &mut Scene<'_>, step: Step, call: Call) {
        self.tag += 1;
        self.flying.insert(self.tag, step);
        scene.send(self.tag, call);
    }

    fn out_of_group(&mut self) {
        self.member = MemberId(0);
        self.seen = Seen::default();
        self.holds.clear();
        self.overruled.clear();
        self.claiming.clear();
        self.revoking.clear();
    }

    fn assigned(&mut self, assignment: Assignment) {
        self.seen = Seen::of(&assignment);
        self.joined = assignment.joined;
        let owned = assignment.owned.iter();
        let owned: Vec<_> = owned
            .map(|(partition, since)| (*partition, assignment.under(*since)))
            .collect();
        self.holds.retain(|partition, (epoch, _)| {
            owned.contains(&(*partition, *epoch)) || assignment.revoking.contains(partition)
        });
        self.claiming = owned
            .into_iter()
            .filter(|(partition, _)| !self.holds.contains_key(partition))
            .collect();
        self.revoking = assignment.revoking;
    }

    fn act(&mut self, scene: &mut Scene<'_>) {
        let (group, member, joined) = (self.group.clone(), self.member, self.joined);
        if member.0 == 0 || scene.dice.one_in(100) {
            let topics: Vec<_> = scene
                .history
                .topics
                .iter()
                .filter(|(_, topic)| !topic.deletion_asked)
                .map(|(id, _)| *id)
                .take(3)
                .collect();
            if !topics.is_empty() {
                let request = Request::JoinGroup {
                    group,
                    member,
                    again: None,
                    client: format!("member-{}", self.id),
                    topics,
                    session_timeout_ms: 200,
                };
                self.send(scene, Step::Join, Call::Machine(request));
            }
            return;
        }
        if !self.overruled.is_empty() {
            let fenced = std::mem::take(&mut self.overruled);
            let request = Request::ReassignPartitions { group, fenced };
            return self.send(scene, Step::Other, Call::Machine(request));
        }
        if !self.revoking.is_empty() {
            let partitions = std::mem::take(&mut self.revoking);
            for partition in &partitions {
                self.holds.remove(partition);
            }
            let request = Request::ReleasePartitions {
                group,
                member,
                joined,
                partitions,
            };
            return self.send(scene, Step::Other, Call::Machine(request));
        }
        if let Some((partition, epoch)) = self.claiming.pop() {
            let request = Request::ClaimPartition {
                group,
                partition,
                member,
                epoch,
            };
            return self.send(scene, Step::Claim(partition, epoch), Call::Machine(request));
        }
        let holds: Vec<_> = self
            .holds
            .iter()
            .map(|(partition, held)| (*partition, *held))
            .collect();
        match scene.dice.range(0, 10) {
            0..=6 => {
                let Some((partition, (epoch, next))) = scene.dice.pick(&holds).copied() else {
                    return;
                };
                let end = scene.history.end_known(partition);
                if end <= next {
                    return;
                }
                let offset = scene.dice.range(next, end) + 1;
                let leader_epoch = scene.history.epoch_before(partition, offset);
                let commit = Commit {
                    group,
                    partition,
                    member,
                    epoch,
                    offset: Offset(offset),
                    leader_epoch,
                    metadata: format!("m{}", self.id),
                };
                self.send(
                    scene,
                    Step::Commit(partition, offset),
                    Call::Machine(Request::Commit(commit)),
                );
            }
            7 if scene.dice.one_in(20) => {
                self.out_of_group();
                self.send(
                    scene,
                    Step::Other,
                    Call::Machine(Request::LeaveGroup {
                        group,
                        member,
                        joined,
                    }),
                );
            }
            _ => {
                let wait_ms = scene.dice.skewed(1, 50) as u32;
                let call = Call::WatchAssignment {
                    group,
                    member,
                    joined,
                    seen: self.seen,
                    wait_ms,
                };
                self.send(scene, Step::Watch, call);
            }
        }
    }
}

impl Client for Member {
    fn wake(&mut self, scene: &mut Scene<'_>) {
        if scene.closing {
            return;
        }
        if self.flying.is_empty() {
            self.act(scene);
        }
        let pace = if scene.dice.one_in(60) {
            1_000_000
        } else {
            scene.dice.skewed(100, self.pace_us)
        };
        scene.wake_in(pace);
    }

    fn answer(&mut self, _scene: &mut Scene<'_>, tag: u64, answer: Answer) {
        let Some(step) = self.flying.remove(&tag) else {
            return;
        };
        match (step, answer) {
            (
                _,
                Answer::Error(Error::Refused(
                    Refusal::UnknownMember { .. }
                    | Refusal::MemberReplaced { .. }
                    | Refusal::UnknownGroup(_),
                )),
            ) => {
                self.out_of_group();
            }
            (Step::Join, Answer::Reply(Reply::Joined { member, assignment })) => {
                self.out_of_group();
                self.member = member;
                self.assigned(assignment);
            }
            (Step::Watch, Answer::Assignment(assignment)) => self.assigned(assignment),
            (Step::Claim(partition, epoch), Answer::Reply(Reply::Claimed { committed })) => {
                self.holds
                    .insert(partition, (epoch, committed.map_or(0, |offset| offset.0)));
            }
            (Step::Claim(partition, epoch), Answer::Error(error))
                if !matches!(error, Error::Refused(_)) =>
            {
                self.claiming.push((partition, epoch));
            }
            (Step::Commit(partition, offset), Answer::Reply(_)) => {
                if let Some((_, next)) = self.holds.get_mut(&partition) {
                    *next = offset;
                }
            }
            (Step::Commit(partition, _), Answer::Error(Error::Refused(_))) => {
                if let Some((epoch, _)) = self.holds.remove(&partition) {
                    self.overruled.push((partition, epoch));
                }
            }
            _ => {}
        }
    }

    fn lost(&mut self, _scene: &mut Scene<'_>, tag: u64) {
        match self.flying.remove(&tag) {
            Some(Step::Claim(partition, epoch)) => self.claiming.push((partition, epoch)),
            Some(Step::Commit(partition, _)) => {
                // It may have been taken: ask again where to go on.
                if let Some((epoch, _)) = self.holds.remove(&partition) {
                    self.claiming.push((partition, epoch));
                }
            }
            _ => {}
        }
    }

    fn is_idle(&self) -> bool {
        self.flying.is_empty()
    }
}
