//! CONFIGURE_TOPIC: settings set or reset.

use millstream_machine::request::{Reply, Request};
use millstream_protocol::messages::{self, ConfigureTopicRequest, ConfigureTopicResponse};

use super::convert;
use crate::authority::Right;
use crate::session::Session;
use crate::shards::{ask, unexpected};

pub(super) async fn handle(
    session: &Session,
    request: ConfigureTopicRequest,
) -> Result<ConfigureTopicResponse, messages::Error> {
    session.principal().check(Right::Admin, &request.name)?;
    convert::check_settings(&request.set)?;
    let set = request
        .set
        .into_iter()
        .map(|setting| (setting.key, setting.value))
        .collect();
    let shards = &session.shared.shards;
    match ask(
        shards.catalog(),
        Request::ConfigureTopic {
            name: request.name,
            set,
        },
    )
    .await?
    {
        Reply::Topic(meta) => {
            session.thread.spread(&meta).await?;
            Ok(ConfigureTopicResponse {
                topic: Some(convert::topic(&meta, &session.principal())),
            })
        }
        other => Err(unexpected(&other)),
    }
}
