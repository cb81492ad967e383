//! Frames: encoding, and an incremental decoder that works on chunks as they arrive.
//!
//! ```text
//!  0  u32 LE  length of what follows these four bytes
//!  4  u16 LE  kind
//!  6  u16 LE  header length
//!  8  ...     header: one protobuf message
//!     ...     payload: raw bytes, to the end
//! ```
//!
//! The decoder allocates nothing by a length it reads: it holds the chunks that came, and a frame's
//! payload is given out as those chunks. Small chunks in a row are copied together, because each may
//! pin a whole receive buffer. Deliberately absent: what the messages mean.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};
use millstream_batch::Parts;
use millstream_batch::limits::{FRAME_HEADER_BYTES_MAX, FRAME_PAYLOAD_BYTES_MAX};
use prost::Message;

use crate::density::{self, BYTES_AN_ELEMENT};
use crate::kinds::{Kind, name_of};

/// Bytes before the header.
pub const PREFIX_BYTES: usize = 8;
/// Of the prefix, the part that the length field counts.
const COUNTED_PREFIX_BYTES: usize = 4;
/// Chunks below this that follow each other are copied together.
const SMALL_CHUNK_BYTES: usize = 512;

/// Why bytes are not a frame. The stream cannot go on after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of length {length} does not hold its own prefix and header of {header} bytes")]
    Length { length: u32, header: u16 },
    #[error("{}: header of {bytes} bytes is over the limit of {max}", name_of(*kind))]
    HeaderTooLarge { kind: u16, bytes: usize, max: usize },
    #[error("{}: payload of {bytes} bytes is over the limit of {max}", name_of(*kind))]
    PayloadTooLarge { kind: u16, bytes: usize, max: usize },
    #[error("the stream ended inside a frame, {missing} bytes short")]
    Truncated { missing: usize },
    #[error("{}: the header is not the message it should be", name_of(*kind))]
    Header { kind: u16 },
    #[error(
        "{}: {bytes} bytes hold {elements} strings and messages, more than one in {BYTES_AN_ELEMENT}",
        name_of(*kind)
    )]
    Dense {
        kind: u16,
        bytes: usize,
        elements: usize,
    },
}

impl FrameError {
    /// Whether the peer went over a limit (rather than sending something unreadable).
    #[must_use]
    pub fn is_limit(self) -> bool {
        matches!(
            self,
            Self::HeaderTooLarge { .. } | Self::PayloadTooLarge { .. } | Self::Dense { .. }
        )
    }
}

/// Largest payload, in bytes, that a reader takes with a frame of this kind.
pub type Limit = fn(kind: u16) -> usize;

/// What a client allows: all that the protocol does.
#[must_use]
pub fn any_payload(_kind: u16) -> usize {
    FRAME_PAYLOAD_BYTES_MAX
}

/// The first eight bytes of a frame, checked against the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    pub kind: u16,
    pub header_bytes: usize,
    pub payload_bytes: usize,
}

impl Prefix {
    /// Bytes of header and payload.
    #[must_use]
    pub fn body_bytes(&self) -> usize {
        self.header_bytes + self.payload_bytes
    }

    /// Read a prefix. `limit` is what the reader allows as payload, at most [`FRAME_PAYLOAD_BYTES_MAX`].
    ///
    /// # Errors
    /// When the lengths contradict each other or are over a limit.
    pub fn parse(bytes: [u8; PREFIX_BYTES], limit: Limit) -> Result<Self, FrameError> {
        let [l0, l1, l2, l3, k0, k1, h0, h1] = bytes;
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        let kind = u16::from_le_bytes([k0, k1]);
        let header = u16::from_le_bytes([h0, h1]);
        let header_bytes = usize::from(header);
        let payload_bytes = (length as usize)
            .checked_sub(COUNTED_PREFIX_BYTES + header_bytes)
            .ok_or(FrameError::Length { length, header })?;
        if header_bytes > FRAME_HEADER_BYTES_MAX {
            return Err(FrameError::HeaderTooLarge {
                kind,
                bytes: header_bytes,
                max: FRAME_HEADER_BYTES_MAX,
            });
        }
        let max = limit(kind).min(FRAME_PAYLOAD_BYTES_MAX);
        if payload_bytes > max {
            return Err(FrameError::PayloadTooLarge {
                kind,
                bytes: payload_bytes,
                max,
            });
        }
        Ok(Self {
            kind,
            header_bytes,
            payload_bytes,
        })
    }
}

/// One frame as received.
#[derive(Clone, Debug)]
pub struct Frame {
    /// May be a number that this build does not know: see [`Frame::known`].
    pub kind: u16,
    pub header: Bytes,
    pub payload: Payload,
}

impl Frame {
    /// The kind, if this build knows it.
    #[must_use]
    pub fn known(&self) -> Option<Kind> {
        Kind::from_number(self.kind)
    }

    /// The message. Unknown fields are ignored. A message too long for a header is the payload, and
    /// the header is empty then (see [`encode`]).
    ///
    /// # Errors
    /// When the bytes are not that message, or would take more than
    /// [`GROWTH_MAX`](crate::density::GROWTH_MAX) times their size in memory.
    pub fn message<M: Message + Default>(&self) -> Result<M, FrameError> {
        let raw_payload = self.known().is_some_and(Kind::has_raw_payload);
        if self.header.is_empty() && !self.payload.is_empty() && !raw_payload {
            return self.decode(self.payload.clone().into_contiguous());
        }
        self.decode(self.header.clone())
    }

    fn decode<M: Message + Default>(&self, bytes: Bytes) -> Result<M, FrameError> {
        let kind = self.kind;
        if let Some(elements) = density::excess(&bytes) {
            let bytes = bytes.len();
            return Err(FrameError::Dense {
                kind,
                bytes,
                elements,
            });
        }
        M::decode(bytes).map_err(|_| FrameError::Header { kind })
    }
}

/// A frame's payload, in the parts in which it arrived.
#[derive(Clone, Debug, Default)]
pub struct Payload {
    parts: Parts,
    bytes: usize,
}

impl Payload {
    /// Bytes in all parts together.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The parts, none of them empty.
    #[must_use]
    pub fn parts(&self) -> &[Bytes] {
        &self.parts
    }

    /// The parts, given away.
    #[must_use]
    pub fn into_parts(self) -> Parts {
        self.parts
    }

    /// All bytes in one piece: without copying when there is one part.
    #[must_use]
    pub fn into_contiguous(self) -> Bytes {
        self.parts.into_contiguous()
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() {
            Self::default()
        } else {
            Self {
                bytes: bytes.len(),
                parts: bytes.into(),
            }
        }
    }
}

/// Append a frame's prefix and header to `out`. The caller writes `payload_bytes` bytes after it.
///
/// # Panics
/// When header or payload is over its limit: the caller builds what it sends, and bounds it.
pub fn encode_head(out: &mut BytesMut, kind: Kind, header: &impl Message, payload_bytes: usize) {
    let header_bytes = header.encoded_len();
    assert!(
        header_bytes <= FRAME_HEADER_BYTES_MAX,
        "{}: header of {header_bytes} bytes",
        kind.name()
    );
    assert!(
        payload_bytes <= FRAME_PAYLOAD_BYTES_MAX,
        "{}: payload of {payload_bytes} bytes",
        kind.name()
    );
    out.reserve(PREFIX_BYTES + header_bytes);
    out.put_u32_le((COUNTED_PREFIX_BYTES + header_bytes + payload_bytes) as u32);
    out.put_u16_le(kind.number());
    out.put_u16_le(header_bytes as u16);
    header.encode_raw(out);
}

/// A whole frame of a kind whose payload is not raw bytes. A message too long for the header becomes
/// the payload, and the header stays empty.
///
/// # Panics
/// When the message is over [`FRAME_PAYLOAD_BYTES_MAX`], or the kind's payload is raw bytes and the
/// message is over [`FRAME_HEADER_BYTES_MAX`]: see [`fits`].
#[must_use]
pub fn encode(kind: Kind, message: &impl Message) -> Bytes {
    let mut out = BytesMut::new();
    encode_into(&mut out, kind, message);
    out.freeze()
}

/// As [`encode`], appended to `out`, so that many small frames become one write.
///
/// # Panics
/// As [`encode`].
pub fn encode_into(out: &mut BytesMut, kind: Kind, message: &impl Message) {
    let bytes = message.encoded_len();
    if bytes <= FRAME_HEADER_BYTES_MAX {
        encode_head(out, kind, message, 0);
    } else {
        assert!(
            !kind.has_raw_payload(),
            "{}: header of {bytes} bytes",
            kind.name()
        );
        encode_head(out, kind, &(), bytes);
        out.reserve(bytes);
        message.encode_raw(out);
    }
}

/// Whether [`encode`] can carry this message.
#[must_use]
pub fn fits(message: &impl Message) -> bool {
    message.encoded_len() <= FRAME_PAYLOAD_BYTES_MAX
}

/// Reads frames from chunks.
///
/// Protocol of use: [`push`](Self::push) what arrives, then [`next_frame`](Self::next_frame) until it
/// gives `None`; at the end of the stream, [`finish`](Self::finish). After an error, nothing more.
#[derive(Debug)]
pub struct Decoder {
    chunks: VecDeque<Bytes>,
    /// Bytes in `chunks`.
    buffered: usize,
    prefix: Option<Prefix>,
    limit: Limit,
}

impl Decoder {
    /// A decoder that takes payloads up to `limit`.
    #[must_use]
    pub fn new(limit: Limit) -> Self {
        Self {
            chunks: VecDeque::new(),
            buffered: 0,
            prefix: None,
            limit,
        }
    }

    /// Decode all frames of a byte string, as a fuzz target or a test does.
    ///
    /// # Errors
    /// At the first thing that is no frame.
    pub fn decode_all(bytes: &[u8]) -> Result<Vec<Frame>, FrameError> {
        let mut decoder = Self::new(any_payload);
        decoder.push(Bytes::copy_from_slice(bytes));
        let mut frames = Vec::new();
        while let Some(frame) = decoder.next_frame()? {
            frames.push(frame);
        }
        decoder.finish()?;
        Ok(frames)
    }

    /// The frame that is coming, once its prefix has come and while it is not whole: what a reader
    /// makes room for. Known after [`next_frame`](Self::next_frame) gave `None`.
    #[must_use]
    pub fn coming(&self) -> Option<Prefix> {
        self.prefix
    }

    /// Bytes held that are not yet part of a frame given out.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.buffered
    }

    /// Take in what arrived.
    pub fn push(&mut self, chunk: Bytes) {
        if chunk.is_empty() {
            return;
        }
        self.buffered += chunk.len();
        let small = |chunk: &Bytes| chunk.len() < SMALL_CHUNK_BYTES;
        if !small(&chunk) || !self.chunks.back().is_some_and(small) {
            self.chunks.push_back(chunk);
            return;
        }
        // Two small ones in a row: the first grows, in its own memory if nobody shares it, else in a copy.
        if let Some(last) = self.chunks.pop_back() {
            let mut grown = last.try_into_mut().unwrap_or_else(|shared| {
                let mut copy = BytesMut::with_capacity(SMALL_CHUNK_BYTES * 2);
                copy.extend_from_slice(&shared);
                copy
            });
            grown.extend_from_slice(&chunk);
            self.chunks.push_back(grown.freeze());
        }
    }

    /// The next whole frame, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// When the bytes are no frame: the stream cannot go on.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let prefix = match self.prefix {
            Some(prefix) => prefix,
            None if self.buffered < PREFIX_BYTES => return Ok(None),
            None => {
                let mut bytes = [0; PREFIX_BYTES];
                self.copy_out(&mut bytes);
                *self.prefix.insert(Prefix::parse(bytes, self.limit)?)
            }
        };
        if self.buffered < prefix.header_bytes + prefix.payload_bytes {
            return Ok(None);
        }
        self.prefix = None;
        let header = self.take_contiguous(prefix.header_bytes);
        let payload = self.take(prefix.payload_bytes);
        Ok(Some(Frame {
            kind: prefix.kind,
            header,
            payload,
        }))
    }

    /// The stream has ended: an error when that was inside a frame.
    ///
    /// # Errors
    /// [`FrameError::Truncated`].
    pub fn finish(&self) -> Result<(), FrameError> {
        let missing = match self.prefix {
            Some(prefix) => {
                (prefix.header_bytes + prefix.payload_bytes).saturating_sub(self.buffered)
            }
            None if self.buffered == 0 => return Ok(()),
            None => PREFIX_BYTES.saturating_sub(self.buffered),
        };
        Err(FrameError::Truncated { missing })
    }

    fn copy_out(&mut self, out: &mut [u8]) {
        let mut done = 0;
        while let Some(part) = self.pop(out.len() - done) {
            out[done..done + part.len()].copy_from_slice(&part);
            done += part.len();
        }
    }

    /// The next `bytes` bytes in one piece: without a copy when they came so.
    fn take_contiguous(&mut self, bytes: usize) -> Bytes {
        if self.chunks.front().is_none_or(|chunk| chunk.len() < bytes) {
            return self.take(bytes).into_contiguous();
        }
        self.pop(bytes).unwrap_or_default()
    }

    /// The next `bytes` bytes, as they came.
    fn take(&mut self, bytes: usize) -> Payload {
        assert!(
            bytes <= self.buffered,
            "took {bytes} of {} buffered bytes",
            self.buffered
        );
        let mut room = 0;
        let ends = |chunk: &Bytes| {
            room += chunk.len();
            room >= bytes
        };
        let last = self.chunks.iter().position(ends);
        let mut parts = Parts::with_capacity(last.map_or(0, |last| last + 1));
        let mut missing = bytes;
        while let Some(part) = self.pop(missing) {
            missing -= part.len();
            parts.push(part);
        }
        Payload { parts, bytes }
    }

    /// The next piece, of at most so many bytes; `None` when that is zero or nothing is there.
    fn pop(&mut self, bytes_max: usize) -> Option<Bytes> {
        if bytes_max == 0 {
            return None;
        }
        let chunk = self.chunks.front_mut()?;
        let part = if chunk.len() > bytes_max {
            chunk.split_to(bytes_max)
        } else {
            self.chunks.pop_front()?
        };
        self.buffered -= part.len();
        Some(part)
    }
}
