//! Files before and after their life in the log: spares made ahead, the next file named ahead, dead
//! files recycled, and what happens when the disk is full.
//!
//! ```text
//!  Allocate ─▶ spare ──Rename──▶ ready (WAL n+1) ──roll──▶ open ──footer──▶ sealed
//!                ▲ (the last spare is the reserve)                            │ nothing alive,
//!                └───────────────── Rename (or Remove past the cap) ──────────┘ declared freed
//! ```
//!
//! A file is declared freed by a durable control entry before its name goes, so that recovery can
//! tell a freed file from a lost one.
//!
//! **Lengths.** A new file is a quarter of what the log holds, in steps of two from
//! `first_segment_bytes` up to `segment_bytes`, so that an empty log is small and a large one has few
//! files. A file that is begun before it exists has the length of the reserve, which can become it
//! if the disk fills meanwhile. An entry that is too long for it waits until a file of full length
//! is there ([`Refused::NotYet`](crate::Refused::NotYet)); it is never accepted on the hope of one.
//!
//! Absent on purpose: which batches are alive (the index counts), what a file holds.

use std::collections::BTreeMap;

use millstream_batch::ids::Lsn;
use millstream_batch::limits::BLOCK_BYTES;

use crate::api::Event;
use crate::format::CONTROL_FREED;
use crate::io::{FileId, IoError, IoOp};
use crate::log::{Log, Purpose};

/// A dead file on its way out.
#[derive(Debug)]
pub(crate) struct Freeing {
    pub(crate) number: u64,
    pub(crate) bytes: u64,
    /// The group of its control entry, once that is written.
    declared: Option<u64>,
    /// Rename or removal is in flight.
    leaving: bool,
}

/// The rename in flight between a spare and the next file: one at a time, since both ways use its name.
#[derive(Debug, Default, PartialEq, Eq)]
enum Naming {
    #[default]
    Nothing,
    /// A spare of this length becomes this file.
    Take {
        wal: u64,
        bytes: u64,
    },
    PutBack,
}

#[derive(Debug, Default)]
pub(crate) struct Space {
    /// Files that wait, with their lengths. The last one left is the reserve.
    pub(crate) spares: BTreeMap<u64, u64>,
    next_spare: u64,
    /// Number of the next WAL file to be begun.
    pub(crate) next_file: u64,
    /// `next_file` exists already, and is so long.
    pub(crate) ready: Option<u64>,
    /// A file of this length is being made.
    allocating: Option<u64>,
    naming: Naming,
    /// An entry waits for a file of this length; 0: none does.
    long_wanted: u64,
    /// The last allocation found no space; retried by `retry_space`.
    pub(crate) no_space: Option<IoError>,
    /// `Event::SpaceGone` was given and `SpaceBack` not yet.
    gone: bool,
    /// The open file that was the reserve: only reserved entries go into it until there is another.
    on_reserve: Option<u64>,
    pub(crate) freeing: Vec<Freeing>,
}

impl Space {
    pub(crate) fn is_freeing(&self, file: u64) -> bool {
        self.freeing.iter().any(|f| f.number == file)
    }

    /// A file found at start that was declared freed before.
    pub(crate) fn found_freed(&mut self, number: u64, bytes: u64) {
        self.freeing.push(Freeing {
            number,
            bytes,
            declared: Some(0),
            leaving: false,
        });
    }

    /// Whether the last attempt to make a file found no space.
    pub(crate) fn has_no_space(&self) -> bool {
        self.no_space.is_some()
    }

    /// What was found at start.
    pub(crate) fn found(
        &mut self,
        spares: BTreeMap<u64, u64>,
        next_spare: u64,
        next_file: u64,
        ready: Option<u64>,
    ) {
        self.spares = spares;
        self.next_spare = next_spare;
        self.next_file = next_file;
        self.ready = ready;
    }

    /// Files that wait to be written to, the next one included: how many, and their bytes.
    pub(crate) fn waiting(&self) -> (u64, u64) {
        let lengths = self.spares.values().chain(&self.ready);
        lengths.fold((0, 0), |(files, bytes), len| (files + 1, bytes + len))
    }

    fn spare_of(&self, fits: impl Fn(u64) -> bool) -> Option<(u64, u64)> {
        let mut spares = self.spares.iter().map(|(spare, len)| (*spare, *len));
        spares.find(|(_, len)| fits(*len))
    }
}

impl Log {
    /// Whether an entry may go into this open file.
    pub(crate) fn may_use(&self, file: u64, reserved: bool) -> bool {
        let waits = self.write.open.back().is_some_and(|f| !f.exists);
        if waits && self.space.no_space.is_some() {
            // Only the reserve can become this file.
            let taking = self.space.naming != Naming::Nothing;
            return reserved && (taking || !self.space.spares.is_empty());
        }
        reserved || self.space.on_reserve != Some(file)
    }

    /// Whether the next file may be begun.
    pub(crate) fn may_roll(&self, reserved: bool) -> bool {
        // One file ahead of the disk, never two.
        if self.write.open.back().is_some_and(|f| !f.exists) {
            return false;
        }
        self.space.ready.is_some()
            || self.space.no_space.is_none()
            || (reserved && !self.space.spares.is_empty())
    }

    /// Length of the file that comes next: that of the reserve when nothing better is known, so
    /// that it can become it.
    pub(crate) fn next_bytes(&self) -> u64 {
        let space = &self.space;
        if let Some(bytes) = space.ready {
            return bytes;
        }
        match space.naming {
            Naming::Take { wal, bytes } if wal == space.next_file => return bytes,
            _ => {}
        }
        let reserve = space.spares.values().next().copied();
        reserve
            .or(space.allocating)
            .unwrap_or_else(|| self.new_bytes())
    }

    /// How long a file that is made now is to be. Never shorter than the last snapshot where that is
    /// possible: the reserve makes room for the next one.
    fn new_bytes(&self) -> u64 {
        let sealed: u64 = self.index.sealed.values().map(|f| f.bytes).sum();
        let open: u64 = self.write.open.iter().map(|f| f.bytes).sum();
        let wanted = ((sealed + open) / 4).max(self.snapshots.published_bytes);
        let mut bytes = self.config.first_segment_bytes;
        while bytes < self.config.segment_bytes && bytes * 2 <= wanted {
            bytes *= 2;
        }
        bytes.min(self.config.segment_bytes)
    }

    /// Whether this file can have been made for a log with these settings.
    pub(crate) fn is_length(&self, bytes: u64) -> bool {
        let lengths = self.config.first_segment_bytes..=self.config.segment_bytes;
        lengths.contains(&bytes) && bytes.is_multiple_of(BLOCK_BYTES as u64)
    }

    /// An entry needs a file of so many bytes, and the next one is shorter. Gives whether it may come.
    pub(crate) fn want_long(&mut self, bytes: u64) -> bool {
        self.space.long_wanted = self.space.long_wanted.max(bytes);
        self.arrange_space();
        self.space.no_space.is_none()
    }

    /// The next file is begun: gives its length, and whether it exists.
    pub(crate) fn begin_next(&mut self) -> (u64, bool) {
        let bytes = self.next_bytes();
        self.space.next_file += 1;
        if bytes >= self.space.long_wanted {
            self.space.long_wanted = 0;
        }
        (bytes, self.space.ready.take().is_some())
    }

    /// Have the files that are wanted: the open one, the next, the reserve, and more spares.
    pub(crate) fn arrange_space(&mut self) {
        if self.failed.is_some() || self.read_only.is_some() {
            return;
        }
        self.put_back();
        self.take_spare();
        if self.space.allocating.is_none()
            && self.space.no_space.is_none()
            && let Some(len) = self.missing()
        {
            let spare = self.space.next_spare;
            self.space.next_spare += 1;
            self.space.allocating = Some(len);
            let op = IoOp::Allocate {
                file: FileId::Spare(spare),
                len,
            };
            self.out.io(op, Purpose::Allocate { spare });
        }
        self.tell_space();
    }

    /// Length of the file that is to be made, if one is missing.
    fn missing(&self) -> Option<u64> {
        let space = &self.space;
        if let Some(file) = self.write.open.back().filter(|f| !f.exists)
            && space.naming == Naming::Nothing
            && space.spare_of(|len| len == file.bytes).is_none()
        {
            return Some(file.bytes);
        }
        let long = |len: u64| len >= space.long_wanted;
        if space.long_wanted > 0 && !space.ready.is_some_and(long) && space.spare_of(long).is_none()
        {
            return Some(self.config.segment_bytes);
        }
        // The next file counts as one of the spares kept ready; the reserve comes on top.
        let have = space.spares.len() + usize::from(space.ready.is_some());
        let want = self.config.spares_ready.max(1) + 1;
        (have < want).then(|| self.new_bytes())
    }

    /// Give a spare the name of the file that waits for one, or of the next.
    fn take_spare(&mut self) {
        if self.space.naming != Naming::Nothing || self.space.spares.is_empty() {
            return;
        }
        let waiting = self.write.open.back().filter(|f| !f.exists);
        let waiting = waiting.map(|f| (f.number, f.bytes));
        let spared = self.space.spares.len() > 1;
        // Accepted entries must not wait for space to return; nor does the very first file leave a
        // reserve behind.
        let pressed = self.space.no_space.is_some() && self.write.waits_for_file();
        let first = self.write.open.len() == 1 && self.index.sealed.is_empty();
        let (wal, spare) = match waiting {
            Some((number, bytes)) if spared || pressed || first => {
                (number, self.space.spare_of(|len| len == bytes))
            }
            None if spared && self.space.ready.is_none() => {
                let long = self.space.long_wanted;
                let any = || self.space.spare_of(|_| long == 0);
                let spare = self.space.spare_of(|len| len >= long).or_else(any);
                (self.space.next_file, spare)
            }
            _ => return,
        };
        let Some((spare, bytes)) = spare else {
            return;
        };
        self.space.spares.remove(&spare);
        self.space.naming = Naming::Take { wal, bytes };
        if !spared && !first {
            self.space.on_reserve = Some(wal);
        }
        let op = IoOp::Rename {
            from: FileId::Spare(spare),
            to: FileId::Wal(wal),
        };
        self.out.io(op, Purpose::Take { spare, wal });
    }

    pub(crate) fn take_done(&mut self, _spare: u64, wal: u64) {
        let taken = std::mem::take(&mut self.space.naming);
        let Naming::Take { bytes, .. } = taken else {
            unreachable!("one rename is in flight");
        };
        match self.write.open.iter_mut().find(|f| f.number == wal) {
            Some(file) => {
                assert_eq!(file.bytes, bytes, "a file is as long as it was begun");
                file.exists = true;
            }
            None => self.space.ready = Some(bytes),
        }
        self.arrange_space();
        self.pump();
    }

    /// The next file is too short for what waits, and a longer one is there: change them.
    fn put_back(&mut self) {
        let Some(bytes) = self.space.ready else {
            return;
        };
        let long = self.space.long_wanted;
        if bytes >= long
            || self.space.naming != Naming::Nothing
            || self.space.spare_of(|len| len >= long).is_none()
        {
            return;
        }
        self.space.ready = None;
        self.space.naming = Naming::PutBack;
        let spare = self.space.next_spare;
        self.space.next_spare += 1;
        let op = IoOp::Rename {
            from: FileId::Wal(self.space.next_file),
            to: FileId::Spare(spare),
        };
        self.out.io(op, Purpose::PutBack { spare, bytes });
    }

    pub(crate) fn put_back_done(&mut self, spare: u64, bytes: u64) {
        self.space.naming = Naming::Nothing;
        self.space.spares.insert(spare, bytes);
        self.arrange_space();
        self.pump();
    }

    pub(crate) fn allocate_done(&mut self, spare: u64, result: Result<(), IoError>) {
        let bytes = self.space.allocating.take();
        match result {
            Ok(()) => {
                self.add_spare(spare, bytes.expect("one file is being made"));
            }
            Err(e) if e.kind.heals() => {
                self.space.no_space = Some(e);
                // Whatever was left of the attempt goes.
                self.out.io(
                    IoOp::Remove {
                        file: FileId::Spare(spare),
                    },
                    Purpose::Tidy,
                );
            }
            Err(e) => return self.fail(e),
        }
        self.arrange_space();
        self.pump();
    }

    fn add_spare(&mut self, spare: u64, bytes: u64) {
        self.space.spares.insert(spare, bytes);
        self.space.no_space = None;
        self.space.on_reserve = None;
    }

    /// The last attempt to make a file found no space: `retry_space` is wanted.
    #[must_use]
    pub fn has_no_space(&self) -> bool {
        self.space.no_space.is_some() && !self.is_stopped()
    }

    /// There may be space again: try.
    pub fn retry_space(&mut self) {
        if self.is_stopped() || self.space.no_space.is_none() {
            return;
        }
        let error = self.space.no_space.take();
        self.arrange_space();
        if self.space.allocating.is_some() {
            // Until the attempt is answered, nothing counts on it.
            self.space.no_space = error;
        } // else: nothing is missing
    }

    /// Say when normal appends have no next file, and when they have one again.
    fn tell_space(&mut self) {
        let next = self.space.ready.is_some();
        if let Some(error) = &self.space.no_space
            && !self.space.gone
            && !next
        {
            self.space.gone = true;
            self.out.event(Event::SpaceGone(error.clone()));
        } else if self.space.gone && next {
            self.space.gone = false;
            self.out.event(Event::SpaceBack);
        }
    }

    /// Declare freed what nothing holds any more. Not before the log is open: what is declared would have
    /// to be proved, too.
    pub(crate) fn free_files(&mut self) {
        if self.is_stopped() || self.opening.is_some() {
            return;
        }
        let files = self
            .index
            .freeable(self.snapshots.published, self.snapshots.published_group);
        if files.is_empty() {
            return;
        }
        for number in files {
            if !self.append_control(CONTROL_FREED, &number.to_le_bytes()) {
                break;
            }
            self.note_freed(number);
            let sealed = self
                .index
                .remove(number)
                .expect("freeable names sealed files");
            self.reader.forget(number);
            self.space.freeing.push(Freeing {
                number,
                bytes: sealed.bytes,
                declared: None,
                leaving: false,
            });
        }
        self.flush();
    }

    /// Their control entries are written, in this group.
    pub(crate) fn freed_declared(&mut self, files: &[u64], group: u64) {
        let named = |f: &&mut Freeing| files.contains(&f.number);
        for file in self.space.freeing.iter_mut().filter(named) {
            file.declared = Some(group);
        }
        self.let_files_go();
    }

    /// Rename or remove files that are durably declared freed and that no read is on.
    pub(crate) fn let_files_go(&mut self) {
        if self.is_stopped() || self.space.freeing.is_empty() {
            return;
        }
        let lengths = self.new_bytes()..=self.config.segment_bytes;
        let mut spares = self.space.spares.len() + usize::from(self.space.ready.is_some());
        spares += self.space.freeing.iter().filter(|f| f.leaving).count();
        let cap = self.config.spares_ready.max(1) + 1 + self.config.recycle_max;
        let safe = if self.config.sync_each_group {
            self.write.written_group
        } else {
            self.write.synced.0
        };
        for file in &mut self.space.freeing {
            if file.declared.is_none_or(|group| group > safe)
                || file.leaving
                || self.reader.is_reading(file.number)
            {
                continue;
            }
            file.leaving = true;
            let wal = file.number;
            if lengths.contains(&file.bytes) && spares < cap {
                spares += 1;
                let spare = self.space.next_spare;
                self.space.next_spare += 1;
                let op = IoOp::Rename {
                    from: FileId::Wal(wal),
                    to: FileId::Spare(spare),
                };
                self.out.io(op, Purpose::Recycle { wal, spare });
            } else {
                self.out.io(
                    IoOp::Remove {
                        file: FileId::Wal(wal),
                    },
                    Purpose::Remove { wal },
                );
            }
        }
    }

    pub(crate) fn freed_done(&mut self, wal: u64, spare: Option<u64>) {
        let at = self.space.freeing.iter().position(|f| f.number == wal);
        let freed = self.space.freeing.remove(at.expect("it was on its way"));
        self.stats.files_freed += 1;
        match spare {
            Some(spare) => self.add_spare(spare, freed.bytes),
            None => self.space.no_space = None,
        }
        self.arrange_space();
        self.pump();
    }

    /// A file of no consequence is gone; its space may be enough for what waits.
    pub(crate) fn tidy_done(&mut self) {
        self.snapshot_pump();
    }

    /// Nothing after this lsn is in a published snapshot.
    #[must_use]
    pub fn snapshot_lsn(&self) -> Lsn {
        self.snapshots.published
    }
}
