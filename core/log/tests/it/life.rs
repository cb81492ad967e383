//! Append, flush, fetch hot and cold, reopen.

use millstream_batch::ids::{Lsn, Offset, PartitionSlot};
use millstream_batch::limits::BLOCK_BYTES;
use millstream_log::io::IoOp;
use millstream_log::{Append, Event, Fetch, FetchError, Refused};

use crate::disk::{Disk, SEGMENT, Shard, batch, config, payload};

#[test]
fn an_empty_directory_opens() {
    let shard = Shard::open(Disk::default(), config());
    assert_eq!(shard.found().last, Lsn(0));
    assert_eq!(shard.found().cut_bytes, 0);
    assert!(shard.found().damage.is_empty());
    assert_eq!(
        shard.disk.wal_files(),
        [1, 2],
        "the first file and the next"
    );
}

#[test]
fn what_is_appended_is_durable_after_one_pair_and_fetched_from_memory() {
    let mut shard = Shard::open(Disk::default(), config());
    for offset in 0..5 {
        shard
            .append(3, offset, 1, &payload(3, offset, 100))
            .expect("appended");
    }
    assert_eq!(shard.log.last(), Lsn(5));
    assert_eq!(shard.log.durable(), Lsn(0));
    assert!(
        shard.fetch(3, 0, 5, 1 << 20).expect("fetched").is_empty(),
        "nothing is visible before it is durable"
    );
    shard.log.flush();
    shard.run();
    assert_eq!(shard.log.durable(), Lsn(5));
    assert_eq!(shard.log.stats().groups, 1, "one group commit for all");
    let entries = shard.fetch(3, 1, 4, 1 << 20).expect("fetched");
    assert_eq!(entries.len(), 3);
    assert_eq!(entries[0].raw, payload(3, 1, 100));
    assert_eq!(entries[0].lsn, Lsn(2));
    assert_eq!(entries[0].kind, 7);
    assert_eq!(shard.log.stats().fetches_cold, 0);
}

#[test]
fn fetch_bounds_hold() {
    let mut shard = Shard::open(Disk::default(), config());
    for offset in [0, 10, 20] {
        shard
            .append(1, offset, 10, &payload(1, offset, 50))
            .expect("appended");
    }
    shard.log.flush();
    shard.run();
    // The batch that holds the offset, not the next one.
    let one = shard.fetch(1, 15, 30, 1).expect("fetched");
    assert_eq!(one.len(), 1, "at least one batch whatever the bound");
    assert_eq!(one[0].raw, payload(1, 10, 50));
    assert_eq!(shard.fetch(1, 0, 30, 100).expect("fetched").len(), 2);
    assert_eq!(
        shard.fetch(1, 0, 11, 1 << 20).expect("fetched").len(),
        2,
        "a base below the end is visible"
    );
    assert_eq!(shard.fetch(1, 0, 10, 1 << 20).expect("fetched").len(), 1);
    assert!(
        shard.fetch(1, 15, 12, 1 << 20).expect("fetched").is_empty(),
        "an end at or below the offset"
    );
    assert!(shard.fetch(1, 30, 40, 1 << 20).expect("fetched").is_empty());
    assert!(shard.fetch(99, 0, 40, 1 << 20).expect("fetched").is_empty());
}

#[test]
fn groups_gather_while_a_pair_is_in_flight() {
    let mut shard = Shard::open(Disk::default(), config());
    shard.append(1, 0, 1, b"first").expect("appended");
    shard.log.flush();
    shard.drain();
    assert!(
        shard
            .waiting
            .iter()
            .any(|io| format!("{:?}", io.op).contains("Write")),
        "the first goes at once"
    );
    for offset in 1..50 {
        shard.append(1, offset, 1, b"later").expect("appended");
        shard.log.flush();
    }
    shard.run();
    assert_eq!(shard.log.durable(), Lsn(50));
    assert_eq!(
        shard.log.stats().groups,
        2,
        "all that waited went in one group"
    );
}

#[test]
fn everything_is_replayed_and_served_after_a_restart() {
    let mut shard = Shard::open(Disk::default(), config());
    for offset in 0..20 {
        shard.put(offset as u32 % 3, offset, &payload(9, offset, 500));
    }
    shard
        .log
        .append(Append {
            kind: 1,
            fact: "no batch".into(),
            raw: vec![].into(),
            index: None,
        })
        .expect("appended");
    shard.log.flush();
    shard.run();
    let mut disk = shard.disk;
    disk.crash();
    let mut shard = Shard::open(disk, config());
    assert_eq!(shard.found().last, Lsn(21));
    assert_eq!(shard.found().replayed, 21);
    assert_eq!(shard.found().cut_bytes, 0);
    let lsns: Vec<u64> = shard.replayed.iter().map(|e| e.lsn.0).collect();
    assert_eq!(lsns, (1..=21).collect::<Vec<_>>());
    assert!(
        shard
            .replayed
            .iter()
            .all(|unit| unit.entries[0].raw.is_empty())
    );
    assert_eq!(shard.replayed[0].entries[0].raw_len, 500);
    assert_eq!(shard.replayed[20].entries[0].fact, "no batch");
    for slot in 0..3u32 {
        let read = shard.read_all(slot, 0, 20, 1 << 20);
        assert!(read.len() >= 6);
        for (offset, raw) in read {
            assert_eq!(raw, payload(9, offset, 500));
        }
    }
    assert!(
        shard.log.stats().fetches_cold > 0,
        "after a restart the disk answers"
    );
    let lsn = shard.put(0, 100, b"goes on");
    assert_eq!(lsn, Lsn(22));
}

#[test]
fn many_files_are_sealed_and_read_back_cold() {
    let mut config = config();
    config.hot_tail_bytes_max = 0;
    let mut shard = Shard::open(Disk::default(), config.clone());
    let batches = 300;
    for offset in 0..batches {
        let slot = (offset % 4) as u32;
        shard.put(slot, offset, &payload(slot, offset, 5000 + offset as usize));
    }
    let files = shard.disk.wal_files();
    assert!(files.len() > 6, "{files:?}");
    assert!(shard.has(|e| matches!(e, Event::Sealed { file: 1, .. })));
    for slot in 0..4 {
        for bytes_max in [1, 20_000, 1 << 20] {
            let read = shard.read_all(slot, 0, batches, bytes_max);
            assert_eq!(read.len(), 75);
            for (offset, raw) in read {
                assert_eq!(raw, payload(slot, offset, 5000 + offset as usize));
            }
        }
    }
    let ranges: Vec<_> = shard.log.sealed_ranges().collect();
    assert!(
        ranges
            .iter()
            .all(|r| r.bytes > 5000 && r.first_offset <= r.last_offset)
    );
    // Footers are found again; only the open file is indexed in memory.
    let mut disk = shard.disk;
    disk.crash();
    let mut shard = Shard::open(disk, config);
    assert!(
        shard.found().damage.is_empty(),
        "{:?}",
        shard.found().damage
    );
    assert_eq!(shard.found().replayed, batches);
    assert_eq!(shard.log.sealed_ranges().collect::<Vec<_>>(), ranges);
    for slot in 0..4 {
        assert_eq!(shard.read_all(slot, 0, batches, 1 << 20).len(), 75);
    }
}

#[test]
fn an_entry_larger_than_a_group_goes_alone() {
    let mut shard = Shard::open(Disk::default(), config());
    let large = payload(1, 0, 100_000);
    shard.put(1, 0, &large);
    assert_eq!(shard.fetch(1, 0, 1, 1).expect("fetched")[0].raw, large);
    assert_eq!(
        shard.append(1, 1, 1, &vec![0; SEGMENT as usize]),
        Err(Refused::TooLarge)
    );
}

#[test]
fn time_finds_the_first_batch_that_is_new_enough() {
    let mut config = config();
    config.hot_tail_bytes_max = 0;
    for hot in [1 << 20, 0] {
        config.hot_tail_bytes_max = hot;
        let mut shard = Shard::open(Disk::default(), config.clone());
        for offset in 0..120 {
            shard.put(1, offset, &payload(1, offset, 5000));
        }
        // Timestamps are ten times the offset.
        for (time, offset) in [(-5, 0), (0, 0), (1, 1), (555, 56), (1190, 119)] {
            let key = shard
                .by_time(1, time, 120)
                .expect("found")
                .expect("some batch");
            assert_eq!(key.base_offset, Offset(offset), "time {time}");
        }
        assert_eq!(shard.by_time(1, 1191, 120), Ok(None));
        assert_eq!(
            shard.by_time(1, 1100, 100),
            Ok(None),
            "nothing past the released end"
        );
        shard.log.set_start(PartitionSlot(1), Offset(50));
        assert_eq!(
            shard
                .by_time(1, 0, 120)
                .expect("found")
                .expect("some")
                .base_offset,
            Offset(50)
        );
    }
}

#[test]
fn a_damaged_batch_is_answered_as_damage_and_the_rest_is_served() {
    let mut config = config();
    config.hot_tail_bytes_max = 0;
    let mut shard = Shard::open(Disk::default(), config.clone());
    for offset in 0..10 {
        shard
            .append(1, offset, 1, &payload(1, offset, 1000))
            .expect("appended");
    }
    shard.log.flush();
    shard.run();
    shard.log.idle();
    shard.run();
    // Entries are 96 + 16 + 1000 bytes; the first starts at 96.
    let file = millstream_log::io::FileId::Wal(1);
    shard.disk.flip(file, 96 + 1112 * 4 + 500);
    assert_eq!(
        shard.fetch(1, 0, 10, 1 << 20).expect("fetched").len(),
        4,
        "what is before it comes first"
    );
    let damaged = FetchError::Damaged {
        from: Offset(4),
        to: Offset(4),
    };
    assert_eq!(
        shard.fetch(1, 4, 10, 1 << 20).expect_err("damaged"),
        damaged
    );
    assert_eq!(shard.fetch(1, 5, 10, 1 << 20).expect("fetched").len(), 5);
    // The same after a restart, which also reports it.
    let mut disk = shard.disk;
    disk.crash();
    let mut shard = Shard::open(disk, config);
    assert_eq!(shard.found().damage.len(), 1, "{:?}", shard.found());
    assert!(shard.found().damage[0].what.contains("offsets 4 to 4"));
    assert_eq!(shard.found().read_only, None);
    assert_eq!(shard.replayed.len(), 10, "its fact is whole");
    assert_eq!(
        shard.fetch(1, 4, 10, 1 << 20).expect_err("damaged"),
        damaged
    );
    assert_eq!(shard.fetch(1, 5, 10, 1 << 20).expect("fetched").len(), 5);
}

#[test]
fn idle_marks_once() {
    let mut shard = Shard::open(Disk::default(), config());
    shard.put(1, 0, b"x");
    let before = shard.log.stats().groups;
    for _ in 0..3 {
        shard.log.idle();
        shard.run();
    }
    assert_eq!(shard.log.stats().groups, before + 1);
    assert!(shard.log.is_quiet());
}

#[test]
fn the_hot_tail_keeps_its_bound_and_counts_what_is_pinned() {
    let mut config = config();
    config.hot_tail_bytes_max = 64 << 10;
    let mut shard = Shard::open(Disk::default(), config);
    let mut held = Vec::new();
    for offset in 0..100 {
        shard.put(1, offset, &payload(1, offset, 3000));
        held.extend(shard.fetch(1, offset, offset + 1, 1).expect("fetched"));
        assert!(shard.log.stats().hot_bytes <= 64 << 10);
    }
    // The first that are held lie in the tail's memory, the others are copies: the newest stayed hot.
    assert!(shard.log.stats().hot_bytes > 32 << 10);
    assert_eq!(shard.log.stats().fetches_cold, 0);
    held.clear();
    for offset in 100..104 {
        shard.put(1, offset, &payload(1, offset, 3000));
    }
    let cold = shard.log.stats().fetches_cold;
    assert_eq!(shard.fetch(1, 102, 104, 1 << 20).expect("fetched").len(), 2);
    assert_eq!(
        shard.log.stats().fetches_cold,
        cold,
        "the tail is hot again"
    );
    assert_eq!(shard.read_all(1, 0, 104, 1 << 16).len(), 104);
}

#[test]
fn who_holds_one_batch_holds_not_what_was_read_or_written_with_it() {
    let mut config = config();
    config.hot_tail_bytes_max = 64 << 10;
    let mut shard = Shard::open(Disk::default(), config);
    for offset in 0..50 {
        shard.put(1, offset, &payload(1, offset, 3000));
    }
    let cold = shard.log.stats().fetches_cold;
    let held = shard.fetch(1, 0, 50, 1).expect("fetched");
    assert_eq!(shard.log.stats().fetches_cold, cold + 1);
    assert!(
        held[0].raw.is_unique(),
        "its neighbours are in the read's buffer"
    );
    // Hot: shared at first, copied once readers hold half of the tail's memory.
    let first = shard.fetch(1, 49, 50, 1).expect("fetched");
    assert!(!first[0].raw.is_unique());
    let mut held = Vec::new();
    for offset in 50..100 {
        shard.put(1, offset, &payload(1, offset, 3000));
        held.extend(shard.fetch(1, offset, offset + 1, 1).expect("fetched"));
    }
    let shared = held.iter().filter(|entry| !entry.raw.is_unique()).count();
    assert!((4..=16).contains(&shared), "{shared} of 50 hold the tail");
    let cold = shard.log.stats().fetches_cold;
    shard.fetch(1, 98, 100, 1 << 20).expect("fetched");
    assert_eq!(
        shard.log.stats().fetches_cold,
        cold,
        "the tail is still hot"
    );
}

#[test]
fn many_cold_readers_wait_for_each_other() {
    let mut config = config();
    config.hot_tail_bytes_max = 0;
    let mut shard = Shard::open(Disk::default(), config);
    for offset in 0..30 {
        shard.put(1, offset, &payload(1, offset, 20_000));
    }
    for token in 0..1_000 {
        shard.log.fetch(Fetch {
            token: 1 << 32 | token,
            slot: PartitionSlot(1),
            offset: Offset(token % 20),
            end: Offset(30),
            bytes_max: 100_000,
        });
    }
    let mut most = 0;
    loop {
        shard.drain();
        let reads = shard.waiting.iter().map(|io| match io.op {
            IoOp::Read { len, .. } => len,
            _ => 0,
        });
        most = most.max(reads.sum());
        if !shard.step() {
            break;
        }
    }
    // Sections of footers, a block each, are not bounded; what they lead to is.
    let sections = 1_000 * BLOCK_BYTES;
    assert!(
        ((8 << 20)..=(16 << 20) + sections).contains(&most),
        "{most} bytes are read at once"
    );
    let served = |event: &&Event| matches!(event, Event::Fetched { result: Ok(entries), .. } if !entries.is_empty());
    assert_eq!(shard.events.iter().filter(served).count(), 1_000);
}

#[test]
fn interval_mode_is_visible_when_written_and_durable_when_synced() {
    let mut config = config();
    config.sync_each_group = false;
    let mut shard = Shard::open(Disk::default(), config.clone());
    for offset in 0..10 {
        shard.put(1, offset, b"written");
    }
    assert_eq!(shard.log.stats().syncs, 1, "the first group of a run");
    assert_eq!(shard.fetch(1, 0, 10, 1 << 20).expect("fetched").len(), 10);
    shard.log.sync_now();
    shard.run();
    assert_eq!(shard.log.stats().syncs, 2);
    shard.put(1, 10, b"lost");
    let mut disk = shard.disk;
    disk.crash();
    let shard = Shard::open(disk, config.clone());
    assert_eq!(shard.found().last, Lsn(10), "what was synced is there");
    assert_eq!(
        shard.found().term.0,
        1,
        "an unclean start under this mode raises the term"
    );
    // A clean stop does not raise it.
    let mut shard = shard;
    shard
        .log
        .append(batch(1, 10, 1, b"again"))
        .expect("appended");
    shard.log.seal();
    shard.run();
    assert!(shard.log.is_quiet());
    let mut disk = shard.disk;
    disk.crash();
    let shard = Shard::open(disk, config);
    assert_eq!(shard.found().last, Lsn(11));
    assert_eq!(shard.found().term.0, 1);
}

#[test]
fn reading_cold_in_small_pieces_reads_the_disk_in_large_ones() {
    let mut config = config();
    config.hot_tail_bytes_max = 0;
    let mut shard = Shard::open(Disk::default(), config);
    for offset in 0..200 {
        shard.put(1, offset, &payload(1, offset, 3000));
    }
    let before = shard.disk.trace.len();
    assert_eq!(shard.read_all(1, 0, 200, 1).len(), 200);
    let reads = shard.disk.trace[before..]
        .iter()
        .filter(|t| t.starts_with("Read"))
        .count();
    // Four files of 256 KiB: a section and a stretch each, no more than a few.
    assert!(reads <= 12, "{reads} reads for 200 fetches");
}

/// A log of `slots` partitions, each with `batches` batches of 60 kB, all cold. So many of one partition
/// follow each other.
fn cold_partitions(slots: u32, batches: u64, together: u64, read_bytes_max: usize) -> Shard {
    let mut config = config();
    config.hot_tail_bytes_max = 0;
    config.segment_bytes = 64 << 20;
    config.first_segment_bytes = config.segment_bytes;
    config.group_bytes_max = 1 << 20;
    config.read_bytes_max = read_bytes_max;
    let mut shard = Shard::open(Disk::default(), config);
    for first in (0..batches).step_by(together as usize) {
        for slot in 0..slots {
            for offset in first..(first + together).min(batches) {
                let raw = payload(slot, offset, 60_000);
                shard.append(slot, offset, 1, &raw).expect("appended");
            }
            shard.log.flush();
            shard.run();
        }
    }
    shard
}

/// What is read ahead is there when it is asked for, however many read: nothing is read from the disk
/// twice, whether partitions lie mixed or apart, and whether fetches are as large as reads or smaller.
#[test]
fn many_that_read_in_sequence_read_the_disk_once() {
    let mixed = [(1, 1, 1 << 20), (8, 1, 1 << 20), (40, 1, 1 << 20)];
    let apart = [(12, 16, 1 << 20), (1, 8, 300_000), (12, 16, 300_000)];
    for (slots, together, bytes_max) in mixed.into_iter().chain(apart) {
        let batches = 2_000 / u64::from(slots);
        // A read that is taken in pieces has to stay until its last one.
        let pieces = if bytes_max < 1 << 20 {
            slots as usize
        } else {
            0
        };
        let read_bytes_max = (12 << 20) + pieces * (4 << 20);
        let mut shard = cold_partitions(slots, batches, together, read_bytes_max);
        let before = shard.log.stats().bytes_read;
        let mut next = vec![0; slots as usize];
        while next.iter().any(|n| *n < batches) {
            for slot in 0..slots {
                let at = &mut next[slot as usize];
                if *at < batches {
                    let entries = shard.fetch(slot, *at, batches, bytes_max).expect("fetched");
                    assert!(!entries.is_empty());
                    *at += entries.len() as u64;
                }
            }
        }
        let read = shard.log.stats().bytes_read - before;
        let all = u64::from(slots) * batches * 60_000;
        // In whole blocks: 60 kB alone are read as 64 KiB.
        assert!(
            read < all + all / 6,
            "{slots} partitions, {together} together, {bytes_max}: {read} bytes were read of {all}"
        );
    }
}

/// The disk works ahead of who reads in sequence, so that nobody waits for it, and not further than that.
#[test]
fn who_reads_in_sequence_finds_the_next_bytes_there() {
    let mut shard = cold_partitions(1, 400, 8, 36 << 20);
    let (mut offset, mut waited, mut most, mut late) = (0, 0, 0, 0);
    for token in 1 << 40.. {
        shard.log.fetch(Fetch {
            token,
            slot: PartitionSlot(0),
            offset: Offset(offset),
            end: Offset(400),
            bytes_max: 1 << 20,
        });
        shard.drain();
        let reads = shard.waiting.iter().map(|io| match io.op {
            IoOp::Read { len, .. } => len,
            _ => 0,
        });
        most = most.max(reads.sum());
        let answered = |shard: &Shard| shard.has(|e| matches!(e, Event::Fetched { .. }));
        waited += u32::from(!answered(&shard));
        while !answered(&shard) {
            assert!(shard.step(), "it is answered");
        }
        let event = shard.events.pop();
        let Some(Event::Fetched {
            result: Ok(entries),
            ..
        }) = event
        else {
            panic!("{event:?}")
        };
        assert!(
            entries.iter().all(|entry| !entry.raw.is_unique()),
            "served as it was read, not copied"
        );
        offset += entries.len() as u64;
        if offset == 400 {
            break;
        }
        // While these are sent, the disk ends the reads that were asked for before the last ones were sent.
        for _ in 0..late {
            shard.step();
        }
        late = shard.waiting.len();
    }
    assert!(waited <= 3, "{waited} fetches waited for the disk");
    assert!(most <= 3 << 20, "{most} bytes were read at once");
}
