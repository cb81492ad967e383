//! A start without its writes: what a start would find, and whether it would take writes.
//!
//! It is the start itself ([`crate::Log::open`]) over files that are only read: what it writes to make the
//! log's end safe is answered as done, and none of it is read back. So `millstream log verify` cannot say
//! that all is well where a start says that it is not.
//!
//! Absent on purpose: bytes that no start reads ([`crate::inspect::verify`] reads all of them).

use millstream_batch::limits::BLOCK_BYTES;

use crate::api::{Config, Event, Recovery};
use crate::buffer::AlignedBuf;
use crate::inspect::ReadAt;
use crate::io::{FileId, Io, IoDone, IoError, IoErrorKind, IoOp, IoOutput};
use crate::log::Log;

const BLOCK: u64 = BLOCK_BYTES as u64;
/// A log without files is taken to be made of these.
const SEGMENT_BYTES: u64 = 64 << 20;

/// Begin a log of these files as a start would. `replay` gets each [`Event::SnapshotPart`] and then each
/// [`Event::Replay`].
///
/// # Errors
/// When the start does not come to an end: a fault of ours.
pub fn rehearse(
    files: &[(FileId, u64)],
    read: &mut ReadAt<'_>,
    replay: &mut dyn FnMut(Event),
) -> Result<Recovery, IoError> {
    let mut log = Log::open(config(files));
    let mut asked = Vec::new();
    loop {
        while let Some(event) = log.poll() {
            match event {
                Event::Io(io) => asked.push(io),
                Event::Recovered(recovery) => return Ok(*recovery),
                Event::SnapshotPart { .. } | Event::Replay(_) => replay(event),
                _ => {}
            }
        }
        if asked.is_empty() {
            return Err(IoError {
                kind: IoErrorKind::Failed,
                message: "the start neither ends nor asks for anything".to_owned(),
            });
        }
        for Io { id, op } in asked.drain(..) {
            let result = answer(&op, files, read);
            log.io_done(IoDone { id, result });
        }
    }
}

fn answer(op: &IoOp, files: &[(FileId, u64)], read: &mut ReadAt<'_>) -> Result<IoOutput, IoError> {
    match op {
        IoOp::List => Ok(IoOutput::Listed(files.to_vec())),
        IoOp::Read { file, at, len } => {
            let bytes = read(*file, *at, *len)?;
            Ok(IoOutput::Read(AlignedBuf::copy_of(&bytes)))
        }
        IoOp::Allocate { .. }
        | IoOp::Write { .. }
        | IoOp::WriteFile { .. }
        | IoOp::Rename { .. }
        | IoOp::Remove { .. } => Ok(IoOutput::Done),
    }
}

/// Files are made between the shortest and the longest that are there, as far as can be told.
fn config(files: &[(FileId, u64)]) -> Config {
    let of_log = files.iter().filter_map(|(file, bytes)| match file {
        FileId::Wal(_) | FileId::Spare(_) => Some(bytes / BLOCK * BLOCK),
        FileId::Snapshot { .. } | FileId::Manifest { .. } => None,
    });
    let longest = of_log.clone().max().unwrap_or(SEGMENT_BYTES);
    let shortest = of_log.min().unwrap_or(SEGMENT_BYTES);
    Config {
        segment_bytes: longest.max(4 * BLOCK),
        first_segment_bytes: shortest.max(BLOCK),
        group_bytes_max: BLOCK_BYTES,
        hot_tail_bytes_max: 0,
        read_bytes_max: 0,
        spares_ready: 0,
        recycle_max: 0,
        sync_each_group: true,
        incarnation: 0,
    }
}
