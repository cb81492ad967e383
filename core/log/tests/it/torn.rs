//! A torn end is cut, and only that.

use millstream_batch::ids::{Lsn, Term};
use millstream_log::io::{FileId, IoOp};
use millstream_log::{Config, Event};

use crate::disk::{BLOCK, Disk, Shard, config, payload};

/// A disk with five durable batches, and the write of a last group that was on its way.
fn before_the_last_write(config: &Config) -> (Disk, IoOp) {
    let mut shard = Shard::open(Disk::default(), config.clone());
    for offset in 0..5 {
        shard.put(1, offset, &payload(1, offset, 200));
    }
    for offset in 5..9 {
        shard
            .append(1, offset, 1, &payload(1, offset, 5000))
            .expect("appended");
    }
    shard.log.flush();
    shard.drain();
    let write = shard.waiting.pop_front().expect("a write").op;
    assert!(
        matches!(&write, IoOp::Write { len, .. } if *len == 6 * BLOCK),
        "{write:?}"
    );
    let mut disk = shard.disk;
    disk.crash();
    (disk, write)
}

#[test]
fn a_group_torn_at_any_block_is_cut_and_the_term_raised() {
    let config = config();
    let (before, write) = before_the_last_write(&config);
    let IoOp::Write { file, at, len, .. } = &write else {
        unreachable!()
    };
    for mask in 0..1u32 << (len / BLOCK) {
        let mut disk = before.clone();
        disk.begin_write(&write);
        let mut block = 0;
        disk.crash_keeping(|| {
            block += 1;
            mask & (1 << (block - 1)) != 0
        });
        let whole = mask.count_ones() as usize == len / BLOCK;
        let mut shard = Shard::open(disk, config.clone());
        let found = shard.found().clone();
        assert!(found.damage.is_empty(), "mask {mask:b}: {:?}", found.damage);
        assert_eq!(found.read_only, None);
        let header = mask & 1 != 0;
        if whole {
            assert_eq!(
                (found.last, found.cut_bytes, found.term),
                (Lsn(9), 0, Term(0))
            );
        } else {
            assert_eq!(found.last, Lsn(5), "mask {mask:b}");
            let expected = if header {
                (*len as u64, Term(1))
            } else {
                (0, Term(0))
            };
            assert_eq!((found.cut_bytes, found.term), expected, "mask {mask:b}");
        }
        // What is appended next takes the place of what was cut, and stays.
        let next = if whole { 9 } else { 5 };
        shard.put(1, next, b"next");
        let mut disk = shard.disk;
        disk.crash();
        let mut shard = Shard::open(disk, config.clone());
        assert!(
            shard.found().damage.is_empty(),
            "mask {mask:b}: {:?}",
            shard.found().damage
        );
        assert_eq!(shard.found().last, Lsn(next + 1));
        assert_eq!(
            shard.read_all(1, 0, next + 1, 1 << 20).len() as u64,
            next + 1
        );
        // Then come the mark of the first start, the batch, and the mark of the second.
        if !whole {
            let cut = &shard.disk.live[file][*at as usize + 3 * BLOCK..*at as usize + len];
            assert!(
                !header || cut.iter().all(|b| *b == 0),
                "mask {mask:b}: the cut is zero"
            );
        }
    }
}

#[test]
fn a_kill_loses_nothing_that_was_written() {
    let config = config();
    let (before, write) = before_the_last_write(&config);
    let mut disk = before;
    disk.perform(write).expect("written");
    disk.kill();
    let shard = Shard::open(disk, config);
    assert_eq!(shard.found().last, Lsn(9));
    assert_eq!(shard.found().cut_bytes, 0);
}

#[test]
fn the_end_found_at_start_is_synced_before_it_is_served() {
    let config = config();
    let (before, write) = before_the_last_write(&config);
    let mut disk = before;
    // Written, and perhaps only in the device's cache.
    disk.begin_write(&write);
    let IoOp::Write {
        file, at, buf, len, ..
    } = &write
    else {
        unreachable!()
    };
    disk.live.get_mut(file).expect("there")[*at as usize..][..*len].copy_from_slice(&buf[..*len]);
    let shard = Shard::open(disk, config.clone());
    assert_eq!(shard.found().last, Lsn(9));
    let mut disk = shard.disk;
    disk.crash();
    let shard = Shard::open(disk, config);
    assert_eq!(
        shard.found().last,
        Lsn(9),
        "what was served survives the next crash"
    );
}

/// The process starts again on what it can read back, which the failed sync did not bring to the disk.
#[test]
fn what_a_failed_sync_left_is_written_anew_at_the_next_start() {
    for each in [true, false] {
        let mut config = config();
        config.sync_each_group = each;
        config.segment_bytes = 64 * BLOCK as u64;
        config.first_segment_bytes = config.segment_bytes;
        config.group_bytes_max = 8 * BLOCK;
        let mut shard = Shard::open(Disk::default(), config.clone());
        for offset in 0..40 {
            shard.put(1, offset, &payload(1, offset, 5000));
        }
        shard.disk.fail_sync = Some(|op| matches!(op, IoOp::Write { sync: true, .. }));
        shard
            .append(1, 40, 1, &payload(1, 40, 5000))
            .expect("appended");
        shard.log.sync_now();
        shard.run();
        assert!(shard.has(|e| matches!(e, Event::Failed(_))));

        let mut again = Shard::open(shard.disk, config.clone());
        assert_eq!((again.found().last, again.found().cut_bytes), (Lsn(41), 0));
        assert!(again.found().rewritten_bytes > 0);
        assert!(
            again.disk.live == again.disk.durable,
            "nothing can be read that power could take"
        );
        again.put(1, 41, b"next");
        again.log.sync_now();
        again.run();
        let mut disk = again.disk;
        disk.crash();
        let mut after = Shard::open(disk, config);
        assert!(
            after.found().damage.is_empty(),
            "{:?}",
            after.found().damage
        );
        assert_eq!(after.found().read_only, None);
        assert_eq!(after.read_all(1, 0, 42, 1 << 20).len(), 42);
    }
}

/// A footer that can be read and is not on the disk.
#[test]
fn the_newest_footer_is_written_anew() {
    let mut config = config();
    config.segment_bytes = 32 * BLOCK as u64;
    config.first_segment_bytes = config.segment_bytes;
    let mut shard = Shard::open(Disk::default(), config.clone());
    shard.disk.fail_sync = Some(|op| match op {
        IoOp::Write { at, len, .. } => at + *len as u64 == 32 * BLOCK as u64,
        _ => false,
    });
    for offset in 0..40 {
        if shard
            .append(1, offset, 1, &payload(1, offset, 5000))
            .is_err()
        {
            break;
        }
        shard.log.flush();
        shard.run();
    }
    assert!(shard.has(|e| matches!(e, Event::Failed(_))));
    let footer = |disk: &Disk| {
        let mut planes = [&disk.live, &disk.durable].into_iter();
        planes.all(|plane| plane[&FileId::Wal(1)][31 * BLOCK..].starts_with(b"MSft"))
    };
    assert!(!footer(&shard.disk));
    let again = Shard::open(shard.disk, config);
    assert!(footer(&again.disk));
    assert!(again.disk.live == again.disk.durable);
}

/// Footers are derived data: one that cannot be read must not keep a shard from opening.
#[test]
fn a_footer_that_cannot_be_read_is_told_and_left() {
    let mut config = config();
    config.segment_bytes = 32 * BLOCK as u64;
    config.first_segment_bytes = config.segment_bytes;
    let mut shard = Shard::open(Disk::default(), config.clone());
    for offset in 0..30 {
        shard.put(1, offset, &payload(1, offset, 5000));
    }
    let mut disk = shard.disk;
    disk.crash();
    let sealed = disk.wal_files().into_iter().filter(|n| {
        let last = &disk.live[&FileId::Wal(*n)][31 * BLOCK..];
        last.starts_with(b"MSft")
    });
    let sealed = sealed.max().expect("a file is sealed");
    disk.fail_op = Some(|op| matches!(op, IoOp::Read { at, .. } if *at == 30 * BLOCK as u64));
    let mut shard = Shard::open(disk, config);
    let found = shard.found();
    assert_eq!((found.last, &found.read_only), (Lsn(30), &None));
    let told = &found.damage[0];
    assert_eq!(
        (told.file.as_str(), told.at),
        (FileId::Wal(sealed).file_name().as_str(), 30 * BLOCK as u64)
    );
    assert!(told.what.contains("cannot be read"), "{told:?}");
    shard.put(1, 30, b"next");
    assert_eq!(shard.read_all(1, 0, 31, 1 << 20).len(), 31);
}

/// A disk after power was lost under `flush = interval`: four batches synced, of those after them up to
/// `end` the second is lost. Each has a group of one block.
fn with_a_gap(end: u64) -> (Disk, Config) {
    let mut config = config();
    config.sync_each_group = false;
    let mut shard = Shard::open(Disk::default(), config.clone());
    for offset in 0..4 {
        shard.put(1, offset, &payload(1, offset, 200));
    }
    shard.log.sync_now();
    shard.run();
    for offset in 4..end {
        shard.put(1, offset, &payload(1, offset, 200));
    }
    let mut disk = shard.disk;
    let mut block = 0;
    disk.crash_keeping(|| {
        block += 1;
        block != 2
    });
    (disk, config)
}

/// The cut of a torn end does not reach the disk, the log goes on before it, and power is lost.
#[test]
fn groups_that_a_failed_cut_left_never_look_alive() {
    let (mut disk, config) = with_a_gap(10);
    // What stands at the end is written anew, then what is behind the gap is made zeros.
    let zeros = |op: &IoOp| match op {
        IoOp::Write { buf, len, .. } => *len > 0 && buf[..*len].iter().all(|b| *b == 0),
        _ => false,
    };
    disk.fail_sync = Some(zeros);
    let failed = Shard::open(disk, config.clone());
    assert!(failed.found().read_only.is_some());
    let mut shard = Shard::open(failed.disk, config.clone());
    assert_eq!((shard.found().last, shard.found().term), (Lsn(5), Term(1)));
    shard.put(1, 5, &payload(1, 5, 300));
    shard.log.sync_now();
    shard.run();
    let mut disk = shard.disk;
    disk.crash();
    let mut shard = Shard::open(disk, config);
    assert_eq!(shard.found().read_only, None);
    assert!(
        shard.found().damage.is_empty(),
        "{:?}",
        shard.found().damage
    );
    assert_eq!(shard.found().last, Lsn(6));
    assert_eq!(shard.read_all(1, 0, 10, 1 << 20).len(), 6);
}

#[test]
fn stale_groups_of_a_recycled_file_never_look_alive() {
    let mut config = config();
    config.hot_tail_bytes_max = 0;
    let mut shard = Shard::open(Disk::default(), config.clone());
    let mut offset = 0;
    let mut fill = |shard: &mut Shard, until: u64| {
        while shard.disk.wal_files().last().copied() < Some(until) {
            shard.put(1, offset, &payload(1, offset, 9000));
            offset += 1;
        }
        offset
    };
    let end = fill(&mut shard, 4);
    shard.snapshot(&[b"state"]);
    shard.log.set_start(1.into(), end.into());
    shard.log.flush();
    shard.run();
    assert!(
        shard
            .disk
            .trace
            .iter()
            .any(|t| t.contains("Rename { from: Wal(1), to: Spare")),
        "a file was recycled"
    );
    let end = fill(&mut shard, 8);
    // The open file is a recycled one, full of old groups; each crash point in it opens cleanly.
    for more in 0..6 {
        let mut disk = shard.disk.clone();
        disk.crash();
        let again = Shard::open(disk, config.clone());
        assert_eq!(again.found().last, Lsn(end + more));
        assert!(
            again.found().damage.is_empty(),
            "{:?}",
            again.found().damage
        );
        assert_eq!(again.found().cut_bytes, 0);
        shard.put(1, end + more, &payload(1, end + more, 5000));
    }
    let open = *shard
        .disk
        .wal_files()
        .iter()
        .rev()
        .nth(1)
        .expect("an open file");
    let taken = shard.disk.trace.iter().find_map(|t| {
        let spare = t
            .strip_prefix("Rename { from: Spare(")?
            .strip_suffix(&format!("), to: Wal({open}) }}"))?;
        Some(spare.to_owned())
    });
    let recycled = format!("to: Spare({}) }}", taken.expect("it was a spare"));
    assert!(
        shard.disk.trace.iter().any(|t| t.ends_with(&recycled)),
        "the open file was recycled"
    );
}

#[test]
fn interval_mode_cuts_at_the_first_gap_past_the_synced_point() {
    let (disk, config) = with_a_gap(8);
    let mut shard = Shard::open(disk, config);
    assert_eq!(shard.found().last, Lsn(5), "the one before the gap is kept");
    assert!(
        shard.found().cut_bytes >= 2 * BLOCK as u64,
        "{:?}",
        shard.found()
    );
    assert_eq!(shard.found().term, Term(1));
    assert!(
        shard.found().damage.is_empty(),
        "{:?}",
        shard.found().damage
    );
    assert_eq!(shard.read_all(1, 0, 8, 1 << 20).len(), 5);
}

/// However full the file is in which it began, and whether or not a snapshot covers what is left of it.
#[test]
fn an_unclean_run_under_interval_raises_the_term_whatever_is_left_of_it() {
    let mut config = config();
    config.sync_each_group = false;
    config.segment_bytes = 32 * BLOCK as u64;
    config.first_segment_bytes = config.segment_bytes;
    config.group_bytes_max = 8 * BLOCK;
    for groups in 1..40 {
        for snapshot in [false, true] {
            let mut shard = Shard::open(Disk::default(), config.clone());
            for offset in 0..groups {
                shard.put(1, offset, &payload(1, offset, 200));
            }
            shard.log.sync_now();
            shard.run();
            if snapshot {
                shard.snapshot(&[b"state"]);
            } else {
                shard.log.seal();
                shard.run();
                let mut disk = shard.disk;
                disk.crash();
                shard = Shard::open(disk, config.clone());
            }
            let before = shard.found().term;
            for offset in groups..groups + 3 {
                shard.put(1, offset, &payload(1, offset, 200));
            }
            let mut disk = shard.disk;
            disk.crash();
            let shard = Shard::open(disk, config.clone());
            assert!(shard.found().last < Lsn(groups + 3), "some of it was lost");
            assert!(
                shard.found().term > before,
                "{groups} groups, snapshot {snapshot}: {:?}",
                shard.found()
            );
        }
    }
}
