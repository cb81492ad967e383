//! Making the end of the log safe: what was found is written anew, what is torn is made zeros, what is
//! surplus goes.
//!
//! Absent on purpose: what is to be mended, and in which order ([`super::end`]).

use std::sync::Arc;

use super::{Recover, Stage};
use crate::buffer::AlignedBuf;
use crate::io::{FileId, IoError, IoErrorKind, IoOp, IoOutput};
use crate::log::Log;

/// Mended at a time.
const PIECE_BYTES: u64 = 1 << 20;
const NOT_ANEW: &str = "the end of the log could not be written anew";

#[derive(Debug)]
pub(super) enum Mend {
    /// These bytes were read back, and nothing proves that they are on the disk. A sync alone would not
    /// bring them there: after one that failed, the kernel and the drive may have dropped what it was to
    /// cover while it can still be read ("fsyncgate"; Rebello et al., "Can Applications Recover from fsync
    /// Failures?", USENIX ATC 2020). They are written again as they are, then synced.
    Anew(Range),
    /// As `Anew`, of a footer. It is derived data: where it cannot be read it is left as it is, and made
    /// anew when it is needed.
    Footer(Range),
    /// Blocks past the end are made zeros.
    Cut(Range),
    /// A file is surplus.
    Remove(FileId),
}

/// Bytes `at` to `end` of a WAL file, in whole blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    file: u64,
    at: u64,
    end: u64,
}

impl Range {
    pub(super) fn new(file: u64, at: u64, end: u64) -> Self {
        Self { file, at, end }
    }

    /// The first piece, and what is left after it. `None`: nothing was left.
    fn split(self) -> Option<(Piece, Self)> {
        let Self { file, at, end } = self;
        let len = (end - at).min(PIECE_BYTES);
        let piece = Piece {
            file: FileId::Wal(file),
            at,
            len: len as usize,
            is_last: at + len == end,
            is_footer: false,
        };
        let at = at + len;
        (len > 0).then_some((piece, Self { file, at, end }))
    }
}

/// What one write mends.
#[derive(Debug)]
pub(super) struct Piece {
    file: FileId,
    at: u64,
    len: usize,
    /// One sync, with the last piece, covers all of a range.
    is_last: bool,
    is_footer: bool,
}

impl Log {
    /// The next piece, or on with the start when all is mended.
    pub(super) fn mend(&mut self, mut recover: Box<Recover>) {
        let Some(mend) = recover.mends.pop_front() else {
            return self.settle_in(*recover);
        };
        match mend {
            Mend::Anew(range) => match range.split() {
                Some((piece, rest)) => {
                    recover.mends.push_front(Mend::Anew(rest));
                    self.read_again(recover, piece);
                }
                None => self.mend(recover),
            },
            Mend::Footer(range) => match range.split() {
                Some((piece, rest)) => {
                    recover.mends.push_front(Mend::Footer(rest));
                    let is_footer = true;
                    self.read_again(recover, Piece { is_footer, ..piece });
                }
                None => self.mend(recover),
            },
            Mend::Cut(range) => match range.split() {
                Some((piece, rest)) => {
                    recover.mends.push_front(Mend::Cut(rest));
                    let mut zeros = AlignedBuf::with_capacity(piece.len);
                    zeros.set_len(piece.len);
                    let undone = "the torn end of the log could not be cut";
                    self.write_piece(recover, undone, &piece, zeros);
                }
                None => self.mend(recover),
            },
            Mend::Remove(file) => {
                let undone = "a file that is not needed could not be removed";
                self.ask(recover, Stage::Mend { undone }, IoOp::Remove { file });
            }
        }
    }

    fn read_again(&mut self, recover: Box<Recover>, piece: Piece) {
        let Piece { file, at, len, .. } = piece;
        self.ask(recover, Stage::Reread(piece), IoOp::Read { file, at, len });
    }

    pub(super) fn reread(
        &mut self,
        mut recover: Box<Recover>,
        piece: &Piece,
        result: Result<IoOutput, IoError>,
    ) {
        let error = match result {
            Ok(IoOutput::Read(bytes)) if bytes.len() == piece.len => {
                recover.report.rewritten_bytes += bytes.len() as u64;
                return self.write_piece(recover, NOT_ANEW, piece, bytes);
            }
            Ok(_) => IoError {
                kind: IoErrorKind::Failed,
                message: format!(
                    "{}: fewer than {} bytes at {}, where they were read before",
                    piece.file.file_name(),
                    piece.len,
                    piece.at
                ),
            },
            Err(error) => error,
        };
        if !piece.is_footer {
            return self.not_mended(recover, NOT_ANEW, error);
        }
        let what = format!(
            "the footer cannot be read from here on ({error}); the index is made anew from the file"
        );
        recover.damage(piece.file, piece.at, what);
        recover.mends.pop_front(); // the rest of it
        self.mend(recover);
    }

    fn write_piece(
        &mut self,
        recover: Box<Recover>,
        undone: &'static str,
        piece: &Piece,
        bytes: AlignedBuf,
    ) {
        let op = IoOp::Write {
            file: piece.file,
            at: piece.at,
            len: piece.len,
            buf: Arc::new(bytes),
            sync: piece.is_last,
        };
        self.ask(recover, Stage::Mend { undone }, op);
    }

    /// The disk failed: the shard stops.
    pub(super) fn not_mended(
        &mut self,
        mut recover: Box<Recover>,
        undone: &'static str,
        error: IoError,
    ) {
        recover.stop(format!("{undone}: {error}"));
        self.fail(error);
        self.give_up(recover);
    }
}
