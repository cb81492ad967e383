//! A group being gathered, and one closed: the bytes of the next write and what they index.
//!
//! Payload is copied once, into the group's buffer, which is cut from memory that is used again and
//! again ([`BufferPool`]).
//!
//! Absent on purpose: which file and place a group gets, and when it is written ([`crate::writer`]).

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use millstream_batch::ids::{Lsn, PartitionSlot, Term};
use millstream_batch::limits::BLOCK_BYTES;
use rustc_hash::FxHashMap;

use crate::api::{Append, IndexKey};
use crate::buffer::{AlignedBuf, ChunkRef};
use crate::footer::Run;
use crate::format::{
    ENTRY_CONTROL, ENTRY_INDEXED, ENTRY_MORE, EntryHeader, GROUP_HEADER_BYTES, GroupHeader, NO_KEY,
    checksum, entry_len,
};

/// Chunks that hold no group any more and are kept for the next ones.
const FREE_CHUNKS_MAX: usize = 2;
/// Groups are cut from chunks of this size; a smaller hot tail has smaller ones.
const CHUNK_BYTES_MAX: usize = 4 << 20;
/// Chunks that a hot tail has at least: what is let go of at once is a fraction of it.
const CHUNKS_MIN: usize = 8;
/// Lists of runs that are kept for the next groups (one gathers while one is written), and how long such a
/// list may be.
const FREE_LISTS_MAX: usize = 2;
const FREE_LIST_RUNS_MAX: usize = 1 << 10;
/// Recent groups that the size of the next is guessed from.
const RECENT: usize = 4;

/// The memory of groups: the one gathered, those on their way to the disk and the hot tail.
///
/// Groups are cut one after the other from large chunks, each as long as it became, and a chunk is used
/// again when its last group has left the tail. So the steady state allocates nothing.
#[derive(Debug)]
pub(crate) struct BufferPool {
    chunk_bytes: usize,
    /// All that were made and are not given back, the longest unused first.
    chunks: VecDeque<ChunkRef>,
    /// What the last group left of its chunk.
    rest: Option<AlignedBuf>,
    recent: [usize; RECENT],
    turn: usize,
    /// Empty lists of runs for the next groups.
    runs: Vec<Vec<SlotRun>>,
}

impl BufferPool {
    pub(crate) fn new(hot_tail_bytes_max: usize) -> Self {
        let chunk_bytes = (hot_tail_bytes_max / CHUNKS_MIN).clamp(BLOCK_BYTES, CHUNK_BYTES_MAX);
        Self {
            chunk_bytes: chunk_bytes / BLOCK_BYTES * BLOCK_BYTES,
            chunks: VecDeque::new(),
            rest: None,
            recent: [0; RECENT],
            turn: 0,
            runs: Vec::new(),
        }
    }

    /// Take back the list of a group that is in the index.
    pub(crate) fn give_runs(&mut self, mut runs: Vec<SlotRun>) {
        if self.runs.len() < FREE_LISTS_MAX && runs.capacity() <= FREE_LIST_RUNS_MAX {
            runs.clear();
            self.runs.push(runs);
        }
    }

    /// An empty buffer of at least `len` bytes, with room for as much as recent groups had if a chunk has
    /// it. Its memory may hold old bytes.
    fn take(&mut self, len: usize) -> AlignedBuf {
        let recent = self.recent.iter().copied().max().unwrap_or(0);
        let wanted = recent.min(self.chunk_bytes).max(len);
        match self.rest.take() {
            Some(rest) if rest.capacity() >= wanted => rest,
            _ => self.take_chunk(len),
        }
    }

    /// A whole chunk, or more if `len` is more.
    fn take_chunk(&mut self, len: usize) -> AlignedBuf {
        let found = self.chunks.iter_mut().enumerate().find_map(|(at, chunk)| {
            let fits = chunk.capacity() >= len;
            fits.then(|| chunk.reuse()).flatten().map(|buf| (at, buf))
        });
        if let Some((at, buf)) = found {
            let chunk = self.chunks.remove(at).expect("just found");
            self.chunks.push_back(chunk);
            return buf;
        }
        let buf = AlignedBuf::with_capacity(self.chunk_bytes.max(len));
        self.chunks.push_back(buf.chunk());
        buf
    }

    /// Take back what a closed group did not need.
    fn give_rest(&mut self, rest: AlignedBuf) {
        if rest.capacity() > 0 {
            self.rest = Some(rest);
        }
    }

    /// Bytes of the chunks that something still lies in, whoever holds it.
    pub(crate) fn used_bytes(&self) -> usize {
        let used = self.chunks.iter().filter(|chunk| chunk.is_used());
        used.map(ChunkRef::capacity).sum()
    }

    /// Give chunks that nothing lies in back to the allocator, except for a few; past the bound also what
    /// the last group left.
    pub(crate) fn trim(&mut self, bytes_max: usize) {
        if self.used_bytes() > bytes_max {
            self.rest = None;
        }
        let mut free = 0;
        self.chunks.retain(|chunk| {
            if chunk.is_used() {
                return true;
            }
            free += 1;
            free <= FREE_CHUNKS_MAX
        });
    }

    fn note(&mut self, len: usize) {
        self.recent[self.turn % RECENT] = len;
        self.turn += 1;
    }
}

/// Slot and run of one group.
pub(crate) type SlotRun = (PartitionSlot, Run);

/// Where a group goes: fixed when it is begun.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) file: u64,
    pub(crate) incarnation: u64,
    pub(crate) file_bytes: u64,
    pub(crate) at: u64,
    pub(crate) number: u64,
    pub(crate) salt: u32,
    pub(crate) first_lsn: Lsn,
    pub(crate) term: Term,
}

/// The group that entries join.
#[derive(Debug)]
pub(crate) struct Gather {
    pub(crate) place: Place,
    buf: AlignedBuf,
    entries: u32,
    /// Of the last entry.
    last_lsn: Lsn,
    /// More of its unit is to come.
    is_unit_open: bool,
    runs: Vec<SlotRun>,
    /// Files that this group declares freed.
    pub(crate) freed: Vec<u64>,
}

/// Maps slots to runs of the gathering group; one, reused, because there is one such group.
pub(crate) type RunMap = FxHashMap<PartitionSlot, u32>;

impl Gather {
    pub(crate) fn new(
        place: Place,
        first_len: usize,
        pool: &mut BufferPool,
        map: &mut RunMap,
    ) -> Self {
        map.clear();
        let len = GROUP_HEADER_BYTES + first_len;
        let mut buf = pool.take(len);
        buf.set_len(GROUP_HEADER_BYTES);
        Self {
            place,
            buf,
            entries: 0,
            last_lsn: Lsn(place.first_lsn.0 - 1),
            is_unit_open: false,
            runs: pool.runs.pop().unwrap_or_default(),
            freed: Vec::new(),
        }
    }

    /// Bytes gathered, header included.
    pub(crate) fn len(&self) -> usize {
        self.buf.len()
    }

    pub(crate) fn entries(&self) -> u32 {
        self.entries
    }

    /// Add an entry of the machine; with `more`, the next one is of the same unit. Returns whether its
    /// slot is new to this group.
    pub(crate) fn push(
        &mut self,
        lsn: Lsn,
        entry: &Append,
        more: bool,
        (pool, map): (&mut BufferPool, &mut RunMap),
    ) -> bool {
        let Append {
            kind,
            fact,
            raw,
            index: key,
        } = entry;
        debug_assert_eq!(lsn.0, self.last_lsn.0 + u64::from(!self.is_unit_open));
        self.last_lsn = lsn;
        self.is_unit_open = more;
        let at = self.buf.len();
        let raw_len: usize = raw.iter().map(Bytes::len).sum();
        let (mut flags, back, new_slot) = match key {
            None => (0, 0, false),
            Some(key) => {
                let (back, new_slot) = self.extend_run(key, at, fact.len(), raw_len, map);
                (ENTRY_INDEXED, back, new_slot)
            }
        };
        if more {
            flags |= ENTRY_MORE;
        }
        let header = EntryHeader {
            fact_len: fact.len() as u32,
            raw_len: raw_len as u32,
            lsn,
            term: self.place.term,
            kind: *kind,
            flags,
            key: key.unwrap_or(NO_KEY),
            back,
            salt: self.place.salt,
            fact_sum: 0,
            raw_sum: 0,
        };
        self.write(at, header, fact, raw, pool);
        new_slot
    }

    /// Add an entry of the log itself.
    pub(crate) fn push_control(&mut self, kind: u16, fact: &[u8], pool: &mut BufferPool) {
        debug_assert!(!self.is_unit_open, "a unit is pushed whole");
        let header = EntryHeader {
            fact_len: fact.len() as u32,
            raw_len: 0,
            lsn: self.last_lsn.next(),
            term: self.place.term,
            kind,
            flags: ENTRY_CONTROL,
            key: NO_KEY,
            back: 0,
            salt: self.place.salt,
            fact_sum: 0,
            raw_sum: 0,
        };
        self.write(self.buf.len(), header, fact, &[], pool);
    }

    /// Extend the run of the key's slot; gives the distance back to its previous entry, and whether
    /// the run is new.
    fn extend_run(
        &mut self,
        key: &IndexKey,
        at: usize,
        fact_len: usize,
        raw_len: usize,
        map: &mut RunMap,
    ) -> (u32, bool) {
        let len = entry_len(fact_len, raw_len) as u32;
        let position = self.place.at + at as u64;
        let index = *map.entry(key.slot).or_insert(self.runs.len() as u32) as usize;
        if index == self.runs.len() {
            self.runs.push((
                key.slot,
                Run {
                    base: key.base_offset,
                    last: key.last_offset,
                    append_time_max: key.append_time,
                    max_timestamp: key.max_timestamp,
                    at: position,
                    len,
                    last_entry: 0,
                    bytes: raw_len as u32,
                    entries: 1,
                },
            ));
            return (0, true);
        }
        let run = &mut self.runs[index].1;
        assert!(
            key.base_offset > run.last,
            "slot {}: offset {} follows {}",
            key.slot,
            key.base_offset,
            run.last
        );
        let distance = (position - run.at) as u32;
        let back = distance - run.last_entry;
        run.last = key.last_offset;
        run.append_time_max = run.append_time_max.max(key.append_time);
        run.max_timestamp = run.max_timestamp.max(key.max_timestamp);
        run.last_entry = distance;
        run.len = distance + len;
        run.bytes += raw_len as u32;
        run.entries += 1;
        (back, false)
    }

    fn write(
        &mut self,
        at: usize,
        mut header: EntryHeader,
        fact: &[u8],
        raw: &[Bytes],
        pool: &mut BufferPool,
    ) {
        let len = header.len();
        if self.buf.room() < len {
            self.grow(at + len, pool);
        }
        let seed = self.place.incarnation;
        self.buf.set_len(at + len);
        let entry = &mut self.buf[at..];
        let (fact_range, raw_range) = (header.fact_range(), header.raw_range());
        entry[fact_range.clone()].copy_from_slice(fact);
        entry[fact_range.end..raw_range.start].fill(0);
        let mut to = raw_range.start;
        for part in raw {
            entry[to..to + part.len()].copy_from_slice(part);
            to += part.len();
        }
        entry[to..].fill(0);
        header.fact_sum = checksum(seed, &entry[fact_range]);
        header.raw_sum = checksum(seed, &entry[raw_range]);
        header.encode(seed, entry);
        self.entries += 1;
    }

    fn grow(&mut self, len: usize, pool: &mut BufferPool) {
        let mut larger = pool.take_chunk(len.next_power_of_two());
        larger.extend(&self.buf);
        self.buf = larger;
    }

    /// End the group: pad it and write its header.
    pub(crate) fn close(mut self, flags: u16, proved: u64, pool: &mut BufferPool) -> Group {
        let length = self.buf.len();
        let padded = length.next_multiple_of(BLOCK_BYTES);
        self.buf.set_len(padded);
        self.buf[length..].fill(0);
        let place = self.place;
        GroupHeader {
            flags,
            incarnation: place.incarnation,
            file: place.file,
            number: place.number,
            proved,
            first_lsn: place.first_lsn,
            at: place.at,
            length: length as u32,
            entries: self.entries,
            term: place.term,
            salt: place.salt,
            file_bytes: place.file_bytes,
        }
        .encode(&mut self.buf);
        pool.note(padded);
        pool.give_rest(self.buf.split_off());
        Group {
            place,
            flags,
            last_lsn: self.last_lsn,
            len: padded,
            buf: Arc::new(self.buf),
            runs: self.runs,
            freed: self.freed,
        }
    }
}

/// A group on its way to the disk.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) place: Place,
    pub(crate) flags: u16,
    /// Of the last entry; `first_lsn - 1` when there is none.
    pub(crate) last_lsn: Lsn,
    /// Bytes in the file.
    pub(crate) len: usize,
    pub(crate) buf: Arc<AlignedBuf>,
    pub(crate) runs: Vec<SlotRun>,
    pub(crate) freed: Vec<u64>,
}
