//! The broker's shards, from any thread: which one owns what, and short ways to ask.

use millstream_batch::ids::{CATALOG_SHARD, Partition, ShardId, group_home};
use millstream_machine::request::{Reply, Request};
use millstream_protocol::messages;
use millstream_shard::call::{Answer, Call};
use millstream_shard::handle::ShardHandle;

use crate::refusals;

/// Handles of all shards, in order.
#[derive(Clone, Debug)]
pub(crate) struct Shards(Vec<ShardHandle>);

impl Shards {
    pub(crate) fn new(handles: Vec<ShardHandle>) -> Self {
        assert!(
            !handles.is_empty(),
            "a data directory has at least one shard"
        );
        Self(handles)
    }

    /// How many there are: fixed in the data directory.
    pub(crate) fn count(&self) -> u16 {
        self.0.len() as u16
    }

    pub(crate) fn all(&self) -> &[ShardHandle] {
        &self.0
    }

    pub(crate) fn shard(&self, shard: ShardId) -> &ShardHandle {
        &self.0[usize::from(shard.0)]
    }

    /// The owner of a partition.
    pub(crate) fn of(&self, partition: Partition) -> &ShardHandle {
        self.shard(partition.shard(self.count()))
    }

    /// The home of a group's membership.
    pub(crate) fn home(&self, group: &str) -> &ShardHandle {
        self.shard(group_home(group, self.count()))
    }

    /// Where topics, producer ids and deployments are decided.
    pub(crate) fn catalog(&self) -> &ShardHandle {
        self.shard(CATALOG_SHARD)
    }
}

/// Ask a shard's machine.
pub(crate) async fn ask(shard: &ShardHandle, request: Request) -> Result<Reply, messages::Error> {
    match shard.call(Call::Machine(request)).await {
        Answer::Reply(reply) => Ok(reply),
        other => Err(refusals::unexpected(&other)),
    }
}

/// A reply that is not the one its request has: our fault.
pub(crate) fn unexpected(reply: &Reply) -> messages::Error {
    millstream_protocol::Code::Internal.error(format!("a shard replied {reply:?}"))
}
