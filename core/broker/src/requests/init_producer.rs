//! INIT_PRODUCER: a new producer id, or the next epoch of one.

use millstream_batch::ids::ProducerId;
use millstream_machine::request::{Reply, Request};
use millstream_protocol::messages::{self, InitProducerRequest, InitProducerResponse};

use crate::authority::Right;
use crate::session::Session;
use crate::shards::{ask, unexpected};

pub(super) async fn handle(
    session: &Session,
    request: InitProducerRequest,
) -> Result<InitProducerResponse, messages::Error> {
    session.principal().check_somewhere(Right::Produce)?;
    match ask(
        session.shared.shards.catalog(),
        Request::InitProducer {
            pid: ProducerId(request.pid),
        },
    )
    .await?
    {
        Reply::Producer { pid, epoch } => Ok(InitProducerResponse {
            pid: pid.0,
            epoch: epoch.0,
        }),
        other => Err(unexpected(&other)),
    }
}
