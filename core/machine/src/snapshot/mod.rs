//! Snapshots: cut into slices while facts go on, each slice as of its own lsn.
//!
//! ```text
//!   slice:  magic "MSTSNAP4" │ shard u16 │ shards u16 │ 0 u32 │ archived `Slice`
//!           8 bytes            2           2            4       aligned to 16
//!   Slice:  as of │ from, to: keys │ (section, version, archived vector of its cells) …
//! ```
//!
//! The driver begins a snapshot at lsn B, takes slices until [`Cut::next`] is none, writing each as
//! one part, and publishes once the log is durable up to the last slice's `as_of`. To restore it gives
//! the parts in order and replays the tail after B: a fact that a cell's slice holds already is
//! passed over for that cell. Slices are as long as asked, so that taking one stays under a
//! millisecond. What is in them stands in the table of sections ([`table`]). Absent on purpose: files,
//! checksums (the log's).

mod guard;
pub(crate) mod key;
mod slice;
pub(crate) mod table;

use bytes::Bytes;
use millstream_batch::ids::{Lsn, ShardId};

use crate::bounds::Limits;
use crate::state::State;
pub(crate) use guard::Guard;
use key::Key;

const MAGIC: [u8; 8] = *b"MSTSNAP4";
const HEAD_BYTES: usize = 16;

/// Longest slice, in bytes: so that one archive can always be read back into memory at once.
pub const SLICE_BYTES_MAX: usize = 64 << 20;

/// Where the next slice of a snapshot begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor(Key);

/// One slice, and where the next begins.
#[derive(Clone, Debug)]
pub struct Cut {
    pub bytes: Bytes,
    /// The lsn whose state the slice shows: the log must be durable up to it before the snapshot is
    /// published.
    pub as_of: Lsn,
    /// `None`: this was the last.
    pub next: Option<Cursor>,
}

/// Why bytes are not a slice of this shard's snapshot. The log's checksums held, so trying again
/// gains nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    #[error(
        "this is not a snapshot of a version known here: start the version that wrote it, or a newer one"
    )]
    UnknownVersion,
    #[error(
        "the snapshot is of shard {shard} of {shards}, not of this one: the directory was mixed with another"
    )]
    OtherShard { shard: ShardId, shards: u16 },
    #[error("a snapshot part of {bytes} bytes is malformed ({what}): run `millstream log verify`")]
    Malformed { bytes: usize, what: &'static str },
    #[error("the snapshot is incomplete: a part is missing or out of order")]
    Incomplete,
}

impl State {
    /// The next slice of a snapshot: cells of about `bytes_target` bytes, at least one, as of now.
    /// `None` begins.
    #[must_use]
    pub fn snapshot(&self, cursor: Option<&Cursor>, bytes_target: usize) -> Cut {
        slice::cut(
            self,
            cursor.map(|cursor| &cursor.0),
            bytes_target.min(SLICE_BYTES_MAX / 2),
        )
    }

    /// The state that a snapshot begun at `begin` shows. The tail after `begin` is to be installed on
    /// top; until it is, cells are of different lsns and nothing may be decided.
    pub fn restore<P: AsRef<[u8]>>(
        shard: ShardId,
        shards: u16,
        limits: Limits,
        begin: Lsn,
        parts: impl IntoIterator<Item = P>,
    ) -> Result<Self, SnapshotError> {
        let mut state = Self::new(shard, shards, limits);
        for part in parts {
            state.restore_part(part.as_ref())?;
        }
        state.restored(begin)?;
        Ok(state)
    }

    /// As `restore`, of whichever shard the parts are of: for looking into a directory.
    pub fn restore_any<P: AsRef<[u8]>>(
        limits: Limits,
        begin: Lsn,
        parts: impl IntoIterator<Item = P>,
    ) -> Result<Self, SnapshotError> {
        let mut parts = parts.into_iter().peekable();
        let first = parts.peek().map(AsRef::as_ref).unwrap_or_default();
        let (shard, shards) = slice::shard_of(first)?;
        Self::restore(shard, shards, limits, begin, parts)
    }

    /// Loads the next part into a new state: for a driver that is given parts one by one.
    pub fn restore_part(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        slice::restore(self, bytes)
    }

    /// Ends a restore by parts: checks that none is missing.
    pub fn restored(&mut self, begin: Lsn) -> Result<(), SnapshotError> {
        if self.guard.covered_to() != Some(&key::end()) {
            return Err(SnapshotError::Incomplete);
        }
        self.installed = begin;
        self.guard.passed(begin);
        Ok(())
    }

    /// A fingerprint of the whole state, for comparing two runs: FNV-1a of its snapshot, the lsn
    /// of which is left out.
    #[must_use]
    pub fn digest(&self) -> u64 {
        slice::digest(self)
    }
}
