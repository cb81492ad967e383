//! The system calls that the standard library does not have: reserving space, and what makes a
//! thread a background thread.
#![allow(
    unsafe_code,
    reason = "plain system calls without a safe wrapper in the standard library"
)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Reserve `len` bytes of `file` without changing its length, so that a full disk shows before the
/// first byte is written and the file lies in few pieces. A file system that cannot is no error.
pub(crate) fn reserve(file: &File, len: u64) -> io::Result<()> {
    let Ok(len) = libc::off_t::try_from(len) else {
        return Err(io::Error::from_raw_os_error(libc::EFBIG));
    };
    if len == 0 {
        return Ok(());
    }
    // SAFETY: the descriptor is open as long as `file` is borrowed; the call takes no pointers.
    let result = unsafe { libc::fallocate(file.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, 0, len) };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINTR) => Ok(()),
        _ => Err(error),
    }
}

/// Let the calling thread run on every core: a thread inherits the pin of the one that made it.
pub(crate) fn unpin() {
    // SAFETY: an all-zero `cpu_set_t` is a valid empty set.
    let mut all: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for cpu in 0..libc::CPU_SETSIZE as usize {
        // SAFETY: `cpu` is below CPU_SETSIZE, the size of the set in bits.
        unsafe { libc::CPU_SET(cpu, &mut all) };
    }
    // The kernel keeps those cores that the process may use. Failure costs speed only.
    // SAFETY: the set is valid for its size, and 0 means the calling thread.
    unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const all) };
}

/// Step back behind the threads that serve. Failure costs speed only.
pub(crate) fn be_nice() {
    // SAFETY: takes no pointers; on Linux 0 means the calling thread, not the process.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) };
}
