//! Walking the groups of one file: what is valid, what is damaged, where the chain breaks.
//!
//! Sans-io: [`Scanner::step`] says what it needs, the caller feeds it. Recovery, the rebuilding of a
//! damaged footer and `millstream log inspect` all walk with it.
//!
//! Absent on purpose: whether a break is a torn end or damage. That takes the whole log and is
//! decided in [`crate::recover`].

use bytes::Bytes;
use millstream_batch::ids::{PartitionSlot, Term};
use millstream_batch::limits::BLOCK_BYTES;
use rustc_hash::FxHashMap;

use crate::footer::Run;
use crate::format::{
    CONTROL_FREED, EntryHeader, GROUP_HEADER_BYTES, GroupHeader, checksum, u64_at,
};

/// Bytes asked for at a time.
const CHUNK_BYTES: u64 = 2 << 20;

/// One entry as it stands in the file.
#[derive(Clone, Debug)]
pub struct ScannedEntry {
    pub header: EntryHeader,
    /// Position in the file.
    pub at: u64,
    /// `None` when the fact does not match its checksum.
    pub fact: Option<Bytes>,
    /// `None` when the raw bytes do not match their checksum.
    pub raw: Option<Bytes>,
}

impl ScannedEntry {
    /// The file that this control entry declares freed.
    #[must_use]
    pub fn freed(&self) -> Option<u64> {
        let fact = self.fact.as_ref()?;
        (self.header.is_control() && self.header.kind == CONTROL_FREED && fact.len() == 8)
            .then(|| u64_at(fact, 0))
    }
}

/// One group whose header is valid.
#[derive(Clone, Debug)]
pub struct ScannedGroup {
    pub header: GroupHeader,
    pub at: u64,
    pub entries: Vec<ScannedEntry>,
    /// Where the chain of entries breaks; the entries from there on are unknown.
    pub broken_at: Option<u64>,
}

impl ScannedGroup {
    /// Whether every byte of it is as it was written.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.broken_at.is_none()
            && self
                .entries
                .iter()
                .all(|e| e.fact.is_some() && e.raw.is_some())
    }

    /// Lsn of the last whole unit, or the one before the first when there is none. Trustworthy when the
    /// chain is not broken.
    #[must_use]
    pub fn last_lsn(&self) -> u64 {
        let own = self.entries.iter().filter(|e| e.header.ends_unit()).count() as u64;
        self.header.first_lsn.0 - 1 + own
    }

    /// Entries at the end whose unit goes on where the chain breaks.
    #[must_use]
    pub fn cut_unit(&self) -> usize {
        let from_the_end = self.entries.iter().rev();
        from_the_end.take_while(|e| e.header.has_more()).count()
    }

    /// The group's runs, as its writer made them.
    #[must_use]
    pub(crate) fn runs(&self) -> Vec<(PartitionSlot, Run)> {
        let mut map: FxHashMap<PartitionSlot, usize> = FxHashMap::default();
        let mut runs: Vec<(PartitionSlot, Run)> = Vec::new();
        for entry in self.entries.iter().filter(|e| e.header.is_indexed()) {
            let key = &entry.header.key;
            let len = entry.header.len() as u32;
            let i = *map.entry(key.slot).or_insert(runs.len());
            if i == runs.len() {
                runs.push((
                    key.slot,
                    Run {
                        base: key.base_offset,
                        last: key.last_offset,
                        append_time_max: key.append_time,
                        max_timestamp: key.max_timestamp,
                        at: entry.at,
                        len,
                        last_entry: 0,
                        bytes: entry.header.raw_len,
                        entries: 1,
                    },
                ));
            } else {
                let run = &mut runs[i].1;
                run.last = key.last_offset;
                run.append_time_max = run.append_time_max.max(key.append_time);
                run.max_timestamp = run.max_timestamp.max(key.max_timestamp);
                run.last_entry = (entry.at - run.at) as u32;
                run.len = run.last_entry + len;
                run.bytes += entry.header.raw_len;
                run.entries += 1;
            }
        }
        runs
    }
}

/// What the walk needs or found.
#[derive(Debug)]
pub enum Step {
    /// Feed these bytes of the file (fewer at its end), then step again.
    Read {
        at: u64,
        len: usize,
    },
    Group(ScannedGroup),
    /// No valid group at `at`, where the next one would be. `search` on or stop.
    Break {
        at: u64,
    },
    /// A search came to the end of the file without finding a group.
    End,
}

/// Walks one file.
#[derive(Debug)]
pub struct Scanner {
    file: u64,
    file_bytes: u64,
    at: u64,
    searching: bool,
    incarnation: Option<u64>,
    /// Groups below this number are not of this walk.
    number_min: u64,
    /// Nor are groups of a lower term: see [`Scanner::from_term`].
    term_min: Term,
    chunk: Bytes,
    chunk_at: u64,
    asked: usize,
    bytes_read: u64,
}

impl Scanner {
    /// From the file's start. `number_min`: the number that the first group should have at least.
    #[must_use]
    pub fn new(file: u64, file_bytes: u64, incarnation: Option<u64>, number_min: u64) -> Self {
        Self {
            file,
            file_bytes,
            at: 0,
            searching: false,
            incarnation,
            number_min,
            term_min: Term(0),
            chunk: Bytes::new(),
            chunk_at: 0,
            asked: 0,
            bytes_read: 0,
        }
    }

    /// Terms rise along a log. A group whose term is lower than that of one before it was cut, and its
    /// cut did not reach the disk: the start that made it failed.
    #[must_use]
    pub fn from_term(self, term_min: Term) -> Self {
        Self { term_min, ..self }
    }

    #[must_use]
    pub fn file(&self) -> u64 {
        self.file
    }

    /// Known from the first valid group on.
    #[must_use]
    pub fn incarnation(&self) -> Option<u64> {
        self.incarnation
    }

    /// Bytes fed so far.
    #[must_use]
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// Where the next group is looked for.
    #[must_use]
    pub fn at(&self) -> u64 {
        self.at
    }

    /// After a break: look for the next valid group, block by block, to the end of the file.
    pub fn search(&mut self) {
        self.searching = true;
        self.at += BLOCK_BYTES as u64;
    }

    /// The bytes that were asked for. Fewer than that mean that the file ends there.
    pub fn feed(&mut self, at: u64, bytes: Bytes) {
        let end = at + bytes.len() as u64;
        self.bytes_read += bytes.len() as u64;
        if bytes.len() < self.asked {
            self.file_bytes = self.file_bytes.min(end);
        }
        self.chunk_at = at;
        self.chunk = bytes;
    }

    pub fn step(&mut self) -> Step {
        loop {
            if self.at + GROUP_HEADER_BYTES as u64 > self.file_bytes {
                return if self.searching {
                    Step::End
                } else {
                    Step::Break { at: self.at }
                };
            }
            let Some(head) = self.held(GROUP_HEADER_BYTES) else {
                return self.ask(CHUNK_BYTES);
            };
            let Some(header) = self.accept(&head) else {
                if !self.searching {
                    return Step::Break { at: self.at };
                }
                self.at += BLOCK_BYTES as u64;
                continue;
            };
            let span = header.span() as usize;
            let here = self.at;
            if here + span as u64 <= self.file_bytes && self.held(span).is_none() {
                return self.ask(CHUNK_BYTES.max(span as u64));
            }
            // A file that ends inside a group gives what there is of it.
            let held = self
                .held(span.min((self.file_bytes - here) as usize))
                .unwrap_or_default();
            let group = parse(header, here, &held);
            self.incarnation = Some(header.incarnation);
            self.number_min = header.number + 1;
            self.term_min = header.term;
            self.at += header.span();
            self.searching = false;
            return Step::Group(group);
        }
    }

    fn ask(&mut self, len: u64) -> Step {
        self.asked = len.min(self.file_bytes - self.at) as usize;
        Step::Read {
            at: self.at,
            len: self.asked.next_multiple_of(BLOCK_BYTES),
        }
    }

    /// The next `len` bytes when the chunk has them all.
    fn held(&self, len: usize) -> Option<Bytes> {
        let start = usize::try_from(self.at.checked_sub(self.chunk_at)?).ok()?;
        let end = start.checked_add(len)?;
        (end <= self.chunk.len()).then(|| self.chunk.slice(start..end))
    }

    fn accept(&self, bytes: &[u8]) -> Option<GroupHeader> {
        let header = GroupHeader::decode(bytes)?;
        let ours = header.file == self.file
            && header.at == self.at
            && header.number >= self.number_min
            && header.term >= self.term_min
            && self.incarnation.is_none_or(|i| i == header.incarnation);
        ours.then_some(header)
    }
}

/// Check every entry of a group. `bytes` starts at the group; it may be short.
fn parse(header: GroupHeader, at: u64, bytes: &Bytes) -> ScannedGroup {
    let length = header.length as usize;
    let seed = header.incarnation;
    let mut group = ScannedGroup {
        header,
        at,
        entries: Vec::new(),
        broken_at: None,
    };
    let mut pos = GROUP_HEADER_BYTES;
    let mut lsn = header.first_lsn;
    for _ in 0..header.entries {
        let entry = bytes.get(pos..).and_then(|b| EntryHeader::decode(seed, b));
        let fits =
            |e: &EntryHeader| pos + e.len() <= length && e.lsn == lsn && e.salt == header.salt;
        let Some(entry) = entry.filter(fits) else {
            group.broken_at = Some(at + pos as u64);
            return group;
        };
        let part = |range: std::ops::Range<usize>, sum: u64| {
            let range = pos + range.start..pos + range.end;
            let part = bytes.get(range.clone())?;
            (checksum(seed, part) == sum).then(|| bytes.slice(range))
        };
        let fact = part(entry.fact_range(), entry.fact_sum);
        let raw = part(entry.raw_range(), entry.raw_sum);
        group.entries.push(ScannedEntry {
            header: entry,
            at: at + pos as u64,
            fact,
            raw,
        });
        pos += entry.len();
        if entry.ends_unit() {
            lsn = lsn.next();
        }
    }
    if pos != length || group.cut_unit() > 0 {
        group.broken_at = Some(at + pos as u64);
    }
    group
}
