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
use millstream_protocol::messages as wire;
use millstream_protocol::{Code, Kind, Message, frame};
use quinn::SendStream;
use tokio::sync::{mpsc, oneshot};

use super::CommitFailure;
use super::assignment::{Assignment, TopicPartition};
use super::fetched::FetchedBatch;
use super::plan::{Plan, StartAt};
use super::verify::Continuity;
use crate::backoff::Backoff;
use crate::connection::{Incoming, Link, refusal};
use crate::error::{Error, Result};
use crate::record::ConsumedRecord;

/// What a member that rejoined was not given again by then is somebody else's.
const REGAIN: Duration = Duration::from_secs(10);
/// How long the goodbye may take.
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);

/// From the task: changes first, so that a user learns of an assignment before its batches.
#[derive(Debug)]
pub(super) enum Change {
    /// So many partitions are still to come; before the partitions that came.
    Opening(u32),
    Assigned(Vec<(Arc<Assignment>, u64)>),
    Revoking(Vec<Arc<Assignment>>),
    Lost(Vec<Arc<Assignment>>),
    /// Nothing more comes but what has arrived.
    Ended(Option<Error>),
    /// More comes after all.
    GoesOn,
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
    CaughtUp {
        offset: u64,
        ended: bool,
    },
    /// Filters dropped everything before.
    Passed {
        offset: u64,
    },
    Fault(Error),
    /// Records `from` to before `to` were removed before they were read.
    RecordsLost {
        from: u64,
        to: u64,
    },
    /// The partition has stopped: after everything that arrived before.
    Failed(Error),
}

/// To the task.
#[derive(Debug)]
pub(super) enum Command {
    /// So many bytes were taken out of the queue.
    Freed(u64),
    Commit {
        offsets: Vec<(Arc<Assignment>, u64, String)>,
        reply: Option<oneshot::Sender<Result<Vec<CommitFailure>>>>,
    },
    Seek {
        assignment: Arc<Assignment>,
        to: StartAt,
        generation: u32,
        reply: oneshot::Sender<Result<u64>>,
    },
    Pause {
        assignments: Vec<Arc<Assignment>>,
        paused: bool,
    },
    Released(Vec<Arc<Assignment>>),
    Close,
}

/// A partition as the task sees it.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) assignment: Arc<Assignment>,
    /// Of this connection.
    pub(super) handle: Option<u32>,
    /// The next offset to come off the wire.
    pub(super) position: u64,
    /// Batches are of an earlier position until the broker has confirmed this seek.
    pub(super) seeking: Option<u32>,
    pub(super) ended: bool,
    pub(super) continuity: Continuity,
    /// It begins at this offset, which was looked up by this time.
    pub(super) found_by: Option<(u64, i64)>,
}

/// Where to, and who waits for it.
pub(super) type Seeking = (StartAt, oneshot::Sender<Result<u64>>);

/// A commit that was sent: what it named, what failed before it was, and who waits.
#[derive(Debug)]
pub(super) struct Committing {
    pub(super) sent: Vec<(Arc<Assignment>, u64)>,
    pub(super) failures: Vec<CommitFailure>,
    pub(super) reply: Option<oneshot::Sender<Result<Vec<CommitFailure>>>>,
}

#[derive(Debug)]
pub(super) struct Driver {
    pub(super) link: Arc<Link>,
    pub(super) plan: Plan,
    pub(super) held: Vec<Held>,
    pub(super) by_handle: HashMap<u32, usize>,
    pub(super) member: u64,
    /// Partitions that are yet to be assigned to us.
    pub(super) opening: u32,
    /// With a group: the application heard that nothing more comes.
    pub(super) has_ended: bool,
    /// Came with the member id: shown to be that member again.
    pub(super) member_token: Bytes,
    /// Bytes in the queue to the application.
    pub(super) queued: Arc<AtomicUsize>,
    pub(super) changes: mpsc::UnboundedSender<Change>,
    pub(super) arrivals: mpsc::UnboundedSender<Arrival>,
    pub(super) commands: mpsc::UnboundedReceiver<Command>,
    pub(super) outgoing: BytesMut,
    pub(super) freed: u64,
    pub(super) commits: HashMap<u64, Committing>,
    pub(super) seeks: HashMap<usize, Seeking>,
    pub(super) next_tag: u64,
    pub(super) closing: bool,
}

pub(super) enum End {
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
            opening: 0,
            has_ended: false,
            member_token: Bytes::new(),
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
                    break Some(error.context(
                        "the subscription was lost and could not be opened again in time",
                    ));
                }
                End::Lost(error) => {
                    let until = lost_since + self.plan.reconnect_timeout;
                    self.link.tell_lost(until.into());
                    tracing::debug!(%error, "subscription lost; opening it again");
                    let wait = backoff
                        .next_wait()
                        .max(error.retry_after().unwrap_or_default());
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
    pub(super) fn again(&mut self, error: &Error) -> bool {
        if matches!(error.code(), Some(Code::UnknownMember | Code::MemberFenced)) {
            self.member = 0;
            self.lose(|_| true);
            return true;
        }
        error.retriable()
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
                        Ok((send, incoming, subscribed))
                    }
                    Some(frame) if frame.known() == Some(Kind::Error) => Err(refusal(&frame)?.1),
                    Some(_) => Err(Error::protocol(
                        "a subscription was opened with something else than SUBSCRIBED",
                    )),
                    None => Err(Error::transport("the broker closed the subscription")),
                }
            };
            tokio::time::timeout_at(deadline, opened)
                .await
                .unwrap_or_else(|_| {
                    Err(Error::transport("the subscription was not opened in time"))
                })
        };
        match self.offline(opening).await {
            None => Ok(None),
            Some(outcome) => {
                let (send, incoming, subscribed) = outcome?;
                if self.member != subscribed.member && self.member != 0 {
                    // As a new member: what the old one had is given out anew.
                    self.lose(|_| true);
                }
                self.member = subscribed.member;
                self.member_token = subscribed.member_token;
                Ok(Some((send, incoming)))
            }
        }
    }

    fn request(&self) -> wire::Subscribe {
        let plan = &self.plan;
        let setting = |(key, value): &(String, String)| wire::Setting {
            key: key.clone(),
            value: Some(value.clone()),
        };
        let filters = plan
            .filters
            .iter()
            .map(|(name, parameters)| wire::SubscriptionFilter {
                name: name.clone(),
                parameters: parameters.iter().map(setting).collect(),
            });
        let fixed = |name: &TopicPartition, from: StartAt| wire::FixedPartition {
            topic: name.topic.to_string(),
            partition: name.partition,
            from: Some(from.to_wire()),
        };
        let mut from = plan.from;
        let (topics, partitions) = if !plan.group.is_empty() {
            (plan.topics.clone(), Vec::new())
        } else if self.held.is_empty() {
            let first = plan
                .partitions
                .iter()
                .map(|(name, from)| fixed(name, from.unwrap_or(plan.from)));
            (plan.topics.clone(), first.collect())
        } else {
            // Go on where the last connection ended; what was added to whole topics since is all new.
            let open = self.held.iter().filter(|held| !held.ended);
            let whole = if plan.stop_at_end {
                Vec::new()
            } else {
                from = StartAt::Start;
                plan.topics.clone()
            };
            (
                whole,
                open.map(|held| fixed(&held.assignment.name, held.here()))
                    .collect(),
            )
        };
        let queued = self.queued.load(Ordering::Acquire) as u64;
        wire::Subscribe {
            group: plan.group.clone(),
            topics,
            partitions,
            from: Some(from.to_wire()),
            member: self.member,
            member_token: self.member_token.clone(),
            client: plan.client.clone(),
            session_timeout_ms: plan
                .session_timeout
                .as_millis()
                .try_into()
                .unwrap_or(u32::MAX),
            credit_bytes: plan.credit_bytes.saturating_sub(queued).max(1),
            filters: filters.collect(),
            // With a group, commits come after the last record: the stream stays until we close it.
            stop_at_end: plan.stop_at_end && plan.group.is_empty(),
            on_lost: plan.on_lost.into(),
            open_ms: plan
                .reconnect_timeout
                .as_millis()
                .try_into()
                .unwrap_or(u32::MAX),
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
        let tick = self
            .plan
            .auto_commit
            .filter(|_| !self.plan.group.is_empty());
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
            if self.closing && finishing.is_none() && writing.is_empty() && self.commits.is_empty()
            {
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

    pub(super) fn lost(&mut self, error: Error) -> End {
        if self.closing {
            End::Closed
        } else if self.again(&error) {
            End::Lost(error)
        } else {
            End::Fatal(error)
        }
    }

    pub(super) fn say(&mut self, kind: Kind, message: &impl Message) {
        frame::encode_into(&mut self.outgoing, kind, message);
    }

    fn disconnected(&mut self) {
        self.by_handle.clear();
        for held in &mut self.held {
            held.handle = None;
            held.seeking = None;
        }
        for (_, Committing { reply, .. }) in self.commits.drain() {
            if let Some(reply) = reply {
                let _ = reply.send(Err(
                    Error::transport("the connection was lost").with_unknown_outcome()
                ));
            }
        }
        for (_, (_, reply)) in self.seeks.drain() {
            let _ = reply.send(Err(Error::transport("the connection was lost")));
        }
    }

    pub(super) fn all_ended(&self) -> bool {
        self.plan.stop_at_end
            && self.opening == 0
            && !self.held.is_empty()
            && self.held.iter().all(|held| held.ended)
    }

    pub(super) fn held_of(&mut self, handle: u32) -> Option<&mut Held> {
        let at = *self.by_handle.get(&handle)?;
        self.held.get_mut(at)
    }

    pub(super) fn find(&self, assignment: &Arc<Assignment>) -> Option<usize> {
        self.held
            .iter()
            .position(|held| Arc::ptr_eq(&held.assignment, assignment))
    }

    pub(super) fn handles(&self, assignments: &[Arc<Assignment>]) -> Vec<u32> {
        assignments
            .iter()
            .filter_map(|assignment| self.held[self.find(assignment)?].handle)
            .collect()
    }

    pub(super) fn drop_held(&mut self, gone: &[Arc<Assignment>]) {
        let seeks = std::mem::take(&mut self.seeks);
        let mut waiting: Vec<_> = seeks
            .into_iter()
            .map(|(at, seek)| (Arc::clone(&self.held[at].assignment), seek))
            .collect();
        self.held
            .retain(|held| !gone.iter().any(|gone| Arc::ptr_eq(gone, &held.assignment)));
        self.by_handle = self
            .held
            .iter()
            .enumerate()
            .filter_map(|(at, held)| Some((held.handle?, at)))
            .collect();
        for (assignment, seek) in waiting.drain(..) {
            match self.find(&assignment) {
                Some(at) => drop(self.seeks.insert(at, seek)),
                None => drop(
                    seek.1
                        .send(Err(Error::usage("the partition was taken away"))),
                ),
            }
        }
    }
}
