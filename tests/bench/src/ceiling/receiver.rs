//! The receiving process: one current-thread runtime, one task that reads, one that drives the disk
//! and acknowledges.

use std::cell::RefCell;
use std::future::poll_fn;
use std::path::Path;
use std::rc::Rc;
use std::task::{Poll, Waker};

use anyhow::Result;
use bytes::Bytes;
use millstream_log::buffer::AlignedBuf;

use super::frame::Frames;
use super::groups::Groups;
use super::quic;
use crate::load::Load;
use crate::runtime;

/// More than one chunk of a stream.
const SCRATCH_BYTES: usize = 1 << 20;

/// What the two tasks share.
struct Shared {
    groups: Groups,
    /// Of the task that drives the disk.
    driver: Option<Waker>,
    /// Of the task that reads, when the group is full.
    reader: Option<Waker>,
    closed: bool,
}

/// Receive on one connection until it closes.
pub(crate) fn serve(data: &Path, load: &Load) -> Result<()> {
    let runtime = runtime::one_thread()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let groups = Groups::open(data, load.bytes()).await?;
        let (_endpoint, _connection, mut send, mut recv) = quic::accept(load.mtu).await?;
        let shared = Shared {
            groups,
            driver: None,
            reader: None,
            closed: false,
        };
        let shared = Rc::new(RefCell::new(shared));
        let ours = shared.clone();
        let driver = tokio::task::spawn_local(async move {
            let mut acknowledged = 0;
            while let Some(frames) = durable(&ours).await? {
                acknowledged += frames;
                send.write_all(&u64::to_le_bytes(acknowledged)).await?;
            }
            send.finish()?;
            // The last acknowledgement must arrive before the process goes.
            send.stopped().await?;
            anyhow::Ok(())
        });
        read(&mut recv, &shared).await?;
        driver.await?
    })
}

/// Receive on one connection until it closes, and acknowledge without writing: what is left of
/// [`serve`] without its disk.
pub(crate) fn echo(load: &Load) -> Result<()> {
    let runtime = runtime::one_thread()?;
    runtime.block_on(async {
        let (_endpoint, _connection, mut send, mut recv) = quic::accept(load.mtu).await?;
        let mut frames = Frames::new();
        let mut scratch = AlignedBuf::with_capacity(SCRATCH_BYTES);
        let mut chunks: [Bytes; 64] = std::array::from_fn(|_| Bytes::new());
        let mut acknowledged = 0;
        while let Some(count) = recv.read_chunks(&mut chunks).await? {
            let before = acknowledged;
            for chunk in &mut chunks[..count] {
                scratch.set_len(0);
                acknowledged += frames.take(chunk, &mut scratch)?;
                *chunk = Bytes::new();
            }
            if acknowledged > before {
                send.write_all(&u64::to_le_bytes(acknowledged)).await?;
            }
        }
        send.finish()?;
        send.stopped().await?;
        Ok(())
    })
}

async fn read(recv: &mut quinn::RecvStream, shared: &RefCell<Shared>) -> Result<()> {
    let mut frames = Frames::new();
    let mut chunks: [Bytes; 64] = std::array::from_fn(|_| Bytes::new());
    while let Some(count) = recv.read_chunks(&mut chunks).await? {
        let bytes = chunks[..count].iter().map(Bytes::len).sum();
        poll_fn(|cx| {
            let shared = &mut *shared.borrow_mut();
            if shared.groups.has_room(bytes) {
                return Poll::Ready(());
            }
            shared.reader = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        let shared = &mut *shared.borrow_mut();
        for chunk in &mut chunks[..count] {
            let complete = frames.take(chunk, shared.groups.gathering())?;
            shared.groups.add_frames(complete);
            *chunk = Bytes::new();
        }
        wake(&mut shared.driver);
    }
    let shared = &mut *shared.borrow_mut();
    shared.closed = true;
    wake(&mut shared.driver);
    Ok(())
}

/// The next group that is durable; `None` when there will be no more.
async fn durable(shared: &RefCell<Shared>) -> Result<Option<u64>> {
    poll_fn(|cx| {
        let shared = &mut *shared.borrow_mut();
        shared.groups.write();
        if let Poll::Ready(frames) = shared.groups.poll_durable(cx) {
            shared.groups.write();
            wake(&mut shared.reader);
            return Poll::Ready(frames.map(Some));
        }
        if shared.closed && shared.groups.is_idle() {
            return Poll::Ready(Ok(None));
        }
        shared.driver = Some(cx.waker().clone());
        Poll::Pending
    })
    .await
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}
