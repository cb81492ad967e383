//! STATUS: what the broker knows about itself, as JSON.

use millstream_protocol::messages::{self, StatusRequest, StatusResponse};

use crate::authority::Right;
use crate::http::report::Report;
use crate::session::Session;

pub(super) async fn handle(
    session: &Session,
    _: StatusRequest,
) -> Result<StatusResponse, messages::Error> {
    session.principal().check_everywhere(Right::Admin)?;
    let report = Report::gather(&session.shared).await;
    Ok(StatusResponse {
        json: report.to_json(),
    })
}
