//! PING: whether the broker answers.

use millstream_protocol::messages::{self, PingRequest, PingResponse};

use crate::session::Session;

pub(super) async fn handle(_: &Session, _: PingRequest) -> Result<PingResponse, messages::Error> {
    Ok(PingResponse {})
}
