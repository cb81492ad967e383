//! Frames on a QUIC stream: reading with bounded memory, and short answers.

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use millstream_batch::limits::{BATCH_BYTES_MAX, COMPONENT_BYTES_MAX};
use millstream_protocol::frame::{PREFIX_BYTES, encode};
use millstream_protocol::{Code, Decoder, Frame, Kind, Message, messages};
use quinn::{RecvStream, SendStream, VarInt, WriteError};
use tokio::time::Instant;

use crate::memory::Ingress;
use crate::refusals;
use crate::session::Session;

/// Chunks taken from QUIC at a time.
const CHUNKS: usize = 32;
/// The least that a packet carries, to guess how many chunks a frame still needs.
const CHUNK_BYTES_MIN: usize = 1_200;
/// Past so many bytes of unfinished frames in the whole broker, chunks are taken one at a time.
const UNFINISHED_BYTES_EASY: usize = 32 << 20;
/// A message that is too long for its header: lists of partitions.
const LONG_MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Frames that every stream may hold without waiting for room: below it, the bound on streams is the
/// bound on memory.
const FREE_BYTES: usize = 4 << 10;

/// The least that a frame in transit has to make good, in bytes a second: what a slow link still gives to
/// each of many streams. A frame that takes longer holds room that others wait for.
const FRAME_BYTES_PER_SECOND_MIN: usize = 16 << 10;

/// Why reading ended.
#[derive(Debug)]
pub(crate) enum ReadEnd {
    /// FIN, between two frames.
    Finished,
    /// The peer reset the stream or the connection is gone: nobody to tell.
    Gone,
    /// What came cannot be taken: to be told, then the stream ends.
    Refused(messages::Error),
}

/// A frame, and the room it takes.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) frame: Frame,
    /// `None` for small frames other than PRODUCE.
    pub(crate) room: Option<Ingress>,
}

/// Reads frames. Cancel-safe: a read that is dropped loses nothing, except its place in the queue for
/// room.
#[derive(Debug)]
pub(crate) struct FrameReader {
    recv: RecvStream,
    decoder: Decoder,
    session: Rc<Session>,
    /// Room for the frame that is coming.
    room: Option<Ingress>,
    /// Since when that frame has its room.
    begun: Option<Instant>,
    /// What of `decoder` is counted as unfinished.
    counted: usize,
    finished: bool,
}

impl FrameReader {
    pub(crate) fn new(recv: RecvStream, session: &Rc<Session>) -> Self {
        Self {
            recv,
            decoder: Decoder::new(payload_bytes_max),
            session: Rc::clone(session),
            room: None,
            begun: None,
            counted: 0,
            finished: false,
        }
    }

    /// The next frame.
    pub(crate) async fn next(&mut self) -> Result<Received, ReadEnd> {
        loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => {
                    if self.room.is_none() && frame.kind == Kind::Produce.number() {
                        let bytes = frame.header.len() + frame.payload.len();
                        self.room = Some(self.session.ingress.take(bytes).await);
                    }
                    self.count();
                    self.begun = None;
                    return Ok(Received {
                        frame,
                        room: self.room.take(),
                    });
                }
                Ok(None) => {}
                Err(error) => {
                    self.session.shared.metrics.frames_malformed.add(1);
                    return Err(ReadEnd::Refused(refusals::of_frame(error)));
                }
            }
            if self.finished {
                return Err(match self.decoder.finish() {
                    Ok(()) => ReadEnd::Finished,
                    Err(error) => ReadEnd::Refused(refusals::of_frame(error)),
                });
            }
            self.count();
            let Some(coming) = self.decoder.coming() else {
                self.read(PREFIX_BYTES).await?;
                continue;
            };
            if self.room.is_none() && coming.body_bytes() > FREE_BYTES {
                // Who has not said HELLO gets no room, except for HELLO itself; QUIC holds the rest.
                if coming.kind != Kind::Hello.number()
                    && !self.session.is_authenticated()
                    && !self.session.authenticated().await
                {
                    return Err(ReadEnd::Gone);
                }
                self.room = Some(self.session.ingress.take(coming.body_bytes()).await);
            }
            // It holds room that others may wait for: it has to go on, and not by a byte at a time.
            let stall = Duration::from_millis(self.session.shared.config.limits.frame_stall_ms);
            let now = Instant::now();
            let begun = *self.begun.get_or_insert(now);
            let deadline = frame_deadline(now, begun, self.decoder.buffered(), stall);
            let missing = coming.body_bytes() - self.decoder.buffered();
            match tokio::time::timeout_at(deadline, self.read(missing)).await {
                Ok(read) => read?,
                Err(_) => {
                    let message = format!(
                        "a frame stood still for {} ms or came too slowly, {missing} bytes short",
                        stall.as_millis()
                    );
                    return Err(ReadEnd::Refused(Code::BadRequest.error(message)));
                }
            }
        }
    }

    /// Tell the peer to send no more, if it still does.
    pub(crate) fn stop(&mut self, code: u32) {
        drop(self.recv.stop(VarInt::from_u32(code))); // it may have finished, which is as good
    }

    /// Take what is there, about as many chunks as `missing` bytes need.
    async fn read(&mut self, missing: usize) -> Result<(), ReadEnd> {
        const EMPTY: Bytes = Bytes::new();
        let mut chunks = [EMPTY; CHUNKS];
        let shared = &self.session.shared;
        let wanted = if shared.bounds.unfinished.load(Ordering::Relaxed) > UNFINISHED_BYTES_EASY {
            1
        } else {
            (missing / CHUNK_BYTES_MIN).clamp(CHUNKS / 4, CHUNKS)
        };
        match self.recv.read_chunks(&mut chunks[..wanted]).await {
            Ok(Some(count)) => {
                let mut bytes = 0;
                for chunk in &mut chunks[..count] {
                    bytes += chunk.len();
                    self.decoder.push(std::mem::take(chunk));
                }
                shared.metrics.bytes_in.add(bytes as u64);
                Ok(())
            }
            Ok(None) => {
                self.finished = true;
                Ok(())
            }
            Err(_) => Err(ReadEnd::Gone),
        }
    }

    fn count(&mut self) {
        let unfinished = &self.session.shared.bounds.unfinished;
        let now = self.decoder.buffered();
        if now > self.counted {
            unfinished.fetch_add(now - self.counted, Ordering::Relaxed);
        } else if now < self.counted {
            unfinished.fetch_sub(self.counted - now, Ordering::Relaxed);
        }
        self.counted = now;
    }
}

impl Drop for FrameReader {
    fn drop(&mut self) {
        self.session
            .shared
            .bounds
            .unfinished
            .fetch_sub(self.counted, Ordering::Relaxed);
    }
}

/// When more of a frame has to have come that has its room since `begun`, and of which so many bytes are
/// here: it may neither stand still nor come by a byte at a time.
fn frame_deadline(now: Instant, begun: Instant, buffered: usize, stall: Duration) -> Instant {
    let least_pace = Duration::from_millis((buffered * 1_000 / FRAME_BYTES_PER_SECOND_MIN) as u64);
    (now + stall).min(begun + stall + least_pace)
}

fn payload_bytes_max(kind: u16) -> usize {
    match Kind::from_number(kind) {
        Some(Kind::Hello) => 0,
        Some(Kind::Produce) => BATCH_BYTES_MAX,
        Some(Kind::DeployFilter) => COMPONENT_BYTES_MAX,
        _ => LONG_MESSAGE_BYTES_MAX,
    }
}

/// Write one frame without a payload.
pub(crate) async fn write_frame(
    send: &mut SendStream,
    kind: Kind,
    message: &impl Message,
) -> Result<(), WriteError> {
    send.write_chunk(encode(kind, message)).await
}

/// End a stream with ERROR, and stop reading it.
pub(crate) async fn refuse(
    send: &mut SendStream,
    reader: &mut FrameReader,
    error: &messages::Error,
) {
    reader.stop(error.code);
    if write_frame(send, Kind::Error, error).await.is_ok() {
        drop(send.finish()); // a peer that went away needs no end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALL: Duration = Duration::from_secs(10);

    /// A sender that gives so many bytes at every step: after how long it is given up, if before `until`.
    fn given_up(bytes: usize, step: Duration, until: Duration) -> Option<Duration> {
        let begun = Instant::now();
        let (mut at, mut buffered) = (Duration::ZERO, 0);
        while at < until {
            let deadline = frame_deadline(begun + at, begun, buffered, STALL);
            if begun + at + step > deadline {
                return Some(deadline - begun);
            }
            at += step;
            buffered += bytes;
        }
        None
    }

    #[test]
    fn a_frame_that_stands_still_is_given_up_and_one_that_drips_too() {
        let ms = Duration::from_millis;
        let hour = Duration::from_secs(3_600);
        assert_eq!(given_up(0, STALL + ms(1), hour), Some(STALL));
        // A byte a second never stands still for long, and is given up all the same.
        let dripped = given_up(1, ms(1_000), hour).expect("it is too slow");
        assert!((STALL..STALL + ms(1_100)).contains(&dripped), "{dripped:?}");
        // At half the pace, its head start of one stall is used up after two.
        let slow = given_up(FRAME_BYTES_PER_SECOND_MIN / 2, ms(1_000), hour).expect("too slow");
        assert!((STALL..=2 * STALL + ms(1_000)).contains(&slow), "{slow:?}");
        assert_eq!(given_up(FRAME_BYTES_PER_SECOND_MIN, ms(1_000), hour), None);
        // A pause within a frame that came fast is only a pause.
        let begun = Instant::now();
        let now = begun + ms(100);
        assert_eq!(frame_deadline(now, begun, 1 << 20, STALL), now + STALL);
    }
}
