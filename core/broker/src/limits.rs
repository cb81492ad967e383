//! Limits of the process: raised where it may, counted against what is needed, and said at start.
//!
//! A limit that is reached is no failure of a disk. What is asked for is refused or waits; nothing
//! stops for good. Absent on purpose: what each part does when it meets one.

use std::fmt;

use millstream_uring::{OPEN_FILES_MAX, OPEN_FILES_MIN, OTHER_FILES};

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

/// Make the process ready: as many open files as the system allows, and a file that is too long is an
/// error, not the end. Says what is needed and what is short.
pub(crate) fn prepare(shards: usize, threads: usize, http: usize, longest_file: u64) -> Files {
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
    if let Some((bytes, _)) = sys::limit(Resource::FileSize)
        && bytes < longest_file
    {
        tracing::warn!(
            "files may be at most {bytes} bytes long, and the log makes files of {longest_file}: raise the limit \
             (ulimit -f, LimitFSIZE=), or lower log.segment_bytes; until then such a file is refused"
        );
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

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
