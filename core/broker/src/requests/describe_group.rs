//! DESCRIBE_GROUP: members from the group's home, offsets and lag from the shards of the partitions.
//! Topics that the principal does not see are left out.
//!
//! What a shard that does not answer would have said is missing, and said to be: never taken for nothing.

use std::collections::{BTreeMap, BTreeSet};

use millstream_batch::ids::{Offset, Partition, ShardId, TopicId};
use millstream_machine::request::{GroupInfo, Reply, Request, Standing};
use millstream_protocol::Code;
use millstream_protocol::messages::{
    self, DescribeGroupRequest, DescribeGroupResponse, GroupMember, GroupOffset, GroupPartition,
};
use millstream_shard::call::{Answer, Call, Position};
use millstream_shard::handle::ShardHandle;

use crate::authority::Right;
use crate::session::Session;
use crate::shards::{ask, unexpected};

/// Partitions looked up at a time.
pub(super) const TOGETHER: usize = 64;
/// Partitions in a page.
const PAGE: usize = 1_000;

pub(super) async fn handle(
    session: &Session,
    request: DescribeGroupRequest,
) -> Result<DescribeGroupResponse, messages::Error> {
    session.principal().check(Right::Consume, &request.group)?;
    let Gathered {
        home,
        committed,
        silent,
    } = gather(session, &request.group).await?;
    let mut owners = BTreeMap::new();
    let mut members = Vec::new();
    let mut subscribed: BTreeSet<TopicId> = BTreeSet::new();
    for member in &home.members {
        for partition in &member.partitions {
            owners.insert(*partition, member.member.0);
        }
        subscribed.extend(&member.topics);
        let known = &session.shared.members;
        let address = known.address(&request.group, member.member, member.joined);
        members.push(GroupMember {
            member: member.member.0,
            client: member.client.clone(),
            address: address
                .map(|address| address.to_string())
                .unwrap_or_default(),
        });
    }
    // Every partition of what the group reads or has read: one without a commit is unread, not absent.
    let mut topics = subscribed.clone();
    topics.extend(committed.keys().map(|partition| partition.topic));
    let partition_count = |topic| {
        let topic = session.thread.catalog.cached(topic);
        topic.map_or(0, |topic| topic.partitions)
    };
    let mut partitions = Vec::new();
    for topic in topics {
        for index in 0..partition_count(topic) {
            let partition = Partition { topic, index };
            partitions.extend(named(session, partition).map(|name| (partition, name)));
        }
    }
    partitions.sort_unstable_by(|(_, a), (_, b)| a.cmp(b));
    let after = request.after.map(|after| (after.topic, after.partition));
    if after.is_some() {
        members.clear();
    }
    let next = turn_to(&mut partitions, after.as_ref(), PAGE);
    let asked: Vec<Partition> = partitions.iter().map(|(partition, _)| *partition).collect();
    let mut bounds_of = all_bounds(session, &asked).await;
    let mut offsets = Vec::with_capacity(partitions.len());
    for (partition, (topic, index)) in partitions {
        let shard = session.shared.shards.of(partition).shard();
        let bounds = match (silent.get(&shard), bounds_of.remove(&partition)) {
            (Some(error), _) => Err(error.message.clone()),
            (None, Some(Ok(bounds))) => Ok(bounds),
            (None, Some(Err(error))) => Err(error.message),
            (None, None) => Err("it was not asked".to_owned()),
        };
        let owner = owners.get(&partition).copied().unwrap_or(0);
        let committed = committed.get(&partition).cloned();
        offsets.push(match bounds {
            Ok((start, end)) => offset_row(topic, index, committed, start, end, owner),
            Err(error) => GroupOffset {
                topic,
                partition: index,
                committed: committed.map(|(offset, _)| offset.0),
                member: owner,
                error: format!("shard {}: {error}", shard.0),
                ..GroupOffset::default()
            },
        });
    }
    let is_home_silent = silent.contains_key(&session.shared.shards.home(&request.group).shard());
    let state = match is_home_silent {
        true => "unknown",
        false => state_name(home.standing),
    };
    let unreachable = silent
        .into_iter()
        .map(|(shard, error)| format!("shard {}: {}", shard.0, error.message))
        .collect();
    Ok(DescribeGroupResponse {
        group: request.group,
        epoch: home.epoch.0,
        state: state.to_owned(),
        members,
        offsets,
        unreachable,
        next: next.map(|(topic, partition)| GroupPartition { topic, partition }),
    })
}

/// A topic's name and the number of a partition.
type Name = (String, u32);

/// Leave the `page` rows behind `after`, of rows in order. Gives the last of them when more follow.
fn turn_to<T>(rows: &mut Vec<(T, Name)>, after: Option<&Name>, page: usize) -> Option<Name> {
    let skip = after.map_or(0, |after| rows.partition_point(|(_, name)| name <= after));
    rows.drain(..skip);
    let more = rows.len() > page;
    rows.truncate(page);
    rows.last().filter(|_| more).map(|(_, name)| name.clone())
}

/// How a group stands, as the wire says it.
pub(super) fn state_name(standing: Standing) -> &'static str {
    match standing {
        Standing::Empty => "empty",
        Standing::Stable => "stable",
        Standing::Rebalancing => "rebalancing",
    }
}

/// A group as its shards know it.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    /// From its home.
    pub(super) home: GroupInfo,
    pub(super) committed: BTreeMap<Partition, (Offset, String)>,
    /// Shards that could not say what they know, and why.
    pub(super) silent: BTreeMap<ShardId, messages::Error>,
}

impl Gathered {
    /// For who decides by it: what every shard said, or why one did not.
    pub(super) fn whole(mut self) -> Result<Self, messages::Error> {
        match self.silent.pop_first() {
            Some((_, error)) => Err(error),
            None => Ok(self),
        }
    }
}

/// The group at its home, and the offsets committed on all shards. UNKNOWN_GROUP when every shard answers
/// and none knows it.
pub(super) async fn gather(session: &Session, group: &str) -> Result<Gathered, messages::Error> {
    let shards = &session.shared.shards;
    let home = shards.home(group).shard();
    let mut gathered = Gathered::default();
    gathered.home.name = group.to_owned();
    let mut known = false;
    for shard in shards.all() {
        let request = Request::DescribeGroup {
            group: group.to_owned(),
        };
        match ask(shard, request).await {
            Ok(Reply::Group(mut part)) => {
                known = true;
                let committed = std::mem::take(&mut part.offsets).into_iter();
                let committed = committed.map(|(at, offset, metadata)| (at, (offset, metadata)));
                gathered.committed.extend(committed);
                if shard.shard() == home {
                    gathered.home = part;
                }
            }
            Ok(other) => return Err(unexpected(&other)),
            Err(error) if error.code == Code::UnknownGroup.number() => {}
            Err(error) => {
                gathered.silent.insert(shard.shard(), error);
            }
        }
    }
    if known {
        return Ok(gathered);
    }
    gathered.whole()?; // one that did not answer may know it
    Err(Code::UnknownGroup.error(format!("no group `{group}`")))
}

pub(super) type Bounds = Result<(Offset, Offset), messages::Error>;

pub(super) async fn all_bounds(
    session: &Session,
    partitions: &[Partition],
) -> BTreeMap<Partition, Bounds> {
    let mut found = BTreeMap::new();
    for together in partitions.chunks(TOGETHER) {
        let mut waiting = tokio::task::JoinSet::new();
        for partition in together {
            let (shard, partition) = (session.shared.shards.of(*partition).clone(), *partition);
            waiting.spawn_local(async move { (partition, bounds_at(&shard, partition).await) });
        }
        while let Some(Ok((partition, bounds))) = waiting.join_next().await {
            found.insert(partition, bounds);
        }
    }
    found
}

/// Start and released end.
pub(super) async fn bounds_at(shard: &ShardHandle, partition: Partition) -> Bounds {
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
        lag: Some(lag),
        member,
        metadata,
        error: String::new(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_have_each_row_once() {
        let rows: Vec<((), Name)> = ["a", "b"]
            .iter()
            .flat_map(|topic| (0..3).map(|partition| ((), ((*topic).to_owned(), partition))))
            .collect();
        for page in 1..8 {
            let (mut told, mut after) = (Vec::new(), None);
            loop {
                let mut left = rows.clone();
                after = turn_to(&mut left, after.as_ref(), page);
                assert!(left.len() <= page);
                told.extend(left);
                if after.is_none() {
                    break;
                }
            }
            assert_eq!(told, rows, "pages of {page}");
        }
        // What a page ended with may be gone by the next.
        let mut left = rows.clone();
        let gone = ("a".to_owned(), 7);
        assert_eq!(turn_to(&mut left, Some(&gone), 9), None);
        assert_eq!(left, rows[3..]);
    }
}
