//! Where the batches of each slot are: in recent groups (in memory) or in sealed files (summaries in
//! memory, sections on disk). Also the hot tail: the written buffers themselves.
//!
//! ```text
//!  slot:   files [k₀ k₁ …]   sealed files that hold batches at or past its start
//!          runs  [r r r r]   of groups that are hot or lie in a file not yet sealed
//!  groups: front ──────────────────────────────────────── newest durable group
//!                 cold, unsealed files │ hot (buffer kept)
//! ```
//!
//! Absent on purpose: reading ([`crate::fetch`]), and anything not yet durable.

use std::cell::OnceCell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use millstream_batch::ids::{Lsn, Offset, PartitionSlot};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use crate::buffer::AlignedBuf;
use crate::footer::{Run, Summary};
use crate::group::{BufferPool, Group, SlotRun};

/// Lets `Bytes` share a written buffer.
struct Shared(Arc<AlignedBuf>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// A run, and the group it is in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecentRun {
    pub(crate) group: u64,
    pub(crate) run: Run,
}

#[derive(Debug, Default)]
pub(crate) struct SlotIndex {
    pub(crate) start: Offset,
    pub(crate) dropped: bool,
    pub(crate) runs: VecDeque<RecentRun>,
    /// Sealed files that hold batches of this slot not below `start`, oldest first.
    pub(crate) files: VecDeque<u64>,
}

/// A group whose runs are in memory.
#[derive(Debug)]
pub(crate) struct RecentGroup {
    number: u64,
    pub(crate) file: u64,
    pub(crate) at: u64,
    slots: SmallVec<[PartitionSlot; 4]>,
    hot: Option<Hot>,
}

/// A written buffer, and what readers share of it: made for the first of them, since most groups have none.
#[derive(Debug)]
struct Hot {
    buf: Arc<AlignedBuf>,
    shared: OnceCell<Bytes>,
}

impl RecentGroup {
    /// The group's bytes when they are still in memory.
    pub(crate) fn hot(&self) -> Option<&Bytes> {
        let hot = self.hot.as_ref()?;
        let share = || Bytes::from_owner(Shared(Arc::clone(&hot.buf)));
        Some(hot.shared.get_or_init(share))
    }
}

/// A file with a footer.
#[derive(Debug)]
pub(crate) struct SealedFile {
    pub(crate) number: u64,
    pub(crate) bytes: u64,
    pub(crate) incarnation: u64,
    pub(crate) last_lsn: Lsn,
    pub(crate) last_group: u64,
    /// Sorted by slot.
    pub(crate) directory: Vec<Summary>,
    /// Slots whose batches here are at or past their start.
    pub(crate) holding: usize,
}

impl SealedFile {
    pub(crate) fn summary(&self, slot: PartitionSlot) -> Option<&Summary> {
        let i = self
            .directory
            .binary_search_by_key(&slot, |s| s.slot)
            .ok()?;
        Some(&self.directory[i])
    }
}

/// Where an offset is to be looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// From this run of `SlotIndex::runs` on.
    Recent(usize),
    /// In this sealed file's section.
    Sealed(u64),
    Nowhere,
}

#[derive(Debug, Default)]
pub(crate) struct Index {
    pub(crate) slots: FxHashMap<PartitionSlot, SlotIndex>,
    pub(crate) sealed: BTreeMap<u64, SealedFile>,
    /// By number; numbers lost to damage are not there.
    groups: VecDeque<RecentGroup>,
    /// So many of them, the oldest, are not hot; all after them are.
    cold: usize,
    /// Bytes of hot groups.
    hot_bytes: usize,
}

impl Index {
    /// Make a durable group visible. Its buffer becomes part of the hot tail; its list of runs is free.
    pub(crate) fn add_group(&mut self, group: Group) -> Vec<SlotRun> {
        let Group {
            place, buf, runs, ..
        } = group;
        self.hot_bytes += buf.len();
        let shared = OnceCell::new();
        let hot = Some(Hot { buf, shared });
        self.add(place.number, place.file, place.at, &runs, hot);
        runs
    }

    /// Make a group found at start visible.
    pub(crate) fn add_cold(&mut self, number: u64, file: u64, at: u64, runs: &[SlotRun]) {
        self.add(number, file, at, runs, None);
        self.cold = self.groups.len();
    }

    fn add(&mut self, number: u64, file: u64, at: u64, runs: &[SlotRun], hot: Option<Hot>) {
        for (slot, run) in runs {
            let index = self.slots.entry(*slot).or_default();
            index.runs.push_back(RecentRun {
                group: number,
                run: *run,
            });
        }
        let slots = runs.iter().map(|(slot, _)| *slot).collect();
        self.groups.push_back(RecentGroup {
            number,
            file,
            at,
            slots,
            hot,
        });
    }

    pub(crate) fn group(&self, number: u64) -> &RecentGroup {
        // Without damage numbers have no gap, and the first guess is right.
        let first = self.groups.front().map_or(0, |g| g.number);
        let guess = usize::try_from(number.wrapping_sub(first)).unwrap_or(usize::MAX);
        if let Some(group) = self.groups.get(guess)
            && group.number == number
        {
            return group;
        }
        let at = self.groups.partition_point(|g| g.number < number);
        &self.groups[at]
    }

    /// Forget the recent groups of a file found freed at start that had no footer.
    pub(crate) fn remove_recent(&mut self, file: u64) {
        let from = self.groups.partition_point(|g| g.file < file);
        let to = self.groups.partition_point(|g| g.file <= file);
        let gone: Vec<RecentGroup> = self.groups.drain(from..to).collect();
        self.cold -= to.min(self.cold).saturating_sub(from);
        let (Some(first), Some(last)) = (gone.first(), gone.last()) else {
            return;
        };
        let numbers = first.number..=last.number;
        for slot in gone.iter().flat_map(|g| &g.slots) {
            if let Some(index) = self.slots.get_mut(slot) {
                index.runs.retain(|r| !numbers.contains(&r.group));
            }
        }
    }

    /// A file got its footer: its batches are found there from now on.
    pub(crate) fn seal(&mut self, mut file: SealedFile) {
        let number = file.number;
        file.holding = 0;
        for summary in &file.directory {
            let slot = self.slots.entry(summary.slot).or_default();
            if !slot.dropped && summary.last >= slot.start {
                let at = slot.files.partition_point(|f| *f < number);
                slot.files.insert(at, number);
                file.holding += 1;
            }
        }
        self.sealed.insert(number, file);
    }

    pub(crate) fn hot_bytes(&self) -> usize {
        self.hot_bytes
    }

    /// Drop what the bound or a seal no longer lets stay in memory. `unsealed` is the oldest file
    /// without a footer.
    pub(crate) fn trim(&mut self, hot_bytes_max: usize, unsealed: u64, pool: &mut BufferPool) {
        // A quarter of the bound stays for the newest groups when readers hold on to older ones.
        let (target, least) = (hot_bytes_max / 4 * 3, hot_bytes_max / 4);
        loop {
            let used = pool.used_bytes();
            if used <= target || (used <= hot_bytes_max && self.hot_bytes <= least) {
                break;
            }
            let Some(group) = self.groups.get_mut(self.cold) else {
                break;
            };
            self.hot_bytes -= group.hot.take().map_or(0, |hot| hot.buf.len());
            self.cold += 1;
        }
        pool.trim(hot_bytes_max);
        while let Some(front) = self.groups.front()
            && front.hot.is_none()
            && front.file < unsealed
        {
            let number = front.number;
            for slot in &front.slots {
                let Some(index) = self.slots.get_mut(slot) else {
                    continue;
                };
                if index.runs.front().is_some_and(|run| run.group == number) {
                    index.runs.pop_front();
                }
            }
            self.groups.pop_front();
            self.cold = self.cold.saturating_sub(1);
        }
    }

    /// Where the batch that holds `offset` is, or else the next one.
    pub(crate) fn find(&self, slot: PartitionSlot, offset: Offset) -> Place {
        let Some(index) = self.slots.get(&slot) else {
            return Place::Nowhere;
        };
        let recent = || {
            let i = index.runs.partition_point(|r| r.run.last < offset);
            if i < index.runs.len() {
                Place::Recent(i)
            } else {
                Place::Nowhere
            }
        };
        if index.runs.front().is_some_and(|r| r.run.base <= offset) {
            return recent();
        }
        let last_of = |file: &u64| {
            self.sealed[file]
                .summary(slot)
                .map_or(Offset(0), |s| s.last)
        };
        let i = index.files.partition_point(|file| last_of(file) < offset);
        match index.files.get(i) {
            Some(file) => {
                // Sealed and still hot: the memory is quicker and as good, when it has the next batch.
                let first = self.sealed[file].summary(slot).map(|s| s.first);
                match (index.runs.front(), first) {
                    (Some(front), Some(first)) if first >= front.run.base => Place::Recent(0),
                    _ => Place::Sealed(*file),
                }
            }
            None => recent(),
        }
    }

    /// Raise a slot's start. Gives the sealed files that it no longer holds.
    pub(crate) fn set_start(&mut self, slot: PartitionSlot, start: Offset) -> Vec<u64> {
        let index = self.slots.entry(slot).or_default();
        index.start = index.start.max(start);
        let start = index.start;
        let mut released = Vec::new();
        while let Some(file) = index.files.front() {
            if self.sealed[file]
                .summary(slot)
                .is_some_and(|s| s.last >= start)
            {
                break;
            }
            released.extend(index.files.pop_front());
        }
        self.let_go(&released);
        released
    }

    /// The slot's partition is gone. Gives the sealed files that it no longer holds.
    pub(crate) fn drop_slot(&mut self, slot: PartitionSlot) -> Vec<u64> {
        let Some(index) = self.slots.get_mut(&slot) else {
            return Vec::new();
        };
        index.dropped = true;
        let released: Vec<u64> = std::mem::take(&mut index.files).into();
        self.let_go(&released);
        released
    }

    fn let_go(&mut self, files: &[u64]) {
        for file in files {
            let sealed = self
                .sealed
                .get_mut(file)
                .expect("a slot names only sealed files");
            sealed.holding -= 1;
        }
    }

    /// Sealed files that no slot holds and that a start from the snapshot would not walk: their
    /// entries are in it, and their control entries are in what its manifest says of the files.
    pub(crate) fn freeable(&self, snapshot: Lsn, group: u64) -> Vec<u64> {
        let free =
            |f: &&SealedFile| f.holding == 0 && f.last_lsn <= snapshot && f.last_group <= group;
        self.sealed
            .values()
            .filter(free)
            .map(|f| f.number)
            .collect()
    }

    /// Forget a sealed file: one that `freeable` named, or one found freed at start.
    pub(crate) fn remove(&mut self, file: u64) -> Option<SealedFile> {
        let sealed = self.sealed.remove(&file)?;
        for summary in &sealed.directory {
            if sealed.holding > 0
                && let Some(slot) = self.slots.get_mut(&summary.slot)
            {
                slot.files.retain(|f| *f != file);
            }
            let gone = self.slots.get(&summary.slot).is_some_and(|s| {
                s.dropped && s.runs.is_empty() && s.files.is_empty() && !self.names(summary.slot)
            });
            if gone {
                self.slots.remove(&summary.slot);
            }
        }
        Some(sealed)
    }

    fn names(&self, slot: PartitionSlot) -> bool {
        self.sealed.values().any(|f| f.summary(slot).is_some())
    }
}
