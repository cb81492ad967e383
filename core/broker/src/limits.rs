//! Limits of the process: raised where it may, counted against what is needed, and said at start.
//!
//! A limit that is reached is no failure of a disk. What is asked for is refused or waits; nothing
//! stops for good. A limit under which the log cannot be written to ends the start, with its name. Absent
//! on purpose: what each part does when it meets one.

use std::path::PathBuf;
use std::{fmt, fs, io};

use millstream_log::io::FileId;
use millstream_uring::{OPEN_FILES_MAX, OPEN_FILES_MIN, OTHER_FILES};

use crate::Error;
use crate::directory::Directory;
use crate::sys::{self, Resource};

/// Descriptors of a thread: its socket, its reactor, what wakes it.
const THREAD_FILES: usize = 6;
/// Of the process: standard streams, locks, signals, listeners, what is read or written for a moment.
const PROCESS_FILES: usize = 64;

/// What the broker needs of open files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Files {
    /// What the process may open.
    pub(crate) limit: usize,
    /// With fewer, something is refused or waits.
    pub(crate) least: usize,
    /// More are never open.
    pub(crate) most: usize,
    /// Log files that each shard keeps open.
    pub(crate) each_shard: usize,
}

impl Files {
    /// `http`: connections of operators at a time. Clients' connections need none: they share their
    /// thread's socket.
    pub(crate) fn count(limit: usize, shards: usize, threads: usize, http: usize) -> Self {
        let fixed = PROCESS_FILES + threads * THREAD_FILES + http + shards * OTHER_FILES;
        let left = limit.saturating_sub(fixed) / shards.max(1);
        Self {
            limit,
            least: fixed + shards * OPEN_FILES_MIN,
            most: fixed + shards * OPEN_FILES_MAX,
            each_shard: left.clamp(OPEN_FILES_MIN, OPEN_FILES_MAX),
        }
    }

    fn are_enough(&self) -> bool {
        self.limit >= self.least
    }
}

impl fmt::Display for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            limit,
            least,
            most,
            each_shard,
        } = self;
        write!(
            f,
            "{limit} may be open, {least} to {most} are needed, each shard keeps up to {each_shard} log files open"
        )
    }
}

/// Refuse to start where files may not be so long as those of the log: a shard that cannot write to a
/// file of its own would stop in the middle of its work.
pub(crate) fn check_file_size(directory: &Directory, segment_bytes: u64) -> Result<(), Error> {
    let limit = sys::limit(Resource::FileSize).map_or(u64::MAX, |(soft, _)| soft);
    if limit == u64::MAX {
        return Ok(());
    }
    let there = longest_there(directory)
        .map_err(|source| Error::directory(directory.path(), "read", &source))?;
    match too_short(limit, there.as_ref(), segment_bytes) {
        Some(why) => Err(Error::Internal(why)),
        None => Ok(()),
    }
}

/// The longest file of the shards' logs, if there is one.
fn longest_there(directory: &Directory) -> io::Result<Option<(u64, PathBuf)>> {
    let mut longest = None;
    for shard in 0..directory.meta().shards {
        let files = match fs::read_dir(directory.shard(shard)) {
            Ok(files) => files,
            // It begins with this start.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for file in files {
            let file = file?;
            if file.file_name().to_str().and_then(FileId::parse).is_some() {
                longest = longest.max(Some((file.metadata()?.len(), file.path())));
            }
        }
    }
    Ok(longest)
}

/// Why a log cannot be written to under a limit of file sizes; `None`: it can.
fn too_short(limit: u64, there: Option<&(u64, PathBuf)>, segment_bytes: u64) -> Option<String> {
    let raise = "raise the limit (ulimit -f, LimitFSIZE=)";
    match there.filter(|(bytes, _)| limit < *bytes) {
        Some((bytes, path)) => Some(format!(
            "files may be at most {limit} bytes long, and {} has {bytes}: {raise} to {} or more",
            path.display(),
            segment_bytes.max(*bytes),
        )),
        None if limit < segment_bytes => Some(format!(
            "files may be at most {limit} bytes long, and the log makes files of {segment_bytes}: {raise} to that or \
             more, or lower log.segment_bytes"
        )),
        None => None,
    }
}

/// Make the process ready: as many open files as the system allows, and a file that is too long is an
/// error, not the end. Says what is needed and what is short.
pub(crate) fn prepare(shards: usize, threads: usize, http: usize) -> Files {
    sys::ignore_file_size_signal();
    let before = sys::limit(Resource::OpenFiles).map_or(u64::MAX, |(soft, _)| soft);
    if let Err(error) = sys::raise_open_files() {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
    let limit = sys::limit(Resource::OpenFiles).map_or(u64::MAX, |(soft, _)| soft);
    let files = Files::count(
        usize::try_from(limit).unwrap_or(usize::MAX),
        shards,
        threads,
        http,
    );
    if files.are_enough() {
        tracing::info!(raised_from = before, "open files: {files}");
    } else {
        tracing::warn!(
            "open files: {files}: raise the limit (ulimit -n, LimitNOFILE=), or something will be refused or wait"
        );
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_may_be_as_long_as_those_there_and_those_to_come() {
        let there = (64, PathBuf::from("shard-0/wal"));
        let why = too_short(63, Some(&there), 32).expect("a file is longer");
        assert!(
            why.contains("at most 63") && why.contains("shard-0/wal has 64"),
            "{why}"
        );
        assert!(why.contains("LimitFSIZE=) to 64"), "{why}");
        let why = too_short(64, Some(&there), 128).expect("files will be longer");
        assert!(
            why.contains("files of 128") && why.contains("log.segment_bytes"),
            "{why}"
        );
        assert!(too_short(127, None, 128).is_some());
        assert_eq!(too_short(128, Some(&there), 128), None);
        assert_eq!(too_short(64, Some(&there), 32), None);
    }

    #[test]
    fn shards_share_what_the_limit_leaves() {
        let much = Files::count(1 << 20, 4, 4, 64);
        assert_eq!(much.each_shard, OPEN_FILES_MAX);
        assert!(much.are_enough() && much.most < 1_024, "{much}");
        let some = Files::count(much.least + 4 * 10, 4, 4, 64);
        assert_eq!(some.each_shard, OPEN_FILES_MIN + 10);
        assert!(some.are_enough());
        let few = Files::count(64, 4, 4, 64);
        assert_eq!(few.each_shard, OPEN_FILES_MIN);
        assert!(!few.are_enough());
    }
}
