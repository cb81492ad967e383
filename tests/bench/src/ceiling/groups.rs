//! Group commit, as bare as it gets: one write linked to one sync in flight, the next group gathers
//! meanwhile. Files are zero-filled before the run and written round and round, like recycled ones.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use anyhow::{Result, anyhow, bail};
use millstream_batch::limits::BLOCK_BYTES;
use millstream_log::buffer::AlignedBuf;
use millstream_log::io::{FileId, Io, IoId, IoOp, IoOutput, Storage};
use millstream_uring::Preference;

/// More than ever is in flight, so that a group never waits for room.
const GROUP_BYTES_MAX: usize = 16 << 20;
/// As many files as the load fills, and no more than these.
const FILES_MAX: u64 = 4;
const FILE_BYTES: u64 = 256 << 20;

/// The disk side of the receiver.
pub(super) struct Groups {
    storage: Box<dyn Storage>,
    last_id: u64,
    files: u64,
    file: u64,
    at: u64,
    /// Gathers now.
    gathering: AlignedBuf,
    frames: u64,
    /// Being written: its buffer and frames.
    in_flight: Option<(Arc<AlignedBuf>, u64)>,
    /// A written buffer, for the group after next.
    free: Option<AlignedBuf>,
}

impl Groups {
    /// Open `dir` and see that the zero-filled files are there.
    pub(super) async fn open(dir: &Path, load_bytes: u64) -> Result<Self> {
        let files = (load_bytes / FILE_BYTES + 1).min(FILES_MAX);
        let storage =
            millstream_uring::open(dir, Preference::Auto, 0, millstream_uring::OPEN_FILES_MAX)?;
        let mut groups = Self {
            storage,
            last_id: 0,
            files,
            file: 0,
            at: 0,
            gathering: AlignedBuf::with_capacity(GROUP_BYTES_MAX),
            frames: 0,
            in_flight: None,
            free: Some(AlignedBuf::with_capacity(GROUP_BYTES_MAX)),
        };
        let IoOutput::Listed(there) = groups.ask(IoOp::List).await? else {
            bail!("no list")
        };
        let there: BTreeMap<FileId, u64> = there.into_iter().collect();
        for file in (0..files).map(FileId::Wal) {
            if there.get(&file) != Some(&FILE_BYTES) {
                groups
                    .ask(IoOp::Allocate {
                        file,
                        len: FILE_BYTES,
                    })
                    .await?;
            }
        }
        Ok(groups)
    }

    /// Nothing waits and nothing is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.is_none() && self.frames == 0
    }

    /// Where the next bytes go.
    pub(super) fn gathering(&mut self) -> &mut AlignedBuf {
        &mut self.gathering
    }

    /// Whether `bytes` more fit.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.gathering.room() >= bytes
    }

    pub(super) fn add_frames(&mut self, frames: u64) {
        self.frames += frames;
    }

    /// Begin the next group if none is in flight and something waits.
    pub(super) fn write(&mut self) {
        if self.in_flight.is_some() || self.frames == 0 {
            return;
        }
        let next = self
            .free
            .take()
            .unwrap_or_else(|| AlignedBuf::with_capacity(GROUP_BYTES_MAX));
        let mut group = std::mem::replace(&mut self.gathering, next);
        let len = group.len().next_multiple_of(BLOCK_BYTES);
        group.set_len(len);
        if self.at + len as u64 > FILE_BYTES {
            self.file = (self.file + 1) % self.files;
            self.at = 0;
        }
        let buf = Arc::new(group);
        let (file, at) = (FileId::Wal(self.file), self.at);
        self.at += len as u64;
        self.in_flight = Some((buf.clone(), std::mem::take(&mut self.frames)));
        self.submit(IoOp::Write {
            file,
            at,
            buf,
            len,
            sync: true,
        });
    }

    /// The group in flight is durable: how many frames it held.
    pub(super) fn poll_durable(&mut self, cx: &mut Context<'_>) -> Poll<Result<u64>> {
        let done = ready!(self.storage.poll_done(cx));
        let Some((buf, frames)) = self.in_flight.take() else {
            return Poll::Ready(Err(anyhow!("an answer to nothing: {done:?}")));
        };
        self.free = Arc::try_unwrap(buf).ok().map(|mut buf| {
            buf.set_len(0);
            buf
        });
        Poll::Ready(done.result.map(|_| frames).map_err(Into::into))
    }

    fn submit(&mut self, op: IoOp) {
        self.last_id += 1;
        self.storage.submit(Io {
            id: IoId(self.last_id),
            op,
        });
    }

    async fn ask(&mut self, op: IoOp) -> Result<IoOutput> {
        self.submit(op);
        Ok(poll_fn(|cx| self.storage.poll_done(cx)).await.result?)
    }
}
