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
//! Absent on purpose: which batches are alive (the index counts), what a file holds.

use std::collections::BTreeSet;

use millstream_batch::ids::Lsn;

use crate::api::Event;
use crate::format::CONTROL_FREED;
use crate::io::{FileId, IoError, IoErrorKind, IoOp};
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

#[derive(Debug, Default)]
pub(crate) struct Space {
    /// Files of the configured length that wait. The last one left is the reserve.
    pub(crate) spares: BTreeSet<u64>,
    next_spare: u64,
    /// Number of the next WAL file to be begun.
    pub(crate) next_file: u64,
    /// `next_file` exists already.
    pub(crate) ready: Option<u64>,
    allocating: bool,
    taking: bool,
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
        spares: BTreeSet<u64>,
        next_spare: u64,
        next_file: u64,
        ready: bool,
    ) {
        self.spares = spares;
        self.next_spare = next_spare;
        self.next_file = next_file;
        self.ready = ready.then_some(next_file);
    }
}

impl Log {
    /// Whether an entry may go into this open file.
    pub(crate) fn may_use(&self, file: u64, reserved: bool) -> bool {
        let waits = self.write.open.back().is_some_and(|f| !f.exists);
        if waits && self.space.no_space.is_some() {
            // Only the reserve can become this file.
            return reserved && (self.space.taking || !self.space.spares.is_empty());
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

    /// Have the files that are wanted: the open one, the next, the reserve, and more spares.
    pub(crate) fn arrange_space(&mut self) {
        if self.failed.is_some() || self.read_only.is_some() {
            return;
        }
        self.take_spare();
        // The next file counts as one of the spares kept ready; the reserve comes on top.
        let have = self.space.spares.len() + usize::from(self.space.ready.is_some());
        let want = self.config.spares_ready.max(1) + 1;
        if !self.space.allocating && self.space.no_space.is_none() && have < want {
            let spare = self.space.next_spare;
            self.space.next_spare += 1;
            self.space.allocating = true;
            let op = IoOp::Allocate {
                file: FileId::Spare(spare),
                len: self.config.segment_bytes,
            };
            self.out.io(op, Purpose::Allocate { spare });
        }
        self.tell_space();
    }

    /// Give a spare the name of the file that waits for one, or of the next.
    fn take_spare(&mut self) {
        if self.space.taking {
            return;
        }
        let Some(spare) = self.space.spares.first().copied() else {
            return;
        };
        let waiting = self
            .write
            .open
            .back()
            .filter(|f| !f.exists)
            .map(|f| f.number);
        let spared = self.space.spares.len() > 1;
        // Accepted entries must not wait for space to return; nor does the very first file leave a
        // reserve behind.
        let pressed = self.space.no_space.is_some() && self.write.waits_for_file();
        let first = self.write.open.len() == 1 && self.index.sealed.is_empty();
        let wal = match waiting {
            Some(number) if spared || pressed || first => number,
            None if spared && self.space.ready.is_none() => self.space.next_file,
            _ => return,
        };
        self.space.spares.remove(&spare);
        self.space.taking = true;
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
        self.space.taking = false;
        match self.write.open.iter_mut().find(|f| f.number == wal) {
            Some(file) => file.exists = true,
            None => self.space.ready = Some(wal),
        }
        self.arrange_space();
        self.pump();
    }

    pub(crate) fn allocate_done(&mut self, spare: u64, result: Result<(), IoError>) {
        self.space.allocating = false;
        match result {
            Ok(()) => {
                self.add_spare(spare);
            }
            Err(e) if e.kind == IoErrorKind::NoSpace => {
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

    fn add_spare(&mut self, spare: u64) {
        self.space.spares.insert(spare);
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
        if self.space.allocating {
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

    /// Declare freed what nothing holds any more.
    pub(crate) fn free_files(&mut self) {
        if self.is_stopped() {
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
        if self.is_stopped() {
            return;
        }
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
            if file.bytes == self.config.segment_bytes && spares < cap {
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
        self.space.freeing.retain(|f| f.number != wal);
        self.stats.files_freed += 1;
        match spare {
            Some(spare) => self.add_spare(spare),
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
