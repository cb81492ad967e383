//! CREATE_TOPIC: decided at shard 0, answered when every shard that answers knows the topic.

use millstream_batch::ids::TopicId;
use millstream_machine::request::{Reply, Request};
use millstream_machine::topics::TopicConfig;
use millstream_protocol::Code;
use millstream_protocol::messages::{self, CreateTopicRequest, CreateTopicResponse};

use super::convert;
use crate::authority::Right;
use crate::session::Session;
use crate::shards::{ask, unexpected};

/// Bytes of a key: a UUID, or a digest.
const KEY_BYTES_MAX: usize = 32;

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
    let id = TopicId(match request.key.as_ref() {
        [] => uuid::Uuid::now_v7().into_bytes(),
        key if key.len() <= KEY_BYTES_MAX => {
            let principal = session.principal();
            let secrets = &session.shared.secrets;
            secrets.topic_id(&principal.name, &request.name, key)
        }
        _ => return Err(Code::BadRequest.error(format!("a key has at most {KEY_BYTES_MAX} bytes"))),
    });
    let create = Request::CreateTopic {
        id,
        name: request.name.clone(),
        partitions,
        config,
    };
    let (meta, created) = match ask(shards.catalog(), create).await {
        Ok(Reply::Topic(meta)) => (meta, true),
        Ok(other) => return Err(unexpected(&other)),
        Err(error) if error.code == Code::TopicExists.number() => {
            match ask(
                shards.catalog(),
                Request::DescribeTopic { name: request.name },
            )
            .await?
            {
                // The repeat of a request that was carried out, and whose answer was lost or an error.
                Reply::Topic(meta) if meta.id == id => (meta, true),
                Reply::Topic(meta) if request.if_not_exists => (meta, false),
                Reply::Topic(_) => return Err(error),
                other => return Err(unexpected(&other)),
            }
        }
        Err(error) => return Err(error),
    };
    // Also when it existed: its creator may have died between the two steps.
    session.thread.spread(&meta).await?;
    Ok(CreateTopicResponse {
        topic: Some(convert::topic(&meta, &session.principal())),
        created,
    })
}
