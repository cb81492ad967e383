//! One shard's directory: names to open files, and the blocking work on them.
//!
//! Absent on purpose: who runs the blocking work. [`crate::background`] and [`crate::portable`] do.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use millstream_log::io::{BLOCK_BYTES, FileId, IoError, IoErrorKind};

use crate::{pages, sys};

/// Files that stay open at most: active and sealed WAL files under read, spares. More gain nothing.
pub const OPEN_FILES_MAX: usize = 128;
/// And at least: those that are written, and some under read.
pub const OPEN_FILES_MIN: usize = 8;
/// Descriptors of a shard's storage beside those: its directory, its ring, what is being made.
pub const OTHER_FILES: usize = 8;
/// How long a write waits that cannot be begun for want of a descriptor, before it tries again.
pub(crate) const LIMIT_RETRY: Duration = Duration::from_millis(50);
/// One write of zeros. Larger gains nothing, and this much is what a shutdown waits for.
const ZERO_CHUNK_BYTES: usize = 1 << 20;

/// An open file of the directory.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) file: File,
    /// Past the page cache: offsets, lengths and addresses must be whole blocks.
    pub(crate) direct: bool,
    writable: bool,
}

/// A shard's directory.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    handle: File,
    /// Cleared when the file system turns out not to do `O_DIRECT`.
    direct: AtomicBool,
    /// Foreign files have been reported.
    foreign_reported: AtomicBool,
    /// That writes wait for descriptors has been said.
    limit_told: AtomicBool,
}

impl Directory {
    /// Open `path`, made with mode 0700 if it is not there.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let explain = |what: &str, error: &io::Error| {
            io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
        };
        if !path.is_dir() {
            let made = fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path);
            made.map_err(|error| explain("cannot make the directory", &error))?;
            if let Some(parent) = path.parent()
                && let Ok(parent) = File::open(parent)
            {
                parent
                    .sync_all()
                    .map_err(|error| explain("cannot sync the parent of", &error))?;
            }
        }
        let handle =
            File::open(path).map_err(|error| explain("cannot open the directory", &error))?;
        Ok(Self {
            path: path.to_owned(),
            handle,
            direct: AtomicBool::new(true),
            foreign_reported: AtomicBool::new(false),
            limit_told: AtomicBool::new(false),
        })
    }

    pub(crate) fn is_direct(&self) -> bool {
        self.direct.load(Relaxed)
    }

    /// The file system refused `O_DIRECT`: use the page cache from now on, and say so once.
    pub(crate) fn give_up_direct(&self) {
        if self.direct.swap(false, Relaxed) {
            tracing::warn!(
                dir = %self.path.display(),
                "this file system does not support O_DIRECT: writes go through the page cache \
                 (as durable, slower); put the data directory on ext4 or xfs"
            );
        }
    }

    /// A write waits until its file can be opened. Said once.
    pub(crate) fn tell_limit(&self, error: &IoError) {
        if !self.limit_told.swap(true, Relaxed) {
            tracing::error!("writes wait: {error}");
        }
    }

    /// Open a file that exists; read-only only if writing is neither needed nor possible.
    fn open_file(&self, id: FileId, write: bool) -> Result<Opened, IoError> {
        let path = self.path.join(id.file_name());
        let open = |direct: bool, write: bool| {
            let flags = if direct { libc::O_DIRECT } else { 0 };
            OpenOptions::new()
                .read(true)
                .write(write)
                .custom_flags(flags)
                .open(&path)
        };
        let mut direct = self.is_direct();
        let mut writable = true;
        let mut result = open(direct, true);
        if direct && errno(&result) == Some(libc::EINVAL) {
            self.give_up_direct();
            direct = false;
            result = open(false, true);
        }
        if !write
            && matches!(
                errno(&result),
                Some(libc::EROFS | libc::EACCES | libc::EPERM)
            )
        {
            writable = false;
            result = open(direct, false);
        }
        match result {
            Ok(file) => Ok(Opened {
                file,
                direct,
                writable,
            }),
            Err(error) => Err(io_error(id, "open", &error)),
        }
    }

    pub(crate) fn list(&self) -> Result<Vec<(FileId, u64)>, IoError> {
        let failed = |error: &io::Error| IoError {
            kind: kind_of(error),
            message: format!("{}: list: {error}", self.path.display()),
        };
        let first_time = !self.foreign_reported.swap(true, Relaxed);
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(|e| failed(&e))? {
            let entry = entry.map_err(|e| failed(&e))?;
            let Some(id) = entry.file_name().to_str().and_then(FileId::parse) else {
                if first_time {
                    tracing::warn!(file = %entry.path().display(), "not a file of ours: ignored");
                }
                continue;
            };
            let metadata = entry.metadata().map_err(|e| failed(&e))?;
            if metadata.is_file() {
                files.push((id, metadata.len()));
            }
        }
        Ok(files)
    }

    /// Make `id` with `len` written zeros, synced with its entry. On failure nothing is left. Gives
    /// up between chunks when `stop` is set.
    pub(crate) fn allocate(&self, id: FileId, len: u64, stop: &AtomicBool) -> Result<(), IoError> {
        let made = self.create(id).and_then(|file| {
            let filled = self.fill_with_zeros(id, file, len, stop);
            self.keep_only_if(id, filled)
        });
        made.map_err(|error| io_error(id, &format!("allocate {len} bytes"), &error))
    }

    fn fill_with_zeros(
        &self,
        id: FileId,
        created: Opened,
        len: u64,
        stop: &AtomicBool,
    ) -> io::Result<()> {
        let Opened {
            mut file,
            mut direct,
            ..
        } = created;
        sys::reserve(&file, len)?;
        let zeros = pages::zeros(ZERO_CHUNK_BYTES);
        let mut at = 0;
        while at < len {
            if stop.load(Relaxed) {
                return Err(io::Error::other("the storage is closing"));
            }
            let rest = usize::try_from(len - at).unwrap_or(usize::MAX);
            match file.write_at(&zeros[..rest.min(ZERO_CHUNK_BYTES)], at) {
                Ok(count) => at += whole_blocks(count, direct)? as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if direct && error.raw_os_error() == Some(libc::EINVAL) => {
                    self.give_up_direct();
                    direct = false;
                    file = OpenOptions::new()
                        .write(true)
                        .open(self.path.join(id.file_name()))?;
                }
                Err(error) => return Err(error),
            }
        }
        file.sync_all()?;
        self.handle.sync_all()
    }

    /// A file of which only a part could be written is removed, so that its space returns.
    fn keep_only_if(&self, id: FileId, written: io::Result<()>) -> io::Result<()> {
        if written.is_err() {
            // The first error is the one to tell.
            let _ = fs::remove_file(self.path.join(id.file_name()));
            let _ = self.handle.sync_all();
        }
        written
    }

    /// Create or empty a file, `O_DIRECT` if the file system does it.
    fn create(&self, id: FileId) -> io::Result<Opened> {
        let path = self.path.join(id.file_name());
        let open = |flags| {
            let mut options = OpenOptions::new();
            options
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .custom_flags(flags);
            options.open(&path)
        };
        let mut direct = self.is_direct();
        let mut file = open(if direct { libc::O_DIRECT } else { 0 });
        if direct && errno(&file) == Some(libc::EINVAL) {
            self.give_up_direct();
            direct = false;
            file = open(0);
        }
        Ok(Opened {
            file: file?,
            direct,
            writable: true,
        })
    }

    /// On failure nothing is left: neither the new content nor the old.
    pub(crate) fn write_file(&self, id: FileId, bytes: &[u8]) -> Result<(), IoError> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let written = options
            .open(self.path.join(id.file_name()))
            .and_then(|file| {
                let written = file.write_all_at(bytes, 0).and_then(|()| file.sync_all());
                self.keep_only_if(id, written.and_then(|()| self.handle.sync_all()))
            });
        written.map_err(|error| io_error(id, &format!("write {} bytes", bytes.len()), &error))
    }

    pub(crate) fn rename(&self, from: FileId, to: FileId) -> Result<(), IoError> {
        let renamed = fs::rename(
            self.path.join(from.file_name()),
            self.path.join(to.file_name()),
        );
        renamed
            .and_then(|()| self.handle.sync_all())
            .map_err(|error| io_error(from, &format!("rename to {}", to.file_name()), &error))
    }

    pub(crate) fn remove(&self, id: FileId) -> Result<(), IoError> {
        let removed = fs::remove_file(self.path.join(id.file_name()));
        removed
            .and_then(|()| self.handle.sync_all())
            .map_err(|error| io_error(id, "remove", &error))
    }
}

/// The open files, so many at most: beyond it the one used longest ago is closed.
#[derive(Debug)]
pub(crate) struct Table {
    open: BTreeMap<FileId, (Arc<Opened>, u64)>,
    uses: u64,
    max: usize,
}

impl Table {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            open: BTreeMap::new(),
            uses: 0,
            max: max.clamp(OPEN_FILES_MIN, OPEN_FILES_MAX),
        }
    }

    /// The file, opened if it is not yet.
    pub(crate) fn access(
        &mut self,
        dir: &Directory,
        id: FileId,
        write: bool,
    ) -> Result<Arc<Opened>, IoError> {
        self.uses += 1;
        if let Some((file, used)) = self.open.get_mut(&id)
            && (file.writable || !write)
            && (!file.direct || dir.is_direct())
        {
            *used = self.uses;
            return Ok(file.clone());
        }
        let file = loop {
            match dir.open_file(id, write) {
                // Others took the descriptors: one of ours will do.
                Err(error) if error.kind == IoErrorKind::Limit && self.close_oldest() => {}
                opened => break Arc::new(opened?),
            }
        };
        if self.open.len() >= self.max && !self.open.contains_key(&id) {
            self.close_oldest();
        }
        self.open.insert(id, (file.clone(), self.uses));
        Ok(file)
    }

    /// Let go of the file used longest ago. `false`: there is none.
    fn close_oldest(&mut self) -> bool {
        let oldest = self.open.iter().min_by_key(|(_, (_, used))| *used);
        let oldest = oldest.map(|(id, _)| *id);
        oldest
            .and_then(|oldest| self.open.remove(&oldest))
            .is_some()
    }

    /// Forget a file that is renamed, removed or replaced. The handle is given out because closing
    /// a removed file frees its blocks, which takes long: not on the shard's thread.
    pub(crate) fn forget(&mut self, id: FileId) -> Option<Arc<Opened>> {
        self.open.remove(&id).map(|(file, _)| file)
    }
}

/// What counts as written of `count` bytes: with `O_DIRECT` the rest must start on a block.
pub(crate) fn whole_blocks(count: usize, direct: bool) -> io::Result<usize> {
    let whole = if direct {
        count - count % BLOCK_BYTES
    } else {
        count
    };
    if whole == 0 {
        Err(io::ErrorKind::WriteZero.into())
    } else {
        Ok(whole)
    }
}

/// An operating system's error as the log wants it.
pub(crate) fn io_error(file: FileId, what: &str, error: &io::Error) -> IoError {
    let advice = match error.raw_os_error() {
        Some(libc::EMFILE) => ": raise the limit of open files (ulimit -n, LimitNOFILE=)",
        Some(libc::ENFILE) => ": raise fs.file-max, the system's limit of open files",
        Some(libc::EFBIG) => {
            ": raise the limit of file sizes (ulimit -f, LimitFSIZE=), or lower log.segment_bytes"
        }
        Some(libc::ENOSPC) => ": no space, or no inodes, are left (df, df -i)",
        _ => "",
    };
    IoError {
        kind: kind_of(error),
        message: format!("{}: {what}: {error}{advice}", file.file_name()),
    }
}

fn kind_of(error: &io::Error) -> IoErrorKind {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => IoErrorKind::NoSpace,
        Some(libc::EMFILE | libc::ENFILE | libc::EFBIG) => IoErrorKind::Limit,
        Some(libc::ENOENT) => IoErrorKind::NotFound,
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => IoErrorKind::Denied,
        _ => IoErrorKind::Failed,
    }
}

fn errno<T>(result: &io::Result<T>) -> Option<i32> {
    result.as_ref().err().and_then(io::Error::raw_os_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// errno(3): what each number means to the log.
    #[test]
    fn errors_are_classed() {
        for (errno, kind) in [
            (libc::ENOSPC, IoErrorKind::NoSpace),
            (libc::EDQUOT, IoErrorKind::NoSpace),
            (libc::EMFILE, IoErrorKind::Limit),
            (libc::ENFILE, IoErrorKind::Limit),
            (libc::EFBIG, IoErrorKind::Limit),
            (libc::ENOENT, IoErrorKind::NotFound),
            (libc::EACCES, IoErrorKind::Denied),
            (libc::EPERM, IoErrorKind::Denied),
            (libc::EROFS, IoErrorKind::Denied),
            (libc::EIO, IoErrorKind::Failed),
            (libc::EBADF, IoErrorKind::Failed),
        ] {
            let error = io_error(
                FileId::Wal(1),
                "write",
                &io::Error::from_raw_os_error(errno),
            );
            assert_eq!(error.kind, kind, "{error}");
            assert!(
                error.message.contains("wal-0000000000000001.log"),
                "{error}"
            );
        }
    }

    #[test]
    fn the_table_stays_bounded() {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let dir = Directory::open(temp.path()).expect("the directory opens");
        let mut table = Table::new(usize::MAX);
        for n in 0..2 * OPEN_FILES_MAX as u64 {
            dir.write_file(FileId::Wal(n), b"x")
                .expect("a file is written");
            table
                .access(&dir, FileId::Wal(0), false)
                .expect("the first stays in use");
            table.access(&dir, FileId::Wal(n), true).expect("it opens");
            assert!(table.open.len() <= OPEN_FILES_MAX);
        }
        assert!(
            table.open.contains_key(&FileId::Wal(0)),
            "the one used last is kept"
        );
    }

    #[test]
    fn files_are_private() {
        use std::os::unix::fs::PermissionsExt;
        let temp = tempfile::tempdir().expect("a temporary directory");
        let dir = Directory::open(&temp.path().join("a/b")).expect("it is made");
        dir.write_file(FileId::Wal(1), b"x").expect("written");
        dir.allocate(FileId::Wal(2), 4096, &AtomicBool::new(false))
            .expect("allocated");
        for n in [1, 2] {
            let path = temp.path().join("a/b").join(FileId::Wal(n).file_name());
            let mode = fs::metadata(path)
                .expect("it is there")
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn a_stopped_allocation_leaves_nothing() {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let dir = Directory::open(temp.path()).expect("the directory opens");
        let error = dir.allocate(FileId::Spare(1), 1 << 20, &AtomicBool::new(true));
        assert_eq!(error.expect_err("it was stopped").kind, IoErrorKind::Failed);
        assert_eq!(dir.list().expect("listed"), vec![]);
    }
}
