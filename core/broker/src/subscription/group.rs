//! A subscription as a member of a group: joining, following its assignment, letting go.
//!
//! A partition is claimed at its own shard, under the epoch that the home gave, before it is read;
//! the claim fences the last owner's commits. Absent: who gets which partition (the home's machine).

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use millstream_batch::ids::{GroupEpoch, MemberId, Partition};
use millstream_machine::request::{Assignment, Refusal, Reply, Request};
use millstream_machine::topics::TopicMeta;
use millstream_protocol::messages::{self, Assigned, Revoke};
use millstream_protocol::{Code, Kind};
use millstream_shard::call::{Answer, Call, Error, Position, Seen};
use millstream_shard::handle::{ReplyTo, ShardHandle};
use rustc_hash::FxHashMap;
use tokio::time::Instant;

use super::feed::State;
use super::jobs::{Event, Opening};
use super::{Subscription, WATCH};
use crate::authority::Right;
use crate::members::Present;
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
    pub(super) home: ShardHandle,
    pub(super) member: MemberId,
    /// What it joined for.
    pub(super) joining: Joining,
    /// It is joining for topics that were made anew: what the home says meanwhile is of before.
    pub(super) joins: bool,
    /// The epoch under which it joined: this stream, and no other under the same id.
    pub(super) joined: GroupEpoch,
    /// Of the newest assignment that was taken up.
    seen: Seen,
    owned: Vec<Owned>,
    /// Of these, what is not open yet and the client was not told of; since when.
    unopened: BTreeMap<Partition, Instant>,
    /// How many the client was told that it is yet to be assigned, if it was told.
    told_opening: Option<u32>,
    /// The number of the newest watch; answers to others are stale.
    watch: u32,
    /// The earliest time at which a partition that was asked back must be released.
    release_by: Option<Instant>,
    _present: Present,
}

/// What a member joins with.
#[derive(Clone, Debug)]
pub(super) struct Joining {
    pub(super) group: String,
    pub(super) client: String,
    pub(super) topics: Vec<Rc<TopicMeta>>,
    pub(super) session_timeout_ms: u32,
}

impl Joining {
    /// `again`: the stream that is this member joins again, if it still is.
    pub(super) fn request(&self, member: MemberId, again: Option<GroupEpoch>) -> Request {
        Request::JoinGroup {
            group: self.group.clone(),
            member,
            again,
            client: self.client.clone(),
            topics: self.topics.iter().map(|topic| topic.id).collect(),
            session_timeout_ms: self.session_timeout_ms,
        }
    }
}

/// A partition that the group gave this member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Owned {
    partition: Partition,
    /// When it came to the member.
    since: GroupEpoch,
    /// Under which it is claimed.
    epoch: GroupEpoch,
}

impl Membership {
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.release_by
    }

    pub(super) fn session_timeout_ms(&self) -> u32 {
        self.joining.session_timeout_ms
    }

    pub(super) fn member(&self) -> MemberId {
        self.member
    }

    /// How many partitions the client is yet to be assigned: those that are not open, and one while the group
    /// moves any, which may be coming to this member.
    pub(super) fn opening(&self) -> u32 {
        let unopened = u32::try_from(self.unopened.len()).unwrap_or(u32::MAX);
        unopened.saturating_add(u32::from(self.seen.moves))
    }
}

/// The session timeout that holds for what a client asked for.
pub(super) fn session_timeout(asked_ms: u32) -> u32 {
    match asked_ms {
        0 => SESSION_TIMEOUT_MS,
        asked => asked.clamp(SESSION_TIMEOUT_MS_MIN, SESSION_TIMEOUT_MS_MAX),
    }
}

/// Whether the home says that the member, as this stream is it, is none any more.
fn is_over(error: &messages::Error) -> bool {
    let codes = [Code::UnknownGroup, Code::UnknownMember, Code::MemberFenced];
    codes.iter().any(|code| code.number() == error.code)
}

impl Subscription {
    /// Become a member, or again the member that the client was.
    pub(super) async fn join(
        &mut self,
        joining: Joining,
        member: MemberId,
    ) -> Result<(), messages::Error> {
        let home = self.session.shared.shards.home(&joining.group).clone();
        let reply = match ask(&home, joining.request(member, None)).await {
            // It was away for too long: a new member then.
            Err(error) if error.code == Code::UnknownMember.number() && member.0 != 0 => {
                ask(&home, joining.request(MemberId(0), None)).await?
            }
            other => other?,
        };
        let Reply::Joined { member, assignment } = reply else {
            return Err(unexpected(&reply));
        };
        self.subscribed(member, joining.session_timeout_ms);
        self.membership = Some(Membership {
            home,
            member,
            _present: self.present(&joining.group, member, assignment.joined),
            joining,
            joins: false,
            joined: assignment.joined,
            seen: Seen::of(&assignment),
            owned: Vec::new(),
            unopened: BTreeMap::new(),
            told_opening: None,
            watch: 0,
            release_by: None,
        });
        self.take_assignment(assignment);
        self.watch();
        Ok(())
    }

    fn present(&self, group: &str, member: MemberId, joined: GroupEpoch) -> Present {
        let session = &self.session;
        Present::new(&session.shared, group, member, joined, session.address())
    }

    /// This stream is another incarnation of the member from now on.
    pub(super) fn joined(&mut self, assignment: Assignment) {
        let Some(membership) = &self.membership else {
            return;
        };
        let (group, member) = (&membership.joining.group, membership.member);
        let present = self.present(group, member, assignment.joined);
        if let Some(membership) = &mut self.membership {
            membership.joined = assignment.joined;
            membership.seen = Seen::of(&assignment);
            membership._present = present;
        }
        self.take_assignment(assignment);
        self.watch();
    }

    /// Wait for the next change of the assignment.
    pub(super) fn watch(&mut self) {
        let (Some(membership), Some(group)) = (&mut self.membership, &self.group) else {
            return;
        };
        membership.watch = membership.watch.wrapping_add(1);
        let watch = Call::WatchAssignment {
            group: group.to_string(),
            member: membership.member,
            joined: membership.joined,
            seen: membership.seen,
            wait_ms: (membership.session_timeout_ms() / 3).clamp(1, WATCH_MS_MAX),
        };
        membership.home.send(
            watch,
            ReplyTo::Queue {
                tag: u64::from(WATCH) << 32 | u64::from(membership.watch),
                queue: self.answers.clone(),
            },
        );
    }

    pub(super) fn assignment_came(
        &mut self,
        watch: u32,
        answer: Answer,
    ) -> Result<(), messages::Error> {
        let is_news = |membership: &Membership| membership.watch == watch && !membership.joins;
        if !self.membership.as_ref().is_some_and(is_news) {
            return Ok(());
        }
        match answer {
            Answer::Assignment(assignment) => {
                let newer = self.membership.as_mut().is_some_and(|membership| {
                    let newer = assignment.version > membership.seen.version;
                    membership.seen.moves = assignment.moves;
                    membership.seen.version = membership.seen.version.max(assignment.version);
                    newer
                });
                if newer {
                    self.take_assignment(assignment);
                } else {
                    self.tell_opening();
                }
                self.watch();
                Ok(())
            }
            Answer::Error(
                error @ (Error::Busy { .. }
                | Error::NotYet(_)
                | Error::Limited(_)
                | Error::Stopped(_)
                | Error::DiskFull),
            ) => {
                // A home that stopped moves nothing more, and keeps nobody.
                if let (Error::Stopped(_), Some(membership)) = (error, &mut self.membership) {
                    membership.seen.moves = false;
                    self.tell_opening();
                }
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
                Err(match other {
                    Answer::Error(Error::Refused(Refusal::UnknownGroup(group))) => {
                        Code::UnknownGroup.error(format!("group `{group}` was deleted"))
                    }
                    other => refusals::unexpected(&other),
                })
            }
        }
    }

    /// Make what this subscription reads what the group says.
    fn take_assignment(&mut self, assignment: Assignment) {
        let owned = assignment.owned.iter().map(|&(partition, since)| Owned {
            partition,
            since,
            epoch: assignment.under(since),
        });
        let owned: Vec<Owned> = owned.collect();
        let revoking = assignment.revoking;
        // What is neither owned nor to be released is gone, and so is what was given out anew.
        let held: FxHashMap<Partition, Option<GroupEpoch>> = owned
            .iter()
            .map(|owned| (owned.partition, Some(owned.epoch)))
            .chain(revoking.iter().map(|partition| (*partition, None)))
            .collect();
        let keeps = |partition: Partition, epoch: GroupEpoch| {
            let under = held.get(&partition);
            under.is_some_and(|under| under.is_none_or(|under| under == epoch))
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
            membership
                .unopened
                .retain(|partition, _| matches!(held.get(partition), Some(Some(_))));
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
        for owned in membership.owned.clone() {
            if self.feeds.of(owned.partition).is_none() {
                if let Some(membership) = &mut self.membership {
                    let now = Instant::now();
                    membership.unopened.entry(owned.partition).or_insert(now);
                }
                unknown |= !self.claim(owned);
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

    /// How many partitions the client is yet to be assigned, which it is told now.
    pub(super) fn opening(&mut self) -> u32 {
        let Some(membership) = &mut self.membership else {
            return u32::try_from(self.feeds.opening()).unwrap_or(u32::MAX);
        };
        let opening = membership.opening();
        membership.told_opening = Some(opening);
        opening
    }

    /// More or fewer partitions are yet to be assigned than the client believes, and none of them opened.
    pub(super) fn tell_opening(&mut self) {
        let is_wrong = self
            .membership
            .as_ref()
            .is_some_and(|membership| membership.told_opening != Some(membership.opening()));
        if is_wrong {
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
    fn claim(&mut self, owned: Owned) -> bool {
        let Owned {
            partition,
            since,
            epoch,
        } = owned;
        let Some(topic) = self.session.thread.catalog.cached(partition.topic) else {
            return false;
        };
        let Some(membership) = &self.membership else {
            return true;
        };
        let claim = Some((membership.member, epoch));
        // The group gives what its members named; whether this one may read it is asked every time.
        let may = self.session.principal().check(Right::Consume, &topic.name);
        let handle = match self.feeds.insert(topic, partition, epoch) {
            Ok(handle) => handle,
            Err(error) => {
                self.refused = Some(error); // others of the group may read it
                return true;
            }
        };
        if let Some(feed) = self.feeds.feed(handle) {
            feed.since = since;
        }
        if let Err(error) = may {
            let start = Err(error);
            self.jobs
                .spawn_local(async move { Event::Opened { handle, start } });
            return true;
        }
        let opening = Opening {
            shard: self.session.shared.shards.of(partition).clone(),
            partition,
            group: self.group.clone(),
            claim,
            // Without a position it was added since the group began here, or its topic was made anew: all
            // of it is new.
            from: At::Position(Position::Start),
            stop_at_end: self.stop_at_end,
        };
        self.open_later(handle, opening);
        true
    }

    /// The partition's shard says that this member does not hold what the group says it does: an
    /// operator's reset overruled it, and the home was not told. It is given out anew.
    pub(super) fn overruled(&mut self, handle: u32) {
        let (Some(membership), Some(feed)) = (&mut self.membership, self.feeds.feed(handle)) else {
            return;
        };
        let (partition, epoch) = (feed.partition, feed.epoch);
        let before = membership.owned.len();
        membership
            .owned
            .retain(|owned| (owned.partition, owned.epoch) != (partition, epoch));
        if membership.owned.len() == before {
            return; // it is asked back, or the news of it is on its way
        }
        self.feeds.remove(handle);
        self.lost(vec![handle]);
        self.reassign_later(partition, epoch);
    }

    /// Tell the home, but not at once: a claim that met a higher one is as a rule late, and whoever resets many
    /// partitions tells the home himself.
    pub(super) fn reassign_later(&mut self, partition: Partition, epoch: GroupEpoch) {
        self.jobs.spawn_local(async move {
            tokio::time::sleep(RETRY).await;
            Event::Reassign(vec![(partition, epoch)])
        });
    }

    /// Tell the home that these are to be given out anew.
    pub(super) fn reassign(&mut self, fenced: Vec<(Partition, GroupEpoch)>) {
        if fenced.is_empty() {
            return;
        }
        let (Some(membership), Some(group)) = (&self.membership, &self.group) else {
            return;
        };
        let (home, group) = (membership.home.clone(), group.to_string());
        self.jobs.spawn_local(async move {
            let request = Request::ReassignPartitions {
                group,
                fenced: fenced.clone(),
            };
            match ask(&home, request).await {
                Ok(_) => Event::Released,
                Err(error) => {
                    tracing::debug!(
                        error = error.message,
                        "a partition is not given out anew yet"
                    );
                    tokio::time::sleep(RETRY).await;
                    Event::Reassign(fenced)
                }
            }
        });
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
        let (home, group) = (membership.home.clone(), group.to_string());
        let (member, joined) = (membership.member, membership.joined);
        self.jobs.spawn_local(async move {
            let request = Request::ReleasePartitions {
                group,
                member,
                joined,
                partitions: partitions.clone(),
            };
            match ask(&home, request).await {
                Ok(_) => Event::Released,
                // A member that is not known, or joined again elsewhere, has nothing to release; the watch
                // says so to the client.
                Err(error) if is_over(&error) => Event::Released,
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
        // Commits that are under way belong to the time before, and what joins is to be left as well.
        let joins = |known: &Membership| known.joins;
        while (self.committing > 0 || self.membership.as_ref().is_some_and(joins))
            && let Some(Ok(event)) = self.jobs.join_next().await
        {
            if let Event::Committed { .. } | Event::JoinedAnew { .. } = event {
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
            joined: membership.joined,
        };
        if let Err(error) = ask(&membership.home, request).await {
            tracing::debug!(%group, error = error.message, "a member that leaves is not known");
        }
    }
}
