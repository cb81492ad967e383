//! Long polls of assignments, of the catalog and of deleted groups, and the members' signs of life.

use millstream_batch::ids::{GroupEpoch, MemberId};
use millstream_machine::decide;
use millstream_machine::request::{Assignment, Refusal, Reply, Request};

use super::gate::Held;
use super::waiting::Wait;
use super::{ShardCore, Writes};
use crate::call::{Answer, Error, Seen};

impl ShardCore {
    pub(super) fn watch_assignment(
        &mut self,
        token: u64,
        group: String,
        member: MemberId,
        joined: GroupEpoch,
        seen: Seen,
        wait_ms: u32,
    ) {
        let assignment = match self.assignment(&group, member, joined) {
            Ok(assignment) => assignment,
            Err(error) => return self.refuse_or_fail(token, error),
        };
        self.upkeep.seen(&group, member, self.now);
        if seen.is_behind(&assignment) || wait_ms == 0 {
            return self.assigned(token, assignment);
        }
        let wait = Wait::Assignment {
            group,
            member,
            joined,
            seen,
        };
        self.wait(token, wait_ms, wait);
    }

    pub(super) fn watch_catalog(&mut self, token: u64, seen: u64, wait_ms: u32) {
        if self.catalog_version > seen || wait_ms == 0 {
            self.show_catalog(token);
        } else {
            self.wait(token, wait_ms, Wait::Catalog { seen });
        }
    }

    /// Answered when every shard has forgotten a group that was deleted here, or that was never one.
    pub(super) fn watch_forgotten(&mut self, token: u64, group: String, wait_ms: u32) {
        if !self.state.is_forgetting(&group) {
            return self.forgotten(token);
        }
        if wait_ms == 0 {
            return self.refuse(token, Refusal::GroupBeingDeleted(group));
        }
        self.wait(token, wait_ms, Wait::Forgotten { group });
    }

    /// A shard has acknowledged something: answer those whose group nobody remembers.
    pub(super) fn wake_forgotten(&mut self) {
        for token in self.waiting.of_forgotten() {
            if let Some(Wait::Forgotten { group }) = self.waiting.wait(token)
                && !self.state.is_forgetting(group)
            {
                self.waiting.remove(token);
                self.forgotten(token);
            }
        }
    }

    fn forgotten(&mut self, token: u64) {
        if let Some(error) = self.may_never_be() {
            return self.fail(token, error);
        }
        self.hold(Held::Answer {
            token,
            answer: Box::new(Answer::Reply(Reply::Done)),
            wrote: false,
        });
    }

    /// A group's assignments may have changed: answer those whose did.
    pub(super) fn wake_group(&mut self, group: &str) {
        for token in self.waiting.of_group(group) {
            let Some(Wait::Assignment {
                member,
                joined,
                seen,
                ..
            }) = self.waiting.wait(token)
            else {
                continue;
            };
            let (member, joined, seen) = (*member, *joined, *seen);
            match self.assignment(group, member, joined) {
                Ok(assignment) if !seen.is_behind(&assignment) => {}
                Ok(assignment) => {
                    self.waiting.remove(token);
                    self.assigned(token, assignment);
                }
                Err(error) => {
                    self.waiting.remove(token);
                    self.refuse_or_fail(token, error);
                }
            }
        }
    }

    pub(super) fn wake_catalog(&mut self) {
        for token in self.waiting.of_catalog() {
            if let Some(Wait::Catalog { seen }) = self.waiting.wait(token)
                && *seen < self.catalog_version
            {
                self.waiting.remove(token);
                self.show_catalog(token);
            }
        }
    }

    /// Answer the calls whose time is up with what holds.
    pub(super) fn expire_waits(&mut self) {
        while let Some((token, wait)) = self.waiting.expired(self.now.mono_us) {
            match wait {
                Wait::Records { fetch, .. } => self.nothing_to_read(token, fetch),
                Wait::Catalog { .. } => self.show_catalog(token),
                Wait::Spread { revision } => self.expired_spread(token, revision),
                Wait::Forgotten { group } => self.refuse(token, Refusal::GroupBeingDeleted(group)),
                Wait::Assignment {
                    group,
                    member,
                    joined,
                    ..
                } => match self.assignment(&group, member, joined) {
                    Ok(assignment) => {
                        // A member whose poll is open is alive: its next one may take a moment to come.
                        self.upkeep.seen(&group, member, self.now);
                        self.assigned(token, assignment);
                    }
                    Err(error) => self.refuse_or_fail(token, error),
                },
            }
        }
    }

    /// What was carried out for a member says that it lives.
    pub(super) fn sign_of_life(&mut self, request: &Request, reply: &Reply) {
        match (request, reply) {
            (Request::JoinGroup { group, .. }, Reply::Joined { member, .. })
            | (Request::ReleasePartitions { group, member, .. }, _) => {
                self.upkeep.seen(group, *member, self.now);
            }
            _ => {}
        }
    }

    pub(super) fn wait(&mut self, token: u64, wait_ms: u32, wait: Wait) {
        if self.waiting.len() >= self.config.waiting_max {
            let error = Error::Busy {
                shard: self.config.shard,
                calls: self.waiting.len(),
            };
            return self.fail(token, error);
        }
        self.waiting
            .insert(token, self.now.after_ms(u64::from(wait_ms)), wait);
    }

    fn assignment(
        &self,
        group: &str,
        member: MemberId,
        joined: GroupEpoch,
    ) -> Result<Assignment, Error> {
        if let Writes::Stopped(why) = &self.writes {
            return Err(Error::Stopped(why.clone()));
        }
        let request = Request::GroupAssignment {
            group: group.to_owned(),
            member,
            joined,
        };
        match decide(&self.state, self.now.wall, self.term, &request)?.reply {
            Reply::Assignment(assignment) => Ok(assignment),
            other => unreachable!("asked for an assignment, got {other:?}"),
        }
    }

    fn assigned(&mut self, token: u64, assignment: Assignment) {
        self.hold(Held::Answer {
            token,
            answer: Box::new(Answer::Assignment(assignment)),
            wrote: false,
        });
    }

    fn show_catalog(&mut self, token: u64) {
        if let Some(error) = self.may_never_be() {
            return self.fail(token, error);
        }
        let topics = match decide(&self.state, self.now.wall, self.term, &Request::ListTopics)
            .map(|decision| decision.reply)
        {
            Ok(Reply::Topics(topics)) => topics,
            other => unreachable!("asked for the topics, got {other:?}"),
        };
        let answer = Box::new(Answer::Catalog {
            version: self.catalog_version,
            topics,
        });
        self.hold(Held::Answer {
            token,
            answer,
            wrote: false,
        });
    }

    /// The log has stopped, and what is installed beyond its end never happened: nothing that may depend on it
    /// is told.
    pub(super) fn may_never_be(&self) -> Option<Error> {
        match &self.writes {
            Writes::Stopped(why) if self.installed_state > self.settled() => {
                Some(Error::Stopped(why.clone()))
            }
            _ => None,
        }
    }

    fn refuse_or_fail(&mut self, token: u64, error: Error) {
        match error {
            Error::Refused(refusal) => self.refuse(token, refusal),
            error => self.fail(token, error),
        }
    }
}
