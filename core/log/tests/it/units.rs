//! Units: several entries under one lsn, of which a crash, and damage, leave all or none.

use std::collections::BTreeMap;

use millstream_batch::ids::Lsn;
use millstream_log::format::{ENTRY_MORE, GROUP_HEADER_BYTES};
use millstream_log::io::FileId;
use millstream_log::{Append, Config, FetchError, Refused};

use crate::disk::{BLOCK, Disk, Shard, batch, config, fact_offsets, payload};
use crate::inspect::verified;

fn small() -> Config {
    Config {
        segment_bytes: 64 << 10,
        first_segment_bytes: 64 << 10,
        group_bytes_max: 8 << 10,
        hot_tail_bytes_max: 0,
        ..config()
    }
}

fn fact_alone(text: &'static str) -> Append {
    Append {
        kind: 3,
        fact: text.into(),
        raw: vec![].into(),
        index: None,
    }
}

/// Two batches of slot 0, one of slot 1, and a fact alone, each batch of `len` bytes.
fn unit(base: u64, len: usize) -> Vec<Append> {
    vec![
        batch(0, base, 1, &payload(0, base, len)),
        batch(1, base, 2, &payload(1, base, len)),
        fact_alone("holds with the batches around it"),
        batch(0, base + 1, 1, &payload(0, base + 1, len)),
    ]
}

fn put(shard: &mut Shard, unit: &[Append]) -> Lsn {
    let lsn = shard.log.append_unit(unit).expect("appended");
    shard.log.flush();
    shard.run();
    assert!(shard.log.durable() >= lsn, "{:?}", shard.events);
    lsn
}

/// Facts of every unit replayed, each as appended.
fn is_prefix(shard: &Shard, units: &BTreeMap<u64, Vec<Append>>, context: &str) {
    for (at, unit) in shard.replayed.iter().enumerate() {
        assert_eq!(unit.lsn.0, at as u64 + 1, "{context}");
        let facts: Vec<_> = unit.entries.iter().map(|entry| &entry.fact).collect();
        let appended: Vec<_> = units[&unit.lsn.0].iter().map(|entry| &entry.fact).collect();
        assert_eq!(facts, appended, "{context}: a unit came back in part");
    }
}

#[test]
fn a_unit_has_one_lsn_and_comes_back_whole() {
    let mut shard = Shard::open(Disk::default(), small());
    assert_eq!(put(&mut shard, &unit(0, 300)), Lsn(1));
    assert_eq!(shard.put(0, 2, b"one batch"), Lsn(2));
    assert_eq!(put(&mut shard, &unit(3, 300)), Lsn(3));
    let stats = shard.log.stats();
    assert_eq!(stats.entries, 9);
    let mut disk = shard.disk;
    disk.crash();
    let mut shard = Shard::open(disk, small());
    assert_eq!((shard.found().last, shard.found().replayed), (Lsn(3), 3));
    let counts: Vec<_> = shard.replayed.iter().map(|u| u.entries.len()).collect();
    assert_eq!(counts, [4, 1, 4]);
    let offsets: Vec<u64> = shard
        .read_all(0, 0, 5, 1)
        .iter()
        .map(|(at, _)| *at)
        .collect();
    assert_eq!(offsets, [0, 1, 2, 3, 4]);
    let entries = shard.fetch(1, 0, 5, 1 << 20).expect("served");
    let lsns: Vec<u64> = entries.iter().map(|entry| entry.lsn.0).collect();
    assert_eq!(lsns, [1, 3]);
    assert_eq!(put(&mut shard, &unit(5, 10)), Lsn(4), "goes on");
}

/// The write of a group with units in it is cut off after each of its blocks, and with each one missing.
#[test]
fn a_torn_write_leaves_all_of_a_unit_or_nothing() {
    let units = BTreeMap::from([(1, unit(0, 3000)), (2, unit(2, 3000)), (3, unit(4, 3000))]);
    let blocks = 3 * 4 * 3500 / BLOCK + 4;
    let mut lasts = Vec::new();
    for lost in 0..2 * blocks {
        let mut shard = Shard::open(Disk::default(), small());
        put(&mut shard, &units[&1]);
        for lsn in [2, 3] {
            let given = shard.log.append_unit(&units[&lsn]).expect("appended");
            assert_eq!(given.0, lsn);
        }
        shard.log.flush();
        shard.drain();
        let mut disk = shard.disk;
        for io in &shard.waiting {
            disk.begin_write(&io.op);
        }
        let mut block = 0;
        disk.crash_keeping(|| {
            block += 1;
            if lost < blocks {
                block <= lost
            } else {
                block - 1 != lost - blocks
            }
        });
        let shard = Shard::open(disk, small());
        let context = format!("block {lost}");
        is_prefix(&shard, &units, &context);
        assert!(
            shard.found().damage.is_empty(),
            "{context}: {:?}",
            shard.found()
        );
        assert_eq!(
            shard.found().last.0,
            shard.replayed.len() as u64,
            "{context}"
        );
        lasts.push(shard.found().last.0);
    }
    lasts.sort_unstable();
    lasts.dedup();
    assert!(lasts.contains(&1) && lasts.contains(&2), "{lasts:?}");
}

/// Below the durable point: what a unit lost cannot be installed, and no part of it is.
#[test]
fn damage_in_a_unit_stops_before_its_first_entry() {
    let units: BTreeMap<u64, Vec<Append>> = (0..6).map(|n| (n + 1, unit(2 * n, 300))).collect();
    let mut shard = Shard::open(Disk::default(), small());
    for (lsn, unit) in &units {
        assert_eq!(put(&mut shard, unit).0, *lsn);
    }
    shard.log.idle();
    shard.run();
    let mut disk = shard.disk;
    disk.crash();
    let file = FileId::Wal(disk.wal_files()[0]);
    let end = disk.live[&file]
        .iter()
        .rposition(|b| *b != 0)
        .expect("written");
    let (mut stopped, mut served) = (0, 0);
    for at in (0..end).step_by(37) {
        let mut damaged = disk.clone();
        damaged.flip(file, at);
        let context = format!("byte {at}");
        let verified = verified(&damaged);
        let mut shard = Shard::open(damaged, small());
        is_prefix(&shard, &units, &context);
        let found = shard.found().clone();
        let whole = shard.replayed.len() == units.len();
        assert!(whole || found.read_only.is_some(), "{context}: {found:?}");
        if !whole {
            stopped += 1;
            assert!(
                !found.damage.is_empty() && !verified.damage.is_empty(),
                "{context}"
            );
            let again = shard.log.append_unit(&unit(20, 1));
            assert_eq!(again, Err(Refused::ReadOnly), "{context}");
        }
        // What is whole is served, also what stands in one unit with what is not.
        let mut offset = 0;
        while offset < 12 {
            match shard.fetch(0, offset, 12, 1) {
                Ok(entries) => {
                    let (base, last) = fact_offsets(&entries[0].fact);
                    assert_eq!(base, offset, "{context}");
                    assert_eq!(entries[0].raw, payload(0, base, 300), "{context}");
                    offset = last + 1;
                    served += 1;
                }
                Err(FetchError::Damaged { to, .. }) => offset = to.0 + 1,
                Err(FetchError::Io(error)) => panic!("{context}: {error}"),
            }
        }
    }
    assert!(stopped > 20 && served > 1000, "{stopped} {served}");
}

/// Flags that no writer sets: a group whose last entry says that its unit goes on.
#[test]
fn a_unit_that_no_entry_ends_is_damage() {
    let mut shard = Shard::open(Disk::default(), small());
    shard.put(0, 0, b"first");
    shard.put(0, 1, b"second");
    shard.log.idle();
    shard.run();
    let mut disk = shard.disk;
    disk.crash();
    let number = disk.wal_files()[0];
    for plane in [&mut disk.live, &mut disk.durable] {
        let file = plane.get_mut(&FileId::Wal(number)).expect("there");
        let group = millstream_log::format::GroupHeader::decode(&file[BLOCK..]).expect("a group");
        let at = BLOCK + GROUP_HEADER_BYTES;
        let mut entry = millstream_log::format::EntryHeader::decode(group.incarnation, &file[at..])
            .expect("an entry");
        entry.flags |= ENTRY_MORE;
        entry.encode(group.incarnation, &mut file[at..]);
    }
    assert!(!verified(&disk).damage.is_empty());
    let shard = Shard::open(disk, small());
    assert_eq!(shard.replayed.len(), 1);
    assert!(shard.found().read_only.is_some(), "{:?}", shard.found());
}

/// A unit larger than a write goes alone; one that no group holds is refused, and nothing of it is taken.
#[test]
fn a_unit_is_bounded_by_what_one_group_holds() {
    let mut shard = Shard::open(Disk::default(), small());
    shard.append(0, 0, 1, b"gathers").expect("appended");
    let large: Vec<_> = (1..=20)
        .map(|offset| batch(0, offset, 1, &payload(0, offset, 1000)))
        .collect();
    assert_eq!(shard.log.append_unit(&large), Ok(Lsn(2)));
    shard.append(0, 21, 1, b"after it").expect("appended");
    shard.log.flush();
    shard.run();
    let stats = shard.log.stats();
    assert_eq!((stats.groups, stats.entries), (3, 22));

    let too_large: Vec<_> = (22..=82)
        .map(|offset| batch(0, offset, 1, &payload(0, offset, 1000)))
        .collect();
    assert_eq!(shard.log.append_unit(&too_large), Err(Refused::TooLarge));
    let fits: Vec<_> = (22..=60)
        .map(|offset| batch(0, offset, 1, &payload(0, offset, 1000)))
        .collect();
    assert_eq!(put(&mut shard, &fits), Lsn(4), "in the next file");
    assert_eq!(shard.read_all(0, 0, 61, 1 << 20).len(), 61);
    let mut disk = shard.disk;
    disk.crash();
    let shard = Shard::open(disk, small());
    assert_eq!(shard.found().last, Lsn(4));
    assert_eq!(shard.replayed[3].entries.len(), 39);
}
