//! REMOVE_FILTER: unbind a component from a topic.

use millstream_machine::request::{Reply, Request};
use millstream_protocol::messages::{self, RemoveFilterRequest, RemoveFilterResponse};

use super::deploy_filter::sweep_later;
use crate::authority::Right;
use crate::session::Session;
use crate::shards::{ask, unexpected};

pub(super) async fn handle(
    session: &Session,
    request: RemoveFilterRequest,
) -> Result<RemoveFilterResponse, messages::Error> {
    session.principal().check(Right::Deploy, &request.topic)?;
    let shards = &session.shared.shards;
    match ask(
        shards.catalog(),
        Request::RemoveFilter {
            topic: request.topic,
            name: request.name,
        },
    )
    .await?
    {
        Reply::Topic(meta) => {
            session.thread.spread(&meta).await?;
            let deployments = &session.shared.plugins.deployments;
            deployments.keep(meta.id, &meta.filters);
            sweep_later(session);
        }
        other => return Err(unexpected(&other)),
    }
    Ok(RemoveFilterResponse {})
}
