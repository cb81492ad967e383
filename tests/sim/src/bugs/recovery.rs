//! Faults around a restart: what is on disk is not what it should be.

use std::collections::BTreeMap;

use millstream_batch::ids::Lsn;
use millstream_log::buffer::AlignedBuf;
use millstream_log::format::{
    ENTRY_CONTROL, ENTRY_HEADER_BYTES, ENTRY_MORE, EntryHeader, GROUP_CLEAN, GROUP_HEADER_BYTES,
    GroupHeader, checksum,
};
use millstream_log::io::{FileId, Io, IoDone, IoId, IoOp, IoOutput};
use millstream_machine::fact::kind;

use crate::disk::SimDisk;
use crate::layer::{Layer, Passed};

/// At a restart the oldest WAL file, of several, is gone.
#[derive(Debug)]
pub(super) struct RecycledEarly;

impl Layer for RecycledEarly {
    fn restarting(&mut self, disk: &mut SimDisk) {
        let files = wal_files(disk);
        if files.len() > 2 {
            disk.lose(files[0]);
        }
    }
}

/// At a restart the newest group that has one after it is zeroed, with that one.
#[derive(Debug)]
pub(super) struct CutTooMuch;

impl Layer for CutTooMuch {
    fn restarting(&mut self, disk: &mut SimDisk) {
        for file in wal_files(disk).into_iter().rev() {
            let groups = groups(disk, file);
            let with_entries = groups.iter().rposition(|(_, group)| group.entries > 0);
            if let Some(at) = with_entries {
                for (at, group) in &groups[at..] {
                    zero(disk, file, *at, group.span());
                }
                return;
            }
        }
    }
}

/// What a start read and writes anew is only synced.
#[derive(Debug, Default)]
pub(super) struct OnlySynced {
    asked: BTreeMap<IoId, (FileId, u64)>,
    /// Last read, and from where.
    read: Option<(FileId, u64, AlignedBuf)>,
}

impl Layer for OnlySynced {
    fn submit(&mut self, mut io: Io, _disk: &mut SimDisk) -> Passed {
        match &mut io.op {
            IoOp::Read { file, at, .. } => {
                self.asked.insert(io.id, (*file, *at));
            }
            IoOp::Write {
                file, at, buf, len, ..
            } => {
                let was_read = |(f, a, bytes): &(FileId, u64, AlignedBuf)| {
                    (f, a) == (file, at) && bytes[..] == buf[..*len]
                };
                if self.read.as_ref().is_some_and(was_read) {
                    *len = 0;
                }
            }
            _ => {}
        }
        Passed::On(io)
    }

    fn done(&mut self, done: IoDone, _disk: &mut SimDisk) -> IoDone {
        if let (Some((file, at)), Ok(IoOutput::Read(bytes))) =
            (self.asked.remove(&done.id), &done.result)
        {
            self.read = Some((file, at, AlignedBuf::copy_of(bytes)));
        }
        done
    }
}

/// At a restart the last group says that the log was closed after it.
#[derive(Debug)]
pub(super) struct LooksClean;

impl Layer for LooksClean {
    fn restarting(&mut self, disk: &mut SimDisk) {
        for file in wal_files(disk).into_iter().rev() {
            if let Some((at, group)) = groups(disk, file).last() {
                let clean = GroupHeader {
                    flags: group.flags | GROUP_CLEAN,
                    ..*group
                };
                let mut head = [0; GROUP_HEADER_BYTES];
                clean.encode(&mut head);
                write(disk, file, *at, &head);
                return;
            }
        }
    }
}

/// The disk takes snapshots at once and sits on WAL writes: what it answered for is not there.
#[derive(Debug, Default)]
pub(super) struct SnapshotFirst {
    published: bool,
}

impl Layer for SnapshotFirst {
    fn submit(&mut self, io: Io, _disk: &mut SimDisk) -> Passed {
        match &io.op {
            IoOp::WriteFile {
                file: FileId::Snapshot { .. },
                ..
            } => self.published = true,
            IoOp::Write {
                file: FileId::Wal(_),
                len,
                ..
            } if self.published && *len > 0 => {
                return Passed::Answered(IoDone {
                    id: io.id,
                    result: Ok(IoOutput::Done),
                });
            }
            _ => {}
        }
        Passed::On(io)
    }

    fn restarting(&mut self, _disk: &mut SimDisk) {
        self.published = false;
    }
}

/// Parts of snapshots are answered for and never written.
#[derive(Debug)]
pub(super) struct LostPart;

impl Layer for LostPart {
    fn submit(&mut self, io: Io, _disk: &mut SimDisk) -> Passed {
        match &io.op {
            IoOp::WriteFile {
                file: FileId::Snapshot { part, .. },
                ..
            } if part % 2 == 0 => Passed::Answered(IoDone {
                id: io.id,
                result: Ok(IoOutput::Done),
            }),
            _ => Passed::On(io),
        }
    }
}

/// Before a restart a fact in the log is made another one, with every checksum in order.
#[derive(Debug)]
pub(super) struct ChangedFact;

impl Layer for ChangedFact {
    fn restarting(&mut self, disk: &mut SimDisk) {
        for file in wal_files(disk).into_iter().rev() {
            for (at, group) in groups(disk, file).into_iter().rev() {
                if change(disk, file, at, &group) {
                    return;
                }
            }
        }
    }
}

/// Before a restart the newest unit of several facts loses all but its first, with every checksum in order.
#[derive(Debug)]
pub(super) struct TornUnit;

impl Layer for TornUnit {
    fn restarting(&mut self, disk: &mut SimDisk) {
        for file in wal_files(disk).into_iter().rev() {
            for (at, group) in groups(disk, file).into_iter().rev() {
                if tear(disk, file, at, &group) {
                    return;
                }
            }
        }
    }
}

/// End the group's first unit of several entries behind the first of them, and make of the others what the
/// log writes for itself.
fn tear(disk: &mut SimDisk, file: FileId, at: u64, group: &GroupHeader) -> bool {
    let Some(bytes) = disk.durable(file).map(<[u8]>::to_vec) else {
        return false;
    };
    let mut place = at as usize + GROUP_HEADER_BYTES;
    let mut torn = None;
    for _ in 0..group.entries {
        let Some(entry) = EntryHeader::decode(group.incarnation, &bytes[place..]) else {
            return false;
        };
        let (flags, lsn) = match torn {
            None if entry.has_more() => (entry.flags & !ENTRY_MORE, entry.lsn),
            Some(unit) if unit == entry.lsn => (ENTRY_CONTROL, entry.lsn.next()),
            Some(_) => break,
            None => (entry.flags, entry.lsn),
        };
        if (flags, lsn) != (entry.flags, entry.lsn) {
            torn.get_or_insert(entry.lsn);
            let mut head = [0; ENTRY_HEADER_BYTES];
            let changed = EntryHeader {
                flags,
                lsn,
                ..entry
            };
            changed.encode(group.incarnation, &mut head);
            write(disk, file, place as u64, &head);
        }
        place += entry.len();
    }
    torn.is_some()
}

/// Make a batch's producer another one: the last bit of its id.
fn change(disk: &mut SimDisk, file: FileId, at: u64, group: &GroupHeader) -> bool {
    let Some(bytes) = disk.durable(file) else {
        return false;
    };
    let mut place = at as usize + GROUP_HEADER_BYTES;
    for _ in 0..group.entries {
        let Some(entry) = EntryHeader::decode(group.incarnation, &bytes[place..]) else {
            return false;
        };
        if entry.kind == kind::BATCH_APPENDED && entry.lsn > Lsn(0) {
            let mut fact = bytes[place..][entry.fact_range()].to_vec();
            let mut meta = millstream_machine::Fact::decode(entry.kind, &fact)
                .expect("a fact that was written");
            if let millstream_machine::Fact::BatchAppended(batch) = &mut meta {
                batch.bytes ^= 1;
            }
            fact.clear();
            meta.encode_into(&mut fact);
            let mut head = [0; ENTRY_HEADER_BYTES];
            let changed = EntryHeader {
                fact_sum: checksum(group.incarnation, &fact),
                ..entry
            };
            changed.encode(group.incarnation, &mut head);
            let fact_at = place + entry.fact_range().start;
            write(disk, file, place as u64, &head);
            write(disk, file, fact_at as u64, &fact);
            return true;
        }
        place += entry.len();
    }
    false
}

fn wal_files(disk: &SimDisk) -> Vec<FileId> {
    let mut files: Vec<FileId> = disk
        .files()
        .into_iter()
        .map(|(file, _)| file)
        .filter(|file| matches!(file, FileId::Wal(_)))
        .collect();
    files.sort_unstable();
    files
}

/// The groups of a file, with where they begin.
fn groups(disk: &SimDisk, file: FileId) -> Vec<(u64, GroupHeader)> {
    let bytes = disk.durable(file).unwrap_or_default();
    let mut groups = Vec::new();
    let mut at = 0;
    let mut incarnation = None;
    while let Some(group) = bytes.get(at as usize..).and_then(GroupHeader::decode) {
        if *incarnation.get_or_insert(group.incarnation) != group.incarnation || group.at != at {
            break;
        }
        groups.push((at, group));
        at += group.span();
    }
    groups
}

fn zero(disk: &mut SimDisk, file: FileId, at: u64, len: u64) {
    write(disk, file, at, &vec![0; len as usize]);
}

/// Changes bytes at rest, bit by bit.
fn write(disk: &mut SimDisk, file: FileId, at: u64, bytes: &[u8]) {
    let Some(old) = disk.durable(file) else {
        return;
    };
    let from = at as usize;
    let old = old[from..(from + bytes.len()).min(old.len())].to_vec();
    for (i, (before, after)) in old.iter().zip(bytes).enumerate() {
        for bit in 0..8 {
            if (before ^ after) >> bit & 1 == 1 {
                disk.flip_bit(file, (at + i as u64) * 8 + bit);
            }
        }
    }
}
