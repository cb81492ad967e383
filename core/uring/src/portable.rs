//! The storage without io_uring: one thread that appends, two that read, and the background lanes.
//! For containers and kernels that forbid the ring. As durable, a thread hop slower.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::thread::{self, JoinHandle};

use millstream_log::buffer::AlignedBuf;
use millstream_log::io::{
    BLOCK_BYTES, FileId, Io, IoDone, IoError, IoErrorKind, IoOp, IoOutput, Storage,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::background::{Background, Finished, stale};
use crate::files::{Directory, LIMIT_RETRY, Opened, Table, io_error, whole_blocks};
use crate::sys;

/// Catch-up reads that run side by side.
const READERS: usize = 2;

/// A few threads behind the [`Storage`] trait. Needs no tokio runtime.
///
/// Dropping it abandons what has not begun and waits for what has.
#[derive(Debug)]
pub struct PortableStorage {
    shared: Arc<Shared>,
    appends: Option<Sender<Io>>,
    reads: Option<Sender<Io>>,
    answers: UnboundedSender<Finished>,
    finished: UnboundedReceiver<Finished>,
    threads: Vec<JoinHandle<()>>,
    background: Background,
}

#[derive(Debug)]
struct Shared {
    dir: Arc<Directory>,
    table: Mutex<Table>,
    stop: AtomicBool,
}

impl PortableStorage {
    /// Open the directory and start the threads. At most `files_max` log files stay open.
    ///
    /// # Errors
    /// The directory cannot be made or opened, or no thread can be started.
    pub fn open(dir: &Path, files_max: usize) -> io::Result<Self> {
        let dir = Arc::new(Directory::open(dir)?);
        let (answers, finished) = unbounded_channel();
        let background = Background::start(&dir, &answers)?;
        let stop = AtomicBool::new(false);
        let shared = Arc::new(Shared {
            dir,
            table: Mutex::new(Table::new(files_max)),
            stop,
        });
        let mut threads = Vec::new();
        let mut start = |name: &str, jobs: &Arc<Mutex<Receiver<Io>>>| -> io::Result<()> {
            let (shared, jobs, answers) = (shared.clone(), jobs.clone(), answers.clone());
            let work = move || work(&shared, &jobs, &answers);
            threads.push(crate::spawn(name, work)?);
            Ok(())
        };
        let (appends, jobs) = channel();
        start("disk-append", &Arc::new(Mutex::new(jobs)))?;
        let (reads, jobs) = channel();
        let jobs = Arc::new(Mutex::new(jobs));
        for _ in 0..READERS {
            start("disk-read", &jobs)?;
        }
        let (appends, reads) = (Some(appends), Some(reads));
        Ok(Self {
            shared,
            appends,
            reads,
            answers,
            finished,
            threads,
            background,
        })
    }

    /// As on a file system without `O_DIRECT`.
    #[cfg(test)]
    pub(crate) fn give_up_direct(&self) {
        self.shared.dir.give_up_direct();
    }
}

impl Storage for PortableStorage {
    fn submit(&mut self, io: Io) {
        if let Err(error) = io.op.check() {
            let done = IoDone {
                id: io.id,
                result: Err(error),
            };
            // Cannot fail: we hold the receiver.
            let _ = self.answers.send(Finished::plain(done));
            return;
        }
        let lane = match &io.op {
            IoOp::Write { .. } => &self.appends,
            IoOp::Read { .. } => &self.reads,
            op => {
                let files = stale(op).into_iter().flatten();
                let handles = files.filter_map(|file| self.shared.forget(file)).collect();
                self.background.submit(io, handles);
                return;
            }
        };
        let lane = lane.as_ref().expect("lanes are open until drop");
        lane.send(io).expect("a lane's thread runs until drop");
    }

    fn poll_done(&mut self, cx: &mut Context<'_>) -> Poll<IoDone> {
        let Poll::Ready(finished) = self.finished.poll_recv(cx) else {
            return Poll::Pending;
        };
        let finished = finished.expect("we hold a sender");
        for file in finished.stale.into_iter().flatten() {
            if let Some(handle) = self.shared.forget(file) {
                self.background.close(handle);
            }
        }
        Poll::Ready(finished.done)
    }

    fn describe(&self) -> String {
        format!("portable (1 append thread, {READERS} read threads)")
    }
}

impl Drop for PortableStorage {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        self.appends = None;
        self.reads = None;
        for thread in self.threads.drain(..) {
            // A panic there has been reported by its own hook.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn access(&self, file: FileId, write: bool) -> Result<Arc<Opened>, IoError> {
        self.table
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .access(&self.dir, file, write)
    }

    /// A write is begun when its file can be opened: nothing is wrong with the disk until then.
    fn access_to_write(&self, file: FileId) -> Result<Arc<Opened>, IoError> {
        loop {
            match self.access(file, true) {
                Err(error) if error.kind == IoErrorKind::Limit && !self.stop.load(Relaxed) => {
                    self.dir.tell_limit(&error);
                    thread::sleep(LIMIT_RETRY);
                }
                opened => return opened,
            }
        }
    }

    fn forget(&self, file: FileId) -> Option<Arc<Opened>> {
        self.table
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .forget(file)
    }

    fn write(&self, file: FileId, at: u64, bytes: &[u8], sync: bool) -> Result<(), IoError> {
        let mut handle = self.access_to_write(file)?;
        let mut written = 0;
        while written < bytes.len() {
            let result = handle.file.write_at(&bytes[written..], at + written as u64);
            let result = result.and_then(|count| whole_blocks(count, handle.direct));
            match result {
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if handle.direct && error.raw_os_error() == Some(libc::EINVAL) => {
                    self.dir.give_up_direct();
                    handle = self.access(file, true)?;
                }
                Err(error) => {
                    let what = format!("write {} bytes at {at}", bytes.len());
                    return Err(io_error(file, &what, &error));
                }
            }
        }
        if sync {
            let synced = handle.file.sync_data();
            synced.map_err(|error| io_error(file, "fdatasync", &error))?;
        }
        Ok(())
    }

    fn read(&self, file: FileId, at: u64, len: usize) -> Result<AlignedBuf, IoError> {
        let mut handle = self.access(file, false)?;
        let mut buf = AlignedBuf::with_capacity(len);
        buf.set_len(len);
        let mut read = 0;
        while read < len {
            match handle.file.read_at(&mut buf[read..], at + read as u64) {
                Ok(0) => break,
                Ok(count) => {
                    read += count;
                    if handle.direct && count % BLOCK_BYTES != 0 {
                        break; // The end of a file of odd length; the next read would be misaligned.
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if handle.direct && error.raw_os_error() == Some(libc::EINVAL) => {
                    self.dir.give_up_direct();
                    handle = self.access(file, false)?;
                }
                Err(error) => {
                    return Err(io_error(file, &format!("read {len} bytes at {at}"), &error));
                }
            }
        }
        buf.set_len(read);
        Ok(buf)
    }
}

fn work(shared: &Shared, jobs: &Mutex<Receiver<Io>>, answers: &UnboundedSender<Finished>) {
    sys::unpin();
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Io { id, op }) = job else { return };
        if shared.stop.load(Relaxed) {
            continue;
        }
        let result = match op {
            IoOp::Write {
                file,
                at,
                buf,
                len,
                sync,
            } => shared
                .write(file, at, &buf[..len], sync)
                .map(|()| IoOutput::Done),
            IoOp::Read { file, at, len } => shared.read(file, at, len).map(IoOutput::Read),
            _ => unreachable!("background work goes to the background"),
        };
        // The receiver is gone only when the storage is being dropped.
        let _ = answers.send(Finished::plain(IoDone { id, result }));
    }
}
