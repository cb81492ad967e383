//! A core on a disk in memory that answers when the test says so.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use millstream_batch::ids::{
    Partition, ProducerEpoch, ProducerId, Sequence, ShardId, TimestampMs, TopicId,
};
use millstream_log::Config;
use millstream_log::buffer::AlignedBuf;
use millstream_log::io::{FileId, Io, IoDone, IoError, IoErrorKind, IoOp, IoOutput};
use millstream_machine::request::{Produce, Reply, Request};
use millstream_machine::topics::TopicConfig;
use millstream_shard::call::{About, Answer, Call};
use millstream_shard::core::{CoreConfig, Effect, Now, ShardCore};

pub(crate) const TOPIC: TopicId = TopicId([7; 16]);
pub(crate) const HOUR_MS: i64 = 3_600_000;

/// A core, its disk, and what came of it so far.
pub(crate) struct World {
    pub(crate) core: ShardCore,
    pub(crate) files: BTreeMap<FileId, Vec<u8>>,
    pub(crate) asked: VecDeque<Io>,
    pub(crate) answers: BTreeMap<u64, Answer>,
    /// Writes of log files fail from now on.
    pub(crate) is_broken: bool,
    /// No file can be allocated.
    pub(crate) is_full: bool,
    pub(crate) now: Now,
    pub(crate) ready: bool,
    pub(crate) allocations: usize,
    pub(crate) snapshots: usize,
    /// Messages to other shards, as they were sent.
    pub(crate) sent: Vec<(ShardId, u64)>,
    /// What other shards were told.
    pub(crate) told: Vec<(ShardId, About)>,
    /// Shards that are out of step, in words.
    pub(crate) trouble: Vec<String>,
}

pub(crate) fn config(sync_each_group: bool) -> CoreConfig {
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
    pub(crate) fn open(config: CoreConfig, files: BTreeMap<FileId, Vec<u8>>, now: Now) -> Self {
        let mut world = Self::begin(config, files, now);
        world.settle();
        assert!(world.ready, "recovery ends");
        world
    }

    pub(crate) fn begin(config: CoreConfig, files: BTreeMap<FileId, Vec<u8>>, now: Now) -> Self {
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
            trouble: Vec::new(),
        }
    }

    pub(crate) fn poll(&mut self) {
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
                Effect::OutOfStep(words) => self.trouble.push(words),
                Effect::Tell { shard, about, .. } => self.told.push((shard, about)),
                _ => {}
            }
        }
    }

    /// The disk answers what was asked first.
    pub(crate) fn step(&mut self) {
        let io = self.asked.pop_front().expect("something was asked");
        let result = self.carry(io.op);
        self.core.io_done(self.now, IoDone { id: io.id, result });
        self.poll();
    }

    pub(crate) fn settle(&mut self) {
        self.poll();
        while !self.asked.is_empty() {
            self.step();
        }
    }

    pub(crate) fn carry(&mut self, op: IoOp) -> Result<IoOutput, IoError> {
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
    pub(crate) fn ask(&mut self, token: u64, call: Call) {
        self.core.call(self.now, token, call);
        self.core.flush(self.now);
        self.poll();
    }

    pub(crate) fn pass_ms(&mut self, ms: u64) {
        self.now.mono_us += ms * 1_000;
        self.now.wall.0 += ms as i64;
        self.core.tick(self.now);
        self.poll();
    }

    pub(crate) fn answer(&mut self, token: u64) -> Answer {
        self.answers
            .remove(&token)
            .unwrap_or_else(|| panic!("call {token} hangs"))
    }

    /// The process starts again, with the wall clock so much further on.
    pub(crate) fn restart(self, shift_ms: i64) -> Self {
        self.restart_with(config(true), shift_ms)
    }

    pub(crate) fn restart_with(self, config: CoreConfig, shift_ms: i64) -> Self {
        let mut now = self.now;
        now.wall.0 += shift_ms;
        Self::open(config, self.files, now)
    }

    pub(crate) fn accept_clock(&mut self) {
        self.ask(1_000, Call::Machine(Request::AcceptClock));
        self.settle();
        let answer = self.answer(1_000);
        assert!(matches!(answer, Answer::Reply(Reply::Done)), "{answer:?}");
    }

    /// What status says of the clock.
    pub(crate) fn doubt(&mut self) -> Option<String> {
        self.ask(1_001, Call::Status);
        match self.answer(1_001) {
            Answer::Status(status) => status.clock,
            other => panic!("{other:?}"),
        }
    }

    /// Start and end of the topic's partition.
    pub(crate) fn offsets(&self) -> (u64, u64) {
        let view = self.core.state().partition(partition(TOPIC));
        view.map_or((0, 0), |view| (view.start.0, view.end.0))
    }

    pub(crate) fn produce(&mut self, token: u64) {
        self.ask(token, batch(self.now));
        self.settle();
        let answer = self.answer(token);
        assert!(
            matches!(answer, Answer::Reply(Reply::Produced(_))),
            "{answer:?}"
        );
    }

    pub(crate) fn create_topic(&mut self) {
        self.ask(1, Call::Machine(create("orders", TOPIC)));
        self.settle();
        let answer = self.answer(1);
        assert!(
            matches!(answer, Answer::Reply(Reply::Topic(_))),
            "{answer:?}"
        );
    }
}

pub(crate) fn start() -> Now {
    Now {
        wall: TimestampMs(1_700_000_000_000),
        mono_us: 1,
    }
}

/// Ten seconds are kept.
pub(crate) fn retaining() -> CoreConfig {
    let mut config = config(true);
    config.retention_ms = 10_000;
    config.retention_check_ms = 1_000;
    config
}

pub(crate) fn create(name: &str, id: TopicId) -> Request {
    Request::CreateTopic {
        id,
        name: name.to_owned(),
        partitions: 1,
        config: TopicConfig::default(),
    }
}

pub(crate) fn partition(topic: TopicId) -> Partition {
    Partition { topic, index: 0 }
}

pub(crate) fn batch(now: Now) -> Call {
    batch_of(now, &Bytes::from_static(&[1; 64]))
}

pub(crate) fn batch_of(now: Now, raw: &Bytes) -> Call {
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
