//! Reading a log offline: every file, group and entry as it stands, and what is wrong with it.
//!
//! For `millstream log inspect` and `log verify`: unlike a start, it reads everything, changes
//! nothing, and needs no disk of ours: the caller lends a closure that reads.
//!
//! Absent on purpose: what a fact means (the machine decodes it), and any repair.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use millstream_batch::ids::{Lsn, PartitionSlot, Term};
use millstream_batch::limits::BLOCK_BYTES;

use crate::api::Damage;
use crate::census::{Census, Present};
use crate::footer::{Run, Summary, Trailer, decode_section};
use crate::format::FILE_BYTES_MIN;
use crate::io::{FileId, IoError};
use crate::manifest::{MANIFEST_BYTES_MAX, Manifest, Part};
use crate::scan::{ScannedGroup, Scanner, Step};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Reads `len` bytes of a file at a position; fewer at its end.
pub type ReadAt<'a> = dyn FnMut(FileId, u64, usize) -> Result<Bytes, IoError> + 'a;

/// What a walk over one file meets, in file order; the footer last.
#[derive(Debug)]
pub enum Item {
    Group(ScannedGroup),
    /// No valid group from `from` to `to`, but one at `to`.
    Gap {
        from: u64,
        to: u64,
    },
    /// No valid group from here to the end of the file.
    End {
        at: u64,
    },
    Footer {
        trailer: Trailer,
        directory: Vec<Summary>,
    },
    /// A footer that is not whole.
    DamagedFooter {
        at: u64,
    },
}

/// Walk one WAL file of `bytes` length.
///
/// # Errors
/// What `read` gave.
pub fn walk(
    file: u64,
    bytes: u64,
    read: &mut ReadAt<'_>,
    visit: &mut dyn FnMut(Item),
) -> Result<(), IoError> {
    walk_from(file, bytes, (0, Term(0)), read, visit)
}

/// As [`walk`]; groups of a lower number or term than these are of an end that was cut.
fn walk_from(
    file: u64,
    bytes: u64,
    (number_min, term_min): (u64, Term),
    read: &mut ReadAt<'_>,
    visit: &mut dyn FnMut(Item),
) -> Result<(), IoError> {
    let id = FileId::Wal(file);
    let footer = read_footer(file, bytes, read)?;
    let incarnation = match &footer {
        Some(Item::Footer { trailer, .. }) => Some(trailer.incarnation),
        _ => None,
    };
    let mut scanner =
        Scanner::new(file, bytes / BLOCK * BLOCK, incarnation, number_min).from_term(term_min);
    let mut broke = None;
    loop {
        match scanner.step() {
            Step::Read { at, len } => {
                let chunk = read(id, at, len)?;
                scanner.feed(at, chunk);
            }
            Step::Group(group) => {
                if let Some(from) = broke.take() {
                    visit(Item::Gap { from, to: group.at });
                }
                visit(Item::Group(group));
            }
            Step::Break { at } => {
                broke = Some(at);
                scanner.search();
            }
            Step::End => break,
        }
    }
    visit(Item::End {
        at: broke.unwrap_or(bytes),
    });
    if let Some(footer) = footer {
        visit(footer);
    }
    Ok(())
}

fn read_footer(file: u64, bytes: u64, read: &mut ReadAt<'_>) -> Result<Option<Item>, IoError> {
    let id = FileId::Wal(file);
    let Some(at) = (bytes / BLOCK * BLOCK).checked_sub(BLOCK) else {
        return Ok(None);
    };
    let block = read(id, at, BLOCK_BYTES)?;
    let Some(trailer) = Trailer::decode(&block, file, bytes) else {
        let claims = Trailer::claims(&block, file);
        return Ok(claims.then_some(Item::DamagedFooter { at }));
    };
    let body = read_range(
        id,
        trailer.directory_at,
        trailer.directory_bytes() as usize,
        read,
    )?;
    let Some(directory) = trailer.directory(&body) else {
        return Ok(Some(Item::DamagedFooter {
            at: trailer.directory_at,
        }));
    };
    Ok(Some(Item::Footer { trailer, directory }))
}

/// Bytes at any position, read in whole blocks.
fn read_range(file: FileId, at: u64, len: usize, read: &mut ReadAt<'_>) -> Result<Bytes, IoError> {
    let start = at / BLOCK * BLOCK;
    let end = (at + len as u64).next_multiple_of(BLOCK);
    let bytes = read(file, start, (end - start) as usize)?;
    let skip = (at - start) as usize;
    Ok(bytes.slice(skip.min(bytes.len())..(skip + len).min(bytes.len())))
}

/// What `verify` found.
#[derive(Clone, Debug, Default)]
pub struct Verified {
    pub files: u64,
    pub groups: u64,
    pub entries: u64,
    pub batches: u64,
    pub bytes: u64,
    pub last: Lsn,
    /// The newest snapshot: its begin and its archives.
    pub snapshot: Option<(Lsn, usize)>,
    /// Damage below the durable point.
    pub damage: Vec<Damage>,
    /// At the end of the log and proved by nothing: a write that never finished. The next start
    /// cuts it.
    pub torn: Vec<Damage>,
}

/// Check every byte of a shard's directory. The broker must not be running on it.
///
/// # Errors
/// What `read` gave.
pub fn verify(files: &[(FileId, u64)], read: &mut ReadAt<'_>) -> Result<Verified, IoError> {
    let mut check = Check::default();
    let (mut files, strange): (Vec<_>, Vec<_>) = files
        .iter()
        .copied()
        .partition(|(file, _)| file.is_possible());
    for (file, _) in strange {
        check.suspect(None, file, 0, "the log numbers no file so".to_owned());
    }
    files.sort_unstable();
    check.snapshot(&files, read)?;
    for (file, bytes) in &files {
        if let FileId::Wal(n) = file {
            check.file(*n, *bytes, read)?;
        }
    }
    let spare = |(file, bytes): &(FileId, u64)| matches!(file, FileId::Spare(_)).then_some(*bytes);
    Ok(check.judge(files.iter().filter_map(spare).min()))
}

#[derive(Default)]
struct Check {
    found: Verified,
    manifest: Option<Manifest>,
    /// With the group that would prove it damage; `None`: nothing but damage explains it.
    suspects: Vec<(Option<u64>, Damage)>,
    proved: u64,
    last_group: u64,
    /// Of the last group.
    term: Term,
    last_file: u64,
    freed: BTreeSet<u64>,
    present: BTreeMap<u64, Present>,
}

impl Check {
    fn suspect(&mut self, group: Option<u64>, file: FileId, at: u64, what: String) {
        let file = file.file_name();
        self.suspects.push((group, Damage { file, at, what }));
    }

    fn snapshot(&mut self, files: &[(FileId, u64)], read: &mut ReadAt<'_>) -> Result<(), IoError> {
        for (file, bytes) in files.iter().rev() {
            let FileId::Manifest {
                begin,
                temporary: false,
            } = file
            else {
                continue;
            };
            let len = (*bytes).min(MANIFEST_BYTES_MAX) as usize;
            let manifest = Manifest::decode(&read_range(*file, 0, len, read)?);
            let Some(manifest) = manifest.filter(|m| m.begin.0 == *begin) else {
                self.suspect(
                    None,
                    *file,
                    0,
                    "this snapshot manifest is damaged".to_owned(),
                );
                continue;
            };
            for (part, expected) in manifest.parts.iter().enumerate() {
                let part = FileId::Snapshot {
                    begin: *begin,
                    part: part as u32,
                };
                let len = files.iter().find(|(f, _)| *f == part).map(|(_, len)| *len);
                let whole = match len {
                    Some(len) if len == expected.len => {
                        let bytes = read_range(part, 0, len as usize, read)?;
                        Part::of(Lsn(*begin), &bytes) == *expected
                    }
                    _ => false,
                };
                if !whole {
                    let what = "this snapshot archive is missing or damaged";
                    self.suspect(None, part, 0, what.to_owned());
                }
            }
            self.found.snapshot = Some((Lsn(*begin), manifest.parts.len()));
            self.proved = manifest.durable_group;
            self.manifest = Some(manifest);
            return Ok(());
        }
        Ok(())
    }

    fn file(&mut self, n: u64, bytes: u64, read: &mut ReadAt<'_>) -> Result<(), IoError> {
        let id = FileId::Wal(n);
        let mut present = Present {
            bytes,
            ..Present::default()
        };
        if let Some(m) = &self.manifest
            && n < m.next_file
            && !m.files.contains(&n)
        {
            // Freed; the next start takes it away.
            self.freed.insert(n);
            self.present.insert(n, present);
            return Ok(());
        }
        // Files freed between two others leave a gap of numbers at the start of the next.
        let mut follows = self.last_file + 1 == n && !self.freed.contains(&self.last_file);
        self.last_file = n;
        self.found.files += 1;
        let mut items = Vec::new();
        let from = (self.last_group + 1, self.term);
        walk_from(n, bytes, from, read, &mut |item| {
            items.push(Light::of(item));
        })?;
        let mut runs: BTreeMap<PartitionSlot, Vec<Run>> = BTreeMap::new();
        let mut last_in_file = 0;
        for item in items {
            match item {
                Light::Group(group) => {
                    if follows && group.number > self.last_group + 1 {
                        let (first, last) = (self.last_group + 1, group.number - 1);
                        let what = format!(
                            "groups {first} to {last} are damaged or missing before this one"
                        );
                        self.suspect(Some(first), id, group.at, what);
                    }
                    follows = true;
                    last_in_file = group.number;
                    present.has_groups = true;
                    present.made_bytes = group.file_bytes;
                    self.group(id, bytes, &group, &mut runs);
                }
                Light::Gap { from, to } => {
                    let what = format!("no valid group from here to byte {to}, where one is");
                    self.suspect(Some(self.last_group + 1), id, from, what);
                    follows = false; // told already
                }
                Light::End => {}
                Light::DamagedFooter { at } => {
                    let what = "the footer is damaged; a start makes it anew".to_owned();
                    self.suspect(None, id, at, what);
                }
                Light::Footer { trailer, directory } => {
                    self.proved = self.proved.max(trailer.last_group);
                    present.trailer = Some(trailer);
                    if last_in_file < trailer.last_group {
                        let what = format!(
                            "groups {} to {} are damaged or missing",
                            last_in_file + 1,
                            trailer.last_group
                        );
                        self.suspect(Some(trailer.last_group), id, 0, what);
                    }
                    self.last_group = self.last_group.max(trailer.last_group);
                    self.sections(id, &trailer, &directory, &runs, read)?;
                }
            }
        }
        self.present.insert(n, present);
        Ok(())
    }

    fn group(
        &mut self,
        id: FileId,
        bytes: u64,
        group: &LightGroup,
        runs: &mut BTreeMap<PartitionSlot, Vec<Run>>,
    ) {
        self.found.groups += 1;
        self.found.entries += group.entries;
        self.found.batches += group.batches;
        self.found.bytes += group.span;
        self.found.last = self.found.last.max(Lsn(group.last_lsn));
        self.proved = self.proved.max(group.proved);
        self.last_group = group.number;
        self.term = group.term;
        if let FileId::Wal(file) = id {
            // A file is declared freed in a later one.
            self.freed.extend(group.freed.iter().filter(|n| **n < file));
        }
        if bytes < group.file_bytes {
            let what = format!(
                "this file was made {} bytes long and has {bytes}: it was truncated",
                group.file_bytes
            );
            let known = self.suspects.iter().any(|(_, d)| d.what == what);
            if !known {
                self.suspect(None, id, bytes, what);
            }
        }
        for (at, what) in &group.wrong {
            self.suspect(Some(group.number), id, *at, what.clone());
        }
        for (slot, run) in &group.runs {
            runs.entry(*slot).or_default().push(*run);
        }
    }

    /// The footer must say what the groups say.
    fn sections(
        &mut self,
        id: FileId,
        trailer: &Trailer,
        directory: &[Summary],
        runs: &BTreeMap<PartitionSlot, Vec<Run>>,
        read: &mut ReadAt<'_>,
    ) -> Result<(), IoError> {
        for summary in directory {
            let bytes = read_range(id, summary.section_at, summary.section_bytes(), read)?;
            let section = decode_section(trailer.incarnation, summary, &bytes);
            if section.as_ref() != runs.get(&summary.slot) {
                let what = format!(
                    "the footer's section of slot {} is not what the file holds",
                    summary.slot
                );
                self.suspect(None, id, summary.section_at, what);
            }
        }
        Ok(())
    }

    /// `spare_bytes`: the shortest spare file; files are made of them.
    fn judge(mut self, spare_bytes: Option<u64>) -> Verified {
        let begin = self.manifest.as_ref().map_or(Lsn(0), |m| m.begin);
        let census = Census {
            manifest: self.manifest.as_ref(),
            files: std::mem::take(&mut self.present),
            freed: &self.freed,
            made_bytes: spare_bytes.map(|bytes| bytes.min(FILE_BYTES_MIN)),
            last_group: self.last_group,
            last_lsn: self.found.last.max(begin),
        };
        for loss in census.losses() {
            self.found.damage.push(Damage {
                file: loss.file.file_name(),
                at: loss.at,
                what: loss.what,
            });
        }
        for (group, damage) in self.suspects {
            if group.is_some_and(|g| g > self.proved) {
                self.found.torn.push(damage);
            } else {
                self.found.damage.push(damage);
            }
        }
        self.found
    }
}

/// What `verify` keeps of an item: no bytes.
enum Light {
    Group(LightGroup),
    Gap {
        from: u64,
        to: u64,
    },
    End,
    Footer {
        trailer: Trailer,
        directory: Vec<Summary>,
    },
    DamagedFooter {
        at: u64,
    },
}

struct LightGroup {
    at: u64,
    number: u64,
    term: Term,
    proved: u64,
    span: u64,
    file_bytes: u64,
    entries: u64,
    batches: u64,
    last_lsn: u64,
    freed: Vec<u64>,
    runs: Vec<(PartitionSlot, Run)>,
    wrong: Vec<(u64, String)>,
}

impl Light {
    fn of(item: Item) -> Self {
        match item {
            Item::Group(group) => Self::Group(LightGroup::of(&group)),
            Item::Gap { from, to } => Self::Gap { from, to },
            Item::End { .. } => Self::End,
            Item::Footer { trailer, directory } => Self::Footer { trailer, directory },
            Item::DamagedFooter { at } => Self::DamagedFooter { at },
        }
    }
}

impl LightGroup {
    fn of(group: &ScannedGroup) -> Self {
        let mut wrong = Vec::new();
        for entry in &group.entries {
            let key = &entry.header.key;
            if entry.fact.is_none() {
                wrong.push((
                    entry.at,
                    format!("the fact of entry {} is damaged", entry.header.lsn),
                ));
            }
            if entry.raw.is_none() {
                let what = if entry.header.is_indexed() {
                    format!(
                        "the batch of slot {}, offsets {} to {}, is damaged",
                        key.slot, key.base_offset, key.last_offset
                    )
                } else {
                    format!("the raw bytes of entry {} are damaged", entry.header.lsn)
                };
                wrong.push((entry.at, what));
            }
        }
        if let Some(at) = group.broken_at {
            wrong.push((
                at,
                format!(
                    "group {} is damaged from here to its end",
                    group.header.number
                ),
            ));
        }
        Self {
            at: group.at,
            number: group.header.number,
            term: group.header.term,
            proved: group.header.proved,
            span: group.header.span(),
            file_bytes: group.header.file_bytes,
            entries: group.entries.len() as u64,
            batches: group
                .entries
                .iter()
                .filter(|e| e.header.is_indexed())
                .count() as u64,
            last_lsn: group.last_lsn(),
            freed: group.entries.iter().filter_map(|e| e.freed()).collect(),
            runs: group.runs(),
            wrong,
        }
    }
}
