//! The footer of a sealed file: per slot where its batches lie, found from the file's last block.
//!
//! ```text
//!  footer_at                                                     file_bytes - 4096      file_bytes
//!  │ section of slot a │ section of slot b │ … │ directory │ zeros │ trailer, one block │
//! ```
//!
//! Absent on purpose: reading and caching (that is [`crate::sealed`]).

use millstream_batch::ids::{Lsn, Offset, PartitionSlot, TimestampMs};
use millstream_batch::limits::BLOCK_BYTES;

use crate::buffer::AlignedBuf;
use crate::format::{
    ENTRY_HEADER_BYTES, GROUP_BYTES_LIMIT, NUMBER_MAX, VERSION, checksum, put_u16, put_u32,
    put_u64, u16_at, u32_at, u64_at,
};

pub const TRAILER_MAGIC: u32 = u32::from_le_bytes(*b"MSft");
/// The trailer proper, at the start of the last block.
pub const TRAILER_BYTES: usize = 104;
pub const SUMMARY_BYTES: usize = 80;
pub const RUN_BYTES: usize = 56;
/// Largest directory a reader accepts: every partition of a shard, with room.
const DIRECTORY_BYTES_MAX: u64 = 64 << 20;

/// The file that follows existed when the footer was written: should it be gone, it was lost.
const TRAILER_SUCCESSOR: u16 = 1;

/// Batches of one slot in one group: neighbours in the index, walked by the entries' back links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub base: Offset,
    pub last: Offset,
    pub append_time_max: TimestampMs,
    pub max_timestamp: TimestampMs,
    /// Position in the file of the first entry.
    pub at: u64,
    /// From there to the end of the last entry.
    pub len: u32,
    /// From `at` to the start of the last entry.
    pub last_entry: u32,
    /// Raw bytes.
    pub bytes: u32,
    pub entries: u32,
}

impl Run {
    pub fn encode(&self, out: &mut [u8]) {
        put_u64(out, 0, self.base.0);
        put_u64(out, 8, self.last.0);
        put_u64(out, 16, self.append_time_max.0 as u64);
        put_u64(out, 24, self.max_timestamp.0 as u64);
        put_u64(out, 32, self.at);
        put_u32(out, 40, self.len);
        put_u32(out, 44, self.last_entry);
        put_u32(out, 48, self.bytes);
        put_u32(out, 52, self.entries);
    }

    #[must_use]
    pub fn decode(bytes: &[u8]) -> Self {
        Self {
            base: Offset(u64_at(bytes, 0)),
            last: Offset(u64_at(bytes, 8)),
            append_time_max: TimestampMs(u64_at(bytes, 16) as i64),
            max_timestamp: TimestampMs(u64_at(bytes, 24) as i64),
            at: u64_at(bytes, 32),
            len: u32_at(bytes, 40),
            last_entry: u32_at(bytes, 44),
            bytes: u32_at(bytes, 48),
            entries: u32_at(bytes, 52),
        }
    }

    /// Whether it can be read: it lies before the footer, and is no longer than a group.
    fn is_sane(&self, of: &Summary) -> bool {
        let header = ENTRY_HEADER_BYTES as u32;
        self.base <= self.last
            && (of.first..=of.last).contains(&self.base)
            && self.last <= of.last
            && self.len as usize <= GROUP_BYTES_LIMIT
            && self
                .last_entry
                .checked_add(header)
                .is_some_and(|end| end <= self.len)
            && self
                .at
                .checked_add(u64::from(self.len))
                .is_some_and(|end| end <= of.section_at)
    }
}

/// What a file holds of one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    pub slot: PartitionSlot,
    pub runs: u32,
    /// Position of the slot's section in the file.
    pub section_at: u64,
    pub section_sum: u64,
    pub first: Offset,
    pub last: Offset,
    pub append_time_max: TimestampMs,
    pub max_timestamp: TimestampMs,
    pub bytes: u64,
}

impl Summary {
    fn of(slot: PartitionSlot, runs: &[Run]) -> Self {
        let mut summary = Self {
            slot,
            runs: runs.len() as u32,
            section_at: 0,
            section_sum: 0,
            first: runs[0].base,
            last: runs[0].last,
            append_time_max: runs[0].append_time_max,
            max_timestamp: runs[0].max_timestamp,
            bytes: 0,
        };
        for run in runs {
            summary.last = summary.last.max(run.last);
            summary.append_time_max = summary.append_time_max.max(run.append_time_max);
            summary.max_timestamp = summary.max_timestamp.max(run.max_timestamp);
            summary.bytes += u64::from(run.bytes);
        }
        summary
    }

    #[must_use]
    pub fn section_bytes(&self) -> usize {
        self.runs as usize * RUN_BYTES
    }

    fn encode(&self, out: &mut [u8]) {
        put_u32(out, 0, self.slot.0);
        put_u32(out, 4, self.runs);
        put_u64(out, 8, self.section_at);
        put_u64(out, 16, self.section_sum);
        put_u64(out, 24, self.first.0);
        put_u64(out, 32, self.last.0);
        put_u64(out, 40, self.append_time_max.0 as u64);
        put_u64(out, 48, self.max_timestamp.0 as u64);
        put_u64(out, 56, self.bytes);
        out[64..SUMMARY_BYTES].fill(0);
    }

    fn decode(bytes: &[u8]) -> Self {
        Self {
            slot: PartitionSlot(u32_at(bytes, 0)),
            runs: u32_at(bytes, 4),
            section_at: u64_at(bytes, 8),
            section_sum: u64_at(bytes, 16),
            first: Offset(u64_at(bytes, 24)),
            last: Offset(u64_at(bytes, 32)),
            append_time_max: TimestampMs(u64_at(bytes, 40) as i64),
            max_timestamp: TimestampMs(u64_at(bytes, 48) as i64),
            bytes: u64_at(bytes, 56),
        }
    }
}

/// The start of a sealed file's last block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    pub incarnation: u64,
    pub file: u64,
    pub file_bytes: u64,
    pub footer_at: u64,
    pub directory_at: u64,
    pub slots: u32,
    pub has_successor: bool,
    /// Numbers of the first and last group; equal numbers mean one group.
    pub first_group: u64,
    pub last_group: u64,
    /// Lsn of the first entry, and of the last; `last_lsn < first_lsn` when there is none.
    pub first_lsn: Lsn,
    pub last_lsn: Lsn,
    pub directory_sum: u64,
}

impl Trailer {
    fn encode(&self, out: &mut [u8]) {
        put_u32(out, 0, TRAILER_MAGIC);
        put_u16(out, 4, VERSION);
        put_u16(
            out,
            6,
            if self.has_successor {
                TRAILER_SUCCESSOR
            } else {
                0
            },
        );
        put_u64(out, 8, self.incarnation);
        put_u64(out, 16, self.file);
        put_u64(out, 24, self.file_bytes);
        put_u64(out, 32, self.footer_at);
        put_u64(out, 40, self.directory_at);
        put_u32(out, 48, self.slots);
        put_u32(out, 52, 0);
        put_u64(out, 56, self.first_group);
        put_u64(out, 64, self.last_group);
        put_u64(out, 72, self.first_lsn.0);
        put_u64(out, 80, self.last_lsn.0);
        put_u64(out, 88, self.directory_sum);
        let sum = checksum(self.incarnation, &out[..96]);
        put_u64(out, 96, sum);
    }

    /// `None` when the block is not the trailer of this file.
    #[must_use]
    pub fn decode(block: &[u8], file: u64, file_bytes: u64) -> Option<Self> {
        let bytes = block.get(..TRAILER_BYTES)?;
        if !Self::claims(block, file) || u16_at(bytes, 4) != VERSION {
            return None;
        }
        let trailer = Self {
            incarnation: u64_at(bytes, 8),
            file,
            file_bytes: u64_at(bytes, 24),
            footer_at: u64_at(bytes, 32),
            directory_at: u64_at(bytes, 40),
            slots: u32_at(bytes, 48),
            has_successor: u16_at(bytes, 6) & TRAILER_SUCCESSOR != 0,
            first_group: u64_at(bytes, 56),
            last_group: u64_at(bytes, 64),
            first_lsn: Lsn(u64_at(bytes, 72)),
            last_lsn: Lsn(u64_at(bytes, 80)),
            directory_sum: u64_at(bytes, 88),
        };
        let directory_end = trailer
            .directory_at
            .checked_add(trailer.directory_bytes())?;
        let sane = u64_at(bytes, 96) == checksum(trailer.incarnation, &bytes[..96])
            && trailer.file_bytes == file_bytes
            && trailer.footer_at.is_multiple_of(BLOCK_BYTES as u64)
            && trailer.footer_at <= trailer.directory_at
            && directory_end <= file_bytes.saturating_sub(BLOCK_BYTES as u64)
            && trailer.directory_bytes() <= DIRECTORY_BYTES_MAX
            && trailer.first_group <= trailer.last_group
            && trailer.last_group <= NUMBER_MAX
            && trailer.first_lsn.0.max(trailer.last_lsn.0) <= NUMBER_MAX;
        sane.then_some(trailer)
    }

    /// Whether a block looks like the trailer of this file, intact or not.
    #[must_use]
    pub fn claims(block: &[u8], file: u64) -> bool {
        block.len() >= TRAILER_BYTES
            && u32_at(block, 0) == TRAILER_MAGIC
            && u64_at(block, 16) == file
    }

    #[must_use]
    pub fn directory_bytes(&self) -> u64 {
        u64::from(self.slots) * SUMMARY_BYTES as u64
    }

    /// The directory from its bytes; `None` when they are damaged.
    #[must_use]
    pub fn directory(&self, bytes: &[u8]) -> Option<Vec<Summary>> {
        if bytes.len() as u64 != self.directory_bytes()
            || checksum(self.incarnation, bytes) != self.directory_sum
        {
            return None;
        }
        let directory: Vec<_> = bytes
            .chunks_exact(SUMMARY_BYTES)
            .map(Summary::decode)
            .collect();
        let sorted = directory.windows(2).all(|w| w[0].slot < w[1].slot);
        let inside = directory.iter().all(|s| {
            s.runs > 0
                && s.first <= s.last
                && s.last.0 <= NUMBER_MAX
                && s.bytes <= self.file_bytes
                && s.section_at >= self.footer_at
                && s.section_at
                    .checked_add(s.section_bytes() as u64)
                    .is_some_and(|end| end <= self.directory_at)
        });
        (sorted && inside).then_some(directory)
    }
}

/// Room that a footer takes at the end of a file.
#[must_use]
pub fn footer_bytes(slots: usize, runs: usize) -> u64 {
    let body = (slots * SUMMARY_BYTES + runs * RUN_BYTES) as u64;
    body.next_multiple_of(BLOCK_BYTES as u64) + BLOCK_BYTES as u64
}

/// The runs of a section; `None` when its bytes are damaged. Each lies before the footer and behind
/// the one before it, in the file as in the partition.
#[must_use]
pub fn decode_section(incarnation: u64, summary: &Summary, bytes: &[u8]) -> Option<Vec<Run>> {
    if bytes.len() != summary.section_bytes() || checksum(incarnation, bytes) != summary.section_sum
    {
        return None;
    }
    let runs: Vec<_> = bytes.chunks_exact(RUN_BYTES).map(Run::decode).collect();
    let inside = runs.iter().all(|run| run.is_sane(summary));
    let sorted = runs
        .windows(2)
        .all(|w| w[0].last < w[1].base && w[0].at + u64::from(w[0].len) <= w[1].at);
    (inside && sorted).then_some(runs)
}

/// The footer to be written at `trailer.footer_at`, which is set here with what follows from it.
/// `runs` is sorted by slot, each slot's runs by offset and none empty.
#[must_use]
pub fn build(
    trailer: &mut Trailer,
    runs: &[(PartitionSlot, Vec<Run>)],
) -> (AlignedBuf, Vec<Summary>) {
    let total: usize = runs.iter().map(|(_, r)| r.len()).sum();
    let len = footer_bytes(runs.len(), total);
    let mut buf = AlignedBuf::with_capacity(len as usize);
    buf.set_len(len as usize);
    trailer.footer_at = trailer.file_bytes - len;
    trailer.slots = runs.len() as u32;
    let mut at = 0;
    let mut directory = Vec::with_capacity(runs.len());
    for (slot, runs) in runs {
        let mut summary = Summary::of(*slot, runs);
        summary.section_at = trailer.footer_at + at as u64;
        let section = &mut buf[at..at + runs.len() * RUN_BYTES];
        for (run, out) in runs.iter().zip(section.chunks_exact_mut(RUN_BYTES)) {
            run.encode(out);
        }
        summary.section_sum = checksum(trailer.incarnation, section);
        at += runs.len() * RUN_BYTES;
        directory.push(summary);
    }
    trailer.directory_at = trailer.footer_at + at as u64;
    let bytes = &mut buf[at..at + directory.len() * SUMMARY_BYTES];
    for (summary, out) in directory.iter().zip(bytes.chunks_exact_mut(SUMMARY_BYTES)) {
        summary.encode(out);
    }
    trailer.directory_sum = checksum(trailer.incarnation, bytes);
    let block = len as usize - BLOCK_BYTES;
    trailer.encode(&mut buf[block..]);
    (buf, directory)
}
