//! From a run to its entries: by back links, checked when the bytes come from the disk.
//!
//! Absent on purpose: where the bytes are from ([`crate::fetch`]).

use bytes::Bytes;
use millstream_batch::ids::Offset;
use millstream_batch::limits::BLOCK_BYTES;
use smallvec::SmallVec;

use crate::api::{Entry, Fetch, FetchError, IndexKey, TimeQuery};
use crate::footer::Run;
use crate::format::{EntryHeader, checksum};

/// Batches a cold read takes along even when fewer are asked for: the next fetch finds them.
pub(crate) const READ_BYTES_MIN: usize = 256 << 10;
/// A cold read stops growing here, in whole blocks; one run is read whole whatever its size.
pub(crate) const READ_BYTES_MAX: u64 = 1 << 20;
/// Foreign bytes between two runs that are worth reading to save a read.
const GAP_BYTES_MAX: u64 = 64 << 10;

/// Runs that one read should cover: the first, and those after it that are near and wanted.
pub(crate) fn neighbours(runs: impl Iterator<Item = Run>, bytes_max: usize) -> SmallVec<[Run; 4]> {
    let mut out: SmallVec<[Run; 4]> = SmallVec::new();
    let mut wanted = 0;
    for run in runs {
        if let (Some(first), Some(last)) = (out.first(), out.last()) {
            let end = last.at + u64::from(last.len);
            let block = BLOCK_BYTES as u64;
            let to = (run.at + u64::from(run.len)).next_multiple_of(block);
            let grown = to - first.at / block * block;
            if run.at.saturating_sub(end) > GAP_BYTES_MAX
                || grown > READ_BYTES_MAX
                || wanted >= bytes_max
            {
                break;
            }
        }
        wanted += run.bytes as usize;
        out.push(run);
    }
    out
}

/// Bytes of a file from `at` on. With `seed` they come from the disk and are checked.
pub(crate) struct Span<'a> {
    pub(crate) bytes: &'a Bytes,
    pub(crate) at: u64,
    pub(crate) seed: Option<u64>,
}

impl Span<'_> {
    /// The entry header at a position in the file.
    fn header(&self, position: u64) -> Option<EntryHeader> {
        let start = usize::try_from(position.checked_sub(self.at)?).ok()?;
        let bytes = self.bytes.get(start..)?;
        match self.seed {
            Some(seed) => EntryHeader::decode(seed, bytes),
            None => Some(EntryHeader::decode_trusted(bytes)),
        }
    }

    /// The entry at a position; `None` when its fact or raw bytes are damaged.
    fn entry(&self, position: u64, header: &EntryHeader) -> Option<Entry> {
        let start = (position - self.at) as usize;
        let part = |range: std::ops::Range<usize>, sum: u64| {
            let range = start + range.start..start + range.end;
            let bytes = self.bytes.get(range.clone())?;
            let good = self.seed.is_none_or(|seed| checksum(seed, bytes) == sum);
            good.then(|| self.bytes.slice(range))
        };
        Some(Entry {
            lsn: header.lsn,
            term: header.term,
            kind: header.kind,
            fact: part(header.fact_range(), header.fact_sum)?,
            raw: part(header.raw_range(), header.raw_sum)?,
            raw_len: header.raw_len as usize,
        })
    }
}

pub(crate) type Walked = SmallVec<[(u64, EntryHeader); 8]>;

/// The run's entries from the one that holds `from` on (or the first), in order, found by the back
/// links from its last one.
pub(crate) fn walk(span: &Span<'_>, run: &Run, from: Offset) -> Result<Walked, FetchError> {
    let mut found = Walked::new();
    let mut position = run.at + u64::from(run.last_entry);
    let mut to = run.last;
    loop {
        let damaged = FetchError::Damaged {
            from: from.max(run.base).min(to),
            to,
        };
        let header = span
            .header(position)
            .filter(|h| h.is_indexed() && h.key.last_offset <= to);
        let Some(header) = header else {
            return Err(damaged);
        };
        found.push((position, header));
        if header.key.base_offset <= from || header.back == 0 {
            break;
        }
        // A link leads to an entry of the same run with lower offsets, or it is damaged.
        let before = position
            .checked_sub(u64::from(header.back))
            .filter(|at| *at >= run.at);
        let (Some(at), Some(last)) = (before, header.key.base_offset.0.checked_sub(1)) else {
            return Err(damaged);
        };
        (position, to) = (at, Offset(last));
    }
    found.reverse();
    Ok(found)
}

/// What a fetch took so far: the bytes of batches, and the last offset.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Taken {
    pub(crate) bytes: usize,
    pub(crate) to: Option<Offset>,
}

/// Add the run's wanted batches to `entries`; gives whether more are wanted.
pub(crate) fn take(
    span: &Span<'_>,
    run: &Run,
    fetch: &Fetch,
    entries: &mut Vec<Entry>,
    taken: &mut Taken,
) -> Result<bool, FetchError> {
    for (position, header) in walk(span, run, fetch.offset)? {
        let key = &header.key;
        if key.last_offset < fetch.offset {
            continue;
        }
        if key.base_offset >= fetch.end {
            return Ok(false);
        }
        let raw_len = header.raw_len as usize;
        if !entries.is_empty() && taken.bytes + raw_len > fetch.bytes_max {
            return Ok(false);
        }
        let Some(entry) = span.entry(position, &header) else {
            return Err(FetchError::Damaged {
                from: key.base_offset,
                to: key.last_offset,
            });
        };
        taken.bytes += raw_len;
        taken.to = Some(key.last_offset);
        entries.push(entry);
    }
    Ok(taken.bytes < fetch.bytes_max)
}

pub(crate) fn time_match(entries: &Walked, query: &TimeQuery, from: Offset) -> Option<IndexKey> {
    let newer =
        |h: &EntryHeader| h.key.last_offset >= from && h.key.max_timestamp >= query.timestamp;
    entries
        .iter()
        .map(|(_, h)| h)
        .find(|h| newer(h))
        .map(|h| h.key)
}
