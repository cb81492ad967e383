//! Which shard decides a call: as the broker sends it.

use millstream_batch::ids::{CATALOG_SHARD, Partition, ShardId, group_home};
use millstream_machine::request::Request;
use millstream_shard::call::Call;

/// The shard to ask. What every shard answers for itself is asked of the catalog's.
pub(crate) fn shard_of(call: &Call, shards: u16) -> ShardId {
    let of = |partition: &Partition| partition.shard(shards);
    match call {
        Call::Produce { request, .. } => of(&request.partition),
        Call::Fetch(fetch) => of(&fetch.partition),
        Call::OffsetAt { partition, .. } | Call::DescribePartition { partition } => of(partition),
        Call::WatchAssignment { group, .. } | Call::WatchForgotten { group, .. } => {
            group_home(group, shards)
        }
        Call::Machine(request) => of_request(request, shards),
        Call::WatchCatalog { .. }
        | Call::WatchSpread { .. }
        | Call::Told { .. }
        | Call::ProducerFloor { .. }
        | Call::TopicTotals
        | Call::Status
        | Call::Stop => CATALOG_SHARD,
    }
}

fn of_request(request: &Request, shards: u16) -> ShardId {
    match request {
        Request::TrimPartition { partition, .. }
        | Request::DescribePartition { partition }
        | Request::ClaimPartition { partition, .. }
        | Request::CommittedOffset { partition, .. }
        | Request::BeginOffset { partition, .. } => partition.shard(shards),
        Request::Produce(produce) => produce.partition.shard(shards),
        Request::Commit(commit) => commit.partition.shard(shards),
        Request::ResetOffsets { places, .. } => places
            .first()
            .map_or(CATALOG_SHARD, |(partition, _)| partition.shard(shards)),
        Request::JoinGroup { group, .. }
        | Request::LeaveGroup { group, .. }
        | Request::ReleasePartitions { group, .. }
        | Request::ReassignPartitions { group, .. }
        | Request::GroupAssignment { group, .. }
        | Request::ExpireMembers { group, .. }
        | Request::RebalanceGroup { group }
        | Request::DeleteGroup { group, .. }
        | Request::DescribeGroup { group, .. } => group_home(group, shards),
        _ => CATALOG_SHARD,
    }
}
