//! Damage below the durable point is never cut, skipped or taken for empty.

use std::collections::BTreeMap;

use millstream_batch::ids::Lsn;
use millstream_log::io::FileId;
use millstream_log::{Config, FetchError, Refused};

use crate::disk::{BLOCK, Disk, Shard, batch, config, fact_offsets, payload};
use crate::inspect::verified;

fn small() -> Config {
    Config {
        segment_bytes: 32 << 10,
        first_segment_bytes: 32 << 10,
        group_bytes_max: 8 << 10,
        hot_tail_bytes_max: 0,
        ..config()
    }
}

/// Sixteen batches of two slots, one or two a group, in several files, proved to the end.
fn log_of_sixteen() -> (Disk, BTreeMap<(u32, u64), Vec<u8>>) {
    let mut shard = Shard::open(Disk::default(), small());
    let mut stored = BTreeMap::new();
    for offset in 0..8 {
        for slot in 0..2 {
            let raw = payload(slot, offset, 700 + 100 * offset as usize);
            shard.append(slot, offset, 1, &raw).expect("appended");
            stored.insert((slot, offset), raw);
            if offset % 3 == 0 {
                shard.log.flush();
                shard.run();
            }
        }
        shard.log.flush();
        shard.run();
    }
    shard.log.idle();
    shard.run();
    let mut disk = shard.disk;
    disk.crash();
    (disk, stored)
}

/// Every batch is served as it was stored, or answered as damaged; never is one left out.
fn nothing_is_silent(shard: &mut Shard, stored: &BTreeMap<(u32, u64), Vec<u8>>, context: &str) {
    for slot in 0..2 {
        let mut offset = 0;
        while offset < 8 {
            match shard.fetch(slot, offset, 8, 1) {
                Ok(entries) => {
                    assert!(
                        !entries.is_empty(),
                        "{context}: slot {slot} offset {offset} is silently missing"
                    );
                    for entry in entries {
                        let (base, last) = fact_offsets(&entry.fact);
                        assert_eq!(base, offset, "{context}: an offset was skipped");
                        assert_eq!(entry.raw, stored[&(slot, base)], "{context}");
                        offset = last + 1;
                    }
                }
                Err(FetchError::Damaged { from, to }) => {
                    assert!(
                        from.0 <= offset && to.0 >= offset,
                        "{context}: {from} to {to} for {offset}"
                    );
                    offset = to.0 + 1;
                }
                Err(FetchError::Io(e)) => panic!("{context}: {e}"),
            }
        }
    }
}

#[test]
fn a_flipped_bit_anywhere_is_reported_or_harmless() {
    let (disk, stored) = log_of_sixteen();
    let files = disk.wal_files();
    assert!(files.len() >= 3);
    for file in files {
        for at in (0..32 << 10).step_by(41) {
            let mut damaged = disk.clone();
            damaged.flip(FileId::Wal(file), at);
            let context = format!("file {file} byte {at}");
            let disk_before = damaged.clone();
            let mut shard = Shard::open(damaged, small());
            let found = shard.found().clone();
            let verified = verified(&disk_before);
            assert!(
                found.damage.is_empty() || !verified.damage.is_empty(),
                "{context}: {found:?}"
            );
            assert!(verified.torn.is_empty(), "{context}: {verified:?}");
            nothing_is_silent(&mut shard, &stored, &context);
            let complete = found.last == Lsn(16) && shard.replayed.len() == 16;
            assert!(
                complete || found.read_only.is_some(),
                "{context}: {found:?}"
            );
            assert!(
                found.read_only.is_none() || !found.damage.is_empty(),
                "{context}: {found:?}"
            );
            assert_eq!(found.cut_bytes, 0, "{context}: {found:?}");
            // What was replayed is a prefix.
            let lsns: Vec<u64> = shard.replayed.iter().map(|e| e.lsn.0).collect();
            assert_eq!(
                lsns,
                (1..=lsns.len() as u64).collect::<Vec<_>>(),
                "{context}"
            );
            if found.read_only.is_some() {
                assert_eq!(
                    shard.log.append(batch(0, 9, 1, b"x")),
                    Err(Refused::ReadOnly)
                );
            } else {
                shard.put(0, 8, b"goes on");
            }
        }
    }
}

#[test]
fn the_last_acknowledged_group_is_damaged_not_torn_once_it_is_proved() {
    for marked in [false, true] {
        let mut shard = Shard::open(Disk::default(), small());
        shard.put(1, 0, b"first");
        shard.put(1, 1, b"second");
        if marked {
            shard.log.idle();
            shard.run();
        }
        let mut disk = shard.disk;
        disk.crash();
        // The second group's header.
        disk.flip(FileId::Wal(1), BLOCK + 20);
        let shard = Shard::open(disk, small());
        if marked {
            assert!(shard.found().read_only.is_some());
            assert_eq!(shard.found().cut_bytes, 0);
        } else {
            // Nothing tells it from a write that never finished.
            assert_eq!(shard.found().last, Lsn(1));
            assert_eq!(shard.found().read_only, None);
        }
    }
}

#[test]
fn a_whole_range_of_zeros_is_damage() {
    let (disk, stored) = log_of_sixteen();
    for file in disk.wal_files() {
        for from in (0..32 << 10).step_by(BLOCK) {
            for blocks in [1, 2, 3, 8] {
                let to = (from + blocks * BLOCK).min(32 << 10);
                let mut damaged = disk.clone();
                for plane in [&mut damaged.live, &mut damaged.durable] {
                    plane.get_mut(&FileId::Wal(file)).expect("there")[from..to].fill(0);
                }
                let context = format!("file {file} zero from {from} to {to}");
                let mut shard = Shard::open(damaged, small());
                let found = shard.found().clone();
                let complete = found.last == Lsn(16) && shard.replayed.len() == 16;
                if complete || found.read_only.is_some() {
                    nothing_is_silent(&mut shard, &stored, &context);
                    continue;
                }
                // Only the very end can look like a write that never finished: with the mark gone
                // nothing proves the group before it.
                assert!(
                    found.last >= Lsn(15) || shard.replayed.len() >= 14,
                    "{context}: {found:?}"
                );
            }
        }
    }
}

#[test]
fn a_missing_file_is_told_from_a_freed_one() {
    let (disk, stored) = log_of_sixteen();
    let files = disk.wal_files();
    // The next file, not begun, may go without loss.
    let (next, used) = files.split_last().expect("files");
    for file in used {
        let mut damaged = disk.clone();
        damaged.live.remove(&FileId::Wal(*file));
        damaged.durable.remove(&FileId::Wal(*file));
        assert!(!verified(&damaged).damage.is_empty(), "file {file}");
        let mut shard = Shard::open(damaged, small());
        let found = shard.found().clone();
        assert!(
            found
                .damage
                .iter()
                .any(|d| d.file == FileId::Wal(*file).file_name()),
            "file {file}: {found:?}"
        );
        assert!(found.read_only.is_some(), "file {file}: {found:?}");
        nothing_is_silent(&mut shard, &stored, &format!("file {file} missing"));
    }
    let mut fine = disk.clone();
    fine.live.remove(&FileId::Wal(*next));
    let shard = Shard::open(fine, small());
    assert!(shard.found().damage.is_empty(), "{:?}", shard.found());
    assert_eq!(shard.found().last, Lsn(16));
}

#[test]
fn a_truncated_file_is_reported() {
    let (disk, stored) = log_of_sixteen();
    let files = disk.wal_files();
    for file in &files[..files.len() - 1] {
        for len in [0, 1000, BLOCK, 2 * BLOCK, 5 * BLOCK, 7 * BLOCK + 1] {
            let mut damaged = disk.clone();
            for plane in [&mut damaged.live, &mut damaged.durable] {
                plane
                    .get_mut(&FileId::Wal(*file))
                    .expect("there")
                    .truncate(len);
            }
            let context = format!("file {file} truncated to {len}");
            let mut shard = Shard::open(damaged, small());
            let found = shard.found().clone();
            assert!(!found.damage.is_empty(), "{context}: {found:?}");
            let complete = found.last == Lsn(16) && shard.replayed.len() == 16;
            assert!(
                complete || found.read_only.is_some(),
                "{context}: {found:?}"
            );
            nothing_is_silent(&mut shard, &stored, &context);
        }
    }
}

#[test]
fn a_damaged_footer_is_made_anew() {
    let (disk, stored) = log_of_sixteen();
    let mut damaged = disk;
    damaged.flip(FileId::Wal(1), (32 << 10) - BLOCK + 50);
    let mut shard = Shard::open(damaged, small());
    assert_eq!(shard.found().damage.len(), 1, "{:?}", shard.found());
    assert!(shard.found().damage[0].what.contains("footer"));
    assert_eq!(shard.found().read_only, None);
    nothing_is_silent(&mut shard, &stored, "footer");
    let mut disk = shard.disk;
    disk.crash();
    let mut shard = Shard::open(disk, small());
    assert!(
        shard.found().damage.is_empty(),
        "it was mended: {:?}",
        shard.found()
    );
    nothing_is_silent(&mut shard, &stored, "footer mended");
}

#[test]
fn a_damaged_section_is_made_anew_when_it_is_needed() {
    let (disk, stored) = log_of_sixteen();
    // The sections of the first file's two slots lie before its directory and its trailer.
    let end = 32 << 10;
    for back in [2 * BLOCK, 2 * BLOCK - 60] {
        let mut damaged = disk.clone();
        damaged.flip(FileId::Wal(1), end - back);
        let mut shard = Shard::open(damaged, small());
        assert!(shard.found().damage.is_empty(), "{:?}", shard.found());
        for ((slot, offset), raw) in &stored {
            assert_eq!(
                shard.fetch(*slot, *offset, 8, 1).expect("served")[0].raw,
                *raw
            );
        }
    }
}
