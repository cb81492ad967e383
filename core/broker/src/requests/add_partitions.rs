//! ADD_PARTITIONS: more of them, never fewer.

use millstream_machine::request::{Reply, Request};
use millstream_protocol::messages::{self, AddPartitionsRequest, AddPartitionsResponse};

use super::convert;
use crate::authority::Right;
use crate::session::Session;
use crate::shards::{ask, unexpected};

pub(super) async fn handle(
    session: &Session,
    request: AddPartitionsRequest,
) -> Result<AddPartitionsResponse, messages::Error> {
    session.principal().check(Right::Admin, &request.name)?;
    let shards = &session.shared.shards;
    match ask(
        shards.catalog(),
        Request::AddPartitions {
            name: request.name,
            total: request.total,
        },
    )
    .await?
    {
        Reply::Topic(meta) => {
            session.thread.spread(&meta).await?;
            Ok(AddPartitionsResponse {
                topic: Some(convert::topic(&meta, &session.principal())),
            })
        }
        other => Err(unexpected(&other)),
    }
}
