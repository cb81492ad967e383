//! DESCRIBE_TOPIC: one topic and, if asked, its partitions as consumers see them.

use millstream_batch::ids::Partition;
use millstream_machine::request::{Reply, Request};
use millstream_protocol::Code;
use millstream_protocol::messages::{
    self, DescribeTopicRequest, DescribeTopicResponse, PartitionInfo,
};
use millstream_shard::call::{Answer, Call};
use millstream_shard::handle::ShardHandle;

use super::convert;
use crate::refusals;
use crate::session::Session;
use crate::shards::{ask, unexpected};

/// Partitions described in one answer, and at a time.
const PAGE: u32 = 1_000;
const TOGETHER: usize = 64;

pub(super) async fn handle(
    session: &Session,
    request: DescribeTopicRequest,
) -> Result<DescribeTopicResponse, messages::Error> {
    if !session.principal().sees(&request.name) {
        return Err(Code::Forbidden.error(format!("no right for topic `{}`", request.name)));
    }
    let meta = match ask(
        session.shared.shards.catalog(),
        Request::DescribeTopic { name: request.name },
    )
    .await?
    {
        Reply::Topic(meta) => meta,
        other => return Err(unexpected(&other)),
    };
    // Without partitions it is what every producer asks once.
    let _turn = match request.partitions {
        true => session.principal().turn().await,
        false => None,
    };
    let mut partitions = Vec::new();
    let mut next_partition = 0;
    if request.partitions {
        let end = request
            .from_partition
            .saturating_add(PAGE)
            .min(meta.partitions);
        if end < meta.partitions {
            next_partition = end;
        }
        let indexes: Vec<u32> = (request.from_partition..end).collect();
        for together in indexes.chunks(TOGETHER) {
            let mut waiting = tokio::task::JoinSet::new();
            for &index in together {
                let partition = Partition {
                    topic: meta.id,
                    index,
                };
                let shard = session.shared.shards.of(partition).clone();
                waiting.spawn_local(async move { describe(&shard, partition).await });
            }
            while let Some(Ok(info)) = waiting.join_next().await {
                partitions.push(info);
            }
        }
        partitions.sort_unstable_by_key(|info| info.partition);
    }
    Ok(DescribeTopicResponse {
        topic: Some(convert::topic(&meta, &session.principal())),
        partitions,
        next_partition,
        defaults: convert::default_settings(&session.shared.config),
    })
}

async fn describe(shard: &ShardHandle, partition: Partition) -> PartitionInfo {
    let mut info = PartitionInfo {
        partition: partition.index,
        shard: u32::from(shard.shard().0),
        ..PartitionInfo::default()
    };
    match shard.call(Call::DescribePartition { partition }).await {
        Answer::Partition(status) => {
            info.start_offset = status.start.0;
            info.end_offset = status.end.0;
            info.leader_epoch = status.leader_epoch.0;
            info.bytes = status.bytes;
            info.records_per_second = status.records_per_second;
            // What is known is said beside the reason why it may not be all.
            if let Some(error) = status.cut_short {
                info.error = refusals::of_shard(&error).message;
            }
        }
        other => info.error = refusals::unexpected(&other).message,
    }
    info
}
