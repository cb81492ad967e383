//! Opening: the newest snapshot, then the tail, then the end of the log made safe.
//!
//! ```text
//!  List ─▶ Manifest ─▶ Parts ─▶ Trailers ─▶ Scan (▸ Peek) ─▶ Mend (▸ Reread) ─▶ mark, synced ─▶ Recovered
//! ```
//!
//! **Torn or damaged.** A group says up to which group everything was synced when it was written. A
//! group that is not whole, or is missing, is *damage* when any valid group, footer or manifest
//! proves its number, wherever that is found; else it is the *torn end* and is cut with all after it.
//! Groups not yet proved are held back until they are, so nothing is replayed that is later cut.
//!
//! Absent on purpose: what entries mean; walking a file ([`crate::scan`]).

mod begin;
mod end;
mod mend;
mod tail;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use millstream_batch::ids::{Lsn, Term};
use millstream_batch::limits::BLOCK_BYTES;

use self::mend::{Mend, Piece};
use crate::api::{Damage, Recovery};
use crate::footer::Trailer;
use crate::io::{FileId, IoError, IoOp, IoOutput};
use crate::log::{Log, Purpose, read_output};
use crate::manifest::Manifest;
use crate::scan::{ScannedGroup, Scanner};

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Read from the end of a file for its trailer: most directories come with it.
const TRAILER_READ_BYTES: u64 = 64 << 10;

#[derive(Debug, Default)]
enum Stage {
    #[default]
    List,
    Manifest,
    Parts,
    /// The end of this file is being read, from that position.
    Trailer {
        file: u64,
        at: u64,
    },
    Directory {
        trailer: Trailer,
        at: u64,
    },
    Scan,
    /// The first block of the file after the one being scanned.
    Peek,
    /// A piece that is to be written anew is being read.
    Reread(Piece),
    /// A mending operation is in flight. If it fails, this is what could not be done.
    Mend {
        undone: &'static str,
    },
}

/// Groups not yet proved, in log order.
#[derive(Debug)]
enum Unproved {
    Group {
        file: u64,
        group: ScannedGroup,
    },
    /// Groups up to `last` should be here and are not.
    Missing {
        file: u64,
        at: u64,
        first: u64,
        last: u64,
    },
}

/// A file found, and what is known of it.
#[derive(Debug)]
struct Found {
    bytes: u64,
    trailer: Option<Trailer>,
    /// Where the chain of groups ended.
    end: u64,
    /// As its groups say; 0 when it has none.
    made_bytes: u64,
    groups: Option<(u64, u64)>,
}

#[derive(Debug, Default)]
pub(crate) struct Recover {
    stage: Stage,
    files: BTreeMap<u64, Found>,
    spares: BTreeMap<u64, u64>,
    next_spare: u64,
    snapshot_files: Vec<(FileId, u64)>,
    /// Begins of published snapshots not tried yet, oldest first.
    manifests: Vec<u64>,
    manifest: Option<Manifest>,
    parts: Vec<Bytes>,
    /// Snapshots were there and none could be used.
    snapshot_lost: bool,
    trailers: VecDeque<u64>,
    /// Footers that are not whole, with where: torn or damaged.
    footers: Vec<(u64, u64)>,
    scans: VecDeque<u64>,
    scanner: Option<Scanner>,
    broke_at: u64,
    unproved: VecDeque<Unproved>,
    proved: u64,
    /// Last group and entry seen in order.
    last_group: u64,
    seen_group: u64,
    seen_term: Term,
    last_lsn: Lsn,
    last_flags: u16,
    term: Term,
    /// The term was raised in this start.
    raised: bool,
    freed: BTreeSet<u64>,
    /// Facts are not replayed from here on, and why.
    stop: Option<String>,
    report: Recovery,
    mends: VecDeque<Mend>,
}

impl Recover {
    fn begin(&self) -> Lsn {
        self.manifest.as_ref().map_or(Lsn(0), |m| m.begin)
    }

    fn damage(&mut self, file: FileId, at: u64, what: String) {
        self.report.damage.push(Damage {
            file: file.file_name(),
            at,
            what,
        });
    }

    /// Facts may be missing from here on: nothing after is replayed.
    fn stop(&mut self, why: String) {
        self.stop.get_or_insert(why);
    }
}

impl Log {
    pub(crate) fn recover_done(&mut self, result: Result<IoOutput, IoError>) {
        let Some(mut recover) = self.recover.take() else {
            return;
        };
        match std::mem::take(&mut recover.stage) {
            Stage::List => match result {
                Ok(IoOutput::Listed(files)) => self.listed(recover, files),
                Ok(_) => unreachable!("a list is answered by a list or an error"),
                Err(e) => {
                    recover.stop(format!("the data directory cannot be listed: {e}"));
                    self.fail(e);
                    self.give_up(recover);
                }
            },
            Stage::Manifest => self.manifest_read(recover, read_output(result)),
            Stage::Parts => self.part_read(recover, read_output(result)),
            Stage::Trailer { file, at } => {
                self.trailer_read(recover, file, at, read_output(result));
            }
            Stage::Directory { trailer, at } => {
                self.directory_read(recover, trailer, at, read_output(result));
            }
            Stage::Scan => self.scan_read(recover, read_output(result)),
            Stage::Peek => self.peeked(recover, read_output(result)),
            Stage::Reread(piece) => self.reread(recover, &piece, result),
            Stage::Mend { undone } => match result {
                Ok(_) => self.mend(recover),
                Err(e) => self.not_mended(recover, undone, e),
            },
        }
    }

    fn ask(&mut self, mut recover: Box<Recover>, stage: Stage, op: IoOp) {
        recover.stage = stage;
        self.recover = Some(recover);
        self.out.io(op, Purpose::Recover);
    }
}

impl Recover {
    fn snapshot_bytes(&self, file: FileId) -> Option<u64> {
        self.snapshot_files
            .iter()
            .find(|(f, _)| *f == file)
            .map(|(_, bytes)| *bytes)
    }

    /// The last group of the files before this one.
    fn last_group_before(&self, file: u64) -> u64 {
        let before = self.files.range(..file);
        before
            .filter_map(|(_, found)| Some(found.groups?.1))
            .max()
            .unwrap_or(0)
    }

    fn search(&mut self) {
        self.scanner
            .as_mut()
            .expect("a file is being scanned")
            .search();
    }

    /// No snapshot can be used: the log alone must do, if it is whole.
    fn without_snapshot(&mut self) {
        if !self.files.contains_key(&1) {
            self.stop("the snapshot is damaged and the log before it was freed: restore the snapshot from a copy".to_owned());
        }
    }
}
