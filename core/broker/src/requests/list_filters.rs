//! LIST_FILTERS: every binding of every topic that the principal sees, a page of topics at a time.

use millstream_machine::topic::{FilterBinding, TopicMeta};
use millstream_protocol::messages::{self, ListFiltersRequest, ListFiltersResponse};
use millstream_sandbox::Placement;

use super::convert;
use super::list_topics::page;
use crate::session::Session;

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
    request: ListFiltersRequest,
) -> Result<ListFiltersResponse, messages::Error> {
    let (topics, next) = page(session, &request.after).await?;
    let filters = topics
        .iter()
        .flat_map(|meta| meta.filters.iter().map(move |binding| (meta, binding)))
        .map(|(meta, binding)| messages::FilterInfo {
            state: state(session, meta, binding),
            ..convert::filter(meta, binding)
        })
        .collect();
    Ok(ListFiltersResponse { filters, next })
}
