//! What every [`Storage`] must do, as one suite: run by the ring, the portable fallback and the
//! simulated disk. It panics at the first promise that does not hold.
//!
//! Absent on purpose: crashes, full disks and failing devices. A real disk does not fail on
//! command; the simulated one proves those itself.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::Arc;

use bytes::Bytes;
use millstream_batch::limits::BLOCK_BYTES;

use crate::buffer::AlignedBuf;
use crate::io::{FileId, Io, IoDone, IoError, IoErrorKind, IoId, IoOp, IoOutput, Storage};

const BLOCK: u64 = BLOCK_BYTES as u64;
const MIB: usize = 1 << 20;

/// Run every check, each on a fresh storage over an empty directory from `make`. The caller brings
/// the executor: a tokio runtime for the ring, any `block_on` for the others.
pub async fn run(make: &mut dyn FnMut() -> Box<dyn Storage>) {
    allocated_files_are_zero(&mut Disk::new(make())).await;
    what_was_written_is_read(&mut Disk::new(make())).await;
    only_the_asked_length_is_written(&mut Disk::new(make())).await;
    a_sync_without_bytes_is_answered(&mut Disk::new(make())).await;
    reads_past_the_end_are_short(&mut Disk::new(make())).await;
    small_files_are_replaced(&mut Disk::new(make())).await;
    rename_replaces(&mut Disk::new(make())).await;
    a_recycled_file_keeps_its_bytes(&mut Disk::new(make())).await;
    a_removed_file_is_gone(&mut Disk::new(make())).await;
    missing_files_are_not_found(&mut Disk::new(make())).await;
    the_list_is_complete(&mut Disk::new(make())).await;
    misuse_is_refused(&mut Disk::new(make())).await;
    many_files_at_once(&mut Disk::new(make())).await;
    many_reads_of_one_file(&mut Disk::new(make())).await;
    more_files_than_stay_open(&mut Disk::new(make())).await;
    for seed in 1..=4 {
        it_behaves_like_a_map(&mut Disk::new(make()), seed).await;
    }
}

async fn allocated_files_are_zero(disk: &mut Disk) {
    disk.allocate(FileId::Wal(1), MIB).await;
    assert_eq!(disk.read(FileId::Wal(1), 0, MIB).await, vec![0; MIB]);
    // Again over the old content: shorter, and nothing shines through.
    disk.write(FileId::Wal(1), 0, pattern(1, 8 * BLOCK_BYTES), true)
        .await;
    disk.allocate(FileId::Wal(1), 4 * BLOCK_BYTES).await;
    assert_eq!(
        disk.read(FileId::Wal(1), 0, MIB).await,
        vec![0; 4 * BLOCK_BYTES]
    );
}

async fn what_was_written_is_read(disk: &mut Disk) {
    let file = FileId::Wal(2);
    disk.allocate(file, 12 * MIB).await;
    for (at, len, sync) in [
        (BLOCK, 64 << 10, true),
        (128 * BLOCK, BLOCK_BYTES, false),
        (256 * BLOCK, 9 * MIB, true),
    ] {
        let wrote = pattern(at, len);
        disk.write(file, at, wrote.clone(), sync).await;
        assert!(
            disk.read(file, at, len).await == wrote,
            "{len} bytes at {at} differ"
        );
        assert!(
            disk.read(file, at - BLOCK, BLOCK_BYTES)
                .await
                .iter()
                .all(|b| *b == 0),
            "before {at}"
        );
        assert!(
            disk.read(file, at + len as u64, BLOCK_BYTES)
                .await
                .iter()
                .all(|b| *b == 0),
            "after {at}+{len}"
        );
    }
    let again = pattern(77, 2 * BLOCK_BYTES);
    disk.write(file, BLOCK, again.clone(), true).await;
    let mut expected = pattern(BLOCK, 64 << 10);
    expected[..again.len()].copy_from_slice(&again);
    assert_eq!(disk.read(file, BLOCK, 64 << 10).await, expected);
}

async fn only_the_asked_length_is_written(disk: &mut Disk) {
    let file = FileId::Spare(1);
    disk.allocate(file, 8 * BLOCK_BYTES).await;
    let buf = Arc::new(AlignedBuf::copy_of(&pattern(3, 4 * BLOCK_BYTES)));
    let op = IoOp::Write {
        file,
        at: 0,
        buf: buf.clone(),
        len: BLOCK_BYTES,
        sync: true,
    };
    disk.done(op).await;
    assert_eq!(disk.read(file, 0, BLOCK_BYTES).await, buf[..BLOCK_BYTES]);
    assert_eq!(
        disk.read(file, BLOCK, 3 * BLOCK_BYTES).await,
        vec![0; 3 * BLOCK_BYTES]
    );
    assert_eq!(
        Arc::strong_count(&buf),
        1,
        "an answered write lets go of its buffer"
    );
}

async fn a_sync_without_bytes_is_answered(disk: &mut Disk) {
    disk.allocate(FileId::Wal(1), 4 * BLOCK_BYTES).await;
    disk.write(FileId::Wal(1), 0, pattern(1, BLOCK_BYTES), false)
        .await;
    disk.write(FileId::Wal(1), BLOCK, Vec::new(), true).await;
    disk.write(FileId::Wal(1), BLOCK, Vec::new(), false).await;
    assert_eq!(
        disk.read(FileId::Wal(1), 0, BLOCK_BYTES).await,
        pattern(1, BLOCK_BYTES)
    );
}

async fn reads_past_the_end_are_short(disk: &mut Disk) {
    let file = FileId::Wal(3);
    disk.allocate(file, 4 * BLOCK_BYTES).await;
    assert_eq!(
        disk.read(file, 3 * BLOCK, 8 * BLOCK_BYTES).await.len(),
        BLOCK_BYTES
    );
    assert_eq!(disk.read(file, 4 * BLOCK, BLOCK_BYTES).await.len(), 0);
    assert_eq!(disk.read(file, 400 * BLOCK, BLOCK_BYTES).await.len(), 0);
    assert_eq!(disk.read(file, 0, 0).await.len(), 0);
    for len in [
        1,
        511,
        BLOCK_BYTES - 1,
        BLOCK_BYTES,
        BLOCK_BYTES + 1,
        5_000,
        MIB + 3,
    ] {
        let odd = FileId::Manifest {
            begin: 1,
            temporary: true,
        };
        disk.write_file(odd, pattern(9, len)).await;
        assert_eq!(
            disk.read(odd, 0, 2 * MIB).await,
            pattern(9, len),
            "a file of {len} bytes"
        );
        let tail = disk.read(odd, BLOCK, 2 * MIB).await;
        assert_eq!(
            tail.len(),
            len.saturating_sub(BLOCK_BYTES),
            "the tail of a file of {len} bytes"
        );
    }
}

async fn small_files_are_replaced(disk: &mut Disk) {
    let file = FileId::Manifest {
        begin: 5,
        temporary: false,
    };
    for len in [100, 70_000, 0, 7] {
        disk.write_file(file, pattern(len as u64, len)).await;
        assert_eq!(disk.read(file, 0, MIB).await, pattern(len as u64, len));
        assert_eq!(disk.list().await, BTreeMap::from([(file, len as u64)]));
    }
}

async fn rename_replaces(disk: &mut Disk) {
    let old = FileId::Manifest {
        begin: 7,
        temporary: false,
    };
    let new = FileId::Manifest {
        begin: 7,
        temporary: true,
    };
    disk.write_file(old, pattern(1, 900)).await;
    disk.write_file(new, pattern(2, 300)).await;
    assert_eq!(disk.read(old, 0, BLOCK_BYTES).await, pattern(1, 900));
    disk.done(IoOp::Rename { from: new, to: old }).await;
    assert_eq!(disk.read(old, 0, BLOCK_BYTES).await, pattern(2, 300));
    assert_eq!(disk.list().await, BTreeMap::from([(old, 300)]));
    disk.fails(
        IoOp::Read {
            file: new,
            at: 0,
            len: BLOCK_BYTES,
        },
        IoErrorKind::NotFound,
    )
    .await;
}

async fn a_recycled_file_keeps_its_bytes(disk: &mut Disk) {
    let (wal, spare) = (FileId::Wal(1), FileId::Spare(9));
    disk.allocate(wal, 8 * BLOCK_BYTES).await;
    disk.write(wal, BLOCK, pattern(1, BLOCK_BYTES), true).await;
    disk.done(IoOp::Rename {
        from: wal,
        to: spare,
    })
    .await;
    assert_eq!(
        disk.read(spare, BLOCK, BLOCK_BYTES).await,
        pattern(1, BLOCK_BYTES)
    );
    disk.write(spare, BLOCK, pattern(2, BLOCK_BYTES), true)
        .await;
    // The old name is free again, and means another file.
    disk.fails(
        IoOp::Read {
            file: wal,
            at: 0,
            len: BLOCK_BYTES,
        },
        IoErrorKind::NotFound,
    )
    .await;
    disk.allocate(wal, 8 * BLOCK_BYTES).await;
    assert_eq!(
        disk.read(wal, BLOCK, BLOCK_BYTES).await,
        vec![0; BLOCK_BYTES]
    );
    assert_eq!(
        disk.read(spare, BLOCK, BLOCK_BYTES).await,
        pattern(2, BLOCK_BYTES)
    );
}

async fn a_removed_file_is_gone(disk: &mut Disk) {
    let file = FileId::Wal(4);
    disk.allocate(file, 4 * BLOCK_BYTES).await;
    disk.write(file, 0, pattern(1, BLOCK_BYTES), true).await;
    disk.done(IoOp::Remove { file }).await;
    assert!(disk.list().await.is_empty());
    disk.fails(
        IoOp::Read {
            file,
            at: 0,
            len: BLOCK_BYTES,
        },
        IoErrorKind::NotFound,
    )
    .await;
    disk.allocate(file, 4 * BLOCK_BYTES).await;
    assert_eq!(disk.read(file, 0, BLOCK_BYTES).await, vec![0; BLOCK_BYTES]);
}

async fn missing_files_are_not_found(disk: &mut Disk) {
    let file = FileId::Snapshot { begin: 3, part: 1 };
    let buf = Arc::new(AlignedBuf::copy_of(&[1; BLOCK_BYTES]));
    for op in [
        IoOp::Read {
            file,
            at: 0,
            len: BLOCK_BYTES,
        },
        IoOp::Write {
            file,
            at: 0,
            buf,
            len: BLOCK_BYTES,
            sync: true,
        },
        IoOp::Rename {
            from: file,
            to: FileId::Wal(1),
        },
        IoOp::Remove { file },
    ] {
        let error = disk.fails(op, IoErrorKind::NotFound).await;
        assert!(
            error.message.contains(&file.file_name()),
            "{error:?} names its file"
        );
    }
    assert!(disk.list().await.is_empty(), "nothing was created");
}

async fn the_list_is_complete(disk: &mut Disk) {
    assert!(disk.list().await.is_empty());
    let mut expected = BTreeMap::new();
    for n in 0..5 {
        disk.allocate(FileId::Wal(n), BLOCK_BYTES).await;
        expected.insert(FileId::Wal(n), BLOCK);
    }
    let part = FileId::Snapshot {
        begin: u64::MAX,
        part: 3,
    };
    disk.write_file(part, pattern(1, 10)).await;
    expected.insert(part, 10);
    assert_eq!(disk.list().await, expected);
}

async fn misuse_is_refused(disk: &mut Disk) {
    let file = FileId::Wal(1);
    disk.allocate(file, 4 * BLOCK_BYTES).await;
    let buf = Arc::new(AlignedBuf::copy_of(&[7; BLOCK_BYTES]));
    for op in [
        IoOp::Write {
            file,
            at: 1,
            buf: buf.clone(),
            len: BLOCK_BYTES,
            sync: true,
        },
        IoOp::Write {
            file,
            at: 0,
            buf: buf.clone(),
            len: 100,
            sync: true,
        },
        IoOp::Write {
            file,
            at: 0,
            buf,
            len: 2 * BLOCK_BYTES,
            sync: true,
        },
        IoOp::Read {
            file,
            at: 512,
            len: BLOCK_BYTES,
        },
        IoOp::Read {
            file,
            at: 0,
            len: 1,
        },
        IoOp::Allocate {
            file: FileId::Wal(2),
            len: 5,
        },
    ] {
        disk.fails(op, IoErrorKind::Failed).await;
    }
    assert_eq!(
        disk.read(file, 0, 4 * BLOCK_BYTES).await,
        vec![0; 4 * BLOCK_BYTES]
    );
    assert_eq!(disk.list().await.len(), 1);
}

async fn many_files_at_once(disk: &mut Disk) {
    const FILES: u64 = 48;
    let len = 8 * BLOCK_BYTES;
    for n in 0..FILES {
        disk.submit(IoOp::Allocate {
            file: FileId::Wal(n),
            len: len as u64,
        });
    }
    disk.all_done(FILES as usize).await;
    for n in 0..FILES {
        let buf = Arc::new(AlignedBuf::copy_of(&pattern(n, len)));
        disk.submit(IoOp::Write {
            file: FileId::Wal(n),
            at: 0,
            buf,
            len,
            sync: n % 3 != 0,
        });
    }
    disk.all_done(FILES as usize).await;
    for n in (0..FILES).rev() {
        assert_eq!(disk.read(FileId::Wal(n), 0, len).await, pattern(n, len));
    }
}

async fn many_reads_of_one_file(disk: &mut Disk) {
    const READS: usize = 1_000;
    let file = FileId::Wal(1);
    let blocks = 64;
    disk.allocate(file, blocks * BLOCK_BYTES).await;
    let content = pattern(5, blocks * BLOCK_BYTES);
    disk.write(file, 0, content.clone(), true).await;
    let mut asked = BTreeMap::new();
    for n in 0..READS {
        let block = n * 7 % blocks;
        asked.insert(
            disk.submit(IoOp::Read {
                file,
                at: block as u64 * BLOCK,
                len: BLOCK_BYTES,
            }),
            block,
        );
    }
    for _ in 0..READS {
        let IoDone {
            id,
            result: Ok(IoOutput::Read(bytes)),
        } = disk.next().await
        else {
            panic!("a read failed")
        };
        let block = asked.remove(&id).expect("each request has one answer");
        assert_eq!(bytes[..], content[block * BLOCK_BYTES..][..BLOCK_BYTES]);
    }
}

async fn more_files_than_stay_open(disk: &mut Disk) {
    const FILES: u64 = 300;
    for n in 0..FILES {
        disk.write_file(
            FileId::Snapshot {
                begin: 1,
                part: n as u32,
            },
            pattern(n, 600),
        )
        .await;
    }
    for round in 0..2 {
        for n in 0..FILES {
            let file = FileId::Snapshot {
                begin: 1,
                part: n as u32,
            };
            assert_eq!(
                disk.read(file, 0, BLOCK_BYTES).await,
                pattern(n, 600),
                "round {round}"
            );
        }
    }
}

/// Random requests against a map of byte vectors.
async fn it_behaves_like_a_map(disk: &mut Disk, seed: u64) {
    let mut dice = Dice(seed);
    let mut model: BTreeMap<FileId, Vec<u8>> = BTreeMap::new();
    let names: Vec<_> = (0..3)
        .map(FileId::Wal)
        .chain((0..2).map(FileId::Spare))
        .collect();
    for step in 0..300_u64 {
        let file = names[dice.below(names.len())];
        let there = model.get(&file).map(Vec::len);
        let missing = there.is_none().then_some(IoErrorKind::NotFound);
        match dice.below(12) {
            0 => {
                let len = (1 + dice.below(20)) * BLOCK_BYTES;
                disk.allocate(file, len).await;
                model.insert(file, vec![0; len]);
            }
            1 => {
                let bytes = pattern(step, dice.below(3 * BLOCK_BYTES));
                disk.write_file(file, bytes.clone()).await;
                model.insert(file, bytes);
            }
            2 => {
                let to = names[dice.below(names.len())];
                if to == file {
                    continue;
                }
                let result = disk.ask(IoOp::Rename { from: file, to }).await;
                assert_eq!(result.err().map(|e| e.kind), missing, "step {step}");
                if let Some(bytes) = model.remove(&file) {
                    model.insert(to, bytes);
                }
            }
            3 => {
                let result = disk.ask(IoOp::Remove { file }).await;
                assert_eq!(result.err().map(|e| e.kind), missing, "step {step}");
                model.remove(&file);
            }
            4..=7 => {
                // Inside the file: growing is not asked of a storage.
                let blocks = there.unwrap_or(BLOCK_BYTES) / BLOCK_BYTES;
                let from = dice.below(blocks + 1);
                let count = dice.below(blocks - from + 1);
                let (at, len) = (from * BLOCK_BYTES, count * BLOCK_BYTES);
                let bytes = pattern(step, len);
                let buf = Arc::new(AlignedBuf::copy_of(&bytes));
                let op = IoOp::Write {
                    file,
                    at: at as u64,
                    buf,
                    len,
                    sync: dice.below(2) == 0,
                };
                assert_eq!(
                    disk.ask(op).await.err().map(|e| e.kind),
                    missing,
                    "step {step}"
                );
                if let Some(content) = model.get_mut(&file) {
                    content[at..at + len].copy_from_slice(&bytes);
                }
            }
            _ => {
                let (at, len) = (dice.below(24) * BLOCK_BYTES, dice.below(24) * BLOCK_BYTES);
                match (
                    disk.ask(IoOp::Read {
                        file,
                        at: at as u64,
                        len,
                    })
                    .await,
                    model.get(&file),
                ) {
                    (Ok(IoOutput::Read(bytes)), Some(content)) => {
                        let from = at.min(content.len());
                        let to = (at + len).min(content.len());
                        assert!(
                            bytes[..] == content[from..to],
                            "step {step}: {file:?} at {at}, {len} bytes"
                        );
                    }
                    (Err(error), None) if error.kind == IoErrorKind::NotFound => {}
                    (result, there) => {
                        panic!("step {step}: {result:?}, in the model: {}", there.is_some())
                    }
                }
            }
        }
    }
    let lengths = model
        .iter()
        .map(|(file, bytes)| (*file, bytes.len() as u64))
        .collect();
    assert_eq!(disk.list().await, lengths);
}

/// A storage with an id counter and the verbs of the checks.
struct Disk {
    storage: Box<dyn Storage>,
    last_id: u64,
}

impl Disk {
    fn new(storage: Box<dyn Storage>) -> Self {
        assert!(!storage.describe().is_empty());
        Self {
            storage,
            last_id: 0,
        }
    }

    fn submit(&mut self, op: IoOp) -> IoId {
        self.last_id += 1;
        let id = IoId(self.last_id);
        self.storage.submit(Io { id, op });
        id
    }

    async fn next(&mut self) -> IoDone {
        poll_fn(|cx| self.storage.poll_done(cx)).await
    }

    /// One request with nothing else in flight.
    async fn ask(&mut self, op: IoOp) -> Result<IoOutput, IoError> {
        let id = self.submit(op);
        let done = self.next().await;
        assert_eq!(done.id, id, "the answer names its request");
        done.result
    }

    async fn done(&mut self, op: IoOp) {
        let what = format!("{op:?}");
        match self.ask(op).await {
            Ok(IoOutput::Done) => {}
            other => panic!("{what}: {other:?}"),
        }
    }

    async fn fails(&mut self, op: IoOp, kind: IoErrorKind) -> IoError {
        let what = format!("{op:?}");
        match self.ask(op).await {
            Err(error) if error.kind == kind => error,
            other => panic!("{what}: {other:?}, expected {kind:?}"),
        }
    }

    /// `count` answers, each to another request, all good.
    async fn all_done(&mut self, count: usize) {
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..count {
            let done = self.next().await;
            assert!(matches!(done.result, Ok(IoOutput::Done)), "{done:?}");
            assert!(seen.insert(done.id), "{:?} was answered twice", done.id);
        }
    }

    async fn allocate(&mut self, file: FileId, len: usize) {
        self.done(IoOp::Allocate {
            file,
            len: len as u64,
        })
        .await;
    }

    async fn write(&mut self, file: FileId, at: u64, bytes: Vec<u8>, sync: bool) {
        let len = bytes.len();
        self.done(IoOp::Write {
            file,
            at,
            buf: Arc::new(AlignedBuf::copy_of(&bytes)),
            len,
            sync,
        })
        .await;
    }

    async fn write_file(&mut self, file: FileId, bytes: Vec<u8>) {
        self.done(IoOp::WriteFile {
            file,
            bytes: Bytes::from(bytes),
        })
        .await;
    }

    async fn read(&mut self, file: FileId, at: u64, len: usize) -> Vec<u8> {
        match self.ask(IoOp::Read { file, at, len }).await {
            Ok(IoOutput::Read(buf)) => buf.to_vec(),
            other => panic!("read {file:?} at {at}: {other:?}"),
        }
    }

    async fn list(&mut self) -> BTreeMap<FileId, u64> {
        match self.ask(IoOp::List).await {
            Ok(IoOutput::Listed(files)) => {
                let count = files.len();
                let map: BTreeMap<_, _> = files.into_iter().collect();
                assert_eq!(map.len(), count, "a file is listed once");
                map
            }
            other => panic!("list: {other:?}"),
        }
    }
}

/// Bytes that differ by seed and by position, never zero.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut dice = Dice(seed);
    (0..len).map(|_| (dice.next() as u8).max(1)).collect()
}

/// Knuth's MMIX generator: enough for test data, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}
