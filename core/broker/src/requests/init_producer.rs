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
    let principal = session.principal();
    principal.check_somewhere(Right::Produce)?;
    if request.pid != 0 {
        session.check_producer(request.pid, &request.token)?;
    }
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
            token: session
                .shared
                .secrets
                .producer_token(pid.0, &principal.name),
        }),
        other => Err(unexpected(&other)),
    }
}
