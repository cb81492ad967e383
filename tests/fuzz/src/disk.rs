//! A log on files in memory: every request is done at once and for good.

use std::collections::BTreeMap;

use bytes::Bytes;
use millstream_batch::ids::{Lsn, Offset};
use millstream_log::buffer::AlignedBuf;
use millstream_log::io::{FileId, IoDone, IoError, IoErrorKind, IoOp, IoOutput};
use millstream_log::{Config, Entry, Event, FetchError, Log, Recovery};

use crate::entry::{fetch_from, offset_after};

pub(crate) type Files = BTreeMap<FileId, Vec<u8>>;

pub(crate) const SEGMENT_BYTES: u64 = 64 << 10;
/// More events than any opening of such small files takes: past it, it hangs.
const EVENTS_MAX: usize = 100_000;

/// One life of a log, from its opening.
pub(crate) struct Life {
    pub(crate) log: Log,
    pub(crate) files: Files,
    pub(crate) recovery: Option<Recovery>,
    pub(crate) replayed: Vec<(Lsn, u16, Bytes)>,
    pub(crate) durable: Lsn,
    failed: bool,
    answers: Vec<Result<Vec<Entry>, FetchError>>,
}

impl Life {
    pub(crate) fn open(files: Files, incarnation: u64) -> Self {
        let log = Log::open(Config {
            segment_bytes: SEGMENT_BYTES,
            first_segment_bytes: SEGMENT_BYTES,
            group_bytes_max: SEGMENT_BYTES as usize / 4,
            hot_tail_bytes_max: 16 << 10,
            read_bytes_max: 36 << 20,
            spares_ready: 1,
            recycle_max: 1,
            sync_each_group: true,
            incarnation,
        });
        Self {
            log,
            files,
            recovery: None,
            replayed: Vec::new(),
            durable: Lsn(0),
            failed: false,
            answers: Vec::new(),
        }
    }

    /// Whether the log is open and takes entries.
    pub(crate) fn may_write(&self) -> bool {
        let open = self
            .recovery
            .as_ref()
            .is_some_and(|found| found.read_only.is_none());
        open && !self.failed
    }

    /// Do all that the log asks for, until it asks for nothing.
    pub(crate) fn carry(&mut self) {
        for _ in 0..EVENTS_MAX {
            let Some(event) = self.log.poll() else { return };
            match event {
                Event::Io(io) => {
                    let result = io.op.check().and_then(|()| self.perform(io.op));
                    self.log.io_done(IoDone { id: io.id, result });
                }
                Event::Replay(unit) => {
                    let entries = unit.entries.into_iter();
                    self.replayed
                        .extend(entries.map(|entry| (entry.lsn, entry.kind, entry.fact)));
                }
                Event::Durable(lsn) => self.durable = lsn,
                Event::Recovered(found) => self.recovery = Some(*found),
                Event::Fetched { result, .. } => self.answers.push(result),
                Event::Failed(_) => self.failed = true,
                _ => {}
            }
        }
        panic!("{EVENTS_MAX} events, and no end");
    }

    /// Everything of the first slots, answer by answer, over damage.
    pub(crate) fn fetch_all(&mut self, slots: u32) -> Vec<Result<Vec<Entry>, FetchError>> {
        let mut all = Vec::new();
        if self.recovery.is_none() {
            return all;
        }
        for slot in 0..slots {
            let mut next = Offset(0);
            // As many answers as there are offsets, at most: each moves on.
            for _ in 0..1_000 {
                self.log.fetch(fetch_from(slot, next));
                self.carry();
                let Some(answer) = self.answers.pop() else {
                    break;
                };
                let after = match &answer {
                    Ok(entries) => entries.last().and_then(|entry| offset_after(&entry.fact)),
                    Err(FetchError::Damaged { to, .. }) => to.0.checked_add(1).map(Offset),
                    Err(FetchError::Io(_)) => None,
                };
                all.push(answer);
                match after {
                    Some(after) if after > next => next = after,
                    _ => break,
                }
            }
        }
        all
    }

    fn perform(&mut self, op: IoOp) -> Result<IoOutput, IoError> {
        let missing = || IoError {
            kind: IoErrorKind::NotFound,
            message: "no such file".to_owned(),
        };
        match op {
            IoOp::List => {
                let list = self
                    .files
                    .iter()
                    .map(|(id, bytes)| (*id, bytes.len() as u64));
                Ok(IoOutput::Listed(list.collect()))
            }
            IoOp::Allocate { file, len } => {
                self.files
                    .insert(file, vec![0; usize::try_from(len).expect("a small file")]);
                Ok(IoOutput::Done)
            }
            IoOp::Write {
                file, at, buf, len, ..
            } => {
                let bytes = self.files.get_mut(&file).ok_or_else(missing)?;
                let end = usize::try_from(at).expect("a small file") + len;
                if bytes.len() < end {
                    // A real file grows; that the log never asks for it is the simulator's check.
                    bytes.resize(end, 0);
                }
                bytes[end - len..end].copy_from_slice(&buf[..len]);
                Ok(IoOutput::Done)
            }
            IoOp::WriteFile { file, bytes } => {
                self.files.insert(file, bytes.to_vec());
                Ok(IoOutput::Done)
            }
            IoOp::Read { file, at, len } => {
                let bytes = self.files.get(&file).ok_or_else(missing)?;
                let start = usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
                let end = start.saturating_add(len).min(bytes.len());
                Ok(IoOutput::Read(AlignedBuf::copy_of(&bytes[start..end])))
            }
            IoOp::Rename { from, to } => {
                let bytes = self.files.remove(&from).ok_or_else(missing)?;
                self.files.insert(to, bytes);
                Ok(IoOutput::Done)
            }
            IoOp::Remove { file } => {
                self.files.remove(&file).ok_or_else(missing)?;
                Ok(IoOutput::Done)
            }
        }
    }
}
