//! TRIM_PARTITION: raise the start offset.

use millstream_batch::ids::{Offset, Partition};
use millstream_machine::request::{Reply, Request};
use millstream_protocol::messages::{self, TrimPartitionRequest, TrimPartitionResponse};

use crate::authority::Right;
use crate::session::Session;
use crate::shards::{ask, unexpected};

pub(super) async fn handle(
    session: &Session,
    request: TrimPartitionRequest,
) -> Result<TrimPartitionResponse, messages::Error> {
    session.principal().check(Right::Admin, &request.topic)?;
    let topic = session.thread.catalog.topic(&request.topic).await?;
    let partition = Partition {
        topic: topic.id,
        index: request.partition,
    };
    let shard = session.shared.shards.of(partition);
    ask(
        shard,
        Request::TrimPartition {
            partition,
            start: Offset(request.start_offset),
        },
    )
    .await?;
    match ask(shard, Request::DescribePartition { partition }).await? {
        Reply::Partition(described) => Ok(TrimPartitionResponse {
            start_offset: described.start.0,
        }),
        other => Err(unexpected(&other)),
    }
}
