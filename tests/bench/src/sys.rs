//! The system calls that the standard library has no name for: waiting for a file with a deadline,
//! signals to other processes, the limit of open files, the allocator's threshold. Deliberately absent:
//! everything that `/proc` tells as text.
#![allow(
    unsafe_code,
    reason = "kill(2), setrlimit(2) and mallopt(3) have no safe wrapper in the standard library"
)]

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// Wait until something can be read from `file`, its end included, at most so long. Says whether it can.
pub(crate) fn readable(file: &impl AsFd, longest: Duration) -> io::Result<bool> {
    let began = Instant::now();
    loop {
        let left = longest.saturating_sub(began.elapsed());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(file, PollFlags::IN)], Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Have large memory come from the kernel, which zeroes a page when it is touched. By itself glibc stops
/// doing that for sizes that were given back once, and zeroes all of it: QUIC's buffers for receiving, 13 MB of
/// which a connection touches little, would then be resident with the second thousand connections.
pub(crate) fn map_large_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers; glibc locks its own state.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 4 << 20);
    }
}

/// SIGINT: `perf` and `strace` then write down what they counted.
pub(crate) fn interrupt(pid: u32) -> io::Result<()> {
    signal(pid, libc::SIGINT)
}

/// SIGTERM: a broker then seals its log and goes.
pub(crate) fn terminate(pid: u32) -> io::Result<()> {
    signal(pid, libc::SIGTERM)
}

fn signal(pid: u32, signal: libc::c_int) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: kill takes two numbers and touches no memory. `pid` is positive, so it names one process.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Lets this process, and those it starts, open `wanted` files at once. Gives how many it may open:
/// the hard limit bounds those who may not raise it.
pub(crate) fn raise_open_files(wanted: u64) -> io::Result<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid rlimit that the call may write to.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if limit.rlim_cur >= wanted {
        return Ok(limit.rlim_cur);
    }
    let raised = libc::rlimit {
        rlim_cur: wanted,
        rlim_max: limit.rlim_max.max(wanted),
    };
    // SAFETY: the call only reads the rlimit that it is given.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } == 0 {
        return Ok(wanted);
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: as above.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } {
        0 => Ok(limit.rlim_cur),
        _ => Err(io::Error::last_os_error()),
    }
}
