//! What the broker holds for its clients, counted to the byte and bounded.
//!
//! Two bounds for the whole broker. *Ingress*: frames on their way in, from the moment their length is
//! known until a batch among them is answered; who waits for it holds nothing that another could wait
//! for, and a connection may take a quarter; what QUIC holds before anybody reads it is a part of this bound
//! ([`crate::windows`]). *Send*: records on their way out, counted until QUIC
//! itself lets go of the bytes, and shared so that slow clients leave room for others: a connection may
//! hold an eighth of what is still free, so that each slow one leaves eight ninths of that, and one batch
//! in any case: the bound may be passed by a batch a connection, and nobody is starved by others.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use millstream_batch::limits::{FRAME_HEADER_BYTES_MAX, FRAME_PAYLOAD_BYTES_MAX};
use tokio::sync::{Notify, Semaphore};

use crate::config::Memory;
use crate::windows;

/// Permits are counted in units of this size, so that the count fits in 32 bits.
const UNIT_BYTES: usize = 1 << 10;
/// A connection may hold this part of the send bound that is free.
const SHARE_OF_FREE: usize = 8;
/// A connection that used up its part is woken when it has so much again: what one fetch brings.
const AMPLE_BYTES: usize = 1 << 20;
/// The largest frame there can be must fit.
const FRAME_BYTES_MAX: usize = FRAME_HEADER_BYTES_MAX + FRAME_PAYLOAD_BYTES_MAX;

/// The bounds of one broker.
#[derive(Debug)]
pub(crate) struct Bounds {
    ingress: Arc<Semaphore>,
    ingress_units: usize,
    /// Received and not yet part of a whole frame.
    pub(crate) unfinished: AtomicUsize,
    pub(crate) send: Arc<SendBound>,
}

impl Bounds {
    pub(crate) fn new(memory: &Memory) -> Self {
        let ingress_units = (windows::rest_of_ingress(memory.ingress_bytes) / UNIT_BYTES)
            .max(units(FRAME_BYTES_MAX) as usize);
        Self {
            ingress: Arc::new(Semaphore::new(ingress_units)),
            ingress_units,
            unfinished: AtomicUsize::new(0),
            send: Arc::new(SendBound {
                bytes: AtomicUsize::new(0),
                bytes_max: memory.send_bytes,
                freed: Notify::new(),
            }),
        }
    }

    /// Bytes of ingress taken, for metrics.
    pub(crate) fn ingress_bytes(&self) -> usize {
        (self.ingress_units - self.ingress.available_permits()) * UNIT_BYTES
    }
}

fn units(bytes: usize) -> u32 {
    bytes.div_ceil(UNIT_BYTES) as u32
}

/// One connection's part of the ingress.
#[derive(Clone, Debug)]
pub(crate) struct IngressShare {
    own: Rc<Semaphore>,
    total: Arc<Semaphore>,
}

/// Room for one frame, given back when dropped.
#[derive(Debug)]
pub(crate) struct Ingress {
    share: IngressShare,
    units: u32,
}

impl IngressShare {
    pub(crate) fn new(bounds: &Bounds) -> Self {
        let own = (bounds.ingress_units / 4).max(units(FRAME_BYTES_MAX) as usize);
        Self {
            own: Rc::new(Semaphore::new(own)),
            total: Arc::clone(&bounds.ingress),
        }
    }

    /// Wait for room for `bytes`.
    pub(crate) async fn take(&self, bytes: usize) -> Ingress {
        let units = units(bytes);
        // Neither semaphore is ever closed. A wait that is dropped gives back what it has.
        let own = self.own.acquire_many(units).await;
        let total = self.total.acquire_many(units).await;
        for permits in [own, total].into_iter().flatten() {
            permits.forget();
        }
        Ingress {
            share: self.clone(),
            units,
        }
    }
}

impl Drop for Ingress {
    fn drop(&mut self) {
        self.share.own.add_permits(self.units as usize);
        self.share.total.add_permits(self.units as usize);
    }
}

/// Records on their way out, of the whole broker.
#[derive(Debug)]
pub(crate) struct SendBound {
    bytes: AtomicUsize,
    bytes_max: usize,
    freed: Notify,
}

impl SendBound {
    /// Bytes held, for metrics.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// What one connection holds of [`SendBound`].
#[derive(Clone, Debug)]
pub(crate) struct SendShare {
    total: Arc<SendBound>,
    own: Arc<Own>,
}

/// See [`SendShare`].
#[derive(Debug, Default)]
struct Own {
    bytes: AtomicUsize,
    freed: Notify,
}

impl SendShare {
    pub(crate) fn new(total: &Arc<SendBound>) -> Self {
        Self {
            total: Arc::clone(total),
            own: Arc::default(),
        }
    }

    /// Whether this connection may take more.
    pub(crate) fn has_room(&self) -> bool {
        self.room() > 0
    }

    /// How much more this connection may take: what it lacks of its part of what is free. Who holds
    /// nothing may always take something, at least one batch, however much others hold.
    pub(crate) fn room(&self) -> usize {
        let own = self.own.bytes.load(Ordering::Relaxed);
        self.part().saturating_sub(own).max(usize::from(own == 0))
    }

    /// This connection's part of what is free.
    fn part(&self) -> usize {
        self.total.bytes_max.saturating_sub(self.total.bytes()) / SHARE_OF_FREE
    }

    /// Count `bytes` until the last clone of the result is dropped.
    pub(crate) fn hold(&self, bytes: Bytes) -> Bytes {
        let room = self.reserve(bytes.len());
        Bytes::from_owner(Held { bytes, _room: room })
    }

    /// Take room for what is asked for and not here yet, until the result is dropped.
    pub(crate) fn reserve(&self, bytes: usize) -> SendRoom {
        self.own.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.total.bytes.fetch_add(bytes, Ordering::Relaxed);
        SendRoom {
            bytes,
            share: self.clone(),
        }
    }

    /// Wait until this connection has ample room again, or something was freed while half of the whole bound
    /// is taken. Of several that wait for the former one is woken at a time: it may take all. Ask
    /// [`has_room`](Self::has_room) again then.
    pub(crate) async fn freed(&self) {
        // A free between the caller's look and this wait is made up for by the next one, and there is
        // one as long as bytes are held; a bounded wait covers the last.
        let wait = async {
            tokio::select! {
                () = self.own.freed.notified() => {}
                () = self.total.freed.notified() => {}
            }
        };
        drop(tokio::time::timeout(std::time::Duration::from_millis(50), wait).await);
    }
}

struct Held {
    bytes: Bytes,
    _room: SendRoom,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Bytes of [`SendBound`] that are taken, given back when dropped.
#[derive(Debug)]
pub(crate) struct SendRoom {
    bytes: usize,
    share: SendShare,
}

impl Drop for SendRoom {
    fn drop(&mut self) {
        let SendShare { total, own } = &self.share;
        let own_before = own.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        let before = total.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        if before > total.bytes_max / 2 {
            total.freed.notify_waiters();
        }
        // Not at every byte: who is woken fetches, and small fetches cost as much as large ones.
        let part = self.share.part();
        let left = own_before - self.bytes;
        if left == 0 || part.saturating_sub(left) >= AMPLE_BYTES.min(part / 2).max(1) {
            own.freed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds() -> Bounds {
        Bounds::new(&Memory {
            send_bytes: 1_000,
            ..Memory::default()
        })
    }

    #[test]
    fn bytes_are_held_until_the_last_slice_is_gone() {
        let bounds = bounds();
        let share = SendShare::new(&bounds.send);
        let held = share.hold(Bytes::from_static(&[0; 300]));
        let slice = held.slice(10..20);
        drop(held);
        assert_eq!(bounds.send.bytes(), 300);
        drop(slice);
        assert_eq!(bounds.send.bytes(), 0);
    }

    #[test]
    fn what_is_asked_for_counts_until_it_is_here() {
        let bounds = bounds();
        let share = SendShare::new(&bounds.send);
        let asked = share.reserve(100);
        assert_eq!((bounds.send.bytes(), share.room()), (100, 900 / 8 - 100));
        drop(asked);
        assert_eq!(bounds.send.bytes(), 0);
    }

    #[test]
    fn slow_connections_leave_room_for_others() {
        let bounds = bounds();
        let mut held = Vec::new();
        for _ in 0..9 {
            let slow = SendShare::new(&bounds.send);
            while slow.has_room() {
                held.push(slow.hold(Bytes::from_static(&[0; 10])));
            }
        }
        let other = SendShare::new(&bounds.send);
        assert!(other.has_room(), "{} of 1000 held", bounds.send.bytes());
        assert!(bounds.send.bytes() <= 1_000);
    }

    #[test]
    fn who_holds_nothing_may_take_something_whatever_others_hold() {
        let bounds = bounds();
        let rest = SendShare::new(&bounds.send).hold(Bytes::from_static(&[0; 1_200]));
        let other = SendShare::new(&bounds.send);
        assert_eq!(other.room(), 1, "with {} of 1000 held", bounds.send.bytes());
        let one = other.hold(Bytes::from_static(&[0; 10]));
        assert!(!other.has_room(), "one batch at a time");
        drop(rest);
        assert_eq!(other.room(), 990 / SHARE_OF_FREE - 10);
        drop(one);
    }

    #[tokio::test]
    async fn who_used_up_its_part_is_woken_when_half_of_it_is_free() {
        let bounds = bounds();
        let share = SendShare::new(&bounds.send);
        let mut held = Vec::new();
        while share.has_room() {
            held.push(share.reserve(10));
        }
        let mut woken = std::pin::pin!(share.freed());
        let mut is_woken = || {
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            woken.as_mut().poll(&mut context).is_ready()
        };
        assert!(!is_woken());
        // A part is an eighth of what is free: 120 are held of 880 / 8 = 110.
        let half = held.len() / 2;
        held.truncate(half + 1);
        assert!(!is_woken(), "{} of 1000 held", bounds.send.bytes());
        held.truncate(half - 1);
        assert!(is_woken(), "{} of 1000 held", bounds.send.bytes());
    }

    #[tokio::test]
    async fn one_connection_leaves_room_for_others() {
        let bounds = Bounds::new(&Memory {
            ingress_bytes: 128 << 20,
            ..Memory::default()
        });
        let greedy = IngressShare::new(&bounds);
        let held = [greedy.take(12 << 20).await, greedy.take(12 << 20).await];
        assert!(futures_pending(greedy.take(1)), "a quarter is taken");
        drop(IngressShare::new(&bounds).take(16 << 20).await);
        drop(held);
        drop(greedy.take(1).await);
        assert_eq!(bounds.ingress_bytes(), 0);
    }

    fn futures_pending<F: Future>(future: F) -> bool {
        let mut future = std::pin::pin!(future);
        future
            .as_mut()
            .poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
            .is_pending()
    }
}
