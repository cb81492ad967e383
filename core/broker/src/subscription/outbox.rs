//! What is to be written to a subscription's stream, in order: heads and small batches gathered into
//! one buffer, large bodies passed on without a copy.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use millstream_protocol::frame::{encode_head, encode_into};
use millstream_protocol::{Kind, Message, messages};
use quinn::{SendStream, WriteError, Written};

use crate::memory::SendShare;

/// Bodies below this are copied behind their head: cheaper than a chunk of their own.
pub(super) const COPY_BELOW: usize = 2 << 10;
/// So much may wait for QUIC: enough that a wake-up fills many packets.
const BYTES_MAX: usize = 512 << 10;
/// Size at which gathered bytes become a chunk.
const GATHER_BYTES: usize = 32 << 10;

#[derive(Debug)]
pub(super) struct Outbox {
    chunks: VecDeque<Bytes>,
    gathered: BytesMut,
    bytes: usize,
    share: SendShare,
}

impl Outbox {
    pub(super) fn new(share: SendShare) -> Self {
        Self {
            chunks: VecDeque::new(),
            gathered: BytesMut::new(),
            bytes: 0,
            share,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Whether more batches are to be put in.
    pub(super) fn has_room(&self) -> bool {
        self.bytes < BYTES_MAX
    }

    /// A control frame.
    pub(super) fn frame(&mut self, kind: Kind, message: &impl Message) {
        let before = self.gathered.len();
        encode_into(&mut self.gathered, kind, message);
        self.bytes += self.gathered.len() - before;
    }

    /// A batch: fresh head, shared body.
    pub(super) fn batch(&mut self, header: &messages::Batch, head: &[u8], body: Bytes) {
        let before = self.gathered.len();
        encode_head(
            &mut self.gathered,
            Kind::Batch,
            header,
            head.len() + body.len(),
        );
        self.gathered.extend_from_slice(head);
        if body.len() < COPY_BELOW {
            self.gathered.extend_from_slice(&body);
            self.bytes += self.gathered.len() - before;
            if self.gathered.len() >= GATHER_BYTES {
                self.close_gathered();
            }
        } else {
            self.bytes += self.gathered.len() - before + body.len();
            self.close_gathered();
            self.chunks.push_back(body);
        }
    }

    /// What is to be written next. Call [`written`](Self::written) with what was.
    pub(super) fn chunks(&mut self) -> &mut [Bytes] {
        self.close_gathered();
        self.chunks.make_contiguous()
    }

    pub(super) fn written(&mut self, written: Written) {
        self.bytes -= written.bytes;
        self.chunks.drain(..written.chunks);
    }

    /// Write all that is left.
    pub(super) async fn drain(&mut self, send: &mut SendStream) -> Result<(), WriteError> {
        while !self.is_empty() {
            let written = send.write_chunks(self.chunks()).await?;
            self.written(written);
        }
        Ok(())
    }

    fn close_gathered(&mut self) {
        if !self.gathered.is_empty() {
            let chunk = self.gathered.split().freeze();
            self.chunks.push_back(self.share.hold(chunk));
        }
    }
}
