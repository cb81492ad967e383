//! The task behind a consumer: one subscription stream, opened again when it is lost.
//!
//! It takes batches off the wire against credit, keeps the position of every partition so that a new
//! connection goes on where the old one ended, and carries commits, seeks and pauses. Deliberately
//! absent: decompression, and everything that waits for the application.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use millstream_batch::Batch;
use millstream_protocol::messages as wire;
use millstream_protocol::{Code, Frame, Kind, Message, frame};
use quinn::SendStream;
use tokio::sync::{mpsc, oneshot};

use super::assignment::{Assignment, TopicPartition};
use super::fetched::FetchedBatch;
use super::verify::{Continuity, Place};
use super::{CommitFailure, StartAt};
use crate::backoff::Backoff;
use crate::connection::{Incoming, Link, refusal};
use crate::error::{Error, Kind as Fault, Result};
use crate::record::ConsumedRecord;

/// What a member that rejoined was not given again by then is somebody else's.
const REGAIN: Duration = Duration::from_secs(10);
/// How long the goodbye may take.
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);

/// What the application asked for.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) group: String,
    pub(super) topics: Vec<String>,
    pub(super) partitions: Vec<(TopicPartition, Option<StartAt>)>,
    pub(super) from: StartAt,
    pub(super) client: String,
    pub(super) session_timeout: Duration,
    pub(super) credit_bytes: u64,
    pub(super) filters: Vec<(String, Vec<(String, String)>)>,
    pub(super) stop_at_end: bool,
    pub(super) auto_commit: Option<Duration>,
    pub(super) verify: bool,
    pub(super) reconnect_timeout: Duration,
}

/// From the task: changes first, so that a user learns of an assignment before its batches.
#[derive(Debug)]
pub(super) enum Change {
    Assigned(Vec<(Arc<Assignment>, u64)>),
    Revoking(Vec<Arc<Assignment>>),
    Lost(Vec<Arc<Assignment>>),
    Failed { assignment: Arc<Assignment>, error: Error },
    /// Nothing more comes but what has arrived.
    Ended(Option<Error>),
}

/// From the task, in the order of the wire.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) assignment: Arc<Assignment>,
    pub(super) generation: u32,
    pub(super) what: Arrived,
}

#[derive(Debug)]
pub(super) enum Arrived {
    Batch(Box<FetchedBatch>),
    /// What was left of a batch when its partition was paused; never sent by the task.
    Records(VecDeque<ConsumedRecord>),
    CaughtUp { offset: u64, ended: bool },
    Fault(Error),
}

/// To the task.
#[derive(Debug)]
pub(super) enum Command {
    /// So many bytes were taken out of the queue.
    Freed(u64),
    Commit { offsets: Vec<(Arc<Assignment>, u64, String)>, reply: Option<oneshot::Sender<Result<Vec<CommitFailure>>>> },
    Seek { assignment: Arc<Assignment>, to: StartAt, generation: u32, reply: oneshot::Sender<Result<u64>> },
    Pause { assignments: Vec<Arc<Assignment>>, paused: bool },
    Released(Vec<Arc<Assignment>>),
    Close,
}

/// A partition as the task sees it.
#[derive(Debug)]
struct Held {
    assignment: Arc<Assignment>,
    /// Of this connection.
    handle: Option<u32>,
    /// The next offset to come off the wire.
    position: u64,
    /// Batches are of an earlier position until the broker has confirmed this seek.
    seeking: Option<u32>,
    ended: bool,
    continuity: Continuity,
}

type Seeking = (u32, oneshot::Sender<Result<u64>>);

/// A commit that was sent: what it named, what failed before it was, and who waits.
#[derive(Debug)]
struct Committing {
    sent: Vec<(Arc<Assignment>, u64)>,
    failures: Vec<CommitFailure>,
    reply: Option<oneshot::Sender<Result<Vec<CommitFailure>>>>,
}

#[derive(Debug)]
pub(super) struct Driver {
    link: Arc<Link>,
    plan: Plan,
    held: Vec<Held>,
    by_handle: HashMap<u32, usize>,
    member: u64,
    /// Bytes in the queue to the application.
    queued: Arc<AtomicUsize>,
    changes: mpsc::UnboundedSender<Change>,
    arrivals: mpsc::UnboundedSender<Arrival>,
    commands: mpsc::UnboundedReceiver<Command>,
    outgoing: BytesMut,
    freed: u64,
    commits: HashMap<u64, Committing>,
    seeks: HashMap<usize, Seeking>,
    next_tag: u64,
    closing: bool,
}

enum End {
    Closed,
    Lost(Error),
    Fatal(Error),
}

impl Driver {
    pub(super) fn new(
        link: Arc<Link>,
        plan: Plan,
        queued: Arc<AtomicUsize>,
        changes: mpsc::UnboundedSender<Change>,
        arrivals: mpsc::UnboundedSender<Arrival>,
        commands: mpsc::UnboundedReceiver<Command>,
    ) -> Self {
        Self {
            link,
            plan,
            held: Vec::new(),
            by_handle: HashMap::new(),
            member: 0,
            queued,
            changes,
            arrivals,
            commands,
            outgoing: BytesMut::new(),
            freed: 0,
            commits: HashMap::new(),
            seeks: HashMap::new(),
            next_tag: 1,
            closing: false,
        }
    }

    /// Until closed, ended or refused. `started` hears whether the first subscription stands.
    pub(super) async fn run(mut self, started: oneshot::Sender<Result<()>>) {
        let mut started = Some(started);
        let mut backoff = Backoff::connecting();
        let mut lost_since = Instant::now();
        let error = loop {
            let end = match self.subscribe().await {
                Ok(None) => End::Closed,
                Ok(Some((send, incoming))) => {
                    if let Some(started) = started.take() {
                        let _ = started.send(Ok(()));
                    }
                    backoff = Backoff::connecting();
                    let end = self.pump(send, incoming).await;
                    lost_since = Instant::now();
                    end
                }
                Err(error) if self.again(&error) => End::Lost(error),
                Err(error) => End::Fatal(error),
            };
            self.disconnected();
            match end {
                End::Closed => break None,
                End::Fatal(error) => break Some(error),
                End::Lost(error) if lost_since.elapsed() > self.plan.reconnect_timeout => {
                    break Some(error.context("the subscription was lost and could not be opened again in time"));
                }
                End::Lost(error) => {
                    tracing::debug!(%error, "subscription lost; opening it again");
                    let wait = backoff.next_wait().max(error.retry_after().unwrap_or_default());
                    if self.offline(tokio::time::sleep(wait)).await.is_none() {
                        break None;
                    }
                }
            }
            if self.all_ended() {
                break None;
            }
        };
        match (started, error) {
            (Some(started), Some(error)) => drop(started.send(Err(error))),
            (_, error) => drop(self.changes.send(Change::Ended(error))),
        }
    }

    /// Whether another try makes sense; a member that is no longer known joins anew.
    fn again(&mut self, error: &Error) -> bool {
        if matches!(error.code(), Some(Code::UnknownMember | Code::MemberFenced)) {
            self.member = 0;
            self.lose(|_| true);
            return true;
        }
        error.retriable() || error.kind() == Fault::Protocol && error.code().is_none() && self.member != 0
    }

    /// Open the subscription. `None`: closed meanwhile.
    async fn subscribe(&mut self) -> Result<Option<(SendStream, Incoming)>> {
        let (link, request) = (Arc::clone(&self.link), self.request());
        let timeout = self.plan.reconnect_timeout.min(Duration::from_secs(30));
        let opening = async move {
            let deadline = tokio::time::Instant::now() + timeout;
            let session = link.session(deadline).await?;
            let opened = async {
                let (send, mut incoming) = Link::open(&session, Kind::Subscribe, &request).await?;
                match incoming.next().await? {
                    Some(frame) if frame.known() == Some(Kind::Subscribed) => {
                        let subscribed: wire::Subscribed = frame.message()?;
                        Ok((send, incoming, subscribed.member))
                    }
                    Some(frame) if frame.known() == Some(Kind::Error) => Err(refusal(&frame)?.1),
                    Some(_) => Err(Error::protocol("a subscription was opened with something else than SUBSCRIBED")),
                    None => Err(Error::transport("the broker closed the subscription")),
                }
            };
            tokio::time::timeout_at(deadline, opened)
                .await
                .unwrap_or_else(|_| Err(Error::transport("the subscription was not opened in time")))
        };
        match self.offline(opening).await {
            None => Ok(None),
            Some(outcome) => {
                let (send, incoming, member) = outcome?;
                if self.member != member && self.member != 0 {
                    // As a new member: what the old one had is given out anew.
                    self.lose(|_| true);
                }
                self.member = member;
                Ok(Some((send, incoming)))
            }
        }
    }

    fn request(&self) -> wire::Subscribe {
        let plan = &self.plan;
        let setting = |(key, value): &(String, String)| wire::Setting { key: key.clone(), value: Some(value.clone()) };
        let filters = plan.filters.iter().map(|(name, parameters)| wire::SubscriptionFilter {
            name: name.clone(),
            parameters: parameters.iter().map(setting).collect(),
        });
        let fixed = |name: &TopicPartition, from: StartAt| wire::FixedPartition {
            topic: name.topic.to_string(),
            partition: name.partition,
            from: Some(from.to_wire()),
        };
        let (topics, partitions) = if !plan.group.is_empty() {
            (plan.topics.clone(), Vec::new())
        } else if self.held.is_empty() {
            let first = plan.partitions.iter().map(|(name, from)| fixed(name, from.unwrap_or(plan.from)));
            (plan.topics.clone(), first.collect())
        } else {
            // Go on where the last connection ended.
            let open = self.held.iter().filter(|held| !held.ended);
            (Vec::new(), open.map(|held| fixed(&held.assignment.name, StartAt::Offset(held.position))).collect())
        };
        let queued = self.queued.load(Ordering::Acquire) as u64;
        wire::Subscribe {
            group: plan.group.clone(),
            topics,
            partitions,
            from: Some(plan.from.to_wire()),
            member: self.member,
            client: plan.client.clone(),
            session_timeout_ms: plan.session_timeout.as_millis().try_into().unwrap_or(u32::MAX),
            credit_bytes: plan.credit_bytes.saturating_sub(queued).max(1),
            filters: filters.collect(),
            // With a group, commits come after the last record: the stream stays until we close it.
            stop_at_end: plan.stop_at_end && plan.group.is_empty(),
        }
    }

    /// Carry on with the application while there is no stream. `None`: it wants to close.
    async fn offline<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Some(done),
                command = self.commands.recv() => match command {
                    None | Some(Command::Close) => {
                        self.closing = true;
                        return None;
                    }
                    Some(Command::Freed(_) | Command::Pause { .. }) => {}
                    Some(Command::Commit { reply, .. }) => {
                        if let Some(reply) = reply {
                            let _ = reply.send(Err(Error::transport("no connection to commit over")));
                        }
                    }
                    Some(Command::Seek { reply, .. }) => {
                        let _ = reply.send(Err(Error::transport("no connection to seek over")));
                    }
                    // Whoever rejoins is assigned anew.
                    Some(Command::Released(assignments)) => self.drop_held(&assignments),
                },
            }
        }
    }

    async fn pump(&mut self, mut send: SendStream, mut incoming: Incoming) -> End {
        self.outgoing.clear();
        self.freed = 0;
        let mut writing = Bytes::new();
        let mut finishing: Option<Instant> = None;
        let tick = self.plan.auto_commit.filter(|_| !self.plan.group.is_empty());
        let mut auto_commit = tokio::time::interval(tick.unwrap_or(Duration::from_secs(3600)));
        auto_commit.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        auto_commit.reset();
        // Frames that came together with SUBSCRIBED.
        if let Some(end) = self.frames(&mut incoming) {
            return end;
        }
        let regain = tokio::time::sleep(REGAIN);
        let mut regain = std::pin::pin!(regain);
        let mut regaining = !self.plan.group.is_empty() && !self.held.is_empty();
        loop {
            if writing.is_empty() {
                if self.freed >= self.plan.credit_bytes / 4 {
                    let bytes = std::mem::take(&mut self.freed);
                    self.say(Kind::Credit, &wire::Credit { bytes });
                }
                writing = self.outgoing.split().freeze();
            }
            if self.closing && finishing.is_none() && writing.is_empty() && self.commits.is_empty() {
                let _ = send.finish();
                finishing = Some(Instant::now() + FINISH_TIMEOUT);
            }
            let give_up = finishing.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                biased;
                command = self.commands.recv(), if !self.closing => match command {
                    None => self.closing = true,
                    Some(command) => self.command(command, tick.is_some()),
                },
                written = send.write(&writing), if !writing.is_empty() => match written {
                    Ok(bytes) => writing = writing.slice(bytes..),
                    Err(quinn::WriteError::Stopped(_)) => writing = Bytes::new(),
                    Err(error) => return self.lost(error.into()),
                },
                filled = incoming.fill() => match filled {
                    Ok(true) => {
                        if let Some(end) = self.frames(&mut incoming) {
                            return end;
                        }
                    }
                    Ok(false) if finishing.is_some() || self.all_ended() => return End::Closed,
                    Ok(false) => return End::Lost(Error::transport("the broker closed the subscription")),
                    Err(error) => return self.lost(error),
                },
                () = &mut regain, if regaining => {
                    regaining = false;
                    self.lose(|held| held.handle.is_none());
                }
                _ = auto_commit.tick(), if tick.is_some() => self.commit_processed(),
                () = tokio::time::sleep_until(give_up.into()), if finishing.is_some() => return End::Closed,
            }
        }
    }

    fn lost(&mut self, error: Error) -> End {
        if self.closing {
            End::Closed
        } else if self.again(&error) {
            End::Lost(error)
        } else {
            End::Fatal(error)
        }
    }

    fn say(&mut self, kind: Kind, message: &impl Message) {
        frame::encode_into(&mut self.outgoing, kind, message);
    }

    fn command(&mut self, command: Command, auto_commit: bool) {
        match command {
            Command::Freed(bytes) => self.freed += bytes,
            Command::Commit { offsets, reply } => self.commit(offsets, reply),
            Command::Seek { assignment, to, generation, reply } => {
                let Some((at, handle)) = self.find(&assignment).and_then(|at| Some((at, self.held[at].handle?))) else {
                    let _ = reply.send(Err(Error::usage(format!("{} is not assigned to this consumer", assignment.name))));
                    return;
                };
                let held = &mut self.held[at];
                held.seeking = Some(generation);
                held.ended = false;
                held.continuity.forget();
                if let Some((_, old)) = self.seeks.insert(at, (generation, reply)) {
                    let _ = old.send(Err(Error::usage("another seek came after this one")));
                }
                self.say(Kind::Seek, &wire::Seek { handle, to: Some(to.to_wire()), generation });
            }
            Command::Pause { assignments, paused } => {
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
                named.push(wire::CommitOffset { handle, offset, metadata });
                sent.push((assignment, offset));
            } else {
                let error = Error::usage("the partition is no longer assigned to this consumer");
                failures.push(CommitFailure { partition: assignment.name.clone(), error });
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
        self.commits.insert(tag, Committing { sent, failures, reply });
        self.say(Kind::Commit, &wire::Commit { tag, offsets: named });
    }

    fn commit_processed(&mut self) {
        let due = self.held.iter().filter(|held| held.assignment.processed() > held.assignment.committed());
        let offsets: Vec<_> = due
            .map(|held| (Arc::clone(&held.assignment), held.assignment.processed(), String::new()))
            .collect();
        if !offsets.is_empty() {
            self.commit(offsets, None);
        }
    }

    fn frames(&mut self, incoming: &mut Incoming) -> Option<End> {
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
                let ends_here = self.plan.stop_at_end && !self.plan.group.is_empty();
                if let Some(held) = self.held_of(caught_up.handle).filter(|held| held.seeking.is_none()) {
                    held.position = held.position.max(caught_up.offset);
                    let ended = caught_up.ended || ends_here;
                    held.ended |= ended;
                    let arrival = held.arrival(Arrived::CaughtUp { offset: caught_up.offset, ended });
                    let _ = self.arrivals.send(arrival);
                }
                if ends_here && self.all_ended() {
                    let _ = self.changes.send(Change::Ended(None));
                }
            }
            Some(Kind::Assigned) => self.assigned(frame.message()?),
            Some(Kind::Revoke) => {
                let revoke: wire::Revoke = frame.message()?;
                let taken: Vec<_> = revoke.handles.iter().filter_map(|handle| self.by_handle.get(handle)).collect();
                let taken: Vec<_> = taken.into_iter().map(|&at| Arc::clone(&self.held[at].assignment)).collect();
                for assignment in &taken {
                    assignment.end();
                }
                if revoke.lost {
                    self.drop_held(&taken);
                }
                let change = if revoke.lost { Change::Lost(taken) } else { Change::Revoking(taken) };
                let _ = self.changes.send(change);
            }
            Some(Kind::Committed) => self.committed(&frame.message()?),
            Some(Kind::Sought) => {
                let sought: wire::Sought = frame.message()?;
                let Some(&at) = self.by_handle.get(&sought.handle) else { return Ok(()) };
                let held = &mut self.held[at];
                if held.seeking == Some(sought.generation) {
                    held.seeking = None;
                    held.position = sought.offset;
                    if let Some((_, reply)) = self.seeks.remove(&at) {
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
                    if let Some((_, reply)) = self.seeks.remove(&at) {
                        let _ = reply.send(Err(error.clone()));
                    }
                    let held = &mut self.held[at];
                    held.seeking = None;
                    held.ended = self.plan.stop_at_end;
                    let assignment = Arc::clone(&held.assignment);
                    let _ = self.changes.send(Change::Failed { assignment, error });
                }
            }
            Some(Kind::Error) => {
                let (tag, error) = refusal(&frame)?;
                match self.commits.remove(&tag) {
                    Some(Committing { reply: Some(reply), .. }) => drop(reply.send(Err(error))),
                    Some(_) => tracing::warn!(%error, "an automatic commit was refused"),
                    None => return Err(error),
                }
            }
            // A newer broker may say more than we understand.
            None => {}
            Some(kind) => return Err(Error::protocol(format!("{} on a subscription", kind.name()))),
        }
        Ok(())
    }

    fn batch(&mut self, frame: Frame) -> Result<()> {
        let head: wire::Batch = frame.message()?;
        let bytes = frame.payload.len();
        let verify = self.plan.verify;
        let Some(held) = self.held_of(head.handle).filter(|held| held.seeking.is_none() && held.assignment.is_live())
        else {
            self.freed += bytes as u64;
            return Ok(());
        };
        if head.last_offset < held.position {
            self.freed += bytes as u64;
            return Ok(());
        }
        let name = held.assignment.name.clone();
        let batch = Batch::check(frame.payload.into_contiguous())
            .map_err(|error| Error::protocol(format!("{name} at offset {}: {error}", head.base_offset)))?;
        let (first, last) = (head.base_offset, head.last_offset);
        let numbers = batch.header();
        let spans = numbers.base_offset as u64 == first && first + u64::from(numbers.last_offset_delta) == last;
        if !spans && !head.filtered {
            return Err(Error::protocol(format!("{name}: a batch says other offsets than its frame ({first} to {last})")));
        }
        let fault = if verify {
            let place =
                Place { first_offset: first, last_offset: last, pid: head.pid, epoch: head.epoch, sequence: head.sequence };
            held.continuity.check(place).err()
        } else {
            None
        };
        let batch = FetchedBatch {
            skip_below: held.position,
            name: name.clone(),
            batch,
            first_offset: first,
            last_offset: last,
            append_time_ms: head.append_time_ms,
            pid: head.pid,
            epoch: head.epoch,
            sequence: head.sequence,
            end_offset: head.end_offset,
            filtered: head.filtered,
        };
        held.position = last + 1;
        let fault = fault.map(|what| held.arrival(Arrived::Fault(Error::gap(format!("{name}: {what}")))));
        let arrival = held.arrival(Arrived::Batch(Box::new(batch)));
        self.queued.fetch_add(bytes, Ordering::AcqRel);
        if let Some(fault) = fault {
            let _ = self.arrivals.send(fault);
        }
        let _ = self.arrivals.send(arrival);
        Ok(())
    }

    fn assigned(&mut self, assigned: wire::Assigned) {
        let mut fresh = Vec::new();
        for partition in assigned.partitions {
            let same = |held: &Held| {
                let ours = &held.assignment;
                *ours.name.topic == *partition.topic
                    && ours.name.partition == partition.partition
                    && ours.topic_id == partition.topic_id
                    && ours.epoch == partition.epoch
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
                    let to = Some(StartAt::Offset(position).to_wire());
                    self.say(Kind::Seek, &wire::Seek { handle, to, generation });
                }
                if paused {
                    self.say(Kind::Pause, &wire::Pause { handles: vec![handle], paused });
                }
                continue;
            }
            let name = TopicPartition::new(partition.topic, partition.partition);
            // Under another epoch somebody else may have had it meanwhile.
            self.lose(|held| held.assignment.name == name);
            let assignment = Assignment::new(name, partition.topic_id, partition.epoch, partition.offset);
            let assignment = Arc::new(assignment);
            self.by_handle.insert(handle, self.held.len());
            self.held.push(Held {
                assignment: Arc::clone(&assignment),
                handle: Some(handle),
                position: partition.offset,
                seeking: None,
                ended: false,
                continuity: Continuity::default(),
            });
            fresh.push((assignment, partition.offset));
        }
        if !fresh.is_empty() {
            let _ = self.changes.send(Change::Assigned(fresh));
        }
    }

    /// Partitions that are somebody else's now.
    fn lose(&mut self, which: impl Fn(&Held) -> bool) {
        let gone: Vec<_> =
            self.held.iter().filter(|held| which(held)).map(|held| Arc::clone(&held.assignment)).collect();
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
        let Some(Committing { sent, mut failures, reply }) = self.commits.remove(&committed.tag) else { return };
        for failure in &committed.failed {
            if let Some(&at) = self.by_handle.get(&failure.handle) {
                let partition = self.held[at].assignment.name.clone();
                failures.push(CommitFailure { partition, error: Error::refused(failure.error.clone().unwrap_or_default()) });
            }
        }
        for (assignment, offset) in sent {
            if failures.iter().all(|failure| failure.partition != assignment.name) {
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

    fn disconnected(&mut self) {
        self.by_handle.clear();
        for held in &mut self.held {
            held.handle = None;
            held.seeking = None;
        }
        for (_, Committing { reply, .. }) in self.commits.drain() {
            if let Some(reply) = reply {
                let _ = reply.send(Err(Error::transport("the connection was lost").with_unknown_outcome()));
            }
        }
        for (_, (_, reply)) in self.seeks.drain() {
            let _ = reply.send(Err(Error::transport("the connection was lost")));
        }
    }

    fn all_ended(&self) -> bool {
        self.plan.stop_at_end && !self.held.is_empty() && self.held.iter().all(|held| held.ended)
    }

    fn held_of(&mut self, handle: u32) -> Option<&mut Held> {
        let at = *self.by_handle.get(&handle)?;
        self.held.get_mut(at)
    }

    fn find(&self, assignment: &Arc<Assignment>) -> Option<usize> {
        self.held.iter().position(|held| Arc::ptr_eq(&held.assignment, assignment))
    }

    fn handles(&self, assignments: &[Arc<Assignment>]) -> Vec<u32> {
        assignments.iter().filter_map(|assignment| self.held[self.find(assignment)?].handle).collect()
    }

    fn drop_held(&mut self, gone: &[Arc<Assignment>]) {
        let seeks = std::mem::take(&mut self.seeks);
        let mut waiting: Vec<_> = seeks
            .into_iter()
            .map(|(at, seek)| (Arc::clone(&self.held[at].assignment), seek))
            .collect();
        self.held.retain(|held| !gone.iter().any(|gone| Arc::ptr_eq(gone, &held.assignment)));
        self.by_handle = self
            .held
            .iter()
            .enumerate()
            .filter_map(|(at, held)| Some((held.handle?, at)))
            .collect();
        for (assignment, seek) in waiting.drain(..) {
            match self.find(&assignment) {
                Some(at) => drop(self.seeks.insert(at, seek)),
                None => drop(seek.1.send(Err(Error::usage("the partition was taken away")))),
            }
        }
    }
}

impl Held {
    fn arrival(&self, what: Arrived) -> Arrival {
        Arrival { assignment: Arc::clone(&self.assignment), generation: self.assignment.generation(), what }
    }
}
