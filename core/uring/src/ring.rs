//! The storage on io_uring, inside a tokio current-thread runtime.
//!
//! Requests are pushed to the ring's submission queue; one `io_uring_enter` on the next
//! [`poll_done`](Storage::poll_done) hands all of them over, and the first push wakes the task that
//! waits there. The ring's descriptor lies in the tokio reactor, so a completion wakes that task
//! like a packet wakes a socket.
//!
//! Absent on purpose: submitting from `on_thread_park`, and `DEFER_TASKRUN` (both hang with the
//! ring in an epoll set); registered buffers (the log's buffers come and go with its hot tail, so
//! nothing counts against `RLIMIT_MEMLOCK`).
#![allow(
    unsafe_code,
    reason = "the kernel reads and writes memory that it is given by address"
)]

use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use io_uring::{IoUring, Probe, opcode, squeue, types};
use millstream_log::buffer::AlignedBuf;
use millstream_log::io::{FileId, Io, IoDone, IoError, IoErrorKind, IoId, IoOp, Storage};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{Instant, Sleep};

use crate::background::{Background, Finished, stale};
use crate::files::{Directory, LIMIT_RETRY, Opened, Table};
use crate::flight::{Flight, Half, Next, Push, Transfer};
use crate::pages::Pages;

/// Submission queue: more than one `poll_done` gathers. Requests beyond it wait in memory.
const RING_ENTRIES: u32 = 256;

/// io_uring behind the [`Storage`] trait. It stays on the thread that opened it.
///
/// Dropping it waits for what the kernel holds, so that no buffer is freed under it.
pub struct RingStorage {
    ring: AsyncFd<IoUring>,
    /// Requests by slot; the slot is in the kernel's `user_data`.
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    /// Slots that found no room in the ring.
    waiting: VecDeque<usize>,
    /// Entries pushed that the kernel has not been told of, and entries without completion.
    unsubmitted: usize,
    uncompleted: usize,
    completions: Vec<(u64, i32)>,
    ready: VecDeque<IoDone>,
    waker: Option<Waker>,
    dir: Arc<Directory>,
    table: Table,
    pages: Pages,
    background: Background,
    finished: UnboundedReceiver<Finished>,
    flags: &'static str,
    /// Writes whose file could not be opened for want of a descriptor: begun when it can.
    held_up: VecDeque<HeldUp>,
    /// When that is tried again.
    retry: Pin<Box<Sleep>>,
    /// Why the ring can no longer be used.
    broken: Option<String>,
    /// SINGLE_ISSUER: one thread for life.
    one_thread: PhantomData<*const ()>,
}

/// A write that is not begun yet.
struct HeldUp {
    id: IoId,
    file: FileId,
    at: u64,
    len: usize,
    transfer: Transfer,
}

impl std::fmt::Debug for RingStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RingStorage")
            .field("flags", &self.flags)
            .field("unsubmitted", &self.unsubmitted)
            .field("uncompleted", &self.uncompleted)
            .field("waiting", &self.waiting.len())
            .finish_non_exhaustive()
    }
}

impl RingStorage {
    /// Open the directory and set the ring up, on the thread that will use it and inside its tokio
    /// runtime. It keeps at most `read_bytes` of memory for reads, once much is read, and at most
    /// `files_max` log files open.
    ///
    /// # Errors
    /// The directory cannot be made or opened; there is no runtime; the kernel refuses the ring.
    pub fn open(dir: &Path, read_bytes: usize, files_max: usize) -> io::Result<Self> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "this thread has no tokio runtime for io_uring's completions",
            ));
        }
        let (ring, flags) = set_up()?;
        // SAFETY: the ring owns its descriptor, gives out the same one as long as it lives, and lives
        // as long as the `AsyncFd` that takes it.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }?;
        let dir = Arc::new(Directory::open(dir)?);
        let (answers, finished) = unbounded_channel();
        let background = Background::start(&dir, &answers)?;
        Ok(Self {
            ring,
            flights: Vec::new(),
            free: Vec::new(),
            waiting: VecDeque::new(),
            unsubmitted: 0,
            uncompleted: 0,
            completions: Vec::new(),
            ready: VecDeque::new(),
            waker: None,
            dir,
            table: Table::new(files_max),
            held_up: VecDeque::new(),
            retry: Box::pin(tokio::time::sleep(Duration::ZERO)),
            pages: Pages::new(read_bytes),
            background,
            finished,
            flags,
            broken: None,
            one_thread: PhantomData,
        })
    }

    /// As on a file system without `O_DIRECT`.
    #[cfg(test)]
    pub(crate) fn give_up_direct(&self) {
        self.dir.give_up_direct();
    }

    fn begin(&mut self, id: IoId, file: FileId, at: u64, len: usize, transfer: Transfer) {
        if let Some(why) = &self.broken {
            let message = format!("{}: {why}", file.file_name());
            self.answer(
                id,
                Err(IoError {
                    kind: IoErrorKind::Failed,
                    message,
                }),
            );
            return;
        }
        let write = matches!(transfer, Transfer::Write { .. });
        match self.table.access(&self.dir, file, write) {
            Ok(handle) => {
                let flight = Flight::new(id, file, handle, transfer, at, len);
                let slot = self.free.pop().unwrap_or_else(|| {
                    self.flights.push(None);
                    self.flights.len() - 1
                });
                self.flights[slot] = Some(flight);
                if self.waiting.is_empty() {
                    self.push(slot);
                } else {
                    self.waiting.push_back(slot);
                }
            }
            Err(error) if write && error.kind == IoErrorKind::Limit => {
                self.dir.tell_limit(&error);
                let held_up = HeldUp {
                    id,
                    file,
                    at,
                    len,
                    transfer,
                };
                self.held_up.push_back(held_up);
                self.retry.as_mut().reset(Instant::now() + LIMIT_RETRY);
            }
            Err(error) => self.answer(id, Err(error)),
        }
    }

    /// Try again to begin what could not be begun.
    fn begin_held_up(&mut self, cx: &mut Context<'_>) {
        while !self.held_up.is_empty() && self.retry.as_mut().poll(cx).is_ready() {
            for _ in 0..self.held_up.len() {
                let Some(held_up) = self.held_up.pop_front() else {
                    break;
                };
                let HeldUp {
                    id,
                    file,
                    at,
                    len,
                    transfer,
                } = held_up;
                self.begin(id, file, at, len, transfer);
            }
        }
    }

    /// Push what the flight needs next, or queue it until there is room.
    fn push(&mut self, slot: usize) {
        let flight = self.flights[slot].as_mut().expect("a slot in use");
        let Some(plan) = flight.plan() else {
            self.finish(slot, Ok(()));
            return;
        };
        let count = usize::from(plan.range.is_some()) + usize::from(plan.sync);
        let ring = self.ring.get_mut();
        let room_for_answers = ring.params().cq_entries() as usize - self.uncompleted;
        let mut queue = ring.submission();
        if room_for_answers < count || queue.capacity() - queue.len() < count {
            drop(queue);
            self.waiting.push_back(slot);
            return;
        }
        let [transfer, sync] = entries(flight, plan, slot);
        flight.pushed(plan);
        for entry in [transfer, sync].into_iter().flatten() {
            // SAFETY: the entry's descriptor and memory are owned by the flight, which stays in its
            // slot until its last completion has come (`reap`), through `drop` too.
            unsafe { queue.push(&entry) }.expect("room was checked");
        }
        self.unsubmitted += count;
        self.uncompleted += count;
    }

    /// Hand what was pushed to the kernel: one system call for all of it.
    fn enter(&mut self, cx: &mut Context<'_>) {
        while self.unsubmitted > 0 && self.broken.is_none() {
            match self.ring.get_ref().submit() {
                Ok(0) => break,
                Ok(count) => self.unsubmitted -= count.min(self.unsubmitted),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // Short of memory or completions: take some, then try again.
                    Some(libc::EAGAIN | libc::EBUSY) => {
                        cx.waker().wake_by_ref();
                        break;
                    }
                    _ => self.break_down(&error),
                },
            }
        }
    }

    /// Take what has completed.
    fn reap(&mut self) {
        let mut completions = std::mem::take(&mut self.completions);
        completions.extend(
            self.ring
                .get_mut()
                .completion()
                .map(|c| (c.user_data(), c.result())),
        );
        self.uncompleted -= completions.len().min(self.uncompleted);
        for (user_data, result) in completions.drain(..) {
            let (slot, half) = decode(user_data);
            let Some(flight) = self.flights.get_mut(slot).and_then(Option::as_mut) else {
                debug_assert!(false, "a completion without request: {user_data:#x}");
                continue;
            };
            match flight.completed(half, result) {
                Next::Wait => {}
                Next::Again => self.push(slot),
                Next::Reopen => self.reopen(slot),
                Next::Finished(result) => self.finish(slot, result),
            }
        }
        self.completions = completions;
        for _ in 0..self.waiting.len() {
            let before = self.uncompleted;
            let Some(slot) = self.waiting.pop_front() else {
                break;
            };
            self.push(slot);
            if self.uncompleted == before && self.waiting.back() == Some(&slot) {
                self.waiting.rotate_right(1); // No room: it stays the first in line.
                break;
            }
        }
    }

    /// Go on through the page cache: the file system refuses `O_DIRECT`.
    fn reopen(&mut self, slot: usize) {
        self.dir.give_up_direct();
        let flight = self.flights[slot].as_mut().expect("a slot in use");
        let write = matches!(flight.transfer, Transfer::Write { .. });
        match self.table.access(&self.dir, flight.file, write) {
            Ok(handle) => {
                flight.handle = handle;
                self.push(slot);
            }
            Err(error) => self.finish(slot, Err(error)),
        }
    }

    fn finish(&mut self, slot: usize, result: Result<(), IoError>) {
        let flight = self.flights[slot].take().expect("a slot in use");
        self.free.push(slot);
        let (id, handle) = (flight.id, flight.handle.clone());
        self.answer(id, result.map(|()| flight.into_output()));
        self.close(handle);
    }

    /// Let go of a handle; if it is the last, elsewhere, for the file may have been removed.
    fn close(&self, handle: Arc<Opened>) {
        if Arc::strong_count(&handle) == 1 {
            self.background.close(handle);
        }
    }

    fn answer(&mut self, id: IoId, result: Result<millstream_log::io::IoOutput, IoError>) {
        self.ready.push_back(IoDone { id, result });
    }

    /// The ring itself fails. The kernel may still hold the memory in flight, so it is never freed.
    fn break_down(&mut self, error: &io::Error) {
        let why = format!("io_uring failed: {error}; restart the broker");
        tracing::error!("{why}");
        for flight in self.flights.iter_mut().filter_map(Option::take) {
            self.ready.push_back(IoDone {
                id: flight.id,
                result: Err(flight.lost(&why)),
            });
            std::mem::forget(flight);
        }
        self.free.clear();
        self.flights.clear();
        self.waiting.clear();
        self.unsubmitted = 0;
        self.uncompleted = 0;
        self.broken = Some(why);
    }

    fn take_background(&mut self, finished: Finished) {
        for file in finished.stale.into_iter().flatten() {
            if let Some(handle) = self.table.forget(file) {
                self.close(handle);
            }
        }
        self.ready.push_back(finished.done);
    }
}

impl Storage for RingStorage {
    fn submit(&mut self, io: Io) {
        let Io { id, op } = io;
        if let Err(error) = op.check() {
            self.answer(id, Err(error));
        } else {
            match op {
                IoOp::Write {
                    file,
                    at,
                    buf,
                    len,
                    sync,
                } => {
                    self.begin(id, file, at, len, Transfer::Write { buf, sync });
                }
                IoOp::Read { file, at, len } => {
                    let kept = self.pages.take(len);
                    let buf = kept.unwrap_or_else(|| AlignedBuf::with_capacity(len));
                    self.begin(id, file, at, len, Transfer::Read { buf });
                }
                op => {
                    let files = stale(&op).into_iter().flatten();
                    let handles = files.filter_map(|file| self.table.forget(file)).collect();
                    self.background.submit(Io { id, op }, handles);
                    return; // Its answer wakes by itself.
                }
            }
        }
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn poll_done(&mut self, cx: &mut Context<'_>) -> Poll<IoDone> {
        loop {
            while let Poll::Ready(Some(finished)) = self.finished.poll_recv(cx) {
                self.take_background(finished);
            }
            self.begin_held_up(cx);
            self.reap();
            self.enter(cx);
            if let Some(done) = self.ready.pop_front() {
                return Poll::Ready(done);
            }
            match self.ring.poll_read_ready(cx) {
                // Cleared before the queue is looked at again, so that nothing is missed between.
                Poll::Ready(Ok(mut guard)) => guard.clear_ready(),
                Poll::Ready(Err(error)) if self.broken.is_none() => self.break_down(&error),
                Poll::Ready(Err(_)) | Poll::Pending => {
                    self.waker = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            }
        }
    }

    fn describe(&self) -> String {
        let direct = if self.dir.is_direct() {
            "O_DIRECT"
        } else {
            "buffered"
        };
        format!("io_uring ({}, {direct})", self.flags)
    }
}

impl Drop for RingStorage {
    fn drop(&mut self) {
        while self.uncompleted > 0 {
            if let Err(error) = self.ring.get_ref().submit_and_wait(1)
                && error.kind() != io::ErrorKind::Interrupted
            {
                self.break_down(&error);
                return;
            }
            let completed = self.ring.get_mut().completion().count();
            self.uncompleted -= completed.min(self.uncompleted);
        }
    }
}

/// Whether an error of [`RingStorage::open`] means that io_uring is not to be had here.
pub(crate) fn is_refusal(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Unsupported)
}

/// A ring with the best flags that this kernel knows.
fn set_up() -> io::Result<(IoUring, &'static str)> {
    let attempts: [(&'static str, bool, bool); 3] = [
        ("SINGLE_ISSUER | COOP_TASKRUN", true, true), // Linux 6.0
        ("COOP_TASKRUN", false, true),                // Linux 5.19
        ("no flags", false, false),
    ];
    let mut last = None;
    for (name, single_issuer, coop_taskrun) in attempts {
        let mut builder = IoUring::builder();
        if single_issuer {
            builder.setup_single_issuer();
        }
        if coop_taskrun {
            builder.setup_coop_taskrun();
        }
        match builder.dontfork().build(RING_ENTRIES) {
            Ok(ring) => {
                check_operations(&ring)?;
                return Ok((ring, name));
            }
            Err(error) => last = Some(error),
        }
    }
    let error = last.expect("there are attempts");
    let why = match error.raw_os_error() {
        Some(libc::EPERM) => {
            "io_uring is forbidden here (EPERM): allow io_uring_setup in the container's seccomp \
             profile, or set the sysctl kernel.io_uring_disabled to 0"
        }
        Some(libc::ENOSYS) => "this kernel or sandbox has no io_uring (ENOSYS)",
        Some(libc::ENOMEM) => {
            "the ring does not fit in the locked-memory limit (ENOMEM): raise RLIMIT_MEMLOCK"
        }
        _ => return Err(unsupported(format!("io_uring cannot be set up: {error}"))),
    };
    Err(unsupported(why.to_owned()))
}

fn check_operations(ring: &IoUring) -> io::Result<()> {
    let mut probe = Probe::new();
    let probed = ring.submitter().register_probe(&mut probe).is_ok();
    let wanted = [opcode::Write::CODE, opcode::Read::CODE, opcode::Fsync::CODE];
    if probed && ring.params().is_feature_nodrop() && wanted.iter().all(|c| probe.is_supported(*c))
    {
        return Ok(());
    }
    Err(unsupported(
        "this kernel's io_uring is too old: Linux 5.6 or newer is needed".to_owned(),
    ))
}

fn unsupported(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, why)
}

/// The entries for a plan: the transfer, and the sync linked behind it.
fn entries(flight: &mut Flight, push: Push, slot: usize) -> [Option<squeue::Entry>; 2] {
    let fd = types::Fd(flight.handle.file.as_raw_fd());
    let transfer = push.range.map(|(from, len)| {
        let at = flight.at + from as u64;
        let count = u32::try_from(len).expect("a chunk is at most 1 GiB");
        let entry = match &mut flight.transfer {
            Transfer::Write { buf, .. } => {
                opcode::Write::new(fd, buf[from..from + len].as_ptr(), count)
                    .offset(at)
                    .build()
            }
            Transfer::Read { buf } => {
                assert!(
                    from + len <= buf.capacity(),
                    "a read stays inside its buffer"
                );
                let start = buf.as_mut_ptr().wrapping_add(from);
                opcode::Read::new(fd, start, count).offset(at).build()
            }
        };
        let flags = if push.sync {
            squeue::Flags::IO_LINK
        } else {
            squeue::Flags::empty()
        };
        entry.flags(flags).user_data(encode(slot, Half::Transfer))
    });
    let sync = push.sync.then(|| {
        let entry = opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC);
        entry.build().user_data(encode(slot, Half::Sync))
    });
    [transfer, sync]
}

fn encode(slot: usize, half: Half) -> u64 {
    (slot as u64) << 1 | u64::from(half == Half::Sync)
}

fn decode(user_data: u64) -> (usize, Half) {
    let half = if user_data & 1 == 1 {
        Half::Sync
    } else {
        Half::Transfer
    };
    ((user_data >> 1) as usize, half)
}
