//! Sealing: a footer for each file that is full, in order.
//!
//! Absent on purpose: the footer's bytes ([`crate::footer`]); when a file is full ([`crate::write`]).

use std::sync::Arc;

use millstream_batch::ids::PartitionSlot;

use crate::api::Event;
use crate::buffer::AlignedBuf;
use crate::footer::{self, Run, Trailer, footer_bytes};
use crate::index::SealedFile;
use crate::io::{FileId, IoOp};
use crate::log::{Log, Purpose};

impl Log {
    /// Write the footer of the oldest open file once all its groups are written and synced, and the
    /// file after it exists. A footer proves its groups, so it must not reach the disk before them.
    pub(crate) fn seal_files(&mut self) {
        let Some(front) = self.write.open.front() else {
            return;
        };
        let successor = self.write.open.get(1).is_some_and(|f| f.exists);
        let busy = front.unwritten > 0 || front.sealing.is_some() || front.is_syncing;
        if !front.closed || busy || !successor {
            return;
        }
        if front.groups.is_some_and(|(_, last)| front.synced.0 < last) {
            self.sync_closed();
        } else {
            self.write_footer(true);
        }
    }

    /// Sync the oldest file, which has all its groups.
    fn sync_closed(&mut self) {
        let front = self.write.open.front_mut().expect("a file to seal");
        front.is_syncing = true;
        let file = FileId::Wal(front.number);
        let purpose = Purpose::SyncClosed(front.number);
        let buf = Arc::new(AlignedBuf::with_capacity(0));
        self.out.io(
            IoOp::Write {
                file,
                at: 0,
                buf,
                len: 0,
                sync: true,
            },
            purpose,
        );
    }

    pub(crate) fn closed_synced(&mut self, file: u64) {
        let front = self.write.open.front_mut().expect("the file being sealed");
        assert_eq!(front.number, file, "files are sealed in order");
        front.is_syncing = false;
        let (_, last) = front.groups.expect("an empty file needs no sync");
        front.synced = (last, front.last_lsn);
        self.stats.syncs += 1;
        self.note_synced();
        self.pump();
    }

    fn write_footer(&mut self, has_successor: bool) {
        let front = self.write.open.front_mut().expect("a file to seal");
        let (first_group, last_group) = front.groups.unwrap_or((0, 0));
        let mut slots: Vec<_> = front.slots.iter().copied().collect();
        slots.sort_unstable();
        let in_file = |r: &&crate::index::RecentRun| (first_group..=last_group).contains(&r.group);
        let runs_of = |slot: PartitionSlot| -> Option<(PartitionSlot, Vec<Run>)> {
            let index = self.index.slots.get(&slot)?;
            let runs: Vec<Run> = index.runs.iter().filter(in_file).map(|r| r.run).collect();
            (!runs.is_empty()).then_some((slot, runs))
        };
        let runs: Vec<_> = slots.into_iter().filter_map(runs_of).collect();
        let mut trailer = Trailer {
            incarnation: front.incarnation,
            file: front.number,
            file_bytes: front.bytes,
            footer_at: 0,
            directory_at: 0,
            slots: 0,
            has_successor,
            first_group,
            last_group,
            first_lsn: front.first_lsn,
            last_lsn: front.last_lsn,
            directory_sum: 0,
        };
        let total = runs.iter().map(|(_, r)| r.len()).sum();
        let needed = front.end + footer_bytes(runs.len(), total);
        let has_room = needed <= front.bytes;
        assert!(has_room || front.lacks_room, "room for the footer was kept");
        trailer.file_bytes = front.bytes.max(needed);
        let (buf, directory) = footer::build(&mut trailer, &runs);
        let sealed = SealedFile {
            number: front.number,
            bytes: front.bytes,
            incarnation: front.incarnation,
            last_lsn: front.last_lsn,
            last_group,
            directory,
            holding: 0,
        };
        if !has_room {
            // Only a damaged file has no room for it; its index stays in memory.
            for (slot, runs) in runs {
                self.reader.pin_section(sealed.number, slot, runs.into());
            }
            front.synced = (last_group, sealed.last_lsn);
            front.sealing = Some(sealed);
            let file = front.number;
            return self.footer_done(file);
        }
        front.sealing = Some(sealed);
        let len = buf.len();
        let op = IoOp::Write {
            file: FileId::Wal(front.number),
            at: trailer.footer_at,
            buf: Arc::new(buf),
            len,
            sync: true,
        };
        self.out.io(op, Purpose::Footer(trailer.file));
    }

    pub(crate) fn footer_done(&mut self, file: u64) {
        let front = self.write.open.pop_front().expect("the file being sealed");
        assert_eq!(front.number, file, "files are sealed in order");
        self.stats.writes += 1;
        self.stats.syncs += 1;
        let sealed = front.sealing.expect("its footer was in flight");
        let last = sealed.last_lsn;
        self.index.seal(sealed);
        // The footer's sync covered every group of the file.
        if let Some((_, last_group)) = front.groups
            && last_group > self.write.synced.0
        {
            self.write.synced = (last_group, last);
        }
        self.trim_index();
        if self.opening.is_none() {
            self.out.event(Event::Sealed { file, last });
        }
        self.note_synced();
        self.free_files();
        self.pump();
    }
}
