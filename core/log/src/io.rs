//! What the log asks of a disk, as plain data. The log decides, a [`Storage`] does.
//!
//! Three storages pass one conformance suite: the io_uring ring, the portable fallback (both in
//! `millstream-uring`) and the simulated disk (`tests/sim`).
//!
//! Each [`Io`] is answered by exactly one [`IoDone`]. Requests to different files may complete in
//! any order; the log never has two writes to the same file in flight, and never two appends.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

pub use millstream_batch::limits::BLOCK_BYTES;

use crate::buffer::AlignedBuf;
use crate::format::NUMBER_MAX;

/// Names one request; unique in the life of a storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IoId(pub u64);

/// A file of a shard's directory. The name on disk is [`FileId::file_name`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileId {
    /// Write-ahead log file number `n`, in log order: `wal-<n>.log`.
    Wal(u64),
    /// A zero-filled or recycled file that waits to become a WAL file: `spare-<n>.log`.
    Spare(u64),
    /// Archive `part` of the snapshot that was begun at lsn `begin`: `snap-<begin>-<part>.snap`.
    Snapshot { begin: u64, part: u32 },
    /// The published snapshot's manifest, written last and under a temporary name first.
    Manifest { begin: u64, temporary: bool },
}

/// One request.
#[derive(Clone, Debug)]
pub struct Io {
    pub id: IoId,
    pub op: IoOp,
}

/// What is asked. Offsets and lengths are in bytes and multiples of `BLOCK_BYTES` unless said.
#[derive(Clone, Debug)]
pub enum IoOp {
    /// All files of the directory with their lengths. Foreign files are reported once, then ignored.
    List,
    /// Create `file` with `len` zero bytes really written (not only reserved), synced, and its
    /// directory entry synced. Fails with [`IoErrorKind::NoSpace`] when the disk is full.
    Allocate { file: FileId, len: u64 },
    /// Write `buf[..len]` at `at`; then, with `sync`, make it durable (one linked `fdatasync`).
    /// The file was allocated before; a write never grows a WAL file.
    Write {
        file: FileId,
        at: u64,
        buf: Arc<AlignedBuf>,
        len: usize,
        sync: bool,
    },
    /// Create or replace a small file (any length), synced with its directory entry.
    WriteFile { file: FileId, bytes: bytes::Bytes },
    /// Read `len` bytes at `at`. Shorter only at the end of the file.
    Read { file: FileId, at: u64, len: usize },
    /// Give `from` the name of `to` (replacing it) and sync the directory.
    Rename { from: FileId, to: FileId },
    /// Remove `file` and sync the directory.
    Remove { file: FileId },
}

/// The one answer to an [`Io`].
#[derive(Clone, Debug)]
pub struct IoDone {
    pub id: IoId,
    pub result: Result<IoOutput, IoError>,
}

#[derive(Clone, Debug)]
pub enum IoOutput {
    Done,
    /// `(file, length in bytes)`, in any order.
    Listed(Vec<(FileId, u64)>),
    /// The buffer's `len()` is what was read.
    Read(AlignedBuf),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoError {
    pub kind: IoErrorKind,
    /// What the operating system said, and of which file.
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoErrorKind {
    /// No space, quota or inodes left: heals when space returns.
    NoSpace,
    /// A limit of the process or the system, such as that of open files, kept it from being begun:
    /// nothing is wrong with the disk, and it may be tried again.
    Limit,
    /// The file is not there.
    NotFound,
    /// The directory or file system is read-only or forbids it.
    Denied,
    /// Anything else. After a failed write or sync the log stops for good.
    Failed,
}

impl IoErrorKind {
    /// Whether nothing was done, and the same may be done later.
    #[must_use]
    pub fn heals(self) -> bool {
        matches!(self, Self::NoSpace | Self::Limit)
    }
}

impl fmt::Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for IoError {}

/// A disk that does what it is told.
pub trait Storage {
    /// Take a request. Never blocks on the disk.
    fn submit(&mut self, io: Io);
    /// The next answer, or `Pending` with the waker kept.
    fn poll_done(&mut self, cx: &mut Context<'_>) -> Poll<IoDone>;
    /// How this storage does its work, for one line at start: `io_uring`, `portable`, `simulated`.
    fn describe(&self) -> String;
}

impl IoOp {
    /// Refuse what breaks the contract of this module, before a kernel sees it.
    ///
    /// # Errors
    /// [`IoErrorKind::Failed`] when an offset or length is not a multiple of `BLOCK_BYTES`, or a
    /// write is longer than its buffer.
    pub fn check(&self) -> Result<(), IoError> {
        let (file, at, len, buffer) = match self {
            Self::Allocate { file, len } => (file, 0, *len, u64::MAX),
            Self::Write {
                file, at, buf, len, ..
            } => (file, *at, *len as u64, buf.len() as u64),
            Self::Read { file, at, len } => (file, *at, *len as u64, u64::MAX),
            _ => return Ok(()),
        };
        let block = BLOCK_BYTES as u64;
        let fits = at
            .checked_add(len)
            .is_some_and(|end| end <= i64::MAX as u64)
            && len <= buffer;
        if fits && at.is_multiple_of(block) && len.is_multiple_of(block) {
            return Ok(());
        }
        Err(IoError {
            kind: IoErrorKind::Failed,
            message: format!(
                "{}: {len} bytes at {at} are not whole blocks of {block} inside their buffer: a bug in the caller",
                file.file_name()
            ),
        })
    }
}

impl FileId {
    /// The name on disk. Numbers are 16 hexadecimal digits, so that names sort in log order.
    #[must_use]
    pub fn file_name(self) -> String {
        match self {
            Self::Wal(n) => format!("wal-{n:016x}.log"),
            Self::Spare(n) => format!("spare-{n:016x}.log"),
            Self::Snapshot { begin, part } => format!("snap-{begin:016x}-{part:08x}.snap"),
            Self::Manifest {
                begin,
                temporary: false,
            } => format!("snap-{begin:016x}.manifest"),
            Self::Manifest {
                begin,
                temporary: true,
            } => format!("snap-{begin:016x}.manifest.tmp"),
        }
    }

    /// Whether the log can have made it: WAL files count from 1, and nothing counts past
    /// [`NUMBER_MAX`].
    #[must_use]
    pub fn is_possible(self) -> bool {
        match self {
            Self::Wal(n) => (1..=NUMBER_MAX).contains(&n),
            Self::Spare(n) | Self::Snapshot { begin: n, .. } | Self::Manifest { begin: n, .. } => {
                n <= NUMBER_MAX
            }
        }
    }

    /// The file a name stands for; `None` for a foreign file.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let hex = |s: &str| {
            (s.len() == 16)
                .then(|| u64::from_str_radix(s, 16).ok())
                .flatten()
        };
        let id = if let Some(n) = name
            .strip_prefix("wal-")
            .and_then(|s| s.strip_suffix(".log"))
        {
            Self::Wal(hex(n)?)
        } else if let Some(n) = name
            .strip_prefix("spare-")
            .and_then(|s| s.strip_suffix(".log"))
        {
            Self::Spare(hex(n)?)
        } else {
            let rest = name.strip_prefix("snap-")?;
            if let Some(n) = rest.strip_suffix(".manifest") {
                Self::Manifest {
                    begin: hex(n)?,
                    temporary: false,
                }
            } else if let Some(n) = rest.strip_suffix(".manifest.tmp") {
                Self::Manifest {
                    begin: hex(n)?,
                    temporary: true,
                }
            } else {
                let (begin, part) = rest.strip_suffix(".snap")?.split_once('-')?;
                let part = (part.len() == 8)
                    .then(|| u32::from_str_radix(part, 16).ok())
                    .flatten()?;
                Self::Snapshot {
                    begin: hex(begin)?,
                    part,
                }
            }
        };
        // One spelling a file: what we would not write ourselves is foreign.
        (id.file_name() == name).then_some(id)
    }
}
