//! One run: shards, each with its disk, their clients and the network between them all, in simulated time.
//!
//! Shards crash and recover alone, and what they send each other is lost, doubled and late like all mail.
//! Everything is an event with a moment; the earliest is next. The same seed gives the same run, bit
//! for bit. Absent on purpose: what is right (the checkers), what goes wrong when (the plan).

mod answers;
mod mishaps;
mod routes;

use std::collections::BTreeMap;

use millstream_batch::ids::{Lsn, PartitionSlot, ShardId, Term, TimestampMs};
use millstream_log::Recovery;
use millstream_log::io::{FileId, Io, IoOp, Storage};
use millstream_machine::Row;
use millstream_machine::bounds::CLOCK_STEP_MS_MAX;
use millstream_machine::request::{Reply, Request};
use millstream_shard::call::{About, Answer, Call, Outcome};
use millstream_shard::core::{CoreConfig, Effect, Now, ShardCore};

use crate::clients::{Client, Scene};
use crate::dice::Dice;
use crate::disk::SimDisk;
use crate::history::{Asked, History, Lost};
use crate::layer::{Layer, Passed};
use crate::plan::{Mishap, Plan};
use crate::shadow::{Place, Shadow};

/// Where the wall clock starts.
const WALL_START_MS: i64 = 1_700_000_000_000;

#[derive(Debug)]
pub(crate) enum Event {
    Wake(usize),
    Arrive {
        client: usize,
        tag: u64,
        call: Box<Call>,
        silent: bool,
    },
    Answer {
        client: usize,
        tag: u64,
        answer: Box<Answer>,
    },
    Lost {
        client: usize,
        tag: u64,
    },
    /// A call of one shard to another.
    Mail {
        to: usize,
        call: Box<Call>,
        from: To,
    },
    Disk(usize),
    Flush(usize),
    Tick(usize),
    Restart(usize),
    Mishap(usize, Mishap),
    SpaceBack(usize),
}

/// Who hears an answer.
#[derive(Clone, Debug)]
pub(crate) enum To {
    Client(usize, u64),
    /// A shard that sent messages of this row.
    Source(usize, Row),
    /// A shard that told another something.
    Teller(usize, About),
    /// The auditor, or nobody.
    Heard,
}

/// A call that a core has and has not answered.
#[derive(Debug)]
struct Open {
    shard: usize,
    to: To,
    asked: Asked,
    /// The last lsn installed when the core had taken the call in: what its answer may rest on.
    installed: Option<Lsn>,
}

/// A shard with its disk, and what is known of both.
#[derive(Debug)]
pub(crate) struct Shard {
    /// How the log is flushed is changed at restarts.
    config: CoreConfig,
    /// Logged time and the moment when the core began to doubt its clock.
    doubted: Option<(i64, u64)>,
    pub(crate) disk: SimDisk,
    layer: Box<dyn Layer>,
    pub(crate) core: Option<ShardCore>,
    /// The core is open for calls.
    pub(crate) ready: bool,
    /// The core has stopped in good order.
    stopped: bool,
    /// The core wrote that it failed: it is to be restarted.
    failed: bool,
    /// Requests that the disk had failed when the core was opened.
    failures_before: u64,
    incarnation: u64,
    pub(crate) shadow: Shadow,
    crashes: Vec<u64>,
    crash_at_io: Option<u64>,
    disk_due: bool,
    flush_due: bool,
    tick_at: Option<u64>,
}

#[derive(Debug)]
pub struct World {
    pub(crate) plan: Plan,
    pub(crate) now_us: u64,
    wall_shift_ms: i64,
    pub(crate) shards: Vec<Shard>,
    clients: Vec<Box<dyn Client>>,
    network: Dice,
    chance: Dice,
    client_dice: Vec<Dice>,
    pub(crate) events: BTreeMap<(u64, u64), Event>,
    number: u64,
    open: BTreeMap<u64, Open>,
    token: u64,
    pub(crate) history: History,
    /// Answers to calls of the auditor.
    heard: BTreeMap<u64, Answer>,
    pub(crate) auditing: bool,
    pub(crate) closing: bool,
    digest: u64,
    trace: bool,
}

impl World {
    #[must_use]
    pub fn new(seed: u64, layer: impl Fn() -> Box<dyn Layer>, trace: bool) -> Self {
        let mut dice = Dice::new(seed);
        let plan = Plan::of(&mut dice);
        let clients = plan.clients(&mut dice);
        let mut shard = |number: u16| {
            let mut disk = SimDisk::new(dice.number());
            disk.set_faults(mishaps::faults(&plan));
            Shard {
                config: CoreConfig {
                    shard: ShardId(number),
                    shards: plan.shards,
                    ..plan.config.clone()
                },
                doubted: None,
                disk,
                layer: layer(),
                core: None,
                ready: false,
                stopped: false,
                failed: false,
                failures_before: 0,
                incarnation: dice.number(),
                shadow: Shadow::new(ShardId(number), plan.shards),
                crashes: plan.crash_after_io.clone(),
                crash_at_io: None,
                disk_due: false,
                flush_due: false,
                tick_at: None,
            }
        };
        let shards: Vec<Shard> = (0..plan.shards).map(&mut shard).collect();
        let client_dice = clients.iter().map(|_| dice.fork()).collect();
        let mut world = Self {
            now_us: 1,
            wall_shift_ms: 0,
            shards,
            network: dice.fork(),
            chance: dice.fork(),
            client_dice,
            events: BTreeMap::new(),
            number: 0,
            open: BTreeMap::new(),
            token: 0,
            history: History::default(),
            heard: BTreeMap::new(),
            auditing: false,
            closing: false,
            digest: 0xcbf2_9ce4_8422_2325,
            trace,
            clients,
            plan,
        };
        world.say(|w| format!("{:?}", w.plan));
        for client in 0..world.clients.len() {
            world.after(1 + client as u64, Event::Wake(client));
        }
        for (at, mishap) in world.plan.mishaps.clone() {
            let shard = world.any_shard();
            world.after(at, Event::Mishap(shard, mishap));
        }
        for shard in 0..world.shards.len() {
            world.arm_crash(shard);
            world.restart(shard);
        }
        world
    }

    fn any_shard(&mut self) -> usize {
        match self.shards.len() {
            1 => 0,
            shards => self.chance.range(0, shards as u64) as usize,
        }
    }

    /// Until the earliest event is past `until_us`, or something is found broken.
    pub(crate) fn run_until(&mut self, until_us: u64) {
        while self.history.violations.is_empty() {
            let Some((&(at, _), _)) = self.events.first_key_value() else {
                return;
            };
            if at > until_us {
                return;
            }
            self.step();
        }
    }

    /// The next event, whenever it is.
    pub(crate) fn step(&mut self) -> bool {
        let Some(((at, _), event)) = self.events.pop_first() else {
            return false;
        };
        self.now_us = self.now_us.max(at);
        self.note(at);
        match event {
            Event::Wake(client) => self.with_client(client, |client, scene| client.wake(scene)),
            Event::Answer {
                client,
                tag,
                answer,
            } => {
                self.say(|_| format!("client {client} #{tag} hears {answer:?}"));
                self.with_client(client, |client, scene| client.answer(scene, tag, *answer));
            }
            Event::Lost { client, tag } => {
                self.with_client(client, |client, scene| client.lost(scene, tag));
            }
            Event::Arrive {
                client,
                tag,
                call,
                silent,
            } => self.arrive(client, tag, *call, silent),
            Event::Mail { to, call, from } => self.mail_arrives(to, *call, from),
            Event::Disk(shard) => self.disk_step(shard),
            Event::Flush(shard) => {
                self.shards[shard].flush_due = false;
                self.with_core(shard, |core, now| core.flush(now));
            }
            Event::Tick(shard) => {
                if self.shards[shard].tick_at == Some(at) {
                    self.shards[shard].tick_at = None;
                    self.with_core(shard, |core, now| core.tick(now));
                }
            }
            Event::Restart(shard) => self.restart(shard),
            Event::Mishap(shard, mishap) => self.mishap(shard, mishap),
            Event::SpaceBack(shard) => self.shards[shard].disk.set_capacity(u64::MAX),
        }
        true
    }

    // --- the core --------------------------------------------------------------------------------

    pub(crate) fn now(&self) -> Now {
        let wall = WALL_START_MS + self.wall_shift_ms + (self.now_us / 1_000) as i64;
        Now {
            wall: TimestampMs(wall),
            mono_us: self.now_us,
        }
    }

    pub(crate) fn restart(&mut self, at: usize) {
        let now = self.now();
        let shard = &mut self.shards[at];
        if shard.core.is_some() {
            return;
        }
        shard.layer.restarting(&mut shard.disk);
        shard.incarnation = shard
            .incarnation
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        if self.chance.one_in(self.plan.flush_changes) && !self.auditing {
            let log = &mut shard.config.log;
            log.sync_each_group = !log.sync_each_group;
        }
        let mut config = shard.config.clone();
        config.log.incarnation = shard.incarnation;
        (shard.ready, shard.stopped, shard.failed) = (false, false, false);
        shard.failures_before = shard.disk.failures();
        if self.chance.one_in(self.plan.failing_starts) && !self.closing {
            // One of the syncs that make the end of the log safe fails.
            let which = self.chance.range(1, 5);
            shard.disk.fail_sync_in(which);
        }
        shard.core = Some(ShardCore::open(config, now));
        self.say(|_| format!("--- shard {at} opens"));
        self.with_core(at, |_, _| ());
    }

    /// Give a core an input, then carry out what it wants.
    pub(crate) fn with_core(&mut self, at: usize, input: impl FnOnce(&mut ShardCore, Now)) {
        let now = self.now();
        let Some(core) = &mut self.shards[at].core else {
            return;
        };
        input(core, now);
        while let Some(effect) = self.shards[at].core.as_mut().and_then(ShardCore::poll) {
            self.effect(at, effect);
        }
        self.check_clock(at);
        let shard = &mut self.shards[at];
        if shard.stopped {
            // What is still under way at the end of a process comes to its end without it.
            while shard.disk.complete_one().is_some() {}
            self.core_gone(at);
            self.restart_soon(at);
            return;
        }
        if let Some(wanted) = shard.core.as_ref().and_then(ShardCore::next_wakeup) {
            let wanted = wanted.max(self.now_us + 1);
            if shard.tick_at.is_none_or(|before| wanted < before) {
                shard.tick_at = Some(wanted);
                self.at(wanted, Event::Tick(at));
            }
        }
        let shard = &mut self.shards[at];
        if shard.disk.pending() > 0 && !shard.disk_due {
            shard.disk_due = true;
            let latency = self.chance.skewed(20, 2_000) + shard.layer.jitter_us();
            self.after(latency, Event::Disk(at));
        }
    }

    /// `logged_time_steps`: by a clock in doubt logged time moves by one step, beside the time that
    /// passes. Before that it may trail what was vouched for by one more.
    fn check_clock(&mut self, at: usize) {
        let shard = &self.shards[at];
        let (Some((clock, at_us)), Some(core)) = (shard.doubted, &shard.core) else {
            return;
        };
        let moved = core.state().clock().0 - clock;
        let passed = ((self.now_us - at_us) / 1_000) as i64 + 1;
        if moved > passed + 2 * CLOCK_STEP_MS_MAX {
            let what =
                format!("logged time moved by {moved} ms in {passed} ms, its clock in doubt");
            self.history.violation("logged_time_steps", what);
        }
    }

    fn effect(&mut self, at: usize, effect: Effect) {
        match effect {
            Effect::Io(io) => {
                self.say(|_| format!("disk {at} is asked {}", brief_io(&io)));
                if let IoOp::Rename {
                    from: FileId::Wal(_),
                    to: FileId::Spare(_),
                } = io.op
                {
                    self.history.counts.recycled += 1;
                }
                let now = self.now();
                let shard = &mut self.shards[at];
                shard.shadow.asked(&io);
                match shard.layer.submit(io, &mut shard.disk) {
                    Passed::On(io) => {
                        shard.shadow.passed(&io);
                        shard.disk.submit(io);
                    }
                    Passed::Answered(done) => {
                        if let Some(core) = &mut shard.core {
                            core.io_done(now, done);
                        }
                    }
                }
            }
            Effect::Answer { token, answer } => self.answered(token, answer),
            Effect::Ready(recovery) => self.recovered(at, &recovery),
            Effect::Failed(why) => {
                self.say(|_| format!("shard {at} failed: {why}"));
                self.history.counts.failures += 1;
                let shard = &self.shards[at];
                if shard.disk.failures() == shard.failures_before {
                    let what = format!("the shard failed and the disk did not: {why}");
                    self.history.violation("no_acked_loss", what);
                }
                let while_us = self.chance.skewed(1_000, 200_000);
                self.start_again(at, while_us);
            }
            Effect::SpaceGone(why) => {
                self.say(|_| format!("space gone: {why}"));
                self.history.counts.full += 1;
            }
            Effect::SpaceBack => self.say(|_| "space back".to_owned()),
            Effect::SnapshotPublished(begin) => {
                self.say(|_| format!("snapshot of {begin}"));
                self.history.counts.snapshots += 1;
            }
            Effect::Damaged(words) => self.say(|_| words),
            Effect::ClockDoubted(Some(words)) => {
                self.say(|_| words);
                let shard = &mut self.shards[at];
                let clock = shard.core.as_ref().map_or(0, |core| core.state().clock().0);
                shard.doubted = Some((clock, self.now_us));
            }
            Effect::ClockDoubted(None) => {
                self.say(|_| "the wall clock is believed again".to_owned());
                self.shards[at].doubted = None;
            }
            Effect::OutOfStep(words) => self.history.violation("couriers_kept", words),
            Effect::Stopped => self.shards[at].stopped = true,
            Effect::Tell {
                shard,
                request,
                about,
            } => {
                self.history.counts.messages += 1;
                if let About::Catalogue { revision } = about {
                    let lsn = self.shards[at].shadow.change(revision);
                    self.check_sent(at, lsn, || format!("revision {revision} to {shard}"));
                }
                let call = || Call::Machine(request.clone());
                self.mail(usize::from(shard.0), call, &To::Teller(at, about));
            }
            Effect::Courier {
                to,
                row,
                k,
                message,
            } => {
                self.history.counts.messages += 1;
                let lsn = self.shards[at].shadow.queued(to.0, k);
                self.check_sent(at, lsn, || format!("message {k} to {to}"));
                let from = ShardId(at as u16);
                let call = || {
                    Call::Machine(Request::ApplyCourier {
                        from,
                        row,
                        k,
                        message: message.clone(),
                    })
                };
                self.mail(usize::from(to.0), call, &To::Source(at, row));
            }
            Effect::ProducerFloor(floor) => {
                let shard = ShardId(at as u16);
                for to in (0..self.shards.len()).filter(|to| *to != at) {
                    self.mail(to, || Call::ProducerFloor { shard, floor }, &To::Heard);
                }
            }
        }
    }

    /// `couriers_kept`: what is told leaves only when what decided it is on the disk.
    fn check_sent(&mut self, at: usize, lsn: Option<Lsn>, what: impl Fn() -> String) {
        let synced = self.shards[at].shadow.synced();
        if lsn.is_none_or(|lsn| lsn > synced) {
            let what = format!(
                "shard {at} sends {}, of lsn {lsn:?}; {synced} is synced",
                what()
            );
            self.history.violation("couriers_kept", what);
        }
    }

    fn recovered(&mut self, at: usize, recovery: &Recovery) {
        self.say(|_| format!("shard {at} is ready: {recovery:?}"));
        let shard = &mut self.shards[at];
        shard.ready = true;
        if let Some(why) = &recovery.read_only {
            if shard.disk.failures() > shard.failures_before {
                // The disk failed while the shard opened: the next start will do.
                shard.ready = false;
                return self.start_again(at, 10_000);
            }
            self.history.read_only = true;
            shard.shadow.started(recovery.last);
            self.history.counts.read_only += 1;
            if self.history.flips == 0 {
                self.history.violation(
                    "damage_reported",
                    format!("read-only, and no bit was flipped: {why}"),
                );
            }
            return;
        }
        // A footer that a kill left unsynced and a power cut then tore is made anew: nothing is lost.
        let harmless = |what: &str| what.contains("made anew");
        let damage = recovery
            .damage
            .iter()
            .find(|damage| !harmless(&damage.what));
        if let Some(damage) = damage
            && self.history.flips == 0
            && shard.disk.failures() == shard.failures_before
        {
            let what = format!("damage is reported, and no bit was flipped: {damage:?}");
            self.history.violation("damage_reported", what);
        }
        let Some(core) = &shard.core else { return };
        match shard.shadow.recovered(recovery.last, core.state()) {
            Ok(lost) => self.lost(at, &lost, recovery.term),
            Err(what) => self.history.violation("rebuilt_equals_live", what),
        }
    }

    /// These batches are past the end that was recovered, and none of them was synced.
    fn lost(&mut self, at: usize, lost: &[(PartitionSlot, u64, Place)], term: Term) {
        let Some(core) = &self.shards[at].core else {
            return;
        };
        for (slot, base, place) in lost {
            let Some(view) = core.state().partition_of(*slot) else {
                continue; // its creation is lost too, and was told to nobody
            };
            let lost = Lost {
                base: *base,
                last: place.last_offset,
                epoch: place.epoch,
            };
            self.history.lose(view.partition, lost, term);
        }
    }

    fn disk_step(&mut self, at: usize) {
        let shard = &mut self.shards[at];
        shard.disk_due = false;
        if shard
            .crash_at_io
            .is_some_and(|io| shard.disk.completed() >= io)
            && !self.auditing
            && !self.closing
        {
            self.arm_crash(at);
            if self.chance.one_in(3) {
                self.kill(at);
            } else {
                self.crash(at);
            }
            return;
        }
        let Some(done) = shard.disk.complete_one() else {
            return;
        };
        shard.shadow.done(&done);
        let done = shard.layer.done(done, &mut shard.disk);
        self.say(|_| {
            format!(
                "disk {at} answers {:?}: {}",
                done.id,
                done.result
                    .as_ref()
                    .map_or_else(|e| e.to_string(), |_| "ok".to_owned())
            )
        });
        self.with_core(at, |core, now| core.io_done(now, done));
    }

    fn arm_crash(&mut self, at: usize) {
        let shard = &mut self.shards[at];
        shard.crash_at_io = shard
            .crashes
            .pop()
            .map(|more| shard.disk.completed() + more);
    }

    // --- mail between shards -----------------------------------------------------------------------

    /// Over the same network as all else: it may be lost, or come twice, or late.
    fn mail(&mut self, to: usize, call: impl Fn() -> Call, from: &To) {
        let times = match () {
            () if self.network.one_in(self.plan.loss) => 0,
            () if self.network.one_in(self.plan.twice) => 2,
            () => 1,
        };
        for _ in 0..times {
            let way = self.way_us();
            let (call, from) = (Box::new(call()), from.clone());
            self.after(way, Event::Mail { to, call, from });
        }
    }

    fn mail_arrives(&mut self, to: usize, call: Call, from: To) {
        if !self.shards[to].ready || self.shards[to].core.is_none() {
            return;
        }
        self.say(|_| format!("shard {to} is asked by another {}", brief(&call)));
        self.call(to, from, call);
        self.flush_soon(to);
    }

    // --- calls and answers -----------------------------------------------------------------------

    fn arrive(&mut self, client: usize, tag: u64, call: Call, silent: bool) {
        let to = if silent {
            To::Heard
        } else {
            To::Client(client, tag)
        };
        let at = usize::from(routes::shard_of(&call, self.plan.shards).0);
        if !self.shards[at].ready || self.shards[at].core.is_none() {
            if let To::Client(client, tag) = to {
                let late = self.network.skewed(100, 20_000);
                self.after(late, Event::Lost { client, tag });
            }
            return;
        }
        self.say(|_| format!("client {client} #{tag} asks shard {at} {}", brief(&call)));
        self.call(at, to, call);
        self.flush_soon(at);
    }

    fn flush_soon(&mut self, at: usize) {
        if !self.shards[at].flush_due {
            self.shards[at].flush_due = true;
            let round = self.chance.skewed(1, 50);
            self.after(round, Event::Flush(at));
        }
    }

    fn call(&mut self, at: usize, to: To, call: Call) -> u64 {
        let asked = Asked::arrived(&call, &mut self.history);
        let shard = &mut self.shards[at];
        let state = shard.core.as_ref().expect("it is ready").state();
        if let Call::Machine(Request::DeleteGroup { group, .. }) = &call {
            self.history.deleting(group, state.group_epoch(group));
        }
        let early = shard.layer.early(&call, state);
        let call = shard.layer.call(call, state);
        self.token += 1;
        let token = self.token;
        let open = Open {
            shard: at,
            to,
            asked,
            installed: None,
        };
        self.open.insert(token, open);
        if let Some(answer) = early {
            self.answered(token, answer);
        }
        self.with_core(at, |core, now| core.call(now, token, call));
        if let (Some(open), Some(core)) = (self.open.get_mut(&token), &self.shards[at].core) {
            open.installed = Some(core.lsns().0);
        }
        token
    }

    fn answered(&mut self, token: u64, answer: Answer) {
        let Some(Open {
            shard,
            to,
            asked,
            installed,
        }) = self.open.remove(&token)
        else {
            return;
        };
        let answer = self.shards[shard].layer.answer(answer);
        self.note(token);
        self.history.answered(&asked, &answer);
        self.check_promise(shard, &asked, &answer);
        self.check_told(shard, &asked, &answer, installed);
        match to {
            To::Heard => drop(self.heard.insert(token, answer)),
            To::Source(source, row) => {
                if let Answer::Reply(Reply::CourierTaken { last }) = answer {
                    let to = ShardId(shard as u16);
                    let request = || Request::CourierAcknowledged { to, row, last };
                    self.mail(source, || Call::Machine(request()), &To::Heard);
                }
            }
            To::Teller(source, about) => {
                let outcome = Outcome::of(&answer);
                let told = || Call::Told {
                    shard: ShardId(shard as u16),
                    about: about.clone(),
                    outcome,
                };
                self.mail(source, told, &To::Heard);
            }
            To::Client(client, tag) => {
                let way = self.way_us();
                let event = if self.network.one_in(self.plan.loss) {
                    Event::Lost { client, tag }
                } else {
                    Event::Answer {
                        client,
                        tag,
                        answer: Box::new(answer),
                    }
                };
                self.after(way, event);
            }
        }
    }

    /// Ask the core that decides and wait for the answer, while nothing else happens but disk and time.
    pub(crate) fn ask(&mut self, call: Call) -> Option<Answer> {
        let at = usize::from(routes::shard_of(&call, self.plan.shards).0);
        self.ask_shard(at, call)
    }

    pub(crate) fn ask_shard(&mut self, at: usize, call: Call) -> Option<Answer> {
        let token = self.call(at, To::Heard, call);
        for _ in 0..100_000 {
            if let Some(answer) = self.heard.remove(&token) {
                return Some(answer);
            }
            self.with_core(at, |core, now| core.flush(now));
            if self.shards[at].disk.pending() > 0 {
                self.now_us += 50;
                self.disk_step(at);
            } else {
                let core = self.shards[at].core.as_ref()?;
                let wanted = core.next_wakeup().unwrap_or(0);
                self.now_us = (self.now_us + 50).max(wanted.min(self.now_us + 1_000_000));
                self.with_core(at, |core, now| core.tick(now));
            }
        }
        self.history
            .violation("no_acked_loss", "a call is never answered".to_owned());
        None
    }

    // --- clients and network -----------------------------------------------------------------------

    fn with_client(&mut self, index: usize, act: impl FnOnce(&mut dyn Client, &mut Scene<'_>)) {
        let mut scene = Scene {
            now_us: self.now_us,
            dice: &mut self.client_dice[index],
            history: &mut self.history,
            out: Vec::new(),
            wake_us: None,
            closing: self.closing,
            shards: self.plan.shards,
        };
        act(self.clients[index].as_mut(), &mut scene);
        let (out, wake) = (scene.out, scene.wake_us);
        if let Some(at) = wake {
            self.at(at, Event::Wake(index));
        }
        for (tag, call) in out {
            self.send(index, tag, call);
        }
    }

    fn send(&mut self, client: usize, tag: u64, call: Call) {
        if self.network.one_in(self.plan.loss) {
            let late = self.way_us() * 4;
            return self.after(late, Event::Lost { client, tag });
        }
        if let Call::Produce { request, raw } = &call
            && request.pid.0 != 0
            && self.network.one_in(self.plan.twice)
        {
            let again = Call::Produce {
                request: *request,
                raw: raw.clone(),
            };
            let way = self.way_us() * 3;
            self.after(
                way,
                Event::Arrive {
                    client,
                    tag,
                    call: Box::new(again),
                    silent: true,
                },
            );
        }
        let way = self.way_us();
        self.after(
            way,
            Event::Arrive {
                client,
                tag,
                call: Box::new(call),
                silent: false,
            },
        );
    }

    fn way_us(&mut self) -> u64 {
        self.network.skewed(10, self.plan.delay_us)
    }

    pub(crate) fn clients_are_idle(&self) -> bool {
        self.clients.iter().all(|client| client.is_idle())
    }

    pub(crate) fn wake_all(&mut self) {
        for client in 0..self.clients.len() {
            self.after(1, Event::Wake(client));
        }
    }

    // --- time and trace ------------------------------------------------------------------------------

    pub(crate) fn after(&mut self, us: u64, event: Event) {
        self.at(self.now_us + us, event);
    }

    fn at(&mut self, at_us: u64, event: Event) {
        self.number += 1;
        self.events.insert((at_us, self.number), event);
    }

    fn note(&mut self, what: u64) {
        self.digest =
            (self.digest ^ what ^ self.number.rotate_left(32)).wrapping_mul(0x0000_0100_0000_01b3);
    }

    /// A fingerprint of everything that happened and of every byte on the disk.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let disks = self.shards.iter().map(|shard| shard.disk.digest());
        disks.fold(self.digest, |digest, disk| {
            digest.rotate_left(7) ^ disk.rotate_left(1)
        })
    }

    pub(crate) fn say(&self, words: impl FnOnce(&Self) -> String) {
        if self.trace {
            use std::io::Write;
            let _closed = writeln!(std::io::stdout(), "{:>10} {}", self.now_us, words(self));
        }
    }
}

fn brief_io(io: &Io) -> String {
    match &io.op {
        IoOp::Write {
            file,
            at,
            len,
            sync,
            ..
        } => {
            format!(
                "{:?}: write {} at {at}, {len} bytes, sync {sync}",
                io.id,
                file.file_name()
            )
        }
        IoOp::WriteFile { file, bytes } => format!(
            "{:?}: write {}, {} bytes",
            io.id,
            file.file_name(),
            bytes.len()
        ),
        other => format!("{:?}: {other:?}", io.id),
    }
}

fn brief(call: &Call) -> String {
    match call {
        Call::Produce { request, .. } => format!("{request:?}"),
        other => format!("{other:?}"),
    }
}
