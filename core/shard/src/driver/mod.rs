//! The task that drives one [`ShardCore`] on a tokio current-thread runtime.
//!
//! ```text
//! inbox ──round of calls──▶ filters ──▶ core ──one flush a round──▶ storage
//!   ▲                        │  ▲        │ answers, when released      │ completions
//!   │                        ▼  │        │                             │
//!   │                  workers, if slow  │                             │
//! sessions ◀─────────────────────────────┴─────────────────────────────┘
//! ```
//! It sleeps unless a call, a completion or a timer that is needed wakes it. Absent on purpose: what
//! is decided (the core), which disk (the storage), where components come from (their source).

mod filters;
mod replies;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use millstream_batch::ids::{ShardId, TimestampMs};
use millstream_log::Recovery;
use millstream_log::io::Storage;
use millstream_machine::request::Request;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Sleep;

pub use self::filters::counts::FilterCounts;
pub use self::filters::deployments::{
    ComponentSource, Deployments, Lookup, NoComponents, deployment,
};
pub use self::filters::lanes::Plugins;
use self::filters::lanes::{Held, Lanes, Step};
pub use self::filters::workers::{Job, Turn, WorkerPool, Workers};
pub use self::filters::{FilterFailure, FilterHost, Halt, Own, Owner, Rest, Site};
use self::replies::Replies;
use crate::call::{Answer, Call, Error};
use crate::core::{CoreConfig, Effect, Now, ShardCore};
use crate::handle::{Message, ReplyTo, ShardHandle, Stamps};

/// Calls taken up before what they wrote is flushed and others on this thread get their turn.
const ROUND_CALLS_MAX: usize = 256;
/// Rounds before others on this thread get their turn.
const ROUNDS_MAX: usize = 8;
/// How often calls whose caller went away are looked for, while calls wait.
const SWEEP: Duration = Duration::from_secs(5);

/// Settings of one shard's task.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    pub core: CoreConfig,
    /// No call is taken up while so many bytes wait for the disk.
    pub undurable_bytes_max: u64,
    /// All shards of the data directory, for what they tell each other; `None` when this is the only
    /// one.
    pub peers: Option<Arc<Peers>>,
}

/// The shards of one data directory, in their order.
#[derive(Debug)]
pub struct Peers(Vec<ShardHandle>);

impl Peers {
    /// `handles` in the order of their shards.
    #[must_use]
    pub fn new(handles: Vec<ShardHandle>) -> Arc<Self> {
        Arc::new(Self(handles))
    }

    fn of(&self, shard: ShardId) -> Option<&ShardHandle> {
        self.0.get(usize::from(shard.0))
    }
}

impl ShardConfig {
    /// Defaults around the core's settings.
    #[must_use]
    pub fn new(core: CoreConfig) -> Self {
        Self {
            core,
            undurable_bytes_max: 32 << 20,
            peers: None,
        }
    }
}

/// Reads the time: the process's clocks.
pub fn system_clock() -> impl Fn() -> Now + Clone + Send + 'static {
    let start = Instant::now();
    move || Now {
        wall: TimestampMs(
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| d.as_millis() as i64),
        ),
        mono_us: start.elapsed().as_micros() as u64,
    }
}

/// Drive a shard until it is stopped by [`Call::Stop`], or every handle is gone.
///
/// Call it on the thread that owns the storage, inside its runtime (with time enabled). `ready` hears
/// of the end of recovery.
pub async fn run(
    config: ShardConfig,
    storage: Box<dyn Storage>,
    inbox: mpsc::UnboundedReceiver<Message>,
    clock: impl Fn() -> Now + 'static,
    plugins: Plugins,
    ready: oneshot::Sender<Recovery>,
) {
    let mut task = Task {
        core: ShardCore::open(config.core.clone(), clock()),
        filters: Lanes::new(&plugins),
        replies: Replies::default(),
        disk: storage.describe(),
        ready: Some(ready),
        serving: false,
        stopped: false,
        inbox_open: true,
        timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
        timer_at: None,
        swept: clock(),
        config,
        storage,
        inbox,
        clock,
    };
    poll_fn(|cx| task.poll(cx)).await;
}

struct Task<C> {
    config: ShardConfig,
    core: ShardCore,
    storage: Box<dyn Storage>,
    disk: String,
    inbox: mpsc::UnboundedReceiver<Message>,
    inbox_open: bool,
    clock: C,
    filters: Lanes,
    replies: Replies,
    ready: Option<oneshot::Sender<Recovery>>,
    serving: bool,
    stopped: bool,
    timer: Pin<Box<Sleep>>,
    /// The moment the timer is set to, in the core's microseconds.
    timer_at: Option<u64>,
    swept: Now,
}

impl<C: Fn() -> Now> Task<C> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..ROUNDS_MAX {
            let moved = self.take_completions(cx)
                | self.take_filtered(cx)
                | self.take_calls(cx)
                | self.take_timer(cx);
            self.carry_effects();
            if self.stopped {
                return Poll::Ready(());
            }
            if !moved {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn take_completions(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        while let Poll::Ready(done) = self.storage.poll_done(cx) {
            let now = (self.clock)();
            self.core.io_done(now, done);
            self.carry_effects();
            moved = true;
        }
        moved
    }

    /// One round of calls, and one flush for what they wrote.
    fn take_calls(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.serving {
            return false;
        }
        let mut taken = 0;
        while taken < ROUND_CALLS_MAX
            && self.inbox_open
            && self.core.undurable_bytes() <= self.config.undurable_bytes_max
        {
            match self.inbox.poll_recv(cx) {
                Poll::Ready(Some(message)) => self.take_call(message),
                Poll::Ready(None) => {
                    // Nobody can ask for anything any more.
                    self.inbox_open = false;
                    self.refuse_waiting();
                    let token = self.replies.insert(ReplyTo::Once(oneshot::channel().0));
                    self.core.call((self.clock)(), token, Call::Stop);
                }
                Poll::Pending => break,
            }
            taken += 1;
        }
        if taken > 0 {
            self.core.flush((self.clock)());
        }
        taken > 0
    }

    /// What workers are through with, as far as there is room for it.
    fn take_filtered(&mut self, cx: &mut Context<'_>) -> bool {
        let mut taken = 0;
        while taken < ROUND_CALLS_MAX
            && self.core.undurable_bytes() <= self.config.undurable_bytes_max
        {
            let now = (self.clock)();
            match self.filters.poll(cx, &self.core, now) {
                Poll::Ready(step) => self.take_step(now, step),
                Poll::Pending => break,
            }
            taken += 1;
        }
        if taken > 0 {
            self.core.flush((self.clock)());
        }
        taken > 0
    }

    fn take_call(&mut self, message: Message) {
        let Message {
            call,
            reply,
            waiting,
            stamps,
        } = message;
        if let Some(stamps) = &stamps {
            Stamps::set(&stamps.taken_ns);
        }
        let now = (self.clock)();
        let call = match call {
            Call::Produce { request, raw }
                if self.filters.concern(&self.core, request.partition) =>
            {
                let held = Held {
                    request,
                    raw,
                    reply,
                    waiting,
                    stamps,
                };
                if let Some(step) = self.filters.take(&self.core, now, held) {
                    self.take_step(now, step);
                }
                return;
            }
            call => call,
        };
        drop(waiting);
        if matches!(call, Call::Stop) {
            self.refuse_waiting();
        }
        let token = self.replies.insert(reply);
        self.core.call(now, token, call);
        if let Some(stamps) = &stamps {
            Stamps::set(&stamps.appended_ns);
        }
    }

    fn take_step(&mut self, now: Now, step: Step) {
        match step {
            Step::Append(Held {
                request,
                raw,
                reply,
                waiting,
                stamps,
            }) => {
                drop(waiting);
                if let Some(stamps) = &stamps {
                    Stamps::set(&stamps.filtered_ns);
                }
                let token = self.replies.insert(reply);
                self.core.call(now, token, Call::Produce { request, raw });
                if let Some(stamps) = &stamps {
                    Stamps::set(&stamps.appended_ns);
                }
            }
            Step::Refuse(reply, error) => reply.send(Answer::Error(error)),
        }
    }

    /// Set the timer to when the core wants it, and tick when that has come.
    fn take_timer(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        loop {
            let now = (self.clock)();
            let sweep =
                (!self.replies.is_empty()).then_some(self.swept.mono_us + SWEEP.as_micros() as u64);
            let wanted = [self.core.next_wakeup(), sweep].into_iter().flatten().min();
            let Some(at) = wanted else {
                self.timer_at = None;
                return moved;
            };
            if at <= now.mono_us {
                if sweep.is_some_and(|at| at <= now.mono_us) {
                    self.swept = now;
                    for token in self.replies.closed() {
                        if self.core.cancel(token) {
                            self.replies.forget(token);
                        }
                    }
                }
                self.core.tick(now);
                self.carry_effects();
                if moved {
                    return true; // once a turn: a core that always wants to tick starves nobody
                }
                moved = true;
                continue;
            }
            if self.timer_at != Some(at) {
                let deadline =
                    tokio::time::Instant::now() + Duration::from_micros(at - now.mono_us);
                self.timer.as_mut().reset(deadline);
                self.timer_at = Some(at);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return moved;
            }
            self.timer_at = None; // the two clocks differ by a little: look again
        }
    }

    fn carry_effects(&mut self) {
        while let Some(effect) = self.core.poll() {
            self.carry(effect);
        }
    }

    fn carry(&mut self, effect: Effect) {
        let shard = self.config.core.shard.0;
        match effect {
            Effect::Io(io) => self.storage.submit(io),
            Effect::Answer { token, answer } => self.reply(token, answer),
            Effect::Ready(recovery) => {
                self.serving = true;
                report_recovery(shard, &recovery);
                if let Some(ready) = self.ready.take() {
                    let _gone = ready.send(*recovery);
                }
            }
            Effect::SpaceGone(why) => tracing::error!(
                shard,
                "the next log file cannot be made ({why}): produces are refused; free space, lower retention, delete \
                 topics or raise the limit, and the shard resumes by itself"
            ),
            Effect::SpaceBack => tracing::info!(shard, "space is back: produces are taken again"),
            Effect::Failed(why) => tracing::error!(
                shard,
                "a write failed ({why}): this shard writes nothing more, what is durable is still served; check the \
                 disk, then restart the broker: it recovers everything that was acknowledged"
            ),
            Effect::SnapshotPublished(begin) => {
                tracing::debug!(shard, begin = begin.0, "snapshot published");
            }
            Effect::Damaged(words) => tracing::error!(
                shard,
                "{words}: everything else is served; `millstream log verify` shows the extent, consumers skip it with \
                 an explicit seek"
            ),
            Effect::ClockDoubted(Some(words)) => tracing::warn!(shard, "{words}"),
            Effect::ClockDoubted(None) => {
                tracing::info!(shard, "the wall clock is believed again");
            }
            Effect::Tell {
                shard,
                request,
                about,
            } => {
                if let Some((source, peer)) = self.peers(shard) {
                    let reply = ReplyTo::Told {
                        source,
                        shard,
                        about,
                    };
                    peer.send(Call::Machine(request), reply);
                }
            }
            Effect::Courier {
                to,
                row,
                k,
                message,
            } => {
                if let Some((source, peer)) = self.peers(to) {
                    let request = Request::ApplyCourier {
                        from: source.shard(),
                        row,
                        k,
                        message,
                    };
                    let reply = ReplyTo::Courier { source, to, row };
                    peer.send(Call::Machine(request), reply);
                }
            }
            Effect::OutOfStep(words) => tracing::error!(shard, "{words}"),
            Effect::ProducerFloor(floor) => {
                let shard = self.config.core.shard;
                let peers = self.config.peers.iter().flat_map(|peers| peers.0.iter());
                for peer in peers.filter(|peer| peer.shard() != shard) {
                    peer.send(Call::ProducerFloor { shard, floor }, ReplyTo::Nobody);
                }
            }
            Effect::Stopped => {
                tracing::info!(shard, "stopped");
                self.stopped = true;
            }
        }
    }

    /// This shard and another one.
    fn peers(&self, other: ShardId) -> Option<(ShardHandle, ShardHandle)> {
        let peers = self.config.peers.as_ref()?;
        let this = peers.of(self.config.core.shard)?;
        Some((this.clone(), peers.of(other)?.clone()))
    }

    fn reply(&mut self, token: u64, mut answer: Answer) {
        if let Answer::Status(status) = &mut answer {
            status.disk.clone_from(&self.disk);
            status.filters = self.filters.status();
        }
        self.replies.send(token, answer);
    }
}

impl<C> Task<C> {
    /// Batches that wait for a filter are not stored any more.
    fn refuse_waiting(&mut self) {
        for reply in self.filters.drain() {
            reply.send(Answer::Error(Error::Stopping));
        }
    }
}

impl<C> Drop for Task<C> {
    /// Whoever still waits learns that nothing will come.
    fn drop(&mut self) {
        self.refuse_waiting();
        self.replies.send_all(|| Answer::Error(Error::Stopping));
    }
}

fn report_recovery(shard: u16, recovery: &Recovery) {
    tracing::info!(
        shard,
        last_lsn = recovery.last.0,
        term = recovery.term.0,
        replayed = recovery.replayed,
        bytes_read = recovery.bytes_read,
        rewritten_bytes = recovery.rewritten_bytes,
        "recovered"
    );
    if recovery.cut_bytes > 0 {
        tracing::warn!(
            shard,
            bytes = recovery.cut_bytes,
            "cut a torn last write: nothing of it was acknowledged"
        );
    }
    for damage in &recovery.damage {
        tracing::error!(
            shard,
            file = damage.file,
            at = damage.at,
            "damage on disk: {}; see `millstream log verify`",
            damage.what
        );
    }
    if let Some(why) = &recovery.read_only {
        tracing::error!(shard, "the shard is read-only: {why}");
    }
}
