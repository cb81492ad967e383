//! Groups in a snapshot.

#![allow(
    missing_debug_implementations,
    reason = "rkyv's resolvers, which no code here names"
)]

use std::ops::Bound::{Excluded, Unbounded};

use millstream_batch::ids::{GroupEpoch, MemberId, Partition, TopicId};

use super::{Group, Hold, Member};
use crate::fact::archive::{HoldRecord, MemberRecord, archived};
use crate::snapshot::key::{self, Key};
use crate::snapshot::table::Section;
use crate::state::State;

archived! {
    pub struct FloorRecord {
        pub epoch: u64,
    }

    pub struct GroupRecord {
        pub name: String,
        pub epoch: u64,
        pub members: Vec<JoinedMember>,
        pub holds: Vec<HoldRecord>,
    }

    pub struct JoinedMember {
        pub member: MemberRecord,
        /// Group epoch of its last join.
        pub joined: u64,
        pub version: u64,
    }
}

pub(super) fn key(name: &str) -> Key {
    key::of::<GroupsSection>(name.as_bytes())
}

/// One cell.
pub(crate) struct FloorSection;

impl Section for FloorSection {
    type Cell<'a> = GroupEpoch;
    type Record = FloorRecord;

    fn after<'a>(
        state: &'a State,
        last: Option<&[u8]>,
    ) -> impl Iterator<Item = Self::Cell<'a>> + 'a {
        last.is_none().then_some(state.group_floor).into_iter()
    }

    fn key(_: GroupEpoch) -> Key {
        key::of::<Self>(&[])
    }

    fn record(floor: GroupEpoch) -> FloorRecord {
        FloorRecord { epoch: floor.0 }
    }

    fn bytes(_: GroupEpoch) -> usize {
        8
    }

    fn restore(state: &mut State, record: FloorRecord) -> Result<(), &'static str> {
        state.group_floor = GroupEpoch(record.epoch);
        Ok(())
    }
}

/// By name.
pub(crate) struct GroupsSection;

impl Section for GroupsSection {
    type Cell<'a> = (&'a str, &'a Group);
    type Record = GroupRecord;

    fn after<'a>(
        state: &'a State,
        last: Option<&[u8]>,
    ) -> impl Iterator<Item = Self::Cell<'a>> + 'a {
        let from = last.map(key::text).map_or(Unbounded, Excluded);
        let groups = state.groups.range::<str, _>((from, Unbounded));
        groups.map(|(name, group)| (&**name, group))
    }

    fn key((name, _): Self::Cell<'_>) -> Key {
        key(name)
    }

    fn record((name, cell): Self::Cell<'_>) -> GroupRecord {
        let members = cell.members.iter().map(|(id, member)| JoinedMember {
            member: MemberRecord {
                member: id.0,
                client: member.client.to_string(),
                topics: member.topics.iter().map(|topic| topic.0).collect(),
                session_timeout_ms: member.session_timeout_ms,
            },
            joined: member.joined.0,
            version: member.version,
        });
        let holds = cell.holds.iter().map(|(partition, hold)| HoldRecord {
            topic: partition.topic.0,
            index: partition.index,
            member: hold.member.0,
            epoch: hold.epoch.0,
            revoking: hold.revoking,
        });
        GroupRecord {
            name: name.to_owned(),
            epoch: cell.epoch.0,
            members: members.collect(),
            holds: holds.collect(),
        }
    }

    fn bytes((_, cell): Self::Cell<'_>) -> usize {
        let members = cell.members.values();
        let members = members.map(|member| 72 + member.topics.len() * 16);
        64 + members.sum::<usize>() + cell.holds.len() * 48
    }

    fn restore(state: &mut State, record: GroupRecord) -> Result<(), &'static str> {
        let members = record.members.iter().map(|record| {
            let topics = record.member.topics.iter();
            let member = Member {
                client: record.member.client.as_str().into(),
                topics: topics.map(|topic| TopicId(*topic)).collect(),
                session_timeout_ms: record.member.session_timeout_ms,
                joined: GroupEpoch(record.joined),
                version: record.version,
            };
            (MemberId(record.member.member), member)
        });
        let holds = record.holds.iter().map(|record| {
            let partition = Partition {
                topic: TopicId(record.topic),
                index: record.index,
            };
            let hold = Hold {
                member: MemberId(record.member),
                epoch: GroupEpoch(record.epoch),
                revoking: record.revoking,
            };
            (partition, hold)
        });
        let group = Group {
            epoch: GroupEpoch(record.epoch),
            members: members.collect(),
            holds: holds.collect(),
        };
        state.groups.insert(record.name.as_str().into(), group);
        Ok(())
    }
}
