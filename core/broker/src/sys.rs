//! What Rust's libraries do not offer of Linux: steering inside a group of UDP sockets, binding a thread to
//! a core, huge pages for a part of memory, and limits of the process. All are wishes: the broker works
//! without them.
#![allow(
    unsafe_code,
    reason = "setsockopt with a classic BPF program, sched_setaffinity, prctl, limits of the process"
)]

use std::io;
use std::os::fd::AsRawFd;

/// Attach the program that picks the socket of a group of `sockets` bound to one UDP port: by the
/// first byte of the packet's destination connection id, modulo `sockets`, in order of binding.
///
/// # Errors
/// What the kernel says: unknown option, or not permitted.
pub(crate) fn steer_by_connection_id(socket: &impl AsRawFd, sockets: u32) -> io::Result<()> {
    let filter = steering_program(sockets);
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the option takes one `sock_fprog`, whose pointer and length are those of `filter`, which
    // outlives the call. The kernel copies the program and does not write through the pointer.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            std::ptr::from_ref(&program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Have the process get transparent huge pages only where `madvise` asked for them, whatever the system's
/// setting.
///
/// # Errors
/// Linux before 6.18 does not know it.
pub fn huge_pages_only_where_advised() -> io::Result<()> {
    /// `PR_THP_DISABLE_EXCEPT_ADVISED` of `linux/prctl.h`.
    const EXCEPT_ADVISED: libc::c_ulong = 1 << 1;
    let (on, unused): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: takes no pointers.
    match unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, on, EXCEPT_ADVISED, unused, unused) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// QUIC (RFC 9000, 17): the first bit tells long headers, whose destination connection id begins at
/// byte 6, from short ones, where it begins at byte 1. A packet too short for that gives 0.
fn steering_program(sockets: u32) -> [libc::sock_filter; 7] {
    let step = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let load_byte = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
    [
        step(load_byte, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 2, 0, 0x80),
        step(load_byte, 0, 0, 1), // short header
        step(libc::BPF_JMP | libc::BPF_JA, 0, 0, 1),
        step(load_byte, 0, 0, 6), // long header
        step(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, 0, 0, sockets),
        step(libc::BPF_RET | BPF_A, 0, 0, 0),
    ]
}

/// Return the accumulator (`linux/filter.h`).
const BPF_A: u32 = 0x10;

/// A limit of the process that may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    OpenFiles,
    /// Bytes of one file.
    FileSize,
    /// Processes and threads of this user.
    Threads,
    /// Bytes of locked memory.
    LockedMemory,
}

impl Resource {
    fn number(self) -> libc::__rlimit_resource_t {
        match self {
            Self::OpenFiles => libc::RLIMIT_NOFILE,
            Self::FileSize => libc::RLIMIT_FSIZE,
            Self::Threads => libc::RLIMIT_NPROC,
            Self::LockedMemory => libc::RLIMIT_MEMLOCK,
        }
    }
}

/// The soft and the hard limit; `u64::MAX`: there is none. `None` where the system does not say.
#[must_use]
pub fn limit(resource: Resource) -> Option<(u64, u64)> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid place for the answer, and outlives the call.
    let result = unsafe { libc::getrlimit(resource.number(), &raw mut limit) };
    (result == 0).then_some((limit.rlim_cur, limit.rlim_max))
}

/// Raise the soft limit of open files to the hard one.
///
/// # Errors
/// What the system says.
pub(crate) fn raise_open_files() -> io::Result<()> {
    let Some((soft, hard)) = limit(Resource::OpenFiles) else {
        return Err(io::Error::last_os_error());
    };
    if soft >= hard {
        return Ok(());
    }
    let raised = libc::rlimit {
        rlim_cur: hard,
        rlim_max: hard,
    };
    // SAFETY: `raised` is a whole `rlimit`, which the kernel only reads.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A write past the limit of file sizes is answered by an error, not by the end of the process.
pub(crate) fn ignore_file_size_signal() {
    // SAFETY: SIG_IGN runs no code of ours. It cannot fail for a signal that exists.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// The user that the process acts as.
pub(crate) fn user() -> u32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// Bind the calling thread to one core.
///
/// # Errors
/// What the kernel says: a core outside the allowed set, or not permitted.
pub(crate) fn pin_thread(core: usize) -> io::Result<()> {
    // SAFETY: `cpu_set_t` is a bit array for which all zeros is a value; CPU_SET checks `core` against
    // its size; pid 0 is the calling thread; the set outlives the call.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The cores that this process may use, in order.
pub(crate) fn allowed_cores() -> Vec<usize> {
    // SAFETY: `cpu_set_t` is a bit array for which all zeros is a value, and the call writes at most
    // its size; CPU_ISSET only reads the set.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) != 0 {
            return Vec::new();
        }
        (0..libc::CPU_SETSIZE as usize)
            .filter(|&core| libc::CPU_ISSET(core, &set))
            .collect()
    }
}
