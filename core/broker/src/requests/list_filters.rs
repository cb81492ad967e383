//! LIST_FILTERS: every binding of every topic that the principal sees, a page of topics at a time.

use std::time::{SystemTime, UNIX_EPOCH};

use millstream_machine::topics::{FilterBinding, TopicMeta};
use millstream_protocol::messages::{self, FilterInfo, ListFiltersRequest, ListFiltersResponse};
use millstream_sandbox::Placement;

use super::convert;
use super::list_topics::page;
use crate::authority::Right;
use crate::session::Session;

/// A binding, and how it fares: its component, where it runs, what went wrong.
pub(super) fn describe(session: &Session, meta: &TopicMeta, binding: &FilterBinding) -> FilterInfo {
    let (shared, principal) = (&session.shared, session.principal());
    let mut info = convert::filter(meta, binding, &principal);
    let deployment = shared.plugins.deployments.of_topic(meta.id, binding);
    let component = || shared.components.state(&binding.digest);
    info.state = match &deployment {
        None => component(),
        Some(deployment) => match deployment.placement() {
            Placement::Paused => {
                "paused: killed too often, its batches are refused; correct it, then deploy it again".into()
            }
            _ if !deployment.starts() => "not starting: see its last error".into(),
            Placement::Worker => "running on a worker thread: slow, or killed once".into(),
            Placement::Shard => component(),
        },
    };
    if let Some(last) = deployment.and_then(|deployment| deployment.last_error()) {
        info.errors = last.errors;
        info.errors_since_ms = unix_ms(last.since);
        info.last_error_at_ms = unix_ms(last.at);
        // It may quote a record.
        let may = |right| principal.may(right, &meta.name);
        if may(Right::Deploy) || may(Right::Consume) {
            info.last_error = last.text;
        }
    }
    info
}

fn unix_ms(at: SystemTime) -> i64 {
    at.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as i64)
}

pub(super) async fn handle(
    session: &Session,
    request: ListFiltersRequest,
) -> Result<ListFiltersResponse, messages::Error> {
    let (topics, next) = page(session, &request.after).await?;
    let filters = topics
        .iter()
        .flat_map(|meta| meta.filters.iter().map(move |binding| (meta, binding)))
        .map(|(meta, binding)| describe(session, meta, binding))
        .collect();
    Ok(ListFiltersResponse { filters, next })
}
