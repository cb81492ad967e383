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
/// Of that, in control frames: past it, nothing is taken from the client that asks for more of them.
const CONTROL_BYTES_MAX: usize = 128 << 10;
/// Size at which gathered bytes become a chunk.
const GATHER_BYTES: usize = 32 << 10;

#[derive(Debug)]
pub(super) struct Outbox {
    chunks: VecDeque<Bytes>,
    gathered: BytesMut,
    bytes: usize,
    /// All bytes ever put in: the place of what is put in next.
    end: u64,
    /// Control frames not yet written: where each ends, and its bytes.
    control: VecDeque<(u64, usize)>,
    control_bytes: usize,
    share: SendShare,
}

impl Outbox {
    pub(super) fn new(share: SendShare) -> Self {
        Self {
            chunks: VecDeque::new(),
            gathered: BytesMut::new(),
            bytes: 0,
            end: 0,
            control: VecDeque::new(),
            control_bytes: 0,
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

    /// Whether the client may say what is answered here. Batches do not count: a client that reads
    /// them slowly commits all the same.
    pub(super) fn has_control_room(&self) -> bool {
        self.control_bytes < CONTROL_BYTES_MAX
    }

    /// A control frame. Whoever builds one whose size the client has a say in bounds it.
    pub(super) fn frame(&mut self, kind: Kind, message: &impl Message) {
        let before = self.gathered.len();
        encode_into(&mut self.gathered, kind, message);
        let bytes = self.gathered.len() - before;
        self.grow(bytes);
        self.control.push_back((self.end, bytes));
        self.control_bytes += bytes;
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
            self.grow(self.gathered.len() - before);
            if self.gathered.len() >= GATHER_BYTES {
                self.close_gathered();
            }
        } else {
            self.grow(self.gathered.len() - before + body.len());
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
        let begin = self.end - self.bytes as u64;
        while let Some((end, bytes)) = self.control.front().copied()
            && end <= begin
        {
            self.control.pop_front();
            self.control_bytes -= bytes;
        }
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

    fn grow(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.end += bytes as u64;
    }

    fn close_gathered(&mut self) {
        if !self.gathered.is_empty() {
            let chunk = self.gathered.split().freeze();
            self.chunks.push_back(self.share.hold(chunk));
        }
    }
}

#[cfg(test)]
mod tests {
    use millstream_protocol::messages::{CaughtUp, Committed};

    use super::*;
    use crate::config::Memory;
    use crate::memory::Bounds;

    #[test]
    fn control_frames_that_wait_use_up_their_room_and_batches_do_not() {
        let bounds = Bounds::new(&Memory::default());
        let mut outbox = Outbox::new(SendShare::new(&bounds.send));
        outbox.batch(
            &messages::Batch::default(),
            &[0; 64],
            Bytes::from(vec![0; 1 << 20]),
        );
        assert!(!outbox.has_room() && outbox.has_control_room());
        while outbox.has_control_room() {
            outbox.frame(Kind::Committed, &Committed::default());
            outbox.frame(Kind::CaughtUp, &CaughtUp::default());
        }
        let (all, chunks) = (outbox.bytes, outbox.chunks().len());
        assert!(all < (1 << 20) + 2 * CONTROL_BYTES_MAX);
        let batch = outbox.chunks()[..2].iter().map(Bytes::len).sum();
        outbox.written(Written {
            bytes: batch,
            chunks: 2,
        });
        assert!(!outbox.has_control_room(), "the batch alone was written");
        outbox.written(Written {
            bytes: all - batch,
            chunks: chunks - 2,
        });
        assert!(outbox.is_empty() && outbox.has_control_room());
        assert_eq!((outbox.control_bytes, outbox.control.len()), (0, 0));
    }
}
