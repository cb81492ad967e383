//! DELETE_GROUP: refused at its home while it has members, unless forced; then forgotten by every shard, which
//! the home sends word. Members of a group that is gone are told so by their streams, which end.

use millstream_machine::request::{Reply, Request};
use millstream_protocol::Code;
use millstream_protocol::messages::{self, DeleteGroupRequest, DeleteGroupResponse};
use millstream_shard::call::{Answer, Call};
use millstream_shard::handle::ShardHandle;

use super::describe_group::gather;
use crate::authority::Right;
use crate::refusals;
use crate::session::Session;
use crate::shards::ask;

/// How long the shards are waited for.
const FORGOTTEN_MS_MAX: u32 = 5_000;

pub(super) async fn handle(
    session: &Session,
    request: DeleteGroupRequest,
) -> Result<DeleteGroupResponse, messages::Error> {
    session.principal().check(Right::Admin, &request.group)?;
    let home = session.shared.shards.home(&request.group);
    // A deletion that was asked before may not be over: it is waited for, so that this one finds all there is.
    let before = forgotten(home, &request.group, 0).await;
    if before.is_err() {
        forgotten(home, &request.group, FORGOTTEN_MS_MAX).await?;
    }
    match gather(session, &request.group).await {
        Ok(_) => {}
        // That was this one, answered with BUSY then.
        Err(error) if error.code == Code::UnknownGroup.number() && before.is_err() => {
            return Ok(DeleteGroupResponse {});
        }
        Err(error) => return Err(error), // a group that no shard knows is an error
    }
    let group = request.group.clone();
    let force = request.force;
    ask(home, Request::DeleteGroup { group, force }).await?;
    // It is done from here on, whatever happens; its name is free when no shard knows it any more.
    forgotten(home, &request.group, FORGOTTEN_MS_MAX).await?;
    Ok(DeleteGroupResponse {})
}

/// That every shard has forgotten what was deleted of this name, or BUSY.
async fn forgotten(home: &ShardHandle, group: &str, wait_ms: u32) -> Result<(), messages::Error> {
    let group = group.to_owned();
    match home.call(Call::WatchForgotten { group, wait_ms }).await {
        Answer::Reply(Reply::Done) => Ok(()),
        other => Err(refusals::unexpected(&other)),
    }
}
