//! The bytes of a group and of an entry: `core/docs/log-format.md` draws them, this module reads and
//! writes them. Everything is little-endian and of fixed width.
//!
//! Absent on purpose: files, order between groups, what is torn and what is damaged (that is
//! [`crate::scan`] and [`crate::recover`]).

use millstream_batch::ids::{Lsn, Offset, PartitionSlot, Term, TimestampMs};
use millstream_batch::limits::BLOCK_BYTES;

use crate::api::IndexKey;

/// First four bytes of a group: `MSgr`.
pub const GROUP_MAGIC: u32 = u32::from_le_bytes(*b"MSgr");
/// Version of the file format that this code writes.
pub const VERSION: u16 = 1;
pub const GROUP_HEADER_BYTES: usize = 96;
pub const ENTRY_HEADER_BYTES: usize = 96;
/// Entries and facts start at multiples of this, so that archives are read in place.
pub const ENTRY_ALIGN: usize = 16;
/// Largest group a reader accepts: bounds what a damaged length can make it allocate.
pub const GROUP_BYTES_LIMIT: usize = 32 << 20;
/// Files are made at least this long, unless they are all to be shorter: a file that is shorter and
/// holds no group was cut.
pub const FILE_BYTES_MIN: u64 = 4 << 20;
/// Largest fact. Facts are small by nature; the bound keeps a group below its limit.
pub const FACT_BYTES_MAX: usize = 4 << 20;

/// Largest file number, group number, lsn and offset that is believed. Counting up from 1 never gets
/// there; that a reader refuses more keeps sums of what it has read from overflowing.
pub const NUMBER_MAX: u64 = u64::MAX >> 2;
/// Largest term that is believed.
pub const TERM_MAX: u32 = u32::MAX >> 1;

/// The group holds no entry of the machine: it proves what is before it.
pub const GROUP_MARK: u16 = 1;
/// The shard was closed in good order after this group.
pub const GROUP_CLEAN: u16 = 2;
/// Written under `flush = interval`: groups before it may be unsynced.
pub const GROUP_UNSYNCED: u16 = 4;
const GROUP_FLAGS: u16 = GROUP_MARK | GROUP_CLEAN | GROUP_UNSYNCED;

/// The entry has an index key.
pub const ENTRY_INDEXED: u16 = 1;
/// The entry belongs to the log itself and takes no lsn.
pub const ENTRY_CONTROL: u16 = 2;
/// The next entry belongs to the same unit and has the same lsn.
pub const ENTRY_MORE: u16 = 4;
const ENTRY_FLAGS: u16 = ENTRY_INDEXED | ENTRY_CONTROL | ENTRY_MORE;

/// Control kind: a WAL file holds nothing alive any more; its fact is the file's number (u64).
pub const CONTROL_FREED: u16 = 1;

/// CRC-64/NVME whose register starts at `seed`. Two seeds never agree on the same bytes: the
/// register's influence on the result is an invertible linear map.
#[must_use]
pub fn checksum(seed: u64, bytes: &[u8]) -> u64 {
    let mut digest = crc_fast::Digest::new_with_init_state(crc_fast::CrcAlgorithm::Crc64Nvme, seed);
    digest.update(bytes);
    digest.finalize()
}

/// The incarnation of a file: one run's entropy and the file's number, mixed (splitmix64).
#[must_use]
pub fn file_incarnation(run: u64, file: u64) -> u64 {
    mix(run ^ mix(file.wrapping_add(0x9e37_79b9_7f4a_7c15)))
}

/// What tells a group from every other one that was ever begun at its place.
#[must_use]
pub fn group_salt(run: u64, term: Term, group: u64) -> u32 {
    (mix(run.rotate_left(32) ^ mix(group ^ mix(u64::from(term.0)))) >> 32) as u32
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The first 96 bytes of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupHeader {
    pub flags: u16,
    /// Of the file: the seed of every checksum in it.
    pub incarnation: u64,
    pub file: u64,
    /// From 1, over the whole log, without gap.
    pub number: u64,
    /// Every group up to this number was synced before this one was written.
    pub proved: u64,
    /// Of the first entry; of the next one to come in a mark.
    pub first_lsn: Lsn,
    /// Position in the file.
    pub at: u64,
    /// Header and entries; the rest of the last block is zero.
    pub length: u32,
    pub entries: u32,
    pub term: Term,
    pub salt: u32,
    /// Length the file was allocated with.
    pub file_bytes: u64,
}

impl GroupHeader {
    pub fn encode(&self, out: &mut [u8]) {
        let out = &mut out[..GROUP_HEADER_BYTES];
        out.fill(0);
        put_u32(out, 0, GROUP_MAGIC);
        put_u16(out, 4, VERSION);
        put_u16(out, 6, self.flags);
        put_u64(out, 8, self.incarnation);
        put_u64(out, 16, self.file);
        put_u64(out, 24, self.number);
        put_u64(out, 32, self.proved);
        put_u64(out, 40, self.first_lsn.0);
        put_u64(out, 48, self.at);
        put_u64(out, 56, self.file_bytes);
        put_u32(out, 64, self.length);
        put_u32(out, 68, self.entries);
        put_u32(out, 72, self.term.0);
        put_u32(out, 76, self.salt);
        let sum = checksum(self.incarnation, &out[..88]);
        put_u64(out, 88, sum);
    }

    /// `None` when the bytes are not a group header of this version.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..GROUP_HEADER_BYTES)?;
        if u32_at(bytes, 0) != GROUP_MAGIC || u16_at(bytes, 4) != VERSION {
            return None;
        }
        let header = Self {
            flags: u16_at(bytes, 6),
            incarnation: u64_at(bytes, 8),
            file: u64_at(bytes, 16),
            number: u64_at(bytes, 24),
            proved: u64_at(bytes, 32),
            first_lsn: Lsn(u64_at(bytes, 40)),
            at: u64_at(bytes, 48),
            file_bytes: u64_at(bytes, 56),
            length: u32_at(bytes, 64),
            entries: u32_at(bytes, 68),
            term: Term(u32_at(bytes, 72)),
            salt: u32_at(bytes, 76),
        };
        let length = header.length as usize;
        let sane = u64_at(bytes, 88) == checksum(header.incarnation, &bytes[..88])
            && u64_at(bytes, 80) == 0
            && header.flags & !GROUP_FLAGS == 0
            && (GROUP_HEADER_BYTES..=GROUP_BYTES_LIMIT).contains(&length)
            && header.at.is_multiple_of(BLOCK_BYTES as u64)
            && header
                .at
                .checked_add(header.span())
                .is_some_and(|end| end <= header.file_bytes)
            && header.number > header.proved
            && header.first_lsn.0 > 0
            && header.number.max(header.first_lsn.0).max(header.file) <= NUMBER_MAX
            && header.term.0 <= TERM_MAX;
        sane.then_some(header)
    }

    /// Bytes that the group takes in the file.
    #[must_use]
    pub fn span(&self) -> u64 {
        u64::from(self.length).next_multiple_of(BLOCK_BYTES as u64)
    }
}

/// The first 96 bytes of an entry; the fact follows, then at the next multiple of 16 the raw bytes,
/// then zeros to the next multiple of 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryHeader {
    pub fact_len: u32,
    pub raw_len: u32,
    pub lsn: Lsn,
    pub term: Term,
    pub kind: u16,
    pub flags: u16,
    /// Meaningful with `ENTRY_INDEXED`.
    pub key: IndexKey,
    /// Bytes back to the previous entry of the same slot in this group; 0: there is none.
    pub back: u32,
    /// The group's.
    pub salt: u32,
    pub fact_sum: u64,
    pub raw_sum: u64,
}

/// No key: every field is zero.
pub const NO_KEY: IndexKey = IndexKey {
    slot: PartitionSlot(0),
    base_offset: Offset(0),
    last_offset: Offset(0),
    append_time: TimestampMs(0),
    max_timestamp: TimestampMs(0),
};

impl EntryHeader {
    pub fn encode(&self, seed: u64, out: &mut [u8]) {
        let out = &mut out[..ENTRY_HEADER_BYTES];
        put_u32(
            out,
            0,
            entry_len(self.fact_len as usize, self.raw_len as usize) as u32,
        );
        put_u32(out, 4, self.fact_len);
        put_u32(out, 8, self.raw_len);
        put_u32(out, 12, self.term.0);
        put_u64(out, 16, self.lsn.0);
        put_u16(out, 24, self.kind);
        put_u16(out, 26, self.flags);
        put_u32(out, 28, self.key.slot.0);
        put_u64(out, 32, self.key.base_offset.0);
        put_u64(out, 40, self.key.last_offset.0);
        put_u64(out, 48, self.key.append_time.0 as u64);
        put_u64(out, 56, self.key.max_timestamp.0 as u64);
        put_u64(out, 64, self.fact_sum);
        put_u64(out, 72, self.raw_sum);
        put_u32(out, 80, self.back);
        put_u32(out, 84, self.salt);
        let sum = checksum(seed, &out[..88]);
        put_u64(out, 88, sum);
    }

    /// `None` when the bytes are not an entry header written under `seed`.
    #[must_use]
    pub fn decode(seed: u64, bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..ENTRY_HEADER_BYTES)?;
        if u64_at(bytes, 88) != checksum(seed, &bytes[..88]) {
            return None;
        }
        let header = Self::decode_trusted(bytes);
        let len = entry_len(header.fact_len as usize, header.raw_len as usize);
        let sane = u32_at(bytes, 0) as usize == len
            && len <= GROUP_BYTES_LIMIT
            && header.flags & !ENTRY_FLAGS == 0
            && !(header.is_control() && header.has_more())
            && header.key.base_offset <= header.key.last_offset
            && header.key.last_offset.0 <= NUMBER_MAX;
        sane.then_some(header)
    }

    /// Of bytes that this process wrote or has checked.
    #[must_use]
    pub(crate) fn decode_trusted(bytes: &[u8]) -> Self {
        Self {
            fact_len: u32_at(bytes, 4),
            raw_len: u32_at(bytes, 8),
            term: Term(u32_at(bytes, 12)),
            lsn: Lsn(u64_at(bytes, 16)),
            kind: u16_at(bytes, 24),
            flags: u16_at(bytes, 26),
            key: IndexKey {
                slot: PartitionSlot(u32_at(bytes, 28)),
                base_offset: Offset(u64_at(bytes, 32)),
                last_offset: Offset(u64_at(bytes, 40)),
                append_time: TimestampMs(u64_at(bytes, 48) as i64),
                max_timestamp: TimestampMs(u64_at(bytes, 56) as i64),
            },
            fact_sum: u64_at(bytes, 64),
            raw_sum: u64_at(bytes, 72),
            back: u32_at(bytes, 80),
            salt: u32_at(bytes, 84),
        }
    }

    #[must_use]
    pub fn is_indexed(&self) -> bool {
        self.flags & ENTRY_INDEXED != 0
    }

    #[must_use]
    pub fn is_control(&self) -> bool {
        self.flags & ENTRY_CONTROL != 0
    }

    /// Whether the unit goes on with the next entry.
    #[must_use]
    pub fn has_more(&self) -> bool {
        self.flags & ENTRY_MORE != 0
    }

    /// Whether this entry is the last of its lsn.
    #[must_use]
    pub fn ends_unit(&self) -> bool {
        !self.is_control() && !self.has_more()
    }

    /// The whole entry's length.
    #[must_use]
    pub fn len(&self) -> usize {
        entry_len(self.fact_len as usize, self.raw_len as usize)
    }

    /// Never: an entry has at least its header.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Where the fact lies, from the entry's start.
    #[must_use]
    pub fn fact_range(&self) -> std::ops::Range<usize> {
        ENTRY_HEADER_BYTES..ENTRY_HEADER_BYTES + self.fact_len as usize
    }

    /// Where the raw bytes lie, from the entry's start.
    #[must_use]
    pub fn raw_range(&self) -> std::ops::Range<usize> {
        let start = (ENTRY_HEADER_BYTES + self.fact_len as usize).next_multiple_of(ENTRY_ALIGN);
        start..start + self.raw_len as usize
    }
}

/// Length of an entry with its padding.
#[must_use]
pub fn entry_len(fact_len: usize, raw_len: usize) -> usize {
    let raw_at = (ENTRY_HEADER_BYTES + fact_len).next_multiple_of(ENTRY_ALIGN);
    (raw_at + raw_len).next_multiple_of(ENTRY_ALIGN)
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

pub(crate) fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_crc_64_nvme() {
        // The catalogue's check value: init and xorout all ones, of "123456789".
        assert_eq!(checksum(u64::MAX, b"123456789"), 0xae8b_1486_0a79_9888);
    }

    #[test]
    fn another_seed_never_accepts_the_same_bytes() {
        let bytes = vec![7; 1000];
        let sum = checksum(1, &bytes);
        for bit in 0..64 {
            assert_ne!(checksum(1 ^ (1 << bit), &bytes), sum);
        }
    }

    #[test]
    fn headers_come_back_and_every_flipped_bit_is_seen() {
        let group = GroupHeader {
            flags: GROUP_MARK,
            incarnation: 0x1234_5678_9abc_def0,
            file: 7,
            number: 99,
            proved: 98,
            first_lsn: Lsn(1234),
            at: 8192,
            length: 96,
            entries: 0,
            term: Term(3),
            salt: 77,
            file_bytes: 1 << 20,
        };
        let mut bytes = [0; GROUP_HEADER_BYTES];
        group.encode(&mut bytes);
        assert_eq!(GroupHeader::decode(&bytes), Some(group));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(GroupHeader::decode(&bytes), None, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        let entry = EntryHeader {
            fact_len: 33,
            raw_len: 1000,
            lsn: Lsn(5),
            term: Term(1),
            kind: 9,
            flags: ENTRY_INDEXED,
            key: IndexKey {
                slot: PartitionSlot(4),
                base_offset: Offset(10),
                last_offset: Offset(19),
                append_time: TimestampMs(-5),
                max_timestamp: TimestampMs(1_700_000_000_000),
            },
            back: 96,
            salt: 12,
            fact_sum: 1,
            raw_sum: 2,
        };
        let mut bytes = [0; ENTRY_HEADER_BYTES];
        entry.encode(42, &mut bytes);
        assert_eq!(EntryHeader::decode(42, &bytes), Some(entry));
        assert_eq!(EntryHeader::decode(43, &bytes), None);
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(EntryHeader::decode(42, &bytes), None, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        let both = EntryHeader {
            flags: ENTRY_CONTROL | ENTRY_MORE,
            ..entry
        };
        both.encode(42, &mut bytes);
        assert_eq!(
            EntryHeader::decode(42, &bytes),
            None,
            "the log's own entries are of no unit"
        );
        assert_eq!(entry.raw_range(), 144..1144);
        assert_eq!(entry.len(), 1152);
    }
}
