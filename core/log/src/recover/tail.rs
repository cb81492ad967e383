//! Opening, middle: walking the tail, group by group, and giving out what is proved.
//!
//! Absent on purpose: where the log ends ([`super::end`] decides once all is walked).

use bytes::Bytes;
use millstream_batch::ids::Lsn;
use millstream_batch::limits::BLOCK_BYTES;
use smallvec::SmallVec;

use super::{BLOCK, Recover, Stage, Unproved};
use crate::api::{Entry, Event, Unit};
use crate::format::{GROUP_HEADER_BYTES, GroupHeader};
use crate::io::{FileId, IoError, IoOp};
use crate::log::Log;
use crate::scan::{ScannedGroup, Scanner, Step};
use crate::write::OpenFile;

impl Log {
    pub(super) fn next_scan(&mut self, mut recover: Box<Recover>) {
        let Some(file) = recover.scans.front().copied() else {
            return self.scanned(recover);
        };
        // Files with a footer may lie between those that are walked: a walk begins after the groups
        // of the file before it, not after all that are known.
        recover.seen_group = recover.seen_group.max(recover.last_group_before(file));
        if let Some(manifest) = &recover.manifest
            && recover.seen_group >= manifest.durable_group
        {
            // Groups after those that were durable with the snapshot are of its run, or of a later one.
            recover.seen_term = recover.seen_term.max(manifest.term);
        }
        let found = &recover.files[&file];
        let incarnation = found.trailer.map(|t| t.incarnation);
        let scanner = Scanner::new(
            file,
            found.bytes / BLOCK * BLOCK,
            incarnation,
            recover.seen_group + 1,
        );
        recover.scanner = Some(scanner.from_term(recover.seen_term));
        self.scan(recover);
    }

    /// Walk on until bytes are needed or the file is done.
    pub(super) fn scan(&mut self, mut recover: Box<Recover>) {
        loop {
            let scanner = recover.scanner.as_mut().expect("a file is being scanned");
            let file = scanner.file();
            match scanner.step() {
                Step::Read { at, len } => {
                    return self.ask(
                        recover,
                        Stage::Scan,
                        IoOp::Read {
                            file: FileId::Wal(file),
                            at,
                            len,
                        },
                    );
                }
                Step::Group(group) => {
                    self.saw_group(&mut recover, file, group);
                }
                Step::Break { at } => {
                    recover.broke_at = at;
                    let done = recover.files[&file]
                        .trailer
                        .is_some_and(|t| t.last_group <= recover.seen_group);
                    if done {
                        return self.file_scanned(recover);
                    }
                    match recover.scans.get(1).copied() {
                        Some(next) if recover.files[&next].bytes >= BLOCK => {
                            let op = IoOp::Read {
                                file: FileId::Wal(next),
                                at: 0,
                                len: BLOCK_BYTES,
                            };
                            return self.ask(recover, Stage::Peek, op);
                        }
                        _ => recover.search(),
                    }
                }
                Step::End => return self.file_scanned(recover),
            }
        }
    }

    pub(super) fn scan_read(&mut self, mut recover: Box<Recover>, result: Result<Bytes, IoError>) {
        let scanner = recover.scanner.as_mut().expect("a file is being scanned");
        let (file, at) = (scanner.file(), scanner.at());
        match result {
            Ok(bytes) => {
                recover.report.bytes_read += bytes.len() as u64;
                scanner.feed(at, bytes);
                self.scan(recover);
            }
            Err(e) => {
                let what = format!("this file cannot be read from here on: {e}");
                recover.damage(FileId::Wal(file), at, what);
                recover.stop(format!(
                    "{} cannot be read at {at}: {e}",
                    FileId::Wal(file).file_name()
                ));
                self.reader.lost = true;
                recover.broke_at = at;
                self.file_scanned(recover);
            }
        }
    }

    /// The next file's first group tells whether this one ended where it should.
    pub(super) fn peeked(&mut self, mut recover: Box<Recover>, result: Result<Bytes, IoError>) {
        let next = recover
            .scans
            .get(1)
            .copied()
            .expect("the file after was peeked at");
        let header = result
            .ok()
            .and_then(|bytes| GroupHeader::decode(bytes.get(..GROUP_HEADER_BYTES)?));
        let follows = |h: GroupHeader| {
            (h.file, h.at, h.number) == (next, 0, recover.seen_group + 1)
                && h.term >= recover.seen_term
        };
        if header.is_some_and(follows) {
            return self.file_scanned(recover);
        }
        recover.search();
        self.scan(recover);
    }

    pub(super) fn saw_group(&mut self, recover: &mut Recover, file: u64, group: ScannedGroup) {
        let number = group.header.number;
        let found = recover.files.get_mut(&file).expect("it is being scanned");
        let expected = recover.seen_group + 1;
        let hole_in_file = found.groups.is_some() && number > expected;
        let displaced = group.at != found.end;
        // Files freed between two others leave a gap of numbers at the start of the next.
        let follows = file == 1
            || recover.files.contains_key(&(file - 1)) && !recover.freed.contains(&(file - 1));
        let found = recover.files.get_mut(&file).expect("it is being scanned");
        if hole_in_file || displaced || (follows && number > expected) {
            let at = found.end;
            recover.unproved.push_back(Unproved::Missing {
                file,
                at,
                first: expected,
                last: number - 1,
            });
        }
        found.end = group.at + group.header.span();
        found.made_bytes = group.header.file_bytes;
        found.groups = Some((found.groups.map_or(number, |g| g.0), number));
        recover.seen_group = number;
        recover.seen_term = group.header.term;
        recover.proved = recover.proved.max(group.header.proved);
        recover.unproved.push_back(Unproved::Group { file, group });
        self.release(recover);
    }

    /// Take in what is proved by now.
    pub(super) fn release(&mut self, recover: &mut Recover) {
        while let Some(front) = recover.unproved.front() {
            let number = match front {
                Unproved::Group { group, .. } => group.header.number,
                Unproved::Missing { last, .. } => *last,
            };
            if number > recover.proved {
                return;
            }
            let item = recover.unproved.pop_front().expect("looked at");
            self.take_in(recover, item);
        }
    }

    /// A group, or the lack of one, that belongs to the log.
    pub(super) fn take_in(&mut self, recover: &mut Recover, item: Unproved) {
        match item {
            Unproved::Missing {
                file,
                at,
                first,
                last,
            } => {
                let what = if last < first {
                    "bytes before the next group are not a group".to_owned()
                } else {
                    format!(
                        "groups {first} to {last} are damaged or missing: their headers are not readable"
                    )
                };
                recover.damage(FileId::Wal(file), at, what);
                if first <= last {
                    self.reader.lost = true;
                }
            }
            Unproved::Group { file, group } => self.take_group(recover, file, &group),
        }
    }

    pub(super) fn take_group(&mut self, recover: &mut Recover, file: u64, group: &ScannedGroup) {
        let begin = recover.begin();
        let name = FileId::Wal(file);
        let expected = recover.last_lsn.next();
        if group.header.first_lsn > expected {
            recover.stop(format!(
                "entries {expected} to {} are lost before byte {} of {}",
                group.header.first_lsn.0 - 1,
                group.at,
                name.file_name()
            ));
        } else if group.header.first_lsn < expected && recover.last_lsn > begin {
            let what = format!(
                "group {} begins with entry {}, which an earlier group has",
                group.header.number, group.header.first_lsn
            );
            recover.damage(name, group.at, what.clone());
            recover.stop(what);
        }
        // A unit is given out whole or not at all.
        let mut unit: SmallVec<[Entry; 1]> = SmallVec::new();
        let mut damaged_at = None;
        for entry in &group.entries {
            if let Some(freed) = entry.freed() {
                // A file is declared freed in a later one.
                if freed < file {
                    recover.freed.insert(freed);
                }
                continue;
            }
            let lsn = entry.header.lsn;
            let key = &entry.header.key;
            if entry.raw.is_none() {
                let what = if entry.header.is_indexed() {
                    format!(
                        "the batch of slot {}, offsets {} to {}, is damaged: fetching it answers DATA_DAMAGED",
                        key.slot, key.base_offset, key.last_offset
                    )
                } else {
                    format!("the raw bytes of entry {lsn} are damaged")
                };
                recover.damage(name, entry.at, what);
            }
            match &entry.fact {
                None => {
                    let what = format!("the fact of entry {lsn} is damaged");
                    recover.damage(name, entry.at, what);
                    damaged_at.get_or_insert(entry.at);
                }
                Some(fact) => unit.push(Entry {
                    lsn,
                    term: entry.header.term,
                    kind: entry.header.kind,
                    fact: fact.clone(),
                    raw: Bytes::new(),
                    raw_len: entry.header.raw_len as usize,
                }),
            }
            if entry.header.has_more() {
                continue;
            }
            let (entries, damaged_at) = (std::mem::take(&mut unit), damaged_at.take());
            if lsn <= begin || entry.header.is_control() {
                continue;
            }
            if let Some(at) = damaged_at {
                recover.stop(format!(
                    "the fact of entry {lsn} at byte {at} of {} is damaged",
                    name.file_name()
                ));
            } else if recover.stop.is_none() {
                recover.report.replayed += 1;
                self.out.event(Event::Replay(Unit { lsn, entries }));
            }
        }
        if let Some(at) = group.broken_at {
            recover.damage(
                name,
                at,
                format!(
                    "entries of group {} are damaged from here to its end",
                    group.header.number
                ),
            );
            self.reader.lost = true;
            // How many there were shows in the first lsn of the next group, or in nothing.
            let lost_after = group.last_lsn();
            let unread = group.header.entries as usize - group.entries.len();
            let own = unread + group.cut_unit(); // several of one unit count for more than there are
            if lost_after + own as u64 > begin.0 && own > 0 {
                recover.stop(format!(
                    "entries after {lost_after} at byte {at} of {} are damaged",
                    name.file_name()
                ));
            }
        }
        recover.last_lsn = recover.last_lsn.max(Lsn(group.last_lsn()));
        if group.header.number > recover.last_group {
            recover.last_group = group.header.number;
            recover.last_flags = group.header.flags;
        }
        recover.term = recover.term.max(group.header.term);
        if recover.files[&file].trailer.is_none() {
            self.index_group(recover, file, group);
        }
    }

    /// A group of a file without footer: its batches are found in memory.
    pub(super) fn index_group(&mut self, recover: &Recover, file: u64, group: &ScannedGroup) {
        let runs = group.runs();
        let header = &group.header;
        self.index.add_cold(header.number, file, group.at, &runs);
        if self.write.open.back().is_none_or(|f| f.number != file) {
            let bytes = recover.files[&file].bytes / BLOCK * BLOCK;
            self.write.open.push_back(OpenFile::new(
                file,
                bytes,
                header.incarnation,
                header.first_lsn,
                true,
            ));
        }
        let open = self.write.open.back_mut().expect("just pushed");
        open.note(header.number);
        open.end = group.at + header.span();
        open.last_lsn = open.last_lsn.max(Lsn(group.last_lsn()));
        open.runs += runs.len();
        open.slots.extend(runs.iter().map(|(slot, _)| *slot));
    }

    pub(super) fn file_scanned(&mut self, mut recover: Box<Recover>) {
        let file = recover.scans.pop_front().expect("it was being scanned");
        recover.scanner = None;
        let found = &recover.files[&file];
        if let Some(trailer) = found.trailer
            && recover.seen_group < trailer.last_group
        {
            let (first, last) = (recover.seen_group + 1, trailer.last_group);
            recover.unproved.push_back(Unproved::Missing {
                file,
                at: recover.broke_at,
                first,
                last,
            });
            recover.seen_group = last;
            self.release(&mut recover);
        }
        let found = &recover.files[&file];
        if found.bytes < found.made_bytes {
            let (bytes, made) = (found.bytes, found.made_bytes);
            let reaches_end = found.end + BLOCK > bytes / BLOCK * BLOCK;
            recover.damage(
                FileId::Wal(file),
                bytes,
                format!("this file was made {made} bytes long and has {bytes}: it was truncated"),
            );
            if reaches_end && recover.scans.is_empty() {
                self.reader.lost = true;
                recover.stop(format!(
                    "{} was truncated to {bytes} bytes: entries at its end may be lost; restore it from a copy",
                    FileId::Wal(file).file_name()
                ));
            }
        }
        self.next_scan(recover);
    }
}
