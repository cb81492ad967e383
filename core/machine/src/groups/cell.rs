//! A group's cell: its members, its holds, and what one fact does to them.

use std::collections::BTreeMap;

use millstream_batch::ids::{GroupEpoch, MemberId, Partition, TopicId};

use crate::fact::archive::GroupChanged;
use crate::request::{Assignment, Standing};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Group {
    /// Raised by every fact about the group.
    pub(crate) epoch: GroupEpoch,
    pub(crate) members: BTreeMap<MemberId, Member>,
    pub(crate) holds: BTreeMap<Partition, Hold>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) client: Box<str>,
    /// Sorted, each once.
    pub(crate) topics: Box<[TopicId]>,
    pub(crate) session_timeout_ms: u32,
    /// Group epoch at which it joined last: its incarnation. Whatever it holds is held under that at
    /// least, so that joining again fences the stream of before.
    pub(crate) joined: GroupEpoch,
    /// Group epoch of the last change to what it owns or must let go.
    pub(crate) version: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hold {
    /// 0: nobody.
    pub(crate) member: MemberId,
    /// Group epoch at which it came to this member.
    pub(crate) epoch: GroupEpoch,
    pub(crate) revoking: bool,
}

impl Group {
    /// The epoch under which a hold's owner claims and commits.
    pub(super) fn under(&self, hold: &Hold) -> GroupEpoch {
        let joined = self.members.get(&hold.member).map(|member| member.joined);
        hold.epoch.max(joined.unwrap_or_default())
    }

    pub(super) fn standing(&self, partition_count: impl Fn(TopicId) -> u32) -> Standing {
        let moves = self.holds.values().any(|hold| hold.revoking);
        match self.members.len() {
            0 => Standing::Empty,
            _ if moves || self.is_stale(partition_count) => Standing::Rebalancing,
            _ => Standing::Stable,
        }
    }

    /// Whether the topics have other partitions than when they were last assigned.
    pub(crate) fn is_stale(&self, partition_count: impl Fn(TopicId) -> u32) -> bool {
        let mut known: BTreeMap<TopicId, u32> = BTreeMap::new();
        for partition in self.holds.keys() {
            *known.entry(partition.topic).or_default() += 1;
        }
        let is_gone = |held: &Partition| held.index >= partition_count(held.topic);
        let is_new =
            |topic: &TopicId| known.get(topic).copied().unwrap_or(0) < partition_count(*topic);
        self.holds.keys().any(is_gone)
            || self
                .members
                .values()
                .flat_map(|member| member.topics.iter())
                .any(is_new)
    }

    pub(super) fn assignment(
        &self,
        id: MemberId,
        partition_count: impl Fn(TopicId) -> u32,
    ) -> Assignment {
        let member = &self.members[&id];
        let mut assignment = Assignment {
            version: member.version,
            joined: member.joined,
            moves: self.standing(partition_count) == Standing::Rebalancing,
            ..Assignment::default()
        };
        for (partition, hold) in self.holds.iter().filter(|(_, hold)| hold.member == id) {
            if hold.revoking {
                assignment.revoking.push(*partition);
            } else {
                assignment.owned.push((*partition, hold.epoch));
            }
        }
        assignment
    }

    fn touch(&mut self, member: MemberId, epoch: GroupEpoch) {
        if let Some(member) = self.members.get_mut(&member) {
            member.version = epoch.0;
        }
    }

    pub(super) fn change(&mut self, fact: &GroupChanged) {
        let epoch = GroupEpoch(fact.epoch);
        assert!(
            self.epoch < epoch,
            "group `{}`: every fact raises the epoch",
            fact.group
        );
        self.epoch = epoch;
        for member in &fact.left {
            self.members.remove(&MemberId(*member));
        }
        for joined in &fact.joined {
            let member = Member {
                client: joined.client.as_str().into(),
                topics: joined.topics.iter().map(|topic| TopicId(*topic)).collect(),
                session_timeout_ms: joined.session_timeout_ms,
                joined: epoch,
                version: epoch.0,
            };
            self.members.insert(MemberId(joined.member), member);
        }
        for gone in &fact.gone {
            if let Some(hold) = self.holds.remove(&Partition::from(gone)) {
                self.touch(hold.member, epoch);
            }
        }
        for record in &fact.holds {
            let partition = Partition {
                topic: TopicId(record.topic),
                index: record.index,
            };
            let hold = Hold {
                member: MemberId(record.member),
                epoch: GroupEpoch(record.epoch),
                revoking: record.revoking,
            };
            if let Some(before) = self.holds.insert(partition, hold) {
                self.touch(before.member, epoch);
            }
            self.touch(hold.member, epoch);
        }
    }
}
