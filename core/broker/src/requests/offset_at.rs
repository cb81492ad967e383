//! OFFSET_AT: the offset of start, end or a time.

use millstream_batch::ids::{Offset, Partition, Term, TimestampMs};
use millstream_protocol::Code;
use millstream_protocol::messages::{
    self, OffsetAtRequest, OffsetAtResponse, StartAt, offset_at_request, start_at,
};
use millstream_shard::call::{Answer, Call, Position};

use crate::authority::Right;
use crate::refusals;
use crate::session::Session;

/// What [`StartAt`] asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    Position(Position),
    /// With the leader epoch of the record before, if the client has read that.
    Offset(Offset, Option<Term>),
}

impl At {
    /// The offset and its epoch, when the client named both.
    pub(crate) fn named(self) -> Option<(Offset, Term)> {
        match self {
            Self::Offset(offset, leader_epoch) => Some((offset, leader_epoch?)),
            Self::Position(_) => None,
        }
    }
}

/// Read a [`StartAt`]; what is not set means the end.
pub(crate) fn position_of(at: Option<&StartAt>) -> At {
    let leader_epoch = at.and_then(|at| at.leader_epoch).map(Term);
    match at.and_then(|at| at.at.as_ref()) {
        Some(start_at::At::Start(_)) => At::Position(Position::Start),
        None | Some(start_at::At::End(_)) => At::Position(Position::End),
        Some(start_at::At::Offset(offset)) => At::Offset(Offset(*offset), leader_epoch),
        Some(start_at::At::TimestampMs(ms)) => At::Position(Position::Timestamp(TimestampMs(*ms))),
    }
}

pub(super) async fn handle(
    session: &Session,
    request: OffsetAtRequest,
) -> Result<OffsetAtResponse, messages::Error> {
    session.principal().check(Right::Consume, &request.topic)?;
    let topic = session.thread.catalog.topic(&request.topic).await?;
    let partition = Partition {
        topic: topic.id,
        index: request.partition,
    };
    let at = match request.at {
        Some(offset_at_request::At::Start(_)) => Position::Start,
        Some(offset_at_request::At::End(_)) => Position::End,
        Some(offset_at_request::At::TimestampMs(ms)) => Position::Timestamp(TimestampMs(ms)),
        None => return Err(Code::BadRequest.error("OFFSET_AT without a position")),
    };
    match session
        .shared
        .shards
        .of(partition)
        .call(Call::OffsetAt { partition, at })
        .await
    {
        Answer::Offset { offset, found } => Ok(OffsetAtResponse {
            offset: offset.0,
            found,
        }),
        other => Err(refusals::unexpected(&other)),
    }
}
