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
//! A member that joins again does so under a new epoch, which is that of all its holds from then on:
//! its stream of before is fenced, and what that one still asks here is refused.
//! Absent on purpose: heartbeats and who waits for an answer, which are volatile and the driver's.

mod assign;
mod cell;
mod change;
mod section;

use std::collections::{BTreeMap, BTreeSet};

use millstream_batch::ids::{
    GroupEpoch, Lsn, MemberId, Offset, Partition, ShardId, TimestampMs, TopicId,
};
use millstream_batch::limits::is_name;

use crate::bounds::{CLIENT_BYTES_MAX, SESSION_TIMEOUT_MS_MAX};
use crate::couriers::{self, Message};
use crate::decide::{Decision, full};
use crate::fact::archive::{GroupChanged, GroupDeleted, MemberRecord, PartitionRecord};
use crate::fact::{Fact, Sound};
use crate::offsets::{self, Held};
use crate::partitions;
use crate::request::{GroupInfo, GroupSummary, MemberInfo, Refusal, Reply};
use crate::state::State;
use crate::unit::Draft;
pub(crate) use cell::{Group, Hold, Member};
use change::Change;
use section::key;
pub(crate) use section::{FloorSection, GroupsSection};

/// Who joins, and for what: see [`Request::JoinGroup`](crate::request::Request::JoinGroup).
#[derive(Clone, Copy)]
pub(crate) struct Joins<'a> {
    pub(crate) member: MemberId,
    pub(crate) again: Option<GroupEpoch>,
    pub(crate) client: &'a str,
    pub(crate) topics: &'a [TopicId],
    pub(crate) session_timeout_ms: u32,
}

pub(crate) fn join(
    state: &State,
    time: TimestampMs,
    name: &str,
    joins: Joins<'_>,
) -> Result<Decision, Refusal> {
    let Joins {
        member,
        again,
        client,
        topics,
        session_timeout_ms,
    } = joins;
    home(state, name)?;
    if let Some(joined) = again {
        incarnation(state, name, member, joined)?;
    }
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
    if group.is_none() && state.is_forgetting(name) {
        return Err(Refusal::GroupBeingDeleted(name.to_owned()));
    }
    if group.is_none() && state.groups.len() >= state.limits.groups {
        return Err(full("groups", state.groups.len() + 1, state.limits.groups));
    }
    let mut change = Change::new(state, time, name);
    if member.0 != 0 {
        // What it was to let go, the stream of before has let go with its end.
        let holds = change.before.holds.iter();
        let asked_back = holds.filter(|(_, hold)| hold.member == member && hold.revoking);
        change.released = asked_back.map(|(partition, _)| *partition).collect();
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
    Ok(change.decide(|after| Reply::Joined {
        member,
        assignment: after.assignment(member, |topic| state.partition_count(topic)),
    }))
}

pub(crate) fn leave(
    state: &State,
    time: TimestampMs,
    name: &str,
    member: MemberId,
    joined: GroupEpoch,
) -> Result<Decision, Refusal> {
    home(state, name)?;
    incarnation(state, name, member, joined)?;
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
    joined: GroupEpoch,
    partitions: &[Partition],
) -> Result<Decision, Refusal> {
    home(state, name)?;
    let group = incarnation(state, name, member, joined)?;
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

/// Each of these partitions was fenced where it is kept, at this epoch, under its owner here: whoever
/// owns it under no higher one could never commit again. It is given out anew, as a rule to the same
/// member, under an epoch above the fence.
pub(crate) fn reassign(
    state: &State,
    time: TimestampMs,
    name: &str,
    fenced: &[(Partition, GroupEpoch)],
) -> Result<Decision, Refusal> {
    home(state, name)?;
    let Some(group) = state.groups.get(name) else {
        return Ok(Decision::look(Reply::Done));
    };
    let is_overruled = |(partition, fence): &&(Partition, GroupEpoch)| {
        group
            .holds
            .get(partition)
            .is_some_and(|hold| hold.member.0 != 0 && group.under(hold) <= *fence)
    };
    let mut change = Change::new(state, time, name);
    let overruled = fenced.iter().filter(is_overruled);
    change.overruled = overruled.map(|(partition, _)| *partition).collect();
    if change.overruled.is_empty() {
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

pub(crate) fn assignment(
    state: &State,
    name: &str,
    id: MemberId,
    joined: GroupEpoch,
) -> Result<Decision, Refusal> {
    home(state, name)?;
    let group = incarnation(state, name, id, joined)?;
    let assignment = group.assignment(id, |topic| state.partition_count(topic));
    Ok(Decision::look(Reply::Assignment(assignment)))
}

/// With `force` its members are out of it with the group. Its offsets here go in the same unit, and the other
/// shards are sent word of theirs: up to the epoch that the group had, so that what comes late spares a
/// namesake.
pub(crate) fn delete(state: &State, name: &str, force: bool) -> Result<Decision, Refusal> {
    home(state, name)?;
    let group = state.groups.get(name);
    if group.is_some_and(|group| !force && !group.members.is_empty()) {
        return Err(Refusal::GroupBusy(name.to_owned()));
    }
    if group.is_none() && state.is_forgetting(name) {
        return Err(Refusal::GroupBeingDeleted(name.to_owned()));
    }
    // Of one that is not at home there can be what its namesakes left, and what nobody's consumers committed.
    let epoch = state.group_epoch(name);
    let mut draft = Draft::new(state);
    if group.is_some() {
        draft.add(Fact::GroupDeleted(Box::new(GroupDeleted {
            group: name.to_owned(),
            epoch: epoch.0,
        })));
    }
    draft.add(offsets::forget_part(name, epoch));
    let message = Message::ForgetGroup {
        group: name.to_owned(),
        epoch,
    };
    for shard in (0..state.shards).map(ShardId) {
        if shard != state.id {
            let fact = couriers::queue_part(draft.view(), shard, &message)?;
            draft.add(fact);
        }
    }
    Ok(draft.decided(Reply::Done))
}

/// Groups in one answer: so that a look at many takes the shard no long time at once.
const LISTED_TOGETHER: usize = 100;
/// Partitions that one answer looks at, but for those of its last group.
const LOOKED_AT_TOGETHER: u64 = 10_000;

/// Groups at home here, and those with an offset here, after a name.
pub(crate) fn list(state: &State, after: &str) -> Decision {
    use std::ops::Bound::{Excluded, Unbounded};
    let at_home = state
        .groups
        .range::<str, _>((Excluded(after), Unbounded))
        .map(|(name, _)| &**name);
    let with_offsets = state.offsets.groups_after(after);
    let names: BTreeSet<&str> = at_home
        .take(LISTED_TOGETHER)
        .chain(with_offsets.take(LISTED_TOGETHER))
        .collect();
    let mut more = names.len() >= LISTED_TOGETHER;
    let summary = |name: &str| GroupSummary {
        name: name.to_owned(),
        home: state.groups.get(name).map(|group| {
            let standing = group.standing(|topic| state.partition_count(topic));
            (standing, group.members.len())
        }),
        lag: lag(state, name),
    };
    let mut groups = Vec::new();
    let mut looked_at = 0;
    for name in names.into_iter().take(LISTED_TOGETHER) {
        if looked_at >= LOOKED_AT_TOGETHER {
            more = true;
            break;
        }
        let group = summary(name);
        let partitions = |(topic, _): &(TopicId, u64)| u64::from(state.partition_count(*topic));
        looked_at += group.lag.iter().map(partitions).sum::<u64>();
        groups.push(group);
    }
    Decision::look(Reply::Groups { groups, more })
}

/// Records that the group has still to read in this shard's partitions of every topic that it has an offset
/// in here. Without a commit that is all there are.
fn lag(state: &State, name: &str) -> Vec<(TopicId, u64)> {
    let mut committed: BTreeMap<TopicId, BTreeMap<u32, Offset>> = BTreeMap::new();
    for (slot, held) in state.offsets.of_group(name) {
        if let Some(cell) = state.partitions.at(slot) {
            let Partition { topic, index } = cell.partition;
            let known = committed.entry(topic).or_default();
            known.extend(held.offset.map(|next| (index, next)));
        }
    }
    let behind = |(topic, committed): (TopicId, BTreeMap<u32, Offset>)| {
        let here = (0..state.partition_count(topic)).filter_map(|index| {
            let (_, cell) = partitions::find(state, Partition { topic, index }).ok()?;
            let next = committed.get(&index).copied().unwrap_or(cell.start);
            Some(cell.end.0.saturating_sub(next.max(cell.start).0))
        });
        (topic, here.sum())
    };
    committed.into_iter().map(behind).collect()
}

/// What this shard knows: members at the home, offsets where the partitions are.
/// What is told of partitions costs as much as `of` names.
pub(crate) fn describe(
    state: &State,
    name: &str,
    of: Option<&[Partition]>,
) -> Result<Decision, Refusal> {
    let group = state.groups.get(name);
    let held = || {
        let held = state.offsets.of_group(name);
        held.filter_map(|(slot, held)| Some((state.partitions.at(slot)?.partition, held)))
    };
    let told = |(partition, held): (Partition, &Held)| {
        Some((partition, held.offset?, held.metadata.to_string()))
    };
    let mut offsets: Vec<_> = match of {
        None => held().filter_map(told).collect(),
        Some(of) => {
            let held = of.iter().filter_map(|partition| {
                let (slot, _) = partitions::find(state, *partition).ok()?;
                Some((*partition, state.offsets.cell(name, slot)?))
            });
            held.filter_map(told).collect()
        }
    };
    offsets.sort();
    if group.is_none() && state.offsets.of_group(name).next().is_none() {
        return Err(Refusal::UnknownGroup(name.to_owned()));
    }
    let committed = held().filter(|(_, held)| held.offset.is_some());
    let topics: BTreeSet<TopicId> = committed.map(|(partition, _)| partition.topic).collect();
    let mut info = GroupInfo {
        name: name.to_owned(),
        topics: topics.into_iter().collect(),
        offsets,
        ..GroupInfo::default()
    };
    if let Some(group) = group {
        info.epoch = group.epoch;
        info.standing = group.standing(|topic| state.partition_count(topic));
        if of.is_none() {
            info.unowned = state.unowned(name).collect();
        }
        let mut owned: BTreeMap<MemberId, Vec<Partition>> = BTreeMap::new();
        let mut own = |partition: Partition, hold: &Hold| {
            owned.entry(hold.member).or_default().push(partition);
        };
        match of {
            None => group.holds.iter().for_each(|(at, hold)| own(*at, hold)),
            Some(of) => {
                for partition in of {
                    if let Some(hold) = group.holds.get(partition) {
                        own(*partition, hold);
                    }
                }
            }
        }
        info.members = group
            .members
            .iter()
            .map(|(id, member)| describe_member(*id, member, owned.remove(id)))
            .collect();
    }
    Ok(Decision::look(Reply::Group(info)))
}

pub(crate) fn install_changed(state: &mut State, lsn: Lsn, fact: &GroupChanged) {
    if state.guard.holds(lsn, || key(&fact.group)) {
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
    state.group_floor = state.group_floor.max(GroupEpoch(fact.epoch));
    if !state.guard.holds(lsn, || key(&fact.group)) {
        state.groups.remove(fact.group.as_str());
    }
}

impl Sound for GroupChanged {
    fn is_sound(&self) -> bool {
        is_name(&self.group)
    }
}

impl Sound for GroupDeleted {
    fn is_sound(&self) -> bool {
        is_name(&self.group)
    }
}

impl From<Partition> for PartitionRecord {
    fn from(partition: Partition) -> Self {
        Self {
            topic: partition.topic.0,
            index: partition.index,
        }
    }
}

impl From<&PartitionRecord> for Partition {
    fn from(record: &PartitionRecord) -> Self {
        Self {
            topic: TopicId(record.topic),
            index: record.index,
        }
    }
}

fn describe_member(id: MemberId, member: &Member, owned: Option<Vec<Partition>>) -> MemberInfo {
    MemberInfo {
        member: id,
        joined: member.joined,
        client: member.client.to_string(),
        topics: member.topics.to_vec(),
        partitions: owned.unwrap_or_default(),
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

/// The group, if this is the member's newest incarnation. What an older one asks is of a stream that
/// the newer one fenced.
fn incarnation<'a>(
    state: &'a State,
    name: &str,
    member: MemberId,
    joined: GroupEpoch,
) -> Result<&'a Group, Refusal> {
    let group = known_member(state, name, member)?;
    let current = group.members[&member].joined;
    if current == joined {
        return Ok(group);
    }
    Err(Refusal::MemberReplaced {
        group: name.to_owned(),
        member,
        joined,
        current,
    })
}
