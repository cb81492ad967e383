//! The check at the door: header, length, CRC-32C and plain records of a batch that arrives in parts.
//!
//! Protocol of use of [`Checker`]: `push` every part in order, in any sizes, then `finish` or
//! `finish_produced` once. No part is kept or copied but for the first 61 bytes. The first error is
//! final: drop the checker.
//!
//! A checksum holds over whatever its sender wrote, so the records of a produced batch are walked too: one
//! that cannot be read would stop every consumer that comes to it. Absent: compressed records, which are
//! walked where they are inflated ([`crate::OpenBatch`]).

use crc_fast::{CrcAlgorithm, Digest};

use crate::header::{BatchHeader, CRC_FROM, HEADER_BYTES};
use crate::walk::check_records;
use crate::{BatchError, Compression};

/// Checks one batch as its bytes come in.
#[derive(Debug)]
pub struct Checker {
    start: [u8; HEADER_BYTES],
    header: Option<BatchHeader>,
    /// Bytes pushed so far.
    have: usize,
    digest: Digest,
}

impl Default for Checker {
    fn default() -> Self {
        Self::new()
    }
}

impl Checker {
    /// A checker that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self {
            start: [0; HEADER_BYTES],
            header: None,
            have: 0,
            digest: Digest::new(CrcAlgorithm::Crc32Iscsi),
        }
    }

    /// Take the next part.
    ///
    /// # Errors
    /// As soon as the header is complete, its faults; as soon as the batch is too long,
    /// [`BatchError::Excess`].
    pub fn push(&mut self, part: &[u8]) -> Result<(), BatchError> {
        let mut rest = part;
        if self.header.is_none() {
            let take = rest.len().min(HEADER_BYTES - self.have);
            self.start[self.have..self.have + take].copy_from_slice(&rest[..take]);
            self.have += take;
            rest = &rest[take..];
            if self.have < HEADER_BYTES {
                return Ok(());
            }
            self.header = Some(BatchHeader::parse(&self.start)?);
            self.digest.update(&self.start[CRC_FROM..]);
        }
        if let Some(header) = &self.header {
            let left = header.size() - self.have;
            if rest.len() > left {
                return Err(BatchError::Excess {
                    extra: rest.len() - left,
                });
            }
            self.have += rest.len();
            self.digest.update(rest);
        }
        Ok(())
    }

    /// The header, once its 61 bytes have arrived.
    #[must_use]
    pub fn header(&self) -> Option<&BatchHeader> {
        self.header.as_ref()
    }

    /// All parts are there: the length and the CRC must agree with them.
    ///
    /// # Errors
    /// [`BatchError::Truncated`] or [`BatchError::Crc`].
    pub fn finish(self) -> Result<BatchHeader, BatchError> {
        let Some(header) = self.header else {
            return Err(BatchError::Truncated {
                have: self.have,
                need: HEADER_BYTES,
            });
        };
        if self.have < header.size() {
            return Err(BatchError::Truncated {
                have: self.have,
                need: header.size(),
            });
        }
        let computed = self.digest.finalize() as u32;
        if computed != header.crc {
            return Err(BatchError::Crc {
                stored: header.crc,
                computed,
            });
        }
        Ok(header)
    }

    /// As [`Checker::finish`], with the rules for a batch that a client produces.
    ///
    /// # Errors
    /// Those of [`Checker::finish`] and of [`BatchHeader::check_produced`].
    pub fn finish_produced(self) -> Result<BatchHeader, BatchError> {
        let header = self.finish()?;
        header.check_produced()?;
        Ok(header)
    }
}

/// Check a batch that lies in parts, without joining them: header, length and CRC.
///
/// # Errors
/// Any fault of framing and header fields in [`BatchError`].
pub fn check_parts<P: AsRef<[u8]>>(parts: &[P]) -> Result<BatchHeader, BatchError> {
    let mut checker = Checker::new();
    for part in parts {
        checker.push(part.as_ref())?;
    }
    checker.finish()
}

/// As [`check_parts`], with the rules for a batch that a client produces; plain records are walked.
///
/// # Errors
/// Those of [`check_parts`], of [`BatchHeader::check_produced`] and of [`check_records`].
pub fn check_produced_parts<P: AsRef<[u8]>>(parts: &[P]) -> Result<BatchHeader, BatchError> {
    let header = check_parts(parts)?;
    header.check_produced()?;
    if header.attributes.compression == Compression::None {
        check_records(&header, parts)?;
    }
    Ok(header)
}

/// The CRC-32C of a whole batch in one piece, as its header should hold it.
pub(crate) fn crc_of(batch: &[u8]) -> u32 {
    crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, &batch[CRC_FROM..]) as u32
}
