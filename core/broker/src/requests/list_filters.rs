//! LIST_FILTERS: every binding of every topic that the principal sees.

use millstream_machine::request::{Reply, Request};
use millstream_machine::topic::{FilterBinding, TopicMeta};
use millstream_protocol::messages::{self, ListFiltersRequest, ListFiltersResponse};
use millstream_sandbox::Placement;

use super::convert;
use crate::session::Session;
use crate::shards::{ask, unexpected};

/// How a filter fares: its component, then where it runs.
pub(super) fn state(session: &Session, meta: &TopicMeta, binding: &FilterBinding) -> String {
    let shared = &session.shared;
    match shared.plugins.deployments.placed(meta.id, binding) {
        Some(Placement::Worker) => "running on a worker thread: slow, or killed once".to_owned(),
        Some(Placement::Paused) => {
            "paused: killed too often; correct it, then deploy it again".to_owned()
        }
        Some(Placement::Shard) | None => shared.components.state(&binding.digest),
    }
}

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
    let filters = topics
        .iter()
        .flat_map(|meta| meta.filters.iter().map(move |binding| (meta, binding)))
        .map(|(meta, binding)| messages::FilterInfo {
            state: state(session, meta, binding),
            ..convert::filter(meta, binding)
        })
        .collect();
    Ok(ListFiltersResponse { filters })
}
