//! Once every file of a log was looked at: which should be there and are not, or not whole.
//!
//! A start and `millstream log verify` ask the same question here, so that they agree.
//!
//! Absent on purpose: groups damaged inside a file, which whoever walks it sees.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use millstream_batch::ids::Lsn;
use millstream_batch::limits::BLOCK_BYTES;

use crate::footer::Trailer;
use crate::io::FileId;
use crate::manifest::Manifest;

/// A WAL file that is there.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Present {
    pub(crate) bytes: u64,
    /// As its groups say; 0 when it has none.
    pub(crate) made_bytes: u64,
    pub(crate) has_groups: bool,
    pub(crate) trailer: Option<Trailer>,
}

/// What is known of a log's files.
#[derive(Debug)]
pub(crate) struct Census<'a> {
    /// Of the newest snapshot that can be used.
    pub(crate) manifest: Option<&'a Manifest>,
    pub(crate) files: BTreeMap<u64, Present>,
    /// Declared freed: they need not be there.
    pub(crate) freed: &'a BTreeSet<u64>,
    /// Files are made at least this long, as far as is known.
    pub(crate) made_bytes: Option<u64>,
    /// Where the log ends.
    pub(crate) last_group: u64,
    pub(crate) last_lsn: Lsn,
}

/// Something that is not there.
#[derive(Debug)]
pub(crate) struct Loss {
    pub(crate) file: FileId,
    pub(crate) at: u64,
    pub(crate) what: String,
    /// Why the log cannot go on, when entries at its end may be lost with it.
    pub(crate) stop: Option<String>,
}

impl Census<'_> {
    pub(crate) fn losses(&self) -> Vec<Loss> {
        let mut losses: Vec<Loss> = self.missing().into_iter().map(|m| self.lost(&m)).collect();
        losses.extend(self.truncated());
        losses.extend(self.lost_end());
        losses
    }

    /// Files that should be there and are not. In ranges: a name alone must not make us list all
    /// numbers below it.
    fn missing(&self) -> Vec<RangeInclusive<u64>> {
        let is_known = |n: &u64| self.files.contains_key(n) || self.freed.contains(n);
        let named = self.manifest.iter().flat_map(|m| m.files.iter().copied());
        let mut missing: Vec<_> = named.filter(|n| !is_known(n)).map(|n| n..=n).collect();
        let mut next = self.manifest.map_or(1, |m| m.next_file);
        if let Some((last, file)) = self.files.last_key_value() {
            let freed = self.freed.range(..last).copied();
            let known: BTreeSet<u64> = self.files.keys().copied().chain(freed).collect();
            for n in known.into_iter().filter(|n| *n > 0) {
                if n > next {
                    missing.push(next..=n - 1);
                }
                next = next.max(n.saturating_add(1));
            }
            let successor = last.saturating_add(1);
            let is_named = missing.iter().any(|m| m.contains(&successor));
            if file.trailer.is_some_and(|t| t.has_successor) && !is_named {
                missing.push(successor..=successor);
            }
        }
        missing.sort_unstable_by_key(|m| *m.start());
        missing
    }

    fn lost(&self, missing: &RangeInclusive<u64>) -> Loss {
        let (first, last) = (FileId::Wal(*missing.start()), *missing.end());
        let what = if last == *missing.start() {
            "this file is missing: restore it from a copy".to_owned()
        } else {
            let last = FileId::Wal(last).file_name();
            format!("this file and all up to {last} are missing: restore them from a copy")
        };
        // Between two files with groups, the numbers of entries tell what is lost.
        let is_end = |(n, file): (&u64, &Present)| n < missing.start() || !file.has_groups;
        let stop = self.files.iter().all(is_end).then(|| {
            format!(
                "{} is missing: entries in it may be lost",
                first.file_name()
            )
        });
        Loss {
            file: first,
            at: 0,
            what,
            stop,
        }
    }

    /// Files are made whole before they get their name: a short one lost what it had.
    fn truncated(&self) -> Vec<Loss> {
        let grouped = self.files.values().filter(|f| f.has_groups);
        let whole = grouped
            .map(|f| f.made_bytes.max(f.bytes))
            .chain(self.made_bytes)
            .min()
            .unwrap_or(0);
        let is_short = |(n, file): &(&u64, &Present)| {
            let blocks = file.bytes > 0 && file.bytes.is_multiple_of(BLOCK_BYTES as u64);
            !file.has_groups && !self.freed.contains(n) && (file.bytes < whole || !blocks)
        };
        let loss = |(n, file): (&u64, &Present)| {
            let (id, bytes) = (FileId::Wal(*n), file.bytes);
            Loss {
                file: id,
                at: bytes,
                what: format!("this file has {bytes} bytes and no group: it was truncated"),
                stop: Some(format!(
                    "{} was truncated to {bytes} bytes: entries may be lost",
                    id.file_name()
                )),
            }
        };
        self.files.iter().filter(is_short).map(loss).collect()
    }

    /// The log ends before what was durable.
    fn lost_end(&self) -> Option<Loss> {
        let stop = |durable: Lsn| {
            (durable > self.last_lsn).then(|| {
                format!(
                    "entries {} to {durable} are lost at the end of the log",
                    self.last_lsn.next()
                )
            })
        };
        if let Some(manifest) = self.manifest
            && self.last_group < manifest.durable_group
        {
            let (found, expected) = (self.last_group, manifest.durable_group);
            return Some(Loss {
                file: FileId::Manifest {
                    begin: manifest.begin.0,
                    temporary: false,
                },
                at: 0,
                what: format!(
                    "the log ends at group {found}, but group {expected} was durable with this snapshot"
                ),
                stop: stop(manifest.durable),
            });
        }
        let (n, last) = self
            .files
            .iter()
            .filter_map(|(n, file)| Some((*n, file.trailer?.last_lsn)))
            .max_by_key(|(_, last)| *last)?;
        let stop = stop(last)?;
        Some(Loss {
            file: FileId::Wal(n),
            at: 0,
            what: format!("its footer says that {stop}"),
            stop: Some(stop),
        })
    }
}
