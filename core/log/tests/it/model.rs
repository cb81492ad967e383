//! Random histories against a model: whatever happens, what was durable is there, in order, and
//! nothing else is.

use std::collections::BTreeMap;

use millstream_batch::ids::{Offset, PartitionSlot};
use millstream_log::io::IoOp;
use millstream_log::{Config, Event, Refused};

use crate::disk::{Disk, Shard, batch, fact_offsets, payload};

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }
}

/// One batch as the model knows it.
#[derive(Clone, Debug)]
struct Stored {
    lsn: u64,
    last: u64,
    raw: Vec<u8>,
}

#[derive(Default)]
struct Model {
    slots: Vec<BTreeMap<u64, Stored>>,
    starts: Vec<u64>,
    next: Vec<u64>,
    /// The facts of each lsn.
    units: BTreeMap<u64, Vec<bytes::Bytes>>,
    durable: u64,
    term: u32,
    snapshot: Option<u64>,
}

fn settings(random: &mut Random) -> Config {
    Config {
        segment_bytes: 64 << 10,
        first_segment_bytes: 64 << 10,
        group_bytes_max: 4096 << random.below(3),
        hot_tail_bytes_max: (random.below(5) << 14) as usize,
        read_bytes_max: random.below(1 << 21) as usize,
        spares_ready: 1 + random.below(2) as usize,
        recycle_max: random.below(3) as usize,
        sync_each_group: random.below(3) > 0,
        incarnation: random.next(),
    }
}

fn history(seed: u64) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let slots = 1 + random.below(4) as usize;
    let mut model = Model {
        slots: vec![BTreeMap::new(); slots],
        starts: vec![0; slots],
        next: vec![0; slots],
        ..Model::default()
    };
    let mut disk = Disk {
        capacity: (random.below(3) == 0).then_some(12 * (64 << 10)),
        ..Disk::default()
    };
    // A batch of 20,000 bytes needs a longer file than the shortest. One log's files are never made shorter
    // than what a start takes for a truncated one, here as with `FILE_BYTES_MIN`.
    let first_segment_bytes = 16 << 10 << random.below(3);
    for _life in 0..5 {
        let mut config = settings(&mut random);
        config.first_segment_bytes = first_segment_bytes;
        config.group_bytes_max = config.group_bytes_max.min(16 << 10);
        let sync = config.sync_each_group;
        let mut shard = Shard::begin(disk, config);
        let mut steps = if random.below(3) == 0 {
            random.below(30)
        } else {
            u64::MAX
        };
        while shard.recovery.is_none()
            && steps > 0
            && shard.step_any(|n| random.below(n as u64) as usize)
        {
            steps -= 1;
        }
        if shard.recovery.is_some() {
            check_opened(&mut shard, &mut model, seed);
            check_reads(&mut shard, &model, &mut random, seed);
            for _ in 0..random.below(120) {
                act(&mut shard, &mut model, &mut random, seed, sync);
                if shard.has(|e| matches!(e, Event::Failed(_))) {
                    break;
                }
            }
            check_reads(&mut shard, &model, &mut random, seed);
        } else {
            assert!(steps == 0, "seed {seed}: opening stopped");
        }
        disk = shard.disk;
        disk.fail_op = None;
        if random.below(4) == 0 {
            disk.kill();
        } else {
            for io in &shard.waiting {
                disk.begin_write(&io.op);
            }
            disk.crash_keeping(|| random.below(3) > 0);
        }
    }
}

fn check_opened(shard: &mut Shard, model: &mut Model, seed: u64) {
    let found = shard.found().clone();
    assert!(found.damage.is_empty(), "seed {seed}: {found:?}");
    assert_eq!(found.read_only, None, "seed {seed}");
    assert!(
        found.last.0 >= model.durable,
        "seed {seed}: {} was durable, found {found:?}",
        model.durable
    );
    let begin = shard.snapshot.first().map(|(lsn, _)| lsn.0);
    assert!(begin >= model.snapshot, "seed {seed}");
    let first = begin.unwrap_or(0) + 1;
    let lsns: Vec<u64> = shard.replayed.iter().map(|e| e.lsn.0).collect();
    assert_eq!(
        lsns,
        (first..=found.last.0).collect::<Vec<_>>(),
        "seed {seed}"
    );
    for unit in &shard.replayed {
        let facts: Vec<_> = unit
            .entries
            .iter()
            .map(|entry| entry.fact.clone())
            .collect();
        assert_eq!(Some(&facts), model.units.get(&unit.lsn.0), "seed {seed}");
    }
    model.units.split_off(&(found.last.0 + 1));
    assert!(found.term.0 >= model.term, "seed {seed}: the term fell");
    assert!(
        found.cut_bytes == 0 || found.term.0 > model.term,
        "seed {seed}: cut under the old term"
    );
    model.term = found.term.0;
    // What was not durable and is not there any more never was.
    model.durable = found.last.0;
    for (slot, stored) in model.slots.iter_mut().enumerate() {
        stored.retain(|_, s| s.lsn <= found.last.0);
        model.next[slot] = stored
            .last_key_value()
            .map_or(model.starts[slot], |(_, s)| s.last + 1);
        shard
            .log
            .set_start(PartitionSlot(slot as u32), Offset(model.starts[slot]));
    }
    shard.run();
}

fn act(shard: &mut Shard, model: &mut Model, random: &mut Random, seed: u64, sync: bool) {
    match random.below(22) {
        0..=8 => {
            let many = if random.below(3) == 0 {
                1 + random.below(6)
            } else {
                1
            };
            let mut unit = Vec::new();
            let mut stored = Vec::new();
            let mut next = model.next.clone();
            for _ in 0..many {
                let slot = random.below(model.slots.len() as u64) as usize;
                let base = next[slot];
                let records = 1 + random.below(5);
                let len = if random.below(20) == 0 {
                    20_000
                } else {
                    random.below(3000) as usize
                };
                let raw = payload(slot as u32, base, len);
                unit.push(batch(slot as u32, base, records, &raw));
                next[slot] = base + records;
                stored.push((slot, base, base + records - 1, raw));
            }
            match shard.log.append_unit(&unit) {
                Ok(lsn) => {
                    for (slot, base, last, raw) in stored {
                        let lsn = lsn.0;
                        model.slots[slot].insert(base, Stored { lsn, last, raw });
                    }
                    let facts = unit.into_iter().map(|entry| entry.fact).collect();
                    model.units.insert(lsn.0, facts);
                    model.next = next;
                }
                Err(e) => assert!(
                    matches!(e, Refused::Full | Refused::Stopped | Refused::NotYet)
                        || (e == Refused::TooLarge && many > 1),
                    "seed {seed}: {e}"
                ),
            }
        }
        9..=11 => shard.log.flush(),
        12..=14 => {
            for _ in 0..random.below(4) {
                shard.step_any(|n| random.below(n as u64) as usize);
            }
        }
        15 => shard.run(),
        16 => drop(shard.log.idle()),
        17 => {
            let slot = random.below(model.slots.len() as u64) as usize;
            let durable = model.slots[slot]
                .range(..)
                .rfind(|(_, s)| s.lsn <= shard.log.durable().0);
            if let Some((base, _)) = durable {
                model.starts[slot] = model.starts[slot].max(base / 2 + base / 4);
                shard
                    .log
                    .set_start(PartitionSlot(slot as u32), Offset(model.starts[slot]));
            }
        }
        18 => {
            shard.log.flush();
            shard.run();
            let begin = shard.snapshot(&[b"state"]);
            if shard.has(|e| matches!(e, Event::SnapshotPublished { begin: b } if *b == begin)) {
                model.snapshot = model.snapshot.max((begin.0 > 0).then_some(begin.0));
            }
        }
        19 => shard.log.sync_now(),
        20 if random.below(8) == 0 => {
            shard.disk.fail_op = Some(|op| matches!(op, IoOp::Write { .. }));
        }
        20 => {
            shard.log.seal_dead();
        }
        _ => shard.log.retry_space(),
    }
    shard.drain();
    let safe = if sync {
        shard.log.durable()
    } else {
        shard.log.synced()
    };
    model.durable = model.durable.max(safe.0);
}

fn check_reads(shard: &mut Shard, model: &Model, random: &mut Random, seed: u64) {
    // What a reader may see is what was durable before it asks; asking runs the disk.
    let durable = shard.log.durable().0;
    let saved = std::mem::take(&mut shard.waiting);
    let reads_only = |shard: &mut Shard| assert!(shard.waiting.is_empty());
    reads_only(shard);
    for (slot, stored) in model.slots.iter().enumerate() {
        let start = model.starts[slot];
        let visible: Vec<_> = stored
            .iter()
            .filter(|(_, s)| s.lsn <= durable && s.last >= start)
            .collect();
        let end = visible.last().map_or(start, |(_, s)| s.last + 1);
        let bytes_max = [1, 5000, 1 << 20][random.below(3) as usize];
        let mut offset = start;
        let mut read = Vec::new();
        while offset < end {
            let entries = shard
                .fetch(slot as u32, offset, end, bytes_max)
                .expect("no damage");
            assert!(
                !entries.is_empty(),
                "seed {seed}: slot {slot} stops at {offset} of {end}"
            );
            for entry in entries {
                let (base, last) = fact_offsets(&entry.fact);
                read.push((base, entry.lsn.0, entry.raw));
                offset = last + 1;
            }
        }
        assert_eq!(read.len(), visible.len(), "seed {seed} slot {slot}");
        for ((base, lsn, raw), (expected, s)) in read.iter().zip(visible) {
            assert_eq!((base, *lsn), (expected, s.lsn), "seed {seed} slot {slot}");
            assert_eq!(*raw, s.raw, "seed {seed} slot {slot} offset {base}");
        }
    }
    shard.waiting.extend(saved);
}

/// `LOG_SEEDS` asks for another number of histories, `LOG_SEED` for one of them.
#[test]
fn random_histories_keep_what_was_durable() {
    let seeds = std::env::var("LOG_SEEDS").ok().and_then(|s| s.parse().ok());
    let first = std::env::var("LOG_SEED").ok().and_then(|s| s.parse().ok());
    for seed in first.unwrap_or(1)..=first.or(seeds).unwrap_or(400) {
        history(seed);
    }
}
