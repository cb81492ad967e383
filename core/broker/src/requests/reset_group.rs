//! RESET_GROUP: move committed offsets of one topic.

use millstream_batch::ids::{Offset, Partition};
use millstream_machine::request::Request;
use millstream_machine::topic::TopicMeta;
use millstream_protocol::Code;
use millstream_protocol::messages::{self, ResetGroupRequest, ResetGroupResponse};
use millstream_shard::call::{Answer, Call};

use super::describe_group::{Gathered, bounds, gather, offset_row};
use super::offset_at::{At, position_of};
use crate::authority::Right;
use crate::refusals;
use crate::session::Session;
use crate::shards::ask;

pub(super) async fn handle(
    session: &Session,
    request: ResetGroupRequest,
) -> Result<ResetGroupResponse, messages::Error> {
    let principal = session.principal();
    principal.check(Right::Admin, &request.group)?;
    // The answer tells the topic's bounds, and what is committed decides who reads what of it.
    principal.check(Right::Consume, &request.topic)?;
    let topic = session.thread.catalog.topic(&request.topic).await?;
    let indexes = indexes(request.partitions, &topic)?;
    let members = match gather(session, &request.group)
        .await
        .and_then(Gathered::whole)
    {
        Ok(gathered) => gathered.home.members.len(),
        // Offsets may be set before the group's first member comes.
        Err(error) if error.code == Code::UnknownGroup.number() => 0,
        Err(error) => return Err(error),
    };
    if members > 0 && !request.force {
        let message = format!("group `{}` has {members} members", request.group);
        return Err(Code::GroupBusy.error(message));
    }
    let at = position_of(request.to.as_ref());
    let mut offsets = Vec::new();
    for index in indexes {
        let partition = Partition {
            topic: topic.id,
            index,
        };
        let shard = session.shared.shards.of(partition);
        let (start, end) = bounds(session, partition).await?;
        let offset = match at {
            At::Offset(offset, _) => Offset(offset.0.clamp(start.0, end.0)),
            At::Position(at) => match shard.call(Call::OffsetAt { partition, at }).await {
                Answer::Offset { offset, .. } => offset,
                other => return Err(refusals::unexpected(&other)),
            },
        };
        if !request.dry_run {
            // The group is empty, or was to be overruled: a claim that its last owner left behind is
            // nobody's, and is fenced.
            ask(
                shard,
                Request::ResetOffset {
                    group: request.group.clone(),
                    partition,
                    offset,
                    force: true,
                },
            )
            .await?;
        }
        offsets.push(offset_row(
            topic.name.clone(),
            index,
            Some((offset, String::new())),
            start,
            end,
            0,
        ));
    }
    Ok(ResetGroupResponse { offsets })
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
