//! LIST_TOPICS: those that the principal has any right for, a page at a time.

use bytes::Bytes;
use millstream_batch::ids::TopicId;
use millstream_machine::request::{Reply, Request};
use millstream_machine::topics::TopicMeta;
use millstream_protocol::Code;
use millstream_protocol::messages::{self, ListTopicsRequest, ListTopicsResponse};

use super::convert;
use crate::session::Session;
use crate::shards::{ask, unexpected};

pub(super) async fn handle(
    session: &Session,
    request: ListTopicsRequest,
) -> Result<ListTopicsResponse, messages::Error> {
    let (topics, next) = page(session, &request.after).await?;
    let principal = session.principal();
    Ok(ListTopicsResponse {
        topics: topics
            .iter()
            .map(|meta| convert::topic(meta, &principal))
            .collect(),
        next,
    })
}

/// The topics behind `after` that the principal sees, and where the next page begins; empty: that was the last.
pub(super) async fn page(
    session: &Session,
    after: &[u8],
) -> Result<(Vec<TopicMeta>, Bytes), messages::Error> {
    let after = match after {
        [] => None,
        id => Some(TopicId(id.try_into().map_err(|_| {
            Code::BadRequest.error("`after` is the `next` of the page before")
        })?)),
    };
    let mut topics = match ask(
        session.shared.shards.catalog(),
        Request::TopicsAfter { after },
    )
    .await?
    {
        Reply::Topics(topics) => topics,
        other => return Err(unexpected(&other)),
    };
    let next = topics
        .last()
        .map(|meta| Bytes::copy_from_slice(&meta.id.0))
        .unwrap_or_default();
    let principal = session.principal();
    topics.retain(|meta| principal.sees(&meta.name));
    Ok((topics, next))
}
