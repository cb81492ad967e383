//! DESCRIBE_GROUP: members from the group's home, offsets and lag from the shards of the partitions.
//! Topics that the principal does not see are left out. A page asks for its own partitions alone.
//!
//! What a shard that does not answer would have said is missing, and said to be: never taken for nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use millstream_batch::ids::{Offset, Partition, ShardId, TopicId};
use millstream_machine::request::{GroupInfo, Reply, Request, Standing};
use millstream_machine::topics::TopicMeta;
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
        committed_in,
        silent,
    } = gather(session, &request.group).await?;
    let mut members = Vec::new();
    let mut topics = committed_in;
    for member in &home.members {
        topics.extend(&member.topics);
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
    let after = request.after.map(|after| (after.topic, after.partition));
    if after.is_some() {
        members.clear();
    }
    // Every partition of what the group reads or has read: one without a commit is unread, not absent.
    let seen = |topic| {
        let topic = session.thread.catalog.cached(topic)?;
        session.principal().sees(&topic.name).then_some(topic)
    };
    let mut topics: Vec<Rc<TopicMeta>> = topics.into_iter().filter_map(seen).collect();
    topics.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    let counts = topics.iter().map(|topic| (&*topic.name, topic.partitions));
    let counts: Vec<(&str, u32)> = counts.collect();
    let after = after
        .as_ref()
        .map(|(topic, index)| (topic.as_str(), *index));
    let (rows, more) = page(&counts, after, PAGE);
    let partition_of = |(topic, index): (usize, u32)| Partition {
        topic: topics[topic].id,
        index,
    };
    let asked: Vec<Partition> = rows.iter().copied().map(partition_of).collect();
    let mut page = look_up(session, &request.group, &asked, silent).await?;
    let mut bounds_of = all_bounds(session, &asked).await;
    let mut offsets = Vec::with_capacity(rows.len());
    for (partition, &(topic, index)) in asked.into_iter().zip(&rows) {
        let topic = topics[topic].name.clone();
        let shard = session.shared.shards.of(partition).shard();
        let bounds = match (page.silent.get(&shard), bounds_of.remove(&partition)) {
            (Some(error), _) => Err(error.message.clone()),
            (None, Some(Ok(bounds))) => Ok(bounds),
            (None, Some(Err(error))) => Err(error.message),
            (None, None) => Err("it was not asked".to_owned()),
        };
        let owner = page.owners.get(&partition).copied().unwrap_or(0);
        let committed = page.committed.remove(&partition);
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
    let home_shard = session.shared.shards.home(&request.group).shard();
    let state = match page.silent.contains_key(&home_shard) {
        true => "unknown",
        false => state_name(home.standing),
    };
    let unreachable = page.silent.into_iter();
    let unreachable = unreachable
        .map(|(shard, error)| format!("shard {}: {}", shard.0, error.message))
        .collect();
    let next = rows.last().filter(|_| more);
    Ok(DescribeGroupResponse {
        group: request.group,
        epoch: home.epoch.0,
        state: state.to_owned(),
        members,
        offsets,
        unreachable,
        next: next.map(|&(topic, partition)| GroupPartition {
            topic: topics[topic].name.clone(),
            partition,
        }),
    })
}

/// The first `most` partitions behind `after`, of topics in order with how many each has: the topic's place
/// and the partition's number. And whether more follow. Costs what it gives.
fn page(
    topics: &[(&str, u32)],
    after: Option<(&str, u32)>,
    most: usize,
) -> (Vec<(usize, u32)>, bool) {
    let first = after.map_or(0, |(name, _)| {
        topics.partition_point(|topic| topic.0 < name)
    });
    let begins = |name: &str| match after {
        Some((topic, last)) if topic == name => last.saturating_add(1),
        _ => 0,
    };
    let rest = topics.iter().enumerate().skip(first);
    let mut rows = rest.flat_map(|(at, (name, count))| {
        let indexes = begins(name)..*count;
        indexes.map(move |index| (at, index))
    });
    let page = rows.by_ref().take(most).collect();
    (page, rows.next().is_some())
}

/// What is known of some partitions.
struct Page {
    owners: BTreeMap<Partition, u64>,
    committed: BTreeMap<Partition, (Offset, String)>,
    /// Shards that could not say what they know, and why.
    silent: BTreeMap<ShardId, messages::Error>,
}

/// Ask the home who owns these, and each shard for its own what is committed.
async fn look_up(
    session: &Session,
    group: &str,
    partitions: &[Partition],
    silent: BTreeMap<ShardId, messages::Error>,
) -> Result<Page, messages::Error> {
    let shards = &session.shared.shards;
    let home = shards.home(group).shard();
    let mut page = Page {
        owners: BTreeMap::new(),
        committed: BTreeMap::new(),
        silent,
    };
    for shard in shards.all() {
        let is_home = shard.shard() == home;
        let mut of = partitions.to_vec();
        of.retain(|partition| is_home || shards.of(*partition).shard() == shard.shard());
        if of.is_empty() || page.silent.contains_key(&shard.shard()) {
            continue;
        }
        match describe(shard, group, of).await {
            Ok(part) => {
                let committed = part.offsets.into_iter();
                let committed = committed.map(|(at, offset, metadata)| (at, (offset, metadata)));
                page.committed.extend(committed);
                for member in part.members {
                    let owned = member.partitions.into_iter();
                    page.owners.extend(owned.map(|at| (at, member.member.0)));
                }
            }
            Err(error) if error.code == Code::UnknownGroup.number() => {}
            Err(error) => {
                page.silent.insert(shard.shard(), error);
            }
        }
    }
    Ok(page)
}

/// What one shard knows of a group: of these partitions, and which topics there are.
async fn describe(
    shard: &ShardHandle,
    group: &str,
    of: Vec<Partition>,
) -> Result<GroupInfo, messages::Error> {
    let request = Request::DescribeGroup {
        group: group.to_owned(),
        of: Some(of),
    };
    match ask(shard, request).await? {
        Reply::Group(info) => Ok(info),
        other => Err(unexpected(&other)),
    }
}

/// How a group stands, as the wire says it.
pub(super) fn state_name(standing: Standing) -> &'static str {
    match standing {
        Standing::Empty => "empty",
        Standing::Stable => "stable",
        Standing::Rebalancing => "rebalancing",
    }
}

/// A group as its shards know it, but for its partitions.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    /// From its home.
    pub(super) home: GroupInfo,
    /// Topics of which it has committed an offset.
    pub(super) committed_in: BTreeSet<TopicId>,
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

/// The group at its home, and the topics that it has offsets in on all shards. UNKNOWN_GROUP when every
/// shard answers and none knows it.
pub(super) async fn gather(session: &Session, group: &str) -> Result<Gathered, messages::Error> {
    let shards = &session.shared.shards;
    let home = shards.home(group).shard();
    let mut gathered = Gathered::default();
    gathered.home.name = group.to_owned();
    let mut known = false;
    for shard in shards.all() {
        match describe(shard, group, Vec::new()).await {
            Ok(part) => {
                known = true;
                gathered.committed_in.extend(&part.topics);
                if shard.shard() == home {
                    gathered.home = part;
                }
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_have_each_row_once() {
        let topics = [("a", 3), ("b", 0), ("c", 3)];
        let rows: Vec<(usize, u32)> = [0, 2]
            .into_iter()
            .flat_map(|topic| (0..3).map(move |partition| (topic, partition)))
            .collect();
        for most in 1..8 {
            let (mut told, mut after) = (Vec::new(), None);
            loop {
                let (rows, more) = page(&topics, after, most);
                assert!(rows.len() <= most);
                after = rows.last().map(|&(topic, index)| (topics[topic].0, index));
                told.extend(rows);
                if !more {
                    break;
                }
            }
            assert_eq!(told, rows, "pages of {most}");
        }
        // What a page ended with may be gone by the next.
        for gone in [("a", 7), ("aa", 1), ("b", 0)] {
            assert_eq!(page(&topics, Some(gone), 9), (rows[3..].to_vec(), false));
        }
        assert_eq!(page(&topics, Some(("c", u32::MAX)), 9), (Vec::new(), false));
    }
}
