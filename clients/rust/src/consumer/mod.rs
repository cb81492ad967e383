//! Consuming: partitions of one's choice, or those that a group gives.
//!
//! ```text
//!  broker ──batches against credit──▶ driver ──▶ queue (bounded by the credit) ──▶ Consumer ──▶ you
//!                                       ▲                                            │
//!                                       └── commits, seeks, pauses, releases ◀───────┘
//! ```
//!
//! A record counts as processed when the application comes back for the next one; automatic commits
//! never go past that, so a crash repeats records and never skips them. A partition that the group takes
//! away is let go when the application comes back, after what it processed was committed. Deliberately
//! absent: shared queues.

mod assignment;
mod commands;
mod driver;
mod fetched;
mod frames;
mod plan;
#[cfg(test)]
mod tests;
mod verify;

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use tokio::sync::{mpsc, oneshot};

pub use assignment::TopicPartition;
pub use fetched::{FetchedBatch, OpenedBatch};
pub use plan::{ConsumerBuilder, OnLost, OnTruncation, StartAt};

use crate::error::{Error, Result};
use crate::record::ConsumedRecord;
use assignment::Assignment;
use driver::{Arrival, Arrived, Change, Command};

/// An offset that was not committed.
#[derive(Clone, Debug)]
pub struct CommitFailure {
    pub partition: TopicPartition,
    pub error: Error,
}

/// What a consumer has to tell.
#[derive(Clone, Debug)]
pub enum ConsumerEvent {
    Batch(FetchedBatch),
    /// These partitions are ours from now on, each from its offset.
    Assigned(Vec<(TopicPartition, u64)>),
    /// The group wants these back. Commit what should be committed: they are let go with the next call.
    Revoking(Vec<TopicPartition>),
    /// These are gone already, and nothing of them can be committed.
    Lost(Vec<TopicPartition>),
    /// Nothing more below `offset` for now; `ended`: at all, see [`ConsumerBuilder::stop_at_end`]. As with
    /// [`Passed`](Self::Passed), what filters dropped below it needs no processing: `offset` may be committed.
    CaughtUp {
        partition: TopicPartition,
        offset: u64,
        ended: bool,
    },
    /// Filters dropped everything from the last batch up to `offset`, and more follows. `offset` may be
    /// committed; [`commit`](Consumer::commit) and automatic commits do.
    Passed {
        partition: TopicPartition,
        offset: u64,
    },
    /// The records `from` to before `to` were removed before they were read; it goes on from `to`. See
    /// [`ConsumerBuilder::on_lost`].
    RecordsLost {
        partition: TopicPartition,
        from: u64,
        to: u64,
    },
    /// This partition has stopped; the others go on. Seek to take it up again.
    Failed {
        partition: TopicPartition,
        error: Error,
    },
}

/// Reads records. One task at a time.
#[derive(Debug)]
pub struct Consumer {
    commands: mpsc::UnboundedSender<Command>,
    changes: mpsc::UnboundedReceiver<Change>,
    arrivals: mpsc::UnboundedReceiver<Arrival>,
    queued: Arc<AtomicUsize>,
    driver: Option<tokio::task::JoinHandle<()>>,
    assigned: Vec<Arc<Assignment>>,
    opening: u32,
    /// Nothing more comes but what has arrived, and then this.
    ending: bool,
    last_words: Option<Error>,
    auto_commit: bool,
    /// What the application is working on: processed when it comes back.
    given: Option<(Arc<Assignment>, u32, u64)>,
    /// Told to the application; let go when it comes back.
    releasing: Vec<Arc<Assignment>>,
    /// Arrivals of paused partitions.
    held_back: VecDeque<Arrival>,
    /// Of the batch that is being read record by record.
    records: VecDeque<ConsumedRecord>,
    records_of: Option<(Arc<Assignment>, u32, u64)>,
    freed: u64,
    over: bool,
}

impl Consumer {
    /// A consumer over the queues to its task.
    fn over(
        commands: mpsc::UnboundedSender<Command>,
        changes: mpsc::UnboundedReceiver<Change>,
        arrivals: mpsc::UnboundedReceiver<Arrival>,
        queued: Arc<AtomicUsize>,
        auto_commit: bool,
    ) -> Self {
        Self {
            commands,
            changes,
            arrivals,
            queued,
            driver: None,
            assigned: Vec::new(),
            opening: 0,
            ending: false,
            last_words: None,
            auto_commit,
            given: None,
            releasing: Vec::new(),
            held_back: VecDeque::new(),
            records: VecDeque::new(),
            records_of: None,
            freed: 0,
            over: false,
        }
    }

    /// The next record; `None` when the consumer has ended. An error that does not end it (a failed
    /// partition, a hole) is followed by more. Safe to cancel.
    pub async fn next(&mut self) -> Option<Result<ConsumedRecord>> {
        std::future::poll_fn(|cx| self.poll_record(cx)).await
    }

    /// The next batch, whole. Do not mix with [`next`](Self::next) inside a batch: what is left of it
    /// there is skipped. Safe to cancel.
    pub async fn next_batch(&mut self) -> Option<Result<FetchedBatch>> {
        loop {
            match self.next_event().await? {
                Ok(ConsumerEvent::Batch(batch)) => return Some(Ok(batch)),
                Ok(ConsumerEvent::Failed { partition, error }) => {
                    return Some(Err(error.context(&partition.to_string())));
                }
                Ok(_) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// The next batch or change of assignment. Safe to cancel.
    pub async fn next_event(&mut self) -> Option<Result<ConsumerEvent>> {
        std::future::poll_fn(|cx| self.poll_event(cx)).await
    }

    /// Partitions that are ours now.
    #[must_use]
    pub fn assignment(&self) -> Vec<TopicPartition> {
        self.assigned
            .iter()
            .map(|assignment| assignment.name.clone())
            .collect()
    }

    /// How many partitions are to be [`Assigned`](ConsumerEvent::Assigned) yet, as of the last event: those that the
    /// broker is still opening, and one while the group moves any, which may come here. Until it is none, what was
    /// assigned is not all there is to read.
    #[must_use]
    pub fn opening(&self) -> u32 {
        self.opening
    }

    /// Where this consumer is in a partition: the next offset it would be given, if it holds it.
    #[must_use]
    pub fn position(&self, partition: &TopicPartition) -> Option<u64> {
        let assignment = self.find(partition)?;
        match &self.given {
            Some((given, _, next)) if Arc::ptr_eq(given, assignment) => Some(*next),
            _ => Some(assignment.processed()),
        }
    }

    /// Commit everything given so far, the last record or batch included, and wait until that is
    /// durable.
    ///
    /// # Errors
    /// When a partition's offset was not committed: the first of them.
    pub async fn commit(&mut self) -> Result<()> {
        self.come_back();
        let due = self
            .assigned
            .iter()
            .filter(|assignment| assignment.processed() > assignment.committed());
        let offsets = due.map(|assignment| {
            (
                Arc::clone(assignment),
                assignment.processed(),
                String::new(),
            )
        });
        match self
            .send_commit(offsets.collect())
            .await?
            .into_iter()
            .next()
        {
            None => Ok(()),
            Some(failure) => Err(failure
                .error
                .context(&format!("{} was not committed", failure.partition))),
        }
    }

    /// Commit these: the next offset to read of each partition, and words to keep with it. Gives those
    /// that failed.
    ///
    /// # Errors
    /// When a partition is not ours, or the connection was lost meanwhile.
    pub async fn commit_offsets(
        &mut self,
        offsets: &[(TopicPartition, u64, &str)],
    ) -> Result<Vec<CommitFailure>> {
        let mut named = Vec::with_capacity(offsets.len());
        for (partition, offset, metadata) in offsets {
            named.push((
                Arc::clone(self.ours(partition)?),
                *offset,
                (*metadata).to_owned(),
            ));
        }
        self.send_commit(named).await
    }

    /// Go on from elsewhere in a partition. Gives the offset.
    ///
    /// # Errors
    /// When the partition is not ours, the offset is out of range, or the connection was lost.
    pub async fn seek(&mut self, partition: &TopicPartition, to: StartAt) -> Result<u64> {
        let assignment = Arc::clone(self.ours(partition)?);
        let generation = assignment.next_generation();
        let resumed = assignment.take_stopped() && !assignment.is_paused();
        let is_of = |other: &Arc<Assignment>| Arc::ptr_eq(other, &assignment);
        if self
            .given
            .as_ref()
            .is_some_and(|(given, _, _)| is_of(given))
        {
            self.given = None;
        }
        if self
            .records_of
            .as_ref()
            .is_some_and(|(given, _, _)| is_of(given))
        {
            self.records.clear();
        }
        let (reply, answer) = oneshot::channel();
        self.send(Command::Seek {
            assignment: Arc::clone(&assignment),
            to,
            generation,
            reply,
        })?;
        if resumed {
            self.send(Command::Pause {
                assignments: vec![assignment],
                paused: false,
            })?;
        }
        answer
            .await
            .unwrap_or_else(|_| Err(Error::closed("consumer")))
    }

    /// Give nothing of these partitions until they are resumed. They stay ours.
    ///
    /// # Errors
    /// When a partition is not ours.
    pub fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.set_paused(partitions, true)
    }

    /// Undo [`pause`](Self::pause).
    ///
    /// # Errors
    /// When a partition is not ours.
    pub fn resume(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.set_paused(partitions, false)
    }

    /// Commit what was processed (with automatic commits), leave the group and end. What was given last
    /// counts as processed.
    pub async fn close(mut self) {
        self.come_back();
        let _ = self.commands.send(Command::Close);
        if let Some(driver) = self.driver.take() {
            let _ = driver.await;
        }
    }

    fn poll_record(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<ConsumedRecord>>> {
        loop {
            self.come_back();
            if let Some((assignment, generation, end)) = &self.records_of {
                if assignment.is_live()
                    && assignment.generation() == *generation
                    && !assignment.is_paused()
                {
                    if let Some(record) = self.records.pop_front() {
                        let next = if self.records.is_empty() {
                            *end
                        } else {
                            record.offset + 1
                        };
                        self.given = Some((Arc::clone(assignment), *generation, next));
                        return Poll::Ready(Some(Ok(record)));
                    }
                    // Without records of its own (all filtered away) a batch still moves on.
                    assignment.set_processed((*end).max(assignment.processed()));
                } else if assignment.is_live()
                    && assignment.generation() == *generation
                    && !self.records.is_empty()
                {
                    // Paused inside a batch: what is left is read again from there after resuming.
                    let (assignment, generation) = (Arc::clone(assignment), *generation);
                    let rest = std::mem::take(&mut self.records);
                    self.held_back.push_front(Arrival {
                        assignment,
                        generation,
                        what: Arrived::Records(rest),
                    });
                }
                self.records.clear();
                self.records_of = None;
            }
            let Some((arrival, _)) = (match ready!(self.poll_arrival(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(Next::Event(ConsumerEvent::Failed { partition, error }))) => {
                    return Poll::Ready(Some(Err(error.context(&partition.to_string()))));
                }
                Some(Ok(Next::Event(_))) => None,
                Some(Ok(Next::Arrival(arrival))) => Some((arrival, ())),
            }) else {
                continue;
            };
            let Arrival {
                assignment,
                generation,
                what,
            } = arrival;
            match what {
                Arrived::Records(records) => {
                    let end = records.back().map_or(0, |record| record.offset + 1);
                    self.records = records;
                    self.records_of = Some((assignment, generation, end));
                }
                Arrived::Batch(batch) => match batch.records() {
                    Ok(records) => {
                        self.records = records.into();
                        self.records_of = Some((assignment, generation, batch.last_offset + 1));
                    }
                    Err(error) => {
                        // What comes behind it is not given as if nothing were missing.
                        assignment.stop();
                        let _ = self.commands.send(Command::Pause {
                            assignments: vec![assignment],
                            paused: true,
                        });
                        return Poll::Ready(Some(Err(error)));
                    }
                },
                Arrived::CaughtUp { .. }
                | Arrived::Passed { .. }
                | Arrived::RecordsLost { .. }
                | Arrived::Fault(_)
                | Arrived::Failed(_) => {}
            }
        }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<ConsumerEvent>>> {
        self.come_back();
        self.records.clear();
        self.records_of = None;
        Poll::Ready(match ready!(self.poll_arrival(cx)) {
            None => None,
            Some(Err(error)) => Some(Err(error)),
            Some(Ok(Next::Event(event))) => Some(Ok(event)),
            Some(Ok(Next::Arrival(Arrival {
                assignment,
                generation,
                what,
            }))) => match what {
                Arrived::Batch(batch) => {
                    self.given = Some((assignment, generation, batch.last_offset + 1));
                    Some(Ok(ConsumerEvent::Batch(*batch)))
                }
                Arrived::CaughtUp { offset, ended } => Some(Ok(ConsumerEvent::CaughtUp {
                    partition: assignment.name.clone(),
                    offset,
                    ended,
                })),
                Arrived::Passed { offset } => Some(Ok(ConsumerEvent::Passed {
                    partition: assignment.name.clone(),
                    offset,
                })),
                Arrived::RecordsLost { from, to } => Some(Ok(ConsumerEvent::RecordsLost {
                    partition: assignment.name.clone(),
                    from,
                    to,
                })),
                Arrived::Fault(error) => Some(Err(error)),
                // Told as an event by `poll_arrival`.
                Arrived::Failed(_) => return self.poll_event(cx),
                // Only left over by reading record by record.
                Arrived::Records(_) => return self.poll_event(cx),
            },
        })
    }

    /// The next thing that is still of interest.
    fn poll_arrival(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Next>>> {
        loop {
            if self.over {
                return Poll::Ready(None);
            }
            match self.changes.poll_recv(cx) {
                Poll::Ready(Some(change)) => match self.change(change) {
                    Some(event) => return Poll::Ready(Some(event.map(Next::Event))),
                    None => continue,
                },
                Poll::Ready(None) => self.ending = true,
                Poll::Pending => {}
            }
            let resumed = self
                .held_back
                .iter()
                .position(|arrival| !arrival.assignment.is_paused());
            let arrival = match resumed.and_then(|at| self.held_back.remove(at)) {
                Some(arrival) => arrival,
                None => match self.arrivals.poll_recv(cx) {
                    Poll::Ready(Some(arrival)) => arrival,
                    // Pending alone says nothing: the runtime makes busy tasks yield.
                    Poll::Ready(None) | Poll::Pending
                        if self.ending && self.arrivals.is_empty() && self.changes.is_empty() =>
                    {
                        self.over = true;
                        return Poll::Ready(self.last_words.take().map(Err));
                    }
                    // The end comes as a change.
                    Poll::Ready(None) | Poll::Pending => return Poll::Pending,
                },
            };
            if arrival.assignment.is_paused() && arrival.is_current() {
                self.held_back.push_back(arrival);
                continue;
            }
            if let Arrived::Batch(batch) = &arrival.what {
                self.free(batch.len());
            }
            if !arrival.is_current() {
                continue;
            }
            match &arrival.what {
                Arrived::Fault(error) => return Poll::Ready(Some(Err(error.clone()))),
                Arrived::Failed(error) => {
                    let failed = ConsumerEvent::Failed {
                        partition: arrival.assignment.name.clone(),
                        error: error.clone(),
                    };
                    return Poll::Ready(Some(Ok(Next::Event(failed))));
                }
                Arrived::CaughtUp { offset, .. }
                | Arrived::Passed { offset }
                | Arrived::RecordsLost { to: offset, .. } => {
                    let assignment = &arrival.assignment;
                    assignment.set_processed(assignment.processed().max(*offset));
                }
                Arrived::Batch(_) | Arrived::Records(_) => {}
            }
            return Poll::Ready(Some(Ok(Next::Arrival(arrival))));
        }
    }

    fn change(&mut self, change: Change) -> Option<Result<ConsumerEvent>> {
        let names =
            |assignments: &[Arc<Assignment>]| assignments.iter().map(|a| a.name.clone()).collect();
        match change {
            Change::Opening(opening) => {
                self.opening = opening;
                None
            }
            Change::Assigned(fresh) => {
                let named = fresh
                    .iter()
                    .map(|(assignment, offset)| (assignment.name.clone(), *offset))
                    .collect();
                self.assigned
                    .extend(fresh.into_iter().map(|(assignment, _)| assignment));
                Some(Ok(ConsumerEvent::Assigned(named)))
            }
            Change::Revoking(taken) => {
                // The user was given its last record and came back: that is done.
                if self.auto_commit {
                    let due = taken
                        .iter()
                        .filter(|assignment| assignment.processed() > assignment.committed());
                    let offsets: Vec<_> = due
                        .map(|assignment| {
                            (
                                Arc::clone(assignment),
                                assignment.processed(),
                                String::new(),
                            )
                        })
                        .collect();
                    let _ = self.commands.send(Command::Commit {
                        offsets,
                        reply: None,
                    });
                }
                let event = ConsumerEvent::Revoking(names(&taken));
                self.releasing.extend(taken);
                Some(Ok(event))
            }
            Change::Lost(gone) => {
                self.forget(&gone);
                Some(Ok(ConsumerEvent::Lost(names(&gone))))
            }
            Change::Ended(error) => {
                self.ending = true;
                self.last_words = error;
                None
            }
            Change::GoesOn => {
                self.ending = false;
                None
            }
        }
    }

    /// The application is back: what it was given is processed, and what it was told is let go.
    fn come_back(&mut self) {
        // Of before a cut or a seek, it says nothing of where we are.
        if let Some((assignment, generation, next)) = self.given.take()
            && assignment.generation() == generation
        {
            assignment.set_processed(next);
        }
        if !self.releasing.is_empty() {
            let released = std::mem::take(&mut self.releasing);
            self.forget(&released);
            let _ = self.commands.send(Command::Released(released));
        }
    }

    fn forget(&mut self, gone: &[Arc<Assignment>]) {
        let is_gone =
            |assignment: &Arc<Assignment>| gone.iter().any(|gone| Arc::ptr_eq(gone, assignment));
        self.assigned.retain(|assignment| !is_gone(assignment));
        if self
            .given
            .as_ref()
            .is_some_and(|(assignment, _, _)| is_gone(assignment))
        {
            self.given = None;
        }
    }

    fn free(&mut self, bytes: usize) {
        self.queued.fetch_sub(bytes, Ordering::AcqRel);
        self.freed += bytes as u64;
        // The driver gives credit in larger steps; this only saves wake-ups.
        if self.freed >= 64 << 10 || self.queued.load(Ordering::Acquire) == 0 {
            let _ = self
                .commands
                .send(Command::Freed(std::mem::take(&mut self.freed)));
        }
    }

    fn find(&self, partition: &TopicPartition) -> Option<&Arc<Assignment>> {
        self.assigned
            .iter()
            .find(|assignment| assignment.name == *partition)
    }

    fn ours(&self, partition: &TopicPartition) -> Result<&Arc<Assignment>> {
        self.find(partition)
            .ok_or_else(|| Error::usage(format!("{partition} is not assigned to this consumer")))
    }

    fn set_paused(&mut self, partitions: &[TopicPartition], paused: bool) -> Result<()> {
        let mut assignments = Vec::with_capacity(partitions.len());
        for partition in partitions {
            assignments.push(Arc::clone(self.ours(partition)?));
        }
        for assignment in &assignments {
            assignment.set_paused(paused);
        }
        self.send(Command::Pause {
            assignments,
            paused,
        })
    }

    async fn send_commit(
        &mut self,
        offsets: Vec<(Arc<Assignment>, u64, String)>,
    ) -> Result<Vec<CommitFailure>> {
        if offsets.is_empty() {
            return Ok(Vec::new());
        }
        let (reply, answer) = oneshot::channel();
        self.send(Command::Commit {
            offsets,
            reply: Some(reply),
        })?;
        answer
            .await
            .unwrap_or_else(|_| Err(Error::closed("consumer")))
    }

    fn send(&self, command: Command) -> Result<()> {
        self.commands
            .send(command)
            .map_err(|_| Error::closed("consumer"))
    }
}

/// Records, one by one: the same as [`Consumer::next`].
impl Stream for Consumer {
    type Item = Result<ConsumedRecord>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_record(cx)
    }
}

enum Next {
    Event(ConsumerEvent),
    Arrival(Arrival),
}

impl Arrival {
    fn is_current(&self) -> bool {
        let assignment = &self.assignment;
        assignment.is_live()
            && assignment.generation() == self.generation
            && !assignment.is_stopped()
    }
}
