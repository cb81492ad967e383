//! Ordered consumer groups, at their home shard: members, and which of them owns each partition.
//!
//! ```text
//!   free ──assigned──▶ owned ──over quota──▶ revoking ──released, left or expired──▶ free
//!                        ▲──────quota rose again─────┘
//! ```
//!
//! Every change is one fact, `GroupChanged`, which raises the group's epoch; a hold that changes hands
//! carries that epoch, and its owner claims and commits under it at the partition's shard
//! ([`crate::offsets`]). A new member's id is the epoch at which it joined, so ids are never reused.
//! Absent on purpose: heartbeats and who waits for an answer, which are volatile and the driver's.

use std::collections::{BTreeMap, BTreeSet};

use millstream_batch::ids::{GroupEpoch, Lsn, MemberId, Partition, TimestampMs, TopicId};
use millstream_batch::limits::is_name;

use crate::assign::{self, Owner};
use crate::bounds::{CLIENT_BYTES_MAX, SESSION_TIMEOUT_MS_MAX};
use crate::decide::{Decision, full};
use crate::fact::Fact;
use crate::fact::archive::{GroupChanged, GroupDeleted, HoldRecord, MemberRecord, PartitionRecord};
use crate::request::{Assignment, GroupInfo, MemberInfo, Refusal, Reply};
use crate::snapshot::key;
use crate::state::State;

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

    fn assignment(&self, id: MemberId, version: u64) -> Assignment {
        let mut assignment = Assignment {
            version,
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

    fn change(&mut self, fact: &GroupChanged) {
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

pub(crate) fn join(
    state: &State,
    time: TimestampMs,
    name: &str,
    member: MemberId,
    client: &str,
    topics: &[TopicId],
    session_timeout_ms: u32,
) -> Result<Decision, Refusal> {
    home(state, name)?;
    let group = state.groups.get(name);
    if member.0 != 0 && !group.is_some_and(|group| group.members.contains_key(&member)) {
        return Err(Refusal::UnknownMember {
            group: name.to_owned(),
            member,
        });
    }
    if client.len() > CLIENT_BYTES_MAX {
        return Err(Refusal::BadConfig(format!(
            "a member's client name has at most {CLIENT_BYTES_MAX} bytes"
        )));
    }
    if session_timeout_ms == 0 || session_timeout_ms > SESSION_TIMEOUT_MS_MAX {
        return Err(Refusal::BadConfig(format!(
            "a session timeout is 1 to {SESSION_TIMEOUT_MS_MAX} ms"
        )));
    }
    let topics: BTreeSet<_> = topics.iter().copied().collect();
    if topics.len() > state.limits.topics_per_member {
        return Err(full(
            "topics of one member",
            topics.len(),
            state.limits.topics_per_member,
        ));
    }
    if group.is_none() && state.groups.len() >= state.limits.groups {
        return Err(full("groups", state.groups.len() + 1, state.limits.groups));
    }
    let mut change = Change::new(state, time, name);
    let topics: Box<[_]> = topics.into_iter().collect();
    if member.0 != 0 {
        let known = &change.before.members[&member];
        if *known.client == *client
            && known.topics == topics
            && known.session_timeout_ms == session_timeout_ms
        {
            let assignment = change.before.assignment(member, known.version);
            return Ok(Decision::look(Reply::Joined { member, assignment }));
        }
    } else if change.before.members.len() >= state.limits.members_per_group {
        let members = change.before.members.len() + 1;
        return Err(full(
            "members of the group",
            members,
            state.limits.members_per_group,
        ));
    }
    let member = if member.0 == 0 {
        MemberId(change.epoch.0)
    } else {
        member
    };
    change.joined = Some(MemberRecord {
        member: member.0,
        client: client.to_owned(),
        topics: topics.iter().map(|topic| topic.0).collect(),
        session_timeout_ms,
    });
    Ok(change.decide(|after| {
        let version = after.members[&member].version;
        Reply::Joined {
            member,
            assignment: after.assignment(member, version),
        }
    }))
}

pub(crate) fn leave(
    state: &State,
    time: TimestampMs,
    name: &str,
    member: MemberId,
) -> Result<Decision, Refusal> {
    home(state, name)?;
    known_member(state, name, member)?;
    let mut change = Change::new(state, time, name);
    change.left.insert(member);
    Ok(change.decide(|_| Reply::Done))
}

/// Members that are gone already are passed over.
pub(crate) fn expire(
    state: &State,
    time: TimestampMs,
    name: &str,
    members: &[MemberId],
) -> Result<Decision, Refusal> {
    home(state, name)?;
    let Some(group) = state.groups.get(name) else {
        return Ok(Decision::look(Reply::Done));
    };
    let mut change = Change::new(state, time, name);
    change.left = members
        .iter()
        .copied()
        .filter(|member| group.members.contains_key(member))
        .collect();
    if change.left.is_empty() {
        return Ok(Decision::look(Reply::Done));
    }
    Ok(change.decide(|_| Reply::Done))
}

/// Partitions that the member does not own are passed over. One that nobody asked back is given up
/// too, and assigned anew.
pub(crate) fn release(
    state: &State,
    time: TimestampMs,
    name: &str,
    member: MemberId,
    partitions: &[Partition],
) -> Result<Decision, Refusal> {
    home(state, name)?;
    let group = known_member(state, name, member)?;
    let owned = |partition: &Partition| {
        group
            .holds
            .get(partition)
            .is_some_and(|hold| hold.member == member)
    };
    let mut change = Change::new(state, time, name);
    change.released = partitions.iter().copied().filter(owned).collect();
    if change.released.is_empty() {
        return Ok(Decision::look(Reply::Done));
    }
    Ok(change.decide(|_| Reply::Done))
}

pub(crate) fn rebalance(state: &State, time: TimestampMs, name: &str) -> Result<Decision, Refusal> {
    home(state, name)?;
    match state.groups.get(name) {
        Some(group) if group.is_stale(|topic| state.partition_count(topic)) => {
            Ok(Change::new(state, time, name).decide(|_| Reply::Done))
        }
        _ => Ok(Decision::look(Reply::Done)),
    }
}

pub(crate) fn assignment(state: &State, name: &str, id: MemberId) -> Result<Decision, Refusal> {
    home(state, name)?;
    let group = known_member(state, name, id)?;
    let version = group.members[&id].version;
    Ok(Decision::look(Reply::Assignment(
        group.assignment(id, version),
    )))
}

pub(crate) fn delete(state: &State, name: &str) -> Result<Decision, Refusal> {
    home(state, name)?;
    match state.groups.get(name) {
        None => Ok(Decision::look(Reply::Done)),
        Some(group) if !group.members.is_empty() => Err(Refusal::GroupBusy(name.to_owned())),
        Some(group) => {
            let fact = GroupDeleted {
                group: name.to_owned(),
                epoch: group.epoch.0,
            };
            Ok(Decision::of(
                Fact::GroupDeleted(Box::new(fact)),
                Reply::Done,
            ))
        }
    }
}

/// Groups at home here, and those with an offset here.
pub(crate) fn list(state: &State) -> Decision {
    let names: BTreeSet<&str> = state
        .groups
        .keys()
        .map(|name| &**name)
        .chain(state.offsets.groups())
        .collect();
    Decision::look(Reply::Groups(
        names.into_iter().map(str::to_owned).collect(),
    ))
}

/// What this shard knows: members at the home, offsets where the partitions are.
pub(crate) fn describe(state: &State, name: &str) -> Result<Decision, Refusal> {
    let group = state.groups.get(name);
    let mut offsets: Vec<_> = state
        .offsets
        .of_group(name)
        .filter_map(|(slot, held)| {
            let partition = state.partitions.at(slot)?.partition;
            Some((partition, held.offset?, held.metadata.to_string()))
        })
        .collect();
    offsets.sort();
    if group.is_none() && state.offsets.of_group(name).next().is_none() {
        return Err(Refusal::UnknownGroup(name.to_owned()));
    }
    let mut info = GroupInfo {
        name: name.to_owned(),
        offsets,
        ..GroupInfo::default()
    };
    if let Some(group) = group {
        info.epoch = group.epoch;
        info.unowned = state.unowned(name).collect();
        info.members = group
            .members
            .iter()
            .map(|(id, member)| describe_member(group, *id, member))
            .collect();
    }
    Ok(Decision::look(Reply::Group(info)))
}

pub(crate) fn install_changed(state: &mut State, lsn: Lsn, fact: &GroupChanged) {
    state.shard.tick(fact.time_ms);
    if state.guard.holds(lsn, || key::group(&fact.group)) {
        return;
    }
    if !state.groups.contains_key(fact.group.as_str()) {
        state
            .groups
            .insert(fact.group.as_str().into(), Group::default());
    }
    state
        .groups
        .get_mut(fact.group.as_str())
        .expect("inserted above")
        .change(fact);
}

pub(crate) fn install_deleted(state: &mut State, lsn: Lsn, fact: &GroupDeleted) {
    state.shard.group_epoch_floor = state.shard.group_epoch_floor.max(GroupEpoch(fact.epoch));
    if !state.guard.holds(lsn, || key::group(&fact.group)) {
        state.groups.remove(fact.group.as_str());
    }
}

/// A change being decided: what is asked, to which the assignment that follows is added.
struct Change<'a> {
    state: &'a State,
    name: &'a str,
    time: TimestampMs,
    before: Group,
    /// The epoch of this change.
    epoch: GroupEpoch,
    joined: Option<MemberRecord>,
    left: BTreeSet<MemberId>,
    released: BTreeSet<Partition>,
}

impl<'a> Change<'a> {
    fn new(state: &'a State, time: TimestampMs, name: &'a str) -> Self {
        let before = state.groups.get(name).cloned().unwrap_or_else(|| Group {
            epoch: state.shard.group_epoch_floor,
            ..Group::default()
        });
        let epoch = GroupEpoch(before.epoch.0 + 1);
        let (left, released) = (BTreeSet::new(), BTreeSet::new());
        Self {
            state,
            name,
            time,
            before,
            epoch,
            joined: None,
            left,
            released,
        }
    }

    /// Assigns anew and answers from the group as it will be.
    fn decide(mut self, reply: impl FnOnce(&Group) -> Reply) -> Decision {
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
                (Some(before), Some(owner)) => Hold {
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

fn describe_member(group: &Group, id: MemberId, member: &Member) -> MemberInfo {
    MemberInfo {
        member: id,
        client: member.client.to_string(),
        topics: member.topics.to_vec(),
        partitions: group
            .holds
            .iter()
            .filter(|(_, hold)| hold.member == id)
            .map(|(held, _)| *held)
            .collect(),
    }
}

fn home(state: &State, name: &str) -> Result<(), Refusal> {
    if !is_name(name) {
        return Err(Refusal::BadName(name.to_owned()));
    }
    if state.is_home(name) {
        Ok(())
    } else {
        Err(Refusal::NotHome)
    }
}

fn known_member<'a>(state: &'a State, name: &str, member: MemberId) -> Result<&'a Group, Refusal> {
    let group = state
        .groups
        .get(name)
        .ok_or_else(|| Refusal::UnknownGroup(name.to_owned()))?;
    if group.members.contains_key(&member) {
        Ok(group)
    } else {
        Err(Refusal::UnknownMember {
            group: name.to_owned(),
            member,
        })
    }
}
