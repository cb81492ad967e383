//! One read or write under way in the ring: what its completions mean. No I/O here.
//!
//! A write with sync is a *pair*: the write, linked to one `fdatasync`. A write that the kernel cuts
//! short severs the link (the sync answers ECANCELED): the rest is written with a sync of its own.
//! A failed sync is never repeated: the kernel may have dropped the pages.

use std::io;
use std::sync::Arc;

use millstream_log::buffer::AlignedBuf;
use millstream_log::io::{BLOCK_BYTES, FileId, IoError, IoErrorKind, IoId, IoOutput};

use crate::files::{Opened, io_error, whole_blocks};

/// Most that one request to the kernel moves, bytes (its own bound is 2 GiB less a page).
const CHUNK_BYTES_MAX: usize = 1 << 30;

/// A read or write, from the first push to the last completion.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) id: IoId,
    pub(crate) file: FileId,
    pub(crate) handle: Arc<Opened>,
    pub(crate) transfer: Transfer,
    /// Where the request began in the file, and how long it is, bytes.
    pub(crate) at: u64,
    pub(crate) len: usize,
    /// Bytes moved so far.
    pub(crate) moved: usize,
    /// Completions still to come, and those that came.
    outstanding: u8,
    moved_result: Option<i32>,
    synced_result: Option<i32>,
}

/// Keeps the memory alive that the kernel reads or writes.
#[derive(Debug)]
pub(crate) enum Transfer {
    Write { buf: Arc<AlignedBuf>, sync: bool },
    Read { buf: AlignedBuf },
}

/// What to push for a flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Push {
    /// Move these bytes, counted from the start of the buffer; `None`: only the sync.
    pub(crate) range: Option<(usize, usize)>,
    pub(crate) sync: bool,
}

/// Which half of a pair completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    Transfer,
    Sync,
}

/// What a completion means.
#[derive(Debug)]
pub(crate) enum Next {
    /// The other half is still out.
    Wait,
    /// Push the rest.
    Again,
    /// The file system refuses `O_DIRECT`: reopen, push the rest.
    Reopen,
    /// The request is answered; take the result with [`Flight::into_output`] if it is good.
    Finished(Result<(), IoError>),
}

impl Flight {
    pub(crate) fn new(
        id: IoId,
        file: FileId,
        handle: Arc<Opened>,
        transfer: Transfer,
        at: u64,
        len: usize,
    ) -> Self {
        Self {
            id,
            file,
            handle,
            transfer,
            at,
            len,
            moved: 0,
            outstanding: 0,
            moved_result: None,
            synced_result: None,
        }
    }

    /// What goes to the kernel next. `None` when there is nothing to do at all.
    pub(crate) fn plan(&self) -> Option<Push> {
        let rest = (self.len - self.moved).min(CHUNK_BYTES_MAX);
        let last = self.moved + rest == self.len;
        let sync = last && matches!(self.transfer, Transfer::Write { sync: true, .. });
        let range = (rest > 0).then_some((self.moved, rest));
        (range.is_some() || sync).then_some(Push { range, sync })
    }

    /// The plan has been pushed.
    pub(crate) fn pushed(&mut self, push: Push) {
        self.outstanding = u8::from(push.range.is_some()) + u8::from(push.sync);
        self.moved_result = None;
        self.synced_result = None;
    }

    /// One completion arrived with the kernel's `result`: a count, or a negative errno.
    pub(crate) fn completed(&mut self, half: Half, result: i32) -> Next {
        match half {
            Half::Transfer => self.moved_result = Some(result),
            Half::Sync => self.synced_result = Some(result),
        }
        self.outstanding = self.outstanding.saturating_sub(1);
        if self.outstanding > 0 {
            return Next::Wait;
        }
        match self.moved_result {
            Some(result) => self.transferred(result),
            None => Next::Finished(self.synced()),
        }
    }

    fn transferred(&mut self, result: i32) -> Next {
        let Ok(count) = usize::try_from(result) else {
            return match -result {
                // Nothing was moved, so nothing is repeated.
                libc::EINTR | libc::EAGAIN => Next::Again,
                libc::EINVAL if self.handle.direct => Next::Reopen,
                errno => Next::Finished(Err(self.error(errno))),
            };
        };
        if matches!(self.transfer, Transfer::Read { .. }) {
            self.moved += count;
            // With O_DIRECT an odd count is the end of a file of odd length.
            let end = count == 0 || self.handle.direct && !count.is_multiple_of(BLOCK_BYTES);
            return if end || self.moved == self.len {
                Next::Finished(Ok(()))
            } else {
                Next::Again
            };
        }
        let rest = self.len - self.moved;
        if count < rest {
            return match whole_blocks(count, self.handle.direct) {
                Ok(count) => {
                    self.moved += count;
                    Next::Again
                }
                Err(error) => Next::Finished(Err(io_error(self.file, &self.verb(), &error))),
            };
        }
        self.moved = self.len;
        Next::Finished(self.synced())
    }

    /// The result of the sync, if one was asked.
    fn synced(&self) -> Result<(), IoError> {
        match self.synced_result {
            None | Some(0..) => Ok(()),
            Some(errno) => {
                let error = io::Error::from_raw_os_error(-errno);
                Err(io_error(self.file, "fdatasync", &error))
            }
        }
    }

    fn error(&self, errno: i32) -> IoError {
        io_error(
            self.file,
            &self.verb(),
            &io::Error::from_raw_os_error(errno),
        )
    }

    fn verb(&self) -> String {
        let verb = match self.transfer {
            Transfer::Write { .. } => "write",
            Transfer::Read { .. } => "read",
        };
        format!("{verb} {} bytes at {}", self.len, self.at)
    }

    /// The answer of a flight that ended well.
    pub(crate) fn into_output(self) -> IoOutput {
        match self.transfer {
            Transfer::Write { .. } => IoOutput::Done,
            Transfer::Read { mut buf } => {
                buf.set_len(self.moved.min(self.len));
                IoOutput::Read(buf)
            }
        }
    }

    /// The answer of a flight that the ring lost.
    pub(crate) fn lost(&self, why: &str) -> IoError {
        IoError {
            kind: IoErrorKind::Failed,
            message: format!("{}: {}: {why}", self.file.file_name(), self.verb()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{Directory, Table};

    fn flight(transfer: Transfer, len: usize) -> Flight {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let dir = Directory::open(temp.path()).expect("the directory opens");
        dir.write_file(FileId::Wal(1), b"x").expect("written");
        let handle = Table::new(usize::MAX)
            .access(&dir, FileId::Wal(1), true)
            .expect("it opens");
        Flight::new(IoId(1), FileId::Wal(1), handle, transfer, 8192, len)
    }

    fn write(len: usize) -> Flight {
        let buf = Arc::new(AlignedBuf::copy_of(&vec![1; len]));
        flight(Transfer::Write { buf, sync: true }, len)
    }

    fn push(flight: &mut Flight, range: Option<(usize, usize)>, sync: bool) {
        let plan = flight.plan().expect("there is something to do");
        assert_eq!(plan, Push { range, sync });
        flight.pushed(plan);
    }

    #[test]
    fn a_pair_ends_with_its_second_half() {
        let mut flight = write(4096);
        push(&mut flight, Some((0, 4096)), true);
        assert!(matches!(flight.completed(Half::Transfer, 4096), Next::Wait));
        assert!(matches!(
            flight.completed(Half::Sync, 0),
            Next::Finished(Ok(()))
        ));
    }

    /// io_uring_enter(2): a short write severs the link, the rest of the chain is cancelled.
    #[test]
    fn a_short_write_is_finished_and_synced_once() {
        let mut flight = write(65_536);
        push(&mut flight, Some((0, 65_536)), true);
        assert!(matches!(
            flight.completed(Half::Sync, -libc::ECANCELED),
            Next::Wait
        ));
        assert!(matches!(
            flight.completed(Half::Transfer, 8192),
            Next::Again
        ));
        push(&mut flight, Some((8192, 57_344)), true);
        assert!(matches!(
            flight.completed(Half::Transfer, 57_344),
            Next::Wait
        ));
        assert!(matches!(
            flight.completed(Half::Sync, 0),
            Next::Finished(Ok(()))
        ));
    }

    #[test]
    fn the_rest_of_a_direct_write_begins_on_a_block() {
        let mut flight = write(16_384);
        assert!(
            flight.handle.direct,
            "the temporary directory does O_DIRECT"
        );
        push(&mut flight, Some((0, 16_384)), true);
        flight.completed(Half::Sync, -libc::ECANCELED);
        assert!(matches!(
            flight.completed(Half::Transfer, 4608),
            Next::Again
        ));
        push(&mut flight, Some((4096, 12_288)), true);
        flight.completed(Half::Sync, -libc::ECANCELED);
        // No progress at all must not spin.
        assert!(matches!(
            flight.completed(Half::Transfer, 512),
            Next::Finished(Err(_))
        ));
    }

    #[test]
    fn a_failed_sync_is_final() {
        for len in [0, 4096] {
            let mut flight = write(len);
            push(&mut flight, (len > 0).then_some((0, len)), true);
            if len > 0 {
                assert!(matches!(flight.completed(Half::Transfer, 4096), Next::Wait));
            }
            let Next::Finished(Err(error)) = flight.completed(Half::Sync, -libc::EIO) else {
                panic!("a failed sync is an error");
            };
            assert_eq!(error.kind, IoErrorKind::Failed);
            assert!(
                error
                    .message
                    .contains("wal-0000000000000001.log: fdatasync"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_failed_write_tells_its_own_error_and_not_the_cancelled_sync() {
        let mut flight = write(4096);
        push(&mut flight, Some((0, 4096)), true);
        flight.completed(Half::Sync, -libc::ECANCELED);
        let Next::Finished(Err(error)) = flight.completed(Half::Transfer, -libc::ENOSPC) else {
            panic!("a failed write is an error");
        };
        assert_eq!(error.kind, IoErrorKind::NoSpace);
    }

    /// open(2): a file system may take `O_DIRECT` and refuse the transfer with EINVAL.
    #[test]
    fn a_refused_direct_write_is_reopened_and_an_interrupted_one_repeated() {
        let mut flight = write(4096);
        for (errno, reopened) in [(libc::EINTR, false), (libc::EINVAL, true)] {
            push(&mut flight, Some((0, 4096)), true);
            flight.completed(Half::Sync, -libc::ECANCELED);
            let next = flight.completed(Half::Transfer, -errno);
            assert_eq!(matches!(next, Next::Reopen), reopened, "{next:?}");
            assert_eq!(matches!(next, Next::Again), !reopened, "{next:?}");
        }
    }

    #[test]
    fn reads_go_on_to_the_end() {
        let read = || Transfer::Read {
            buf: AlignedBuf::with_capacity(16_384),
        };
        let mut short = flight(read(), 16_384);
        push(&mut short, Some((0, 16_384)), false);
        assert!(matches!(short.completed(Half::Transfer, 4096), Next::Again));
        push(&mut short, Some((4096, 12_288)), false);
        assert!(matches!(
            short.completed(Half::Transfer, 100),
            Next::Finished(Ok(()))
        ));
        let IoOutput::Read(buf) = short.into_output() else {
            panic!("a read answers bytes")
        };
        assert_eq!(buf.len(), 4196);
    }
}
