//! The sending process of the ceiling: keeps batches in flight and takes the time of each.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Barrier;
use std::time::Instant;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use hdrhistogram::Histogram;
use tokio::sync::Semaphore;

use super::frame;
use super::quic::{self, Hello};
use crate::load::Load;
use crate::runtime;

/// What one sender, or all of them, measured.
#[derive(Debug)]
pub(super) struct Sent {
    /// The first byte was sent.
    began: Instant,
    /// The last acknowledgement came.
    ended: Instant,
    /// Of each batch, from its send to its acknowledgement, in microseconds.
    pub(super) latencies: Histogram<u64>,
}

impl Sent {
    pub(super) fn seconds(&self) -> f64 {
        (self.ended - self.began).as_secs_f64()
    }

    /// This one and another that ran at the same time.
    pub(super) fn and(mut self, other: &Self) -> Result<Self> {
        self.began = self.began.min(other.began);
        self.ended = self.ended.max(other.ended);
        self.latencies.add(&other.latencies)?;
        Ok(self)
    }
}

/// Connect, wait for the other senders, send the load and wait for the last acknowledgement.
pub(super) fn run(load: &Load, hello: &Hello, barrier: &Barrier) -> Result<Sent> {
    let runtime = runtime::one_thread()?;
    runtime.block_on(send(load, hello, barrier))
}

async fn send(load: &Load, hello: &Hello, barrier: &Barrier) -> Result<Sent> {
    let connected = quic::connect(load.mtu, hello).await;
    // All wait for all, also for one that failed.
    barrier.wait();
    let (endpoint, connection) = connected?;
    let (mut send, mut recv) = connection.open_bi().await?;
    let frames: Vec<Bytes> = (1..9)
        .map(|n| frame::encode(&noise(n, load.batch_bytes())))
        .collect();
    let batches = load.batches();
    let permits = Semaphore::new(load.in_flight);
    let sent_at = RefCell::new(VecDeque::with_capacity(load.in_flight));
    let mut latencies = Histogram::<u64>::new(3)?;
    let began = Instant::now();
    let write = async {
        for (_, frame) in (0..batches).zip(frames.iter().cycle()) {
            permits.acquire().await?.forget();
            sent_at.borrow_mut().push_back(Instant::now());
            send.write_chunk(frame.clone()).await?;
        }
        send.finish()?;
        anyhow::Ok(())
    };
    let read = async {
        let mut acknowledged = 0;
        while acknowledged < batches {
            let mut total = [0; 8];
            recv.read_exact(&mut total)
                .await
                .context("the receiver closed early")?;
            let total = u64::from_le_bytes(total);
            let now = Instant::now();
            for _ in acknowledged..total {
                let sent = sent_at
                    .borrow_mut()
                    .pop_front()
                    .context("acknowledged twice")?;
                latencies.record((now - sent).as_micros() as u64)?;
            }
            permits.add_permits((total - acknowledged) as usize);
            acknowledged = total;
        }
        anyhow::Ok(Instant::now())
    };
    let ((), ended) = tokio::try_join!(write, read)?;
    recv.read_to_end(0).await.context("the receiver's end")?;
    connection.close(0_u32.into(), b"");
    endpoint.wait_idle().await;
    Ok(Sent {
        began,
        ended,
        latencies,
    })
}

/// Bytes that nothing compresses or predicts.
pub(super) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
