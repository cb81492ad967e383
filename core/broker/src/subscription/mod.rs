//! A subscription's stream: batches pushed against credit, commits and seeks on the way back, and for
//! groups the partitions that come and go.
//!
//! ```text
//! client ─▶ CREDIT COMMIT RELEASED PAUSE SEEK ─┐
//! shards ─▶ fetched batches ───────────────────┼─▶ one loop ─▶ outbox ─▶ QUIC
//! home  ─▶ assignments ────────────────────────┘
//! ```
//! One task holds all state, so that nothing is locked. What waits for a shard is a job of its own,
//! whose result comes back as an event. Absent: who gets which partition (the group's home shard).

mod begin;
mod client;
mod ending;
mod feed;
mod feeds;
mod filters;
mod group;
mod jobs;
mod namesakes;
mod open;
mod outbox;
mod quota;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use millstream_batch::ids::{MemberId, Partition, TopicId};
use millstream_machine::topics::TopicMeta;
use millstream_protocol::messages::{self, OnLost, Revoke, Subscribe, Subscribed};
use millstream_protocol::{Code, Kind};
use millstream_shard::call::Answer;
use quinn::SendStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::feeds::Feeds;
use self::filters::OwnFilters;
use self::group::Membership;
use self::jobs::Event;
use self::outbox::Outbox;
use self::quota::Quota;
use crate::authority::Right;
use crate::metrics::Alive;
use crate::refusals;
use crate::requests::{At, position_of};
use crate::session::Session;
use crate::stream::{FrameReader, ReadEnd, Received, refuse};

/// The handle in the tags of assignment answers, in the queue that fetches answer to: no partition's.
const WATCH: u32 = u32::MAX;
/// Frames of the client that wait for the loop.
const FRAMES_WAITING_MAX: usize = 4;
/// COMMITs and SEEKs whose answers are not ready; past it the client's frames wait.
const UNANSWERED_MAX: usize = 8;
/// Answers taken up before the loop looks at the client again.
const ANSWERS_TOGETHER: usize = 64;
/// How long a partition is tried that cannot be opened yet, when the client does not say.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long leaving a group may take at the end of a stream.
const LEAVE: Duration = Duration::from_secs(5);

/// Why the stream ends.
enum End {
    /// The client closed its side, or all partitions are over.
    Finished,
    /// The client is gone; nobody to tell.
    Gone,
    /// Something ended it for the client.
    Refused(messages::Error),
}

/// What the loop holds.
struct Subscription {
    session: Rc<Session>,
    group: Option<Rc<str>>,
    /// Where partitions without a committed offset start.
    from: At,
    stop_at_end: bool,
    /// What becomes of records that were removed before they were read; never the default.
    on_lost: OnLost,
    /// How long a partition is tried that cannot be opened yet.
    patience: Duration,
    /// Topics that are read whole, and how many partitions of each are.
    whole: Vec<(TopicId, u32)>,
    filters: OwnFilters,
    feeds: Feeds,
    /// Partitions came that may not be read beside the others: the end of the stream.
    refused: Option<messages::Error>,
    outbox: Outbox,
    jobs: JoinSet<Event>,
    answers: mpsc::UnboundedSender<(u64, Answer)>,
    membership: Option<Membership>,
    /// Commits whose answer is awaited; releases wait for them.
    committing: usize,
    /// Fetches that wait for a worker's verdict.
    with_workers: usize,
    to_release: Vec<Partition>,
}

/// Serve the stream that SUBSCRIBE began.
pub(crate) async fn serve(
    session: Rc<Session>,
    mut send: SendStream,
    mut reader: FrameReader,
    first: Received,
) {
    let shared = Rc::clone(&session);
    let _alive = Alive::new(&shared.shared.metrics.subscriptions);
    let (answers, answered) = mpsc::unbounded_channel();
    let mut subscription = match begin(session, &first, answers).await {
        Ok(subscription) => subscription,
        Err(error) => return refuse(&mut send, &mut reader, &error).await,
    };
    drop(first);
    let stop_code = Rc::new(RefCell::new(None));
    let (frames, mut framed) = mpsc::channel(FRAMES_WAITING_MAX);
    let reading = tokio::task::spawn_local(read(reader, frames, Rc::clone(&stop_code)));
    let end = subscription.run(&mut send, &mut framed, answered).await;
    let goodbye = match &end {
        End::Finished => true,
        // A client that was silent for longer than its session has no claim to come back.
        End::Gone => shared.is_open() || shared.said_goodbye() || subscription.session_is_over(),
        End::Refused(error) => error.code != Code::Stopping.number(),
    };
    if let End::Refused(error) = &end {
        *stop_code.borrow_mut() = Some(error.code);
        subscription.outbox.frame(Kind::Error, error);
    }
    drop(framed); // ends the reader
    if goodbye {
        drop(tokio::time::timeout(LEAVE, subscription.leave()).await); // else its session times out
    }
    if !matches!(end, End::Gone) && subscription.outbox.drain(&mut send).await.is_ok() {
        drop(send.finish()); // a peer that went away needs no end
    }
    reading.abort();
}

/// Hand the client's frames to the loop, one after the other.
async fn read(
    mut reader: FrameReader,
    frames: mpsc::Sender<Result<Received, ReadEnd>>,
    stop_code: Rc<RefCell<Option<u32>>>,
) {
    loop {
        let received = tokio::select! {
            received = reader.next() => received,
            () = frames.closed() => break,
        };
        let over = received.is_err();
        if frames.send(received).await.is_err() || over {
            break;
        }
    }
    if let Some(code) = *stop_code.borrow() {
        reader.stop(code);
    }
}

async fn begin(
    session: Rc<Session>,
    first: &Received,
    answers: mpsc::UnboundedSender<(u64, Answer)>,
) -> Result<Subscription, messages::Error> {
    let subscribe: Subscribe = first.frame.message().map_err(refusals::of_frame)?;
    // Nothing is started for whoever may not read: that the topics are there is looked at later.
    let fixed = subscribe.partitions.iter().map(|fixed| &fixed.topic);
    let principal = session.principal();
    for topic in subscribe.topics.iter().chain(fixed) {
        principal.check(Right::Consume, topic)?;
    }
    let filters = OwnFilters::new(&session, &subscribe).await?;
    let from = position_of(subscribe.from.as_ref());
    let mut subscription = Subscription {
        group: (!subscribe.group.is_empty()).then(|| Rc::from(subscribe.group.as_str())),
        from,
        stop_at_end: subscribe.stop_at_end,
        on_lost: match OnLost::try_from(subscribe.on_lost) {
            Ok(OnLost::Default) if subscribe.group.is_empty() => OnLost::Oldest,
            Ok(OnLost::Default) => OnLost::Fail,
            Ok(chosen) => chosen,
            Err(_) => {
                let message = format!("on_lost = {} is not known", subscribe.on_lost);
                return Err(Code::BadRequest.error(message));
            }
        },
        patience: match subscribe.open_ms {
            0 => PATIENCE,
            ms => Duration::from_millis(u64::from(ms)),
        },
        whole: Vec::new(),
        filters,
        feeds: Feeds::new(subscribe.credit_bytes, Quota::new(&session)),
        refused: None,
        outbox: Outbox::new(session.send.clone()),
        jobs: JoinSet::new(),
        answers,
        membership: None,
        committing: 0,
        with_workers: 0,
        to_release: Vec::new(),
        session,
    };
    subscription.open(&subscribe).await?;
    Ok(subscription)
}

impl Subscription {
    async fn run(
        &mut self,
        send: &mut SendStream,
        frames: &mut mpsc::Receiver<Result<Received, ReadEnd>>,
        mut answers: mpsc::UnboundedReceiver<(u64, Answer)>,
    ) -> End {
        let stopping = self.session.shared.stopping();
        let mut stopping = std::pin::pin!(stopping);
        let share = self.session.send.clone();
        let mut catalog = self.session.thread.catalog.changes();
        self.open_added(); // what came between SUBSCRIBE and now
        self.look_for_namesakes();
        loop {
            self.pump();
            if let Some(error) = self.refused.take() {
                return End::Refused(error);
            }
            if self.is_over() {
                return End::Finished;
            }
            let deadline = self.membership.as_ref().and_then(Membership::deadline);
            let starved = self.feeds.starved;
            // A client that asks and does not read what it is answered is not asked for more.
            let unanswered = self.committing + self.feeds.seeking();
            let listening = self.outbox.has_control_room() && unanswered < UNANSWERED_MAX;
            tokio::select! {
                written = send.write_chunks(self.outbox.chunks()), if !self.outbox.is_empty() => match written {
                    Ok(written) => self.outbox.written(written),
                    Err(_) => return End::Gone,
                },
                answer = answers.recv() => {
                    let Some((tag, answer)) = answer else { return End::Gone };
                    if let Err(error) = self.answered(tag, answer) {
                        return End::Refused(error);
                    }
                    for _ in 0..ANSWERS_TOGETHER {
                        let Ok((tag, answer)) = answers.try_recv() else { break };
                        if let Err(error) = self.answered(tag, answer) {
                            return End::Refused(error);
                        }
                    }
                }
                received = frames.recv(), if listening => match received {
                    Some(Ok(received)) => {
                        if let Err(error) = self.client_said(&received.frame) {
                            return End::Refused(error);
                        }
                    }
                    Some(Err(ReadEnd::Finished)) => return End::Finished,
                    Some(Err(ReadEnd::Gone)) | None => return End::Gone,
                    Some(Err(ReadEnd::Refused(error))) => return End::Refused(error),
                },
                Some(event) = self.jobs.join_next() => {
                    let mut events: Vec<Event> = event.into_iter().collect();
                    while let Some(event) = self.jobs.try_join_next() {
                        events.extend(event);
                    }
                    self.happened(events);
                }
                () = share.freed(), if starved => {}
                Ok(()) = catalog.changed(), if !self.whole.is_empty() || self.membership.is_some() => {
                    self.open_added();
                    self.look_for_namesakes();
                }
                () = sleep_until(deadline) => {
                    let message = "partitions that the group asked back were not released in time";
                    return End::Refused(Code::MemberFenced.error(message));
                }
                () = &mut stopping => return End::Refused(Code::Stopping.error("the broker is stopping")),
            }
        }
    }

    fn answered(&mut self, tag: u64, answer: Answer) -> Result<(), messages::Error> {
        if (tag >> 32) as u32 == WATCH {
            return self.assignment_came(tag as u32, answer);
        }
        self.fetched(tag, answer)
    }

    /// Tell the client that partitions are gone already.
    fn lost(&mut self, handles: Vec<u32>) {
        if !handles.is_empty() {
            self.outbox.frame(
                Kind::Revoke,
                &Revoke {
                    handles,
                    lost: true,
                },
            );
        }
    }

    /// Whether the time after which a lost connection is noticed covers the member's session.
    fn session_is_over(&self) -> bool {
        let idle_ms = self.session.shared.config.quic.idle_timeout_ms;
        self.membership
            .as_ref()
            .is_some_and(|membership| membership.session_timeout_ms() <= idle_ms)
    }

    fn subscribed(&mut self, member: MemberId, session_timeout_ms: u32) {
        let session = &self.session;
        let member_token = match &self.group {
            Some(group) if member.0 != 0 => {
                let principal = &session.principal().name;
                let secrets = &session.shared.secrets;
                secrets.member_token(group, member.0, principal)
            }
            _ => bytes::Bytes::new(),
        };
        self.outbox.frame(
            Kind::Subscribed,
            &Subscribed {
                member: member.0,
                session_timeout_ms,
                member_token,
            },
        );
    }

    /// The topic as it is now, as far as this thread knows.
    fn topic_now(&self, topic: &Rc<TopicMeta>) -> Option<Rc<TopicMeta>> {
        self.session.thread.catalog.cached(topic.id)
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
