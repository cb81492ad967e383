//! Both storages against the conformance suite, and what only a real disk can show.

use std::cell::RefCell;
use std::future::poll_fn;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use millstream_log::buffer::AlignedBuf;
use millstream_log::conformance;
use millstream_log::io::{FileId, Io, IoDone, IoId, IoOp, IoOutput, Storage};
use millstream_uring::{OPEN_FILES_MAX, Preference, open};

const BLOCK: usize = 4096;
/// Of memory for reads.
const READ_BYTES: usize = 4 << 20;

/// Every storage this machine has: a kernel or container may forbid the ring.
fn preferences() -> Vec<Preference> {
    let temp = tempfile::tempdir().expect("a temporary directory");
    match runtime()
        .block_on(async { open(temp.path(), Preference::Ring, 0, OPEN_FILES_MAX).map(drop) })
    {
        Ok(()) => vec![Preference::Ring, Preference::Portable],
        Err(error) => {
            assert_eq!(error.kind(), std::io::ErrorKind::Unsupported, "{error}");
            vec![Preference::Portable]
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

async fn next(storage: &mut dyn Storage) -> IoDone {
    poll_fn(|cx| storage.poll_done(cx)).await
}

async fn done(storage: &mut dyn Storage, id: u64, op: IoOp) -> IoOutput {
    storage.submit(Io { id: IoId(id), op });
    let done = next(storage).await;
    assert_eq!(done.id, IoId(id));
    done.result.expect("it succeeds")
}

fn write(file: FileId, at: u64, byte: u8, len: usize) -> IoOp {
    let buf = Arc::new(AlignedBuf::copy_of(&vec![byte; len]));
    IoOp::Write {
        file,
        at,
        buf,
        len,
        sync: true,
    }
}

/// More is read than it takes for memory of reads to be used again, while some of it is held.
#[test]
fn what_was_read_stays_as_it_was_while_more_is_read() {
    const PIECE: usize = 1 << 20;
    for preference in preferences() {
        let temp = tempfile::tempdir().expect("a temporary directory");
        runtime().block_on(async {
            let mut storage =
                open(temp.path(), preference, READ_BYTES, OPEN_FILES_MAX).expect("it opens");
            let file = FileId::Wal(1);
            let len = 8 * PIECE as u64;
            done(&mut *storage, 1, IoOp::Allocate { file, len }).await;
            for n in 0..8 {
                done(
                    &mut *storage,
                    1,
                    write(file, (n * PIECE) as u64, n as u8, PIECE),
                )
                .await;
            }
            let mut held = Vec::new();
            for n in 0..150 {
                let read = IoOp::Read {
                    file,
                    at: (n % 8 * PIECE) as u64,
                    len: PIECE,
                };
                let IoOutput::Read(buf) = done(&mut *storage, 1, read).await else {
                    panic!("a read answers bytes")
                };
                held.push((n % 8, buf));
                if n % 3 > 0 {
                    held.swap_remove(n % held.len());
                }
                held.truncate(6);
                for (n, buf) in &held {
                    assert!(buf.len() == PIECE && buf.iter().all(|byte| *byte as usize == *n));
                }
            }
        });
    }
}

fn conform(preference: Preference) {
    if !preferences().contains(&preference) {
        return;
    }
    let temp = tempfile::tempdir().expect("a temporary directory");
    let mut made = 0;
    runtime().block_on(conformance::run(&mut || {
        made += 1;
        open(
            &temp.path().join(made.to_string()),
            preference,
            READ_BYTES,
            OPEN_FILES_MAX,
        )
        .expect("the storage opens")
    }));
}

#[test]
fn the_ring_conforms() {
    conform(Preference::Ring);
}

#[test]
fn the_portable_storage_conforms() {
    conform(Preference::Portable);
}

/// tmpfs: no journal, no device, and no `O_DIRECT` on older kernels.
#[test]
fn both_conform_in_memory() {
    let shm = Path::new("/dev/shm");
    let Ok(temp) = tempfile::tempdir_in(shm) else {
        return;
    };
    for preference in preferences() {
        let mut made = 0;
        runtime().block_on(conformance::run(&mut || {
            made += 1;
            let dir = temp.path().join(format!("{preference:?}-{made}"));
            open(&dir, preference, READ_BYTES, OPEN_FILES_MAX).expect("the storage opens")
        }));
    }
}

#[test]
fn the_next_storage_sees_what_the_last_one_wrote() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(temp.path().join("lost+found"), "").expect("a foreign file");
    for (round, preference) in preferences().into_iter().enumerate() {
        let file = FileId::Wal(round as u64);
        for life in 0..2 {
            runtime().block_on(async {
                let mut storage =
                    open(temp.path(), preference, READ_BYTES, OPEN_FILES_MAX).expect("it opens");
                if life == 0 {
                    let len = 16 * BLOCK as u64;
                    done(&mut *storage, 1, IoOp::Allocate { file, len }).await;
                    done(&mut *storage, 2, write(file, 4096, 7, BLOCK)).await;
                    return;
                }
                let read = IoOp::Read {
                    file,
                    at: 0,
                    len: 2 * BLOCK,
                };
                let IoOutput::Read(bytes) = done(&mut *storage, 1, read).await else {
                    panic!()
                };
                assert_eq!(bytes[..BLOCK], [0; BLOCK]);
                assert_eq!(bytes[BLOCK..], [7; BLOCK]);
                let IoOutput::Listed(files) = done(&mut *storage, 2, IoOp::List).await else {
                    panic!()
                };
                assert_eq!(
                    files.len(),
                    round + 1,
                    "the foreign file is not listed: {files:?}"
                );
            });
        }
    }
}

/// A push from one task must reach the kernel although the driver task sleeps.
#[test]
fn a_push_wakes_the_sleeping_driver() {
    for preference in preferences() {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime(), async {
            let storage = Rc::new(RefCell::new(
                open(temp.path(), preference, READ_BYTES, OPEN_FILES_MAX).expect("it opens"),
            ));
            let file = FileId::Wal(1);
            let (answers, mut answered) = tokio::sync::mpsc::unbounded_channel();
            let driven = storage.clone();
            let driver = tokio::task::spawn_local(async move {
                loop {
                    let done = poll_fn(|cx| driven.borrow_mut().poll_done(cx)).await;
                    answers.send(done).expect("the test listens");
                }
            });
            let push = |id: u64, op| storage.borrow_mut().submit(Io { id: IoId(id), op });
            tokio::task::yield_now().await;
            push(1, IoOp::Allocate { file, len: 1 << 20 });
            assert!(answered.recv().await.expect("an answer").result.is_ok());
            for id in 2..200 {
                // The driver has gone to sleep again: all tasks but this one are idle.
                tokio::task::yield_now().await;
                push(id, write(file, 4096 * (id % 64), id as u8, BLOCK));
                let done = answered.recv().await.expect("an answer");
                assert_eq!(done.id, IoId(id));
                assert!(matches!(done.result, Ok(IoOutput::Done)), "{done:?}");
            }
            driver.abort();
        });
    }
}

/// Run under a memory checker this shows a use after free; without one, that nothing hangs.
#[test]
fn a_storage_may_be_dropped_at_any_time() {
    for preference in preferences() {
        for polls in 0..4 {
            let temp = tempfile::tempdir().expect("a temporary directory");
            runtime().block_on(async {
                let mut storage =
                    open(temp.path(), preference, READ_BYTES, OPEN_FILES_MAX).expect("it opens");
                for n in 0..8 {
                    let len = 4 << 20;
                    done(
                        &mut *storage,
                        n,
                        IoOp::Allocate {
                            file: FileId::Wal(n),
                            len,
                        },
                    )
                    .await;
                }
                for n in 0..8 {
                    storage.submit(Io {
                        id: IoId(100 + n),
                        op: write(FileId::Wal(n), 0, 1, 4 << 20),
                    });
                    let read = IoOp::Read {
                        file: FileId::Wal(n),
                        at: 0,
                        len: 4 << 20,
                    };
                    storage.submit(Io {
                        id: IoId(200 + n),
                        op: read,
                    });
                }
                let allocate = IoOp::Allocate {
                    file: FileId::Spare(1),
                    len: 8 << 30,
                };
                storage.submit(Io {
                    id: IoId(300),
                    op: allocate,
                });
                for _ in 0..polls {
                    next(&mut *storage).await;
                }
                poll_fn(|cx| {
                    let _ = storage.poll_done(cx);
                    Poll::Ready(())
                })
                .await;
            });
            let spare = temp.path().join(FileId::Spare(1).file_name());
            assert!(
                !spare.exists(),
                "an abandoned allocation gives its space back"
            );
        }
    }
}

/// More requests at once than the ring has entries, with linked pairs among them.
#[test]
fn a_flood_is_answered() {
    for preference in preferences() {
        let temp = tempfile::tempdir().expect("a temporary directory");
        runtime().block_on(async {
            let mut storage =
                open(temp.path(), preference, READ_BYTES, OPEN_FILES_MAX).expect("it opens");
            for n in 0..600 {
                let bytes = bytes::Bytes::from(vec![0; BLOCK]);
                let file = FileId::Snapshot { begin: 1, part: n };
                done(&mut *storage, 1, IoOp::WriteFile { file, bytes }).await;
            }
            for n in 0..600 {
                let file = FileId::Snapshot { begin: 1, part: n };
                storage.submit(Io {
                    id: IoId(u64::from(n)),
                    op: write(file, 0, n as u8, BLOCK),
                });
            }
            let mut answered = std::collections::BTreeSet::new();
            for _ in 0..600 {
                let done = next(&mut *storage).await;
                assert!(matches!(done.result, Ok(IoOutput::Done)), "{done:?}");
                assert!(answered.insert(done.id));
            }
            for n in 0..600 {
                let file = FileId::Snapshot { begin: 1, part: n };
                let read = IoOp::Read {
                    file,
                    at: 0,
                    len: BLOCK,
                };
                let IoOutput::Read(bytes) = done(&mut *storage, 1, read).await else {
                    panic!()
                };
                assert!(bytes.iter().all(|b| *b == n as u8));
            }
        });
    }
}

#[test]
fn without_a_runtime_auto_falls_back() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let storage = open(temp.path(), Preference::Auto, 0, OPEN_FILES_MAX).expect("it opens");
    assert!(
        storage.describe().starts_with("portable"),
        "{}",
        storage.describe()
    );
    assert!(open(temp.path(), Preference::Ring, 0, OPEN_FILES_MAX).is_err());
}
