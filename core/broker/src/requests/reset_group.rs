//! RESET_GROUP: move committed offsets of one topic.
//!
//! Where a partition is kept, the reset fences the member that holds it; then the group's home gives the
//! partition out anew, above the fence, and its member goes on from the reset. A member that met the fence
//! before the home was told has the same done (`subscription::group`).

use std::collections::BTreeMap;

use millstream_batch::ids::{GroupEpoch, Offset, Partition, ShardId, TopicId};
use millstream_machine::request::{RESETS_MAX, Reply, Request};
use millstream_machine::topics::TopicMeta;
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
    // All places are known before the first is set.
    let mut places = Vec::with_capacity(indexes.len());
    for together in indexes.chunks(TOGETHER) {
        for (_, place) in look_up(session, topic.id, together, at).await {
            places.push(place?);
        }
    }
    if !request.dry_run {
        set(session, request.group, &mut places, at).await?;
    }
    let row = |place: &Place| {
        let committed = Some((place.offset, String::new()));
        let ((start, end), name) = (place.bounds, topic.name.clone());
        offset_row(name, place.partition.index, committed, start, end, 0)
    };
    let offsets = places.iter().map(row).collect();
    Ok(ResetGroupResponse { offsets })
}

/// Where the group is to go on in a partition.
struct Place {
    partition: Partition,
    offset: Offset,
    bounds: (Offset, Offset),
}

/// The places in these partitions, in the order of their numbers.
async fn look_up(
    session: &Session,
    topic: TopicId,
    indexes: &[u32],
    at: At,
) -> BTreeMap<u32, Result<Place, messages::Error>> {
    let mut waiting = tokio::task::JoinSet::new();
    for &index in indexes {
        let partition = Partition { topic, index };
        let shard = session.shared.shards.of(partition).clone();
        waiting.spawn_local(async move { (index, place(&shard, partition, at).await) });
    }
    let mut places = BTreeMap::new();
    while let Some(done) = waiting.join_next().await {
        places.extend(done);
    }
    for &index in indexes {
        // Its task ended badly.
        places.entry(index).or_insert_with(|| {
            let message = format!("partition {index} was not looked up: see the broker's log");
            Err(Code::Internal.error(message))
        });
    }
    places
}

async fn place(
    shard: &ShardHandle,
    partition: Partition,
    at: At,
) -> Result<Place, messages::Error> {
    let bounds = bounds_at(shard, partition).await?;
    let offset = match at {
        At::Offset(offset, _) => Offset(offset.0.clamp(bounds.0.0, bounds.1.0)),
        At::Position(at) => match shard.call(Call::OffsetAt { partition, at }).await {
            Answer::Offset { offset, .. } => offset,
            other => return Err(refusals::unexpected(&other)),
        },
    };
    Ok(Place {
        partition,
        offset,
        bounds,
    })
}

/// Set all places of a shard together, [`RESETS_MAX`] at a time. The first error ends it; the group's home is
/// told of what was set before.
async fn set(
    session: &Session,
    group: String,
    places: &mut [Place],
    at: At,
) -> Result<(), messages::Error> {
    let shards = &session.shared.shards;
    let mut by_shard: BTreeMap<ShardId, Vec<&mut Place>> = BTreeMap::new();
    for place in places {
        let shard = place.partition.shard(shards.count());
        by_shard.entry(shard).or_default().push(place);
    }
    let mut fenced = Vec::new();
    let mut outcome = Ok(());
    let together = by_shard.values_mut();
    for together in together.flat_map(|all| all.chunks_mut(RESETS_MAX)) {
        match set_together(session, &group, together, at).await {
            Ok(fences) => {
                let partitions = together.iter().map(|place| place.partition);
                fenced.extend(partitions.zip(fences));
            }
            Err(error) => {
                outcome = Err(error);
                break;
            }
        }
    }
    if !fenced.is_empty() {
        let home = shards.home(&group);
        ask(home, Request::ReassignPartitions { group, fenced }).await?;
    }
    outcome
}

/// Set these places of one shard. Where retention has passed one since it was looked up, all are looked up once
/// more.
async fn set_together(
    session: &Session,
    group: &str,
    places: &mut [&mut Place],
    at: At,
) -> Result<Vec<GroupEpoch>, messages::Error> {
    let shard = session.shared.shards.of(places[0].partition);
    for last in [false, true] {
        let wanted = places.iter().map(|place| (place.partition, place.offset));
        // The group is empty, or was to be overruled: a claim that its last owner left behind is
        // nobody's, and is fenced.
        let request = Request::ResetOffsets {
            group: group.to_owned(),
            places: wanted.collect(),
            force: true,
        };
        match ask(shard, request).await {
            Ok(Reply::Reset { fences }) => return Ok(fences),
            Ok(other) => return Err(unexpected(&other)),
            Err(error) if last || error.code != Code::OffsetOutOfRange.number() => {
                return Err(error);
            }
            Err(_) => {}
        }
        for looked_up in places.iter_mut() {
            **looked_up = place(shard, looked_up.partition, at).await?;
        }
    }
    unreachable!("the second time is the last")
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
            "topic `{}` has no partition {last} (partitions: {})",
            topic.name, topic.partitions
        ))),
        _ => Ok(named),
    }
}
