//! A change of a group being decided: what was asked, and the assignment that follows from it, in one
//! fact. Absent on purpose: who should own what ([`super::assign`]).

use std::collections::{BTreeMap, BTreeSet};

use millstream_batch::ids::{GroupEpoch, MemberId, Partition, TimestampMs, TopicId};

use super::assign::{self, Owner};
use super::cell::{Group, Hold};
use crate::decide::Decision;
use crate::fact::Fact;
use crate::fact::archive::{GroupChanged, HoldRecord, MemberRecord, PartitionRecord};
use crate::request::Reply;
use crate::state::State;

/// A change being decided: what is asked, to which the assignment that follows is added.
pub(super) struct Change<'a> {
    state: &'a State,
    name: &'a str,
    time: TimestampMs,
    pub(super) before: Group,
    /// The epoch of this change.
    pub(super) epoch: GroupEpoch,
    pub(super) joined: Option<MemberRecord>,
    pub(super) left: BTreeSet<MemberId>,
    pub(super) released: BTreeSet<Partition>,
    /// Holds whose owner was overruled where the partition is kept: given out anew at once.
    pub(super) overruled: BTreeSet<Partition>,
}

impl<'a> Change<'a> {
    pub(super) fn new(state: &'a State, time: TimestampMs, name: &'a str) -> Self {
        let before = state.groups.get(name).cloned().unwrap_or_else(|| Group {
            epoch: state.group_floor,
            ..Group::default()
        });
        let epoch = GroupEpoch(before.epoch.0 + 1);
        Self {
            state,
            name,
            time,
            before,
            epoch,
            joined: None,
            left: BTreeSet::new(),
            released: BTreeSet::new(),
            overruled: BTreeSet::new(),
        }
    }

    /// Assigns anew and answers from the group as it will be.
    pub(super) fn decide(mut self, reply: impl FnOnce(&Group) -> Reply) -> Decision {
        let mut fact = GroupChanged {
            group: self.name.to_owned(),
            epoch: self.epoch.0,
            time_ms: self.time.0,
            left: self.left.iter().map(|member| member.0).collect(),
            joined: self.joined.take().into_iter().collect(),
            gone: Vec::new(),
            holds: Vec::new(),
        };
        self.assign(&mut fact);
        let mut after = self.before;
        after.change(&fact);
        let reply = reply(&after);
        Decision::of(Fact::GroupChanged(Box::new(fact)), reply)
    }

    fn assign(&self, fact: &mut GroupChanged) {
        let joined: Vec<(MemberId, Vec<TopicId>)> = fact
            .joined
            .iter()
            .map(|joined| {
                (
                    MemberId(joined.member),
                    joined.topics.iter().map(|topic| TopicId(*topic)).collect(),
                )
            })
            .collect();
        let stay = self
            .before
            .members
            .iter()
            .filter(|(id, _)| !self.left.contains(id));
        let mut subscriptions: BTreeMap<MemberId, &[TopicId]> =
            stay.map(|(id, member)| (*id, &*member.topics)).collect();
        subscriptions.extend(joined.iter().map(|(id, topics)| (*id, topics.as_slice())));

        let topics: BTreeSet<TopicId> = subscriptions
            .values()
            .flat_map(|topics| topics.iter().copied())
            .collect();
        let mut partitions: BTreeSet<Partition> = topics
            .into_iter()
            .flat_map(|topic| {
                (0..self.state.partition_count(topic)).map(move |index| Partition { topic, index })
            })
            .collect();
        let exists =
            |partition: &Partition| partition.index < self.state.partition_count(partition.topic);
        fact.gone = self
            .before
            .holds
            .keys()
            .filter(|held| !exists(held))
            .map(|held| (*held).into())
            .collect();
        partitions.extend(self.before.holds.keys().copied().filter(exists));

        let kept = |partition: &Partition, hold: &Hold| {
            subscriptions.contains_key(&hold.member) && !self.released.contains(partition)
        };
        let owners: BTreeMap<Partition, Owner> = self
            .before
            .holds
            .iter()
            .filter(|(partition, hold)| kept(partition, hold))
            .map(|(partition, hold)| {
                (
                    *partition,
                    Owner {
                        member: hold.member,
                        revoking: hold.revoking,
                    },
                )
            })
            .collect();
        let wanted = assign::plan(&subscriptions, &partitions, &owners);
        for partition in partitions {
            let wanted = wanted.get(&partition).copied().unwrap_or(MemberId(0));
            let before = self.before.holds.get(&partition);
            let hold = match (before, owners.get(&partition)) {
                // A living owner keeps it until it lets go.
                (Some(before), Some(owner)) if !self.overruled.contains(&partition) => Hold {
                    revoking: wanted != owner.member,
                    ..*before
                },
                // Nobody had it and nobody gets it.
                (Some(before), None) if before.member.0 == 0 && wanted.0 == 0 => *before,
                _ => Hold {
                    member: wanted,
                    epoch: self.epoch,
                    revoking: false,
                },
            };
            if before != Some(&hold) {
                fact.holds.push(record(partition, hold));
            }
        }
    }
}

fn record(partition: Partition, hold: Hold) -> HoldRecord {
    let PartitionRecord { topic, index } = partition.into();
    HoldRecord {
        topic,
        index,
        member: hold.member.0,
        epoch: hold.epoch.0,
        revoking: hold.revoking,
    }
}
