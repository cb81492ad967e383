//! What a seed makes of a run: sizes, clients, and what goes wrong when.

use millstream_batch::ids::ShardId;
use millstream_shard::core::CoreConfig;

use crate::clients::{Admin, Client, Member, Producer, Reader};
use crate::dice::Dice;

/// Something that goes wrong, or is done to the shard, at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mishap {
    /// Power is cut now.
    Crash,
    /// The process is killed; the machine goes on.
    Kill,
    /// The operator stops the shard in good order and starts it again.
    Stop,
    FailWrite,
    FailSync,
    /// No file can grow for so many microseconds.
    Full {
        for_us: u64,
    },
    /// A bit flips at rest.
    Flip,
    /// The wall clock steps by so many milliseconds.
    Clock {
        ms: i64,
    },
}

#[derive(Debug)]
pub struct Plan {
    /// Shards, each with a disk of its own.
    pub shards: u16,
    /// How the log is flushed is drawn too: `durable`, or `interval` with its interval.
    pub config: CoreConfig,
    /// At one start in so many the operator changes from one way to flush to the other. 0: never.
    pub flush_changes: u64,
    /// At one start in so many one of the first syncs fails. 0: never.
    pub failing_starts: u64,
    /// How long clients go on, in simulated microseconds.
    pub length_us: u64,
    pub mishaps: Vec<(u64, Mishap)>,
    /// Power is cut, or the process is killed, when the disk has answered so many more requests, one
    /// after the other.
    pub crash_after_io: Vec<u64>,
    /// One call in so many is lost on the way; as many answers.
    pub loss: u64,
    /// One batch in so many arrives twice.
    pub twice: u64,
    /// Longest way of a message, in microseconds.
    pub delay_us: u64,
    /// Requests of a million that the disk holds back.
    pub disk_delays: u32,
    /// Reads of a million that fail.
    pub read_fails: u32,
}

impl Plan {
    #[must_use]
    pub fn of(dice: &mut Dice) -> Self {
        let group_bytes_max = 16 << 10 << dice.range(0, 2);
        let segment_bytes = group_bytes_max as u64 * dice.range(4, 9);
        let log = millstream_log::Config {
            segment_bytes,
            first_segment_bytes: segment_bytes >> dice.range(0, 3),
            group_bytes_max,
            hot_tail_bytes_max: dice.skewed(8 << 10, 256 << 10) as usize,
            read_bytes_max: dice.skewed(16 << 10, 4 << 20) as usize,
            spares_ready: dice.range(1, 3) as usize,
            recycle_max: dice.range(0, 3) as usize,
            sync_each_group: !dice.one_in(3),
            incarnation: 0,
        };
        let config = CoreConfig {
            retention_ms: -1,
            retention_check_ms: dice.range(20, 300),
            members_check_ms: dice.range(20, 200),
            snapshot_after_bytes: dice.skewed(16 << 10, 1 << 20),
            snapshot_slice_bytes: dice.skewed(256, 16 << 10) as usize,
            producer_check_ms: dice.range(100, 5_000),
            producer_expiry_ms: if dice.one_in(4) {
                2_000
            } else {
                7 * 24 * 3_600_000
            },
            sync_interval_ms: dice.skewed(1, 1_000),
            ..CoreConfig::new(ShardId(0), 1, log)
        };
        let shards = if dice.one_in(4) {
            dice.range(2, 4) as u16
        } else {
            1
        };
        let length_us = dice.range(200_000, 1_500_000);
        let mishaps = mishaps(dice, length_us);
        // What is written and not synced is lost only by a crash.
        let (crashes, io) = if config.log.sync_each_group {
            (dice.skewed(0, 4), 1_500)
        } else {
            (dice.skewed(2, 12), 400)
        };
        let crash_after_io = (0..crashes).map(|_| dice.skewed(1, io)).collect();
        Self {
            shards,
            config,
            flush_changes: if dice.one_in(6) { 2 } else { 0 },
            failing_starts: if dice.one_in(4) { 4 } else { 0 },
            length_us,
            mishaps,
            crash_after_io,
            loss: if dice.one_in(3) {
                0
            } else {
                dice.skewed(10, 300)
            },
            twice: if dice.one_in(3) {
                0
            } else {
                dice.skewed(3, 50)
            },
            delay_us: dice.skewed(100, 10_000),
            disk_delays: if dice.one_in(2) {
                0
            } else {
                dice.range(0, 300_000) as u32
            },
            read_fails: if dice.one_in(8) { 5_000 } else { 0 },
        }
    }

    /// The clients of a run.
    #[must_use]
    pub fn clients(&self, dice: &mut Dice) -> Vec<Box<dyn Client>> {
        // Under `flush = interval` all but batches is answered with a sync: in some runs it comes seldom,
        // and readers are fast, so that much is read that is then lost.
        let durable = self.config.log.sync_each_group;
        let batches_alone = !durable && !dice.one_in(3);
        let (topics_max, least_us) = if batches_alone { (2, 30_000) } else { (4, 200) };
        let mut clients: Vec<Box<dyn Client>> = vec![Box::new(Admin::new(
            dice.range(1, topics_max),
            match batches_alone {
                true => Vec::new(),
                false => vec!["g0".to_owned(), "g1".to_owned()],
            },
            (least_us, dice.skewed(2_000, 100_000).max(2 * least_us)),
        ))];
        for id in 0..dice.range(1, 4) {
            let (in_flight, bytes) = (dice.range(1, 8) as usize, dice.skewed(100, 9_000));
            let idempotent = !dice.one_in(6);
            clients.push(Box::new(Producer::new(
                id,
                idempotent,
                in_flight,
                bytes,
                dice.skewed(4_000, 60_000),
            )));
        }
        let (readers, pace_us) = if batches_alone {
            (dice.range(2, 5), 6_000)
        } else {
            (dice.range(1, 3), 60_000)
        };
        for _ in 0..readers {
            clients.push(Box::new(Reader::new(dice.skewed(4_000, pace_us))));
        }
        let members = if batches_alone { 0 } else { dice.range(0, 5) };
        for id in 0..members {
            clients.push(Box::new(Member::new(
                id,
                if id < 3 { "g0" } else { "g1" },
                dice.skewed(300, 8_000),
            )));
        }
        clients
    }
}

fn mishaps(dice: &mut Dice, length_us: u64) -> Vec<(u64, Mishap)> {
    let mut mishaps = Vec::new();
    for _ in 0..dice.skewed(0, 8) {
        let mishap = match dice.range(0, 18) {
            0..=2 => Mishap::Crash,
            3 | 4 => Mishap::Kill,
            5 | 6 => Mishap::Stop,
            7 => Mishap::FailWrite,
            8 => Mishap::FailSync,
            9..=11 => Mishap::Full {
                for_us: dice.skewed(1_000, 1_000_000),
            },
            12..=14 => Mishap::Flip,
            _ => Mishap::Clock {
                // Up to forty days: past what a start believes, too.
                ms: dice.skewed(1, 3_500_000_000) as i64 * if dice.one_in(2) { -1 } else { 1 },
            },
        };
        mishaps.push((dice.range(0, length_us), mishap));
    }
    mishaps
}
