//! One shard without its thread: the machine and its log, plain data in, [`Effect`]s out.
//!
//! ```text
//! call ──decide(&state, now, request)──▶ fact + reply     looks, does not touch
//! fact ──append──▶ log (lsn)                              joins the gathering group
//! fact ──install──▶ state                                 in log order, at append
//! reply, visibility ──held until durable ≥ lsn──▶ released
//! ```
//!
//! Protocol of use of [`ShardCore`] (sans-io; the caller owns storage, clock and queues):
//!
//! 1. `ShardCore::open(config)`, then carry each [`Effect::Io`] to a storage and each answer back
//!    with `io_done`, until [`Effect::Ready`].
//! 2. `call` as many calls as wait, then `flush` once: what they wrote goes to disk together.
//! 3. After every input, `poll` until it gives nothing.
//! 4. `tick` when `next_wakeup` has come.
//! 5. A [`Call::Stop`] ends in [`Effect::Stopped`].
//!
//! Absent on purpose: clocks, sockets, threads, async, plugins' code (the driver runs filters before
//! it calls), and the bytes of batches, which only pass through.

mod claims;
mod clock;
mod config;
mod couriers;
mod gate;
mod latency;
mod rate;
mod read;
mod recover;
mod release;
mod retention;
mod snapshot;
mod spread;
mod status;
mod upkeep;
mod waiting;
mod watch;
mod write;

use bytes::BytesMut;
use millstream_batch::ids::{
    Lsn, Offset, Partition, PartitionSlot, ProducerId, ShardId, Term, TimestampMs,
};
use millstream_log::io::{Io, IoDone, IoError};
use millstream_log::{Log, Recovery};
use millstream_machine::request::{Produce, Produced, Reply, Request};
use millstream_machine::{Message, Row, State, decide};
use rustc_hash::FxHashMap;
use std::collections::VecDeque;

use self::claims::Claiming;
pub use self::config::{CoreConfig, Now};
use self::couriers::Sending;
use self::gate::Gate;
use self::snapshot::Snapshot;
use self::spread::Spreading;
use self::status::Counters;
use self::upkeep::Upkeep;
use self::waiting::Waiting;
use crate::call::{About, Answer, Call, Error, Outcome};

/// What the caller is to do, or to know.
#[derive(Debug)]
pub enum Effect {
    /// Carry this to the storage.
    Io(Io),
    /// The one answer to the call with this token.
    Answer {
        token: u64,
        answer: Answer,
    },
    /// Recovery is over; calls may come.
    Ready(Box<Recovery>),
    /// No file can be made: produces are refused until `SpaceBack`. With what the system said.
    SpaceGone(String),
    SpaceBack,
    /// A write or sync failed: nothing more is written, for good. With what failed.
    Failed(String),
    /// A snapshot is published: a restart replays only what came after this lsn.
    SnapshotPublished(Lsn),
    /// Damage met while serving, in words.
    Damaged(String),
    /// The wall clock is in doubt, in words; `None`: it is not any more. Once per time.
    ClockDoubted(Option<String>),
    /// Ask this of another shard, and bring back with `Call::Told` what came of it. Asking twice does no harm.
    Tell {
        shard: ShardId,
        request: Request,
        about: About,
    },
    /// Bring this to another shard, with `Request::ApplyCourier`, and what it answers (`Reply::CourierTaken`)
    /// back with `Request::CourierAcknowledged`. Lost on the way, it comes again; it may come twice.
    Courier {
        to: ShardId,
        row: Row,
        k: u64,
        message: Message,
    },
    /// A shard acknowledges messages that were never sent to it, in words: one of the two directories is not of
    /// this broker, or is an older copy. Once a start.
    OutOfStep(String),
    /// Tell every other shard, with `Call::ProducerFloor`: no producer id below this lives here.
    ProducerFloor(ProducerId),
    /// The end of a `Call::Stop`: nothing more will happen.
    Stopped,
}

/// Whether the shard takes writes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Writes {
    Open,
    /// Only what frees space. With why no file can be made.
    Full(IoError),
    ReadOnly(String),
    /// After a failed write or sync.
    Stopped(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Recovering,
    Serving,
    /// A stop was asked for by this token: flushing and snapshotting.
    Stopping(u64),
    Stopped,
}

/// A partition as readers may see it: only what is released.
#[derive(Clone, Copy, Debug, Default)]
struct Shown {
    partition: Partition,
    start: Offset,
    /// The next offset a reader could not read yet.
    end: Offset,
    rate: rate::Rate,
}

/// The shard. See the module's header for its protocol of use.
#[derive(Debug)]
pub struct ShardCore {
    config: CoreConfig,
    /// Time of the newest input, its wall clock no further ahead than is let in.
    now: Now,
    /// The wall clock of the newest input as it was read.
    wall: TimestampMs,
    phase: Phase,
    writes: Writes,
    state: State,
    log: Log,
    /// Of the log, since recovery.
    term: Term,
    effects: VecDeque<Effect>,
    /// The last lsn installed.
    installed: Lsn,
    /// The last lsn installed with a fact of class `State`: what look-ups other than of a partition's end
    /// depend on.
    installed_state: Lsn,
    gate: Gate,
    shown: FxHashMap<PartitionSlot, Shown>,
    /// Fetches that the log is reading.
    reading: FxHashMap<u64, read::Reading>,
    /// Searches by time that the log is at.
    searching: FxHashMap<u64, Partition>,
    waiting: Waiting,
    /// Partitions released since waiters were last looked at.
    fresh: Vec<PartitionSlot>,
    undurable_bytes: u64,
    /// With `flush = interval`: an answer waits for a sync.
    sync_due: bool,
    /// Memory of the last batch's fact, used again for the next.
    encoded: BytesMut,
    anchor: clock::Anchor,
    /// Of the newest catalog change that is released.
    catalog_version: u64,
    snapshot: Snapshot,
    /// The log was closed in good order.
    sealed: bool,
    upkeep: Upkeep,
    sending: Sending,
    spreading: Spreading,
    claiming: Claiming,
    /// What each shard said last of the producers that live there; 0: nothing yet.
    producer_floors: Vec<ProducerId>,
    counters: Counters,
    /// Parts of the snapshot begun here are being restored.
    restoring: Option<Lsn>,
    recovery: Option<Box<Recovery>>,
}

/// The version of the catalog as of a log position. Zero is that of whoever has seen nothing, which no catalog has,
/// or the first topic of a new log, whose position is zero, would be no news.
fn catalog_version(lsn: Lsn) -> u64 {
    lsn.0 + 1
}

impl ShardCore {
    // --- inputs --------------------------------------------------------------------------------

    /// Begin recovery. `now` may be any moment: inputs that follow bring their own.
    #[must_use]
    pub fn open(config: CoreConfig, now: Now) -> Self {
        let log = Log::open(config.log.clone());
        Self {
            now,
            wall: now.wall,
            phase: Phase::Recovering,
            writes: Writes::Open,
            state: State::new(config.shard, config.shards, config.limits.clone()),
            log,
            term: Term(0),
            effects: VecDeque::new(),
            installed: Lsn(0),
            installed_state: Lsn(0),
            gate: Gate::default(),
            shown: FxHashMap::default(),
            reading: FxHashMap::default(),
            searching: FxHashMap::default(),
            waiting: Waiting::default(),
            fresh: Vec::new(),
            undurable_bytes: 0,
            sync_due: false,
            encoded: BytesMut::new(),
            anchor: clock::Anchor::default(),
            catalog_version: 0,
            snapshot: Snapshot::default(),
            sealed: false,
            upkeep: Upkeep::default(),
            sending: Sending::default(),
            spreading: Spreading::default(),
            claiming: Claiming::default(),
            producer_floors: vec![ProducerId(0); usize::from(config.shards)],
            counters: Counters::default(),
            restoring: None,
            recovery: None,
            config,
        }
    }

    /// One call. `token` is the caller's, unique among the calls not yet answered.
    pub fn call(&mut self, now: Now, token: u64, call: Call) {
        self.at(now);
        if self.phase != Phase::Serving {
            return self.fail(token, Error::Stopping);
        }
        if let Writes::Stopped(why) = &self.writes
            && self.end_is_unproved()
            && !matches!(call, Call::Status | Call::Stop)
        {
            let why = why.clone();
            return self.fail(token, Error::Stopped(why));
        }
        self.vouch_for_clock();
        match call {
            Call::Produce { request, raw } => self.produce(token, request, raw),
            Call::Fetch(fetch) => self.fetch(token, fetch),
            Call::Machine(Request::AcceptClock) => self.accept_clock(token),
            Call::Machine(Request::CourierAcknowledged { to, row, last }) => {
                self.courier_answered(token, to, row, last);
            }
            Call::Machine(request) => self.machine(token, &request),
            Call::OffsetAt { partition, at } => self.offset_at(token, partition, at),
            Call::WatchAssignment {
                group,
                member,
                joined,
                seen,
                wait_ms,
            } => {
                self.watch_assignment(token, group, member, joined, seen, wait_ms);
            }
            Call::WatchCatalog { seen, wait_ms } => self.watch_catalog(token, seen, wait_ms),
            Call::WatchForgotten { group, wait_ms } => {
                self.watch_forgotten(token, group, wait_ms);
            }
            Call::WatchSpread { revision, wait_ms } => {
                self.watch_spread(token, revision, wait_ms);
            }
            Call::Told {
                shard,
                about,
                outcome,
            } => {
                self.told(shard, about, outcome);
                self.answer(token, Answer::Heard);
            }
            Call::ProducerFloor { shard, floor } => {
                self.hear_producer_floor(shard, floor);
                self.answer(token, Answer::Heard);
            }
            Call::DescribePartition { partition } => self.describe_partition(token, partition),
            Call::TopicTotals => {
                let totals = self.topic_totals();
                self.answer(token, Answer::TopicTotals(totals));
            }
            Call::Status => {
                let status = Box::new(self.status());
                self.answer(token, Answer::Status(status));
            }
            Call::Stop => self.stop(token),
        }
    }

    /// The caller no longer waits for this call. What it wrote stays written. Whether the call was
    /// only waiting: then it is dropped without an answer; else its answer still comes.
    pub fn cancel(&mut self, token: u64) -> bool {
        self.waiting.remove(token).is_some()
    }

    /// The end of a round of calls: what they wrote goes to disk together.
    pub fn flush(&mut self, now: Now) {
        self.at(now);
        self.upkeep_after_round();
        self.snapshot_step();
        self.flush_log();
    }

    /// The storage answered.
    pub fn io_done(&mut self, now: Now, done: IoDone) {
        self.at(now);
        self.log.io_done(done);
        self.watch_space();
        if self.phase != Phase::Recovering && !self.config.log.sync_each_group {
            self.release(); // the log says nothing of a sync alone
            self.snapshot_publish();
        }
    }

    /// Deadlines and maintenance. Early calls do nothing.
    pub fn tick(&mut self, now: Now) {
        self.at(now);
        if self.phase == Phase::Recovering || self.phase == Phase::Stopped {
            return;
        }
        self.expire_waits();
        self.couriers_tick();
        self.spread_tick();
        self.claims_tick();
        self.upkeep_tick();
        self.snapshot_step();
        self.flush_log();
    }

    // --- outputs -------------------------------------------------------------------------------

    /// The next effect. Call until it gives nothing, after every input.
    pub fn poll(&mut self) -> Option<Effect> {
        loop {
            if let Some(effect) = self.effects.pop_front() {
                return Some(effect);
            }
            if let Some(event) = self.log.poll() {
                self.on_event(event);
                continue;
            }
            if !self.stop_step() {
                return None;
            }
        }
    }

    /// When `tick` is wanted next, in monotonic microseconds. `None`: only after other inputs.
    #[must_use]
    pub fn next_wakeup(&self) -> Option<u64> {
        match self.phase {
            Phase::Recovering | Phase::Stopped => None,
            Phase::Serving | Phase::Stopping(_) => [
                self.waiting.next_deadline(),
                self.upkeep.next(),
                self.sending.next(),
                self.spreading.next(),
                self.claiming.next(),
                self.snapshot.next(self.now, self.log.snapshot_waiting()),
            ]
            .into_iter()
            .flatten()
            .min(),
        }
    }

    /// Bytes appended that are not yet durable: the caller stops taking calls past its bound.
    #[must_use]
    pub fn undurable_bytes(&self) -> u64 {
        self.undurable_bytes
    }

    /// Whether this batch would be answered as a duplicate now: then no filter need see it.
    #[must_use]
    pub fn decides_duplicate(&self, now: Now, request: Produce) -> bool {
        let decision = decide(&self.state, now.wall, self.term, &Request::Produce(request));
        matches!(
            decision.map(|d| d.reply),
            Ok(Reply::Produced(Produced {
                duplicate: true,
                ..
            }))
        )
    }

    /// The machine's state, for look-ups that need no answer of their own (the driver's filters).
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The last lsn installed and the last one durable.
    #[must_use]
    pub fn lsns(&self) -> (Lsn, Lsn) {
        (self.installed, self.gate.durable())
    }

    // --- below -----------------------------------------------------------------------------------

    /// A start could not make the end of the log safe: nothing found there is told.
    fn end_is_unproved(&self) -> bool {
        self.recovery
            .as_ref()
            .is_some_and(|recovery| recovery.last > self.gate.durable())
    }

    /// What came of an [`Effect::Tell`].
    fn told(&mut self, shard: ShardId, about: About, outcome: Outcome) {
        match (about, outcome) {
            (About::Catalogue { revision }, _) => {
                self.spread_told(shard, revision, outcome == Outcome::Done);
            }
            // Refused: a later claim holds there, or the partition is gone.
            (
                About::Claim {
                    group,
                    partition,
                    epoch,
                },
                Outcome::Done | Outcome::Refused,
            ) => self.claimed(group, partition, epoch),
            (About::Claim { .. }, Outcome::Failed) => {} // asked again
        }
    }

    fn answer(&mut self, token: u64, answer: Answer) {
        self.effects.push_back(Effect::Answer { token, answer });
    }

    fn fail(&mut self, token: u64, error: Error) {
        self.counters.refused += 1;
        self.answer(token, Answer::Error(error));
    }
}
