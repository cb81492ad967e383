//! A whole batch in one piece: borrowed ([`BatchView`]) or shared ([`Batch`]). Zero-copy.
//!
//! To hold either is proof that the header is consistent and that the bytes are exactly those it
//! claims. `check` also verifies the CRC; `parse` does not, for bytes that another checksum has
//! just covered (the log's). The records section is looked at only when asked.

use bytes::Bytes;

use crate::check::crc_of;
use crate::codec::Codec;
use crate::header::{BatchHeader, HEAD_BYTES, HEADER_BYTES, served_head};
use crate::ids::{Offset, Term};
use crate::record::Records;
use crate::{BatchError, Compression};

/// A batch that lies in borrowed memory.
#[derive(Clone, Copy, Debug)]
pub struct BatchView<'a> {
    header: BatchHeader,
    bytes: &'a [u8],
}

impl<'a> BatchView<'a> {
    /// `bytes` as a batch, the CRC not verified.
    ///
    /// # Errors
    /// Faults of framing and header fields in [`BatchError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BatchError> {
        let header = BatchHeader::parse(bytes)?;
        let size = header.size();
        if bytes.len() < size {
            return Err(BatchError::Truncated {
                have: bytes.len(),
                need: size,
            });
        }
        if bytes.len() > size {
            return Err(BatchError::Excess {
                extra: bytes.len() - size,
            });
        }
        Ok(Self { header, bytes })
    }

    /// `bytes` as a batch, the CRC verified.
    ///
    /// # Errors
    /// Those of [`BatchView::parse`], and [`BatchError::Crc`].
    pub fn check(bytes: &'a [u8]) -> Result<Self, BatchError> {
        let view = Self::parse(bytes)?;
        let computed = crc_of(bytes);
        if computed != view.header.crc {
            return Err(BatchError::Crc {
                stored: view.header.crc,
                computed,
            });
        }
        Ok(view)
    }

    #[must_use]
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The whole batch.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The records section as it stands, compressed or not.
    #[must_use]
    pub fn section(&self) -> &'a [u8] {
        &self.bytes[HEADER_BYTES..]
    }

    /// The records section inflated: as it stands when it is not compressed, else in `scratch`,
    /// whose content is replaced.
    ///
    /// # Errors
    /// [`BatchError::Inflate`] and [`BatchError::InflatedTooLarge`].
    pub fn inflated<'s>(
        &self,
        codec: &mut Codec,
        scratch: &'s mut Vec<u8>,
    ) -> Result<&'s [u8], BatchError>
    where
        'a: 's,
    {
        if self.header.attributes.compression == Compression::None {
            return Ok(self.section());
        }
        scratch.clear();
        codec.inflate(self.header.attributes.compression, self.section(), scratch)?;
        Ok(scratch)
    }
}

/// A batch that lies in shared memory: clones and slices share it.
#[derive(Clone, Debug)]
pub struct Batch {
    header: BatchHeader,
    bytes: Bytes,
}

/// A batch as it goes out to a consumer: a fresh head, then the stored bytes.
#[derive(Clone, Debug)]
pub struct Served {
    pub head: [u8; HEAD_BYTES],
    pub body: Bytes,
}

impl Batch {
    /// `bytes` as a batch, the CRC not verified.
    ///
    /// # Errors
    /// Those of [`BatchView::parse`].
    pub fn parse(bytes: Bytes) -> Result<Self, BatchError> {
        let header = *BatchView::parse(&bytes)?.header();
        Ok(Self { header, bytes })
    }

    /// `bytes` as a batch, the CRC verified.
    ///
    /// # Errors
    /// Those of [`BatchView::check`].
    pub fn check(bytes: Bytes) -> Result<Self, BatchError> {
        let header = *BatchView::check(&bytes)?.header();
        Ok(Self { header, bytes })
    }

    /// A batch that was just encoded here.
    pub(crate) fn encoded(header: BatchHeader, bytes: Bytes) -> Self {
        debug_assert_eq!(
            header.size(),
            bytes.len(),
            "an encoder writes the length it encoded"
        );
        Self { header, bytes }
    }

    #[must_use]
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The whole batch.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    #[must_use]
    pub fn view(&self) -> BatchView<'_> {
        BatchView {
            header: self.header,
            bytes: &self.bytes,
        }
    }

    /// The records section as it stands, compressed or not. Shares the batch's memory.
    #[must_use]
    pub fn section(&self) -> Bytes {
        self.bytes.slice(HEADER_BYTES..)
    }

    /// The records section inflated; shares the batch's memory when it is not compressed. Keys and
    /// values of its records can be shared in turn with [`Bytes::slice_ref`].
    ///
    /// # Errors
    /// [`BatchError::Inflate`] and [`BatchError::InflatedTooLarge`].
    pub fn inflated(&self, codec: &mut Codec) -> Result<Bytes, BatchError> {
        let section = self.section();
        if self.header.attributes.compression == Compression::None {
            return Ok(section);
        }
        let mut raw = Vec::new();
        codec.inflate(self.header.attributes.compression, &section, &mut raw)?;
        Ok(raw.into())
    }

    /// The batch as a consumer gets it, standing at `base`. The body shares the batch's memory.
    #[must_use]
    pub fn served(&self, base: Offset, leader_epoch: Term) -> Served {
        Served {
            head: served_head(base, leader_epoch, &self.header),
            body: self.bytes.slice(HEAD_BYTES..),
        }
    }
}

impl BatchHeader {
    /// Walk the records of the batch with this header; `raw` is its inflated records section.
    #[must_use]
    pub fn records<'a>(&self, raw: &'a [u8]) -> Records<'a> {
        Records::new(self, raw)
    }
}
