//! DELETE_GROUP: refused at its home while it has members, unless forced; then forgotten by every shard.
//! Members of a group that is gone are told so by their streams, which end.

use millstream_machine::request::Request;
use millstream_protocol::messages::{self, DeleteGroupRequest, DeleteGroupResponse};

use super::describe_group::gather;
use crate::authority::Right;
use crate::session::Session;
use crate::shards::ask;

pub(super) async fn handle(
    session: &Session,
    request: DeleteGroupRequest,
) -> Result<DeleteGroupResponse, messages::Error> {
    session.principal().check(Right::Admin, &request.group)?;
    gather(session, &request.group).await?.whole()?; // a group that no shard knows is an error
    let shards = &session.shared.shards;
    ask(
        shards.home(&request.group),
        Request::DeleteGroup {
            group: request.group.clone(),
            force: request.force,
        },
    )
    .await?;
    for shard in shards.all() {
        ask(
            shard,
            Request::ForgetGroup {
                group: request.group.clone(),
            },
        )
        .await?;
    }
    Ok(DeleteGroupResponse {})
}
