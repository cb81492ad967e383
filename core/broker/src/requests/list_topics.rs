//! LIST_TOPICS: those that the principal has any right for, by name.

use millstream_machine::request::{Reply, Request};
use millstream_protocol::messages::{self, ListTopicsRequest, ListTopicsResponse};

use super::convert;
use crate::session::Session;
use crate::shards::{ask, unexpected};

pub(super) async fn handle(
    session: &Session,
    _: ListTopicsRequest,
) -> Result<ListTopicsResponse, messages::Error> {
    let principal = session.principal();
    let mut topics = match ask(session.shared.shards.catalog(), Request::ListTopics).await? {
        Reply::Topics(topics) => topics,
        other => return Err(unexpected(&other)),
    };
    topics.retain(|meta| principal.sees(&meta.name));
    topics.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(ListTopicsResponse {
        topics: topics.iter().map(convert::topic).collect(),
    })
}
