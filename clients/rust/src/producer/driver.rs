//! The task behind a producer: takes batches, writes them to one stream, reads the answers.
//!
//! It lives as long as the producer and outlives connections: after a loss it opens the stream again
//! and repeats what was not answered. All decisions about order and sequences are in `lanes`.
//! Deliberately absent: waiting of any caller.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use millstream_protocol::messages::{
    Ack, InitProducerRequest, InitProducerResponse, Produce, Produced, ProducerOpen, ProducerOpened,
};
use millstream_protocol::{Code, Frame, Kind, frame};
use quinn::SendStream;
use tokio::sync::Notify;

use super::delivery::{Kept, Stored};
use super::gather::{Content, Gathered, Gathering, Target, Ticket};
use super::lanes::{LaneId, Lanes, Parcel, Refused, Verdict};
use crate::backoff::Backoff;
use crate::connection::{Incoming, Link, Repeat, Session, refusal};
use crate::error::{Error, Kind as Fault, Result};

/// Bytes handed to the stream before its answers are looked at again.
const OUTGOING_BYTES_MAX: usize = 1 << 20;
/// How often deadlines are looked at.
const EXPIRY_TICK: Duration = Duration::from_millis(100);
/// One try to open the stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the goodbye of a stream may take.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);

/// What callers and driver share.
#[derive(Debug)]
pub(super) struct Shared {
    gathering: Mutex<Gathering>,
    /// Wakes the driver.
    pub(super) wake: Notify,
    /// Wakes callers that wait for memory.
    pub(super) room: Notify,
    /// Wakes callers that wait until batches are settled.
    pub(super) settled: Notify,
    pub(super) counters: Counters,
}

/// Running totals, in records unless said otherwise.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) acknowledged: AtomicU64,
    pub(super) duplicates: AtomicU64,
    pub(super) filtered: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) unknown: AtomicU64,
    pub(super) batches: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) first_error: Mutex<Option<Error>>,
}

impl Shared {
    pub(super) fn new(gathering: Gathering) -> Self {
        Self {
            gathering: Mutex::new(gathering),
            wake: Notify::new(),
            room: Notify::new(),
            settled: Notify::new(),
            counters: Counters::default(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Gathering> {
        self.gathering
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Identity {
    pub(super) pid: u64,
    pub(super) epoch: u32,
    /// What the broker gave with the id, to prove that it is ours.
    pub(super) token: Bytes,
}

/// Ask for a producer id, or for none.
pub(super) async fn identify(link: &Link, idempotent: bool, deadline: Instant) -> Result<Identity> {
    if !idempotent {
        return Ok(Identity::default());
    }
    let request = InitProducerRequest::default();
    // An id whose answer was lost is never used: asking again is harmless.
    let answer: InitProducerResponse = link
        .request(
            Kind::InitProducer,
            &request,
            Bytes::new(),
            Repeat::Safe,
            deadline.into(),
        )
        .await?;
    Ok(Identity {
        pid: answer.pid,
        epoch: answer.epoch,
        token: answer.token,
    })
}

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
        let closing = {
            let mut gathering = self.shared.lock();
            let all = gathering.closing;
            gathering.seal_due(now, all);
            gathering.take_sealed(&mut self.taken);
            all
        };
        self.queue_taken();
        self.expire(now);
        self.report();
        closing && self.lanes.waiting() == 0 && self.lanes.in_flight() == 0
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
    /// closing.
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
            (due, gathering.closing)
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

    /// All answers that have arrived.
    fn answers(&mut self, incoming: &mut Incoming, now: Instant) -> Option<End> {
        loop {
            match incoming.ready() {
                Ok(Some(frame)) => match self.answer(&frame, now) {
                    Ok(None) => {}
                    Ok(Some(end)) => return Some(end),
                    Err(error) => return Some(End::Lost(error)),
                },
                Ok(None) => return None,
                Err(error) => return Some(End::Lost(error)),
            }
        }
    }

    fn answer(&mut self, frame: &Frame, now: Instant) -> Result<Option<End>> {
        let out_of_order = |error: super::lanes::OutOfOrder| Error::protocol(error.to_string());
        match frame.known() {
            Some(Kind::Produced) => {
                let produced: Produced = frame.message()?;
                let parcel = self.lanes.acked(produced.tag, now).map_err(out_of_order)?;
                let kept = match produced.kept {
                    Some(records) => Kept::told(records, produced.kept_map, parcel.records),
                    None if produced.duplicate && parcel.item.target.filtered => Kept::Unknown,
                    None => Kept::All,
                };
                let stored = Stored {
                    base_offset: produced.base_offset,
                    kept,
                    append_time_ms: produced.append_time_ms,
                    duplicate: produced.duplicate,
                };
                let counters = &self.shared.counters;
                let records = u64::from(parcel.records);
                counters.acknowledged.fetch_add(records, Ordering::Relaxed);
                let dropped =
                    parcel.records - produced.kept.unwrap_or(parcel.records).min(parcel.records);
                counters
                    .filtered
                    .fetch_add(dropped.into(), Ordering::Relaxed);
                counters.batches.fetch_add(1, Ordering::Relaxed);
                counters
                    .bytes
                    .fetch_add(parcel.item.body.len() as u64, Ordering::Relaxed);
                if produced.duplicate {
                    counters.duplicates.fetch_add(records, Ordering::Relaxed);
                }
                self.done.push((parcel.item.ticket, Ok(stored)));
                self.last_refusal = None;
                Ok(None)
            }
            Some(Kind::Error) => {
                let (tag, error) = refusal(frame)?;
                if tag == 0 {
                    return Ok(Some(if error.retriable() {
                        End::Lost(error)
                    } else {
                        End::Fatal(error)
                    }));
                }
                if error.code() == Some(Code::ProducerFenced) && self.identity.pid != 0 {
                    return Ok(Some(End::Fatal(error)));
                }
                match self
                    .lanes
                    .refused(tag, verdict(&error), now)
                    .map_err(out_of_order)?
                {
                    Refused::Kept => {
                        tracing::debug!(%error, tag, "batch refused; it will be sent again");
                        // A gap behind a batch that was put off only follows from it.
                        let follows = error.code() == Some(Code::SequenceGap);
                        if !follows || self.last_refusal.is_none() {
                            self.last_refusal = Some(error);
                        }
                    }
                    Refused::Failed { parcel, unknown } => {
                        if matches!(
                            error.code(),
                            Some(Code::UnknownTopic | Code::UnknownPartition)
                        ) {
                            self.shared.lock().forget(parcel.item.lane);
                        }
                        let error = if unknown {
                            error.with_unknown_outcome()
                        } else {
                            error
                        };
                        self.done.push((parcel.item.ticket, Err(error)));
                    }
                }
                Ok(None)
            }
            // A newer broker may say more than we understand.
            None => Ok(None),
            Some(kind) => Err(Error::protocol(format!(
                "{} on a producer stream",
                kind.name()
            ))),
        }
    }

    fn expire(&mut self, now: Instant) {
        for (parcel, unknown) in self.lanes.expire(now) {
            let error = match &self.last_refusal {
                Some(refusal) => Error::deadline(format!(
                    "the record was not acknowledged before its delivery deadline; the broker's last refusal: {refusal}"
                )),
                None => {
                    Error::deadline("the record was not acknowledged before its delivery deadline")
                }
            };
            let error = if unknown {
                error.with_unknown_outcome()
            } else {
                error
            };
            self.done.push((parcel.item.ticket, Err(error)));
        }
    }

    /// Everything fails, now and from now on.
    fn fail(&mut self, error: &Error) {
        tracing::debug!(%error, "the producer cannot go on");
        {
            let mut gathering = self.shared.lock();
            gathering.failed = Some(error.clone());
            gathering.seal_due(Instant::now(), true);
            gathering.take_sealed(&mut self.taken);
        }
        self.queue_taken();
        for (parcel, unknown) in self.lanes.clear() {
            let error = if unknown {
                error.with_unknown_outcome()
            } else {
                error.clone()
            };
            self.done.push((parcel.item.ticket, Err(error)));
        }
        self.report();
    }

    /// Settle what is done, and tell those who wait.
    fn report(&mut self) {
        if self.done.is_empty() {
            return;
        }
        let (starved, waited_for) = {
            let mut gathering = self.shared.lock();
            for (ticket, _) in &self.done {
                gathering.settled(ticket);
            }
            let waited_for = gathering.flush_up_to > 0 || gathering.closing;
            (std::mem::take(&mut gathering.starved), waited_for)
        };
        for (ticket, outcome) in self.done.drain(..) {
            if let Err(error) = &outcome {
                let counters = &self.shared.counters;
                counters
                    .failed
                    .fetch_add(u64::from(ticket.records), Ordering::Relaxed);
                if error.unknown_outcome() {
                    counters
                        .unknown
                        .fetch_add(u64::from(ticket.records), Ordering::Relaxed);
                }
                let mut first = counters
                    .first_error
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                first.get_or_insert_with(|| error.clone());
            }
            ticket.completion.complete(outcome);
        }
        if starved {
            self.shared.room.notify_waiters();
        }
        if waited_for {
            self.shared.settled.notify_waiters();
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

/// What a refusal means for the batch.
fn verdict(error: &Error) -> Verdict {
    match error.code() {
        Some(Code::SequenceGap) => Verdict::Gap,
        Some(Code::ProducerExpired | Code::UnknownProducer) => Verdict::Expired,
        _ if error.unknown_outcome() => Verdict::Unknown,
        _ if error.retriable() => Verdict::Later {
            after: error.retry_after(),
        },
        _ => Verdict::Never,
    }
}

async fn open(session: &Session, identity: &Identity) -> Result<(SendStream, Incoming, usize)> {
    let first = ProducerOpen {
        pid: identity.pid,
        epoch: identity.epoch,
        ack: Ack::Durable.into(),
        token: identity.token.clone(),
    };
    let (send, mut incoming) = Link::open(session, Kind::ProducerOpen, &first).await?;
    match incoming.next().await? {
        Some(frame) if frame.known() == Some(Kind::ProducerOpened) => {
            let opened: ProducerOpened = frame.message()?;
            let in_flight_max = if opened.in_flight_max == 0 {
                usize::MAX
            } else {
                opened.in_flight_max as usize
            };
            Ok((send, incoming, in_flight_max))
        }
        Some(frame) if frame.known() == Some(Kind::Error) => Err(refusal(&frame)?.1),
        Some(_) => Err(Error::protocol(
            "a producer stream was opened with something else than PRODUCER_OPENED",
        )),
        None => Err(Error::transport("the broker closed the producer stream")),
    }
}
