//! DESCRIBE_GROUP: members from the group's home, offsets and lag from the shards of the partitions.
//! Topics that the principal does not see are left out.

use std::collections::BTreeMap;

use millstream_batch::ids::{Offset, Partition};
use millstream_machine::request::{GroupInfo, Reply, Request, Standing};
use millstream_protocol::Code;
use millstream_protocol::messages::{
    self, DescribeGroupRequest, DescribeGroupResponse, GroupMember, GroupOffset, GroupPartition,
};
use millstream_shard::call::{Answer, Call, Position};

use crate::authority::Right;
use crate::session::Session;
use crate::shards::{ask, unexpected};

pub(super) async fn handle(
    session: &Session,
    request: DescribeGroupRequest,
) -> Result<DescribeGroupResponse, messages::Error> {
    session.principal().check(Right::Consume, &request.group)?;
    let (home, committed) = gather(session, &request.group).await?;
    let mut owners = BTreeMap::new();
    let mut members = Vec::new();
    let mut subscribed = BTreeMap::new();
    for member in &home.members {
        for partition in &member.partitions {
            owners.insert(*partition, member.member.0);
        }
        for topic in &member.topics {
            subscribed.insert(*topic, ());
        }
        let partitions = member
            .partitions
            .iter()
            .filter_map(|partition| named(session, *partition));
        let partitions = partitions
            .map(|(topic, partition)| GroupPartition { topic, partition })
            .collect();
        let known = &session.shared.members;
        let address = known.address(&request.group, member.member, member.joined);
        members.push(GroupMember {
            member: member.member.0,
            client: member.client.clone(),
            partitions,
            address: address
                .map(|address| address.to_string())
                .unwrap_or_default(),
        });
    }
    // Everything subscribed to, and everything with an offset.
    let mut all: BTreeMap<Partition, Option<(Offset, String)>> = BTreeMap::new();
    for topic in subscribed
        .keys()
        .filter_map(|topic| session.thread.catalog.cached(*topic))
    {
        all.extend((0..topic.partitions).map(|index| {
            (
                Partition {
                    topic: topic.id,
                    index,
                },
                None,
            )
        }));
    }
    all.extend(
        committed
            .into_iter()
            .map(|(partition, offset, metadata)| (partition, Some((offset, metadata)))),
    );
    let mut offsets = Vec::new();
    for (partition, committed) in all {
        let Some((topic, index)) = named(session, partition) else {
            continue;
        };
        let (start, end) = bounds(session, partition).await?;
        offsets.push(offset_row(
            topic,
            index,
            committed,
            start,
            end,
            owners.get(&partition).copied().unwrap_or(0),
        ));
    }
    offsets.sort_unstable_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
    Ok(DescribeGroupResponse {
        group: request.group,
        epoch: home.epoch.0,
        state: state_name(home.standing).to_owned(),
        members,
        offsets,
    })
}

/// How a group stands, as the wire says it.
pub(super) fn state_name(standing: Standing) -> &'static str {
    match standing {
        Standing::Empty => "empty",
        Standing::Stable => "stable",
        Standing::Rebalancing => "rebalancing",
    }
}

type Committed = Vec<(Partition, Offset, String)>;

/// The group at its home, and the offsets committed on all shards. UNKNOWN_GROUP when no shard knows
/// it.
pub(super) async fn gather(
    session: &Session,
    group: &str,
) -> Result<(GroupInfo, Committed), messages::Error> {
    let shards = &session.shared.shards;
    let home = shards.home(group).shard();
    let mut info = GroupInfo {
        name: group.to_owned(),
        ..GroupInfo::default()
    };
    let mut committed = Vec::new();
    let mut known = false;
    for shard in shards.all() {
        match ask(
            shard,
            Request::DescribeGroup {
                group: group.to_owned(),
            },
        )
        .await
        {
            Ok(Reply::Group(mut part)) => {
                known = true;
                committed.append(&mut part.offsets);
                if shard.shard() == home {
                    info = part;
                }
            }
            Ok(other) => return Err(unexpected(&other)),
            Err(error) if error.code == Code::UnknownGroup.number() => {}
            Err(error) => return Err(error),
        }
    }
    if !known {
        return Err(Code::UnknownGroup.error(format!("no group `{group}`")));
    }
    Ok((info, committed))
}

/// Start and released end.
pub(super) async fn bounds(
    session: &Session,
    partition: Partition,
) -> Result<(Offset, Offset), messages::Error> {
    let shard = session.shared.shards.of(partition);
    let mut found = [Offset(0); 2];
    for (offset, at) in found.iter_mut().zip([Position::Start, Position::End]) {
        match shard.call(Call::OffsetAt { partition, at }).await {
            Answer::Offset { offset: is, .. } => *offset = is,
            other => return Err(crate::refusals::unexpected(&other)),
        }
    }
    Ok((found[0], found[1]))
}

pub(super) fn offset_row(
    topic: String,
    partition: u32,
    committed: Option<(Offset, String)>,
    start: Offset,
    end: Offset,
    member: u64,
) -> GroupOffset {
    let (committed, metadata) = match committed {
        Some((offset, metadata)) => (Some(offset.0), metadata),
        None => (None, String::new()),
    };
    // Without a commit everything that is there is still to be read.
    let lag = end
        .0
        .saturating_sub(committed.unwrap_or(start.0).max(start.0));
    GroupOffset {
        topic,
        partition,
        committed,
        start_offset: start.0,
        end_offset: end.0,
        lag,
        member,
        metadata,
    }
}

/// The topic's name and the partition's number; `None` when the topic is gone, or not to be seen.
fn named(session: &Session, partition: Partition) -> Option<(String, u32)> {
    session
        .thread
        .catalog
        .cached(partition.topic)
        .filter(|topic| session.principal().sees(&topic.name))
        .map(|topic| (topic.name.clone(), partition.index))
}
