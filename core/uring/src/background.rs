//! Work that blocks for long or changes the directory, on threads of its own: a shard's thread must
//! never wait for it. Unlinking 1 GiB takes 40 ms, zero-filling it a second.
//!
//! Two lanes, so that a rename (a new WAL file is due) never queues behind a zero-fill.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use millstream_log::io::{FileId, Io, IoDone, IoOp, IoOutput};
use tokio::sync::mpsc::UnboundedSender;

use crate::files::{Directory, Opened};
use crate::sys;

/// A [`IoOp::WriteFile`] above this goes to the slow lane, bytes.
const QUICK_BYTES_MAX: usize = 1 << 20;

/// An answer, and the names that mean another file (or none) since.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) done: IoDone,
    pub(crate) stale: [Option<FileId>; 2],
}

impl Finished {
    pub(crate) fn plain(done: IoDone) -> Self {
        Self {
            done,
            stale: [None, None],
        }
    }
}

#[derive(Debug)]
enum Job {
    /// Do it, let go of the handles it makes stale, then answer.
    Do(Io, Vec<Arc<Opened>>),
    Close(Arc<Opened>),
}

/// The two lanes. Dropping it abandons what has not begun and waits for what has.
#[derive(Debug)]
pub(crate) struct Background {
    quick: Option<Sender<Job>>,
    slow: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl Background {
    pub(crate) fn start(
        dir: &Arc<Directory>,
        answers: &UnboundedSender<Finished>,
    ) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        let mut lane = |name: &str| -> io::Result<Sender<Job>> {
            let (sender, jobs) = channel();
            let (dir, answers, stop) = (dir.clone(), answers.clone(), stop.clone());
            let work = move || work(&dir, &jobs, &answers, &stop);
            threads.push(crate::spawn(name, work)?);
            Ok(sender)
        };
        let quick = Some(lane("disk-quick")?);
        let slow = Some(lane("disk-slow")?);
        Ok(Self {
            quick,
            slow,
            threads,
            stop,
        })
    }

    /// Take a request that is neither a read nor a write; `stale` are the open handles of the files
    /// it names.
    pub(crate) fn submit(&self, io: Io, stale: Vec<Arc<Opened>>) {
        let slow = match &io.op {
            IoOp::Allocate { .. } | IoOp::Remove { .. } => true,
            IoOp::WriteFile { bytes, .. } => bytes.len() > QUICK_BYTES_MAX,
            _ => false,
        };
        send(
            if slow { &self.slow } else { &self.quick },
            Job::Do(io, stale),
        );
    }

    /// Close a file elsewhere: it may have been removed, and then its blocks are freed now.
    pub(crate) fn close(&self, file: Arc<Opened>) {
        send(&self.slow, Job::Close(file));
    }
}

/// The files an operation gives another meaning to.
pub(crate) fn stale(op: &IoOp) -> [Option<FileId>; 2] {
    match op {
        IoOp::Allocate { file, .. } | IoOp::WriteFile { file, .. } | IoOp::Remove { file } => {
            [Some(*file), None]
        }
        IoOp::Rename { from, to } => [Some(*from), Some(*to)],
        IoOp::List | IoOp::Write { .. } | IoOp::Read { .. } => [None, None],
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        self.quick = None;
        self.slow = None;
        for thread in self.threads.drain(..) {
            // A panic there has been reported by its own hook.
            let _ = thread.join();
        }
    }
}

fn send(lane: &Option<Sender<Job>>, job: Job) {
    let lane = lane.as_ref().expect("lanes are open until drop");
    lane.send(job).expect("a lane's thread runs until drop");
}

fn work(
    dir: &Directory,
    jobs: &Receiver<Job>,
    answers: &UnboundedSender<Finished>,
    stop: &AtomicBool,
) {
    sys::unpin();
    sys::be_nice();
    for job in jobs {
        let (io, handles) = match job {
            Job::Do(io, handles) => (io, handles),
            Job::Close(file) => {
                drop(file);
                continue;
            }
        };
        if stop.load(Relaxed) {
            continue;
        }
        let stale = stale(&io.op);
        let result = match &io.op {
            IoOp::List => dir.list().map(IoOutput::Listed),
            IoOp::Allocate { file, len } => {
                dir.allocate(*file, *len, stop).map(|()| IoOutput::Done)
            }
            IoOp::WriteFile { file, bytes } => {
                dir.write_file(*file, bytes).map(|()| IoOutput::Done)
            }
            IoOp::Rename { from, to } => dir.rename(*from, *to).map(|()| IoOutput::Done),
            IoOp::Remove { file } => dir.remove(*file).map(|()| IoOutput::Done),
            IoOp::Write { .. } | IoOp::Read { .. } => unreachable!("not background work"),
        };
        drop(handles);
        // The receiver is gone only when the storage is being dropped.
        let _ = answers.send(Finished {
            done: IoDone { id: io.id, result },
            stale,
        });
    }
}
