//! Where a group begins in a topic: positions made durable before its first member reads.
//!
//! A position that was resolved (the end, a time) and never committed would be resolved anew by the next
//! owner, and what came meanwhile be passed over. So whoever joins a group that is new to a topic sets what
//! its `from` says, in every partition, partition 0 last. That one says that the others were set: a
//! partition without a position is then one that was added since, and is read from its start.
//!
//! Absent on purpose: which member owns what; commits (a position, once set, moves by those alone).

use std::rc::Rc;

use millstream_batch::ids::{Offset, Partition};
use millstream_machine::request::{Reply, Request};
use millstream_machine::topics::TopicMeta;
use millstream_protocol::{Code, messages};
use tokio::task::JoinSet;

use super::Subscription;
use super::jobs::{KNOWN_BY_ALL, Opening};
use crate::requests::At;
use crate::session::Session;
use crate::shards::{ask, unexpected};

/// Positions set at a time.
const TOGETHER: usize = 64;

impl Subscription {
    /// Set the group's first positions in topics that are new to it.
    pub(super) async fn begin_group(
        &self,
        group: &Rc<str>,
        topics: &[Rc<TopicMeta>],
    ) -> Result<(), messages::Error> {
        for topic in topics {
            let first = opening(&self.session, group, topic, 0, self.from);
            match first.within(KNOWN_BY_ALL, || first.committed()).await {
                Ok(None) => self.begin_topic(group, topic).await?,
                Ok(Some(_)) => {}
                Err(error) => passed_over(error)?,
            }
        }
        Ok(())
    }

    async fn begin_topic(
        &self,
        group: &Rc<str>,
        topic: &Rc<TopicMeta>,
    ) -> Result<(), messages::Error> {
        let mut waiting = JoinSet::new();
        let mut outcome = Ok(());
        for index in 1..topic.partitions {
            if waiting.len() >= TOGETHER {
                outcome = outcome.and(joined(&mut waiting).await);
            }
            let opening = opening(&self.session, group, topic, index, self.from);
            waiting.spawn_local(async move { opening.begin_within().await });
        }
        while !waiting.is_empty() {
            outcome = outcome.and(joined(&mut waiting).await);
        }
        outcome?;
        let first = opening(&self.session, group, topic, 0, self.from);
        first.begin_within().await.or_else(passed_over)
    }
}

async fn joined(waiting: &mut JoinSet<Result<(), messages::Error>>) -> Result<(), messages::Error> {
    match waiting.join_next().await {
        Some(Ok(Err(error))) => passed_over(error),
        _ => Ok(()),
    }
}

/// What cannot be begun and will not be when it is tried again is left to whoever reads it first: from its
/// start then, so that nothing is passed over.
fn passed_over(error: messages::Error) -> Result<(), messages::Error> {
    if error.retriable {
        return Err(error);
    }
    tracing::debug!(error = error.message, "a position is not set");
    Ok(())
}

fn opening(
    session: &Rc<Session>,
    group: &Rc<str>,
    topic: &Rc<TopicMeta>,
    index: u32,
    from: At,
) -> Opening {
    let partition = Partition {
        topic: topic.id,
        index,
    };
    Opening {
        shard: session.shared.shards.of(partition).clone(),
        partition,
        group: Some(Rc::clone(group)),
        claim: None,
        from,
        stop_at_end: false,
    }
}

impl Opening {
    async fn begin_within(&self) -> Result<(), messages::Error> {
        let begin = async || {
            let at = self.begins_at().await?;
            self.begin(at).await
        };
        self.within(KNOWN_BY_ALL, begin).await.map(drop)
    }

    /// Make this the group's position, unless it has one. The one that holds.
    pub(super) async fn begin(&self, at: Offset) -> Result<Offset, messages::Error> {
        let Some(group) = self.group.as_deref() else {
            return Ok(at);
        };
        let request = Request::BeginOffset {
            group: group.to_owned(),
            partition: self.partition,
            offset: at,
        };
        match ask(&self.shard, request).await {
            Ok(Reply::Committed { offset, .. }) => Ok(offset.unwrap_or(at)),
            Ok(other) => Err(unexpected(&other)),
            // Fixed partitions are read all the same where nothing can be written, and so not committed.
            Err(error) if self.claim.is_none() && takes_no_writes(&error) => Ok(at),
            Err(error) => Err(error),
        }
    }
}

fn takes_no_writes(error: &messages::Error) -> bool {
    [Code::DiskFull, Code::ReadOnly, Code::ShardStopped]
        .iter()
        .any(|code| error.code == code.number())
}
