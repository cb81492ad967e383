//! What reading keeps: stretches and sections read before, reads in flight, who waits for them.
//!
//! Absent on purpose: which read to make ([`crate::fetch`]).

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use millstream_batch::ids::{Offset, PartitionSlot};
use millstream_batch::limits::BLOCK_BYTES;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use crate::fetch::Goal;
use crate::footer::Run;
use crate::rescan::Rescan;
use crate::walk::READ_BYTES_MAX;

/// Of the memory for reading, in sixteenths: footer sections that are kept, cold reads that are kept, and
/// reads in flight. The rest is for memory that is larger than what was read into it.
const SECTIONS_SHARE: usize = 2;
const KEPT_SHARE: usize = 4;
const READING_SHARE: usize = 7;

/// So far past where a sequential reader stands the disk is read ahead, in bytes and in reads.
pub(crate) const AHEAD_BYTES: usize = 2 << 20;
pub(crate) const AHEAD_READS: usize = 8;
/// A stretch that was read ahead and not asked for while so many times the memory for them was read is
/// given up: its reader went away.
const PATIENCE: u64 = 16;
/// Stretches kept and read ahead are looked through one by one.
const STRETCHES_MAX: usize = 512;
const READS_AHEAD_MAX: usize = 64;

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

impl Stretch {
    /// Whether nothing of it lies behind the run, which is one of its own.
    pub(crate) fn ends_with(&self, run: &Run) -> bool {
        (run.at + u64::from(run.len)).next_multiple_of(BLOCK_BYTES as u64)
            == self.at + self.len as u64
    }
}

#[derive(Debug)]
struct CachedStretch {
    file: u64,
    at: u64,
    bytes: Bytes,
    /// Somebody who reads in sequence has not taken the last of it yet: how much had been read when it came.
    expected: Option<u64>,
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
    /// Of all stretches ever kept.
    kept_bytes: u64,
    sections: VecDeque<CachedSection>,
    section_bytes: usize,
    /// Sections that no footer on disk has.
    pinned: FxHashMap<(u64, PartitionSlot), Arc<[Run]>>,
    in_flight: FxHashMap<u64, u32>,
    /// Files whose index is being made anew, with who waits for it.
    pub(crate) rescans: FxHashMap<u64, Vec<Goal>>,
    /// The last offset that a slot's last cold fetch found: going on behind it is reading in sequence.
    pub(crate) cold_ends: FxHashMap<PartitionSlot, Offset>,
    /// `(file, at, length)` of reads ahead in flight.
    pub(crate) ahead: SmallVec<[(u64, u64, usize); 8]>,
    /// Bytes of stretches being read.
    pub(crate) reading_bytes: usize,
    /// Wait until fewer are.
    pub(crate) queued: VecDeque<Goal>,
    /// Wait for a read ahead of this place in a file.
    waiting: Vec<(Goal, u64, u64)>,
    /// Entries were lost to damage: a gap between batches may be one of them.
    pub(crate) lost: bool,
    sections_max: usize,
    /// Of stretches kept.
    kept_max: usize,
    /// Of those being read.
    reading_max: usize,
}

impl Reader {
    pub(crate) fn new(bytes_max: usize) -> Self {
        let share = |sixteenths: usize| bytes_max / 16 * sixteenths;
        Self {
            sections_max: share(SECTIONS_SHARE),
            kept_max: share(KEPT_SHARE),
            reading_max: share(READING_SHARE),
            ..Self::default()
        }
    }

    pub(crate) fn is_reading(&self, file: u64) -> bool {
        self.in_flight.contains_key(&file)
    }

    /// Whether a read of so many bytes may begin. One may in any case.
    pub(crate) fn has_room(&self, len: usize) -> bool {
        self.reading_bytes == 0 || self.reading_bytes + len <= self.reading_max
    }

    /// Whether to read so many bytes ahead: only what can be kept until it is asked for, beside what others
    /// read meanwhile, and only while nobody waits to read. One read may be made in any case.
    pub(crate) fn has_room_ahead(&self, len: usize) -> bool {
        let kept = self.stretches.iter().filter(|s| self.is_expected(s));
        let kept: usize = kept.map(|s| s.bytes.len()).sum();
        let reading: usize = self.ahead.iter().map(|(_, _, len)| len).sum();
        let (ahead, others) = (kept + reading, READ_BYTES_MAX as usize);
        self.queued.is_empty()
            && self.has_room(len)
            && self.ahead.len() < READS_AHEAD_MAX
            && (ahead == 0 || ahead + len + others <= self.kept_max)
    }

    fn is_expected(&self, stretch: &CachedStretch) -> bool {
        let patience = PATIENCE * self.kept_max as u64;
        stretch
            .expected
            .is_some_and(|since| self.kept_bytes - since < patience)
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
        let i = self.kept(wanted)?;
        let found = self.stretches.remove(i)?;
        wanted
            .runs
            .retain(|run| within(run, found.at, found.bytes.len()));
        wanted.at = found.at;
        wanted.len = found.bytes.len();
        let bytes = found.bytes.clone();
        self.stretches.push_back(found);
        Some(bytes)
    }

    fn kept(&self, wanted: &Stretch) -> Option<usize> {
        let covers = |s: &CachedStretch| {
            s.file == wanted.file && within(&wanted.runs[0], s.at, s.bytes.len())
        };
        self.stretches.iter().rposition(covers)
    }

    /// Of a stretch, so much was taken: all up to its end, or less by one who reads in sequence.
    pub(crate) fn used(&mut self, stretch: &Stretch, whole: bool, sequential: bool) {
        let is_it = |s: &&mut CachedStretch| s.file == stretch.file && s.at == stretch.at;
        if let Some(kept) = self.stretches.iter_mut().rev().find(is_it) {
            kept.expected = match kept.expected {
                _ if whole => None,
                None if sequential => Some(self.kept_bytes),
                as_before => as_before,
            };
        }
    }

    /// Keep what was read ahead until it is asked for.
    pub(crate) fn expect_stretch(&mut self, file: u64, at: u64, bytes: Bytes) {
        self.keep_stretch(file, at, bytes);
        if let Some(newest) = self.stretches.back_mut() {
            newest.expected = Some(self.kept_bytes);
        }
    }

    /// Keep what was read. What nobody expects goes first.
    pub(crate) fn keep_stretch(&mut self, file: u64, at: u64, bytes: Bytes) {
        self.stretch_bytes += bytes.len();
        self.kept_bytes += bytes.len() as u64;
        self.stretches.push_back(CachedStretch {
            file,
            at,
            bytes,
            expected: None,
        });
        let is_full = |reader: &Self| {
            reader.stretch_bytes > reader.kept_max || reader.stretches.len() > STRETCHES_MAX
        };
        while is_full(self) && self.stretches.len() > 1 {
            let others = self.stretches.iter().take(self.stretches.len() - 1);
            let oldest = others.map(|s| self.is_expected(s)).position(|is| !is);
            let Some(old) = self.stretches.remove(oldest.unwrap_or(0)) else {
                break;
            };
            self.stretch_bytes -= old.bytes.len();
        }
    }

    /// The last of those runs, from the first on, that were read together or are being read ahead.
    pub(crate) fn here_or_ahead(&self, wanted: &Stretch) -> Option<Run> {
        let kept = self.kept(wanted).map(|i| &self.stretches[i]);
        let (at, len) = kept
            .map(|s| (s.at, s.bytes.len()))
            .or_else(|| self.ahead_of(wanted))?;
        let has = |run: &&Run| within(run, at, len);
        wanted.runs.iter().take_while(has).last().copied()
    }

    /// Whether the first wanted run is being read ahead.
    pub(crate) fn is_ahead(&self, wanted: &Stretch) -> bool {
        self.ahead_of(wanted).is_some()
    }

    fn ahead_of(&self, wanted: &Stretch) -> Option<(u64, usize)> {
        let covers = |(file, at, len): &&(u64, u64, usize)| {
            *file == wanted.file && within(&wanted.runs[0], *at, *len)
        };
        let (_, at, len) = self.ahead.iter().find(covers)?;
        Some((*at, *len))
    }

    /// Wait until the read ahead of the first wanted run is done.
    pub(crate) fn wait(&mut self, goal: Goal, wanted: &Stretch) {
        self.waiting.push((goal, wanted.file, wanted.runs[0].at));
    }

    /// A read ahead is done: who waited for it.
    pub(crate) fn done_ahead(&mut self, stretch: &Stretch) -> Vec<Goal> {
        let this = (stretch.file, stretch.at, stretch.len);
        self.ahead.retain(|ahead| *ahead != this);
        let to = stretch.at + stretch.len as u64;
        let woken = self.waiting.extract_if(.., |(_, file, at)| {
            *file == stretch.file && (stretch.at..to).contains(at)
        });
        woken.map(|(goal, _, _)| goal).collect()
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
