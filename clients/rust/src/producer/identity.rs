//! Under which identity a producer sends, and the stream that it opens with it.
//!
//! Deliberately absent: when either is needed anew (the driver).

use std::time::Instant;

use bytes::Bytes;
use millstream_protocol::Kind;
use millstream_protocol::messages::{
    Ack, InitProducerRequest, InitProducerResponse, ProducerOpen, ProducerOpened,
};
use quinn::SendStream;

use crate::connection::{Incoming, Link, Repeat, Session, refusal};
use crate::error::{Error, Result};

/// A producer id and epoch; pid 0: none.
#[derive(Clone, Debug, Default)]
pub(super) struct Identity {
    pub(super) pid: u64,
    pub(super) epoch: u32,
    /// What the broker gave with the id, to prove that it is ours.
    pub(super) token: Bytes,
}

/// Ask for a producer id, or for none.
pub(super) async fn identify(link: &Link, idempotent: bool, deadline: Instant) -> Result<Identity> {
    if !idempotent {
        return Ok(Identity::default());
    }
    let request = InitProducerRequest::default();
    // An id whose answer was lost is never used: asking again is harmless.
    let answer: InitProducerResponse = link
        .request(
            Kind::InitProducer,
            &request,
            Bytes::new(),
            Repeat::Safe,
            deadline.into(),
        )
        .await?;
    Ok(Identity {
        pid: answer.pid,
        epoch: answer.epoch,
        token: answer.token,
    })
}

/// Open a producer stream: both its sides, and how many batches may be unanswered on it.
pub(super) async fn open(
    session: &Session,
    identity: &Identity,
) -> Result<(SendStream, Incoming, usize)> {
    let first = ProducerOpen {
        pid: identity.pid,
        epoch: identity.epoch,
        ack: Ack::Durable.into(),
        token: identity.token.clone(),
    };
    let (send, mut incoming) = Link::open(session, Kind::ProducerOpen, &first).await?;
    match incoming.next().await? {
        Some(frame) if frame.known() == Some(Kind::ProducerOpened) => {
            let opened: ProducerOpened = frame.message()?;
            let in_flight_max = if opened.in_flight_max == 0 {
                usize::MAX
            } else {
                opened.in_flight_max as usize
            };
            Ok((send, incoming, in_flight_max))
        }
        Some(frame) if frame.known() == Some(Kind::Error) => Err(refusal(&frame)?.1),
        Some(_) => Err(Error::protocol(
            "a producer stream was opened with something else than PRODUCER_OPENED",
        )),
        None => Err(Error::transport("the broker closed the producer stream")),
    }
}
