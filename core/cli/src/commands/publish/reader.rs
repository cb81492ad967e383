//! The thread that reads: input to records, records to the producer, and where each came from.
//!
//! Deliberately absent: what becomes of them (`outcomes`).

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use millstream_client::batch::limits::BATCH_INFLATED_BYTES_MAX;
use millstream_client::{ErrorKind, Header, Producer, Record, RecordRef, Topic};
use tokio::sync::mpsc;

use super::Arguments;
use super::outcomes::{Complaints, Sent};
use crate::input::{Cut, from_json, split_key};

/// Bytes read at once.
const BLOCK_BYTES: usize = 256 << 10;
/// The largest record that compression may bring below the broker's bound.
const RECORD_BYTES_MAX: usize = BATCH_INFLATED_BYTES_MAX;
/// Records handed over at once.
const SLICE_RECORDS: usize = 2_048;

/// Where records come from.
#[derive(Debug)]
pub(super) enum Source {
    /// Standard input, cut into records.
    Cut(Cut),
    /// Standard input as one record.
    Whole,
    Messages(Vec<OsString>),
    Files(Vec<PathBuf>),
}

impl Source {
    pub(super) fn is_stdin(&self) -> bool {
        matches!(self, Self::Cut(_) | Self::Whole)
    }
}

/// How a piece of input becomes a record.
pub(super) struct Plan {
    separator: Option<Vec<u8>>,
    key: Option<Vec<u8>>,
    partition: Option<u32>,
    json: bool,
    keep_partitions: bool,
    headers: Vec<Header>,
    skip_empty: bool,
}

impl Plan {
    pub(super) fn of(arguments: &Arguments) -> Self {
        Self {
            separator: arguments
                .key_separator
                .as_ref()
                .map(|text| text.clone().into_bytes()),
            key: arguments.key.as_ref().map(|key| key.clone().into_bytes()),
            partition: arguments.partition,
            json: arguments.json,
            keep_partitions: arguments.keep_partitions,
            headers: arguments
                .header
                .iter()
                .map(|(name, value)| Header::new(name.clone(), value.clone()))
                .collect(),
            skip_empty: arguments.skip_empty,
        }
    }
}

/// What the reading thread and the main thread tell each other.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) stop: AtomicBool,
    /// Pieces of input so far: the number of the next is one more.
    pub(super) read: AtomicU64,
    /// Of those, what did not get as far as the producer.
    pub(super) refused: AtomicU64,
}

pub(super) struct Reader {
    pub(super) runtime: tokio::runtime::Handle,
    pub(super) producer: Producer,
    pub(super) topic: Topic,
    pub(super) shared: Arc<Shared>,
    pub(super) plan: Plan,
    pub(super) complaints: Arc<Complaints>,
    pub(super) sent: mpsc::UnboundedSender<Sent>,
}

impl Reader {
    /// Until the end of the input, or until nothing can be sent any more.
    pub(super) fn run(self, source: Source) -> io::Result<()> {
        match source {
            Source::Cut(cut) => self.stream(&cut, io::stdin().lock()),
            Source::Whole => {
                let whole = bounded(io::stdin().lock())?;
                self.hand_over(&mut std::iter::once(&whole[..]));
                Ok(())
            }
            Source::Messages(messages) => {
                self.hand_over(&mut messages.iter().map(|message| message.as_bytes()));
                Ok(())
            }
            Source::Files(paths) => {
                self.files(&paths);
                Ok(())
            }
        }
    }

    fn stream(&self, cut: &Cut, mut input: impl Read) -> io::Result<()> {
        let mut block = vec![0; BLOCK_BYTES];
        let (mut filled, mut searched) = (0, 0);
        loop {
            if filled == block.len() {
                if filled >= RECORD_BYTES_MAX {
                    return Err(too_long());
                }
                block.resize(filled * 2, 0);
            }
            match input.read(&mut block[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            let mut pieces = cut.pieces(&block[..filled], searched);
            if !self.hand_over(&mut pieces) || self.shared.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let consumed = pieces.consumed();
            block.copy_within(consumed..filled, 0);
            filled -= consumed;
            searched = filled;
        }
        if filled > 0 {
            self.hand_over(&mut std::iter::once(&block[..filled]));
        }
        Ok(())
    }

    fn files(&self, paths: &[PathBuf]) {
        for path in paths {
            if self.shared.stop.load(Ordering::Relaxed) {
                return;
            }
            let go_on = match read_file(path) {
                Ok(bytes) => self.hand_over(&mut std::iter::once(&bytes[..])),
                Err(error) => {
                    let number = self.next_number();
                    self.refuse(number, &error);
                    true
                }
            };
            if !go_on {
                return;
            }
        }
    }

    /// `false`: nothing more can be sent.
    fn hand_over<'a>(&self, pieces: &mut impl Iterator<Item = &'a [u8]>) -> bool {
        if self.plan.json {
            self.hand_over_json(pieces)
        } else {
            self.hand_over_plain(pieces)
        }
    }

    fn hand_over_plain<'a>(&self, pieces: &mut impl Iterator<Item = &'a [u8]>) -> bool {
        let plan = &self.plan;
        let mut slice: Vec<RecordRef<'_>> = Vec::with_capacity(SLICE_RECORDS);
        let mut first = 0;
        for piece in pieces {
            let number = self.next_number();
            if plan.skip_empty && piece.is_empty() {
                // The numbers of a slice have no holes.
                if !self.send(&slice, first) {
                    return false;
                }
                slice.clear();
                continue;
            }
            if slice.is_empty() {
                first = number;
            }
            let (key, value) = match &plan.separator {
                Some(separator) => split_key(piece, separator),
                None => (plan.key.as_deref(), piece),
            };
            slice.push(RecordRef {
                key,
                value: Some(value),
                headers: &plan.headers,
                timestamp_ms: None,
                partition: plan.partition,
            });
            if slice.len() == SLICE_RECORDS {
                if !self.send(&slice, first) {
                    return false;
                }
                slice.clear();
            }
        }
        self.send(&slice, first)
    }

    fn hand_over_json<'a>(&self, pieces: &mut impl Iterator<Item = &'a [u8]>) -> bool {
        let plan = &self.plan;
        let mut parsed: Vec<Record> = Vec::new();
        let mut first = 0;
        let send = |parsed: &mut Vec<Record>, first| {
            let slice: Vec<RecordRef<'_>> = parsed.iter().map(RecordRef::from).collect();
            let goes_on = self.send(&slice, first);
            parsed.clear();
            goes_on
        };
        for piece in pieces {
            let number = self.next_number();
            let record = if plan.skip_empty && piece.is_empty() {
                None
            } else {
                Some(from_json(piece, plan.keep_partitions))
            };
            match record {
                Some(Ok(mut record)) => {
                    record.headers.extend_from_slice(&plan.headers);
                    record.partition = plan.partition.or(record.partition);
                    if parsed.is_empty() {
                        first = number;
                    }
                    parsed.push(record);
                    if parsed.len() == SLICE_RECORDS && !send(&mut parsed, first) {
                        return false;
                    }
                }
                // The numbers of a slice have no holes.
                hole => {
                    if !send(&mut parsed, first) {
                        return false;
                    }
                    if let Some(Err(error)) = hole {
                        self.refuse(number, &error);
                    }
                }
            }
        }
        send(&mut parsed, first)
    }

    /// Records that follow each other in the input, the first of this number.
    fn send(&self, mut records: &[RecordRef<'_>], mut first: u64) -> bool {
        while !records.is_empty() {
            let mut deliveries = Vec::new();
            let enqueued = self.topic.try_enqueue_tracked(records, &mut deliveries);
            if !deliveries.is_empty() {
                // Nobody follows them when the command is ending.
                let _ = self.sent.send(Sent { first, deliveries });
            }
            records = &records[enqueued.taken..];
            first += enqueued.taken as u64;
            if let Some(error) = enqueued.refused {
                self.refuse(first, &error.to_string());
                records = &records[1..];
                first += 1;
                if error.kind() == ErrorKind::Closed {
                    return false;
                }
            } else if !records.is_empty() && self.runtime.block_on(self.producer.room()).is_err() {
                let rest = records.len() as u64;
                self.shared.refused.fetch_add(rest, Ordering::Relaxed);
                return false;
            }
        }
        true
    }

    fn next_number(&self) -> u64 {
        self.shared.read.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn refuse(&self, number: u64, why: &str) {
        self.shared.refused.fetch_add(1, Ordering::Relaxed);
        self.complaints.tell(number, number, why);
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    File::open(path)
        .and_then(bounded)
        .map_err(|error| error.to_string())
}

/// Everything, if that may be one record.
fn bounded(input: impl Read) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    input
        .take(RECORD_BYTES_MAX as u64 + 1)
        .read_to_end(&mut all)?;
    if all.len() > RECORD_BYTES_MAX {
        return Err(too_long());
    }
    Ok(all)
}

fn too_long() -> io::Error {
    io::Error::other(format!(
        "a record is over {RECORD_BYTES_MAX} bytes, the most that a batch may have before compression"
    ))
}
