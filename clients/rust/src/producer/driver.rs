//! The task behind a producer: takes batches, writes them to one stream, reads the answers.
//!
//! It lives as long as the producer and outlives connections: after a loss it opens the stream again
//! and repeats what was not answered. All decisions about order and sequences are in `lanes`.
//! Deliberately absent: waiting of any caller.

mod answers;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use millstream_protocol::messages::Produce;
use millstream_protocol::{Kind, frame};
use quinn::SendStream;

use super::delivery::Stored;
use super::gather::{Content, Gathered, Target, Ticket};
use super::identity::{Identity, identify, open};
use super::lanes::{LaneId, Lanes, Parcel};
use super::shared::Shared;
use crate::backoff::Backoff;
use crate::connection::{Incoming, Link};
use crate::error::{Error, Kind as Fault, Result};

/// Bytes handed to the stream before its answers are looked at again.
const OUTGOING_BYTES_MAX: usize = 1 << 20;
/// How often deadlines are looked at.
const EXPIRY_TICK: Duration = Duration::from_millis(100);
/// One try to open the stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the goodbye of a stream may take.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct Item {
    lane: LaneId,
    body: Body,
    ticket: Ticket,
    target: Target,
}

#[derive(Debug)]
enum Body {
    /// Built when it is first sent.
    Unbuilt(Option<Content>),
    Built(Bytes),
}

/// How a stream ended.
enum End {
    /// Everything is settled and the producer is closing.
    Closed,
    /// The stream or connection is gone; try again.
    Lost(Error),
    /// A new identity is needed.
    Renew,
    /// Nothing can be produced any more.
    Fatal(Error),
}

#[derive(Debug)]
pub(super) struct Driver {
    shared: Arc<Shared>,
    link: Arc<Link>,
    lanes: Lanes<Item>,
    identity: Identity,
    /// Why the broker last put a batch off, if it took none since.
    last_refusal: Option<Error>,
    in_flight_max: usize,
    linger: Duration,
    taken: Vec<Gathered>,
    done: Vec<(Ticket, Result<Stored>)>,
}

impl Driver {
    pub(super) fn new(
        shared: Arc<Shared>,
        link: Arc<Link>,
        identity: Identity,
        in_flight_max: usize,
        linger: Duration,
    ) -> Self {
        let lanes = Lanes::new(identity.pid != 0);
        Self {
            shared,
            link,
            lanes,
            identity,
            last_refusal: None,
            in_flight_max,
            linger,
            taken: Vec::new(),
            done: Vec::new(),
        }
    }

    /// Until the producer is closed or cannot go on.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::connecting();
        loop {
            let end = match self.reopen().await {
                Ok(Some((send, incoming, in_flight_max))) => {
                    backoff = Backoff::connecting();
                    self.pump(send, incoming, in_flight_max.min(self.in_flight_max))
                        .await
                }
                Ok(None) => End::Closed,
                Err(error) if error.retriable() => End::Lost(error),
                Err(error) => End::Fatal(error),
            };
            self.lanes.disconnected(Instant::now());
            match end {
                End::Closed => break,
                End::Renew => {}
                End::Lost(error) => {
                    let until = self.lanes.next_deadline();
                    let until = until.unwrap_or_else(|| Instant::now() + OPEN_TIMEOUT);
                    self.link.tell_lost(until.into());
                    tracing::debug!(%error, unanswered = self.lanes.waiting(), "producer stream lost; opening it again");
                    let wait = backoff
                        .next_wait()
                        .max(error.retry_after().unwrap_or_default());
                    self.pause(wait).await;
                }
                End::Fatal(error) => {
                    self.fail(&error);
                    break;
                }
            }
        }
        self.shared.settled.notify_waiters();
        self.shared.room.notify_waiters();
    }

    /// Open the stream (connecting first, and renewing the identity if that is due) while deadlines
    /// go on counting. `None`: closed meanwhile.
    async fn reopen(&mut self) -> Result<Option<(SendStream, Incoming, usize)>> {
        let renew = self.lanes.renewal_due();
        let (link, mut identity) = (Arc::clone(&self.link), self.identity.clone());
        let idempotent = identity.pid != 0;
        let opening = async move {
            let deadline = Instant::now() + OPEN_TIMEOUT;
            if renew {
                identity = identify(&link, idempotent, deadline).await?;
            }
            let session = link.session(deadline.into()).await?;
            let opened = tokio::time::timeout_at(deadline.into(), open(&session, &identity)).await;
            let (send, incoming, in_flight_max) = opened.unwrap_or_else(|_| {
                Err(Error::transport(
                    "the producer stream was not opened in time",
                ))
            })?;
            Ok::<_, Error>((identity, send, incoming, in_flight_max))
        };
        let mut opening = std::pin::pin!(opening);
        loop {
            tokio::select! {
                outcome = &mut opening => {
                    let (identity, send, incoming, in_flight_max) = outcome?;
                    self.identity = identity;
                    if renew {
                        self.lanes.renewed(Instant::now());
                    }
                    return Ok(Some((send, incoming, in_flight_max)));
                }
                () = tokio::time::sleep(EXPIRY_TICK) => {
                    if self.idle_tick() {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Wait, while deadlines go on counting.
    async fn pause(&mut self, wait: Duration) {
        let until = Instant::now() + wait;
        while Instant::now() < until && !self.idle_tick() {
            tokio::time::sleep(EXPIRY_TICK.min(until.saturating_duration_since(Instant::now())))
                .await;
        }
    }

    /// Deadlines without a stream. `true`: closing, and nothing is left.
    fn idle_tick(&mut self) -> bool {
        let now = Instant::now();
        {
            let mut gathering = self.shared.lock();
            let all = gathering.closing;
            gathering.seal_due(now, all);
            gathering.take_sealed(&mut self.taken);
        }
        self.queue_taken();
        self.expire(now);
        self.report();
        let gathering = self.shared.lock();
        gathering.closing && gathering.is_idle()
    }

    /// Send and receive on one stream until it ends.
    async fn pump(
        &mut self,
        mut send: SendStream,
        mut incoming: Incoming,
        in_flight_max: usize,
    ) -> End {
        let mut outgoing: Vec<Bytes> = Vec::new();
        let mut written = 0;
        let mut stopped = false;
        let mut next_expiry = Instant::now() + EXPIRY_TICK;
        let timer = tokio::time::sleep(EXPIRY_TICK);
        let mut timer = std::pin::pin!(timer);
        let wake = Arc::clone(&self.shared);
        // Frames that came together with PRODUCER_OPENED.
        if let Some(end) = self.answers(&mut incoming, Instant::now()) {
            return end;
        }
        loop {
            let now = Instant::now();
            if now >= next_expiry {
                if self
                    .lanes
                    .next_deadline()
                    .is_some_and(|deadline| deadline <= now)
                {
                    return End::Lost(Error::deadline(
                        "the broker did not answer before the delivery deadline",
                    ));
                }
                self.expire(now);
                self.report();
                next_expiry = now + EXPIRY_TICK;
            }
            if self.lanes.renewal_due() {
                let _ = send.finish();
                return End::Renew;
            }
            let (due, closing) = self.gather(now, in_flight_max);
            if written == outgoing.len() && !stopped {
                outgoing.clear();
                written = 0;
                self.load(&mut outgoing, now, in_flight_max);
            }
            let idle =
                self.lanes.in_flight() == 0 && self.lanes.waiting() == 0 && outgoing.is_empty();
            if closing && idle {
                let _ = send.finish();
                // The broker closes its side when it has seen ours.
                let _ = tokio::time::timeout(FINISH_TIMEOUT, incoming.next()).await;
                return End::Closed;
            }
            let busy = self.lanes.in_flight() > 0 || self.lanes.waiting() > 0;
            let alarm = [due, self.lanes.next_wake(), busy.then_some(next_expiry)]
                .into_iter()
                .flatten()
                .min();
            let alarm = alarm.unwrap_or(now + Duration::from_secs(3600)).max(now);
            if timer.deadline().into_std() != alarm {
                timer.as_mut().reset(alarm.into());
            }
            tokio::select! {
                biased;
                filled = incoming.fill() => {
                    let end = match filled {
                        Ok(true) => self.answers(&mut incoming, now),
                        Ok(false) => Some(End::Lost(Error::transport("the broker closed the producer stream"))),
                        Err(error) if error.retriable() || error.kind() == Fault::Protocol => Some(End::Lost(error)),
                        Err(error) => Some(End::Fatal(error)),
                    };
                    self.report();
                    if let Some(end) = end {
                        return end;
                    }
                }
                done = send.write_chunks(&mut outgoing[written..]), if written < outgoing.len() && !stopped => match done {
                    Ok(done) => written += done.chunks,
                    // The broker takes no more; what it says of it, and of what it took, is still to come.
                    Err(quinn::WriteError::Stopped(_)) => stopped = true,
                    Err(error) => {
                        let error = Error::from(error);
                        return if error.retriable() { End::Lost(error) } else { End::Fatal(error) };
                    }
                },
                () = wake.wake.notified() => {}
                () = &mut timer => {}
            }
        }
    }

    /// Take what the callers have ready. Gives when open batches are due, and whether the producer is
    /// closing and everything is settled.
    fn gather(&mut self, now: Instant, in_flight_max: usize) -> (Option<Instant>, bool) {
        let room = self.lanes.in_flight() + self.lanes.waiting() < in_flight_max;
        let idle = self.lanes.in_flight() == 0 && self.lanes.waiting() == 0;
        let (due, closing) = {
            let mut gathering = self.shared.lock();
            let flushing = !gathering.is_settled(gathering.flush_up_to) || gathering.closing;
            if flushing || room {
                // Waiting for company pays only while something is under way.
                gathering.seal_due(now, flushing || idle || self.linger.is_zero());
            }
            gathering.take_sealed(&mut self.taken);
            let due = if room { gathering.next_due() } else { None };
            // Without room, the next answer comes before anything can be sent.
            gathering.wake_on_open = room && due.is_none();
            gathering.wake_on_seal = room;
            (due, gathering.closing && gathering.is_idle())
        };
        self.queue_taken();
        (due, closing)
    }

    fn queue_taken(&mut self) {
        if self.taken.is_empty() {
            return;
        }
        let gathering = self.shared.lock();
        for Gathered {
            lane,
            content,
            ticket,
            deadline,
        } in self.taken.drain(..)
        {
            let target = gathering.target(lane);
            let records = ticket.records;
            let item = Item {
                lane,
                body: Body::Unbuilt(Some(content)),
                ticket,
                target,
            };
            self.lanes.push(
                lane,
                Parcel {
                    item,
                    records,
                    deadline,
                },
            );
        }
    }

    /// Turn what may go now into bytes.
    fn load(&mut self, outgoing: &mut Vec<Bytes>, now: Instant, in_flight_max: usize) {
        let mut heads = BytesMut::new();
        let mut bytes = 0;
        while self.lanes.in_flight() < in_flight_max && bytes < OUTGOING_BYTES_MAX {
            let Some((sending, parcel)) = self.lanes.next(now) else {
                break;
            };
            let (body, recycled) = parcel.item.body.bytes();
            let head = Produce {
                tag: sending.tag,
                topic_id: parcel.item.target.topic_id.clone(),
                partition: parcel.item.target.partition,
                sequence: sending.sequence,
            };
            if let Some(builder) = recycled {
                self.shared.lock().recycle(builder);
            }
            frame::encode_head(&mut heads, Kind::Produce, &head, body.len());
            bytes += body.len();
            outgoing.push(heads.split().freeze());
            outgoing.push(body);
        }
    }
}

impl Body {
    /// The batch's bytes, built if they are not yet, and the builder that is free then.
    fn bytes(&mut self) -> (Bytes, Option<Box<millstream_batch::BatchBuilder>>) {
        match self {
            Self::Built(bytes) => (bytes.clone(), None),
            Self::Unbuilt(content) => {
                let (bytes, builder) = match content.take() {
                    Some(Content::Records(mut builder)) => {
                        let batch = builder.build().map(millstream_batch::Batch::into_bytes);
                        (batch.unwrap_or_default(), Some(builder))
                    }
                    Some(Content::Whole(batch)) => (batch.into_bytes(), None),
                    None => (Bytes::new(), None),
                };
                *self = Self::Built(bytes.clone());
                (bytes, builder)
            }
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Built(bytes) => bytes.len(),
            Self::Unbuilt(_) => 0,
        }
    }
}
