//! Files are made ahead, freed when nothing is alive in them, and a full disk heals.

use millstream_batch::ids::{Lsn, Offset, PartitionSlot};
use millstream_log::io::{FileId, IoOp};
use millstream_log::{Config, Event, Refused};

use crate::disk::{Disk, SEGMENT, Shard, batch, config, payload};

fn cold() -> Config {
    Config {
        hot_tail_bytes_max: 0,
        ..config()
    }
}

/// Put batches of 9,000 bytes until there are `files` files; gives the next offset.
fn fill(shard: &mut Shard, slot: u32, mut offset: u64, files: u64) -> u64 {
    while shard.disk.wal_files().last().copied() < Some(files) {
        shard.put(slot, offset, &payload(slot, offset, 9000));
        offset += 1;
    }
    offset
}

#[test]
fn retention_frees_whole_files_once_a_snapshot_covers_them() {
    let mut shard = Shard::open(Disk::default(), cold());
    let end = fill(&mut shard, 1, 0, 10);
    shard.log.set_start(PartitionSlot(1), Offset(end));
    shard.run();
    assert_eq!(
        shard.disk.wal_files(),
        (1..=10).collect::<Vec<_>>(),
        "replay still needs them"
    );
    assert!(shard.log.holders()[0].by[0].contains("snapshot"));
    shard.snapshot(&[b"state"]);
    assert!(shard.has(|e| matches!(e, Event::SnapshotPublished { .. })));
    assert_eq!(
        shard.disk.wal_files(),
        [9, 10],
        "the open file and the next"
    );
    assert_eq!(shard.log.stats().files_freed, 8);
    // One next, one reserve, two more: the rest returned to the file system.
    let spares = shard
        .disk
        .live
        .keys()
        .filter(|f| matches!(f, FileId::Spare(_)))
        .count();
    assert_eq!(spares, 3, "{:?}", shard.disk.live.keys());
    assert_eq!(shard.log.stats().disk_bytes, 5 * SEGMENT);
    let mut disk = shard.disk;
    disk.crash();
    let mut shard = Shard::open(disk, cold());
    assert!(shard.found().damage.is_empty(), "{:?}", shard.found());
    assert_eq!(shard.found().last, Lsn(end));
    assert_eq!(shard.found().replayed, 0);
    shard.put(1, end, b"goes on");
}

#[test]
fn one_old_slot_holds_its_file_and_is_named() {
    let mut shard = Shard::open(Disk::default(), cold());
    shard.put(7, 0, b"keep me");
    let end = fill(&mut shard, 1, 0, 6);
    shard.snapshot(&[b"state"]);
    shard.log.set_start(PartitionSlot(1), Offset(end));
    shard.run();
    assert_eq!(shard.disk.wal_files(), [1, 5, 6]);
    let held = shard.log.holders();
    assert_eq!(held[0].by, ["slot 7 retains offsets 0 to 0 (7 bytes)"]);
    // The gap between the files is known to be a freed one.
    let mut disk = shard.disk.clone();
    disk.crash();
    let mut again = Shard::open(disk, cold());
    assert!(again.found().damage.is_empty(), "{:?}", again.found());
    assert_eq!(
        again.fetch(7, 0, 1, 100).expect("fetched")[0].raw,
        "keep me"
    );
    assert_eq!(again.log.slots(), [PartitionSlot(1), PartitionSlot(7)]);
    // Dropped, it goes too.
    shard.log.drop_slot(PartitionSlot(7));
    shard.run();
    assert_eq!(shard.disk.wal_files(), [5, 6]);
    let mut disk = shard.disk;
    disk.crash();
    let again = Shard::open(disk, cold());
    assert!(again.found().damage.is_empty(), "{:?}", again.found());
}

#[test]
fn a_crash_while_a_file_is_freed_loses_nothing_and_frees_it_again() {
    let mut shard = Shard::open(Disk::default(), cold());
    let end = fill(&mut shard, 1, 0, 6);
    shard.snapshot(&[b"state"]);
    shard.log.set_start(PartitionSlot(1), Offset(end));
    let mut crashes = 0;
    loop {
        let mut disk = shard.disk.clone();
        disk.crash();
        let mut again = Shard::open(disk, cold());
        assert!(again.found().damage.is_empty(), "{:?}", again.found());
        assert_eq!(again.found().last, Lsn(end));
        again.log.set_start(PartitionSlot(1), Offset(end));
        again.run();
        assert_eq!(again.disk.wal_files(), [5, 6]);
        crashes += 1;
        if !shard.step() {
            break;
        }
    }
    assert!(crashes > 4);
}

#[test]
fn a_file_under_a_read_is_not_recycled() {
    let mut shard = Shard::open(Disk::default(), cold());
    let end = fill(&mut shard, 1, 0, 4);
    shard.snapshot(&[b"state"]);
    // Read the section of the footer, then hold the read of the data.
    shard.log.fetch(millstream_log::Fetch {
        token: 999,
        slot: PartitionSlot(1),
        offset: Offset(0),
        end: Offset(end),
        bytes_max: 1,
    });
    assert!(shard.step());
    shard.drain();
    let read = shard.waiting.pop_front().expect("a read");
    assert!(
        matches!(
            read.op,
            IoOp::Read {
                file: FileId::Wal(1),
                ..
            }
        ),
        "{read:?}"
    );
    shard.log.set_start(PartitionSlot(1), Offset(end));
    shard.run();
    assert_eq!(shard.disk.wal_files(), [1, 3, 4]);
    assert!(shard.log.holders()[0].by[0].contains("read in flight"));
    shard.waiting.push_back(read);
    shard.run();
    assert_eq!(shard.disk.wal_files(), [3, 4]);
    assert!(shard.has(
        |e| matches!(e, Event::Fetched { token: 999, result: Ok(entries) } if entries.len() == 1)
    ));
}

#[test]
fn a_full_disk_refuses_keeps_the_reserve_and_heals() {
    let disk = Disk {
        capacity: Some(6 * SEGMENT + 1000),
        ..Disk::default()
    };
    let mut shard = Shard::open(disk, cold());
    let mut offset = 0;
    let refused = loop {
        match shard.append(1, offset, 1, &payload(1, offset, 9000)) {
            Ok(_) => offset += 1,
            Err(e) => break e,
        }
        shard.log.flush();
        shard.run();
    };
    assert_eq!(refused, Refused::Full);
    assert!(shard.has(|e| matches!(e, Event::SpaceGone(_))));
    assert_eq!(
        shard.log.durable(),
        Lsn(offset),
        "all that was accepted is durable"
    );
    assert_eq!(
        shard.read_all(1, 0, offset, 1 << 20).len() as u64,
        offset,
        "reading goes on"
    );
    // The reserve takes what gives space back.
    let mut fact = batch(2, 0, 1, &payload(2, 0, 20_000));
    fact.kind = 9;
    let lsn = shard.log.append_reserved(fact).expect("reserved");
    shard.log.flush();
    shard.run();
    assert!(shard.log.durable() >= lsn);
    assert_eq!(shard.append(1, offset, 1, b"not yet"), Err(Refused::Full));
    // The snapshot is small enough for what is left; retention frees files.
    shard.log.set_start(PartitionSlot(1), Offset(offset));
    shard.snapshot(&[b"state"]);
    shard.log.retry_space();
    shard.run();
    assert!(
        shard.has(|e| matches!(e, Event::SpaceBack)),
        "{:?}",
        shard.disk.trace
    );
    for _ in 0..50 {
        shard.put(1, offset, &payload(1, offset, 3000));
        offset += 1;
    }
    let mut disk = shard.disk;
    disk.crash();
    let shard = Shard::open(disk, cold());
    assert!(shard.found().damage.is_empty(), "{:?}", shard.found());
    assert_eq!(shard.found().last, Lsn(offset + 1));
}

#[test]
fn a_snapshot_on_a_full_disk_may_take_the_reserve() {
    let disk = Disk {
        capacity: Some(6 * SEGMENT),
        ..Disk::default()
    };
    let mut shard = Shard::open(disk, cold());
    let mut offset = 0;
    while shard
        .append(1, offset, 1, &payload(1, offset, 9000))
        .is_ok()
    {
        shard.log.flush();
        shard.run();
        offset += 1;
    }
    shard.log.set_start(PartitionSlot(1), Offset(offset));
    shard.run();
    shard.snapshot(&[b"state"]);
    assert!(
        shard.has(|e| matches!(e, Event::SnapshotPublished { .. })),
        "{:?}",
        shard.events
    );
    shard.log.retry_space();
    shard.run();
    assert!(shard.has(|e| matches!(e, Event::SpaceBack)));
    shard.put(1, offset, b"healed");
}

#[test]
fn a_disk_that_is_full_from_the_start_opens_and_says_so() {
    let disk = Disk {
        capacity: Some(SEGMENT - 1),
        ..Disk::default()
    };
    let mut shard = Shard::open(disk, cold());
    assert!(shard.has(|e| matches!(e, Event::SpaceGone(_))));
    assert_eq!(shard.append(1, 0, 1, b"x"), Err(Refused::Full));
    shard.disk.capacity = None;
    shard.log.retry_space();
    shard.run();
    assert!(shard.has(|e| matches!(e, Event::SpaceBack)));
    shard.put(1, 0, b"x");
}

#[test]
fn a_failed_write_stops_writing_for_good_and_serves_what_is_durable() {
    let mut shard = Shard::open(Disk::default(), cold());
    shard.put(1, 0, b"durable");
    shard.append(1, 1, 1, b"fails").expect("appended");
    shard.disk.fail_op = Some(|op| matches!(op, IoOp::Write { .. }));
    shard.log.flush();
    shard.run();
    assert!(shard.has(|e| matches!(e, Event::Failed(_))));
    assert_eq!(shard.log.durable(), Lsn(1));
    let writes = shard.disk.trace.len();
    assert_eq!(shard.append(1, 2, 1, b"no"), Err(Refused::Stopped));
    shard.log.flush();
    shard.log.idle();
    shard.log.seal();
    shard.log.set_start(PartitionSlot(1), Offset(1));
    shard.snapshot(&[b"state"]);
    shard.run();
    assert_eq!(
        shard.disk.trace.len(),
        writes,
        "nothing is written or removed any more"
    );
    assert!(shard.log.is_quiet());
    let entries = shard.fetch(1, 0, 10, 100).expect("fetched");
    assert!(entries.is_empty(), "trimmed");
    // Nothing speculative was served: only what a restart finds.
    let mut disk = shard.disk;
    disk.crash();
    let mut shard = Shard::open(disk, cold());
    assert_eq!(shard.found().last, Lsn(1));
    assert_eq!(shard.fetch(1, 0, 10, 100).expect("fetched").len(), 1);
}

/// Files of four blocks first, up to a quarter of a megabyte.
fn growing() -> Config {
    Config {
        first_segment_bytes: SEGMENT / 8,
        ..cold()
    }
}

#[test]
fn the_first_files_are_short_and_grow_with_the_log() {
    let mut shard = Shard::open(Disk::default(), growing());
    assert_eq!(
        shard.log.stats().disk_bytes,
        4 * SEGMENT / 8,
        "an empty log is small"
    );
    let mut offset = 0;
    while shard.disk.wal_files().len() < 40 {
        shard.put(1, offset, &payload(1, offset, 9000));
        offset += 1;
    }
    let lengths: Vec<u64> = shard
        .disk
        .live
        .iter()
        .filter(|(file, _)| matches!(file, FileId::Wal(_)))
        .map(|(_, bytes)| bytes.len() as u64)
        .collect();
    assert_eq!(lengths[0], SEGMENT / 8);
    assert!(lengths.is_sorted(), "{lengths:?}");
    assert_eq!(lengths.last(), Some(&SEGMENT));
    let stats = shard.log.stats();
    let used: u64 = shard
        .disk
        .live
        .values()
        .map(|bytes| bytes.len() as u64)
        .sum();
    assert_eq!(stats.disk_bytes, used);
    // A start finds them all, and goes on in the file that it was in.
    let mut disk = shard.disk;
    disk.crash();
    let mut shard = Shard::open(disk, growing());
    assert!(shard.found().damage.is_empty(), "{:?}", shard.found());
    shard.put(1, offset, b"goes on");
    let all = shard.read_all(1, 0, offset + 1, 1 << 20);
    assert_eq!(all.len() as u64, offset + 1);
    // Little is left of it: new files are short again.
    shard.log.set_start(PartitionSlot(1), Offset(offset));
    shard.snapshot(&[b"state"]);
    let freed = shard.log.stats();
    assert!(freed.disk_bytes < used / 2, "{freed:?}");
}

#[test]
fn what_does_not_fit_a_short_file_gets_one_of_full_length() {
    let mut shard = Shard::open(Disk::default(), growing());
    shard.put(1, 0, b"small");
    let large = payload(1, 1, SEGMENT as usize / 2);
    // It is never accepted on the hope of a file that is not there.
    assert_eq!(shard.append(1, 1, 1, &large), Err(Refused::NotYet));
    // Meanwhile others go on.
    shard.put(2, 0, b"others");
    shard.run();
    shard.put(1, 1, &large);
    assert_eq!(
        shard.append(1, 2, 1, &payload(1, 2, SEGMENT as usize)),
        Err(Refused::TooLarge)
    );
    let mut disk = shard.disk;
    disk.crash();
    let mut shard = Shard::open(disk, growing());
    assert!(shard.found().damage.is_empty(), "{:?}", shard.found());
    assert_eq!(shard.read_all(1, 0, 2, 1 << 20).len(), 2);
    assert_eq!(shard.read_all(2, 0, 1, 1 << 20).len(), 1);
}

#[test]
fn a_crash_while_the_next_file_is_changed_for_a_longer_one_loses_nothing() {
    let mut shard = Shard::open(Disk::default(), growing());
    shard.put(1, 0, b"small");
    let large = payload(1, 1, SEGMENT as usize / 2);
    assert_eq!(shard.append(1, 1, 1, &large), Err(Refused::NotYet));
    let mut crashes = 0;
    loop {
        let mut disk = shard.disk.clone();
        disk.crash();
        let mut again = Shard::open(disk, growing());
        assert!(again.found().damage.is_empty(), "{:?}", again.found());
        assert_eq!(again.found().last, Lsn(1));
        again.put(1, 1, b"goes on");
        crashes += 1;
        if !shard.step() {
            break;
        }
    }
    assert!(crashes > 3, "{:?}", shard.disk.trace);
}

#[test]
fn a_full_disk_of_short_files_keeps_its_reserve() {
    let disk = Disk {
        capacity: Some(SEGMENT + SEGMENT / 2 + 1_000),
        ..Disk::default()
    };
    let mut shard = Shard::open(disk, growing());
    let mut offset = 0;
    let refused = loop {
        match shard.append(1, offset, 1, &payload(1, offset, 9000)) {
            Ok(_) => offset += 1,
            Err(Refused::NotYet) => panic!("a batch of 9,000 bytes fits"),
            Err(e) => break e,
        }
        shard.log.flush();
        shard.run();
    };
    assert_eq!(refused, Refused::Full);
    assert_eq!(
        shard.log.durable(),
        Lsn(offset),
        "all that was accepted is durable"
    );
    // A long file cannot be had either, and says so.
    let large = payload(2, 0, SEGMENT as usize / 2);
    assert_eq!(shard.append(2, 0, 1, &large), Err(Refused::Full));
    let mut fact = batch(2, 0, 1, &payload(2, 0, 9_000));
    fact.kind = 9;
    let lsn = shard.log.append_reserved(fact).expect("reserved");
    shard.log.flush();
    shard.run();
    assert!(shard.log.durable() >= lsn);
    shard.log.set_start(PartitionSlot(1), Offset(offset));
    shard.snapshot(&[b"state"]);
    shard.log.retry_space();
    shard.run();
    assert!(
        shard.has(|e| matches!(e, Event::SpaceBack)),
        "{:?}",
        shard.disk.trace
    );
    shard.put(1, offset, b"healed");
}

#[test]
fn a_file_without_anything_alive_is_closed_before_it_is_full() {
    let mut shard = Shard::open(Disk::default(), growing());
    assert!(!shard.log.seal_dead(), "nothing is in it");
    shard.put(1, 0, b"one");
    shard.put(2, 0, b"two");
    shard.log.set_start(PartitionSlot(1), Offset(1));
    assert!(!shard.log.seal_dead(), "slot 2 is alive in it");
    shard.log.drop_slot(PartitionSlot(2));
    assert!(shard.log.seal_dead());
    shard.run();
    assert!(shard.has(|e| matches!(e, Event::Sealed { file: 1, .. })));
    shard.snapshot(&[b"state"]);
    assert!(
        !shard.disk.wal_files().contains(&1),
        "{:?}",
        shard.disk.wal_files()
    );
    assert!(!shard.log.seal_dead(), "the next one is empty");
    let mut disk = shard.disk;
    disk.crash();
    let shard = Shard::open(disk, growing());
    assert!(shard.found().damage.is_empty(), "{:?}", shard.found());
}
