//! Opening, last: deciding where the log ends, what is torn and what is to be mended; saying that it is open.
//!
//! Absent on purpose: finding groups ([`super::tail`]), the mending itself ([`super::mend`]).

use std::collections::BTreeMap;

use millstream_batch::ids::Term;

use super::mend::{Mend, Range};
use super::{BLOCK, Found, Recover, Unproved};
use crate::api::Event;
use crate::census::{Census, Present};
use crate::footer::footer_bytes;
use crate::format::{FILE_BYTES_MIN, GROUP_CLEAN, GROUP_UNSYNCED, file_incarnation};
use crate::io::FileId;
use crate::log::Log;
use crate::write::OpenFile;

impl Log {
    /// Every file was walked: decide where the log ends.
    pub(super) fn scanned(&mut self, mut recover: Box<Recover>) {
        self.release(&mut recover);
        let mut cut: Option<u64> = None;
        let mut cuts: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        // Groups that nothing proves, by file: they follow each other there.
        let mut anew: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for item in std::mem::take(&mut recover.unproved) {
            match item {
                Unproved::Group { file, group } if cut.is_none() && group.is_whole() => {
                    let end = group.at + group.header.span();
                    anew.entry(file).or_insert((group.at, end)).1 = end;
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
        let last = recover.last_group_before(u64::MAX);
        if last > recover.last_group {
            recover.last_group = last;
            // In a file with a footer, which is not where a log ends that was closed in good order. What
            // followed under `flush = interval` may be lost without a trace.
            recover.last_flags = GROUP_UNSYNCED;
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
            // Past the terms of what is cut, too.
            recover.term = Term(recover.term.max(recover.seen_term).0 + 1);
            recover.raised = true;
        }
        // Nor does anything prove the newest footer.
        let sealed = recover.files.iter().rev();
        if let Some((file, footer)) = sealed.filter_map(|(n, f)| Some((*n, f.trailer?))).next() {
            let at = footer.footer_at / BLOCK * BLOCK;
            let range = Range::new(file, at, footer.file_bytes);
            recover.mends.push_back(Mend::Footer(range));
        }
        let range = |(file, (at, end))| Range::new(file, at, end);
        let anew = anew.into_iter().map(range).map(Mend::Anew);
        let cuts = cuts.into_iter().map(range).map(Mend::Cut);
        recover.mends.extend(anew.chain(cuts));
        self.plan_files(&mut recover);
        self.mend(recover);
    }

    /// Files that should be there and are not; entries that should be there and are not.
    pub(super) fn check_files(&mut self, recover: &mut Recover) {
        let present = |f: &Found| Present {
            bytes: f.bytes,
            made_bytes: f.made_bytes,
            has_groups: f.groups.is_some(),
            trailer: f.trailer,
        };
        let census = Census {
            manifest: recover.manifest.as_ref(),
            files: recover
                .files
                .iter()
                .map(|(n, f)| (*n, present(f)))
                .collect(),
            freed: &recover.freed,
            made_bytes: Some(self.config.first_segment_bytes.min(FILE_BYTES_MIN)),
            last_group: recover.last_group,
            last_lsn: recover.last_lsn,
        };
        for loss in census.losses() {
            self.reader.lost = true;
            recover.damage(loss.file, loss.at, loss.what);
            if let Some(why) = loss.stop {
                recover.stop(why);
            }
        }
        let durable = recover.manifest.as_ref().map_or(0, |m| m.durable_group);
        recover.last_group = recover.last_group.max(durable);
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
        let goes_on = self
            .write
            .open
            .back()
            .is_some_and(|f| f.number == used && f.bytes == recover.files[&used].made_bytes);
        for file in &mut self.write.open {
            file.closed = true;
            let made_bytes = recover.files[&file.number].made_bytes;
            let footer = footer_bytes(file.slots.len(), file.runs);
            file.lacks_room = made_bytes > file.bytes || file.end + footer > file.bytes;
        }
        let mut next_file = used + 1;
        let mut ready = None;
        if let Some(file) = self.write.open.back_mut().filter(|_| goes_on) {
            file.closed = false;
        }
        let mut surplus = Vec::new();
        for (i, n) in empty.iter().rev().enumerate() {
            let bytes = recover.files[n].bytes;
            let fits = self.is_length(bytes);
            if i == 0 && fits && !goes_on {
                let incarnation = file_incarnation(self.config.incarnation, *n);
                let first = recover.last_lsn.next();
                let file = OpenFile::new(*n, bytes, incarnation, first, true);
                self.write.open.push_back(file);
                next_file = n + 1;
            } else if fits && *n == next_file && ready.is_none() {
                ready = Some(bytes);
            } else {
                surplus.push(Mend::Remove(FileId::Wal(*n)));
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
                self.index.remove_recent(*n);
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
                recover.mends.push_back(Mend::Remove(*file));
            }
        }
    }

    /// The log is whole: prove its end, then say so.
    pub(super) fn settle_in(&mut self, recover: Recover) {
        self.adopt(&recover);
        // What nothing proved has been written anew.
        self.write.synced = (recover.last_group, recover.last_lsn);
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
        self.out.event(Event::Recovered(Box::new(recover.report)));
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
            self.out.event(Event::Recovered(Box::new(report)));
            self.free_files();
        }
    }
}
