//! The way into a shard from any core: a bounded queue in, the caller's own queue out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use millstream_batch::ids::ShardId;
use millstream_machine::Row;
use millstream_machine::request::{Reply, Request};
use tokio::sync::{mpsc, oneshot};

use crate::call::{About, Answer, Call, Error, Kept, Outcome};

/// Where an answer goes.
#[derive(Debug)]
pub enum ReplyTo {
    /// One answer for one call.
    Once(oneshot::Sender<Answer>),
    /// Answers of many calls into one queue, told apart by `tag`: what a stream of pipelined batches
    /// uses, so that a batch costs no channel of its own. The caller bounds what it has in flight.
    Queue {
        tag: u64,
        queue: mpsc::UnboundedSender<(u64, Answer)>,
    },
    /// Of a message between shards: what was taken is told to the shard that sent it.
    Courier {
        source: ShardHandle,
        to: ShardId,
        row: Row,
    },
    /// Of an `Effect::Tell`: what came of it is told to the shard that asked.
    Told {
        source: ShardHandle,
        shard: ShardId,
        about: About,
    },
    /// Nobody waits.
    Nobody,
    /// For a batch that its filters did not keep whole: the answer says so. `repeated`: of a batch that was
    /// stored before, `kept` is what is known of that.
    Filtered {
        kept: Option<Kept>,
        repeated: bool,
        to: Box<ReplyTo>,
    },
}

impl ReplyTo {
    /// Whether nobody waits for the answer any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        match self {
            Self::Once(to) => to.is_closed(),
            Self::Queue { queue, .. } => queue.is_closed(),
            Self::Filtered { to, .. } => to.is_closed(),
            Self::Courier { .. } | Self::Told { .. } | Self::Nobody => false,
        }
    }

    /// Deliver. A caller that went away is no error.
    pub fn send(self, answer: Answer) {
        match self {
            Self::Once(to) => drop(to.send(answer)),
            Self::Queue { tag, queue } => drop(queue.send((tag, answer))),
            Self::Courier { source, to, row } => {
                // Whatever else comes is no news: it is sent again.
                if let Answer::Reply(Reply::CourierTaken { last }) = answer {
                    let request = Request::CourierAcknowledged { to, row, last };
                    source.send(Call::Machine(request), Self::Nobody);
                }
            }
            Self::Told {
                source,
                shard,
                about,
            } => {
                let told = Call::Told {
                    shard,
                    about,
                    outcome: Outcome::of(&answer),
                };
                source.send(told, Self::Nobody);
            }
            Self::Nobody => {}
            Self::Filtered { kept, repeated, to } => to.send(match answer {
                // Of a duplicate, what counts is what was kept the first time.
                Answer::Reply(Reply::Produced(produced)) if produced.duplicate == repeated => {
                    Answer::Filtered { produced, kept }
                }
                other => other,
            }),
        }
    }
}

/// What travels to the shard's thread.
#[derive(Debug)]
pub struct Message {
    pub call: Call,
    pub reply: ReplyTo,
    pub(crate) waiting: Waiting,
    /// Set for what is traced.
    pub(crate) stamps: Option<Arc<Stamps>>,
}

/// When a batch that is traced passed where, in nanoseconds since 1970; 0: it did not.
#[derive(Debug, Default)]
pub struct Stamps {
    /// The shard took it up.
    pub taken_ns: AtomicU64,
    /// Its filters were through with it, if it had any.
    pub filtered_ns: AtomicU64,
    /// It is in the log, and not durable yet.
    pub appended_ns: AtomicU64,
}

impl Stamps {
    pub(crate) fn set(stamp: &AtomicU64) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        stamp.store(now.unwrap_or_default().as_nanos() as u64, Ordering::Relaxed);
    }
}

/// Counts the message as waiting while it lives.
#[derive(Debug)]
pub(crate) struct Waiting(Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A shard, seen from any thread. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ShardHandle {
    shard: ShardId,
    inbox: mpsc::UnboundedSender<Message>,
    waiting: Arc<AtomicUsize>,
    waiting_max: usize,
}

impl ShardHandle {
    /// A handle and the shard's end of its queue. `waiting_max` bounds the calls not yet taken up.
    #[must_use]
    pub fn new(shard: ShardId, waiting_max: usize) -> (Self, mpsc::UnboundedReceiver<Message>) {
        let (inbox, received) = mpsc::unbounded_channel();
        (
            Self {
                shard,
                inbox,
                waiting: Arc::default(),
                waiting_max,
            },
            received,
        )
    }

    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// Hand over a call. Never blocks. A full queue or a shard that is gone answers at once.
    pub fn send(&self, call: Call, reply: ReplyTo) {
        self.send_stamped(call, reply, None);
    }

    /// As [`send`](Self::send), and stamp the times at which it passes.
    pub fn send_stamped(&self, call: Call, reply: ReplyTo, stamps: Option<Arc<Stamps>>) {
        let calls = self.waiting.fetch_add(1, Ordering::Relaxed);
        let message = Message {
            call,
            reply,
            waiting: Waiting(Arc::clone(&self.waiting)),
            stamps,
        };
        if calls >= self.waiting_max {
            message.reply.send(Answer::Error(Error::Busy {
                shard: self.shard,
                calls,
            }));
        } else if let Err(mpsc::error::SendError(message)) = self.inbox.send(message) {
            message.reply.send(Answer::Error(Error::Stopping));
        }
    }

    /// Call and wait for the answer.
    pub async fn call(&self, call: Call) -> Answer {
        let (to, answer) = oneshot::channel();
        self.send(call, ReplyTo::Once(to));
        answer.await.unwrap_or(Answer::Error(Error::Stopping))
    }
}
