//! ACCEPT_CLOCK: every shard takes the wall clock as it is, as a fact. Each is asked, whatever became of
//! the others; those that did not are named.

use std::time::{SystemTime, UNIX_EPOCH};

use millstream_batch::ids::ShardId;
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
    let mut answers = Vec::new();
    for shard in session.shared.shards.all() {
        let answer = ask(shard, Request::AcceptClock).await;
        answers.push((shard.shard(), answer.map(|_| ())));
    }
    whole(answers)?;
    let passed = SystemTime::now().duration_since(UNIX_EPOCH);
    let time_ms = passed.map_or(0, |passed| passed.as_millis() as i64);
    tracing::warn!(
        principal = session.principal().name,
        time_ms,
        "the wall clock was accepted as it is"
    );
    Ok(AcceptClockResponse { time_ms })
}

/// The first error, which names every shard that did not accept the clock.
fn whole(answers: Vec<(ShardId, Result<(), messages::Error>)>) -> Result<(), messages::Error> {
    let shards = answers.len();
    let failed: Vec<_> = answers
        .into_iter()
        .filter_map(|(shard, answer)| answer.err().map(|error| (shard, error)))
        .collect();
    let named: Vec<_> = failed
        .iter()
        .map(|(shard, error)| format!("shard {}: {}", shard.0, error.message))
        .collect();
    let accepted = shards - failed.len();
    match failed.into_iter().next() {
        None => Ok(()),
        Some((_, first)) => Err(messages::Error {
            message: format!(
                "{accepted} of {shards} shards accepted the clock; {}",
                named.join("; ")
            ),
            ..first
        }),
    }
}

#[cfg(test)]
mod tests {
    use millstream_protocol::Code;

    use super::*;

    #[test]
    fn every_shard_that_did_not_accept_is_named() {
        let failed = |code: Code, why: &str| Err(code.error(why));
        assert_eq!(
            whole(vec![(ShardId(0), Ok(())), (ShardId(1), Ok(()))]),
            Ok(())
        );
        let answers = vec![
            (ShardId(0), failed(Code::ReadOnly, "a hole")),
            (ShardId(1), Ok(())),
            (ShardId(2), failed(Code::Internal, "gone")),
        ];
        let error = whole(answers).expect_err("two failed");
        assert_eq!(
            error.message,
            "1 of 3 shards accepted the clock; shard 0: a hole; shard 2: gone"
        );
        assert_eq!(error.code, Code::ReadOnly.number());
    }
}
