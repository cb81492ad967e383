//! LIST_GROUPS: the groups of every shard, by name and a page at a time: how each stands, as its home says, and what it has
//! still to read on all of them.
//!
//! As with DESCRIBE_GROUP, what a shard that does not answer would have said is never taken for nothing: no
//! lag is told then.

use std::collections::{BTreeMap, BTreeSet};

use millstream_batch::ids::{Partition, ShardId, TopicId};
use millstream_machine::request::{GroupSummary as Part, Reply, Request, Standing};
use millstream_protocol::messages::{self, GroupSummary, ListGroupsRequest, ListGroupsResponse};
use millstream_shard::handle::ShardHandle;

use super::describe_group::{Bounds, all_bounds, state_name};
use crate::authority::Right;
use crate::session::Session;
use crate::shards::{ask, unexpected};

/// A group as the shards know it.
#[derive(Debug, Default)]
struct Known {
    home: Option<(Standing, usize)>,
    lag: u64,
    /// By topic: the shards whose part of it is in `lag`.
    counted: BTreeMap<TopicId, BTreeSet<ShardId>>,
}

pub(super) async fn handle(
    session: &Session,
    request: ListGroupsRequest,
) -> Result<ListGroupsResponse, messages::Error> {
    let principal = session.principal();
    principal.check_somewhere(Right::Consume)?;
    let shards = &session.shared.shards;
    let mut silent = BTreeMap::new();
    let mut all: BTreeMap<String, Known> = BTreeMap::new();
    // Every shard has told of its groups up to here; `None`: of all.
    let mut told: Option<String> = None;
    for shard in shards.all() {
        let parts = match groups_of(shard, &request.after).await {
            Ok((parts, more)) => {
                if let Some(last) = parts.last().filter(|_| more) {
                    told = Some(match told {
                        Some(told) => told.min(last.name.clone()),
                        None => last.name.clone(),
                    });
                }
                parts
            }
            Err(error) => {
                silent.insert(shard.shard(), error);
                continue;
            }
        };
        for part in parts {
            if !principal.may(Right::Consume, &part.name) {
                continue;
            }
            let group = all.entry(part.name).or_default();
            group.home = group.home.or(part.home);
            for (topic, lag) in part.lag {
                if partitions(session, topic) > 0 {
                    group.lag += lag;
                    let counted = group.counted.entry(topic).or_default();
                    counted.insert(shard.shard());
                }
            }
        }
    }
    if silent.len() == shards.all().len()
        && let Some((_, error)) = silent.pop_first()
    {
        return Err(error);
    }
    all.retain(|name, _| told.as_ref().is_none_or(|told| name <= told));
    let missing: BTreeSet<Partition> = all.values().flat_map(|g| unread(session, g)).collect();
    let missing: Vec<Partition> = missing.into_iter().collect();
    let bounds = all_bounds(session, &missing).await;
    let summary = |(name, known): (String, Known)| {
        let (standing, members) = known.home.unwrap_or_default();
        let state = match silent.contains_key(&shards.home(&name).shard()) {
            true => "unknown",
            false => state_name(standing),
        };
        GroupSummary {
            state: state.to_owned(),
            members: members as u32,
            lag: lag(session, &known, &bounds).filter(|_| silent.is_empty()),
            group: name,
        }
    };
    let groups = all.into_iter().map(summary).collect();
    let unreachable = silent
        .iter()
        .map(|(shard, error)| format!("shard {}: {}", shard.0, error.message))
        .collect();
    Ok(ListGroupsResponse {
        groups,
        unreachable,
        next: told.unwrap_or_default(),
    })
}

/// The next groups that a shard knows of, by name, and whether there are more.
async fn groups_of(shard: &ShardHandle, after: &str) -> Result<(Vec<Part>, bool), messages::Error> {
    let request = Request::ListGroups {
        after: after.to_owned(),
    };
    match ask(shard, request).await? {
        Reply::Groups { groups, more } => Ok((groups, more)),
        other => Err(unexpected(&other)),
    }
}

/// How many partitions a topic has; none if it is not to be seen.
fn partitions(session: &Session, topic: TopicId) -> u32 {
    let topic = session.thread.catalog.cached(topic);
    let seen = topic.filter(|topic| session.principal().sees(&topic.name));
    seen.map_or(0, |topic| topic.partitions)
}

/// Partitions of a group's topics where no shard knows of the group: all that is in them is unread.
fn unread(session: &Session, known: &Known) -> Vec<Partition> {
    let shards = &session.shared.shards;
    let mut unread = Vec::new();
    for (&topic, counted) in &known.counted {
        if counted.len() < shards.all().len() {
            let all = (0..partitions(session, topic)).map(|index| Partition { topic, index });
            unread
                .extend(all.filter(|partition| !counted.contains(&shards.of(*partition).shard())));
        }
    }
    unread
}

/// `None`: not all of it is known.
fn lag(session: &Session, known: &Known, bounds: &BTreeMap<Partition, Bounds>) -> Option<u64> {
    let mut lag = known.lag;
    for partition in unread(session, known) {
        let (start, end) = bounds.get(&partition)?.as_ref().ok()?;
        lag += end.0.saturating_sub(start.0);
    }
    Some(lag)
}
