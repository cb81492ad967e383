//! `log verify` finds what a start finds: files that are gone or cut short, told from freed ones.

use millstream_batch::ids::{Offset, PartitionSlot};
use millstream_log::io::FileId;
use millstream_log::{Config, Event, Recovery, inspect, rehearse};

use crate::disk::{BLOCK, Disk, Shard, config, payload};

const SEGMENT: usize = 32 << 10;

fn small() -> Config {
    Config {
        segment_bytes: SEGMENT as u64,
        first_segment_bytes: SEGMENT as u64,
        group_bytes_max: 8 << 10,
        hot_tail_bytes_max: 0,
        ..config()
    }
}

/// What `log verify` says of a disk.
pub(crate) fn verified(disk: &Disk) -> inspect::Verified {
    let files: Vec<_> = disk
        .live
        .iter()
        .map(|(f, b)| (*f, b.len() as u64))
        .collect();
    inspect::verify(&files, &mut |file, at, len| {
        let bytes = &disk.live[&file];
        let start = (at as usize).min(bytes.len());
        Ok(bytes::Bytes::copy_from_slice(
            &bytes[start..(start + len).min(bytes.len())],
        ))
    })
    .expect("read")
}

/// Batches of 3 KB, until there are five files or more; the first part in a snapshot.
fn long_log(snapshot: bool) -> Disk {
    let mut shard = Shard::open(Disk::default(), small());
    for offset in 0..30 {
        shard.put(0, offset, &payload(0, offset, 3_000));
        if snapshot && offset == 20 {
            shard.snapshot(&[b"the state"]);
        }
    }
    shard.log.idle();
    shard.run();
    shard.disk.crash();
    assert!(shard.disk.wal_files().len() >= 5);
    shard.disk
}

fn without(disk: &Disk, file: FileId) -> Disk {
    let mut disk = disk.clone();
    disk.live.remove(&file);
    disk.durable.remove(&file);
    disk
}

fn cut(disk: &Disk, file: FileId, len: usize) -> Disk {
    let mut disk = disk.clone();
    for plane in [&mut disk.live, &mut disk.durable] {
        plane.get_mut(&file).expect("it is there").truncate(len);
    }
    disk
}

/// Both the check and a start name the file; gives what the check says of it.
fn both_name(disk: &Disk, file: FileId, context: &str) -> String {
    let name = file.file_name();
    let verified = verified(disk);
    let found = verified.damage.iter().find(|d| d.file == name);
    let found = found.unwrap_or_else(|| panic!("{context}: {verified:?}"));
    let shard = Shard::open(disk.clone(), small());
    assert!(
        shard.found().damage.iter().any(|d| d.file == name),
        "{context}: {:?}",
        shard.found()
    );
    found.what.clone()
}

#[test]
fn a_missing_file_is_named_wherever_it_was() {
    for snapshot in [false, true] {
        let disk = long_log(snapshot);
        assert!(verified(&disk).damage.is_empty(), "{:?}", verified(&disk));
        let files = disk.wal_files();
        // The next file, not begun, may go without loss.
        let (_, used) = files.split_last().expect("files");
        for n in used {
            let file = FileId::Wal(*n);
            let context = format!("file {n} gone, snapshot: {snapshot}");
            let what = both_name(&without(&disk, file), file, &context);
            assert!(what.contains("missing"), "{context}: {what}");
        }
        // The last one in use and the next: the footer before them knows of them.
        let last = *used.last().expect("files");
        let both = without(
            &without(&disk, FileId::Wal(last)),
            FileId::Wal(files[files.len() - 1]),
        );
        let what = both_name(&both, FileId::Wal(last), "the end gone");
        assert!(what.contains("missing"), "{what}");
    }
}

#[test]
fn a_truncated_file_is_named_wherever_it_was() {
    let disk = long_log(false);
    let files = disk.wal_files();
    for n in &files {
        for len in [0, 1000, BLOCK, 5 * BLOCK, SEGMENT - BLOCK] {
            let file = FileId::Wal(*n);
            let what = both_name(&cut(&disk, file, len), file, &format!("file {n} of {len}"));
            assert!(what.contains("truncated"), "{what}");
        }
    }
}

#[test]
fn freed_files_are_not_missing() {
    let mut shard = Shard::open(long_log(true), small());
    let before = shard.disk.wal_files();
    shard.log.set_start(PartitionSlot(0), Offset(15));
    shard.run();
    shard.put(0, 30, b"after");
    shard.log.idle();
    shard.run();
    shard.disk.crash();
    let after = shard.disk.wal_files();
    assert!(!after.contains(&before[0]) && !after.contains(&before[1]));
    assert!(
        verified(&shard.disk).damage.is_empty(),
        "{:?}",
        verified(&shard.disk)
    );
    // Freed and not yet renamed, as a crash leaves it: of no consequence, even cut short.
    let mut left = shard.disk.clone();
    for plane in [&mut left.live, &mut left.durable] {
        plane.insert(FileId::Wal(before[0]), vec![0; 1000]);
    }
    assert!(verified(&left).damage.is_empty(), "{:?}", verified(&left));
    let shard = Shard::open(left, small());
    assert!(shard.found().damage.is_empty(), "{:?}", shard.found());
}

#[test]
fn a_name_far_ahead_is_told_and_costs_nothing() {
    let disk = long_log(false);
    let files = disk.wal_files();
    for n in [0, 1 << 61, u64::MAX] {
        let mut renamed = disk.clone();
        for plane in [&mut renamed.live, &mut renamed.durable] {
            let bytes = plane.remove(&FileId::Wal(files[2])).expect("there");
            plane.insert(FileId::Wal(n), bytes);
        }
        let file = FileId::Wal(files[2]);
        let what = both_name(&renamed, file, &format!("renamed to {n}"));
        assert!(what.contains("missing"), "{what}");
        let shard = Shard::open(renamed, small());
        assert!(shard.found().read_only.is_some());
    }
}

/// A start rehearsed over the files of a disk, and the entries that it would replay.
fn rehearsed(disk: &Disk) -> (Recovery, Vec<u64>) {
    let files: Vec<_> = disk
        .live
        .iter()
        .map(|(f, b)| (*f, b.len() as u64))
        .collect();
    let mut replayed = Vec::new();
    let mut read = |file, at: u64, len: usize| {
        let bytes = &disk.live[&file];
        let start = (at as usize).min(bytes.len());
        let end = (start + len).min(bytes.len());
        Ok(bytes::Bytes::copy_from_slice(&bytes[start..end]))
    };
    let recovery = rehearse::rehearse(&files, &mut read, &mut |event| {
        if let Event::Replay(unit) = event {
            replayed.push(unit.lsn.0);
        }
    });
    (recovery.expect("it ends"), replayed)
}

/// What a start says is said beforehand, whatever is gone: also where nothing that is there is damaged.
#[test]
fn a_rehearsed_start_says_what_a_start_says() {
    let whole = long_log(true);
    let mut disks = vec![("whole".to_owned(), whole.clone())];
    for file in whole.live.keys().copied() {
        disks.push((
            format!("without {}", file.file_name()),
            without(&whole, file),
        ));
    }
    for n in whole.wal_files() {
        for at in (0..SEGMENT).step_by(BLOCK) {
            let mut holed = whole.clone();
            for plane in [&mut holed.live, &mut holed.durable] {
                plane.get_mut(&FileId::Wal(n)).expect("there")[at..at + BLOCK].fill(0);
            }
            disks.push((format!("block at {at} of file {n} zeroed"), holed));
        }
    }
    // As retention leaves it, and then the snapshot is gone that stood for what was freed.
    let mut shard = Shard::open(whole, small());
    shard.log.set_start(PartitionSlot(0), Offset(15));
    shard.run();
    shard.disk.crash();
    let mut bare = shard.disk;
    for plane in [&mut bare.live, &mut bare.durable] {
        plane.retain(|file, _| matches!(file, FileId::Wal(_) | FileId::Spare(_)));
    }
    assert!(rehearsed(&bare).0.read_only.is_some());
    disks.push(("without its snapshot".to_owned(), bare));
    let mut refused = 0;
    for (context, disk) in disks {
        let (said, replayed) = rehearsed(&disk);
        let shard = Shard::open(disk, small());
        let found = shard.found();
        assert_eq!(said.read_only, found.read_only, "{context}");
        assert_eq!(said.damage, found.damage, "{context}");
        assert_eq!(
            (said.last, said.cut_bytes),
            (found.last, found.cut_bytes),
            "{context}"
        );
        let lsns: Vec<u64> = shard.replayed.iter().map(|entry| entry.lsn.0).collect();
        assert_eq!(replayed, lsns, "{context}");
        refused += usize::from(said.read_only.is_some());
    }
    assert!(refused > 5, "{refused}");
}
