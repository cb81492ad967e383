//! Snapshots: published whole or not at all, and restart follows the tail.

use millstream_batch::ids::{Lsn, Offset, PartitionSlot};
use millstream_log::Event;
use millstream_log::io::FileId;

use crate::disk::{Disk, SEGMENT, Shard, config, payload};

#[test]
fn a_restart_reads_the_snapshot_and_then_the_tail() {
    let mut shard = Shard::open(Disk::default(), config());
    for offset in 0..200 {
        shard.put(1, offset, &payload(1, offset, 9000));
    }
    let begin = shard.snapshot(&[b"part one", b"", b"part three"]);
    assert_eq!(begin, Lsn(200));
    shard.put(1, 200, b"tail");
    let mut disk = shard.disk;
    disk.crash();
    let mut shard = Shard::open(disk, config());
    let parts: Vec<_> = shard
        .snapshot
        .iter()
        .map(|(lsn, bytes)| (lsn.0, bytes.to_vec()))
        .collect();
    assert_eq!(
        parts,
        [
            (200, b"part one".to_vec()),
            (200, vec![]),
            (200, b"part three".to_vec())
        ]
    );
    assert_eq!(shard.found().replayed, 1);
    assert_eq!(shard.replayed[0].lsn, Lsn(201));
    assert!(
        shard.found().bytes_read < 12 * 65536 + 2 * SEGMENT,
        "{:?}",
        shard.found()
    );
    assert_eq!(shard.read_all(1, 0, 201, 1 << 20).len(), 201);
}

#[test]
fn a_crash_at_any_step_of_publishing_leaves_the_old_or_the_new() {
    let mut shard = Shard::open(Disk::default(), config());
    for offset in 0..5 {
        shard.put(1, offset, b"x");
    }
    shard.snapshot(&[b"old"]);
    for offset in 5..9 {
        shard.put(1, offset, b"x");
    }
    shard.log.begin_snapshot();
    for part in [&b"new"[..], b"new too"] {
        shard.log.snapshot_part(bytes::Bytes::copy_from_slice(part));
    }
    shard.log.publish_snapshot();
    let mut seen = Vec::new();
    loop {
        let mut disk = shard.disk.clone();
        disk.crash();
        let mut again = Shard::open(disk, config());
        let found: Vec<_> = again.snapshot.iter().map(|(_, b)| b.to_vec()).collect();
        let replayed = again.replayed.len();
        if found == [b"old".to_vec()] {
            assert_eq!(replayed, 4);
        } else {
            assert_eq!(found, [b"new".to_vec(), b"new too".to_vec()]);
            assert_eq!(replayed, 0);
        }
        seen.push(found.len());
        assert!(again.found().damage.is_empty(), "{:?}", again.found());
        // Left-overs are gone.
        let files = again
            .disk
            .live
            .keys()
            .filter(|f| matches!(f, FileId::Snapshot { .. }))
            .count();
        assert_eq!(files, found.len(), "{:?}", again.disk.live.keys());
        again.put(1, 9, b"goes on");
        if !shard.step() {
            break;
        }
    }
    assert!(seen.contains(&1) && seen.contains(&2));
    assert!(shard.has(|e| matches!(e, Event::SnapshotPublished { begin: Lsn(9) })));
}

#[test]
fn a_snapshot_waits_until_the_log_is_safe_up_to_it() {
    let mut shard = Shard::open(Disk::default(), config());
    shard.put(1, 0, b"x");
    shard.append(1, 1, 1, b"not written yet").expect("appended");
    let begin = shard.log.begin_snapshot();
    shard.log.snapshot_part(bytes::Bytes::from_static(b"state"));
    shard.log.publish_snapshot();
    loop {
        let published = shard.disk.live.contains_key(&FileId::Manifest {
            begin: begin.0,
            temporary: false,
        });
        assert!(!published || shard.log.durable() >= begin);
        if !shard.step() {
            break;
        }
    }
    assert!(shard.has(|e| matches!(e, Event::SnapshotPublished { begin: b } if *b == begin)));
}

#[test]
fn a_snapshot_of_nothing_new_changes_nothing() {
    let mut shard = Shard::open(Disk::default(), config());
    shard.put(1, 0, b"x");
    shard.snapshot(&[b"state"]);
    let before = shard.disk.trace.len();
    shard.snapshot(&[b"other state"]);
    assert_eq!(shard.disk.trace.len(), before);
    assert_eq!(
        shard
            .events
            .iter()
            .filter(|e| matches!(e, Event::SnapshotPublished { .. }))
            .count(),
        2
    );
}

#[test]
fn a_snapshot_given_up_leaves_no_trace() {
    let mut shard = Shard::open(Disk::default(), config());
    shard.put(1, 0, b"x");
    shard.log.begin_snapshot();
    shard
        .log
        .snapshot_part(bytes::Bytes::from_static(b"first try"));
    shard.run();
    shard.put(1, 1, b"y");
    shard.log.begin_snapshot();
    shard
        .log
        .snapshot_part(bytes::Bytes::from_static(b"second try, given up in flight"));
    shard.drain();
    shard.put(1, 2, b"z");
    shard.snapshot(&[b"third"]);
    let files: Vec<_> = shard
        .disk
        .live
        .keys()
        .filter(|f| matches!(f, FileId::Snapshot { .. }))
        .collect();
    assert_eq!(files, [&FileId::Snapshot { begin: 3, part: 0 }]);
}

#[test]
fn a_damaged_snapshot_falls_back_to_the_log_while_that_is_whole() {
    let mut shard = Shard::open(Disk::default(), config());
    for offset in 0..60 {
        shard.put(1, offset, &payload(1, offset, 9000));
    }
    let begin = shard.snapshot(&[b"state"]);
    let mut disk = shard.disk.clone();
    disk.crash();
    disk.flip(
        FileId::Snapshot {
            begin: begin.0,
            part: 0,
        },
        2,
    );
    let again = Shard::open(disk, config());
    assert!(again.snapshot.is_empty());
    assert_eq!(again.replayed.len(), 60);
    assert_eq!(again.found().read_only, None);
    assert_eq!(again.found().damage.len(), 1);
    // With files freed there is nothing to fall back to.
    shard.log.set_start(PartitionSlot(1), Offset(60));
    shard.run();
    assert!(!shard.disk.wal_files().contains(&1));
    let mut disk = shard.disk;
    disk.crash();
    disk.flip(
        FileId::Manifest {
            begin: begin.0,
            temporary: false,
        },
        20,
    );
    let again = Shard::open(disk, config());
    assert!(again.snapshot.is_empty() && again.replayed.is_empty());
    assert!(
        again
            .found()
            .read_only
            .as_ref()
            .is_some_and(|why| why.contains("snapshot"))
    );
}

#[test]
fn interval_mode_publishes_only_what_is_synced() {
    let mut config = config();
    config.sync_each_group = false;
    let mut shard = Shard::open(Disk::default(), config.clone());
    for offset in 0..100 {
        shard.put(1, offset, &payload(1, offset, 9000));
    }
    let begin = shard.snapshot(&[b"state"]);
    assert!(
        shard.has(|e| matches!(e, Event::SnapshotPublished { .. })),
        "{:?}",
        shard.disk.trace
    );
    let mut disk = shard.disk;
    disk.crash();
    let shard = Shard::open(disk, config);
    assert!(shard.found().last >= begin);
    assert!(shard.found().damage.is_empty(), "{:?}", shard.found());
}
