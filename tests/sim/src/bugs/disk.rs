//! Disks that lie: syncs that are none, writes that vanish, reads of something else.

use std::collections::BTreeMap;

use millstream_log::buffer::AlignedBuf;
use millstream_log::format::{
    ENTRY_HEADER_BYTES, EntryHeader, GROUP_HEADER_BYTES, GROUP_UNSYNCED, GroupHeader, checksum,
};
use millstream_log::io::{FileId, Io, IoDone, IoId, IoOp, IoOutput};

use crate::disk::SimDisk;
use crate::layer::{Layer, Passed};

fn is_wal_write(io: &Io) -> bool {
    matches!(&io.op, IoOp::Write { file: FileId::Wal(_), len, .. } if *len > 0)
}

#[derive(Debug)]
pub(super) struct NoSync;

impl Layer for NoSync {
    fn submit(&mut self, mut io: Io, _disk: &mut SimDisk) -> Passed {
        if let IoOp::Write { sync, .. } = &mut io.op {
            *sync = false;
        }
        Passed::On(io)
    }
}

/// Under `flush = interval` groups are written and syncs are answered without being done: who waits for
/// one goes on when what it waits for is only written.
#[derive(Debug)]
pub(super) struct SyncToCome;

impl Layer for SyncToCome {
    fn submit(&mut self, mut io: Io, _disk: &mut SimDisk) -> Passed {
        if let IoOp::Write {
            file: FileId::Wal(_),
            buf,
            len,
            sync,
            ..
        } = &mut io.op
        {
            if *len == 0 {
                return Passed::Answered(IoDone {
                    id: io.id,
                    result: Ok(IoOutput::Done),
                });
            }
            let unsynced = |group: GroupHeader| group.flags & GROUP_UNSYNCED != 0;
            *sync &= !GroupHeader::decode(&buf[..*len]).is_some_and(unsynced);
        }
        Passed::On(io)
    }
}

/// The disk fails a sync now and then, and the failure is hidden.
#[derive(Debug, Default)]
pub(super) struct RetriedSync {
    writes: u64,
}

impl Layer for RetriedSync {
    fn submit(&mut self, io: Io, disk: &mut SimDisk) -> Passed {
        if is_wal_write(&io) {
            self.writes += 1;
            if self.writes.is_multiple_of(20) {
                disk.fail_next_sync();
            }
        }
        Passed::On(io)
    }

    fn done(&mut self, mut done: IoDone, _disk: &mut SimDisk) -> IoDone {
        if done
            .result
            .as_ref()
            .is_err_and(|error| error.message.contains("sync"))
        {
            done.result = Ok(IoOutput::Done);
        }
        done
    }
}

#[derive(Debug, Default)]
pub(super) struct DroppedWrite {
    writes: u64,
}

impl Layer for DroppedWrite {
    fn submit(&mut self, io: Io, _disk: &mut SimDisk) -> Passed {
        if is_wal_write(&io) {
            self.writes += 1;
            if self.writes.is_multiple_of(40) {
                return Passed::Answered(IoDone {
                    id: io.id,
                    result: Ok(IoOutput::Done),
                });
            }
        }
        Passed::On(io)
    }
}

/// Every so often a read of a WAL file gives what the file's start holds.
#[derive(Debug, Default)]
pub(super) struct StaleRead {
    reads: u64,
}

impl Layer for StaleRead {
    fn submit(&mut self, mut io: Io, _disk: &mut SimDisk) -> Passed {
        if let IoOp::Read {
            file: FileId::Wal(_),
            at,
            ..
        } = &mut io.op
            && *at > 0
        {
            self.reads += 1;
            if self.reads.is_multiple_of(7) {
                *at = 0;
            }
        }
        Passed::On(io)
    }
}

/// A bit of a batch flips, and every checksum over it is made to fit: as if none were looked at.
#[derive(Debug, Default)]
pub(super) struct UncheckedRot {
    reads: BTreeMap<IoId, ()>,
}

impl Layer for UncheckedRot {
    fn submit(&mut self, io: Io, _disk: &mut SimDisk) -> Passed {
        if let IoOp::Read {
            file: FileId::Wal(_),
            ..
        } = &io.op
        {
            self.reads.insert(io.id, ());
        }
        Passed::On(io)
    }

    fn done(&mut self, mut done: IoDone, _disk: &mut SimDisk) -> IoDone {
        if self.reads.remove(&done.id).is_some()
            && let Ok(IoOutput::Read(buf)) = &mut done.result
        {
            rot(buf);
        }
        done
    }
}

/// Flip a bit in the first batch of each group that lies whole in the buffer.
fn rot(buf: &mut AlignedBuf) {
    for at in (0..buf.len()).step_by(millstream_batch::limits::BLOCK_BYTES) {
        let Some(group) = GroupHeader::decode(&buf[at..]) else {
            continue;
        };
        let from = at + GROUP_HEADER_BYTES;
        let Some(entry) = buf
            .get(from..)
            .and_then(|bytes| EntryHeader::decode(group.incarnation, bytes))
        else {
            continue;
        };
        let raw = entry.raw_range();
        if entry.raw_len == 0 || from + raw.end > buf.len() {
            continue;
        }
        buf[from + raw.start + 8] ^= 1;
        let changed = EntryHeader {
            raw_sum: raw_sum(group.incarnation, &buf[from..][raw]),
            ..entry
        };
        changed.encode(group.incarnation, &mut buf[from..from + ENTRY_HEADER_BYTES]);
    }
}

fn raw_sum(incarnation: u64, raw: &[u8]) -> u64 {
    checksum(incarnation, raw)
}
