//! Opening, last: deciding where the log ends, cutting what is torn, making the end safe.
//!
//! Absent on purpose: finding groups ([`super::tail`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use millstream_batch::ids::Term;

use super::{BLOCK, CUT_CHUNK_BYTES, Found, Recover, Stage, Unproved};
use crate::api::Event;
use crate::buffer::AlignedBuf;
use crate::format::{GROUP_CLEAN, GROUP_UNSYNCED, file_incarnation};
use crate::io::{FileId, IoOp};
use crate::log::Log;
use crate::write::OpenFile;

impl Log {
    /// Every file was walked: decide where the log ends.
    pub(super) fn scanned(&mut self, mut recover: Box<Recover>) {
        self.release(&mut recover);
        let mut cut: Option<u64> = None;
        let mut cuts: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for item in std::mem::take(&mut recover.unproved) {
            match item {
                Unproved::Group { file, group } if cut.is_none() && group.is_whole() => {
                    self.take_group(&mut recover, file, &group);
                }
                Unproved::Group { file, group } => {
                    cut.get_or_insert(group.header.number);
                    let bytes = recover.files[&file].bytes / BLOCK * BLOCK;
                    let end = (group.at + group.header.span()).min(bytes);
                    let range = cuts.entry(file).or_insert((group.at, end));
                    range.1 = range.1.max(end);
                }
                Unproved::Missing {
                    file, at, first, ..
                } => {
                    cut.get_or_insert(first);
                    cuts.entry(file).or_insert((at, at));
                }
            }
        }
        for (file, (at, end)) in &cuts {
            recover.report.cut_bytes += end - at;
            let found = recover.files.get_mut(file).expect("it was scanned");
            found.end = *at;
            if let (Some((first, _)), Some(cut)) = (found.groups, cut) {
                found.groups = (first < cut).then_some((first, cut - 1));
            }
        }
        self.check_files(&mut recover);
        if recover.report.read_only.is_none() {
            recover.report.read_only = recover.stop.take();
        }
        if recover.report.read_only.is_some() {
            return self.give_up(recover);
        }
        let unclean =
            recover.last_flags & GROUP_UNSYNCED != 0 && recover.last_flags & GROUP_CLEAN == 0;
        if recover.report.cut_bytes > 0 || unclean {
            recover.term = Term(recover.term.0 + 1);
            recover.raised = true;
        }
        for (file, (at, end)) in cuts {
            let mut at = at;
            while at < end {
                let len = (end - at).min(CUT_CHUNK_BYTES);
                let mut zeros = AlignedBuf::with_capacity(len as usize);
                zeros.set_len(len as usize);
                let op = IoOp::Write {
                    file: FileId::Wal(file),
                    at,
                    buf: Arc::new(zeros),
                    len: len as usize,
                    sync: true,
                };
                recover.mends.push_back(op);
                at += len;
            }
        }
        self.plan_files(&mut recover);
        self.mend(recover);
    }

    /// Files that should be there and are not; entries that should be there and are not.
    pub(super) fn check_files(&mut self, recover: &mut Recover) {
        let (named, next) = match &recover.manifest {
            Some(m) => (m.files.clone(), m.next_file),
            None => (Vec::new(), 1),
        };
        let last = recover.files.keys().next_back().copied().unwrap_or(0);
        let mut missing: Vec<u64> = named.into_iter().chain(next..=last).collect();
        missing.retain(|n| !recover.files.contains_key(n) && !recover.freed.contains(n));
        for file in missing {
            self.reader.lost = true;
            recover.damage(
                FileId::Wal(file),
                0,
                "this file is missing: restore it from a copy".to_owned(),
            );
            if recover
                .files
                .iter()
                .all(|(n, f)| *n < file || f.groups.is_none())
            {
                recover.stop(format!(
                    "{} is missing: entries in it may be lost",
                    FileId::Wal(file).file_name()
                ));
            }
        }
        if let Some((n, found)) = recover.files.last_key_value()
            && found.trailer.is_some_and(|t| t.has_successor)
        {
            let file = FileId::Wal(n + 1);
            self.reader.lost = true;
            recover.damage(
                file,
                0,
                "this file is missing: restore it from a copy".to_owned(),
            );
            recover.stop(format!(
                "{} is missing: entries in it may be lost",
                file.file_name()
            ));
        }
        // Files are made whole before they get their name: a short one lost what it had.
        let whole = recover
            .files
            .values()
            .filter(|f| f.groups.is_some())
            .map(|f| f.made_bytes.max(f.bytes))
            .min();
        let whole = whole.unwrap_or(u64::MAX).min(self.config.segment_bytes);
        let short = |(n, f): (&u64, &Found)| {
            let is_short = f.groups.is_none() && f.bytes < whole && !recover.freed.contains(n);
            is_short.then_some((*n, f.bytes))
        };
        for (n, bytes) in recover.files.iter().filter_map(short).collect::<Vec<_>>() {
            let file = FileId::Wal(n);
            self.reader.lost = true;
            recover.damage(
                file,
                bytes,
                format!("this file has {bytes} bytes and no group: it was truncated"),
            );
            recover.stop(format!(
                "{} was truncated to {bytes} bytes: entries may be lost",
                file.file_name()
            ));
        }
        if let Some(manifest) = &recover.manifest
            && recover.last_group < manifest.durable_group
        {
            let (durable, begin) = (manifest.durable, manifest.begin);
            let (found, expected) = (recover.last_group, manifest.durable_group);
            self.reader.lost = true;
            recover.damage(
                FileId::Manifest { begin: begin.0, temporary: false },
                0,
                format!("the log ends at group {found}, but group {expected} was durable with this snapshot"),
            );
            if durable > recover.last_lsn {
                recover.stop(format!(
                    "entries {} to {durable} are lost at the end of the log",
                    recover.last_lsn.next()
                ));
            }
            recover.last_group = expected;
        }
    }

    /// Which files go on being written, which wait, which go.
    pub(super) fn plan_files(&mut self, recover: &mut Recover) {
        let last = recover.files.keys().next_back().copied().unwrap_or(0);
        // A cut may have emptied files at the end: they are as good as never begun.
        self.write.open.retain(|f| {
            recover.files[&f.number].groups.is_some() && !recover.freed.contains(&f.number)
        });
        let empty: Vec<u64> = recover
            .files
            .iter()
            .rev()
            .take_while(|(n, f)| {
                f.groups.is_none() && f.trailer.is_none() && !recover.freed.contains(n)
            })
            .map(|(n, _)| *n)
            .collect();
        let used = last - empty.len() as u64;
        let goes_on = self.write.open.back().is_some_and(|f| {
            f.number == used
                && f.bytes == recover.files[&used].made_bytes
                && f.bytes == self.config.segment_bytes
        });
        for file in &mut self.write.open {
            file.closed = true;
            file.is_truncated = recover.files[&file.number].made_bytes > file.bytes;
        }
        let mut next_file = used + 1;
        let mut ready = false;
        if let Some(file) = self.write.open.back_mut().filter(|_| goes_on) {
            file.closed = false;
        }
        let mut surplus = Vec::new();
        for (i, n) in empty.iter().rev().enumerate() {
            let fits = recover.files[n].bytes == self.config.segment_bytes;
            if i == 0 && fits && !goes_on {
                let incarnation = file_incarnation(self.config.incarnation, *n);
                let first = recover.last_lsn.next();
                self.write.open.push_back(OpenFile::new(
                    *n,
                    self.config.segment_bytes,
                    incarnation,
                    first,
                    true,
                ));
                next_file = n + 1;
            } else if fits && *n == next_file && !ready {
                ready = true;
            } else {
                surplus.push(IoOp::Remove {
                    file: FileId::Wal(*n),
                });
            }
        }
        // From the highest down: a crash on the way leaves no hole in the numbers.
        recover.mends.extend(surplus.into_iter().rev());
        let spares = std::mem::take(&mut recover.spares);
        self.space
            .found(spares, recover.next_spare, next_file, ready);
        for n in &recover.freed {
            if let Some(found) = recover.files.get(n) {
                self.index.remove(*n);
                self.space.found_freed(*n, found.bytes);
            }
        }
        // Archives of snapshots that were not published, or are older.
        let begin = recover.begin();
        for (file, _) in &recover.snapshot_files {
            let of = match file {
                FileId::Snapshot { begin, .. } | FileId::Manifest { begin, .. } => *begin,
                FileId::Wal(_) | FileId::Spare(_) => continue,
            };
            if of != begin.0 && !recover.snapshot_lost {
                recover.mends.push_back(IoOp::Remove { file: *file });
            }
        }
    }

    pub(super) fn mend(&mut self, mut recover: Box<Recover>) {
        match recover.mends.pop_front() {
            Some(op) => self.ask(recover, Stage::Mend, op),
            None => self.settle_in(*recover),
        }
    }

    /// The log is whole: prove its end, then say so.
    pub(super) fn settle_in(&mut self, recover: Recover) {
        self.adopt(&recover);
        self.opening = Some(recover.report);
        if self.write.open.back().is_none_or(|f| f.closed) {
            self.roll();
        }
        self.trim_index();
        self.let_files_go();
        self.arrange_space();
        // The end is proved by a mark, which also makes a raised term last.
        let has_groups = self.write.open.back().is_some_and(|f| f.groups.is_some());
        self.write.raised = recover.raised;
        self.write.mark_wanted = recover.raised || (recover.last_group > 0 && has_groups);
        self.write.sync_wanted = recover.last_group > 0;
        self.pump();
    }

    /// The log cannot be written: serve what there is.
    pub(super) fn give_up(&mut self, mut recover: Box<Recover>) {
        let why = recover.stop.take();
        if recover.report.read_only.is_none() {
            recover.report.read_only = why;
        }
        self.adopt(&recover);
        recover.report.last = self.write.last;
        recover.report.term = self.write.term;
        self.read_only.clone_from(&recover.report.read_only);
        self.out.event(Event::Recovered(recover.report));
    }

    pub(super) fn adopt(&mut self, recover: &Recover) {
        let last = recover.last_lsn;
        self.write.term = recover.term;
        self.write.last = last;
        self.write.durable = last;
        self.write.last_group = recover.last_group;
        self.write.written_group = recover.last_group;
        self.write.last_flags = recover.last_flags;
        self.stats.bytes_read += recover.report.bytes_read;
    }

    /// Put the mark at the end, if its file is there. Gives whether something was begun.
    fn mark_end(&mut self) -> bool {
        let Some(file) = self.write.open.back().filter(|f| f.exists) else {
            return false;
        };
        self.write.mark_wanted = false;
        if !file.fits_mark() {
            if !self.write.raised {
                // A sync alone will do.
                return false;
            }
            self.write.mark_wanted = true;
            self.roll();
            return false;
        }
        self.mark(0);
        self.write.sync_wanted = true;
        self.pump();
        true
    }

    /// Say that the log is open once its end is safe.
    pub(crate) fn opened(&mut self) {
        if self.opening.is_none() {
            return;
        }
        if self.write.mark_wanted && self.is_settled() && self.mark_end() {
            return;
        }
        let no_space = self.space.has_no_space();
        let file = self.write.open.back().is_some_and(|f| f.exists) || no_space;
        let footers = self.write.open.len() == 1
            || no_space
                && !self
                    .write
                    .open
                    .iter()
                    .any(|f| f.sealing.is_some() || f.is_syncing);
        let synced = self.write.synced.0 >= self.write.written_group
            || no_space && self.unsynced_file().is_none()
            || self.write.open.iter().all(|f| f.groups.is_none());
        if !(file && footers && synced && self.is_settled()) || self.write.mark_wanted && !no_space
        {
            return;
        }
        if self.write.open.iter().all(|f| f.groups.is_none()) {
            // Every group is in a sealed file.
            self.write.synced = (self.write.written_group, self.write.durable);
        }
        if let Some(mut report) = self.opening.take() {
            report.last = self.write.last;
            report.term = self.write.term;
            self.out.event(Event::Recovered(report));
            self.free_files();
        }
    }
}
