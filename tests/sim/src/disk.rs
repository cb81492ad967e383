//! A simulated disk: the third [`Storage`], for runs that crash at every I/O.
//!
//! Two planes. The *live* plane is what the running system reads; the *durable* plane is what a
//! power cut leaves. A write lands in the live plane and in a list of unsynced writes; a sync moves
//! them to the durable plane; a crash keeps a seeded subset of their 512-byte sectors (torn and
//! reordered) and makes that the live plane. A request in flight at a crash may have happened,
//! partly happened, or not.
//!
//! A failed sync drops the unsynced writes from the durable plane for good while they stay readable
//! in the live one, as Linux does ("fsyncgate"): who goes on after it loses data.
//!
//! Everything follows from the seed: the order of completions, delays, what a crash leaves. No
//! clock, no threads. It panics when the log breaks its contract (two writes to one file in flight,
//! a WAL file that grows): that is a bug in the log, not a fault of the disk.

mod torn;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use millstream_log::buffer::AlignedBuf;
use millstream_log::io::{FileId, Io, IoDone, IoError, IoErrorKind, IoOp, IoOutput, Storage};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

pub use torn::SECTOR_BYTES;
use torn::{Kept, Unsynced, keep_some};

/// What goes wrong by chance, each in parts per million of the requests it is about. All zero: a
/// healthy disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Writes that fail; any of their sectors may have been written.
    pub write_fails: u32,
    /// Syncs that fail; the unsynced writes are lost from the durable plane.
    pub sync_fails: u32,
    /// Reads that fail. The data stays as it is.
    pub read_fails: u32,
    /// Allocate, WriteFile, Rename, Remove that fail; they may have happened nevertheless.
    pub directory_fails: u32,
    /// Requests that are held back while any other can complete.
    pub delayed: u32,
}

/// The simulated disk. Protocol of use: `submit` requests, then `complete_one` until it gives
/// `None`; `crash` at any moment in between; faults at any moment.
#[derive(Debug)]
pub struct SimDisk {
    dice: ChaCha8Rng,
    faults: Faults,
    /// Bytes that all files together may hold in the live plane.
    capacity: u64,
    live: BTreeMap<FileId, LiveFile>,
    durable: BTreeMap<FileId, Vec<u8>>,
    pending: Vec<Pending>,
    fail_next_write: bool,
    /// How many syncs until one fails; 0: none is to.
    fail_sync_in: u64,
    completed: u64,
    failures: u64,
    waker: Option<Waker>,
}

#[derive(Debug, Default)]
struct LiveFile {
    bytes: Vec<u8>,
    /// Writes since the last good sync, in order.
    unsynced: Vec<Unsynced>,
}

#[derive(Debug)]
struct Pending {
    io: Io,
    delayed: bool,
}

impl SimDisk {
    /// An empty, healthy disk without end.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            dice: ChaCha8Rng::seed_from_u64(seed),
            faults: Faults::default(),
            capacity: u64::MAX,
            live: BTreeMap::new(),
            durable: BTreeMap::new(),
            pending: Vec::new(),
            fail_next_write: false,
            fail_sync_in: 0,
            completed: 0,
            failures: 0,
            waker: None,
        }
    }

    /// What goes wrong by chance from now on.
    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    /// The next write fails, whichever it is.
    pub fn fail_next_write(&mut self) {
        self.fail_next_write = true;
    }

    /// The next sync of a write fails, whichever it is.
    pub fn fail_next_sync(&mut self) {
        self.fail_sync_in(1);
    }

    /// The `n`th sync of a write from now on fails.
    pub fn fail_sync_in(&mut self, n: u64) {
        self.fail_sync_in = n;
    }

    /// How many bytes all files together may hold. Less than they hold now is allowed: nothing is
    /// lost, nothing can grow.
    pub fn set_capacity(&mut self, bytes: u64) {
        self.capacity = bytes;
    }

    /// Bytes that all files hold.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.live.values().map(|file| file.bytes.len() as u64).sum()
    }

    /// Requests that have no answer yet.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Requests answered in the life of the disk, crashes included: a position to crash at.
    #[must_use]
    pub fn completed(&self) -> u64 {
        self.completed
    }

    /// Requests that failed by a fault, in the life of the disk. A full disk is none.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// The files that a power cut now would leave for certain, with their lengths in bytes.
    #[must_use]
    pub fn files(&self) -> Vec<(FileId, u64)> {
        self.durable
            .iter()
            .map(|(file, bytes)| (*file, bytes.len() as u64))
            .collect()
    }

    /// The durable bytes of a file, for checkers that look at the disk itself.
    #[must_use]
    pub fn durable(&self, file: FileId) -> Option<&[u8]> {
        self.durable.get(&file).map(Vec::as_slice)
    }

    /// Rot: flip one bit at rest, counted from the start of the file; both planes show it. `false`
    /// when the file is not there or shorter.
    pub fn flip_bit(&mut self, file: FileId, bit: u64) -> bool {
        let (at, mask) = ((bit / 8) as usize, 1_u8 << (bit % 8));
        let Some(byte) = self
            .durable
            .get_mut(&file)
            .and_then(|bytes| bytes.get_mut(at))
        else {
            return false;
        };
        *byte ^= mask;
        if let Some(byte) = self
            .live
            .get_mut(&file)
            .and_then(|file| file.bytes.get_mut(at))
        {
            *byte ^= mask;
        }
        true
    }

    /// An operator's or a broken file system's doing: the file is `len` bytes from now on, cut or
    /// filled with zeros. `false` when it is not there.
    pub fn truncate(&mut self, file: FileId, len: u64) -> bool {
        let Some(durable) = self.durable.get_mut(&file) else {
            return false;
        };
        durable.resize(len as usize, 0);
        let bytes = durable.clone();
        self.live.insert(
            file,
            LiveFile {
                bytes,
                unsynced: Vec::new(),
            },
        );
        true
    }

    /// An operator's doing: the file is gone. `false` when it was not there.
    pub fn lose(&mut self, file: FileId) -> bool {
        self.live.remove(&file);
        self.durable.remove(&file).is_some()
    }

    /// FNV-1a over all durable bytes: equal seeds must give equal digests.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let mut hash = Fnv::default();
        for (file, bytes) in &self.durable {
            hash.bytes(file.file_name().as_bytes());
            hash.word(bytes.len() as u64);
            hash.bytes(bytes);
        }
        hash.0
    }

    /// Power is cut. Nothing pending is answered; the disk comes back with what it kept.
    pub fn crash(&mut self) {
        // What was in flight may have reached the disk, in any order.
        let mut pending = std::mem::take(&mut self.pending);
        while !pending.is_empty() {
            let next = self.below(pending.len());
            let Io { op, .. } = pending.remove(next).io;
            if op.check().is_ok() {
                self.maybe_happen(op);
            }
        }
        for (file, live) in &mut self.live {
            let unsynced = std::mem::take(&mut live.unsynced);
            let kept = Kept::draw(&mut self.dice);
            if let Some(durable) = self.durable.get_mut(file) {
                keep_some(&mut self.dice, kept, durable, &unsynced);
            }
        }
        self.live = self
            .durable
            .iter()
            .map(|(file, bytes)| {
                (
                    *file,
                    LiveFile {
                        bytes: bytes.clone(),
                        unsynced: Vec::new(),
                    },
                )
            })
            .collect();
        self.waker = None;
    }

    /// The process is killed and the machine goes on: nothing pending is answered; what was written
    /// stays readable, synced or not, until power is cut.
    pub fn kill(&mut self) {
        let mut pending = std::mem::take(&mut self.pending);
        while !pending.is_empty() {
            let next = self.below(pending.len());
            match pending.remove(next).io.op {
                op if op.check().is_err() => {}
                IoOp::Write {
                    file, at, buf, len, ..
                } => {
                    let sectors = len / SECTOR_BYTES;
                    let len = SECTOR_BYTES
                        * match self.below(3) {
                            0 => 0,
                            1 => self.below(sectors + 1),
                            _ => sectors,
                        };
                    let write = Unsynced { at, buf, len };
                    if let Some(live) = self.live.get_mut(&file)
                        && len > 0
                    {
                        write.apply(&mut live.bytes);
                        live.unsynced.push(write);
                    }
                }
                op => self.maybe_happen(op),
            }
        }
        self.waker = None;
    }

    /// Answer one pending request, chosen by the seed. `None` when there is none.
    pub fn complete_one(&mut self) -> Option<IoDone> {
        let ready: Vec<usize> = (0..self.pending.len())
            .filter(|at| !self.pending[*at].delayed)
            .collect();
        let at = match (ready.len(), self.pending.len()) {
            (_, 0) => return None,
            (0, all) => self.below(all),
            (some, _) => ready[self.below(some)],
        };
        let Io { id, op } = self.pending.remove(at).io;
        self.completed += 1;
        let result = self.perform(op);
        let failed = |e: &IoError| e.kind == IoErrorKind::Failed;
        self.failures += u64::from(result.as_ref().is_err_and(failed));
        Some(IoDone { id, result })
    }

    fn perform(&mut self, op: IoOp) -> Result<IoOutput, IoError> {
        op.check()?;
        match op {
            IoOp::List => {
                let lengths = self
                    .live
                    .iter()
                    .map(|(file, f)| (*file, f.bytes.len() as u64));
                return Ok(IoOutput::Listed(lengths.collect()));
            }
            IoOp::Read { file, at, len } => {
                let live = self
                    .live
                    .get(&file)
                    .ok_or_else(|| not_found(file, "read"))?;
                let from = usize::try_from(at)
                    .unwrap_or(usize::MAX)
                    .min(live.bytes.len());
                let to = from.saturating_add(len).min(live.bytes.len());
                let buf = AlignedBuf::copy_of(&live.bytes[from..to]);
                if self.happens(self.faults.read_fails) {
                    return Err(failed(file, "read: Input/output error (simulated)"));
                }
                return Ok(IoOutput::Read(buf));
            }
            IoOp::Write {
                file,
                at,
                buf,
                len,
                sync,
            } => self.write(file, at, buf, len, sync)?,
            IoOp::Allocate { file, len } => {
                let old = self.live.get(&file).map_or(0, |f| f.bytes.len() as u64);
                self.change(IoOp::Allocate { file, len }, file, len.saturating_sub(old))?;
            }
            IoOp::WriteFile { file, bytes } => {
                let old = self.live.get(&file).map_or(0, |f| f.bytes.len() as u64);
                let grows = (bytes.len() as u64).saturating_sub(old);
                self.change(IoOp::WriteFile { file, bytes }, file, grows)?;
            }
            IoOp::Rename { from, to } => {
                if !self.live.contains_key(&from) {
                    return Err(not_found(from, "rename"));
                }
                self.change(IoOp::Rename { from, to }, from, 0)?;
            }
            IoOp::Remove { file } => {
                if !self.live.contains_key(&file) {
                    return Err(not_found(file, "remove"));
                }
                self.change(IoOp::Remove { file }, file, 0)?;
            }
        }
        Ok(IoOutput::Done)
    }

    fn write(
        &mut self,
        file: FileId,
        at: u64,
        buf: Arc<AlignedBuf>,
        len: usize,
        sync: bool,
    ) -> Result<(), IoError> {
        let live = self
            .live
            .get(&file)
            .ok_or_else(|| not_found(file, "write"))?;
        let grows = (at + len as u64).saturating_sub(live.bytes.len() as u64);
        let is_log = matches!(file, FileId::Wal(_) | FileId::Spare(_));
        assert!(
            grows == 0 || !is_log,
            "{file:?} must not grow: {len} bytes at {at}"
        );
        if grows > self.capacity.saturating_sub(self.used()) {
            return Err(no_space(file));
        }
        let fails = std::mem::take(&mut self.fail_next_write);
        let fails = fails || len > 0 && self.happens(self.faults.write_fails);
        let live = self.live.get_mut(&file).expect("looked up above");
        let write = Unsynced { at, buf, len };
        if fails {
            // Parts of it may have been written, and may be kept.
            let durable = self.durable.entry(file).or_default();
            let kept = Kept::draw(&mut self.dice);
            keep_some(&mut self.dice, kept, durable, std::slice::from_ref(&write));
            keep_some(
                &mut self.dice,
                kept,
                &mut live.bytes,
                std::slice::from_ref(&write),
            );
            return Err(failed(file, "write: Input/output error (simulated)"));
        }
        write.apply(&mut live.bytes);
        if len > 0 {
            live.unsynced.push(write);
        }
        if !sync {
            return Ok(());
        }
        let fails = self.fail_sync_in == 1;
        self.fail_sync_in = self.fail_sync_in.saturating_sub(1);
        let fails = fails || self.happens(self.faults.sync_fails);
        let unsynced = self
            .live
            .get_mut(&file)
            .map(|f| std::mem::take(&mut f.unsynced));
        let unsynced = unsynced.unwrap_or_default();
        let durable = self.durable.entry(file).or_default();
        if fails {
            let kept = Kept::draw(&mut self.dice);
            keep_some(&mut self.dice, kept, durable, &unsynced);
            return Err(failed(file, "fdatasync: Input/output error (simulated)"));
        }
        for write in &unsynced {
            write.apply(durable);
        }
        Ok(())
    }

    /// A request that changes the directory: whole, or failed with or without having happened.
    fn change(&mut self, op: IoOp, file: FileId, grows: u64) -> Result<(), IoError> {
        if grows > self.capacity.saturating_sub(self.used()) {
            return Err(no_space(file));
        }
        if self.happens(self.faults.directory_fails) {
            self.maybe_happen(op);
            return Err(failed(file, "Input/output error (simulated)"));
        }
        self.apply(op);
        Ok(())
    }

    /// In both planes, completely.
    fn apply(&mut self, op: IoOp) {
        match op {
            IoOp::Allocate { file, len } => self.put(file, vec![0; len as usize]),
            IoOp::WriteFile { file, bytes } => self.put(file, bytes.to_vec()),
            IoOp::Rename { from, to } => {
                let live = self.live.remove(&from);
                self.live.extend(live.map(|f| (to, f)));
                let durable = self.durable.remove(&from);
                self.durable.extend(durable.map(|f| (to, f)));
            }
            IoOp::Remove { file } => {
                self.live.remove(&file);
                self.durable.remove(&file);
            }
            IoOp::List | IoOp::Read { .. } | IoOp::Write { .. } => {}
        }
    }

    fn put(&mut self, file: FileId, bytes: Vec<u8>) {
        self.durable.insert(file, bytes.clone());
        self.live.insert(
            file,
            LiveFile {
                bytes,
                unsynced: Vec::new(),
            },
        );
    }

    /// It was in flight, or failed: done, done in part, or not at all.
    fn maybe_happen(&mut self, op: IoOp) {
        match op {
            IoOp::Write {
                file, at, buf, len, ..
            } => {
                // Which sectors survive is drawn with those of the other unsynced writes.
                if let Some(live) = self.live.get_mut(&file) {
                    live.unsynced.push(Unsynced { at, buf, len });
                }
            }
            // The entry may be durable before the content: any prefix, in whole sectors.
            IoOp::Allocate { file, len } => match self.below(3) {
                0 => {}
                1 => {
                    let sectors = self.below(len as usize / SECTOR_BYTES + 1);
                    self.put(file, vec![0; sectors * SECTOR_BYTES]);
                }
                _ => self.put(file, vec![0; len as usize]),
            },
            IoOp::WriteFile { file, bytes } => match self.below(4) {
                0 => {}
                1 => self.put(file, Vec::new()),
                2 => {
                    // The length is durable, the content only in places.
                    let mut torn = vec![0; bytes.len()];
                    for (sector, part) in bytes.chunks(SECTOR_BYTES).enumerate() {
                        if self.dice.next_u32().is_multiple_of(2) {
                            torn[sector * SECTOR_BYTES..][..part.len()].copy_from_slice(part);
                        }
                    }
                    self.put(file, torn);
                }
                _ => self.put(file, bytes.to_vec()),
            },
            // A journalled file system does these whole or not.
            op @ (IoOp::Rename { .. } | IoOp::Remove { .. }) => {
                if self.below(2) == 0 {
                    self.apply(op);
                }
            }
            IoOp::List | IoOp::Read { .. } => {}
        }
    }

    fn happens(&mut self, per_million: u32) -> bool {
        per_million > 0 && self.dice.next_u32() % 1_000_000 < per_million
    }

    fn below(&mut self, n: usize) -> usize {
        (self.dice.next_u64() % n.max(1) as u64) as usize
    }

    /// The log's side of the contract.
    fn assert_alone(&self, op: &IoOp) {
        let writing = |op: &IoOp| -> BTreeSet<FileId> {
            match op {
                IoOp::List | IoOp::Read { .. } => BTreeSet::new(),
                IoOp::Allocate { file, .. }
                | IoOp::Write { file, .. }
                | IoOp::WriteFile { file, .. }
                | IoOp::Remove { file } => BTreeSet::from([*file]),
                IoOp::Rename { from, to } => BTreeSet::from([*from, *to]),
            }
        };
        let ours = writing(op);
        for other in &self.pending {
            assert!(
                ours.is_disjoint(&writing(&other.io.op)),
                "two changes of one file in flight: {op:?} while {:?}",
                other.io.op
            );
        }
    }
}

impl Storage for SimDisk {
    fn submit(&mut self, io: Io) {
        self.assert_alone(&io.op);
        assert!(
            self.pending.iter().all(|p| p.io.id != io.id),
            "{:?} is used twice",
            io.id
        );
        let delayed = self.happens(self.faults.delayed);
        self.pending.push(Pending { io, delayed });
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn poll_done(&mut self, cx: &mut Context<'_>) -> Poll<IoDone> {
        match self.complete_one() {
            Some(done) => Poll::Ready(done),
            None => {
                self.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn describe(&self) -> String {
        "simulated".to_owned()
    }
}

fn not_found(file: FileId, what: &str) -> IoError {
    let message = format!(
        "{}: {what}: No such file or directory (simulated)",
        file.file_name()
    );
    IoError {
        kind: IoErrorKind::NotFound,
        message,
    }
}

fn no_space(file: FileId) -> IoError {
    let message = format!("{}: No space left on device (simulated)", file.file_name());
    IoError {
        kind: IoErrorKind::NoSpace,
        message,
    }
}

fn failed(file: FileId, what: &str) -> IoError {
    IoError {
        kind: IoErrorKind::Failed,
        message: format!("{}: {what}", file.file_name()),
    }
}

/// FNV-1a, eight bytes at a time.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn word(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x0100_0000_01b3);
        self.0 ^= self.0 >> 29;
    }

    fn bytes(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.word(u64::from_le_bytes(*word));
        }
        for byte in rest {
            self.word(u64::from(*byte));
        }
    }
}
