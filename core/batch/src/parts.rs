//! The pieces of a payload as the network brought them. Absent: what they say together.

use std::cell::RefCell;
use std::fmt;
use std::ops::Deref;

use bytes::Bytes;

/// Lists that a thread keeps for the next payloads, and how long a list that is kept may be: 128 KiB in all.
const KEPT_MAX: usize = 32;
const KEPT_PARTS_MAX: usize = 128;

thread_local! {
    static KEPT: RefCell<Vec<Vec<Bytes>>> = const { RefCell::new(Vec::new()) };
}

/// Pieces of bytes, in order. The list's own memory serves the next payload of the thread that drops it: a
/// batch that comes in fifty datagrams allocates nothing for that.
#[derive(Default, PartialEq, Eq)]
pub struct Parts(Vec<Bytes>);

impl Parts {
    /// An empty list with room for `parts`.
    #[must_use]
    pub fn with_capacity(parts: usize) -> Self {
        if parts == 0 {
            return Self::default();
        }
        let kept = KEPT.try_with(|kept| kept.borrow_mut().pop());
        let mut list = kept.ok().flatten().unwrap_or_default();
        list.reserve(parts);
        Self(list)
    }

    /// One more, at the end.
    pub fn push(&mut self, part: Bytes) {
        self.0.push(part);
    }

    /// Bytes of all parts.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }

    /// All bytes in one piece: without copying when there is one part.
    #[must_use]
    pub fn into_contiguous(mut self) -> Bytes {
        if self.0.len() <= 1 {
            return self.0.pop().unwrap_or_default();
        }
        let mut all = bytes::BytesMut::with_capacity(self.bytes());
        for part in &self.0 {
            all.extend_from_slice(part);
        }
        all.freeze()
    }
}

impl Clone for Parts {
    fn clone(&self) -> Self {
        let mut copy = Self::with_capacity(self.0.len());
        copy.0.extend_from_slice(&self.0);
        copy
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        if !(1..=KEPT_PARTS_MAX).contains(&self.0.capacity()) {
            return;
        }
        let mut list = std::mem::take(&mut self.0);
        list.clear();
        // A thread that ends keeps nothing.
        let _ = KEPT.try_with(|kept| {
            let mut kept = kept.borrow_mut();
            if kept.len() < KEPT_MAX {
                kept.push(list);
            }
        });
    }
}

impl Deref for Parts {
    type Target = [Bytes];
    fn deref(&self) -> &[Bytes] {
        &self.0
    }
}

impl From<Vec<Bytes>> for Parts {
    fn from(parts: Vec<Bytes>) -> Self {
        Self(parts)
    }
}

impl From<Bytes> for Parts {
    fn from(part: Bytes) -> Self {
        let mut parts = Self::with_capacity(1);
        parts.push(part);
        parts
    }
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Parts({} bytes in {})", self.bytes(), self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_serves_the_next_payload_and_holds_nothing_of_the_last() {
        let payload = Bytes::from(vec![7; 10]);
        let mut first = Parts::with_capacity(50);
        first.push(payload.clone());
        let memory = first.as_ptr();
        drop(first);
        assert!(payload.is_unique(), "the bytes are let go of");
        let second = Parts::with_capacity(20);
        assert_eq!((second.as_ptr(), second.len()), (memory, 0));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let many: Vec<_> = (0..2 * KEPT_MAX).map(|_| Parts::with_capacity(1)).collect();
        drop(many);
        drop(Parts::with_capacity(KEPT_PARTS_MAX * 4));
        KEPT.with_borrow(|kept| {
            assert!(kept.len() <= KEPT_MAX);
            assert!(kept.iter().all(|list| list.capacity() <= KEPT_PARTS_MAX));
        });
    }

    #[test]
    fn one_piece_is_not_copied() {
        let whole = Bytes::from_static(b"ab");
        assert_eq!(
            Parts::from(whole.clone()).into_contiguous().as_ptr(),
            whole.as_ptr()
        );
        let parts = Parts::from(vec![whole.slice(..1), whole.slice(1..)]);
        assert_eq!((parts.bytes(), parts.into_contiguous()), (2, whole));
        assert!(Parts::default().into_contiguous().is_empty());
    }
}
