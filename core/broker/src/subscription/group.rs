//! A subscription as a member of a group: joining, following its assignment, letting go.
//!
//! A partition is claimed at its own shard, under the epoch that the home gave, before it is read;
//! the claim fences the last owner's commits. Absent: who gets which partition (the home's machine).

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use millstream_batch::ids::{GroupEpoch, MemberId, Partition, TopicId};
use millstream_machine::request::{Assignment, Reply, Request};
use millstream_protocol::messages::{self, Assigned, Revoke};
use millstream_protocol::{Code, Kind};
use millstream_shard::call::{Answer, Call, Error, Position};
use millstream_shard::handle::{ReplyTo, ShardHandle};
use tokio::time::Instant;

use super::feed::State;
use super::jobs::{Event, Opening};
use super::{Subscription, WATCH_TAG};
use crate::refusals;
use crate::requests::At;
use crate::shards::{ask, unexpected};

/// A session timeout that the client did not name.
const SESSION_TIMEOUT_MS: u32 = 10_000;
const SESSION_TIMEOUT_MS_MIN: u32 = 1_000;
const SESSION_TIMEOUT_MS_MAX: u32 = 3_600_000;
/// The longest wait for a change of the assignment. Each wait is also a sign of life.
const WATCH_MS_MAX: u32 = 5_000;
/// How long a topic that the home knows may take to be known on this thread.
const CATALOG_WAIT: Duration = Duration::from_millis(50);
/// How long a member keeps a partition that it cannot open: given back at once, it would go round.
const GIVE_BACK: Duration = Duration::from_secs(5);
/// Pause after a call that failed.
const RETRY: Duration = Duration::from_millis(500);

/// Membership of one subscription.
#[derive(Debug)]
pub(super) struct Membership {
    home: ShardHandle,
    member: MemberId,
    session_timeout_ms: u32,
    /// The newest assignment that was taken up.
    version: u64,
    owned: Vec<(Partition, GroupEpoch)>,
    /// Of these, what is not open yet and the client was not told of; since when.
    unopened: BTreeMap<Partition, Instant>,
    /// How many the client was told that there are of those.
    told_opening: u32,
    /// The earliest time at which a partition that was asked back must be released.
    release_by: Option<Instant>,
}

impl Membership {
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.release_by
    }

    pub(super) fn session_timeout_ms(&self) -> u32 {
        self.session_timeout_ms
    }

    pub(super) fn member(&self) -> MemberId {
        self.member
    }
}

/// The session timeout that holds for what a client asked for.
pub(super) fn session_timeout(asked_ms: u32) -> u32 {
    match asked_ms {
        0 => SESSION_TIMEOUT_MS,
        asked => asked.clamp(SESSION_TIMEOUT_MS_MIN, SESSION_TIMEOUT_MS_MAX),
    }
}

impl Subscription {
    /// Become a member, or again the member that the client was.
    pub(super) async fn join(
        &mut self,
        group: &str,
        member: MemberId,
        client: String,
        topics: Vec<TopicId>,
        session_timeout_ms: u32,
    ) -> Result<(), messages::Error> {
        let home = self.session.shared.shards.home(group).clone();
        let request = |member| Request::JoinGroup {
            group: group.to_owned(),
            member,
            client: client.clone(),
            topics: topics.clone(),
            session_timeout_ms,
        };
        let reply = match ask(&home, request(member)).await {
            // It was away for too long: a new member then.
            Err(error) if error.code == Code::UnknownMember.number() && member.0 != 0 => {
                ask(&home, request(MemberId(0))).await?
            }
            other => other?,
        };
        let Reply::Joined { member, assignment } = reply else {
            return Err(unexpected(&reply));
        };
        self.subscribed(member, session_timeout_ms);
        let version = assignment.version;
        self.membership = Some(Membership {
            home,
            member,
            session_timeout_ms,
            version,
            owned: Vec::new(),
            unopened: BTreeMap::new(),
            told_opening: 0,
            release_by: None,
        });
        self.take_assignment(assignment);
        self.watch();
        Ok(())
    }

    /// Wait for the next change of the assignment.
    pub(super) fn watch(&mut self) {
        let (Some(membership), Some(group)) = (&self.membership, &self.group) else {
            return;
        };
        let watch = Call::WatchAssignment {
            group: group.to_string(),
            member: membership.member,
            seen: membership.version,
            wait_ms: (membership.session_timeout_ms / 3).clamp(1, WATCH_MS_MAX),
        };
        membership.home.send(
            watch,
            ReplyTo::Queue {
                tag: WATCH_TAG,
                queue: self.answers.clone(),
            },
        );
    }

    pub(super) fn assignment_came(&mut self, answer: Answer) -> Result<(), messages::Error> {
        match answer {
            Answer::Assignment(assignment) => {
                let newer = self.membership.as_mut().is_some_and(|membership| {
                    let newer = assignment.version > membership.version;
                    membership.version = membership.version.max(assignment.version);
                    newer
                });
                if newer {
                    self.take_assignment(assignment);
                }
                self.watch();
                Ok(())
            }
            Answer::Error(
                Error::Busy { .. }
                | Error::NotYet(_)
                | Error::Limited(_)
                | Error::Stopped(_)
                | Error::DiskFull,
            ) => {
                self.jobs.spawn_local(async {
                    tokio::time::sleep(RETRY).await;
                    Event::Watch
                });
                Ok(())
            }
            other => {
                let handles = self.feeds.iter().map(|feed| feed.handle).collect();
                self.lost(handles);
                self.membership = None; // there is nothing to leave
                Err(refusals::unexpected(&other))
            }
        }
    }

    /// Make what this subscription reads what the group says.
    fn take_assignment(&mut self, assignment: Assignment) {
        let Assignment {
            owned, revoking, ..
        } = assignment;
        // What is neither owned nor to be released is gone, and so is what was given out anew.
        let epoch_of = |partition: Partition| {
            owned
                .iter()
                .find(|(owned, _)| *owned == partition)
                .map(|(_, epoch)| *epoch)
        };
        let keeps = |partition: Partition, epoch: GroupEpoch| {
            epoch_of(partition) == Some(epoch) || revoking.contains(&partition)
        };
        let gone: Vec<(u32, State)> = self
            .feeds
            .iter()
            .filter(|feed| !keeps(feed.partition, feed.epoch))
            .map(|feed| (feed.handle, feed.state))
            .collect();
        let mut told = Vec::new();
        for (handle, state) in gone {
            self.feeds.remove(handle);
            if !matches!(state, State::Opening | State::Unwanted) {
                told.push(handle);
            }
        }
        self.lost(told);
        self.revoke(&revoking);
        if let Some(membership) = &mut self.membership {
            membership.owned = owned;
            let Membership {
                owned, unopened, ..
            } = membership;
            unopened.retain(|partition, _| owned.iter().any(|(owned, _)| owned == partition));
        }
        self.claim_owned();
        self.set_deadline();
        self.tell_opening();
    }

    /// Claim what is owned and not read yet.
    pub(super) fn claim_owned(&mut self) {
        let Some(membership) = &self.membership else {
            return;
        };
        let mut unknown = false;
        for (partition, epoch) in membership.owned.clone() {
            if self.feeds.of(partition).is_none() {
                if let Some(membership) = &mut self.membership {
                    let now = Instant::now();
                    membership.unopened.entry(partition).or_insert(now);
                }
                unknown |= !self.claim(partition, epoch);
            }
        }
        if unknown {
            // This thread has not heard of the topic yet.
            self.jobs.spawn_local(async {
                tokio::time::sleep(CATALOG_WAIT).await;
                Event::Claim
            });
        }
    }

    /// Whether the client is to hear that a partition cannot be opened, though it may yet be.
    pub(super) fn has_waited(&self, partition: Partition) -> bool {
        let since = self
            .membership
            .as_ref()
            .and_then(|membership| membership.unopened.get(&partition));
        since.is_some_and(|since| since.elapsed() >= self.patience)
    }

    /// The client is told of this partition now.
    pub(super) fn is_told(&mut self, partition: Partition) {
        if let Some(membership) = &mut self.membership {
            membership.unopened.remove(&partition);
        }
    }

    /// How many partitions are being opened for the client, which is told so now.
    pub(super) fn opening(&mut self) -> u32 {
        let Some(membership) = &mut self.membership else {
            return u32::try_from(self.feeds.opening()).unwrap_or(u32::MAX);
        };
        membership.told_opening = u32::try_from(membership.unopened.len()).unwrap_or(u32::MAX);
        membership.told_opening
    }

    /// Fewer partitions are being opened than the client believes, and none of them opened.
    pub(super) fn tell_opening(&mut self) {
        let believes_more = self
            .membership
            .as_ref()
            .is_some_and(|membership| membership.unopened.len() < membership.told_opening as usize);
        if believes_more {
            let opening = self.opening();
            let partitions = Vec::new();
            self.outbox.frame(
                Kind::Assigned,
                &Assigned {
                    partitions,
                    opening,
                },
            );
        }
    }

    /// Claim again what could not be opened, but not at once.
    pub(super) fn claim_later(&mut self) {
        self.jobs.spawn_local(async {
            tokio::time::sleep(RETRY).await;
            Event::Claim
        });
    }

    /// A partition failed for good here: the group may give it to another member, or anew.
    pub(super) fn give_back_later(&mut self, handle: u32) {
        self.jobs.spawn_local(async move {
            tokio::time::sleep(GIVE_BACK).await;
            Event::GiveBack { handle }
        });
    }

    pub(super) fn give_back(&mut self, handle: u32) {
        // The client may have sought elsewhere meanwhile, and the group may have decided anew.
        if let Some(feed) = self.feeds.feed(handle)
            && feed.state == State::Failed
        {
            let partition = feed.partition;
            self.to_release.push(partition);
            self.release_now();
        }
    }

    fn revoke(&mut self, revoking: &[Partition]) {
        let limit = Duration::from_millis(self.session.shared.config.limits.release_ms);
        let release_by = Instant::now() + limit;
        let mut told = Vec::new();
        for &partition in revoking {
            match self
                .feeds
                .of(partition)
                .map(|feed| (feed.handle, feed.state))
            {
                None => self.to_release.push(partition), // not read here: nothing to wait for
                Some((_, State::Revoking | State::Unwanted)) => {}
                Some((handle, State::Opening)) => {
                    if let Some(feed) = self.feeds.feed(handle) {
                        feed.state = State::Unwanted;
                    }
                }
                Some((handle, _)) => {
                    self.feeds.halt(handle, Some(State::Revoking), false);
                    if let Some(feed) = self.feeds.feed(handle) {
                        feed.release_by = Some(release_by);
                    }
                    told.push(handle);
                }
            }
        }
        if !told.is_empty() {
            self.outbox.frame(
                Kind::Revoke,
                &Revoke {
                    handles: told,
                    lost: false,
                },
            );
        }
        self.release_now();
    }

    /// `false`: the topic is not known here.
    fn claim(&mut self, partition: Partition, epoch: GroupEpoch) -> bool {
        let Some(topic) = self.session.thread.catalog.cached(partition.topic) else {
            return false;
        };
        let claim = self
            .membership
            .as_ref()
            .map(|membership| (membership.member, epoch));
        let handle = match self.feeds.insert(topic, partition, epoch) {
            Ok(handle) => handle,
            Err(error) => {
                self.refused = Some(error); // others of the group may read it
                return true;
            }
        };
        let opening = Opening {
            shard: self.session.shared.shards.of(partition).clone(),
            partition,
            group: self.group.clone(),
            claim,
            // Without a position it was added since the group began here: all of it is new.
            from: At::Position(Position::Start),
            stop_at_end: self.stop_at_end,
        };
        self.open_later(handle, opening);
        true
    }

    /// RELEASED: the client is done with these.
    pub(super) fn released(&mut self, handles: &[u32]) {
        for handle in handles {
            if let Some(feed) = self.feeds.remove(*handle) {
                self.to_release.push(feed.partition);
            }
        }
        self.set_deadline();
        self.release_now();
    }

    /// Tell the home, once the commits that came before are through.
    pub(super) fn release_now(&mut self) {
        if self.committing > 0 || self.to_release.is_empty() {
            return;
        }
        let (Some(membership), Some(group)) = (&self.membership, &self.group) else {
            return;
        };
        let partitions = std::mem::take(&mut self.to_release);
        let (home, group, member) = (
            membership.home.clone(),
            group.to_string(),
            membership.member,
        );
        self.jobs.spawn_local(async move {
            let request = Request::ReleasePartitions {
                group,
                member,
                partitions: partitions.clone(),
            };
            match ask(&home, request).await {
                Ok(_) => Event::Released,
                // A member that is not known has nothing to release; the watch says so to the client.
                Err(error) if error.code == Code::UnknownMember.number() => Event::Released,
                Err(error) => {
                    tracing::debug!(error = error.message, "partitions are not released yet");
                    tokio::time::sleep(RETRY).await;
                    Event::Release(partitions)
                }
            }
        });
    }

    fn set_deadline(&mut self) {
        let earliest = self.feeds.release_by();
        if let Some(membership) = &mut self.membership {
            membership.release_by = earliest;
        }
    }

    /// Leave the group: others may have its partitions at once.
    pub(super) async fn leave(&mut self) {
        // Commits that are under way belong to the time before.
        while self.committing > 0
            && let Some(Ok(event)) = self.jobs.join_next().await
        {
            if let Event::Committed { .. } = event {
                self.happened(vec![event]);
            }
        }
        let (Some(membership), Some(group)) =
            (self.membership.take(), self.group.as_ref().map(Rc::clone))
        else {
            return;
        };
        let request = Request::LeaveGroup {
            group: group.to_string(),
            member: membership.member,
        };
        if let Err(error) = ask(&membership.home, request).await {
            tracing::debug!(%group, error = error.message, "a member that leaves is not known");
        }
    }
}
