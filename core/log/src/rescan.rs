//! Making the index of a sealed file anew, when a section of its footer turns out to be damaged.
//!
//! The file is walked once, its runs are kept in memory until it is freed or the process ends.
//!
//! Absent on purpose: mending the footer on disk. A start that finds the directory damaged does that.

use std::collections::BTreeMap;

use bytes::Bytes;
use millstream_batch::ids::PartitionSlot;

use crate::api::FetchError;
use crate::fetch::Goal;
use crate::footer::Run;
use crate::io::{FileId, IoError, IoOp};
use crate::log::{Log, Purpose};
use crate::reader::Reading;
use crate::scan::{Scanner, Step};

/// A file being walked.
#[derive(Debug)]
pub(crate) struct Rescan {
    scanner: Scanner,
    runs: BTreeMap<PartitionSlot, Vec<Run>>,
    last_group: u64,
}

impl Log {
    /// Walk the file, then go on with the goal.
    pub(crate) fn rescan(&mut self, goal: Goal, file: u64) {
        if let Some(waiting) = self.reader.rescans.get_mut(&file) {
            waiting.push(goal);
            return;
        }
        self.reader.rescans.insert(file, vec![goal]);
        let sealed = &self.index.sealed[&file];
        let scanner = Scanner::new(file, sealed.bytes, Some(sealed.incarnation), 0);
        self.rescan_on(Rescan {
            scanner,
            runs: BTreeMap::new(),
            last_group: 0,
        });
    }

    fn rescan_on(&mut self, mut rescan: Rescan) {
        let file = rescan.scanner.file();
        loop {
            match rescan.scanner.step() {
                Step::Read { at, len } => {
                    self.reader.began(file);
                    let op = IoOp::Read {
                        file: FileId::Wal(file),
                        at,
                        len,
                    };
                    let purpose = Purpose::Read(Box::new(Reading::Rescan(rescan)));
                    return self.out.io(op, purpose);
                }
                Step::Group(group) => {
                    let number = group.header.number;
                    let hole = rescan.last_group > 0 && number != rescan.last_group + 1;
                    self.reader.lost |= hole || group.broken_at.is_some();
                    rescan.last_group = number;
                    for (slot, run) in group.runs() {
                        rescan.runs.entry(slot).or_default().push(run);
                    }
                }
                Step::Break { .. } => rescan.scanner.search(),
                Step::End => break,
            }
        }
        if let Some(sealed) = self.index.sealed.get(&file) {
            for summary in &sealed.directory {
                let runs = rescan.runs.remove(&summary.slot).unwrap_or_default();
                self.reader.pin_section(file, summary.slot, runs.into());
            }
        }
        for goal in self.reader.rescans.remove(&file).unwrap_or_default() {
            self.pursue(goal, true);
        }
    }

    pub(crate) fn rescan_read(&mut self, mut rescan: Rescan, result: Result<Bytes, IoError>) {
        let file = rescan.scanner.file();
        self.reader.ended(file);
        match result {
            Ok(bytes) => {
                let at = rescan.scanner.at();
                rescan.scanner.feed(at, bytes);
                self.rescan_on(rescan);
            }
            Err(e) => {
                for goal in self.reader.rescans.remove(&file).unwrap_or_default() {
                    self.answer_error(&goal, FetchError::Io(e.clone()));
                }
            }
        }
    }
}
