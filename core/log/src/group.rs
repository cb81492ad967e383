//! A group being gathered, and one closed: the bytes of the next write and what they index.
//!
//! Payload is copied once, into the group's buffer. Buffers start at the size that recent groups
//! had, so that they rarely grow, and come back through a pool, so that their pages are warm.
//!
//! Absent on purpose: which file and place a group gets, and when it is written ([`crate::writer`]).

use std::sync::Arc;

use bytes::Bytes;
use millstream_batch::ids::{Lsn, PartitionSlot, Term};
use millstream_batch::limits::BLOCK_BYTES;
use rustc_hash::FxHashMap;

use crate::api::IndexKey;
use crate::buffer::AlignedBuf;
use crate::footer::Run;
use crate::format::{
    ENTRY_CONTROL, ENTRY_INDEXED, EntryHeader, GROUP_HEADER_BYTES, GroupHeader, NO_KEY, checksum,
    entry_len,
};

/// Free buffers kept, in bytes. Enough for the groups of a few writes.
const POOL_BYTES_MAX: usize = 8 << 20;
/// Recent groups that the size of the next buffer is guessed from.
const RECENT: usize = 4;

/// Buffers between two lives, and the guess of how large the next should be.
#[derive(Debug, Default)]
pub(crate) struct BufferPool {
    free: Vec<AlignedBuf>,
    bytes: usize,
    recent: [usize; RECENT],
    turn: usize,
}

impl BufferPool {
    /// An empty buffer of at least `len` bytes. Its memory may hold old bytes.
    pub(crate) fn take(&mut self, len: usize) -> AlignedBuf {
        let fits = |buf: &AlignedBuf| {
            buf.capacity() >= len && buf.capacity() <= len.next_power_of_two() * 2
        };
        if let Some(i) = self.free.iter().rposition(fits) {
            let mut buf = self.free.swap_remove(i);
            self.bytes -= buf.capacity();
            buf.set_len(0);
            return buf;
        }
        AlignedBuf::with_capacity(len)
    }

    pub(crate) fn give(&mut self, buf: AlignedBuf) {
        if self.bytes + buf.capacity() <= POOL_BYTES_MAX {
            self.bytes += buf.capacity();
            self.free.push(buf);
        } else if let Some(old) = self.free.first_mut()
            && old.capacity() < buf.capacity()
            && self.bytes - old.capacity() + buf.capacity() <= POOL_BYTES_MAX
        {
            self.bytes = self.bytes - old.capacity() + buf.capacity();
            *old = buf;
        }
    }

    fn note(&mut self, len: usize) {
        self.recent[self.turn % RECENT] = len;
        self.turn += 1;
    }

    /// Capacity for the next group whose first entry makes it `len` long.
    fn guess(&self, len: usize, max: usize) -> usize {
        let recent = self.recent.iter().copied().max().unwrap_or(0).min(max);
        recent.max(len).next_power_of_two().max(BLOCK_BYTES)
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
    last_lsn: Lsn,
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
        bytes_max: usize,
        pool: &mut BufferPool,
        map: &mut RunMap,
    ) -> Self {
        map.clear();
        let len = GROUP_HEADER_BYTES + first_len;
        let mut buf = pool.take(pool.guess(len, bytes_max));
        buf.set_len(GROUP_HEADER_BYTES);
        Self {
            place,
            buf,
            entries: 0,
            last_lsn: Lsn(place.first_lsn.0 - 1),
            runs: Vec::new(),
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

    /// Add an entry of the machine. Returns whether its slot is new to this group.
    pub(crate) fn push(
        &mut self,
        lsn: Lsn,
        kind: u16,
        fact: &[u8],
        raw: &[Bytes],
        key: Option<IndexKey>,
        (pool, map): (&mut BufferPool, &mut RunMap),
    ) -> bool {
        debug_assert_eq!(lsn, self.last_lsn.next());
        self.last_lsn = lsn;
        let at = self.buf.len();
        let raw_len: usize = raw.iter().map(Bytes::len).sum();
        let (flags, back, new_slot) = match key {
            None => (0, 0, false),
            Some(key) => {
                let (back, new_slot) = self.extend_run(&key, at, fact.len(), raw_len, map);
                (ENTRY_INDEXED, back, new_slot)
            }
        };
        let header = EntryHeader {
            fact_len: fact.len() as u32,
            raw_len: raw_len as u32,
            lsn,
            term: self.place.term,
            kind,
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
        let mut larger = pool.take(len.next_power_of_two());
        larger.extend(&self.buf);
        pool.give(std::mem::replace(&mut self.buf, larger));
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
        pool.note(length);
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
