//! What the application says to the task: commits, seeks, pauses, releases.

use std::sync::Arc;

use millstream_protocol::Kind;
use millstream_protocol::messages as wire;
use tokio::sync::oneshot;

use super::CommitFailure;
use super::assignment::Assignment;
use super::driver::{Command, Committing, Driver};
use crate::error::{Error, Result};

impl Driver {
    pub(super) fn command(&mut self, command: Command, auto_commit: bool) {
        match command {
            Command::Freed(bytes) => self.freed += bytes,
            Command::Commit { offsets, reply } => self.commit(offsets, reply),
            Command::Seek {
                assignment,
                to,
                generation,
                reply,
            } => {
                let Some((at, handle)) = self
                    .find(&assignment)
                    .and_then(|at| Some((at, self.held[at].handle?)))
                else {
                    let _ = reply.send(Err(Error::usage(format!(
                        "{} is not assigned to this consumer",
                        assignment.name
                    ))));
                    return;
                };
                let held = &mut self.held[at];
                held.seeking = Some(generation);
                held.ended = false;
                held.continuity.forget();
                held.found_by = None;
                if let Some((_, old)) = self.seeks.insert(at, (to, reply)) {
                    let _ = old.send(Err(Error::usage("another seek came after this one")));
                }
                self.say(
                    Kind::Seek,
                    &wire::Seek {
                        handle,
                        to: Some(to.to_wire()),
                        generation,
                    },
                );
            }
            Command::Pause {
                assignments,
                paused,
            } => {
                let handles = self.handles(&assignments);
                if !handles.is_empty() {
                    self.say(Kind::Pause, &wire::Pause { handles, paused });
                }
            }
            Command::Released(assignments) => {
                let handles = self.handles(&assignments);
                self.drop_held(&assignments);
                if !handles.is_empty() {
                    self.say(Kind::Released, &wire::Released { handles });
                }
            }
            Command::Close => {
                if auto_commit {
                    self.commit_processed();
                }
                self.closing = true;
            }
        }
    }

    fn commit(
        &mut self,
        offsets: Vec<(Arc<Assignment>, u64, String)>,
        reply: Option<oneshot::Sender<Result<Vec<CommitFailure>>>>,
    ) {
        let (mut named, mut sent, mut failures) = (Vec::new(), Vec::new(), Vec::new());
        for (assignment, offset, metadata) in offsets {
            if let Some(handle) = self.find(&assignment).and_then(|at| self.held[at].handle) {
                named.push(wire::CommitOffset {
                    handle,
                    offset,
                    metadata,
                    leader_epoch: assignment.epoch_before(offset),
                });
                sent.push((assignment, offset));
            } else {
                let error = Error::usage("the partition is no longer assigned to this consumer");
                failures.push(CommitFailure {
                    partition: assignment.name.clone(),
                    error,
                });
            }
        }
        if named.is_empty() {
            if let Some(reply) = reply {
                let _ = reply.send(Ok(failures));
            }
            return;
        }
        let tag = self.next_tag;
        self.next_tag += 1;
        self.commits.insert(
            tag,
            Committing {
                sent,
                failures,
                reply,
            },
        );
        self.say(
            Kind::Commit,
            &wire::Commit {
                tag,
                offsets: named,
            },
        );
    }

    pub(super) fn commit_processed(&mut self) {
        let due = self
            .held
            .iter()
            .filter(|held| held.assignment.processed() > held.assignment.committed());
        let offsets: Vec<_> = due
            .map(|held| {
                (
                    Arc::clone(&held.assignment),
                    held.assignment.processed(),
                    String::new(),
                )
            })
            .collect();
        if !offsets.is_empty() {
            self.commit(offsets, None);
        }
    }
}
