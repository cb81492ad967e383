//! Committed offsets and the fence before them, kept with the partition they point into.
//!
//! (group, partition) → (member, epoch) is a fact of the partition's shard, and a commit is checked
//! against it alone: a member that was replaced is refused here whatever it believes. Absent on
//! purpose: who should own what (the group's home, [`crate::groups`]).

mod cell;
mod section;

use millstream_batch::ids::{
    GroupEpoch, Lsn, MemberId, Offset, Partition, PartitionSlot, TimestampMs,
};
use millstream_batch::limits::{COMMIT_METADATA_BYTES_MAX, is_name};

use crate::decide::{Decision, full};
use crate::fact::archive::{
    GroupForgotten, GroupOffsetsForgotten, OffsetCommitted, OffsetReset, PartitionClaimed,
    TopicDeleted,
};
use crate::fact::{Fact, Sound};
use crate::partitions;
use crate::request::{Commit, RESETS_MAX, Refusal, Reply};
use crate::state::State;
use crate::unit::{Draft, View};
pub(crate) use cell::{Held, Offsets};
pub(crate) use section::{ForgottenSection, OffsetsSection};
use section::{forgotten_key, key};

/// Fences whoever held the partition before. Repeating the claim that holds changes nothing.
pub(crate) fn claim(
    state: &State,
    group: &str,
    partition: Partition,
    member: MemberId,
    epoch: GroupEpoch,
) -> Result<Decision, Refusal> {
    named(group)?;
    let (slot, _) = partitions::find(state, partition)?;
    let held = state.offsets.cell(group, slot);
    let committed = held.and_then(|held| held.offset);
    let reply = Reply::Claimed { committed };
    match held {
        Some(held) if held.member == member && held.epoch == epoch => {
            return Ok(Decision::look(reply));
        }
        Some(held) if epoch <= held.epoch => {
            return Err(Refusal::MemberFenced {
                member,
                sent: epoch,
                current: held.epoch,
            });
        }
        Some(_) => {}
        // Epoch 0, or a late claim of a member of a group that was deleted.
        None if epoch <= state.offsets.forgotten(group) => {
            return Err(Refusal::MemberFenced {
                member,
                sent: epoch,
                current: state.offsets.forgotten(group),
            });
        }
        None => room(View::plain(state))?,
    }
    let fact = PartitionClaimed {
        group: group.to_owned(),
        slot: slot.0,
        member: member.0,
        epoch: epoch.0,
    };
    Ok(Decision::of(Fact::PartitionClaimed(Box::new(fact)), reply))
}

/// By the member that holds the partition, under its epoch; by nobody (member 0) while nobody holds
/// it. Any offset up to the end: retention may have passed the reader.
pub(crate) fn commit(
    state: &State,
    time: TimestampMs,
    commit: &Commit,
) -> Result<Decision, Refusal> {
    Ok(match commit_part(View::plain(state), time, commit)? {
        Some(fact) => Decision::of(fact, Reply::Done),
        None => Decision::look(Reply::Done),
    })
}

/// A commit as part of a unit; nothing when it stands so already.
pub(crate) fn commit_part(
    view: View<'_>,
    time: TimestampMs,
    commit: &Commit,
) -> Result<Option<Fact>, Refusal> {
    let Commit {
        group,
        partition,
        member,
        epoch,
        offset,
        leader_epoch,
        metadata,
    } = commit;
    named(group)?;
    let (slot, cell) = partitions::find(view.state, *partition)?;
    let held = view.held(group, slot);
    let (holder, current) = held.map_or((MemberId(0), GroupEpoch(0)), |held| {
        (held.member, held.epoch)
    });
    if holder != *member || (member.0 != 0 && *epoch != current) {
        return Err(Refusal::MemberFenced {
            member: *member,
            sent: *epoch,
            current,
        });
    }
    if let Some(leader_epoch) = *leader_epoch
        && let Some(safe) = cell.truncated(*offset, leader_epoch)
    {
        return Err(Refusal::OffsetTruncated {
            offset: *offset,
            leader_epoch,
            safe,
        });
    }
    let end = view.end(slot, cell);
    if *offset > end {
        return Err(Refusal::OffsetOutOfRange {
            offset: *offset,
            start: cell.start,
            end,
        });
    }
    if metadata.len() > COMMIT_METADATA_BYTES_MAX {
        return Err(full(
            "bytes of a commit's metadata",
            metadata.len(),
            COMMIT_METADATA_BYTES_MAX,
        ));
    }
    if held.is_some_and(|held| held.offset == Some(*offset) && *held.metadata == **metadata) {
        return Ok(None);
    }
    if held.is_none() {
        room(view)?;
    }
    let before = held.map_or(0, |held| held.metadata.len());
    let bytes = view.metadata_bytes() - before + metadata.len();
    if bytes > view.state.limits.metadata_bytes {
        return Err(full(
            "bytes of commit metadata",
            bytes,
            view.state.limits.metadata_bytes,
        ));
    }
    let fact = OffsetCommitted {
        group: group.clone(),
        slot: slot.0,
        offset: offset.0,
        metadata: metadata.clone(),
        time_ms: time.0,
    };
    Ok(Some(Fact::OffsetCommitted(Box::new(fact))))
}

pub(crate) fn committed(
    state: &State,
    group: &str,
    partition: Partition,
) -> Result<Decision, Refusal> {
    named(group)?;
    let (slot, _) = partitions::find(state, partition)?;
    let held = state.offsets.cell(group, slot);
    let offset = held.and_then(|held| held.offset);
    let metadata = held
        .map(|held| held.metadata.to_string())
        .unwrap_or_default();
    Ok(Decision::look(Reply::Committed { offset, metadata }))
}

/// A position before anybody reads: what a group resolved is not resolved anew by its next member, which
/// would pass over what came meanwhile.
pub(crate) fn begin(
    state: &State,
    time: TimestampMs,
    group: &str,
    partition: Partition,
    offset: Offset,
) -> Result<Decision, Refusal> {
    named(group)?;
    let (slot, cell) = partitions::find(state, partition)?;
    match state.offsets.cell(group, slot) {
        Some(held) if held.offset.is_some() => return committed(state, group, partition),
        Some(_) => {}
        None => room(View::plain(state))?,
    }
    let offset = offset.min(cell.end);
    let fact = OffsetCommitted {
        group: group.to_owned(),
        slot: slot.0,
        offset: offset.0,
        metadata: String::new(),
        time_ms: time.0,
    };
    let reply = Reply::Committed {
        offset: Some(offset),
        metadata: String::new(),
    };
    Ok(Decision::of(Fact::OffsetCommitted(Box::new(fact)), reply))
}

/// With `force`, the member that holds a partition is fenced, and so is every claim up to the epoch
/// that is answered: the group's home gives the partition out anew.
pub(crate) fn reset(
    state: &State,
    time: TimestampMs,
    group: &str,
    places: &[(Partition, Offset)],
    force: bool,
) -> Result<Decision, Refusal> {
    named(group)?;
    if places.len() > RESETS_MAX {
        return Err(full("partitions in one reset", places.len(), RESETS_MAX));
    }
    let mut draft = Draft::new(state);
    let mut fences = Vec::with_capacity(places.len());
    for (partition, offset) in places {
        let (fact, fence) = reset_part(draft.view(), time, group, *partition, *offset, force)?;
        draft.add(fact);
        fences.push(fence);
    }
    Ok(draft.decided(Reply::Reset { fences }))
}

fn reset_part(
    view: View<'_>,
    time: TimestampMs,
    group: &str,
    partition: Partition,
    offset: Offset,
    force: bool,
) -> Result<(Fact, GroupEpoch), Refusal> {
    let (slot, cell) = partitions::find(view.state, partition)?;
    let held = view.held(group, slot);
    if !force && held.is_some_and(|held| held.member.0 != 0) {
        return Err(Refusal::GroupBusy(group.to_owned()));
    }
    let end = view.end(slot, cell);
    if offset < cell.start || offset > end {
        return Err(Refusal::OffsetOutOfRange {
            offset,
            start: cell.start,
            end,
        });
    }
    if held.is_none() {
        room(view)?;
    }
    let fact = OffsetReset {
        group: group.to_owned(),
        slot: slot.0,
        offset: offset.0,
        time_ms: time.0,
    };
    let fence = held.map_or(GroupEpoch(0), |held| held.epoch);
    Ok((Fact::OffsetReset(Box::new(fact)), fence))
}

/// What a deleted group has here goes, as part of a unit; and whoever joined it before claims nothing more.
pub(crate) fn forget_part(group: &str, epoch: GroupEpoch) -> Fact {
    Fact::GroupOffsetsForgotten(Box::new(GroupOffsetsForgotten {
        group: group.to_owned(),
        epoch: epoch.0,
    }))
}

pub(crate) fn install_claimed(state: &mut State, lsn: Lsn, fact: &PartitionClaimed) {
    let slot = PartitionSlot(fact.slot);
    if state.guard.holds(lsn, || key(&fact.group, slot)) {
        return;
    }
    state.offsets.change(&fact.group, slot, |held| {
        assert!(held.epoch.0 < fact.epoch, "a claim raises the epoch");
        held.member = MemberId(fact.member);
        held.epoch = GroupEpoch(fact.epoch);
    });
}

pub(crate) fn install_committed(state: &mut State, lsn: Lsn, fact: &OffsetCommitted) {
    let slot = PartitionSlot(fact.slot);
    if state.guard.holds(lsn, || key(&fact.group, slot)) {
        return;
    }
    state.offsets.committed(fact);
}

pub(crate) fn install_reset(state: &mut State, lsn: Lsn, fact: &OffsetReset) {
    let slot = PartitionSlot(fact.slot);
    if state.guard.holds(lsn, || key(&fact.group, slot)) {
        return;
    }
    state.offsets.reset(fact);
}

pub(crate) fn install_forgotten(state: &mut State, lsn: Lsn, fact: &GroupOffsetsForgotten) {
    if !state.guard.holds(lsn, forgotten_key) {
        let epoch = GroupEpoch(fact.epoch);
        state.offsets.remember_forgotten(&fact.group, epoch);
    }
    let slots: Vec<_> = state
        .offsets
        .of_group(&fact.group)
        .filter(|(_, held)| held.epoch.0 <= fact.epoch)
        .map(|(slot, _)| slot)
        .collect();
    for slot in slots {
        if !state.guard.holds(lsn, || key(&fact.group, slot)) {
            state.offsets.remove(&fact.group, slot);
        }
    }
}

/// Slots are not used again, so what a snapshot holds of them was taken before this fact.
pub(crate) fn install_topic_deleted(state: &mut State, _: Lsn, fact: &TopicDeleted) {
    state.offsets.remove_slots(&fact.slots);
}

impl Sound for PartitionClaimed {
    fn is_sound(&self) -> bool {
        is_name(&self.group)
    }
}

impl Sound for OffsetCommitted {
    fn is_sound(&self) -> bool {
        is_name(&self.group)
    }
}

impl Sound for OffsetReset {
    fn is_sound(&self) -> bool {
        is_name(&self.group)
    }
}

impl From<GroupForgotten> for Fact {
    fn from(fact: GroupForgotten) -> Self {
        Self::GroupOffsetsForgotten(Box::new(GroupOffsetsForgotten {
            group: fact.group,
            epoch: u64::MAX,
        }))
    }
}

impl Sound for GroupOffsetsForgotten {
    fn is_sound(&self) -> bool {
        is_name(&self.group)
    }
}

fn named(group: &str) -> Result<(), Refusal> {
    if is_name(group) {
        Ok(())
    } else {
        Err(Refusal::BadName(group.to_owned()))
    }
}

fn room(view: View<'_>) -> Result<(), Refusal> {
    let (offsets, max) = (view.offsets(), view.state.limits.offsets);
    if offsets < max {
        return Ok(());
    }
    Err(full("groups' offsets on the shard", offsets + 1, max))
}
