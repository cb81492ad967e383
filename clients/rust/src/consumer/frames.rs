//! What the broker says on a subscription's stream.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use millstream_batch::Batch;
use millstream_protocol::messages as wire;
use millstream_protocol::{Code, Frame, Kind};

use super::CommitFailure;
use super::assignment::{Assignment, TopicPartition};
use super::driver::{Arrival, Arrived, Change, Committing, Driver, End, Held};
use super::fetched::FetchedBatch;
use super::plan::{OnTruncation, StartAt};
use super::verify::{Continuity, Place};
use crate::connection::{Incoming, refusal};
use crate::error::{Error, Result};

impl Driver {
    pub(super) fn frames(&mut self, incoming: &mut Incoming) -> Option<End> {
        loop {
            let frame = match incoming.ready() {
                Ok(Some(frame)) => frame,
                Ok(None) => return None,
                Err(error) => return Some(End::Fatal(error)),
            };
            match self.frame(frame) {
                Ok(()) => {}
                Err(error) => return Some(self.lost(error)),
            }
        }
    }

    fn frame(&mut self, frame: Frame) -> Result<()> {
        match frame.known() {
            Some(Kind::Batch) => self.batch(frame)?,
            Some(Kind::CaughtUp) => {
                let caught_up: wire::CaughtUp = frame.message()?;
                let ends_here = self.ends_here();
                if let Some(held) = self
                    .held_of(caught_up.handle)
                    .filter(|held| held.seeking.is_none())
                {
                    held.pass_over(caught_up.offset, caught_up.leader_epoch);
                    let ended = caught_up.ended || ends_here;
                    held.ended |= ended;
                    let arrival = held.arrival(Arrived::CaughtUp {
                        offset: caught_up.offset,
                        ended,
                    });
                    let _ = self.arrivals.send(arrival);
                }
                self.end_if_read();
            }
            Some(Kind::Passed) => {
                let passed: wire::Passed = frame.message()?;
                if let Some(held) = self
                    .held_of(passed.handle)
                    .filter(|held| held.seeking.is_none())
                {
                    held.pass_over(passed.offset, passed.leader_epoch);
                    let offset = passed.offset;
                    let arrival = held.arrival(Arrived::Passed { offset });
                    let _ = self.arrivals.send(arrival);
                }
            }
            Some(Kind::RecordsLost) => {
                let lost: wire::RecordsLost = frame.message()?;
                if let Some(held) = self
                    .held_of(lost.handle)
                    .filter(|held| held.seeking.is_none())
                {
                    let wire::RecordsLost { from, to, .. } = lost;
                    tracing::warn!(partition = %held.assignment.name, from, to, "records were removed before they were read");
                    held.pass_over(to, None);
                    held.continuity.forget();
                    let arrival = held.arrival(Arrived::RecordsLost { from, to });
                    let _ = self.arrivals.send(arrival);
                }
            }
            Some(Kind::Assigned) => self.assigned(frame.message()?),
            Some(Kind::Revoke) => {
                let revoke: wire::Revoke = frame.message()?;
                let taken: Vec<_> = revoke
                    .handles
                    .iter()
                    .filter_map(|handle| self.by_handle.get(handle))
                    .collect();
                let taken: Vec<_> = taken
                    .into_iter()
                    .map(|&at| Arc::clone(&self.held[at].assignment))
                    .collect();
                for assignment in &taken {
                    assignment.end();
                }
                if revoke.lost {
                    self.drop_held(&taken);
                }
                let change = if revoke.lost {
                    Change::Lost(taken)
                } else {
                    Change::Revoking(taken)
                };
                let _ = self.changes.send(change);
            }
            Some(Kind::Committed) => self.committed(&frame.message()?),
            Some(Kind::Sought) => {
                let sought: wire::Sought = frame.message()?;
                let Some(&at) = self.by_handle.get(&sought.handle) else {
                    return Ok(());
                };
                let held = &mut self.held[at];
                if held.seeking == Some(sought.generation) {
                    held.seeking = None;
                    if held.position != sought.offset {
                        held.assignment.begin_epochs(sought.offset, None);
                    }
                    held.position = sought.offset;
                    if let Some((to, reply)) = self.seeks.remove(&at) {
                        if let StartAt::Timestamp(time_ms) = to {
                            held.found_by = Some((sought.offset, time_ms));
                        }
                        // A seek of ours after a reconnect has nobody waiting, and nothing to move.
                        held.assignment.set_processed(sought.offset);
                        let _ = reply.send(Ok(sought.offset));
                    }
                }
            }
            Some(Kind::PartitionError) => {
                let failed: wire::PartitionError = frame.message()?;
                if let Some(&at) = self.by_handle.get(&failed.handle) {
                    let error = Error::refused(failed.error.unwrap_or_default());
                    if error.code() == Some(Code::OffsetTruncated)
                        && let Some(safe) = error.safe_offset()
                        && self.plan.on_truncation == OnTruncation::Resume
                        && !self.seeks.contains_key(&at)
                    {
                        self.resume(at, safe, &error);
                        return Ok(());
                    }
                    if let Some((_, reply)) = self.seeks.remove(&at) {
                        let _ = reply.send(Err(error.clone()));
                    }
                    let held = &mut self.held[at];
                    held.seeking = None;
                    held.ended = self.plan.stop_at_end;
                    let arrival = held.arrival(Arrived::Failed(error));
                    let _ = self.arrivals.send(arrival);
                    self.end_if_read();
                }
            }
            Some(Kind::Error) => {
                let (tag, error) = refusal(&frame)?;
                match self.commits.remove(&tag) {
                    Some(Committing {
                        reply: Some(reply), ..
                    }) => drop(reply.send(Err(error))),
                    Some(_) => tracing::warn!(%error, "an automatic commit was refused"),
                    None => return Err(error),
                }
            }
            // A newer broker may say more than we understand.
            None => {}
            Some(kind) => {
                return Err(Error::protocol(format!(
                    "{} on a subscription",
                    kind.name()
                )));
            }
        }
        Ok(())
    }

    /// Whether this side decides where a partition ends: with a group commits come after the last record, so
    /// that the broker leaves the stream open.
    fn ends_here(&self) -> bool {
        self.plan.stop_at_end && !self.plan.group.is_empty()
    }

    /// With a group that is read to the end: end when everything that was given has.
    fn end_if_read(&mut self) {
        if self.ends_here() && self.all_ended() && !self.has_ended {
            self.has_ended = true;
            let _ = self.changes.send(Change::Ended(None));
        }
    }

    /// More is coming, and the application may still be at work on what it was given before.
    fn go_on(&mut self) {
        if std::mem::take(&mut self.has_ended) {
            let _ = self.changes.send(Change::GoesOn);
        }
    }

    /// Records that were read are lost: on from where nothing is. What of them waits is dropped.
    fn resume(&mut self, at: usize, safe: u64, error: &Error) {
        let held = &mut self.held[at];
        let Some(handle) = held.handle else { return };
        tracing::warn!(partition = %held.assignment.name, %error, "going on from the safe offset");
        let generation = held.assignment.next_generation();
        held.assignment.truncate(safe);
        held.continuity.forget();
        (held.position, held.seeking) = (safe, Some(generation));
        let to = Some(StartAt::Offset(safe).to_wire());
        self.say(
            Kind::Seek,
            &wire::Seek {
                handle,
                to,
                generation,
            },
        );
    }

    fn batch(&mut self, frame: Frame) -> Result<()> {
        let head: wire::Batch = frame.message()?;
        let bytes = frame.payload.len();
        let verify = self.plan.verify;
        let Some(held) = self
            .held_of(head.handle)
            .filter(|held| held.seeking.is_none() && held.assignment.is_live())
        else {
            self.freed += bytes as u64;
            return Ok(());
        };
        if head.last_offset < held.position {
            self.freed += bytes as u64;
            return Ok(());
        }
        let name = held.assignment.name.clone();
        let batch = Batch::check(frame.payload.into_contiguous()).map_err(|error| {
            Error::protocol(format!("{name} at offset {}: {error}", head.base_offset))
        })?;
        let (first, last) = (head.base_offset, head.last_offset);
        let numbers = *batch.header();
        let spans = numbers.base_offset as u64 == first
            && first + u64::from(numbers.last_offset_delta) == last;
        if !spans && !head.filtered {
            return Err(Error::protocol(format!(
                "{name}: a batch says other offsets than its frame ({first} to {last})"
            )));
        }
        let fault = if verify {
            let place = Place {
                first_offset: first,
                last_offset: last,
                pid: head.pid,
                epoch: head.epoch,
                sequence: head.sequence,
            };
            held.continuity.check(place).err()
        } else {
            None
        };
        let batch = FetchedBatch {
            skip_below: held.position,
            skip_before_ms: held
                .found_by
                .take()
                .filter(|(at, _)| (first..=last).contains(at))
                .map(|(_, time_ms)| time_ms),
            name: name.clone(),
            batch,
            first_offset: first,
            last_offset: last,
            append_time_ms: head.append_time_ms,
            pid: head.pid,
            epoch: head.epoch,
            sequence: head.sequence,
            end_offset: head.end_offset,
            leader_epoch: numbers.leader_epoch.try_into().unwrap_or_default(),
            filtered: head.filtered,
        };
        held.assignment.note_epoch(first, batch.leader_epoch);
        held.position = last + 1;
        let fault =
            fault.map(|what| held.arrival(Arrived::Fault(Error::gap(format!("{name}: {what}")))));
        let arrival = held.arrival(Arrived::Batch(Box::new(batch)));
        self.queued.fetch_add(bytes, Ordering::AcqRel);
        if let Some(fault) = fault {
            let _ = self.arrivals.send(fault);
        }
        let _ = self.arrivals.send(arrival);
        Ok(())
    }

    fn assigned(&mut self, assigned: wire::Assigned) {
        self.opening = assigned.opening;
        let _ = self.changes.send(Change::Opening(assigned.opening));
        if assigned.opening > 0 || !assigned.partitions.is_empty() {
            self.go_on();
        }
        let mut fresh = Vec::new();
        for partition in assigned.partitions {
            let same = |held: &Held| {
                let ours = &held.assignment;
                *ours.name.topic == *partition.topic
                    && ours.name.partition == partition.partition
                    && ours.topic_id == partition.topic_id
                    && ours.since == partition.since
                    && ours.is_live()
            };
            let handle = partition.handle;
            if let Some(at) = self.held.iter().position(same) {
                // Ours without a break: go on where we are, which is past what was committed.
                self.by_handle.insert(handle, at);
                let held = &mut self.held[at];
                held.handle = Some(handle);
                let (position, paused) = (held.position, held.assignment.is_paused());
                if position != partition.offset {
                    let generation = held.assignment.generation();
                    held.seeking = Some(generation);
                    let to = Some(held.here().to_wire());
                    self.say(
                        Kind::Seek,
                        &wire::Seek {
                            handle,
                            to,
                            generation,
                        },
                    );
                }
                if paused {
                    self.say(
                        Kind::Pause,
                        &wire::Pause {
                            handles: vec![handle],
                            paused,
                        },
                    );
                }
                continue;
            }
            let name = TopicPartition::new(partition.topic, partition.partition);
            // Since another epoch: somebody else may have had it meanwhile, or a reset overruled us.
            self.lose(|held| held.assignment.name == name);
            let assignment =
                Assignment::new(name, partition.topic_id, partition.since, partition.offset);
            let assignment = Arc::new(assignment);
            self.by_handle.insert(handle, self.held.len());
            self.held.push(Held {
                assignment: Arc::clone(&assignment),
                handle: Some(handle),
                position: partition.offset,
                seeking: None,
                ended: false,
                continuity: Continuity::default(),
                found_by: partition
                    .from_timestamp_ms
                    .map(|time_ms| (partition.offset, time_ms)),
            });
            fresh.push((assignment, partition.offset));
        }
        if !fresh.is_empty() {
            let _ = self.changes.send(Change::Assigned(fresh));
        }
        self.end_if_read();
    }

    /// Partitions that are somebody else's now.
    pub(super) fn lose(&mut self, which: impl Fn(&Held) -> bool) {
        let gone: Vec<_> = self
            .held
            .iter()
            .filter(|held| which(held))
            .map(|held| Arc::clone(&held.assignment))
            .collect();
        if gone.is_empty() {
            return;
        }
        for assignment in &gone {
            assignment.end();
        }
        self.drop_held(&gone);
        let _ = self.changes.send(Change::Lost(gone));
    }

    fn committed(&mut self, committed: &wire::Committed) {
        let Some(Committing {
            sent,
            mut failures,
            reply,
        }) = self.commits.remove(&committed.tag)
        else {
            return;
        };
        for failure in &committed.failed {
            if let Some(&at) = self.by_handle.get(&failure.handle) {
                let partition = self.held[at].assignment.name.clone();
                failures.push(CommitFailure {
                    partition,
                    error: Error::refused(failure.error.clone().unwrap_or_default()),
                });
            }
        }
        for (assignment, offset) in sent {
            if failures
                .iter()
                .all(|failure| failure.partition != assignment.name)
            {
                assignment.set_committed(offset);
            }
        }
        match reply {
            Some(reply) => drop(reply.send(Ok(failures))),
            None => {
                for failure in failures {
                    tracing::warn!(partition = %failure.partition, error = %failure.error, "an automatic commit failed");
                }
            }
        }
    }
}

impl Held {
    /// Its position, with the leader epoch of the record before it if that was read.
    pub(super) fn here(&self) -> StartAt {
        let offset = self.position;
        match self.assignment.epoch_before(offset) {
            Some(leader_epoch) => StartAt::After {
                offset,
                leader_epoch,
            },
            None => StartAt::Offset(offset),
        }
    }

    /// Nothing before `offset` is given, of which the last may be of a later epoch.
    fn pass_over(&mut self, offset: u64, leader_epoch: Option<u32>) {
        if offset > self.position {
            self.assignment.begin_epochs(offset, leader_epoch);
            self.position = offset;
        }
    }

    pub(super) fn arrival(&self, what: Arrived) -> Arrival {
        Arrival {
            assignment: Arc::clone(&self.assignment),
            generation: self.assignment.generation(),
            what,
        }
    }
}
