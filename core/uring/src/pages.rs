//! Memory for large reads from the disk: pieces of huge pages, used again and again. And for zeros.
//!
//! The kernel pins every page that a read fills, and the device gets a descriptor for each piece of memory
//! that lies together. For 1 MiB in pages of 4 KiB that is up to 256 of both, in huge pages it is one: a
//! read takes half the processor time and half as long (ADR 0008).
//!
//! A huge page is zeroed when it is first touched, which takes a while, so a thread of its own does it, and
//! only when so much was read that it is worth it. Until then, and when no piece is free, reads get memory
//! from the allocator.
#![allow(unsafe_code, reason = "mapping memory, and lending parts of it")]

use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use millstream_log::buffer::AlignedBuf;

use crate::sys;

/// Pieces are so many bytes, or a multiple of it.
const UNIT_BYTES: usize = 256 << 10;
/// Smaller reads gain little.
const READ_BYTES_MIN: usize = 128 << 10;
/// A huge page of x86-64, and of arm64 with base pages of 4 KiB.
const HUGE_BYTES: usize = 2 << 20;
const BASE_BYTES: usize = 4 << 10;
/// So much has been read before memory is taken for it: a start alone does not read that much.
const READ_BEFORE: u64 = 32 << 20;

/// The huge pages of one storage.
#[derive(Debug)]
pub(crate) struct Pages {
    bytes_max: usize,
    read: u64,
    region: Option<Arc<Region>>,
}

impl Pages {
    /// At most so many bytes; with less than a huge page there are none.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max: bytes_max / HUGE_BYTES * HUGE_BYTES,
            read: 0,
            region: None,
        }
    }

    /// Memory for a read of `len` bytes, if it is large and as much is free together.
    pub(crate) fn take(&mut self, len: usize) -> Option<AlignedBuf> {
        if !(READ_BYTES_MIN..=self.bytes_max).contains(&len) {
            return None;
        }
        let Some(region) = &self.region else {
            self.read += len as u64;
            if self.read >= READ_BEFORE {
                self.make();
            }
            return None;
        };
        let units = region.take(len.div_ceil(UNIT_BYTES))?;
        let bytes = units.len() * UNIT_BYTES;
        // SAFETY: the units lie within the region.
        let start = unsafe { region.start.add(units.start * UNIT_BYTES) };
        let piece = Piece {
            region: Arc::clone(region),
            units,
        };
        // SAFETY: the piece lies within the region, which is mapped (initialised with zeros by the kernel)
        // as long as the piece holds it; its units were free, so they are nobody else's until it is
        // dropped.
        Some(unsafe { AlignedBuf::lent(start, bytes, piece) })
    }

    /// Map the memory and have a thread touch it. Whatever fails, fails once, and costs speed only.
    fn make(&mut self) {
        let made = Region::map(self.bytes_max).and_then(|region| {
            let region = Arc::new(region);
            let touched = Arc::clone(&region);
            let work = move || {
                sys::unpin();
                sys::be_nice();
                touched.touch();
            };
            thread::Builder::new()
                .name("read-pages".to_owned())
                .spawn(work)?;
            Ok(region)
        });
        match made {
            Ok(region) => self.region = Some(region),
            Err(error) => {
                tracing::debug!("no huge pages for reads: {error}");
                self.bytes_max = 0;
            }
        }
    }
}

/// `len` zeros to write from, in one huge page if there is one to be had (at most `HUGE_BYTES` then): a
/// write out of it costs half the processor time, as a read does.
pub(crate) fn zeros(len: usize) -> AlignedBuf {
    let in_huge_page = || {
        let region = Arc::new(Region::map(HUGE_BYTES).ok()?);
        let mut pages = Pages {
            region: Some(Arc::clone(&region)),
            ..Pages::new(HUGE_BYTES)
        };
        region.touch();
        pages.take(len)
    };
    let mut zeros = in_huge_page().unwrap_or_else(|| AlignedBuf::with_capacity(len));
    zeros.set_len(len);
    zeros
}

/// Mapped memory, given back when the last piece of it is gone.
#[derive(Debug)]
struct Region {
    mapped: NonNull<u8>,
    mapped_bytes: usize,
    /// The part of it that is whole huge pages.
    start: NonNull<u8>,
    bytes: usize,
    /// Of each unit, whether it is touched and not taken.
    free: Mutex<Vec<bool>>,
}

// SAFETY: a region is memory and a list behind a mutex; who touches which part is said by that list.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// `bytes` is a multiple of `HUGE_BYTES`.
    fn map(bytes: usize) -> io::Result<Self> {
        let mapped_bytes = bytes + HUGE_BYTES;
        let (rights, kind) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
        );
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that is there.
        let mapped = unsafe { libc::mmap(std::ptr::null_mut(), mapped_bytes, rights, kind, -1, 0) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mapped = NonNull::new(mapped.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let ahead = mapped.align_offset(HUGE_BYTES);
        // SAFETY: `ahead < HUGE_BYTES`, so it and the `bytes` behind it lie within the mapping.
        let start = unsafe { mapped.add(ahead) };
        // Where huge pages are not to be had, it is as good as other memory.
        // SAFETY: advice about memory that is this region's alone.
        unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
        Ok(Self {
            mapped,
            mapped_bytes,
            start,
            bytes,
            free: Mutex::new(vec![false; bytes / UNIT_BYTES]),
        })
    }

    fn free(&self) -> MutexGuard<'_, Vec<bool>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first `count` units in a row that are free; they are not any more.
    fn take(&self, count: usize) -> Option<Range<usize>> {
        let mut free = self.free();
        let mut begin = 0;
        for at in 0..free.len() {
            if !free[at] {
                begin = at + 1;
            } else if at + 1 - begin == count {
                free[begin..=at].fill(false);
                return Some(begin..at + 1);
            }
        }
        None
    }

    /// Touch every page, huge page by huge page, and set its units free.
    fn touch(self: &Arc<Self>) {
        for huge in (0..self.bytes).step_by(HUGE_BYTES) {
            if Arc::strong_count(self) == 1 {
                return; // The storage is gone.
            }
            for page in (huge..huge + HUGE_BYTES).step_by(BASE_BYTES) {
                // SAFETY: inside the region, and in no unit that was given out yet.
                unsafe { self.start.add(page).write_volatile(0) };
            }
            self.free()[huge / UNIT_BYTES..(huge + HUGE_BYTES) / UNIT_BYTES].fill(true);
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length, unmapped only here, and no piece of it is left: each
        // holds the region.
        unsafe { libc::munmap(self.mapped.as_ptr().cast(), self.mapped_bytes) };
    }
}

/// A part of a region that a buffer covers.
#[derive(Debug)]
struct Piece {
    region: Arc<Region>,
    units: Range<usize>,
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.region.free()[self.units.clone()].fill(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// All touched.
    fn pages(bytes: usize) -> Pages {
        let mut pages = Pages::new(bytes);
        let region = Arc::new(Region::map(pages.bytes_max).expect("memory"));
        pages.region = Some(Arc::clone(&region));
        region.touch();
        pages
    }

    #[test]
    fn pieces_are_apart_and_used_again() {
        let mut pages = pages(5 * MIB);
        let all = std::iter::from_fn(|| pages.take(MIB - 1));
        let mut taken: Vec<AlignedBuf> = all.take(9).collect();
        assert_eq!(taken.len(), 4, "whole huge pages of 5 MiB");
        for (n, buf) in (1..).zip(&mut taken) {
            buf.set_len(MIB);
            buf.fill(n);
        }
        for (n, buf) in (1..).zip(&taken) {
            assert!(buf.iter().all(|byte| *byte == n));
        }
        let held = taken.swap_remove(1);
        drop(taken);
        assert!(pages.take(2 * MIB + 1).is_none(), "3 MiB, but not together");
        let again = [pages.take(2 * MIB), pages.take(MIB)];
        assert!(again.iter().all(Option::is_some) && pages.take(READ_BYTES_MIN).is_none());
        drop((again, pages));
        assert!(
            held.iter().all(|byte| *byte == 2),
            "it outlives the storage"
        );
    }

    #[test]
    fn zeros_are_zeros_whatever_they_lie_in() {
        for len in [MIB, HUGE_BYTES + BASE_BYTES] {
            let zeros = zeros(len);
            assert!(zeros.len() == len && zeros.iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn only_large_reads_take_pieces_and_only_after_many() {
        let mut small = pages(2 * MIB);
        assert!(small.take(READ_BYTES_MIN - 1).is_none() && small.take(2 * MIB + 1).is_none());
        assert!(Pages::new(HUGE_BYTES - 1).take(MIB).is_none());
        let mut fresh = Pages::new(4 * MIB);
        for _ in 0..READ_BEFORE / MIB as u64 {
            assert!(fresh.region.is_none() && fresh.take(MIB).is_none());
        }
        assert!(fresh.region.is_some());
    }
}
