//! The process's memory: which allocator, and huge pages only where they are asked for (ADR 0008).

/// The system's allocator gives the top of its heap back to the kernel between batches and faults it in
/// again with the next, which was a third of the broker's CPU under load.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Where Linux says which memory gets huge pages, with what holds in brackets.
const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

/// Have memory faulted in by 4 KiB but where huge pages are advised (for reads from the disk). Otherwise a
/// shard's thread stands still for milliseconds while the kernel zeroes 2 MiB of its heap.
pub(crate) fn before_serving() {
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
