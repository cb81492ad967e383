//! What the client says on a subscription's stream.

use std::rc::Rc;

use millstream_batch::ids::{GroupEpoch, MemberId, Offset, Term};
use millstream_batch::limits::COMMIT_METADATA_BYTES_MAX;
use millstream_machine::request;
use millstream_protocol::kinds::name_of;
use millstream_protocol::messages::{self, Commit, Credit, PartitionError, Pause, Released, Seek};
use millstream_protocol::{Code, Frame, Kind};

use super::Subscription;
use super::feed::State;
use super::group::Membership;
use super::jobs::Opening;
use crate::refusals;
use crate::requests::position_of;

/// Partitions that one frame may name on every subscription, however few it has.
const NAMED: usize = 1_024;
/// Offsets in one COMMIT at most, however many partitions there are: the answer to all of them fits in a
/// frame many times.
const COMMIT_OFFSETS_MAX: usize = 16 << 10;

impl Subscription {
    pub(super) fn client_said(&mut self, frame: &Frame) -> Result<(), messages::Error> {
        match frame.known() {
            Some(Kind::Credit) => {
                let credit: Credit = frame.message().map_err(refusals::of_frame)?;
                self.feeds.add_credit(credit.bytes);
            }
            Some(Kind::Commit) => self.commit(frame.message().map_err(refusals::of_frame)?)?,
            Some(Kind::Released) => {
                let released: Released = frame.message().map_err(refusals::of_frame)?;
                self.check_named("RELEASED", released.handles.len(), usize::MAX)?;
                self.released(&released.handles);
            }
            Some(Kind::Pause) => {
                let pause: Pause = frame.message().map_err(refusals::of_frame)?;
                self.check_named("PAUSE", pause.handles.len(), usize::MAX)?;
                for handle in pause.handles {
                    self.feeds.halt(handle, None, pause.paused);
                }
            }
            Some(Kind::Seek) => self.seek(&frame.message().map_err(refusals::of_frame)?),
            _ => {
                let message = format!("{} on a subscription's stream", name_of(frame.kind));
                return Err(Code::BadRequest.error(message));
            }
        }
        Ok(())
    }

    /// A frame names each partition that was given once, and no more than `most`.
    fn check_named(&self, kind: &str, named: usize, most: usize) -> Result<(), messages::Error> {
        let most = self.feeds.given().max(NAMED).min(most);
        if named <= most {
            return Ok(());
        }
        Err(Code::TooLarge.error(format!(
            "{kind} names {named} partitions, over {most}: name each once, in several frames"
        )))
    }

    fn commit(&mut self, commit: Commit) -> Result<(), messages::Error> {
        let Some(group) = self.group.clone() else {
            return Err(Code::BadRequest.error("COMMIT without a group"));
        };
        self.check_named("COMMIT", commit.offsets.len(), COMMIT_OFFSETS_MAX)?;
        let member = self
            .membership
            .as_ref()
            .map_or(MemberId(0), Membership::member);
        let mut commits = Vec::with_capacity(commit.offsets.len());
        let mut failed = Vec::new();
        for offset in commit.offsets {
            if offset.metadata.len() > COMMIT_METADATA_BYTES_MAX {
                let message = format!(
                    "metadata of {} bytes is over {COMMIT_METADATA_BYTES_MAX}",
                    offset.metadata.len()
                );
                failed.push((offset.handle, Code::TooLarge.error(message)));
                continue;
            }
            let Some(feed) = self.feeds.feed(offset.handle) else {
                failed.push((
                    offset.handle,
                    Code::MemberFenced.error("not this subscription's"),
                ));
                continue;
            };
            let (partition, epoch): (_, GroupEpoch) = (feed.partition, feed.epoch);
            let shard = self.session.shared.shards.of(partition).clone();
            let commit = request::Commit {
                group: group.to_string(),
                partition,
                member,
                epoch,
                offset: Offset(offset.offset),
                leader_epoch: offset.leader_epoch.map(Term),
                metadata: offset.metadata,
            };
            commits.push((offset.handle, shard, commit));
        }
        // All or nothing is not promised: those that can be committed are.
        let failed = failed
            .into_iter()
            .map(|(handle, error)| PartitionError {
                handle,
                error: Some(error),
            })
            .collect();
        self.commit_later(commit.tag, commits, failed);
        Ok(())
    }

    fn seek(&mut self, seek: &Seek) {
        let Some(feed) = self.feeds.feed(seek.handle) else {
            return;
        }; // released meanwhile
        if !matches!(feed.state, State::Open | State::Failed | State::Ended) {
            return;
        }
        let to = position_of(seek.to.as_ref());
        if self.feeds.ask_seek(seek.handle, seek.generation, to) {
            self.seek_next(seek.handle);
        }
    }

    /// Resolve the first SEEK of those that a partition was asked for.
    pub(super) fn seek_next(&mut self, handle: u32) {
        let Some(feed) = self.feeds.feed(handle) else {
            return;
        };
        let Some(&(generation, from)) = feed.seeks.front() else {
            return;
        };
        let opening = Opening {
            shard: self.session.shared.shards.of(feed.partition).clone(),
            partition: feed.partition,
            group: None::<Rc<str>>,
            claim: None,
            from,
            stop_at_end: false,
        };
        self.seek_later(handle, generation, opening);
    }
}
