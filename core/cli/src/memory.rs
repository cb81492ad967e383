//! The process's memory: which allocator, how long it keeps what is freed, and huge pages only where they
//! are asked for (ADR 0008).
#![allow(unsafe_code, reason = "the allocator's options have no safe wrapper")]

use std::ffi::c_long;

use libmimalloc_sys::{mi_option_set_default, mi_option_t};
use millstream_broker::Memory;

/// The system's allocator gives the top of its heap back to the kernel between batches and faults it in
/// again with the next, which was a third of the broker's CPU under load.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Where Linux says which memory gets huge pages, with what holds in brackets.
const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

/// `mi_option_purge_delay` of `mimalloc.h`: milliseconds that freed memory is kept for the next allocation
/// before it is given back to the system.
const PURGE_DELAY: mi_option_t = 15;
/// Where the bounds of `[memory]` are below this in sum, freed memory is given back soon.
const SMALL_BYTES: usize = 256 << 20;
const SOON_MS: c_long = 10;

/// Make the process's memory ready for a broker with these bounds, before it has any.
pub(crate) fn before_serving(bounds: &Memory) {
    if gives_back_soon(bounds) {
        // What `MIMALLOC_PURGE_DELAY` says goes before: the default is not used then.
        // SAFETY: the option exists (a test asks for its value), and no other thread runs yet that would
        // read it.
        unsafe { mi_option_set_default(PURGE_DELAY, SOON_MS) };
    }
    advised_huge_pages();
}

/// What is freed within the second that mimalloc keeps it is some 40 MiB under load. Beside large bounds
/// that is within what they leave; whoever sets small ones wants them kept, for a few percent of the rate.
fn gives_back_soon(bounds: &Memory) -> bool {
    let Memory {
        hot_tail_bytes,
        read_bytes,
        ingress_bytes,
        send_bytes,
    } = *bounds;
    [hot_tail_bytes, read_bytes, ingress_bytes, send_bytes]
        .into_iter()
        .fold(0, usize::saturating_add)
        < SMALL_BYTES
}

/// Have memory faulted in by 4 KiB but where huge pages are advised (for reads from the disk). Otherwise a
/// shard's thread stands still for milliseconds while the kernel zeroes 2 MiB of its heap.
fn advised_huge_pages() {
    // The allocator is built so that it advises nothing (`no_thp`).
    if millstream_broker::huge_pages_only_where_advised().is_ok() {
        return;
    }
    // Before Linux 6.18 it is so, or there are none at all.
    if std::fs::read_to_string(HUGE_PAGES).is_ok_and(|modes| !modes.contains("[always]")) {
        return;
    }
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::debug!(
            "huge pages stay on: {error}; the first batches after a start may be slower"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_bounds_give_memory_back_soon() {
        let small = Memory {
            hot_tail_bytes: 32 << 20,
            read_bytes: 16 << 20,
            ingress_bytes: 32 << 20,
            send_bytes: 32 << 20,
        };
        assert!(gives_back_soon(&small) && !gives_back_soon(&Memory::default()));
    }

    #[test]
    fn the_option_is_the_one_that_is_meant() {
        let names = ["MIMALLOC_PURGE_DELAY", "MIMALLOC_RESET_DELAY"];
        if names.iter().any(|name| std::env::var_os(name).is_some()) {
            return; // who runs this has set it
        }
        // SAFETY: reads a number that nobody writes here.
        let kept_ms = unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        // The only option that is 1,000 from the start (`options.c` of mimalloc 3).
        assert_eq!(kept_ms, 1_000);
    }
}
