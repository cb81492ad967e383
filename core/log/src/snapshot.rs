//! Publishing a snapshot: archives one after the other, then, once the log is safe up to where it was
//! begun, the manifest under a temporary name, then its name.
//!
//! Absent on purpose: what is in an archive, and when to take a snapshot: that is the caller's.

use std::collections::VecDeque;

use bytes::Bytes;
use millstream_batch::ids::Lsn;

use crate::api::Event;
use crate::io::{FileId, IoError, IoErrorKind, IoOp};
use crate::log::{Log, Purpose};
use crate::manifest::{Manifest, Part};

#[derive(Debug, Default)]
pub(crate) struct Snapshots {
    /// The newest published snapshot holds every entry up to here; 0: there is none.
    pub(crate) published: Lsn,
    /// Last group that was durable when it was published.
    pub(crate) published_group: u64,
    /// Its archives, and their bytes.
    pub(crate) published_parts: u32,
    pub(crate) published_bytes: u64,
    taking: Option<Taking>,
    /// Snapshots begun, to tell the answers of one given up from those of its successor.
    begun: u64,
    /// An operation of `taking`, or of one given up, is in flight.
    busy: bool,
}

#[derive(Debug)]
struct Taking {
    begin: Lsn,
    waiting: VecDeque<(u32, Bytes)>,
    parts: Vec<Part>,
    written: u32,
    complete: bool,
    /// Nothing new since the last one: publish without writing.
    same: bool,
    naming: bool,
    /// As the manifest says.
    group: u64,
}

impl Snapshots {
    /// The newest snapshot found at start.
    pub(crate) fn found(&mut self, manifest: &Manifest) {
        self.published_group = manifest.durable_group;
        self.published = manifest.begin;
        self.count(&manifest.parts);
    }

    fn count(&mut self, parts: &[Part]) {
        self.published_parts = parts.len() as u32;
        self.published_bytes = parts.iter().map(|part| part.len).sum();
    }

    pub(crate) fn is_writing(&self) -> bool {
        self.busy || self.taking.as_ref().is_some_and(|t| t.complete)
    }
}

impl Log {
    /// Begin a snapshot of the state as it is after `last()`. One that was begun before and is not
    /// published is given up.
    ///
    /// # Panics
    /// Between `publish_snapshot` and its event.
    pub fn begin_snapshot(&mut self) -> Lsn {
        let begin = self.last();
        self.give_up_snapshot(Some(begin));
        self.snapshots.begun += 1;
        self.snapshots.taking = Some(Taking {
            begin,
            waiting: VecDeque::new(),
            parts: Vec::new(),
            written: 0,
            complete: false,
            same: begin == self.snapshots.published,
            naming: false,
            group: 0,
        });
        begin
    }

    /// The next archive of the snapshot that was begun. Ignored when it was given up.
    pub fn snapshot_part(&mut self, bytes: Bytes) {
        let Some(taking) = &mut self.snapshots.taking else {
            return;
        };
        assert!(!taking.complete, "an archive after publish_snapshot");
        if taking.same {
            return;
        }
        let part = taking.parts.len() as u32;
        taking.parts.push(Part::of(taking.begin, &bytes));
        taking.waiting.push_back((part, bytes));
        self.snapshot_pump();
    }

    /// Archives handed over and not written yet: hand over the next while they are few.
    #[must_use]
    pub fn snapshot_waiting(&self) -> usize {
        self.snapshots
            .taking
            .as_ref()
            .map_or(0, |t| t.waiting.len())
    }

    /// All archives are handed over. [`Event::SnapshotPublished`] says when it counts.
    pub fn publish_snapshot(&mut self) {
        let Some(taking) = &mut self.snapshots.taking else {
            return;
        };
        taking.complete = true;
        self.snapshot_pump();
    }

    /// Go on with the snapshot as far as possible.
    pub(crate) fn snapshot_pump(&mut self) {
        if self.is_stopped() || self.snapshots.busy {
            return;
        }
        let Some(taking) = &mut self.snapshots.taking else {
            return;
        };
        let begin = taking.begin;
        if let Some((part, bytes)) = taking.waiting.front() {
            let file = FileId::Snapshot {
                begin: begin.0,
                part: *part,
            };
            let op = IoOp::WriteFile {
                file,
                bytes: bytes.clone(),
            };
            self.snapshots.busy = true;
            let run = self.snapshots.begun;
            self.out.io(op, Purpose::SnapshotPart { run, file });
            return;
        }
        if !taking.complete || taking.naming {
            return;
        }
        if taking.same {
            self.snapshots.taking = None;
            self.out.event(Event::SnapshotPublished { begin });
            return;
        }
        if self.write.synced.1 < begin {
            // The sync of a later group, or one of its own, brings us back here.
            self.sync_now();
            return;
        }
        let open = self
            .write
            .open
            .iter()
            .filter(|f| f.exists)
            .map(|f| f.number);
        let next_file = self
            .write
            .open
            .iter()
            .find(|f| !f.exists)
            .map_or(self.space.next_file, |f| f.number);
        let files = self.index.sealed.keys().copied().chain(open).collect();
        let taking = self.snapshots.taking.as_mut().expect("looked at");
        let manifest = Manifest {
            begin,
            term: self.write.term,
            durable: self.write.synced.1,
            durable_group: self.write.synced.0,
            files,
            next_file,
            parts: taking.parts.clone(),
        };
        taking.naming = true;
        taking.group = manifest.durable_group;
        self.snapshots.busy = true;
        let file = FileId::Manifest {
            begin: begin.0,
            temporary: true,
        };
        self.out.io(
            IoOp::WriteFile {
                file,
                bytes: manifest.encode().into(),
            },
            Purpose::Manifest,
        );
    }

    pub(crate) fn snapshot_part_done(
        &mut self,
        run: u64,
        file: FileId,
        result: Result<(), IoError>,
    ) {
        self.snapshots.busy = false;
        match result {
            Ok(()) if run != self.snapshots.begun || self.snapshots.taking.is_none() => {
                // Of a snapshot given up. Its successor may write the same name: let that replace it.
                let again = self.snapshots.taking.as_ref().map(|t| t.begin);
                if let FileId::Snapshot { begin, .. } = file
                    && again != Some(Lsn(begin))
                    && begin != self.snapshots.published.0
                {
                    self.out.io(IoOp::Remove { file }, Purpose::Tidy);
                }
            }
            Ok(()) => {
                if let Some(taking) = &mut self.snapshots.taking
                    && taking.waiting.pop_front().is_some()
                {
                    taking.written += 1;
                }
            }
            Err(e) if e.kind.heals() => return self.abandon_snapshot(e),
            Err(e) => return self.fail(e),
        }
        self.snapshot_pump();
    }

    pub(crate) fn manifest_done(&mut self, result: Result<(), IoError>) {
        match result {
            Ok(()) => {
                let begin = self
                    .snapshots
                    .taking
                    .as_ref()
                    .expect("a snapshot is not given up while it is named")
                    .begin;
                let from = FileId::Manifest {
                    begin: begin.0,
                    temporary: true,
                };
                let to = FileId::Manifest {
                    begin: begin.0,
                    temporary: false,
                };
                self.out
                    .io(IoOp::Rename { from, to }, Purpose::ManifestName);
            }
            Err(e) if e.kind.heals() => {
                self.snapshots.busy = false;
                self.abandon_snapshot(e);
            }
            Err(e) => self.fail(e),
        }
    }

    /// The manifest has its name: the snapshot counts, the one before it goes.
    pub(crate) fn published(&mut self) {
        self.snapshots.busy = false;
        let taking = self
            .snapshots
            .taking
            .take()
            .expect("a snapshot is not given up while it is named");
        let (old, old_parts) = (self.snapshots.published, self.snapshots.published_parts);
        self.snapshots.published = taking.begin;
        self.snapshots.published_group = taking.group;
        self.snapshots.count(&taking.parts);
        self.out.event(Event::SnapshotPublished {
            begin: taking.begin,
        });
        if old.0 > 0 {
            let manifest = FileId::Manifest {
                begin: old.0,
                temporary: false,
            };
            self.out.io(IoOp::Remove { file: manifest }, Purpose::Tidy);
            self.remove_parts(old, old_parts);
        }
        self.free_files();
        self.pump();
    }

    /// No space for it: give it up, and the reserve with it when that helps.
    fn abandon_snapshot(&mut self, error: IoError) {
        let Some(taking) = &mut self.snapshots.taking else {
            return;
        };
        taking.naming = false; // the manifest, if it was that, is not there
        if error.kind == IoErrorKind::NoSpace
            && let Some((spare, _)) = self.space.spares.pop_first()
        {
            // A snapshot frees files: worth the reserve. The part or manifest is tried again when
            // the spare is gone.
            self.out.io(
                IoOp::Remove {
                    file: FileId::Spare(spare),
                },
                Purpose::Tidy,
            );
            return;
        }
        let begin = taking.begin;
        self.give_up_snapshot(None);
        self.out.event(Event::SnapshotAbandoned { begin, error });
    }

    /// `next`: where the one that follows begins; files that it will replace are left to it.
    fn give_up_snapshot(&mut self, next: Option<Lsn>) {
        let Some(taking) = self.snapshots.taking.take() else {
            return;
        };
        assert!(
            !taking.naming,
            "begin_snapshot while one is being published"
        );
        if taking.begin != self.snapshots.published && Some(taking.begin) != next {
            self.remove_parts(taking.begin, taking.written);
        }
    }

    fn remove_parts(&mut self, begin: Lsn, parts: u32) {
        for part in 0..parts {
            let file = FileId::Snapshot {
                begin: begin.0,
                part,
            };
            self.out.io(IoOp::Remove { file }, Purpose::Tidy);
        }
    }
}
