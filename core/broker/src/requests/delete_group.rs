//! DELETE_GROUP: refused at its home while it has members, unless forced; then forgotten by every shard, which
//! the home sends word. Members of a group that is gone are told so by their streams, which end.

use millstream_machine::request::{Reply, Request};
use millstream_protocol::messages::{self, DeleteGroupRequest, DeleteGroupResponse};
use millstream_shard::call::{Answer, Call};

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
    gather(session, &request.group).await?.whole()?; // a group that no shard knows is an error
    let home = session.shared.shards.home(&request.group);
    let group = request.group.clone();
    let force = request.force;
    ask(home, Request::DeleteGroup { group, force }).await?;
    // It is done from here on, whatever happens; its name is free when no shard knows it any more.
    let call = Call::WatchForgotten {
        group: request.group,
        wait_ms: FORGOTTEN_MS_MAX,
    };
    match home.call(call).await {
        Answer::Reply(Reply::Done) => Ok(DeleteGroupResponse {}),
        other => Err(refusals::unexpected(&other)),
    }
}
