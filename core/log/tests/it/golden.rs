//! Files of format version 1 open for ever, and today's code writes the same bytes.
//!
//! `golden/` holds the directory that [`write`] leaves behind, WAL files without their zero tail.
//! `MILLSTREAM_BLESS=1 cargo test -p millstream-log golden` writes it anew: only for a new version.

use std::path::PathBuf;

use millstream_batch::ids::{Lsn, Offset, PartitionSlot};
use millstream_log::io::FileId;
use millstream_log::{Append, Config, inspect};

use crate::disk::{Disk, Shard, batch, config, payload};

fn golden_config() -> Config {
    Config {
        segment_bytes: 32 << 10,
        first_segment_bytes: 32 << 10,
        group_bytes_max: 8 << 10,
        hot_tail_bytes_max: 0,
        incarnation: 0x0123_4567_89ab_cdef,
        ..config()
    }
}

/// A log with everything the format has: facts alone, batches, a sealed file, a snapshot, a freed
/// file's control entry, marks.
fn write() -> Disk {
    let mut shard = Shard::open(Disk::default(), golden_config());
    let fact = Append {
        kind: 3,
        fact: "a fact alone".into(),
        raw: vec![].into(),
        index: None,
    };
    shard.log.append(fact).expect("appended");
    for offset in 0..12 {
        let slot = (offset % 2) as u32;
        shard.put(slot, offset, &payload(slot, offset, 900));
    }
    shard.snapshot(&[b"state of the machine", b"and more of it"]);
    shard.log.set_start(PartitionSlot(0), Offset(6));
    shard.log.set_start(PartitionSlot(1), Offset(7));
    shard.run();
    shard.put(0, 12, b"after the snapshot");
    shard.log.seal();
    shard.run();
    shard.disk.crash();
    shard.disk
}

/// What came to the format after [`write`] was fixed: units of several entries, first in their group, in its
/// middle and last.
fn write_units() -> Disk {
    let mut shard = Shard::open(Disk::default(), golden_config());
    let fact = |text: &'static str| Append {
        kind: 3,
        fact: text.into(),
        raw: vec![].into(),
        index: None,
    };
    let of = |slot: u32, offset: u64| batch(slot, offset, 1, &payload(slot, offset, 200));
    let append = |shard: &mut Shard, unit: &[Append]| {
        shard.log.append_unit(unit).expect("appended");
    };
    append(&mut shard, &[of(0, 0), fact("with two batches"), of(1, 0)]);
    append(&mut shard, &[of(0, 1)]);
    append(&mut shard, &[of(0, 2), of(0, 3)]);
    append(&mut shard, &[fact("alone")]);
    append(&mut shard, &[fact("one"), fact("two")]);
    shard.log.flush();
    shard.run();
    shard.log.seal();
    shard.run();
    shard.disk.crash();
    shard.disk
}

fn directory(name: &str) -> PathBuf {
    PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs this"))
        .join("tests/golden")
        .join(name)
}

fn kept(file: &FileId, bytes: &[u8]) -> Vec<u8> {
    match file {
        FileId::Wal(_) => {
            let end = bytes.iter().rposition(|b| *b != 0).map_or(0, |i| i + 1);
            bytes[..end].to_vec()
        }
        _ => bytes.to_vec(),
    }
}

/// The golden directory as a disk, after a look at whether it is what is written today.
fn golden(name: &str, written: &Disk) -> Disk {
    if std::env::var_os("MILLSTREAM_BLESS").is_some() {
        std::fs::create_dir_all(directory(name)).expect("a directory");
        for (file, bytes) in &written.live {
            if !matches!(file, FileId::Spare(_)) {
                std::fs::write(directory(name).join(file.file_name()), kept(file, bytes))
                    .expect("written");
            }
        }
    }
    let mut disk = Disk::default();
    for entry in std::fs::read_dir(directory(name)).expect("the golden directory") {
        let entry = entry.expect("an entry");
        let name = entry.file_name().into_string().expect("a name");
        let file = FileId::parse(&name).expect("a file of the log");
        let mut bytes = std::fs::read(entry.path()).expect("read");
        let today = &written.live[&file];
        assert_eq!(
            kept(&file, today),
            bytes,
            "{name} is written otherwise today"
        );
        if matches!(file, FileId::Wal(_)) {
            bytes.resize(32 << 10, 0);
        }
        disk.live.insert(file, bytes);
    }
    disk.kill();
    disk
}

#[test]
fn units_open_and_are_still_what_is_written() {
    let disk = golden("units", &write_units());
    let mut shard = Shard::open(disk, golden_config());
    assert!(shard.found().damage.is_empty(), "{:?}", shard.found());
    assert_eq!(shard.found().last, Lsn(5));
    let units: Vec<_> = shard.replayed.iter().map(|u| u.entries.len()).collect();
    assert_eq!(units, [3, 1, 2, 1, 2]);
    assert_eq!(shard.read_all(0, 0, 4, 1 << 20).len(), 4);
    assert_eq!(shard.read_all(1, 0, 1, 1 << 20).len(), 1);
    assert_eq!(shard.put(1, 1, b"goes on"), Lsn(6));
}

#[test]
fn version_1_opens_and_is_still_what_is_written() {
    let disk = golden("v1", &write());
    let files: Vec<_> = disk
        .live
        .iter()
        .map(|(f, b)| (*f, b.len() as u64))
        .collect();
    let live = disk.live.clone();
    let verified = inspect::verify(&files, &mut |file, at, len| {
        let bytes = &live[&file];
        let end = (at as usize + len).min(bytes.len());
        Ok(bytes::Bytes::copy_from_slice(
            &bytes[(at as usize).min(end)..end],
        ))
    })
    .expect("read");
    assert!(
        verified.damage.is_empty() && verified.torn.is_empty(),
        "{verified:?}"
    );
    assert_eq!(
        (verified.last, verified.snapshot),
        (Lsn(14), Some((Lsn(13), 2)))
    );

    let mut shard = Shard::open(disk, golden_config());
    assert!(shard.found().damage.is_empty(), "{:?}", shard.found());
    assert_eq!(shard.found().last, Lsn(14));
    assert_eq!(shard.snapshot.len(), 2);
    assert_eq!(shard.snapshot[0].1, "state of the machine");
    assert_eq!(shard.replayed.len(), 1);
    assert_eq!(shard.read_all(0, 6, 13, 1 << 20).len(), 4);
    assert_eq!(shard.read_all(1, 7, 12, 1 << 20).len(), 3);
    assert_eq!(shard.put(1, 13, b"goes on"), Lsn(15));
}
