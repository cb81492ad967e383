//! What the simulated disk promises to those who crash on it.

use millstream_log::io::IoId;

use super::*;

const FILE: FileId = FileId::Wal(1);
const BLOCK: usize = 4096;

fn run(disk: &mut SimDisk, id: u64, op: IoOp) -> Result<IoOutput, IoError> {
    disk.submit(Io { id: IoId(id), op });
    let done = disk.complete_one().expect("one is pending");
    assert_eq!(done.id, IoId(id));
    done.result
}

fn write(at: u64, byte: u8, len: usize, sync: bool) -> IoOp {
    let buf = Arc::new(AlignedBuf::copy_of(&vec![byte; len]));
    IoOp::Write {
        file: FILE,
        at,
        buf,
        len,
        sync,
    }
}

fn disk(seed: u64) -> SimDisk {
    let mut disk = SimDisk::new(seed);
    run(
        &mut disk,
        0,
        IoOp::Allocate {
            file: FILE,
            len: 16 * BLOCK as u64,
        },
    )
    .expect("allocated");
    disk
}

fn read(disk: &mut SimDisk) -> Vec<u8> {
    let op = IoOp::Read {
        file: FILE,
        at: 0,
        len: 16 * BLOCK,
    };
    match run(disk, 99, op) {
        Ok(IoOutput::Read(bytes)) => bytes.to_vec(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn it_conforms() {
    let mut seed = 0;
    let mut make = || {
        seed += 1;
        let mut disk = SimDisk::new(seed);
        disk.set_faults(Faults {
            delayed: 300_000,
            ..Faults::default()
        });
        Box::new(disk) as Box<dyn Storage>
    };
    let mut suite = Box::pin(millstream_log::conformance::run(&mut make));
    let mut cx = Context::from_waker(Waker::noop());
    // The disk answers at once, so one poll runs the suite to its end.
    assert!(suite.as_mut().poll(&mut cx).is_ready());
}

#[test]
fn a_crash_keeps_what_was_synced() {
    for seed in 0..200 {
        let mut disk = disk(seed);
        run(&mut disk, 1, write(0, 1, 2 * BLOCK, true)).expect("written");
        run(&mut disk, 2, write(2 * BLOCK as u64, 2, 2 * BLOCK, false)).expect("written");
        disk.submit(Io {
            id: IoId(3),
            op: write(4 * BLOCK as u64, 3, 2 * BLOCK, true),
        });
        disk.crash();
        assert_eq!(disk.pending(), 0);
        let bytes = read(&mut disk);
        assert!(bytes[..2 * BLOCK].iter().all(|b| *b == 1));
        for (sector, content) in bytes[2 * BLOCK..].chunks(SECTOR_BYTES).enumerate() {
            let wrote = if sector < 16 { 2 } else { 3 };
            let whole = content.iter().all(|b| *b == content[0]);
            assert!(whole && (content[0] == 0 || content[0] == wrote && sector < 32));
        }
    }
}

/// Over the seeds, a crash shows each shape that recovery must survive.
#[test]
fn crashes_are_of_every_kind() {
    let (mut none, mut all, mut torn, mut reordered) = (0, 0, 0, 0);
    for seed in 0..200 {
        let mut disk = disk(seed);
        disk.submit(Io {
            id: IoId(3),
            op: write(0, 3, 8 * BLOCK, true),
        });
        disk.crash();
        let bytes = read(&mut disk);
        let kept: Vec<bool> = bytes[..8 * BLOCK]
            .chunks(SECTOR_BYTES)
            .map(|s| s[0] == 3)
            .collect();
        match kept.iter().filter(|kept| **kept).count() {
            0 => none += 1,
            64 => all += 1,
            _ => torn += 1,
        }
        reordered += usize::from(kept.windows(2).any(|w| !w[0] && w[1]));
    }
    assert!(none > 10 && all > 10 && torn > 50 && reordered > 30);
}

/// Rebello et al., "Can Applications Recover from fsync Failures?": ext4 keeps the pages
/// readable, marks them clean, and a later sync succeeds without writing them.
#[test]
fn after_a_failed_sync_the_pages_are_gone_for_good() {
    let mut lost = 0;
    for seed in 0..100 {
        let mut disk = disk(seed);
        disk.fail_next_sync();
        let error = run(&mut disk, 1, write(0, 1, BLOCK, true)).expect_err("it fails");
        assert_eq!(error.kind, IoErrorKind::Failed);
        assert_eq!(
            read(&mut disk)[..BLOCK],
            [1; BLOCK],
            "the live plane shows it"
        );
        let durable = disk.durable(FILE).map(<[u8]>::to_vec);
        run(&mut disk, 2, write(BLOCK as u64, 0, 0, true)).expect("the next sync succeeds");
        assert_eq!(disk.durable(FILE), durable.as_deref(), "and writes nothing");
        disk.crash();
        lost += usize::from(read(&mut disk)[..BLOCK] != [1; BLOCK]);
    }
    assert!(lost > 50, "{lost} of 100");
}

#[test]
fn a_full_disk_refuses_and_heals() {
    let mut disk = disk(1);
    disk.set_capacity(20 * BLOCK as u64);
    let other = FileId::Spare(1);
    let allocate = || IoOp::Allocate {
        file: other,
        len: 8 * BLOCK as u64,
    };
    let error = run(&mut disk, 1, allocate()).expect_err("no room");
    assert_eq!(error.kind, IoErrorKind::NoSpace);
    run(&mut disk, 2, write(0, 1, BLOCK, true)).expect("written in place");
    run(&mut disk, 3, IoOp::Remove { file: FILE }).expect("removed");
    run(&mut disk, 4, allocate()).expect("there is room again");
    assert_eq!(disk.used(), 8 * BLOCK as u64);
}

#[test]
fn rot_shows_at_once_and_stays() {
    let mut disk = disk(1);
    assert!(disk.flip_bit(FILE, 8 * 5000 + 3));
    assert!(!disk.flip_bit(FILE, 8 * 16 * BLOCK as u64));
    for _ in 0..2 {
        assert_eq!(read(&mut disk)[5000], 8);
        disk.crash();
    }
}

#[test]
fn a_seed_is_a_run() {
    let run_of = |seed| {
        let mut disk = disk(seed);
        disk.set_faults(Faults {
            write_fails: 100_000,
            sync_fails: 100_000,
            read_fails: 10_000,
            directory_fails: 50_000,
            delayed: 200_000,
        });
        let mut story = Vec::new();
        for id in 0..400_u64 {
            let file = FileId::Snapshot {
                begin: 1,
                part: (id % 5) as u32,
            };
            let buf = Arc::new(AlignedBuf::copy_of(&vec![id as u8; BLOCK]));
            let op = if id % 7 == 0 {
                IoOp::Allocate {
                    file,
                    len: 16 * BLOCK as u64,
                }
            } else {
                IoOp::Write {
                    file,
                    at: id % 16 * BLOCK as u64,
                    buf,
                    len: BLOCK,
                    sync: id % 3 == 0,
                }
            };
            disk.submit(Io { id: IoId(id), op });
            if id % 5 == 4 {
                while let Some(done) = disk.complete_one() {
                    story.push((done.id, done.result.is_ok()));
                }
                if id % 50 == 49 {
                    disk.crash();
                }
            }
        }
        (disk.digest(), story)
    };
    assert_eq!(run_of(7), run_of(7));
    assert_ne!(run_of(7), run_of(8));
}

#[test]
#[should_panic(expected = "two changes of one file in flight")]
fn two_writes_to_one_file_are_a_bug_of_the_log() {
    let mut disk = disk(1);
    disk.submit(Io {
        id: IoId(1),
        op: write(0, 1, BLOCK, false),
    });
    disk.submit(Io {
        id: IoId(2),
        op: write(0, 2, BLOCK, false),
    });
}
