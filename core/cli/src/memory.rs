//! The process's memory: which allocator, and no huge pages while serving (ADR 0008).

/// The system's allocator gives the top of its heap back to the kernel between batches and faults it in
/// again with the next, which was a third of the broker's CPU under load.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Have memory faulted in by 4 KiB. The allocator asks for transparent huge pages otherwise, and a shard's
/// thread then stands still for milliseconds while the kernel zeroes 2 MiB of them.
pub(crate) fn before_serving() {
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::debug!(
            "huge pages stay on: {error}; the first batches after a start may be slower"
        );
    }
}
