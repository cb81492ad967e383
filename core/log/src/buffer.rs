//! Block-aligned memory for `O_DIRECT`, and the only unsafe code of this crate.
//!
//! An [`AlignedBuf`] is filled by one owner, then shared read-only (`Arc`) by the disk write and by
//! every reader of the hot tail: the written buffers *are* the tail. Many buffers may be cut one after
//! the other from one chunk of memory ([`AlignedBuf::split_off`]); the chunk is used again when the
//! last of them is gone ([`ChunkRef::reuse`]).
#![allow(unsafe_code, reason = "aligned allocation is not expressible with Vec")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::any::Any;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use millstream_batch::limits::BLOCK_BYTES;

/// Initialised memory that lies at a multiple of `BLOCK_BYTES`: of the allocator, zeroed when it was made, or
/// lent by an owner.
struct Chunk {
    start: NonNull<u8>,
    capacity: usize,
    owner: Option<Box<dyn Any + Send + Sync>>,
}

// SAFETY: a chunk is memory and nothing else; who may read or write which part of it is the business
// of the `AlignedBuf`s over it, which never overlap.
unsafe impl Send for Chunk {}
// SAFETY: as above; `&Chunk` itself gives access to no byte.
unsafe impl Sync for Chunk {}

impl Chunk {
    fn new(capacity: usize) -> Self {
        let capacity = capacity.max(1).next_multiple_of(BLOCK_BYTES);
        let layout = Self::layout(capacity);
        // SAFETY: the layout's size is at least one block, so it is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else {
            handle_alloc_error(layout)
        };
        Self {
            start,
            capacity,
            owner: None,
        }
    }

    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, BLOCK_BYTES).expect("a capacity below isize::MAX")
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if self.owner.is_some() {
            return;
        }
        // SAFETY: allocated in `new` with the same layout, and freed only here.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.capacity)) }
    }
}

/// A chunk that buffers are cut from, seen by who wants to use it again.
pub(crate) struct ChunkRef(Arc<Chunk>);

impl ChunkRef {
    pub(crate) fn capacity(&self) -> usize {
        self.0.capacity
    }

    /// Whether a buffer over this chunk is still alive somewhere.
    pub(crate) fn is_used(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// A buffer over the whole chunk, if no other is alive. It holds old bytes.
    pub(crate) fn reuse(&mut self) -> Option<AlignedBuf> {
        // `get_mut` and not the count: it also orders the last reader's reads before what is written next.
        Arc::get_mut(&mut self.0)?;
        Some(AlignedBuf::over(Arc::clone(&self.0)))
    }
}

impl fmt::Debug for ChunkRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkRef({} bytes)", self.capacity())
    }
}

/// A buffer whose address and capacity are multiples of `BLOCK_BYTES`. It alone may touch its part of
/// the chunk.
pub struct AlignedBuf {
    chunk: Arc<Chunk>,
    /// Where its part begins.
    at: usize,
    len: usize,
    capacity: usize,
}

impl AlignedBuf {
    /// Zeroed memory of at least `capacity` bytes, rounded up to whole blocks; `len()` is 0.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self::over(Arc::new(Chunk::new(capacity)))
    }

    /// A copy of `bytes`.
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buf = Self::with_capacity(bytes.len());
        buf.extend(bytes);
        buf
    }

    /// Memory that somebody lends: `owner` is dropped when the last buffer over it is gone. It holds old
    /// bytes; `len()` is 0.
    ///
    /// # Panics
    /// `start` or `capacity` is no multiple of `BLOCK_BYTES`.
    ///
    /// # Safety
    /// `capacity` bytes from `start` on are initialised, and until `owner` is dropped they stay there and
    /// nobody else touches them.
    #[must_use]
    pub unsafe fn lent(start: NonNull<u8>, capacity: usize, owner: impl Any + Send + Sync) -> Self {
        assert!(
            start.addr().get().is_multiple_of(BLOCK_BYTES) && capacity.is_multiple_of(BLOCK_BYTES),
            "{start:?} and {capacity} are not whole blocks"
        );
        Self::over(Arc::new(Chunk {
            start,
            capacity,
            owner: Some(Box::new(owner)),
        }))
    }

    /// The whole of a chunk over which no other buffer is alive.
    fn over(chunk: Arc<Chunk>) -> Self {
        let capacity = chunk.capacity;
        Self {
            chunk,
            at: 0,
            len: 0,
            capacity,
        }
    }

    /// Cut off the whole blocks past the content. They hold old bytes.
    #[must_use]
    pub fn split_off(&mut self) -> Self {
        let keep = self.len.next_multiple_of(BLOCK_BYTES);
        let rest = Self {
            chunk: Arc::clone(&self.chunk),
            at: self.at + keep,
            len: 0,
            capacity: self.capacity - keep,
        };
        self.capacity = keep;
        rest
    }

    /// The memory it was cut from.
    pub(crate) fn chunk(&self) -> ChunkRef {
        ChunkRef(Arc::clone(&self.chunk))
    }

    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes that still fit.
    #[must_use]
    pub fn room(&self) -> usize {
        self.capacity - self.len
    }

    /// Set how many bytes count as content. Bytes never written are zero, or old ones of a chunk that
    /// is used again.
    pub fn set_len(&mut self, len: usize) {
        assert!(
            len <= self.capacity,
            "length {len} past capacity {}",
            self.capacity
        );
        self.len = len;
    }

    /// Append. Panics when it does not fit: the caller plans the room.
    pub fn extend(&mut self, bytes: &[u8]) {
        let at = self.len;
        self.set_len(at + bytes.len());
        self[at..].copy_from_slice(bytes);
    }

    /// The start of the memory, for the kernel. Valid for `capacity()` bytes while `self` lives.
    #[must_use]
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start()
    }

    fn start(&self) -> *mut u8 {
        // SAFETY: `at <= chunk.capacity`: it begins at 0 and grows only by what `capacity` loses.
        unsafe { self.chunk.start.as_ptr().add(self.at) }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the chunk is alive and initialised for `at + capacity >= at + len` bytes, and
        // no other buffer covers this part, so nobody writes to it while `self` is borrowed.
        unsafe { std::slice::from_raw_parts(self.start(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.len) }
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Clone for AlignedBuf {
    fn clone(&self) -> Self {
        let mut copy = Self::with_capacity(self.capacity);
        copy.extend(self);
        copy
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} of {} bytes)", self.len, self.capacity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_chunk_are_apart() {
        let mut first = AlignedBuf::with_capacity(4 * BLOCK_BYTES);
        first.extend(&[1; BLOCK_BYTES + 1]);
        let mut second = first.split_off();
        assert_eq!(
            (first.room(), second.room()),
            (BLOCK_BYTES - 1, 2 * BLOCK_BYTES)
        );
        second.extend(&[2; 2 * BLOCK_BYTES]);
        first.set_len(2 * BLOCK_BYTES);
        assert_eq!(first[..=BLOCK_BYTES], [1; BLOCK_BYTES + 1]);
        assert_eq!(first[BLOCK_BYTES + 1..], [0; BLOCK_BYTES - 1]);
        assert_eq!(second[..], [2; 2 * BLOCK_BYTES]);
        assert_eq!(second.split_off().capacity(), 0);
    }

    #[test]
    fn a_chunk_is_used_again_when_its_last_buffer_is_gone() {
        let mut first = AlignedBuf::with_capacity(2 * BLOCK_BYTES);
        first.extend(&[7; 10]);
        let mut chunk = first.chunk();
        let second = first.split_off();
        drop(first);
        assert!(chunk.is_used() && chunk.reuse().is_none());
        drop(second);
        assert!(!chunk.is_used());
        let mut again = chunk.reuse().expect("nobody else has it");
        assert_eq!((again.len(), again.capacity()), (0, 2 * BLOCK_BYTES));
        again.set_len(10);
        assert_eq!(again[..], [7; 10]);
        assert!(chunk.reuse().is_none());
    }
}
