//! The core without its thread, on a disk in memory that answers when the test says so: what is told
//! after a failed write, what waits for a sync, what is looked at again.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use millstream_batch::ids::{
    Offset, Partition, ProducerEpoch, ProducerId, Sequence, ShardId, TimestampMs, TopicId,
};
use millstream_log::Config;
use millstream_log::buffer::AlignedBuf;
use millstream_log::io::{FileId, Io, IoDone, IoError, IoErrorKind, IoOp, IoOutput};
use millstream_machine::Row;
use millstream_machine::request::{Produce, Refusal, Reply, Request};
use millstream_machine::topics::TopicConfig;
use millstream_shard::call::{About, Answer, Call, Error, Fetch, Outcome};
use millstream_shard::core::{CoreConfig, Effect, Now, ShardCore};

const TOPIC: TopicId = TopicId([7; 16]);
const HOUR_MS: i64 = 3_600_000;

/// A core, its disk, and what came of it so far.
struct World {
    core: ShardCore,
    files: BTreeMap<FileId, Vec<u8>>,
    asked: VecDeque<Io>,
    answers: BTreeMap<u64, Answer>,
    /// Writes of log files fail from now on.
    is_broken: bool,
    /// No file can be allocated.
    is_full: bool,
    now: Now,
    ready: bool,
    allocations: usize,
    snapshots: usize,
    /// Messages to other shards, as they were sent.
    sent: Vec<(ShardId, u64)>,
    /// What other shards were told.
    told: Vec<(ShardId, About)>,
}

fn config(sync_each_group: bool) -> CoreConfig {
    let log = Config {
        segment_bytes: 1 << 20,
        first_segment_bytes: 1 << 20,
        group_bytes_max: 1 << 16,
        hot_tail_bytes_max: 1 << 20,
        read_bytes_max: 36 << 20,
        spares_ready: 1,
        recycle_max: 1,
        sync_each_group,
        incarnation: 42,
    };
    CoreConfig::new(ShardId(0), 1, log)
}

impl World {
    fn open(config: CoreConfig, files: BTreeMap<FileId, Vec<u8>>, now: Now) -> Self {
        let mut world = Self::begin(config, files, now);
        world.settle();
        assert!(world.ready, "recovery ends");
        world
    }

    fn begin(config: CoreConfig, files: BTreeMap<FileId, Vec<u8>>, now: Now) -> Self {
        Self {
            core: ShardCore::open(config, now),
            files,
            asked: VecDeque::new(),
            answers: BTreeMap::new(),
            is_broken: false,
            is_full: false,
            now,
            ready: false,
            allocations: 0,
            snapshots: 0,
            sent: Vec::new(),
            told: Vec::new(),
        }
    }

    fn poll(&mut self) {
        while let Some(effect) = self.core.poll() {
            match effect {
                Effect::Io(io) => self.asked.push_back(io),
                Effect::Answer { token, answer } => {
                    let before = self.answers.insert(token, answer);
                    assert!(before.is_none(), "{token} is answered once");
                }
                Effect::Ready(_) => self.ready = true,
                Effect::SnapshotPublished(_) => self.snapshots += 1,
                Effect::Courier { to, k, .. } => self.sent.push((to, k)),
                Effect::Tell { shard, about, .. } => self.told.push((shard, about)),
                _ => {}
            }
        }
    }

    /// The disk answers what was asked first.
    fn step(&mut self) {
        let io = self.asked.pop_front().expect("something was asked");
        let result = self.carry(io.op);
        self.core.io_done(self.now, IoDone { id: io.id, result });
        self.poll();
    }

    fn settle(&mut self) {
        self.poll();
        while !self.asked.is_empty() {
            self.step();
        }
    }

    fn carry(&mut self, op: IoOp) -> Result<IoOutput, IoError> {
        let error = |kind| IoError {
            kind,
            message: "the test's disk".to_owned(),
        };
        match op {
            IoOp::List => {
                let listed = self.files.iter().map(|(f, b)| (*f, b.len() as u64));
                return Ok(IoOutput::Listed(listed.collect()));
            }
            IoOp::Allocate { file, len } => {
                self.allocations += 1;
                if self.is_full {
                    return Err(error(IoErrorKind::NoSpace));
                }
                self.files.insert(file, vec![0; len as usize]);
            }
            IoOp::Write { .. } if self.is_broken => return Err(error(IoErrorKind::Failed)),
            IoOp::Write {
                file, at, buf, len, ..
            } => {
                let at = at as usize;
                let bytes = self.files.get_mut(&file).expect("allocated before");
                bytes[at..at + len].copy_from_slice(&buf[..len]);
            }
            IoOp::WriteFile { file, bytes } => drop(self.files.insert(file, bytes.to_vec())),
            IoOp::Read { file, at, len } => {
                let bytes = self.files.get(&file).ok_or(error(IoErrorKind::NotFound))?;
                let from = bytes.len().min(at as usize);
                let bytes = &bytes[from..bytes.len().min(from + len)];
                return Ok(IoOutput::Read(AlignedBuf::copy_of(bytes)));
            }
            IoOp::Rename { from, to } => {
                let bytes = self.files.remove(&from).expect("it is there");
                self.files.insert(to, bytes);
            }
            IoOp::Remove { file } => drop(self.files.remove(&file)),
        }
        Ok(IoOutput::Done)
    }

    /// One call and its flush; nothing is carried to the disk.
    fn ask(&mut self, token: u64, call: Call) {
        self.core.call(self.now, token, call);
        self.core.flush(self.now);
        self.poll();
    }

    fn pass_ms(&mut self, ms: u64) {
        self.now.mono_us += ms * 1_000;
        self.now.wall.0 += ms as i64;
        self.core.tick(self.now);
        self.poll();
    }

    fn answer(&mut self, token: u64) -> Answer {
        self.answers
            .remove(&token)
            .unwrap_or_else(|| panic!("call {token} hangs"))
    }

    /// The process starts again, with the wall clock so much further on.
    fn restart(self, shift_ms: i64) -> Self {
        self.restart_with(config(true), shift_ms)
    }

    fn restart_with(self, config: CoreConfig, shift_ms: i64) -> Self {
        let mut now = self.now;
        now.wall.0 += shift_ms;
        Self::open(config, self.files, now)
    }

    fn accept_clock(&mut self) {
        self.ask(1_000, Call::Machine(Request::AcceptClock));
        self.settle();
        let answer = self.answer(1_000);
        assert!(matches!(answer, Answer::Reply(Reply::Done)), "{answer:?}");
    }

    /// What status says of the clock.
    fn doubt(&mut self) -> Option<String> {
        self.ask(1_001, Call::Status);
        match self.answer(1_001) {
            Answer::Status(status) => status.clock,
            other => panic!("{other:?}"),
        }
    }

    /// Start and end of the topic's partition.
    fn offsets(&self) -> (u64, u64) {
        let view = self.core.state().partition(partition(TOPIC));
        view.map_or((0, 0), |view| (view.start.0, view.end.0))
    }

    fn produce(&mut self, token: u64) {
        self.ask(token, batch(self.now));
        self.settle();
        let answer = self.answer(token);
        assert!(
            matches!(answer, Answer::Reply(Reply::Produced(_))),
            "{answer:?}"
        );
    }

    fn create_topic(&mut self) {
        self.ask(1, Call::Machine(create("orders", TOPIC)));
        self.settle();
        let answer = self.answer(1);
        assert!(
            matches!(answer, Answer::Reply(Reply::Topic(_))),
            "{answer:?}"
        );
    }
}

fn start() -> Now {
    Now {
        wall: TimestampMs(1_700_000_000_000),
        mono_us: 1,
    }
}

/// Ten seconds are kept.
fn retaining() -> CoreConfig {
    let mut config = config(true);
    config.retention_ms = 10_000;
    config.retention_check_ms = 1_000;
    config
}

fn create(name: &str, id: TopicId) -> Request {
    Request::CreateTopic {
        id,
        name: name.to_owned(),
        partitions: 1,
        config: TopicConfig::default(),
    }
}

fn partition(topic: TopicId) -> Partition {
    Partition { topic, index: 0 }
}

fn batch(now: Now) -> Call {
    batch_of(now, &Bytes::from_static(&[1; 64]))
}

fn batch_of(now: Now, raw: &Bytes) -> Call {
    let request = Produce {
        partition: partition(TOPIC),
        pid: ProducerId(0),
        epoch: ProducerEpoch(0),
        sequence: Sequence(0),
        sent: 1,
        kept: 1,
        bytes: raw.len() as u32,
        max_timestamp: now.wall,
    };
    Call::Produce {
        request,
        raw: vec![raw.clone()].into(),
    }
}

/// Filling files with zeros costs as much of the disk as what is then written to them.
#[test]
fn what_retention_frees_is_written_again_and_no_new_file_is_filled() {
    let mut config = config(true);
    config.retention_bytes = 3 << 20;
    config.log.recycle_max = 4;
    let seconds_in_all = config.retention_check_ms / 1_000;
    let mut world = World::open(config, BTreeMap::new(), start());
    world.create_topic();
    let raw = Bytes::from(vec![1; 60_000]);
    let mut token = 1;
    let mut write_mib = |world: &mut World, mib: u64| {
        for _ in 0..mib * 16 {
            token += 1;
            world.ask(token, batch_of(world.now, &raw));
            world.settle();
            world.pass_ms(1);
            world.settle();
            let answer = world.answer(token);
            assert!(
                matches!(answer, Answer::Reply(Reply::Produced(_))),
                "{answer:?}"
            );
        }
        world.allocations
    };
    let before = write_mib(&mut world, 12);
    assert_eq!(write_mib(&mut world, 60), before);
    assert!(world.now.mono_us < seconds_in_all * 1_000_000);
    let log_bytes: usize = world.files.values().map(Vec::len).sum();
    assert!(log_bytes < 14 << 20, "{log_bytes}");
}

#[test]
fn after_a_failed_write_look_ups_answer() {
    let mut world = World::open(config(true), BTreeMap::new(), start());
    world.create_topic();
    world.is_broken = true;
    world.ask(2, batch(world.now));
    world.settle();
    let answer = world.answer(2);
    assert!(
        matches!(answer, Answer::Error(Error::Unknown(_))),
        "{answer:?}"
    );

    world.ask(3, Call::Machine(Request::ListTopics));
    let answer = world.answer(3);
    assert!(
        matches!(&answer, Answer::Reply(Reply::Topics(topics)) if topics.len() == 1),
        "{answer:?}"
    );
    let watch = Call::WatchCatalog {
        seen: 0,
        wait_ms: 1_000,
    };
    world.ask(4, watch);
    let answer = world.answer(4);
    assert!(matches!(answer, Answer::Catalog { .. }), "{answer:?}");
    let nowhere = Call::Fetch(Fetch {
        partition: partition(TopicId([9; 16])),
        offset: Offset(0),
        leader_epoch: None,
        bytes_max: 1,
        wait_ms: 0,
    });
    world.ask(5, nowhere);
    let answer = world.answer(5);
    assert!(
        matches!(
            answer,
            Answer::Error(Error::Refused(Refusal::UnknownPartition(_)))
        ),
        "{answer:?}"
    );
    world.ask(6, Call::Machine(create("more", TopicId([8; 16]))));
    let answer = world.answer(6);
    assert!(
        matches!(answer, Answer::Error(Error::Stopped(_))),
        "{answer:?}"
    );
}

/// Nothing is the first version of the catalog: whoever saw the empty one hears of the first topic.
#[test]
fn the_first_topic_of_a_new_log_is_news() {
    let mut world = World::open(config(true), BTreeMap::new(), start());
    let watch = |seen| Call::WatchCatalog {
        seen,
        wait_ms: 10_000,
    };
    world.ask(2, watch(0));
    let Answer::Catalog { version, topics } = world.answer(2) else {
        panic!("a look at the catalog is answered with it");
    };
    assert!(version > 0 && topics.is_empty(), "{version} {topics:?}");
    world.ask(3, watch(version));
    world.create_topic();
    let answer = world.answer(3);
    assert!(
        matches!(&answer, Answer::Catalog { version: newer, topics } if *newer > version && topics.len() == 1),
        "{answer:?}"
    );
}

#[test]
fn with_interval_flush_identities_are_told_only_when_synced() {
    let mut world = World::open(config(false), BTreeMap::new(), start());
    world.create_topic();
    // A write under way, so that the next group is not the first to be handed out.
    world.ask(2, batch(world.now));
    let init = Request::InitProducer { pid: ProducerId(0) };
    world.ask(3, Call::Machine(init));
    let mut was_told = false;
    while let Some(io) = world.asked.front() {
        let syncs = matches!(io.op, IoOp::Write { sync: true, .. });
        world.step();
        if world.answers.contains_key(&3) && !was_told {
            assert!(syncs, "the id was told before a sync");
            was_told = true;
        }
    }
    assert!(was_told, "the answer brings its own sync");
    assert!(matches!(world.answer(2), Answer::Reply(Reply::Produced(_))));
}

#[test]
fn a_slow_sync_does_not_cost_the_idle_mark() {
    let mut world = World::open(config(true), BTreeMap::new(), start());
    world.create_topic();
    world.ask(2, batch(world.now));
    world.pass_ms(60); // the write is still under way
    world.settle();
    assert!(
        world
            .core
            .next_wakeup()
            .is_some_and(|at| at <= world.now.mono_us + 50_000)
    );
    world.pass_ms(60);
    let marks = world.asked.iter();
    let marks = marks.filter(|io| matches!(io.op, IoOp::Write { sync: true, .. }));
    assert_eq!(marks.count(), 1, "the last group is proved");
}

#[test]
fn a_disk_that_has_no_room_for_a_spare_is_asked_again() {
    let mut world = World::open(config(true), BTreeMap::new(), start());
    world.create_topic();
    world.settle();
    world.is_full = true;
    // Fill files until a spare is wanted and cannot be made.
    let mut token = 10;
    let before = world.allocations;
    while world.allocations == before {
        for _ in 0..64 {
            world.ask(token, batch(world.now));
            token += 1;
        }
        world.settle();
    }
    world.is_full = false;
    world.pass_ms(1_000);
    world.settle();
    for token in token..token + 1_000 {
        world.ask(token, batch(world.now));
        world.settle();
        let answer = world.answer(token);
        assert!(
            matches!(answer, Answer::Reply(Reply::Produced(_))),
            "there is room long since: {answer:?}"
        );
    }
}

#[test]
fn a_clock_gone_wild_moves_logged_time_by_one_step_in_all() {
    let mut world = World::open(config(true), BTreeMap::new(), start());
    world.create_topic();
    world.now.wall.0 += 1_000 * HOUR_MS;
    for token in 2..50 {
        world.ask(token, batch(world.now));
        world.settle();
    }
    let logged = world.core.state().clock();
    assert_eq!(logged.0, start().wall.0 + HOUR_MS);

    assert!(world.doubt().expect("doubted").contains("41 days ahead"));

    // A restart finds it as far ahead of what was logged: nobody can say how long the stop was.
    let mut world = world.restart(0);
    world.pass_ms(1);
    world.settle();
    let logged = world.core.state().clock();
    assert!(
        logged.0 <= start().wall.0 + 2 * HOUR_MS + 1,
        "one step more"
    );
    assert!(world.doubt().expect("doubted").contains("clock accept"));
    world.accept_clock();
    assert_eq!(world.doubt(), None);
    assert_eq!(world.core.state().clock(), world.now.wall);
    world.ask(50, batch(world.now));
    world.settle();
    assert_eq!(world.core.state().clock(), world.now.wall);
}

#[test]
fn a_stop_of_some_days_is_believed() {
    let mut world = World::open(config(true), BTreeMap::new(), start());
    world.create_topic();
    let mut world = world.restart(6 * 24 * HOUR_MS);
    world.pass_ms(1);
    world.settle();
    assert_eq!(world.doubt(), None);
    assert_eq!(world.core.state().clock(), world.now.wall);
}

/// A machine that starts before its clock is set, and the clock that is right a minute later.
#[test]
fn a_start_before_the_clock_is_set_loses_no_time_and_heals_by_itself() {
    let mut world = World::open(retaining(), BTreeMap::new(), start());
    world.create_topic();
    world.produce(2);
    let wrong = -world.now.wall.0 + 5_000; // five seconds after 1970
    let mut world = world.restart(wrong);
    world.pass_ms(30_000);
    world.settle();
    assert!(world.doubt().expect("doubted").contains("behind"));
    world.produce(3);
    assert_eq!(
        world.core.state().clock(),
        start().wall,
        "logged time stands"
    );
    world.now.wall.0 += -wrong;
    world.pass_ms(1);
    world.settle();
    assert_eq!(world.doubt(), None, "it is right again");
    world.produce(4);
    assert_eq!(world.core.state().clock(), world.now.wall);
}

/// A first boot before the clock is set: an empty log is no reason to doubt the right clock later.
#[test]
fn the_first_clock_of_an_empty_log_binds_nobody() {
    let mut now = start();
    now.wall.0 = 5_000; // five seconds after 1970
    let mut world = World::open(config(true), BTreeMap::new(), now);
    world.pass_ms(30_000);
    world.settle();
    world.now.wall = start().wall;
    world.pass_ms(1_000);
    world.settle();
    assert_eq!(world.doubt(), None);
    world.create_topic();
    assert_eq!(world.core.state().clock(), world.now.wall);
    // From here on it is held against the time that passes.
    world.now.wall.0 += 1_000 * HOUR_MS;
    world.pass_ms(1);
    assert!(world.doubt().expect("doubted").contains("ahead"));
}

#[test]
fn while_the_clock_is_in_doubt_retention_and_expiry_rest() {
    for (restart, shift) in [
        (true, 30 * 24 * HOUR_MS),
        (true, -30 * 24 * HOUR_MS),
        (false, 30 * 24 * HOUR_MS),
        (false, -30 * 24 * HOUR_MS),
    ] {
        let mut config = retaining();
        config.producer_expiry_ms = 1_000;
        config.producer_check_ms = 100;
        let mut world = World::open(config.clone(), BTreeMap::new(), start());
        world.create_topic();
        world.ask(
            2,
            Call::Machine(Request::InitProducer { pid: ProducerId(0) }),
        );
        world.settle();
        world.produce(3);
        if restart {
            world = world.restart_with(config, shift);
        } else {
            world.now.wall.0 += shift;
        }
        world.pass_ms(1_000);
        world.settle();
        let decided = world.core.lsns();
        for _ in 0..60 {
            world.pass_ms(1_000);
            world.settle();
        }
        assert_eq!(
            world.core.lsns(),
            decided,
            "{restart} {shift}: nothing is decided"
        );
        assert!(world.doubt().is_some(), "{restart} {shift}");
        assert_eq!(
            world.offsets(),
            (0, 1),
            "{restart} {shift}: nothing is deleted"
        );
        world.accept_clock();
        for _ in 0..60 {
            world.pass_ms(1_000);
            world.settle();
        }
        assert_eq!(world.doubt(), None);
        assert_eq!(
            world.offsets(),
            (1, 1),
            "{restart} {shift}: it is past its time"
        );
    }
}

/// What was logged while the clock was a year ahead keeps its time, and goes when what is kept of it has
/// passed by the right clock, not in a year.
#[test]
fn records_of_the_future_go_as_of_the_accepted_clock() {
    let mut world = World::open(retaining(), BTreeMap::new(), start());
    world.create_topic();
    world.now.wall.0 += 365 * 24 * HOUR_MS;
    world.accept_clock();
    let future = world.now.wall;
    world.produce(2);
    world.now.wall.0 -= 365 * 24 * HOUR_MS;
    world.pass_ms(1);
    assert!(world.doubt().expect("doubted").contains("behind"));
    world.accept_clock();
    assert_eq!(world.core.state().clock(), world.now.wall, "back at once");
    let view = world
        .core
        .state()
        .partition(partition(TOPIC))
        .expect("there");
    assert_eq!(view.last_append, future, "they keep their time");
    for _ in 0..9 {
        world.pass_ms(1_000);
        world.settle();
    }
    assert_eq!(world.offsets(), (0, 1), "not past its time");
    // A restart knows of it, from the log or from a snapshot.
    let mut world = world.restart_with(retaining(), 0);
    for _ in 0..6 {
        world.pass_ms(1_000);
        world.settle();
    }
    assert_eq!(world.offsets(), (1, 1));
}

/// The file that was open when the clock was accepted holds records of the future, and fresh ones: those
/// are as old as they are.
#[test]
fn what_was_appended_after_the_acceptance_is_no_older_than_that() {
    let mut world = World::open(retaining(), BTreeMap::new(), start());
    world.create_topic();
    world.now.wall.0 += 365 * 24 * HOUR_MS;
    world.accept_clock();
    world.produce(2);
    world.now.wall.0 -= 365 * 24 * HOUR_MS;
    world.accept_clock();
    for _ in 0..9 {
        world.pass_ms(1_000);
        world.settle();
    }
    // Nine seconds later the file is full.
    let raw = Bytes::from(vec![1; 32 << 10]);
    for token in 3..43 {
        world.ask(token, batch_of(world.now, &raw));
        world.settle();
    }
    for _ in 0..8 {
        world.pass_ms(1_000);
        world.settle();
    }
    assert_eq!(world.offsets(), (0, 41), "a second or nine old");
    for _ in 0..6 {
        world.pass_ms(1_000);
        world.settle();
    }
    assert_eq!(world.offsets(), (41, 41));
}

/// The load has stopped and the file is not full: what is past its time goes all the same, and its file.
#[test]
fn what_is_past_its_time_goes_though_nothing_fills_the_file() {
    let mut world = World::open(retaining(), BTreeMap::new(), start());
    world.create_topic();
    for token in 2..10 {
        world.produce(token);
    }
    let first = FileId::Wal(1);
    assert!(world.files.contains_key(&first));
    for _ in 0..9 {
        world.pass_ms(1_000);
        world.settle();
    }
    assert_eq!(world.offsets(), (0, 8), "not past its time");
    for _ in 0..12 {
        world.pass_ms(1_000);
        world.settle();
    }
    assert_eq!(world.offsets(), (8, 8));
    assert!(
        !world.files.contains_key(&first),
        "{:?}",
        world.files.keys()
    );
    let newest = *world.files.keys().next_back().expect("files");
    for _ in 0..60 {
        world.pass_ms(1_000);
        world.settle();
    }
    assert_eq!(
        world.files.keys().next_back(),
        Some(&newest),
        "an empty file is not closed again and again"
    );
    world.produce(10);
    let world = world.restart_with(retaining(), 0);
    assert_eq!(world.offsets(), (8, 9));
}

// --- messages to other shards ----------------------------------------------------------------------

/// A group whose home is shard 0 of three.
fn group_of_three() -> String {
    let mut names = (0..).map(|n| format!("group-{n}"));
    let at_home = |name: &String| millstream_batch::ids::group_home(name, 3) == ShardId(0);
    names.find(at_home).expect("some name")
}

fn three_shards(sync_each_group: bool) -> CoreConfig {
    let mut config = config(sync_each_group);
    config.shards = 3;
    config
}

fn delete(group: &str) -> Call {
    Call::Machine(Request::DeleteGroup {
        group: group.to_owned(),
        force: false,
    })
}

fn acknowledged(to: u16, last: u64) -> Call {
    Call::Machine(Request::CourierAcknowledged {
        to: ShardId(to),
        row: Row::Control,
        last,
    })
}

/// Also under `flush = interval`: what is told to another shard is not told before it is synced.
#[test]
fn a_message_leaves_when_it_is_durable_and_again_until_it_is_acknowledged() {
    for sync in [true, false] {
        let group = group_of_three();
        let mut world = World::open(three_shards(sync), BTreeMap::new(), start());
        world.ask(1, delete(&group));
        assert_eq!(world.sent, [], "it is not on the disk yet");
        world.settle();
        let (one, two) = (ShardId(1), ShardId(2));
        assert_eq!(world.sent, [(one, 1), (two, 1)]);
        assert!(matches!(world.answer(1), Answer::Reply(Reply::Done)));

        // Lost on the way: sent again, later and later.
        world.sent.clear();
        let mut waits = Vec::new();
        for _ in 0..4 {
            let before = world.now.mono_us;
            while world.sent.is_empty() {
                world.pass_ms(1);
                world.settle();
            }
            assert_eq!(world.sent, [(one, 1), (two, 1)]);
            world.sent.clear();
            waits.push((world.now.mono_us - before) / 1_000);
        }
        assert_eq!(waits, [10, 20, 40, 80]);

        // One has it; the other is asked on, also after a restart.
        world.ask(2, acknowledged(1, 1));
        world.settle();
        world.pass_ms(200);
        world.settle();
        assert_eq!(world.sent, [(two, 1)]);
        let mut world = world.restart_with(three_shards(sync), 0);
        assert_eq!(world.sent, [(two, 1)], "at once");
        world.sent.clear();
        world.ask(3, acknowledged(2, 1));
        world.settle();
        world.pass_ms(5_000);
        world.settle();
        assert_eq!(world.sent, []);
        assert_eq!(world.core.state().outboxes().count(), 0);
    }
}

/// What is found at the end of a log may yet be cut, when a start cannot write it anew: nothing of it is told.
#[test]
fn a_start_that_cannot_make_its_end_safe_sends_nothing() {
    let group = group_of_three();
    let mut world = World::open(three_shards(true), BTreeMap::new(), start());
    world.ask(1, delete(&group));
    world.settle();
    assert_eq!(world.sent.len(), 2);
    let (files, now) = (world.files, world.now);
    let mut world = World::begin(three_shards(true), files, now);
    world.is_broken = true;
    world.settle();
    for _ in 0..5 {
        world.pass_ms(1_000);
        world.settle();
    }
    assert_eq!((&world.sent[..], &world.told[..]), (&[][..], &[][..]));
}

#[test]
fn a_deleted_name_is_free_when_every_shard_has_forgotten_it() {
    let group = group_of_three();
    let mut world = World::open(three_shards(true), BTreeMap::new(), start());
    let watch = |wait_ms| Call::WatchForgotten {
        group: group.clone(),
        wait_ms,
    };
    world.ask(1, delete(&group));
    world.settle();
    world.answer(1);
    world.ask(2, watch(0));
    world.ask(3, watch(60));
    world.ask(4, watch(60_000));
    let again = |answer: Answer| {
        matches!(
            answer,
            Answer::Error(Error::Refused(Refusal::GroupBeingDeleted(_)))
        )
    };
    assert!(again(world.answer(2)));
    world.ask(5, acknowledged(2, 1));
    world.settle();
    world.pass_ms(100);
    assert!(again(world.answer(3)), "one of them has not");
    assert!(!world.answers.contains_key(&4));
    let join = Request::JoinGroup {
        group: group.clone(),
        member: millstream_batch::ids::MemberId(0),
        again: None,
        client: String::new(),
        topics: Vec::new(),
        session_timeout_ms: 1_000,
    };
    world.ask(6, Call::Machine(join.clone()));
    assert!(again(world.answer(6)));
    world.ask(7, acknowledged(1, 1));
    assert!(
        !world.answers.contains_key(&4),
        "the acknowledgement is not on the disk yet"
    );
    world.settle();
    assert!(matches!(world.answer(4), Answer::Reply(Reply::Done)));
    world.ask(8, Call::Machine(join));
    world.settle();
    let joined = world.answer(8);
    assert!(
        matches!(joined, Answer::Reply(Reply::Joined { .. })),
        "{joined:?}"
    );
}

// --- what other shards are told, from state --------------------------------------------------------

fn revision(revision: u64) -> About {
    About::Catalogue { revision }
}

fn answered(shard: u16, about: &About, outcome: Outcome) -> Call {
    Call::Told {
        shard: ShardId(shard),
        about: about.clone(),
        outcome,
    }
}

fn configure(bytes: u64) -> Call {
    Call::Machine(Request::ConfigureTopic {
        name: "t".to_owned(),
        set: vec![("retention.bytes".to_owned(), Some(bytes.to_string()))],
    })
}

impl World {
    /// Time passes until something is told; how long that took, in milliseconds.
    fn until_told(&mut self) -> u64 {
        let before = self.now.mono_us;
        while self.told.is_empty() {
            self.pass_ms(1);
            self.settle();
        }
        (self.now.mono_us - before) / 1_000
    }

    fn settled(&mut self, token: u64, call: Call) {
        self.ask(token, call);
        self.settle();
    }
}

/// Each of the other shards by itself: one that does not answer holds up nobody, and is told what it missed.
#[test]
fn a_change_of_the_catalogue_is_told_until_it_is_known() {
    let mut world = World::open(three_shards(true), BTreeMap::new(), start());
    let (one, two) = (ShardId(1), ShardId(2));
    let watch = |revision, wait_ms| Call::WatchSpread { revision, wait_ms };
    let behind = |answer: Answer| match answer {
        Answer::Reply(Reply::Spread { behind }) => behind,
        other => panic!("{other:?}"),
    };
    world.ask(1, Call::Machine(create("t", TOPIC)));
    assert_eq!(world.told, [], "it is not on the disk yet");
    world.settle();
    assert_eq!(world.told, [(one, revision(1)), (two, revision(1))]);
    world.settled(2, watch(1, 60_000));
    world.told.clear();
    assert_eq!([world.until_told(), 0], [10, 0]);
    world.told.clear();
    assert_eq!(world.until_told(), 20);

    // One of them has it. The other cannot: whoever waits for both waits no more.
    world.settled(3, answered(1, &revision(1), Outcome::Done));
    assert!(!world.answers.contains_key(&2));
    world.settled(4, answered(2, &revision(1), Outcome::Failed));
    assert_eq!(behind(world.answer(2)), [two]);
    world.settled(5, watch(1, 60_000));
    assert_eq!(behind(world.answer(5)), [two], "at once");

    // What changed twice meanwhile is told once, as it is.
    for (token, bytes) in [(6, 10), (7, 20)] {
        world.settled(token, configure(bytes));
    }
    world.settled(8, answered(1, &revision(2), Outcome::Done));
    world.settled(9, answered(1, &revision(3), Outcome::Done));
    let mut world = world.restart_with(three_shards(true), 0);
    assert_eq!(world.told, [(two, revision(3))], "one of them knows");
    world.settled(10, answered(2, &revision(3), Outcome::Done));
    world.settled(11, watch(3, 60_000));
    assert_eq!(behind(world.answer(11)), []);
    world.told.clear();
    world.pass_ms(10_000);
    world.settle();
    assert_eq!(world.told, []);
}

/// Answers come in any order; what is known has no gaps.
#[test]
fn what_a_shard_knows_of_the_catalogue_has_no_gaps() {
    let mut world = World::open(three_shards(true), BTreeMap::new(), start());
    for n in 1..=3_u8 {
        let name = format!("t{n}");
        world.settled(u64::from(n), Call::Machine(create(&name, TopicId([n; 16]))));
    }
    let known = |world: &World| world.core.state().catalogue_known(ShardId(1));
    world.settled(4, answered(1, &revision(3), Outcome::Done));
    world.settled(5, answered(1, &revision(2), Outcome::Done));
    assert_eq!(known(&world), 0);
    world.settled(6, answered(1, &revision(9), Outcome::Done));
    assert_eq!(known(&world), 0, "nobody was told that");
    world.settled(7, answered(1, &revision(1), Outcome::Done));
    assert_eq!(known(&world), 3);
}

/// Nobody owns a partition any more: where it is kept that is claimed, until the claim is answered.
#[test]
fn a_claim_for_nobody_is_asked_until_it_is_answered() {
    let group = group_of_three();
    let mut world = World::open(three_shards(true), BTreeMap::new(), start());
    let six = Request::CreateTopic {
        id: TOPIC,
        name: "t".to_owned(),
        partitions: 6,
        config: TopicConfig::default(),
    };
    world.settled(1, Call::Machine(six));
    let join = Request::JoinGroup {
        group: group.clone(),
        member: millstream_batch::ids::MemberId(0),
        again: None,
        client: String::new(),
        topics: vec![TOPIC],
        session_timeout_ms: 60_000,
    };
    world.settled(2, Call::Machine(join));
    let Answer::Reply(Reply::Joined { member, assignment }) = world.answer(2) else {
        panic!("refused");
    };
    world.told.clear();
    let leave = Request::LeaveGroup {
        group,
        member,
        joined: assignment.joined,
    };
    world.settled(3, Call::Machine(leave));
    world.settled(4, Call::Status);
    let claims = |world: &mut World| -> Vec<(ShardId, About)> {
        let told = std::mem::take(&mut world.told).into_iter();
        told.filter(|(_, about)| matches!(about, About::Claim { .. }))
            .collect()
    };
    let asked = claims(&mut world);
    let elsewhere = assignment.owned.iter();
    let elsewhere = elsewhere.filter(|(held, _)| held.shard(3) != ShardId(0));
    assert_eq!(asked.len(), elsewhere.count());
    assert!(asked.len() > 1);
    world.pass_ms(20);
    world.settle();
    assert_eq!(claims(&mut world), asked, "again");
    // Refused: somebody claimed it since. That is an answer; that a shard cannot be asked is none.
    for (token, (shard, about)) in (10..).zip(&asked) {
        let outcome = [Outcome::Done, Outcome::Refused, Outcome::Failed][token as usize % 3];
        world.settled(token, answered(shard.0, about, outcome));
    }
    let failed = (10..).zip(&asked).filter(|(token, _)| token % 3 == 2);
    let failed: Vec<_> = failed.map(|(_, asked)| asked.clone()).collect();
    world.pass_ms(10_000);
    world.settle();
    assert_eq!(claims(&mut world), failed);
}
