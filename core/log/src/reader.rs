//! What reading keeps: stretches and sections read before, reads in flight, who waits for them.
//!
//! Absent on purpose: which read to make ([`crate::fetch`]).

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use millstream_batch::ids::{Offset, PartitionSlot};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use crate::fetch::Goal;
use crate::footer::Run;
use crate::rescan::Rescan;

/// What share of the memory for reading is for footer sections that are kept. Of the rest, reads in flight
/// and cold reads that are kept have a half each.
const SECTIONS_SHARE: usize = 8;

/// A read in flight, and what it is for.
#[derive(Debug)]
pub(crate) enum Reading {
    Section {
        goal: Goal,
        file: u64,
        at: u64,
    },
    Stretch {
        goal: Goal,
        stretch: Stretch,
    },
    /// Read ahead: nobody waits for it.
    Ahead {
        stretch: Stretch,
    },
    /// The next bytes of a file whose index is made anew.
    Rescan(Rescan),
}

/// A part of one file that holds neighbouring runs of one slot.
#[derive(Clone, Debug)]
pub(crate) struct Stretch {
    pub(crate) file: u64,
    pub(crate) incarnation: u64,
    pub(crate) at: u64,
    pub(crate) len: usize,
    pub(crate) runs: SmallVec<[Run; 4]>,
}

#[derive(Debug)]
struct CachedStretch {
    file: u64,
    at: u64,
    bytes: Bytes,
}

#[derive(Debug)]
struct CachedSection {
    file: u64,
    slot: PartitionSlot,
    runs: Arc<[Run]>,
}

#[derive(Debug, Default)]
pub(crate) struct Reader {
    /// Newest last.
    stretches: VecDeque<CachedStretch>,
    stretch_bytes: usize,
    sections: VecDeque<CachedSection>,
    section_bytes: usize,
    /// Sections that no footer on disk has.
    pinned: FxHashMap<(u64, PartitionSlot), Arc<[Run]>>,
    in_flight: FxHashMap<u64, u32>,
    /// Files whose index is being made anew, with who waits for it.
    pub(crate) rescans: FxHashMap<u64, Vec<Goal>>,
    /// Where a slot's last cold fetch ended: going on from there is reading in sequence.
    pub(crate) cold_ends: FxHashMap<PartitionSlot, Offset>,
    /// `(file, at, length)` of reads ahead in flight.
    pub(crate) ahead: SmallVec<[(u64, u64, usize); 8]>,
    /// Bytes of stretches being read.
    pub(crate) reading_bytes: usize,
    /// Wait until fewer are.
    pub(crate) queued: VecDeque<Goal>,
    /// Wait for a read ahead; all are looked at again when one is done.
    pub(crate) waiting: Vec<Goal>,
    /// Entries were lost to damage: a gap between batches may be one of them.
    pub(crate) lost: bool,
    sections_max: usize,
    /// Of stretches kept, and of those being read.
    stretches_max: usize,
}

impl Reader {
    pub(crate) fn new(bytes_max: usize) -> Self {
        let sections_max = bytes_max / SECTIONS_SHARE;
        Self {
            sections_max,
            stretches_max: (bytes_max - sections_max) / 2,
            ..Self::default()
        }
    }

    pub(crate) fn is_reading(&self, file: u64) -> bool {
        self.in_flight.contains_key(&file)
    }

    /// Whether a read of so many bytes may begin. One may in any case.
    pub(crate) fn has_room(&self, len: usize) -> bool {
        self.reading_bytes == 0 || self.reading_bytes + len <= self.stretches_max
    }

    pub(crate) fn cache_bytes(&self) -> usize {
        self.stretch_bytes + self.section_bytes
    }

    /// A file is freed.
    pub(crate) fn forget(&mut self, file: u64) {
        self.pinned.retain(|(f, _), _| *f != file);
        self.stretches.retain(|s| s.file != file);
        self.sections.retain(|s| s.file != file);
        self.stretch_bytes = self.stretches.iter().map(|s| s.bytes.len()).sum();
        self.section_bytes = self
            .sections
            .iter()
            .map(|s| s.runs.len() * size_of::<Run>())
            .sum();
    }

    pub(crate) fn pin_section(&mut self, file: u64, slot: PartitionSlot, runs: Arc<[Run]>) {
        self.pinned.insert((file, slot), runs);
    }

    pub(crate) fn section(&mut self, file: u64, slot: PartitionSlot) -> Option<Arc<[Run]>> {
        if let Some(runs) = self.pinned.get(&(file, slot)) {
            return Some(Arc::clone(runs));
        }
        let i = self
            .sections
            .iter()
            .rposition(|s| s.file == file && s.slot == slot)?;
        let section = self.sections.remove(i)?;
        let runs = Arc::clone(&section.runs);
        self.sections.push_back(section);
        Some(runs)
    }

    pub(crate) fn keep_section(&mut self, file: u64, slot: PartitionSlot, runs: Arc<[Run]>) {
        self.section_bytes += runs.len() * size_of::<Run>();
        self.sections.push_back(CachedSection { file, slot, runs });
        while self.section_bytes > self.sections_max && self.sections.len() > 1 {
            let Some(old) = self.sections.pop_front() else {
                break;
            };
            self.section_bytes -= old.runs.len() * size_of::<Run>();
        }
    }

    /// A stretch read before that has at least the first wanted run; `wanted` becomes what it has.
    pub(crate) fn stretch(&mut self, wanted: &mut Stretch) -> Option<Bytes> {
        let has = |s: &CachedStretch, run: &Run| within(run, s.at, s.bytes.len());
        let covers = |s: &CachedStretch| s.file == wanted.file && has(s, &wanted.runs[0]);
        let i = self.stretches.iter().rposition(covers)?;
        let found = self.stretches.remove(i)?;
        wanted.runs.retain(|run| has(&found, run));
        wanted.at = found.at;
        wanted.len = found.bytes.len();
        let bytes = found.bytes.clone();
        self.stretches.push_back(found);
        Some(bytes)
    }

    pub(crate) fn keep_stretch(&mut self, file: u64, at: u64, bytes: Bytes) {
        self.stretch_bytes += bytes.len();
        self.stretches.push_back(CachedStretch { file, at, bytes });
        while self.stretch_bytes > self.stretches_max && self.stretches.len() > 1 {
            let Some(old) = self.stretches.pop_front() else {
                break;
            };
            self.stretch_bytes -= old.bytes.len();
        }
    }

    /// Whether the first wanted run is being read ahead.
    pub(crate) fn is_ahead(&self, wanted: &Stretch) -> bool {
        let covers = |(file, at, len): &(u64, u64, usize)| {
            *file == wanted.file && within(&wanted.runs[0], *at, *len)
        };
        self.ahead.iter().any(covers)
    }

    pub(crate) fn began(&mut self, file: u64) {
        *self.in_flight.entry(file).or_default() += 1;
    }

    pub(crate) fn ended(&mut self, file: u64) {
        if let Some(count) = self.in_flight.get_mut(&file) {
            *count -= 1;
            if *count == 0 {
                self.in_flight.remove(&file);
            }
        }
    }
}

/// Whether a run lies in `len` bytes from `at` on.
fn within(run: &Run, at: u64, len: usize) -> bool {
    at <= run.at && run.at + u64::from(run.len) <= at + len as u64
}
