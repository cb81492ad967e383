//! CREATE_TOPIC: decided at shard 0, answered when every shard knows the topic.

use millstream_batch::ids::TopicId;
use millstream_machine::request::{Reply, Request};
use millstream_machine::topic::TopicConfig;
use millstream_protocol::Code;
use millstream_protocol::messages::{self, CreateTopicRequest, CreateTopicResponse};

use super::convert;
use crate::authority::Right;
use crate::session::Session;
use crate::shards::{ask, unexpected};

pub(super) async fn handle(
    session: &Session,
    request: CreateTopicRequest,
) -> Result<CreateTopicResponse, messages::Error> {
    session.principal().check(Right::Admin, &request.name)?;
    let mut config = TopicConfig::default();
    convert::apply_settings(&mut config, &request.config)?;
    let partitions = match request.partitions {
        0 => session.shared.config.topics.partitions,
        partitions => partitions,
    };
    let shards = &session.shared.shards;
    let id = TopicId(*uuid::Uuid::now_v7().as_bytes());
    let create = Request::CreateTopic {
        id,
        name: request.name.clone(),
        partitions,
        config,
    };
    let (meta, created) = match ask(shards.catalog(), create).await {
        Ok(Reply::Topic(meta)) => (meta, true),
        Ok(other) => return Err(unexpected(&other)),
        Err(error) if error.code == Code::TopicExists.number() && request.if_not_exists => {
            match ask(
                shards.catalog(),
                Request::DescribeTopic { name: request.name },
            )
            .await?
            {
                Reply::Topic(meta) => (meta, false),
                other => return Err(unexpected(&other)),
            }
        }
        Err(error) => return Err(error),
    };
    // Also when it existed: its creator may have died between the two steps.
    session.shared.spread.apply(shards, &meta).await?;
    Ok(CreateTopicResponse {
        topic: Some(convert::topic(&meta)),
        created,
    })
}
