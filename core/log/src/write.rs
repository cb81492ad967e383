//! Appending: groups gathered, written one pair at a time, files sealed behind them.
//!
//! ```text
//!  append ─▶ gather ──close──▶ ready ──submit──▶ in flight ──done──▶ index, Event::Durable
//!            (one, open)      (full, or its      (one, with its sync)
//!                              file not there)
//! ```
//!
//! A group is bound to its file and place when it is begun, since its checksums are seeded with the
//! file's incarnation. A file may be written to in memory before it exists; its groups wait.
//!
//! Absent on purpose: where files come from ([`crate::space`]).

use std::collections::VecDeque;

use millstream_batch::ids::{Lsn, Offset, PartitionSlot, Term};
use millstream_batch::limits::BLOCK_BYTES;
use rustc_hash::FxHashSet;

use crate::api::{Append, Event, Refused};
use crate::buffer::AlignedBuf;
use crate::footer::footer_bytes;
use crate::format::{
    FACT_BYTES_MAX, GROUP_BYTES_LIMIT, GROUP_CLEAN, GROUP_HEADER_BYTES, GROUP_MARK, GROUP_UNSYNCED,
    entry_len, file_incarnation, group_salt,
};
use crate::group::{BufferPool, Gather, Group, Place, RunMap};
use crate::index::SealedFile;
use crate::io::{FileId, IoOp};
use crate::log::{Log, Purpose};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// A file without a footer.
#[derive(Debug)]
pub(crate) struct OpenFile {
    pub(crate) number: u64,
    pub(crate) bytes: u64,
    pub(crate) incarnation: u64,
    /// Whether it has its name on disk; until then its groups wait.
    pub(crate) exists: bool,
    /// Where the next group begins.
    pub(crate) end: u64,
    /// `(first, last)` of the groups placed in it.
    pub(crate) groups: Option<(u64, u64)>,
    pub(crate) first_lsn: Lsn,
    pub(crate) last_lsn: Lsn,
    /// What its footer will hold, placed groups counted in.
    pub(crate) runs: usize,
    pub(crate) slots: FxHashSet<PartitionSlot>,
    /// It was found truncated or damaged, so a footer may not fit.
    pub(crate) lacks_room: bool,
    /// No group will be placed in it any more.
    pub(crate) closed: bool,
    /// Groups placed and not yet written.
    pub(crate) unwritten: usize,
    /// Last group known synced, with its last lsn.
    pub(crate) synced: (u64, Lsn),
    /// It is closed, and a sync of it is in flight.
    pub(crate) is_syncing: bool,
    /// The footer in flight, as it will stand in the index.
    pub(crate) sealing: Option<SealedFile>,
}

impl OpenFile {
    pub(crate) fn new(
        number: u64,
        bytes: u64,
        incarnation: u64,
        first_lsn: Lsn,
        exists: bool,
    ) -> Self {
        Self {
            number,
            bytes,
            incarnation,
            exists,
            end: 0,
            groups: None,
            first_lsn,
            last_lsn: Lsn(first_lsn.0 - 1),
            runs: 0,
            slots: FxHashSet::default(),
            lacks_room: false,
            closed: false,
            unwritten: 0,
            synced: (0, Lsn(0)),
            is_syncing: false,
            sealing: None,
        }
    }

    /// Whether a group of `len` bytes at `at`, these batches in it, fits before the footer, with a block
    /// left for a mark.
    fn fits(&self, at: u64, len: usize, keys: &[Append]) -> bool {
        let (mut slots, mut runs) = (self.slots.len(), self.runs);
        for key in keys.iter().filter_map(|entry| entry.index.as_ref()) {
            // A slot that a unit names twice is counted twice: it may only be too careful.
            slots += usize::from(!self.slots.contains(&key.slot));
            runs += 1;
        }
        let footer = footer_bytes(slots, runs);
        at + (len as u64).next_multiple_of(BLOCK) + BLOCK + footer <= self.bytes
    }

    /// Whether a mark fits.
    pub(crate) fn fits_mark(&self) -> bool {
        self.end + BLOCK + footer_bytes(self.slots.len(), self.runs) <= self.bytes
    }

    pub(crate) fn note(&mut self, number: u64) {
        let first = self.groups.map_or(number, |(first, _)| first);
        self.groups = Some((first, number));
    }
}

/// What is on its way to the disk.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) term: Term,
    pub(crate) last: Lsn,
    pub(crate) durable: Lsn,
    /// Last group closed or being gathered.
    pub(crate) last_group: u64,
    /// Last group written.
    pub(crate) written_group: u64,
    /// Last group synced, with its last lsn.
    pub(crate) synced: (u64, Lsn),
    /// Flags of the last group closed.
    pub(crate) last_flags: u16,
    gather: Option<Gather>,
    run_map: RunMap,
    pub(crate) buffers: BufferPool,
    ready: VecDeque<Group>,
    /// With whether it is synced.
    in_flight: Option<(Group, bool)>,
    /// A sync without bytes is in flight; it covers groups up to this one, with its last lsn.
    syncing: Option<(u64, Lsn)>,
    /// Files without a footer, oldest first; groups are placed in the last.
    pub(crate) open: VecDeque<OpenFile>,
    flush_wanted: bool,
    pub(crate) sync_wanted: bool,
    /// A mark is wanted behind what was found at start.
    pub(crate) mark_wanted: bool,
    /// The term was raised at start.
    pub(crate) raised: bool,
    /// A group of this run is synced: the next start sees whether the run was closed in good order.
    told_apart: bool,
    sealing: bool,
}

impl Writer {
    pub(crate) fn new(hot_tail_bytes_max: usize) -> Self {
        Self {
            term: Term::default(),
            last: Lsn::default(),
            durable: Lsn::default(),
            last_group: 0,
            written_group: 0,
            synced: (0, Lsn::default()),
            last_flags: 0,
            gather: None,
            run_map: RunMap::default(),
            buffers: BufferPool::new(hot_tail_bytes_max),
            ready: VecDeque::new(),
            in_flight: None,
            syncing: None,
            open: VecDeque::new(),
            flush_wanted: false,
            sync_wanted: false,
            mark_wanted: false,
            raised: false,
            told_apart: false,
            sealing: false,
        }
    }

    /// Drop what will never be written.
    pub(crate) fn stop(&mut self) {
        self.gather = None;
        self.ready.clear();
        self.in_flight = None;
        self.flush_wanted = false;
        self.sync_wanted = false;
    }

    pub(crate) fn queued_bytes(&self) -> usize {
        let closed: usize = self
            .ready
            .iter()
            .chain(self.in_flight.iter().map(|(g, _)| g))
            .map(|g| g.buf.capacity())
            .sum();
        closed + self.gather.as_ref().map_or(0, Gather::len)
    }

    /// Whether accepted groups wait for the last file to come into being.
    pub(crate) fn waits_for_file(&self) -> bool {
        self.open
            .back()
            .is_some_and(|f| !f.exists && f.unwritten > 0)
    }

    fn is_busy(&self) -> bool {
        self.in_flight.is_some() || self.syncing.is_some()
    }

    fn open_file(&mut self, number: u64) -> Option<&mut OpenFile> {
        self.open.iter_mut().find(|f| f.number == number)
    }
}

impl Log {
    /// Append an entry to the gathering group.
    ///
    /// # Errors
    /// Nothing was taken; see [`Refused`].
    #[allow(
        clippy::needless_pass_by_value,
        reason = "an entry is handed over, whatever becomes of it"
    )]
    pub fn append(&mut self, entry: Append) -> Result<Lsn, Refused> {
        self.append_unit(std::slice::from_ref(&entry))
    }

    /// As `append`, for entries that give space back (deletes, retention, aborts): when the disk is
    /// full they may use the spare file that is kept for them.
    ///
    /// # Errors
    /// As `append`; [`Refused::Full`] only when that file is used up too.
    #[allow(
        clippy::needless_pass_by_value,
        reason = "an entry is handed over, whatever becomes of it"
    )]
    pub fn append_reserved(&mut self, entry: Append) -> Result<Lsn, Refused> {
        self.append_unit_reserved(std::slice::from_ref(&entry))
    }

    /// Append a unit: entries that share one lsn, of which a crash leaves all or nothing. Batches of one
    /// slot stand in the order of their offsets.
    ///
    /// # Errors
    /// As `append`; [`Refused::TooLarge`] when they do not fit one group together.
    ///
    /// # Panics
    /// Of a unit without entries.
    pub fn append_unit(&mut self, entries: &[Append]) -> Result<Lsn, Refused> {
        self.append_entries(entries, false)
    }

    /// As `append_unit`, for units that give space back.
    ///
    /// # Errors
    /// As `append_reserved`.
    ///
    /// # Panics
    /// As `append_unit`.
    pub fn append_unit_reserved(&mut self, entries: &[Append]) -> Result<Lsn, Refused> {
        self.append_entries(entries, true)
    }

    fn append_entries(&mut self, entries: &[Append], reserved: bool) -> Result<Lsn, Refused> {
        let mut len = 0;
        for entry in entries {
            let raw_len: usize = entry.raw.iter().map(bytes::Bytes::len).sum();
            if entry.fact.len() > FACT_BYTES_MAX || raw_len > GROUP_BYTES_LIMIT {
                return Err(Refused::TooLarge);
            }
            len += entry_len(entry.fact.len(), raw_len);
        }
        let (last, before) = entries.split_last().expect("a unit has entries");
        self.make_room(len, entries, reserved)?;
        let lsn = self.write.last.next();
        for entry in before {
            self.push(lsn, entry, true);
        }
        self.push(lsn, last, false);
        self.write.last = lsn;
        self.stats.entries += entries.len() as u64;
        Ok(lsn)
    }

    /// Into the gathering group, which has room.
    fn push(&mut self, lsn: Lsn, entry: &Append, more: bool) {
        let Writer {
            gather,
            buffers,
            run_map,
            open,
            ..
        } = &mut self.write;
        let gather = gather.as_mut().expect("made by make_room");
        let file = open.back_mut().expect("made by make_room");
        if gather.push(lsn, entry, more, (buffers, run_map)) {
            file.runs += 1;
            file.slots.extend(entry.index.map(|key| key.slot));
        }
        file.last_lsn = lsn;
    }

    /// Have a gathering group with room for entries of `len` bytes in all, these batches among them.
    fn make_room(&mut self, len: usize, keys: &[Append], reserved: bool) -> Result<(), Refused> {
        if self.failed.is_some() {
            return Err(Refused::Stopped);
        }
        if self.read_only.is_some() {
            return Err(Refused::ReadOnly);
        }
        assert!(self.recover.is_none(), "append before Event::Recovered");
        let alone = GROUP_HEADER_BYTES + len;
        let many = keys.len().max(1);
        let fresh = (alone as u64).next_multiple_of(BLOCK) + BLOCK + footer_bytes(many, many);
        if alone > GROUP_BYTES_LIMIT || fresh > self.config.segment_bytes {
            return Err(Refused::TooLarge);
        }
        if let (Some(gather), Some(file)) = (&self.write.gather, self.write.open.back()) {
            let total = gather.len() + len;
            let joins = total <= self.config.group_bytes_max || gather.entries() == 0;
            if joins
                && file.fits(gather.place.at, total, keys)
                && self.may_use(file.number, reserved)
            {
                return Ok(());
            }
        }
        let gathered = self
            .write
            .gather
            .as_ref()
            .map_or(0, |g| (g.len() as u64).next_multiple_of(BLOCK));
        let in_place = self.write.open.back().is_some_and(|file| {
            file.fits(file.end + gathered, alone, keys) && self.may_use(file.number, reserved)
        });
        if !in_place && !self.may_roll(reserved) {
            return Err(Refused::Full);
        }
        if !in_place && fresh > self.next_bytes() {
            let comes = self.want_long(fresh);
            return Err(if comes {
                Refused::NotYet
            } else {
                Refused::Full
            });
        }
        self.close_gather();
        if !in_place {
            self.roll();
        }
        self.begin_group(len);
        Ok(())
    }

    /// Begin the file that follows; it may not exist yet.
    pub(crate) fn roll(&mut self) {
        let number = self.space.next_file;
        let (bytes, exists) = self.begin_next();
        let incarnation = file_incarnation(self.config.incarnation, number);
        let first_lsn = self.write.last.next();
        let file = OpenFile::new(number, bytes, incarnation, first_lsn, exists);
        if let Some(last) = self.write.open.back_mut() {
            last.closed = true;
        }
        self.write.open.push_back(file);
        self.arrange_space();
    }

    fn begin_group(&mut self, first_len: usize) {
        let file = self.write.open.back_mut().expect("a file to write to");
        self.write.last_group += 1;
        let number = self.write.last_group;
        file.note(number);
        file.unwritten += 1;
        let place = Place {
            file: file.number,
            incarnation: file.incarnation,
            file_bytes: file.bytes,
            at: file.end,
            number,
            salt: group_salt(self.config.incarnation, self.write.term, number),
            first_lsn: self.write.last.next(),
            term: self.write.term,
        };
        let Writer {
            gather,
            buffers,
            run_map,
            ..
        } = &mut self.write;
        *gather = Some(Gather::new(place, first_len, buffers, run_map));
    }

    fn close_gather(&mut self) {
        let Some(gather) = self.write.gather.take() else {
            return;
        };
        self.close(gather, 0);
    }

    fn close(&mut self, gather: Gather, flags: u16) {
        // With one pair in flight, this one is written only when the one before it is synced.
        let (proved, mode) = if self.config.sync_each_group {
            (gather.place.number - 1, 0)
        } else {
            (self.write.synced.0, GROUP_UNSYNCED)
        };
        let group = gather.close(flags | mode, proved, &mut self.write.buffers);
        self.write.last_flags = group.flags;
        let file = self.write.open.back_mut().expect("the group's file");
        file.end += group.len as u64;
        self.write.ready.push_back(group);
    }

    /// Close an empty group, to prove what is before it. Gives whether there was room for it.
    pub(crate) fn mark(&mut self, flags: u16) -> bool {
        assert!(
            self.write.gather.is_none(),
            "a mark comes after everything that was gathered"
        );
        if !self
            .write
            .open
            .back()
            .is_some_and(|f| f.exists && f.fits_mark())
        {
            return false;
        }
        self.begin_group(0);
        let gather = self.write.gather.take().expect("just begun");
        self.close(gather, flags | GROUP_MARK);
        true
    }

    /// Write what was gathered: now when no pair is in flight, else when the one in flight is done.
    pub fn flush(&mut self) {
        if self.write.gather.is_some() {
            self.write.flush_wanted = true;
        }
        self.pump();
    }

    /// Nothing was to do for a while: prove the last group by an empty one, once. `false`: a write is
    /// still under way, ask again later.
    pub fn idle(&mut self) -> bool {
        if self.is_stopped() || self.write.written_group == 0 {
            return true;
        }
        if !self.is_settled() {
            return false;
        }
        if !self.config.sync_each_group {
            self.sync_now();
        } else if self.write.last_flags & GROUP_MARK == 0 && self.mark(0) {
            self.pump();
        }
        true
    }

    /// With `sync_each_group = false`: make durable what is written or gathered.
    pub fn sync_now(&mut self) {
        if self.is_stopped() {
            return;
        }
        self.write.sync_wanted = true;
        self.flush();
    }

    /// Close the file being written when nothing in it is alive any more, so that it is freed though
    /// nothing fills it. Gives whether it was closed.
    pub fn seal_dead(&mut self) -> bool {
        let dead = |slot: &PartitionSlot| {
            self.index.slots.get(slot).is_none_or(|index| {
                let last = index.runs.back().map(|r| r.run.last);
                index.dropped || last.is_none_or(|last| last < index.start)
            })
        };
        let Some(file) = self.write.open.back() else {
            return false;
        };
        let is_dead = file.exists && !file.slots.is_empty() && file.slots.iter().all(dead);
        if self.is_stopped() || !is_dead || !self.is_settled() || self.space.ready.is_none() {
            return false;
        }
        self.roll();
        self.pump();
        true
    }

    /// Shutdown: write what was gathered and mark the log as closed in good order. `is_quiet` says
    /// when it is done. Nothing is appended afterwards.
    pub fn seal(&mut self) {
        self.write.sealing = true;
        self.flush();
    }

    /// Nothing is on its way to the disk (after `seal`: nor will be).
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        if self.failed.is_some() || self.read_only.is_some() {
            return true;
        }
        let footers = self
            .write
            .open
            .iter()
            .any(|f| f.sealing.is_some() || f.is_syncing);
        let sealed =
            !self.write.sealing || self.write.last_flags & GROUP_CLEAN != 0 || !self.can_seal();
        self.is_settled()
            && self.recover.is_none()
            && !footers
            && !self.snapshots.is_writing()
            && sealed
    }

    /// No group is gathered, waiting or in flight.
    pub(crate) fn is_settled(&self) -> bool {
        !self.write.is_busy() && self.write.ready.is_empty() && self.write.gather.is_none()
    }

    fn can_seal(&self) -> bool {
        self.write.written_group > 0
            && self
                .write
                .open
                .back()
                .is_some_and(|f| f.exists && f.fits_mark())
    }

    /// Start what can be started.
    pub(crate) fn pump(&mut self) {
        if self.is_stopped() {
            return;
        }
        if self.write.waits_for_file() {
            self.arrange_space();
        }
        if self.write.flush_wanted && !self.write.is_busy() && self.write.ready.is_empty() {
            self.write.flush_wanted = false;
            self.close_gather();
        }
        if !self.write.is_busy() && !self.submit() && self.is_settled() {
            self.settle();
        }
        self.seal_files();
        self.opened();
    }

    /// Put the next group in flight, if its file is there.
    fn submit(&mut self) -> bool {
        let Some(front) = self.write.ready.front() else {
            return false;
        };
        let file = front.place.file;
        if !self.write.open_file(file).is_some_and(|f| f.exists) {
            return false;
        }
        let group = self.write.ready.pop_front().expect("looked at");
        let last = self.write.ready.is_empty();
        let sync = self.config.sync_each_group
            || !self.write.told_apart
            || group.flags & GROUP_CLEAN != 0
            || (self.write.sync_wanted && last && self.write.gather.is_none());
        let op = IoOp::Write {
            file: FileId::Wal(group.place.file),
            at: group.place.at,
            buf: std::sync::Arc::clone(&group.buf),
            len: group.len,
            sync,
        };
        if sync {
            self.write.sync_wanted = false;
        }
        self.write.in_flight = Some((group, sync));
        self.out.io(op, Purpose::Group);
        true
    }

    /// All is written: sync or seal when that is wanted.
    fn settle(&mut self) {
        if self.write.sync_wanted {
            if self.write.synced.0 >= self.write.written_group {
                self.write.sync_wanted = false;
            } else if let Some(file) = self.unsynced_file() {
                self.sync_file(file);
                return;
            } else {
                return; // A footer in flight brings the sync.
            }
        }
        if self.write.sealing && self.write.last_flags & GROUP_CLEAN == 0 && self.can_seal() {
            if self.write.synced.0 < self.write.written_group {
                self.write.sync_wanted = true;
                self.settle();
            } else if self.mark(GROUP_CLEAN) {
                self.submit();
            }
        }
    }

    /// The last file, when its last groups are written and not synced.
    pub(crate) fn unsynced_file(&self) -> Option<u64> {
        let file = self.write.open.iter().rev().find(|f| f.groups.is_some())?;
        (file.exists
            && file.sealing.is_none()
            && !file.is_syncing
            && file.synced.0 < file.groups?.1)
            .then_some(file.number)
    }

    /// Sync a file without writing to it.
    fn sync_file(&mut self, file: u64) {
        self.write.syncing = Some((self.write.written_group, self.write.durable));
        if let Some(open) = self.write.open_file(file) {
            open.is_syncing = true;
        }
        let buf = std::sync::Arc::new(AlignedBuf::with_capacity(0));
        self.out.io(
            IoOp::Write {
                file: FileId::Wal(file),
                at: 0,
                buf,
                len: 0,
                sync: true,
            },
            Purpose::Sync(file),
        );
    }

    pub(crate) fn sync_done(&mut self, file: u64) {
        let covered = self.write.syncing.take().expect("one sync is in flight");
        self.stats.syncs += 1;
        if let Some(open) = self.write.open_file(file) {
            open.synced = covered;
            open.is_syncing = false;
        }
        self.note_synced();
        self.pump();
    }

    pub(crate) fn group_done(&mut self) {
        let (mut group, sync) = self.write.in_flight.take().expect("one group is in flight");
        let number = group.place.number;
        let last_lsn = group.last_lsn;
        self.stats.groups += 1;
        self.stats.writes += 1;
        self.stats.syncs += u64::from(sync);
        self.stats.bytes_written += group.len as u64;
        self.write.written_group = number;
        let file = self
            .write
            .open_file(group.place.file)
            .expect("a file stays open until its groups are written");
        file.unwritten -= 1;
        if sync {
            file.synced = (number, last_lsn);
        }
        let freed = std::mem::take(&mut group.freed);
        let runs = self.index.add_group(group);
        self.write.buffers.give_runs(runs);
        self.trim_index();
        if last_lsn > self.write.durable {
            self.write.durable = last_lsn;
            self.out.event(Event::Durable(last_lsn));
        }
        if sync {
            self.write.told_apart = true;
            self.note_synced();
        }
        if !freed.is_empty() {
            self.freed_declared(&freed, number);
        }
        self.pump();
    }

    /// A sync is done: everything up to the oldest open file's synced group is safe.
    pub(crate) fn note_synced(&mut self) {
        if let Some(front) = self.write.open.front()
            && front.synced.0 > self.write.synced.0
        {
            self.write.synced = front.synced;
        }
        self.let_files_go();
        self.snapshot_pump();
    }

    pub(crate) fn trim_index(&mut self) {
        let unsealed = self.write.open.front().map_or(u64::MAX, |f| f.number);
        self.index.trim(
            self.config.hot_tail_bytes_max,
            unsealed,
            &mut self.write.buffers,
        );
    }

    /// Put a control entry into the gathering group. Gives whether there was room.
    pub(crate) fn append_control(&mut self, kind: u16, fact: &[u8]) -> bool {
        if self.make_room(entry_len(fact.len(), 0), &[], true).is_err() {
            return false;
        }
        let Writer {
            gather, buffers, ..
        } = &mut self.write;
        gather
            .as_mut()
            .expect("made by make_room")
            .push_control(kind, fact, buffers);
        true
    }

    /// Remember that the gathering group declares a file freed.
    pub(crate) fn note_freed(&mut self, file: u64) {
        self.write
            .gather
            .as_mut()
            .expect("a control entry was just gathered")
            .freed
            .push(file);
    }

    /// First offset that a slot still serves.
    pub(crate) fn start_of(&self, slot: PartitionSlot) -> Offset {
        self.index.slots.get(&slot).map_or(Offset(0), |s| s.start)
    }
}
