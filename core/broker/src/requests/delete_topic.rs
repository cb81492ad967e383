//! DELETE_TOPIC: decided at shard 0, answered when every shard that answers has let go.

use millstream_machine::request::{Reply, Request};
use millstream_protocol::messages::{self, DeleteTopicRequest, DeleteTopicResponse};

use super::deploy_filter::sweep_later;
use crate::authority::Right;
use crate::session::Session;
use crate::shards::{ask, unexpected};

pub(super) async fn handle(
    session: &Session,
    request: DeleteTopicRequest,
) -> Result<DeleteTopicResponse, messages::Error> {
    session.principal().check(Right::Admin, &request.name)?;
    let shards = &session.shared.shards;
    match ask(
        shards.catalog(),
        Request::DeleteTopic { name: request.name },
    )
    .await?
    {
        Reply::TopicGone { id, revision } => {
            session.thread.forget(id, revision).await?;
            session.shared.plugins.deployments.keep(id, &[]);
            sweep_later(session);
        }
        other => return Err(unexpected(&other)),
    }
    Ok(DeleteTopicResponse {})
}
