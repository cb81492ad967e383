//! The ceiling of consuming: batches that lie in memory, sent on one stream as fast as the reader takes
//! them. The reader counts bytes and throws them away.

use std::time::Instant;

use anyhow::{Result, ensure};
use bytes::Bytes;

use super::frame;
use super::quic::{self, Hello};
use super::sender::noise;
use crate::load::Load;
use crate::runtime;

/// Memory of the batches that are sent round and round.
const MEMORY_BYTES_MAX: u64 = 1 << 30;

/// What the reader saw.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) seconds: f64,
    pub(super) first_batch_seconds: f64,
}

/// The sending process: one reader, and the end.
pub(crate) fn serve(load: &Load) -> Result<()> {
    let batch_bytes = load.batch_bytes();
    let distinct = (MEMORY_BYTES_MAX / batch_bytes as u64).clamp(1, load.batches());
    // As far apart in memory as they are in a broker's.
    let frames: Vec<Bytes> = (0..distinct)
        .map(|number| frame::encode(&noise(number, batch_bytes)))
        .collect();
    let runtime = runtime::one_thread()?;
    runtime.block_on(async {
        let (_endpoint, _connection, mut send, mut recv) = quic::accept(load.mtu).await?;
        recv.read_to_end(64).await?;
        for (_, frame) in (0..load.batches()).zip(frames.iter().cycle()) {
            send.write_chunk(frame.clone()).await?;
        }
        send.finish()?;
        send.stopped().await?;
        Ok(())
    })
}

/// Ask for all of it, and read it.
pub(super) fn read(load: &Load, hello: &Hello) -> Result<Seen> {
    let runtime = runtime::one_thread()?;
    runtime.block_on(async {
        let (endpoint, connection) = quic::connect(load.mtu, hello).await?;
        let began = Instant::now();
        let (mut send, mut recv) = connection.open_bi().await?;
        send.write_all(b"all").await?;
        send.finish()?;
        let mut chunks: [Bytes; 64] = std::array::from_fn(|_| Bytes::new());
        let (mut bytes, mut first) = (0, None);
        while let Some(count) = recv.read_chunks(&mut chunks).await? {
            for chunk in &mut chunks[..count] {
                bytes += chunk.len() as u64;
                *chunk = Bytes::new();
            }
            if bytes >= load.batch_bytes() as u64 {
                first.get_or_insert_with(Instant::now);
            }
        }
        let ended = Instant::now();
        ensure!(
            bytes >= load.bytes(),
            "{bytes} of {} bytes came",
            load.bytes()
        );
        connection.close(0_u32.into(), b"");
        endpoint.wait_idle().await;
        Ok(Seen {
            seconds: (ended - began).as_secs_f64(),
            first_batch_seconds: (first.unwrap_or(ended) - began).as_secs_f64(),
        })
    })
}
