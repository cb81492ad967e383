//! What a subscription waits for beside fetches: starts resolved, commits, seeks, releases. Each is a
//! task of its own; its result comes back to the loop as an [`Event`].

use std::rc::Rc;
use std::time::Duration;

use millstream_batch::ids::{GroupEpoch, MemberId, Offset, Partition, TimestampMs};
use millstream_machine::request::{Assignment, Commit, Reply, Request};
use millstream_machine::topics::TopicMeta;
use millstream_protocol::messages::{
    self, Assigned, AssignedPartition, Committed, PartitionError, Sought,
};
use millstream_protocol::{Code, Kind};
use millstream_shard::call::{Answer, Call, Error, Position};
use millstream_shard::handle::ShardHandle;
use tokio::time::Instant;

use super::Subscription;
use super::feed::State;
use super::filters::Judged;
use super::group::Joining;
use crate::refusals;
use crate::requests::At;
use crate::shards::{ask, unexpected};

/// Partitions told in one frame.
const ASSIGNED_TOGETHER: usize = 1_024;

/// Until a partition that could not be opened is tried again, at first and at most.
const OPEN_AGAIN: Duration = Duration::from_millis(20);
const OPEN_AGAIN_MAX: Duration = Duration::from_secs(1);
/// By then every shard knows of a new partition, or it was deleted.
pub(super) const KNOWN_BY_ALL: Duration = Duration::from_secs(5);

/// The result of a job.
#[derive(Debug)]
pub(super) enum Event {
    /// Where a partition starts and, with `stop_at_end`, ends.
    Opened {
        handle: u32,
        start: Result<Start, messages::Error>,
    },
    Committed {
        tag: u64,
        failed: Vec<PartitionError>,
    },
    Sought {
        handle: u32,
        generation: u32,
        to: Result<Offset, messages::Error>,
    },
    /// Fetch again.
    Retry { handle: u32, fetch: u32 },
    /// Workers judged what a fetch brought.
    Filtered {
        handle: u32,
        fetch: u32,
        topic: Rc<TopicMeta>,
        judged: Option<Vec<Judged>>,
        end: Offset,
    },
    /// The home shard knows that partitions were released.
    Released,
    /// It was not told yet.
    Release(Vec<Partition>),
    /// Look again whether owned partitions can be claimed.
    Claim,
    /// Give a partition that could not be opened back to the group, if it still stands like that.
    GiveBack { handle: u32 },
    /// Ask for the assignment again.
    Watch,
    /// Tell the home that the partitions' shards shut this member out under these epochs.
    Reassign(Vec<(Partition, GroupEpoch)>),
    /// The member joined for the topics that bear its names now.
    JoinedAnew {
        joining: Joining,
        joined: Result<Assignment, messages::Error>,
    },
    /// Look again whether topics were made anew.
    LookForNamesakes,
}

/// Where a partition is opened.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Start {
    at: Offset,
    /// With `stop_at_end`: where it is over, as far as that is known.
    stop: Option<Offset>,
    /// `at` is the first offset of the batch that holds the first record at or after this time.
    found_by: Option<TimestampMs>,
}

/// How a partition is opened.
pub(super) struct Opening {
    pub(super) shard: ShardHandle,
    pub(super) partition: Partition,
    /// The group that commits, if any.
    pub(super) group: Option<Rc<str>>,
    /// Set for a group's member: the claim that fences older owners.
    pub(super) claim: Option<(MemberId, GroupEpoch)>,
    pub(super) from: At,
    pub(super) stop_at_end: bool,
}

impl Opening {
    /// `ask`, again and again while that may help.
    pub(super) async fn within<T>(
        &self,
        patience: Duration,
        ask: impl AsyncFn() -> Result<T, messages::Error>,
    ) -> Result<T, messages::Error> {
        let begun = Instant::now();
        let mut wait = OPEN_AGAIN;
        loop {
            let until = |error: &messages::Error| match error.retriable {
                true => Some(begun + patience),
                // A partition that was just added is known here before its shard knows it.
                false if error.code == Code::UnknownPartition.number() => {
                    Some(begun + patience.min(KNOWN_BY_ALL))
                }
                false => None,
            };
            match ask().await {
                Err(error) if until(&error).is_some_and(|until| Instant::now() + wait < until) => {
                    let asked = Duration::from_millis(u64::from(error.retry_after_ms));
                    tokio::time::sleep(wait.max(asked)).await;
                    wait = (wait * 2).min(OPEN_AGAIN_MAX);
                }
                answered => return answered,
            }
        }
    }

    /// Fence older owners, then find out where to start.
    async fn resolve(&self) -> Result<Start, messages::Error> {
        let mut found_by = None;
        let at = match self.committed().await? {
            Some(committed) => committed,
            None => {
                let at = self.begins_at().await?;
                if let At::Position(Position::Timestamp(time)) = self.from
                    && self.group.is_none()
                {
                    found_by = Some(time);
                }
                self.begin(at).await?
            }
        };
        let mut start = Start {
            at,
            stop: None,
            found_by,
        };
        if !self.stop_at_end {
            return Ok(start);
        }
        let end = match self.at(Position::End).await {
            Ok(end) => end,
            // Nobody knows the end: what is there is read, and then it fails.
            Err(error) if error.code == Code::ReadOnly.number() => return Ok(start),
            Err(error) => return Err(error),
        };
        if at > end {
            // There is nothing to fetch that would find this out.
            return Err(refusals::of_shard(&Error::OffsetOutOfRange {
                offset: at,
                start: self.at(Position::Start).await?,
                end,
            }));
        }
        start.stop = Some(end);
        Ok(start)
    }

    /// What `from` says.
    pub(super) async fn begins_at(&self) -> Result<Offset, messages::Error> {
        match self.from {
            At::Offset(offset, _) => Ok(offset),
            At::Position(position) => self.at(position).await,
        }
    }

    pub(super) async fn committed(&self) -> Result<Option<Offset>, messages::Error> {
        let Some(group) = self.group.as_deref().map(str::to_owned) else {
            return Ok(None);
        };
        let partition = self.partition;
        let request = match self.claim {
            Some((member, epoch)) => Request::ClaimPartition {
                group,
                partition,
                member,
                epoch,
            },
            None => Request::CommittedOffset { group, partition },
        };
        match ask(&self.shard, request).await? {
            Reply::Claimed { committed } => Ok(committed),
            Reply::Committed { offset, .. } => Ok(offset),
            other => Err(unexpected(&other)),
        }
    }

    async fn at(&self, at: Position) -> Result<Offset, messages::Error> {
        match self
            .shard
            .call(Call::OffsetAt {
                partition: self.partition,
                at,
            })
            .await
        {
            Answer::Offset { offset, .. } => Ok(offset),
            other => Err(refusals::unexpected(&other)),
        }
    }
}

impl Subscription {
    pub(super) fn open_later(&mut self, handle: u32, opening: Opening) {
        // A group's partition that cannot be opened yet is claimed again by the group's rules.
        let patience = match opening.claim {
            Some(_) => Duration::ZERO,
            None => self.patience,
        };
        let principal = self.session.principal();
        self.jobs.spawn_local(async move {
            let turn = principal.openings().acquire().await;
            let mut start = opening.within(Duration::ZERO, || opening.resolve()).await;
            drop(turn);
            // Who has to be patient does not keep others from their turn.
            if start.is_err() && !patience.is_zero() {
                start = opening.within(patience, || opening.resolve()).await;
            }
            Event::Opened { handle, start }
        });
    }

    /// Commit what is in `commits`; `failed` is what could not even be tried.
    pub(super) fn commit_later(
        &mut self,
        tag: u64,
        commits: Vec<(u32, ShardHandle, Commit)>,
        mut failed: Vec<PartitionError>,
    ) {
        self.committing += 1;
        // All are under way before the first is waited for, and before anything that is asked later.
        let mut waiting = Vec::with_capacity(commits.len());
        for (handle, shard, commit) in commits {
            let (to, answer) = tokio::sync::oneshot::channel();
            let reply = millstream_shard::handle::ReplyTo::Once(to);
            shard.send(Call::Machine(Request::Commit(commit)), reply);
            waiting.push((handle, answer));
        }
        self.jobs.spawn_local(async move {
            for (handle, answer) in waiting {
                let answer = answer.await.unwrap_or(Answer::Error(Error::Stopping));
                if !matches!(answer, Answer::Reply(Reply::Done | Reply::Committed { .. })) {
                    failed.push(PartitionError {
                        handle,
                        error: Some(refusals::unexpected(&answer)),
                    });
                }
            }
            Event::Committed { tag, failed }
        });
    }

    pub(super) fn seek_later(&mut self, handle: u32, generation: u32, opening: Opening) {
        self.jobs.spawn_local(async move {
            Event::Sought {
                handle,
                generation,
                to: opening.resolve().await.map(|start| start.at),
            }
        });
    }

    /// Jobs are done.
    pub(super) fn happened(&mut self, events: Vec<Event>) {
        let mut assigned = Vec::new();
        let mut failed = Vec::new();
        let mut reassign = Vec::new();
        for event in events {
            match event {
                Event::Opened { handle, start } => {
                    self.opened(handle, start, &mut assigned, &mut failed);
                }
                Event::Committed { tag, failed } => {
                    self.committing -= 1;
                    let fenced = fenced_in(&failed);
                    self.outbox
                        .frame(Kind::Committed, &Committed { tag, failed });
                    for handle in fenced {
                        self.overruled(handle);
                    }
                    self.release_now();
                }
                Event::Sought {
                    handle,
                    generation,
                    to,
                } => self.sought(handle, generation, to),
                Event::Retry { handle, fetch } => self.retry_now(handle, fetch),
                Event::Filtered {
                    handle,
                    fetch,
                    topic,
                    judged,
                    end,
                } => self.filtered(handle, fetch, &topic, judged, end),
                Event::Released => {}
                Event::Release(partitions) => {
                    self.to_release.extend(partitions);
                    self.release_now();
                }
                Event::Claim => self.claim_owned(),
                Event::GiveBack { handle } => self.give_back(handle),
                Event::Reassign(fenced) => reassign.extend(fenced),
                Event::JoinedAnew { joining, joined } => self.joined_anew(joining, joined),
                Event::LookForNamesakes => self.look_for_namesakes(),
                Event::Watch => self.watch(),
            }
        }
        // Many can open at once: a frame holds so many at most.
        for partitions in assigned.chunks(ASSIGNED_TOGETHER) {
            let opening = self.opening();
            self.outbox.frame(
                Kind::Assigned,
                &Assigned {
                    partitions: partitions.to_vec(),
                    opening,
                },
            );
        }
        self.tell_opening();
        self.reassign(reassign);
        for (handle, error) in failed {
            self.fail(handle, error);
        }
    }

    fn sought(&mut self, handle: u32, generation: u32, to: Result<Offset, messages::Error>) {
        let Some(asked) = self.feeds.answer_seek(handle) else {
            return;
        };
        match to {
            Ok(to) => {
                if let Some(feed) = self.feeds.feed(handle) {
                    feed.named = asked.named();
                }
                self.feeds.seek(handle, to);
                self.outbox.frame(
                    Kind::Sought,
                    &Sought {
                        handle,
                        offset: to.0,
                        generation,
                    },
                );
            }
            Err(error) => self.fail(handle, error),
        }
        self.seek_next(handle);
    }

    fn opened(
        &mut self,
        handle: u32,
        start: Result<Start, messages::Error>,
        assigned: &mut Vec<AssignedPartition>,
        failed: &mut Vec<(u32, messages::Error)>,
    ) {
        let Some(feed) = self.feeds.feed(handle) else {
            return;
        };
        if feed.state == State::Unwanted {
            // The client never heard of it.
            let partition = feed.partition;
            self.feeds.remove(handle);
            self.to_release.push(partition);
            return self.release_now();
        }
        let (partition, epoch) = (feed.partition, feed.epoch);
        if self.membership.is_some() {
            match &start {
                // In both cases the client never heard of it. Here the partition is still owned.
                Err(error) if error.retriable && !self.has_waited(partition) => {
                    self.feeds.remove(handle);
                    return self.claim_later();
                }
                Err(error) if error.code == Code::MemberFenced.number() => {
                    self.feeds.remove(handle);
                    return self.reassign_later(partition, epoch);
                }
                Err(_) => self.give_back_later(handle),
                Ok(_) => {}
            }
        }
        self.is_told(partition);
        let Some(feed) = self.feeds.feed(handle) else {
            return;
        };
        let (start, error) = match start {
            Ok(start) => (start, None),
            Err(error) => (Start::default(), Some(error)),
        };
        assigned.push(AssignedPartition {
            handle,
            topic: feed.topic.name.clone(),
            topic_id: bytes::Bytes::copy_from_slice(&feed.partition.topic.0),
            partition: feed.partition.index,
            epoch: feed.epoch.0,
            offset: start.at.0,
            from_timestamp_ms: start.found_by.map(|time| time.0),
            since: feed.since.0,
        });
        match error {
            None => self.feeds.start(handle, start.at, start.stop),
            Some(error) => {
                self.feeds.halt(handle, Some(State::Failed), false);
                failed.push((handle, error));
            }
        }
    }
}

/// The handles of commits that failed because the member does not hold the partition any more.
fn fenced_in(failed: &[PartitionError]) -> Vec<u32> {
    let code = |failed: &PartitionError| Some(failed.error.as_ref()?.code);
    let fenced = failed
        .iter()
        .filter(|failed| code(failed) == Some(Code::MemberFenced.number()));
    fenced.map(|failed| failed.handle).collect()
}

#[cfg(test)]
mod tests {
    use millstream_batch::ids::{ShardId, TopicId};

    use super::*;

    fn opening(shard: ShardHandle) -> Opening {
        Opening {
            shard,
            partition: Partition {
                topic: TopicId([1; 16]),
                index: 0,
            },
            group: None,
            claim: None,
            from: At::Position(Position::End),
            stop_at_end: false,
        }
    }

    /// A shard that gives these answers, one a call.
    async fn opened(
        patience: Duration,
        answers: Vec<Answer>,
    ) -> (Result<Offset, messages::Error>, usize) {
        let (shard, mut inbox) = ShardHandle::new(ShardId(0), 10);
        let opening = opening(shard);
        let mut answers = answers.into_iter();
        let shard = async {
            while let Some(message) = inbox.recv().await {
                message.reply.send(answers.next().expect("no more calls"));
            }
        };
        let opened = tokio::select! {
            opened = opening.within(patience, || opening.resolve()) => opened.map(|start| start.at),
            () = shard => unreachable!("the handle lives"),
        };
        (opened, answers.len())
    }

    fn busy() -> Answer {
        Answer::Error(Error::Busy {
            shard: ShardId(0),
            calls: 1,
        })
    }

    #[tokio::test]
    async fn a_partition_that_cannot_be_opened_yet_is_tried_again_within_patience() {
        let at_41 = || Answer::Offset {
            offset: Offset(41),
            found: true,
        };
        let hour = Duration::from_secs(3600);
        let (opened_late, unused) = opened(hour, vec![busy(), busy(), at_41()]).await;
        assert_eq!((opened_late, unused), (Ok(Offset(41)), 0));
        let (given_up, unused) = opened(Duration::ZERO, vec![busy(), at_41()]).await;
        let error = given_up.expect_err("no patience");
        assert_eq!((error.code, unused), (Code::Busy.number(), 1));
        let damaged = Answer::Error(Error::OffsetOutOfRange {
            offset: Offset(9),
            start: Offset(0),
            end: Offset(1),
        });
        let (refused, unused) = opened(hour, vec![damaged, at_41()]).await;
        let error = refused.expect_err("trying again does not help");
        assert_eq!((error.code, unused), (Code::OffsetOutOfRange.number(), 1));
    }
}
