//! ACCEPT_CLOCK: every shard takes the wall clock as it is, as a fact.

use std::time::{SystemTime, UNIX_EPOCH};

use millstream_machine::request::Request;
use millstream_protocol::messages::{self, AcceptClockRequest, AcceptClockResponse};

use crate::authority::Right;
use crate::session::Session;
use crate::shards::ask;

pub(super) async fn handle(
    session: &Session,
    _: AcceptClockRequest,
) -> Result<AcceptClockResponse, messages::Error> {
    session.principal().check_everywhere(Right::Admin)?;
    for shard in session.shared.shards.all() {
        ask(shard, Request::AcceptClock).await?;
    }
    let passed = SystemTime::now().duration_since(UNIX_EPOCH);
    let time_ms = passed.map_or(0, |passed| passed.as_millis() as i64);
    tracing::warn!(
        principal = session.principal().name,
        time_ms,
        "the wall clock was accepted as it is"
    );
    Ok(AcceptClockResponse { time_ms })
}
