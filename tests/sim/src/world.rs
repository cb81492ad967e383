//! One run: a shard, its disk, its clients and the network between them, in simulated time.
//!
//! Everything is an event with a moment; the earliest is next. The same seed gives the same run, bit
//! for bit. Absent on purpose: what is right (the checkers), what goes wrong when (the plan).

mod answers;
mod mishaps;

use std::collections::BTreeMap;

use millstream_batch::ids::{Lsn, PartitionSlot, Term, TimestampMs};
use millstream_log::Recovery;
use millstream_log::io::{FileId, Io, IoOp, Storage};
use millstream_machine::bounds::CLOCK_STEP_MS_MAX;
use millstream_shard::call::{Answer, Call};
use millstream_shard::core::{Effect, Now, ShardCore};

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
    Disk,
    Flush,
    Tick,
    Restart,
    Mishap(Mishap),
    SpaceBack,
}

/// A call that the core has and has not answered.
#[derive(Debug)]
struct Open {
    /// `None`: nobody hears the answer.
    to: Option<(usize, u64)>,
    asked: Asked,
    /// The last lsn installed when the core had taken the call in: what its answer may rest on.
    installed: Option<Lsn>,
}

#[derive(Debug)]
pub struct World {
    pub(crate) plan: Plan,
    pub(crate) now_us: u64,
    wall_shift_ms: i64,
    /// Logged time and the moment when the core began to doubt its clock.
    doubted: Option<(i64, u64)>,
    pub(crate) disk: SimDisk,
    layer: Box<dyn Layer>,
    pub(crate) core: Option<ShardCore>,
    /// The core is open for calls.
    pub(crate) ready: bool,
    /// The core has stopped in good order.
    pub(crate) stopped: bool,
    /// The core wrote that it failed: it is to be restarted.
    failed: bool,
    /// Requests that the disk had failed when the core was opened.
    failures_before: u64,
    incarnation: u64,
    clients: Vec<Box<dyn Client>>,
    network: Dice,
    chance: Dice,
    client_dice: Vec<Dice>,
    pub(crate) events: BTreeMap<(u64, u64), Event>,
    number: u64,
    open: BTreeMap<u64, Open>,
    token: u64,
    pub(crate) history: History,
    pub(crate) shadow: Shadow,
    crashes: Vec<u64>,
    crash_at_io: Option<u64>,
    disk_due: bool,
    flush_due: bool,
    tick_at: Option<u64>,
    /// Answers to calls of the auditor.
    heard: BTreeMap<u64, Answer>,
    pub(crate) auditing: bool,
    pub(crate) closing: bool,
    digest: u64,
    trace: bool,
}

impl World {
    #[must_use]
    pub fn new(seed: u64, layer: Box<dyn Layer>, trace: bool) -> Self {
        let mut dice = Dice::new(seed);
        let plan = Plan::of(&mut dice);
        let clients = plan.clients(&mut dice);
        let mut disk = SimDisk::new(dice.number());
        disk.set_faults(mishaps::faults(&plan));
        let client_dice = clients.iter().map(|_| dice.fork()).collect();
        let mut world = Self {
            now_us: 1,
            wall_shift_ms: 0,
            doubted: None,
            disk,
            layer,
            core: None,
            ready: false,
            stopped: false,
            failed: false,
            failures_before: 0,
            incarnation: dice.number(),
            network: dice.fork(),
            chance: dice.fork(),
            client_dice,
            events: BTreeMap::new(),
            number: 0,
            open: BTreeMap::new(),
            token: 0,
            history: History::default(),
            shadow: Shadow::new(),
            crashes: plan.crash_after_io.clone(),
            crash_at_io: None,
            disk_due: false,
            flush_due: false,
            tick_at: None,
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
            world.after(at, Event::Mishap(mishap));
        }
        world.arm_crash();
        world.restart();
        world
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
            Event::Disk => self.disk_step(),
            Event::Flush => {
                self.flush_due = false;
                self.with_core(|core, now| core.flush(now));
            }
            Event::Tick => {
                if self.tick_at == Some(at) {
                    self.tick_at = None;
                    self.with_core(|core, now| core.tick(now));
                }
            }
            Event::Restart => self.restart(),
            Event::Mishap(mishap) => self.mishap(mishap),
            Event::SpaceBack => self.disk.set_capacity(u64::MAX),
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

    pub(crate) fn restart(&mut self) {
        if self.core.is_some() {
            return;
        }
        self.layer.restarting(&mut self.disk);
        self.incarnation = self
            .incarnation
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        if self.chance.one_in(self.plan.flush_changes) && !self.auditing {
            let log = &mut self.plan.config.log;
            log.sync_each_group = !log.sync_each_group;
        }
        let mut config = self.plan.config.clone();
        config.log.incarnation = self.incarnation;
        (self.ready, self.stopped, self.failed) = (false, false, false);
        self.failures_before = self.disk.failures();
        if self.chance.one_in(self.plan.failing_starts) && !self.closing {
            // One of the syncs that make the end of the log safe fails.
            let which = self.chance.range(1, 5);
            self.disk.fail_sync_in(which);
        }
        self.say(|_| "--- open".to_owned());
        self.core = Some(ShardCore::open(config, self.now()));
        self.with_core(|_, _| ());
    }

    /// Give the core an input, then carry out what it wants.
    pub(crate) fn with_core(&mut self, input: impl FnOnce(&mut ShardCore, Now)) {
        let now = self.now();
        let Some(core) = &mut self.core else { return };
        input(core, now);
        while let Some(effect) = self.core.as_mut().and_then(ShardCore::poll) {
            self.effect(effect);
        }
        self.check_clock();
        if self.stopped {
            // What is still under way at the end of a process comes to its end without it.
            while self.disk.complete_one().is_some() {}
            self.core_gone();
            self.restart_soon();
            return;
        }
        if let Some(at) = self.core.as_ref().and_then(ShardCore::next_wakeup) {
            let at = at.max(self.now_us + 1);
            if self.tick_at.is_none_or(|before| at < before) {
                self.tick_at = Some(at);
                self.at(at, Event::Tick);
            }
        }
        if self.disk.pending() > 0 && !self.disk_due {
            self.disk_due = true;
            let latency = self.chance.skewed(20, 2_000) + self.layer.jitter_us();
            self.after(latency, Event::Disk);
        }
    }

    /// `logged_time_steps`: by a clock in doubt logged time moves by one step, beside the time that
    /// passes. Before that it may trail what was vouched for by one more.
    fn check_clock(&mut self) {
        let (Some((clock, at_us)), Some(core)) = (self.doubted, &self.core) else {
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

    fn effect(&mut self, effect: Effect) {
        match effect {
            Effect::Io(io) => {
                self.say(|_| format!("disk is asked {}", brief_io(&io)));
                if let IoOp::Rename {
                    from: FileId::Wal(_),
                    to: FileId::Spare(_),
                } = io.op
                {
                    self.history.counts.recycled += 1;
                }
                self.shadow.asked(&io);
                match self.layer.submit(io, &mut self.disk) {
                    Passed::On(io) => {
                        self.shadow.passed(&io);
                        self.disk.submit(io);
                    }
                    Passed::Answered(done) => {
                        let now = self.now();
                        if let Some(core) = &mut self.core {
                            core.io_done(now, done);
                        }
                    }
                }
            }
            Effect::Answer { token, answer } => self.answered(token, answer),
            Effect::Ready(recovery) => self.recovered(&recovery),
            Effect::Failed(why) => {
                self.say(|_| format!("failed: {why}"));
                self.history.counts.failures += 1;
                if self.disk.failures() == self.failures_before {
                    let what = format!("the shard failed and the disk did not: {why}");
                    self.history.violation("no_acked_loss", what);
                }
                let while_us = self.chance.skewed(1_000, 200_000);
                self.start_again(while_us);
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
                let clock = self.core.as_ref().map_or(0, |core| core.state().clock().0);
                self.doubted = Some((clock, self.now_us));
            }
            Effect::ClockDoubted(None) => {
                self.say(|_| "the wall clock is believed again".to_owned());
                self.doubted = None;
            }
            Effect::Stopped => self.stopped = true,
            // For other shards: there are none.
            Effect::Tell { .. } | Effect::Courier { .. } | Effect::ProducerFloor(_) => {}
        }
    }

    fn recovered(&mut self, recovery: &Recovery) {
        self.say(|_| format!("ready: {recovery:?}"));
        self.ready = true;
        if let Some(why) = &recovery.read_only {
            if self.disk.failures() > self.failures_before {
                // The disk failed while the shard opened: the next start will do.
                self.ready = false;
                return self.start_again(10_000);
            }
            self.history.read_only = true;
            self.shadow.started(recovery.last);
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
            && self.disk.failures() == self.failures_before
        {
            let what = format!("damage is reported, and no bit was flipped: {damage:?}");
            self.history.violation("damage_reported", what);
        }
        let Some(core) = &self.core else { return };
        match self.shadow.recovered(recovery.last, core.state()) {
            Ok(lost) => self.lost(&lost, recovery.term),
            Err(what) => self.history.violation("rebuilt_equals_live", what),
        }
    }

    /// These batches are past the end that was recovered, and none of them was synced.
    fn lost(&mut self, lost: &[(PartitionSlot, u64, Place)], term: Term) {
        let Some(core) = &self.core else { return };
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

    fn disk_step(&mut self) {
        self.disk_due = false;
        if self
            .crash_at_io
            .is_some_and(|at| self.disk.completed() >= at)
            && !self.auditing
            && !self.closing
        {
            self.arm_crash();
            if self.chance.one_in(3) {
                self.kill();
            } else {
                self.crash();
            }
            return;
        }
        let Some(done) = self.disk.complete_one() else {
            return;
        };
        self.shadow.done(&done);
        let done = self.layer.done(done, &mut self.disk);
        self.say(|_| {
            format!(
                "disk answers {:?}: {}",
                done.id,
                done.result
                    .as_ref()
                    .map_or_else(|e| e.to_string(), |_| "ok".to_owned())
            )
        });
        self.with_core(|core, now| core.io_done(now, done));
    }

    fn arm_crash(&mut self) {
        self.crash_at_io = self.crashes.pop().map(|more| self.disk.completed() + more);
    }

    // --- calls and answers -----------------------------------------------------------------------

    fn arrive(&mut self, client: usize, tag: u64, call: Call, silent: bool) {
        let to = (!silent).then_some((client, tag));
        if !self.ready || self.core.is_none() {
            if let Some((client, tag)) = to {
                let late = self.network.skewed(100, 20_000);
                self.after(late, Event::Lost { client, tag });
            }
            return;
        }
        self.say(|_| format!("client {client} #{tag} asks {}", brief(&call)));
        self.call(to, call);
        if !self.flush_due {
            self.flush_due = true;
            let round = self.chance.skewed(1, 50);
            self.after(round, Event::Flush);
        }
    }

    fn call(&mut self, to: Option<(usize, u64)>, call: Call) -> u64 {
        let asked = Asked::arrived(&call, &mut self.history);
        let state = self.core.as_ref().expect("it is ready").state();
        let early = self.layer.early(&call, state);
        let call = self.layer.call(call, state);
        self.token += 1;
        let token = self.token;
        let open = Open {
            to,
            asked,
            installed: None,
        };
        self.open.insert(token, open);
        if let Some(answer) = early {
            self.answered(token, answer);
        }
        self.with_core(|core, now| core.call(now, token, call));
        if let (Some(open), Some(core)) = (self.open.get_mut(&token), &self.core) {
            open.installed = Some(core.lsns().0);
        }
        token
    }

    fn answered(&mut self, token: u64, answer: Answer) {
        let Some(Open {
            to,
            asked,
            installed,
        }) = self.open.remove(&token)
        else {
            return;
        };
        let answer = self.layer.answer(answer);
        self.note(token);
        self.history.answered(&asked, &answer);
        self.check_promise(&asked, &answer);
        self.check_told(&asked, &answer, installed);
        match to {
            None => drop(self.heard.insert(token, answer)),
            Some((client, tag)) => {
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

    /// Ask the core and wait for the answer, while nothing else happens but disk and time.
    pub(crate) fn ask(&mut self, call: Call) -> Option<Answer> {
        let token = self.call(None, call);
        for _ in 0..100_000 {
            if let Some(answer) = self.heard.remove(&token) {
                return Some(answer);
            }
            self.with_core(|core, now| core.flush(now));
            if self.disk.pending() > 0 {
                self.now_us += 50;
                self.disk_step();
            } else {
                let wanted = self.core.as_ref()?.next_wakeup().unwrap_or(0);
                self.now_us = (self.now_us + 50).max(wanted.min(self.now_us + 1_000_000));
                self.with_core(|core, now| core.tick(now));
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
        self.digest ^ self.disk.digest().rotate_left(1)
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
