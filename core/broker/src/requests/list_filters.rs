//! LIST_FILTERS: every binding of every topic that the principal sees.

use millstream_machine::request::{Reply, Request};
use millstream_protocol::messages::{self, ListFiltersRequest, ListFiltersResponse};

use super::convert;
use crate::session::Session;
use crate::shards::{ask, unexpected};

pub(super) async fn handle(
    session: &Session,
    _: ListFiltersRequest,
) -> Result<ListFiltersResponse, messages::Error> {
    let principal = session.principal();
    let mut topics = match ask(session.shared.shards.catalog(), Request::ListTopics).await? {
        Reply::Topics(topics) => topics,
        other => return Err(unexpected(&other)),
    };
    topics.retain(|meta| principal.sees(&meta.name));
    topics.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    let components = &session.shared.components;
    let filters = topics
        .iter()
        .flat_map(|meta| meta.filters.iter().map(move |binding| (meta, binding)))
        .map(|(meta, binding)| messages::FilterInfo {
            state: components.state(&binding.digest),
            ..convert::filter(meta, binding)
        })
        .collect();
    Ok(ListFiltersResponse { filters })
}
