//! RESET_GROUP: move committed offsets of one topic.
//!
//! Where a partition is kept, the reset fences the member that holds it; then the group's home gives the
//! partition out anew, above the fence, and its member goes on from the reset. A member that met the fence
//! before the home was told has the same done (`subscription::group`).

use std::collections::BTreeMap;

use millstream_batch::ids::{GroupEpoch, Offset, Partition, TopicId};
use millstream_machine::request::{Reply, Request};
use millstream_machine::topic::TopicMeta;
use millstream_protocol::Code;
use millstream_protocol::messages::{self, ResetGroupRequest, ResetGroupResponse};
use millstream_shard::call::{Answer, Call};
use millstream_shard::handle::ShardHandle;

use super::describe_group::{Gathered, TOGETHER, bounds_at, gather, offset_row};
use super::offset_at::{At, position_of};
use crate::authority::Right;
use crate::refusals;
use crate::session::Session;
use crate::shards::{ask, unexpected};

pub(super) async fn handle(
    session: &Session,
    mut request: ResetGroupRequest,
) -> Result<ResetGroupResponse, messages::Error> {
    let principal = session.principal();
    principal.check(Right::Admin, &request.group)?;
    // The answer tells the topic's bounds, and what is committed decides who reads what of it.
    principal.check(Right::Consume, &request.topic)?;
    let topic = session.thread.catalog.topic(&request.topic).await?;
    let indexes = indexes(std::mem::take(&mut request.partitions), &topic)?;
    let members = match gather(session, &request.group)
        .await
        .and_then(Gathered::whole)
    {
        Ok(gathered) => gathered.home.members.len(),
        // Offsets may be set before the group's first member comes; a name that was mistyped has none.
        Err(error) if error.code == Code::UnknownGroup.number() && request.create => 0,
        Err(error) => return Err(error),
    };
    if members > 0 && !request.force && !request.dry_run {
        let message = format!("group `{}` has {members} members", request.group);
        return Err(Code::GroupBusy.error(message));
    }
    let at = position_of(request.to.as_ref());
    let mut offsets = Vec::new();
    let mut fenced = Vec::new();
    let mut outcome = Ok(());
    for together in indexes.chunks(TOGETHER) {
        let set = set_together(session, &request, topic.id, together, at).await;
        for (index, set) in set {
            match set {
                Ok(set) => {
                    let partition = Partition {
                        topic: topic.id,
                        index,
                    };
                    fenced.extend(set.fence.map(|fence| (partition, fence)));
                    let committed = Some((set.offset, String::new()));
                    let (start, end) = set.bounds;
                    let name = topic.name.clone();
                    offsets.push(offset_row(name, index, committed, start, end, 0));
                }
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        if outcome.is_err() {
            break;
        }
    }
    // Also when not all could be set: whoever was fenced is to go on.
    if !fenced.is_empty() {
        let home = session.shared.shards.home(&request.group);
        let group = request.group;
        ask(home, Request::ReassignPartitions { group, fenced }).await?;
    }
    outcome.map(|()| ResetGroupResponse { offsets })
}

/// A partition's place as it was, or would be, set.
struct Set {
    offset: Offset,
    bounds: (Offset, Offset),
    /// Members up to this epoch are fenced.
    fence: Option<GroupEpoch>,
}

/// Set these partitions, in the order of their numbers.
async fn set_together(
    session: &Session,
    request: &ResetGroupRequest,
    topic: TopicId,
    indexes: &[u32],
    at: At,
) -> BTreeMap<u32, Result<Set, messages::Error>> {
    let mut waiting = tokio::task::JoinSet::new();
    for &index in indexes {
        let partition = Partition { topic, index };
        let shard = session.shared.shards.of(partition).clone();
        let (group, dry_run) = (request.group.clone(), request.dry_run);
        waiting.spawn_local(async move {
            let set = reset(&shard, group, partition, at, dry_run).await;
            (index, set)
        });
    }
    let mut set = BTreeMap::new();
    while let Some(done) = waiting.join_next().await {
        set.extend(done);
    }
    for &index in indexes {
        // Its task ended badly.
        set.entry(index).or_insert_with(|| {
            let message = format!("partition {index} may or may not be set: see the broker's log");
            Err(Code::Internal.error(message))
        });
    }
    set
}

async fn reset(
    shard: &ShardHandle,
    group: String,
    partition: Partition,
    at: At,
    dry_run: bool,
) -> Result<Set, messages::Error> {
    let bounds = bounds_at(shard, partition).await?;
    let offset = match at {
        At::Offset(offset, _) => Offset(offset.0.clamp(bounds.0.0, bounds.1.0)),
        At::Position(at) => match shard.call(Call::OffsetAt { partition, at }).await {
            Answer::Offset { offset, .. } => offset,
            other => return Err(refusals::unexpected(&other)),
        },
    };
    let mut fence = None;
    if !dry_run {
        // The group is empty, or was to be overruled: a claim that its last owner left behind is
        // nobody's, and is fenced.
        let request = Request::ResetOffset {
            group,
            partition,
            offset,
            force: true,
        };
        match ask(shard, request).await? {
            Reply::Reset { fence: at } => fence = Some(at),
            other => return Err(unexpected(&other)),
        }
    }
    Ok(Set {
        offset,
        bounds,
        fence,
    })
}

/// The partitions that are meant: those that are named, each once, or all.
fn indexes(mut named: Vec<u32>, topic: &TopicMeta) -> Result<Vec<u32>, messages::Error> {
    if named.is_empty() {
        return Ok((0..topic.partitions).collect());
    }
    named.sort_unstable();
    if let Some(pair) = named.windows(2).find(|pair| pair[0] == pair[1]) {
        let message = format!("RESET_GROUP names partition {} twice", pair[0]);
        return Err(Code::BadRequest.error(message));
    }
    match named.last() {
        Some(&last) if last >= topic.partitions => Err(Code::UnknownPartition.error(format!(
            "topic `{}` has {} partitions, no {last}",
            topic.name, topic.partitions
        ))),
        _ => Ok(named),
    }
}
