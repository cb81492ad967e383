//! Opening: the newest snapshot, then the tail, then the end of the log made safe.
//!
//! ```text
//!  List ─▶ Manifest ─▶ Parts ─▶ Trailers ─▶ Scan (▸ Peek) ─▶ Mend ─▶ mark, synced ─▶ Recovered
//! ```
//!
//! **Torn or damaged.** A group says up to which group everything was synced when it was written. A
//! group that is not whole, or is missing, is *damage* when any valid group, footer or manifest
//! proves its number, wherever that is found; else it is the *torn end* and is cut with all after it.
//! Groups not yet proved are held back until they are, so nothing is replayed that is later cut.
//!
//! Absent on purpose: what entries mean; walking a file ([`crate::scan`]).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use millstream_batch::ids::{Lsn, Term};
use millstream_batch::limits::BLOCK_BYTES;

use crate::api::{Damage, Entry, Event, Recovery};
use crate::buffer::AlignedBuf;
use crate::footer::Trailer;
use crate::format::{
    GROUP_CLEAN, GROUP_HEADER_BYTES, GROUP_UNSYNCED, GroupHeader, file_incarnation,
};
use crate::index::SealedFile;
use crate::io::{FileId, IoError, IoOp, IoOutput};
use crate::log::{Log, Purpose, read_output};
use crate::manifest::{MANIFEST_BYTES_MAX, Manifest, Part};
use crate::scan::{ScannedGroup, Scanner, Step};
use crate::write::OpenFile;

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Read from the end of a file for its trailer: most directories come with it.
const TRAILER_READ_BYTES: u64 = 64 << 10;
/// Zeros are written in pieces of this.
const CUT_CHUNK_BYTES: u64 = 1 << 20;

#[derive(Debug, Default)]
enum Stage {
    #[default]
    List,
    Manifest,
    Parts,
    /// The end of this file is being read, from that position.
    Trailer {
        file: u64,
        at: u64,
    },
    Directory {
        trailer: Trailer,
        at: u64,
    },
    Scan,
    /// The first block of the file after the one being scanned.
    Peek,
    /// One of the mending operations is in flight.
    Mend,
}

/// Groups not yet proved, in log order.
#[derive(Debug)]
enum Unproved {
    Group {
        file: u64,
        group: ScannedGroup,
    },
    /// Groups up to `last` should be here and are not.
    Missing {
        file: u64,
        at: u64,
        first: u64,
        last: u64,
    },
}

/// A file found, and what is known of it.
#[derive(Debug)]
struct Found {
    bytes: u64,
    trailer: Option<Trailer>,
    /// Where the chain of groups ended.
    end: u64,
    /// As its groups say; 0 when it has none.
    made_bytes: u64,
    groups: Option<(u64, u64)>,
}

#[derive(Debug, Default)]
pub(crate) struct Recover {
    stage: Stage,
    files: BTreeMap<u64, Found>,
    spares: BTreeSet<u64>,
    next_spare: u64,
    snapshot_files: Vec<(FileId, u64)>,
    /// Begins of published snapshots not tried yet, oldest first.
    manifests: Vec<u64>,
    manifest: Option<Manifest>,
    parts: Vec<Bytes>,
    /// Snapshots were there and none could be used.
    snapshot_lost: bool,
    trailers: VecDeque<u64>,
    /// Footers that are not whole, with where: torn or damaged.
    footers: Vec<(u64, u64)>,
    scans: VecDeque<u64>,
    scanner: Option<Scanner>,
    broke_at: u64,
    unproved: VecDeque<Unproved>,
    proved: u64,
    /// Last group and entry seen in order.
    last_group: u64,
    seen_group: u64,
    last_lsn: Lsn,
    last_flags: u16,
    term: Term,
    freed: BTreeSet<u64>,
    /// Facts are not replayed from here on, and why.
    stop: Option<String>,
    report: Recovery,
    mends: VecDeque<IoOp>,
}

impl Recover {
    fn begin(&self) -> Lsn {
        self.manifest.as_ref().map_or(Lsn(0), |m| m.begin)
    }

    fn damage(&mut self, file: FileId, at: u64, what: String) {
        self.report.damage.push(Damage {
            file: file.file_name(),
            at,
            what,
        });
    }

    /// Facts may be missing from here on: nothing after is replayed.
    fn stop(&mut self, why: String) {
        self.stop.get_or_insert(why);
    }
}

impl Log {
    pub(crate) fn recover_done(&mut self, result: Result<IoOutput, IoError>) {
        let Some(mut recover) = self.recover.take() else {
            return;
        };
        match std::mem::take(&mut recover.stage) {
            Stage::List => match result {
                Ok(IoOutput::Listed(files)) => self.listed(recover, files),
                Ok(_) => unreachable!("a list is answered by a list or an error"),
                Err(e) => {
                    recover.stop(format!("the data directory cannot be listed: {e}"));
                    self.fail(e);
                    self.give_up(recover);
                }
            },
            Stage::Manifest => self.manifest_read(recover, read_output(result)),
            Stage::Parts => self.part_read(recover, read_output(result)),
            Stage::Trailer { file, at } => {
                self.trailer_read(recover, file, at, read_output(result));
            }
            Stage::Directory { trailer, at } => {
                self.directory_read(recover, trailer, at, read_output(result));
            }
            Stage::Scan => self.scan_read(recover, read_output(result)),
            Stage::Peek => self.peeked(recover, read_output(result)),
            Stage::Mend => match result {
                Ok(_) => self.mend(recover),
                Err(e) => {
                    recover.stop(format!("the torn end of the log could not be cut: {e}"));
                    self.fail(e);
                    self.give_up(recover);
                }
            },
        }
    }

    fn ask(&mut self, mut recover: Box<Recover>, stage: Stage, op: IoOp) {
        recover.stage = stage;
        self.recover = Some(recover);
        self.out.io(op, Purpose::Recover);
    }

    fn listed(&mut self, mut recover: Box<Recover>, files: Vec<(FileId, u64)>) {
        let mut files = files;
        files.sort_unstable();
        for (file, bytes) in files {
            match file {
                FileId::Wal(n) => {
                    recover.files.insert(
                        n,
                        Found {
                            bytes,
                            trailer: None,
                            end: 0,
                            made_bytes: 0,
                            groups: None,
                        },
                    );
                }
                FileId::Spare(n) => {
                    recover.next_spare = recover.next_spare.max(n + 1);
                    if bytes == self.config.segment_bytes {
                        recover.spares.insert(n);
                    } else {
                        recover.mends.push_back(IoOp::Remove { file });
                    }
                }
                FileId::Snapshot { .. } => recover.snapshot_files.push((file, bytes)),
                FileId::Manifest {
                    temporary: true, ..
                } => recover.mends.push_back(IoOp::Remove { file }),
                FileId::Manifest {
                    begin,
                    temporary: false,
                } => {
                    recover.manifests.push(begin);
                    recover.snapshot_files.push((file, bytes));
                }
            }
        }
        self.next_manifest(recover);
    }

    fn next_manifest(&mut self, mut recover: Box<Recover>) {
        recover.manifest = None;
        recover.parts.clear();
        while let Some(begin) = recover.manifests.pop() {
            let file = FileId::Manifest {
                begin,
                temporary: false,
            };
            let bytes = recover.snapshot_bytes(file).unwrap_or(0);
            if bytes == 0 || bytes > MANIFEST_BYTES_MAX {
                recover.damage(
                    file,
                    0,
                    "this snapshot manifest has an impossible length; it is not used".to_owned(),
                );
                recover.snapshot_lost = true;
                continue;
            }
            let len = (bytes as usize).next_multiple_of(BLOCK_BYTES);
            // Kept to know which one was asked for.
            recover.manifests.push(begin);
            return self.ask(recover, Stage::Manifest, IoOp::Read { file, at: 0, len });
        }
        if recover.snapshot_lost {
            recover.without_snapshot();
        }
        self.snapshot_found(recover);
    }

    fn manifest_read(&mut self, mut recover: Box<Recover>, result: Result<Bytes, IoError>) {
        let begin = recover.manifests.pop().expect("one was asked for");
        let file = FileId::Manifest {
            begin,
            temporary: false,
        };
        match result.map(|bytes| Manifest::decode(&bytes)) {
            Ok(Some(manifest)) if manifest.begin.0 == begin => {
                recover.manifest = Some(manifest);
                self.next_part(recover);
            }
            Ok(_) => {
                recover.damage(
                    file,
                    0,
                    "this snapshot manifest is damaged; it is not used".to_owned(),
                );
                recover.snapshot_lost = true;
                self.next_manifest(recover);
            }
            Err(e) => {
                recover.damage(
                    file,
                    0,
                    format!("this snapshot manifest cannot be read ({e}); it is not used"),
                );
                recover.snapshot_lost = true;
                self.next_manifest(recover);
            }
        }
    }

    fn next_part(&mut self, mut recover: Box<Recover>) {
        let manifest = recover.manifest.as_ref().expect("parts follow a manifest");
        let part = recover.parts.len();
        let Some(expected) = manifest.parts.get(part).copied() else {
            recover.snapshot_lost = false;
            return self.snapshot_found(recover);
        };
        let file = FileId::Snapshot {
            begin: manifest.begin.0,
            part: part as u32,
        };
        if recover.snapshot_bytes(file) != Some(expected.len) {
            recover.damage(
                file,
                0,
                format!(
                    "this snapshot archive is missing or not {} bytes long",
                    expected.len
                ),
            );
            recover.snapshot_lost = true;
            return self.next_manifest(recover);
        }
        if expected.len == 0 {
            recover.parts.push(Bytes::new());
            return self.next_part(recover);
        }
        let len = (expected.len as usize).next_multiple_of(BLOCK_BYTES);
        self.ask(recover, Stage::Parts, IoOp::Read { file, at: 0, len });
    }

    fn part_read(&mut self, mut recover: Box<Recover>, result: Result<Bytes, IoError>) {
        let manifest = recover.manifest.as_ref().expect("parts follow a manifest");
        let (begin, part) = (manifest.begin, recover.parts.len());
        let expected = manifest.parts[part];
        let file = FileId::Snapshot {
            begin: begin.0,
            part: part as u32,
        };
        match result {
            Ok(bytes) if Part::of(begin, &bytes) == expected => {
                recover.report.bytes_read += bytes.len() as u64;
                recover.parts.push(bytes);
                self.next_part(recover);
            }
            Ok(_) => {
                recover.damage(
                    file,
                    0,
                    "this snapshot archive does not match its checksum".to_owned(),
                );
                recover.snapshot_lost = true;
                self.next_manifest(recover);
            }
            Err(e) => {
                recover.damage(
                    file,
                    0,
                    format!("this snapshot archive cannot be read: {e}"),
                );
                recover.snapshot_lost = true;
                self.next_manifest(recover);
            }
        }
    }

    /// Give the snapshot out and look at the files.
    fn snapshot_found(&mut self, mut recover: Box<Recover>) {
        let begin = recover.begin();
        for bytes in std::mem::take(&mut recover.parts) {
            self.out.event(Event::SnapshotPart { begin, bytes });
        }
        recover.last_lsn = begin;
        if let Some(manifest) = &recover.manifest {
            let parts = manifest.parts.len() as u32;
            self.snapshots.found(begin, parts);
            recover.term = manifest.term;
            recover.proved = manifest.durable_group;
            // What the manifest does not name any more was freed when it was written.
            for n in recover.files.keys() {
                if *n < manifest.next_file && !manifest.files.contains(n) {
                    recover.freed.insert(*n);
                }
            }
        }
        recover.trailers = recover
            .files
            .keys()
            .filter(|n| !recover.freed.contains(n))
            .copied()
            .collect();
        self.next_trailer(recover);
    }

    fn next_trailer(&mut self, mut recover: Box<Recover>) {
        while let Some(file) = recover.trailers.pop_front() {
            let bytes = recover.files[&file].bytes / BLOCK * BLOCK;
            if bytes < 2 * BLOCK {
                continue;
            }
            let at = bytes - TRAILER_READ_BYTES.min(bytes);
            let op = IoOp::Read {
                file: FileId::Wal(file),
                at,
                len: (bytes - at) as usize,
            };
            return self.ask(recover, Stage::Trailer { file, at }, op);
        }
        self.plan_scans(recover);
    }

    fn trailer_read(
        &mut self,
        mut recover: Box<Recover>,
        file: u64,
        at: u64,
        result: Result<Bytes, IoError>,
    ) {
        let bytes = match result {
            Ok(bytes) => bytes,
            Err(e) => {
                recover.damage(
                    FileId::Wal(file),
                    at,
                    format!("the end of this file cannot be read: {e}"),
                );
                return self.next_trailer(recover);
            }
        };
        recover.report.bytes_read += bytes.len() as u64;
        let block_at = bytes.len().saturating_sub(BLOCK_BYTES);
        let block = &bytes[block_at..];
        match Trailer::decode(block, file, recover.files[&file].bytes) {
            Some(trailer) => {
                let start = trailer.directory_at.checked_sub(at).map(|s| s as usize);
                let end = start.map(|s| s + trailer.directory_bytes() as usize);
                if let (Some(start), Some(end)) = (start, end)
                    && let Some(directory) = bytes.get(start..end)
                {
                    let directory = directory.to_vec();
                    self.directory_known(&mut recover, trailer, &directory);
                    return self.next_trailer(recover);
                }
                let at = trailer.directory_at / BLOCK * BLOCK;
                let end =
                    (trailer.directory_at + trailer.directory_bytes()).next_multiple_of(BLOCK);
                let op = IoOp::Read {
                    file: FileId::Wal(file),
                    at,
                    len: (end - at) as usize,
                };
                self.ask(recover, Stage::Directory { trailer, at }, op);
            }
            None => {
                if Trailer::claims(block, file) {
                    recover.footers.push((file, at + block_at as u64));
                }
                self.next_trailer(recover);
            }
        }
    }

    fn directory_read(
        &mut self,
        mut recover: Box<Recover>,
        trailer: Trailer,
        at: u64,
        result: Result<Bytes, IoError>,
    ) {
        let bytes = result.unwrap_or_default();
        recover.report.bytes_read += bytes.len() as u64;
        let start = (trailer.directory_at - at) as usize;
        let directory = bytes
            .get(start..start + trailer.directory_bytes() as usize)
            .unwrap_or_default();
        self.directory_known(&mut recover, trailer, directory);
        self.next_trailer(recover);
    }

    fn directory_known(&mut self, recover: &mut Recover, trailer: Trailer, bytes: &[u8]) {
        let Some(directory) = trailer.directory(bytes) else {
            recover.footers.push((trailer.file, trailer.directory_at));
            return;
        };
        let found = recover
            .files
            .get_mut(&trailer.file)
            .expect("its end was read");
        found.trailer = Some(trailer);
        recover.proved = recover.proved.max(trailer.last_group);
        self.index.seal(SealedFile {
            number: trailer.file,
            bytes: trailer.file_bytes,
            incarnation: trailer.incarnation,
            last_lsn: trailer.last_lsn,
            directory,
            holding: 0,
        });
    }

    /// Which files must be walked: those without a footer, and those with entries after the
    /// snapshot.
    fn plan_scans(&mut self, mut recover: Box<Recover>) {
        let begin = recover.begin();
        let group = recover.manifest.as_ref().map_or(0, |m| m.durable_group);
        // Footers are written in order: the last one begun may be torn, the others were whole.
        let last = recover
            .files
            .iter()
            .rev()
            .find(|(_, f)| f.trailer.is_some());
        let last = last.map_or(0, |(n, _)| *n);
        for (file, at) in std::mem::take(&mut recover.footers) {
            if file < last {
                let what = "the footer is damaged; the index is made anew from the file";
                recover.damage(FileId::Wal(file), at, what.to_owned());
            }
        }
        for (n, found) in &mut recover.files {
            if recover.freed.contains(n) {
                continue;
            }
            match &found.trailer {
                Some(t) if t.last_lsn <= begin && t.last_group <= group => {
                    found.groups = Some((t.first_group, t.last_group));
                    recover.seen_group = recover.seen_group.max(t.last_group);
                    recover.last_group = recover.seen_group;
                }
                _ => recover.scans.push_back(*n),
            }
        }
        self.next_scan(recover);
    }

    fn next_scan(&mut self, mut recover: Box<Recover>) {
        let Some(file) = recover.scans.front().copied() else {
            return self.scanned(recover);
        };
        let found = &recover.files[&file];
        let incarnation = found.trailer.map(|t| t.incarnation);
        recover.scanner = Some(Scanner::new(
            file,
            found.bytes / BLOCK * BLOCK,
            incarnation,
            recover.seen_group + 1,
        ));
        self.scan(recover);
    }

    /// Walk on until bytes are needed or the file is done.
    fn scan(&mut self, mut recover: Box<Recover>) {
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

    fn scan_read(&mut self, mut recover: Box<Recover>, result: Result<Bytes, IoError>) {
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
    fn peeked(&mut self, mut recover: Box<Recover>, result: Result<Bytes, IoError>) {
        let next = recover
            .scans
            .get(1)
            .copied()
            .expect("the file after was peeked at");
        let header = result
            .ok()
            .and_then(|bytes| GroupHeader::decode(bytes.get(..GROUP_HEADER_BYTES)?));
        if header.is_some_and(|h| h.file == next && h.at == 0 && h.number == recover.seen_group + 1)
        {
            return self.file_scanned(recover);
        }
        recover.search();
        self.scan(recover);
    }

    fn saw_group(&mut self, recover: &mut Recover, file: u64, group: ScannedGroup) {
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
        recover.proved = recover.proved.max(group.header.proved);
        recover.unproved.push_back(Unproved::Group { file, group });
        self.release(recover);
    }

    /// Take in what is proved by now.
    fn release(&mut self, recover: &mut Recover) {
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
    fn take_in(&mut self, recover: &mut Recover, item: Unproved) {
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

    fn take_group(&mut self, recover: &mut Recover, file: u64, group: &ScannedGroup) {
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
        }
        for entry in &group.entries {
            if let Some(freed) = entry.freed() {
                recover.freed.insert(freed);
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
            let Some(fact) = &entry.fact else {
                recover.damage(
                    name,
                    entry.at,
                    format!("the fact of entry {lsn} is damaged"),
                );
                if lsn > begin && !entry.header.is_control() {
                    recover.stop(format!(
                        "the fact of entry {lsn} at byte {} of {} is damaged",
                        entry.at,
                        name.file_name()
                    ));
                }
                continue;
            };
            if lsn > begin && recover.stop.is_none() && !entry.header.is_control() {
                recover.report.replayed += 1;
                self.out.event(Event::Replay(Entry {
                    lsn,
                    term: entry.header.term,
                    kind: entry.header.kind,
                    fact: fact.clone(),
                    raw: Bytes::new(),
                    raw_len: entry.header.raw_len as usize,
                }));
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
            let own = group.header.entries as usize - group.entries.len();
            if lost_after + own as u64 > begin.0 && own > 0 {
                recover.stop(format!(
                    "entries after {lost_after} at byte {at} of {} are damaged",
                    name.file_name()
                ));
            }
        }
        recover.last_lsn = recover.last_lsn.max(Lsn(group.last_lsn()));
        recover.last_group = group.header.number;
        recover.last_flags = group.header.flags;
        recover.term = recover.term.max(group.header.term);
        if recover.files[&file].trailer.is_none() {
            self.index_group(recover, file, group);
        }
    }

    /// A group of a file without footer: its batches are found in memory.
    fn index_group(&mut self, recover: &Recover, file: u64, group: &ScannedGroup) {
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

    fn file_scanned(&mut self, mut recover: Box<Recover>) {
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

    /// Every file was walked: decide where the log ends.
    fn scanned(&mut self, mut recover: Box<Recover>) {
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
    fn check_files(&mut self, recover: &mut Recover) {
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
    fn plan_files(&mut self, recover: &mut Recover) {
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
            } else if i == 0 && fits {
                ready = true;
            } else {
                recover.mends.push_back(IoOp::Remove {
                    file: FileId::Wal(*n),
                });
            }
        }
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

    fn mend(&mut self, mut recover: Box<Recover>) {
        match recover.mends.pop_front() {
            Some(op) => self.ask(recover, Stage::Mend, op),
            None => self.settle_in(*recover),
        }
    }

    /// The log is whole: prove its end, then say so.
    fn settle_in(&mut self, recover: Recover) {
        self.adopt(&recover);
        self.opening = Some(recover.report);
        if self.write.open.back().is_none_or(|f| f.closed) {
            self.roll();
        }
        self.trim_index();
        self.let_files_go();
        self.arrange_space();
        if recover.last_group > 0 {
            self.write.sync_wanted = true;
            if self
                .write
                .open
                .back()
                .is_some_and(|f| f.groups.is_some() && f.fits_mark())
            {
                self.mark(0);
            }
        }
        self.pump();
    }

    /// The log cannot be written: serve what there is.
    fn give_up(&mut self, mut recover: Box<Recover>) {
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

    fn adopt(&mut self, recover: &Recover) {
        let last = recover.last_lsn;
        self.write.term = recover.term;
        self.write.last = last;
        self.write.durable = last;
        self.write.last_group = recover.last_group;
        self.write.written_group = recover.last_group;
        self.write.last_flags = recover.last_flags;
        self.stats.bytes_read += recover.report.bytes_read;
    }

    /// Say that the log is open once its end is safe.
    pub(crate) fn opened(&mut self) {
        if self.opening.is_none() {
            return;
        }
        let no_space = self.space.has_no_space();
        let file = self.write.open.back().is_some_and(|f| f.exists) || no_space;
        let footers = self.write.open.len() == 1
            || no_space && !self.write.open.iter().any(|f| f.sealing.is_some());
        let synced = self.write.synced.0 >= self.write.written_group
            || no_space && self.unsynced_file().is_none()
            || self.write.open.iter().all(|f| f.groups.is_none());
        if !(file && footers && synced && self.is_settled()) {
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

impl Recover {
    fn snapshot_bytes(&self, file: FileId) -> Option<u64> {
        self.snapshot_files
            .iter()
            .find(|(f, _)| *f == file)
            .map(|(_, bytes)| *bytes)
    }

    fn search(&mut self) {
        self.scanner
            .as_mut()
            .expect("a file is being scanned")
            .search();
    }

    /// No snapshot can be used: the log alone must do, if it is whole.
    fn without_snapshot(&mut self) {
        if !self.files.contains_key(&1) {
            self.stop("the snapshot is damaged and the log before it was freed: restore the snapshot from a copy".to_owned());
        }
    }
}
