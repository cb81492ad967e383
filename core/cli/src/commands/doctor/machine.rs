//! Checks of this machine: rings, locked memory, direct I/O, sync latency, UDP, disk space, clock.
#![allow(
    unsafe_code,
    reason = "getrlimit, statvfs, setsockopt and io_uring_setup have no safe wrapper here"
)]

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Check;
use crate::output::bytes;

/// What the broker asks for, each way.
const UDP_BUFFER_BYTES: u64 = 4 << 20;
/// Registered buffers and rings want this much.
const LOCKED_BYTES: u64 = 64 << 20;
/// Below this, files for the log run out soon.
const FREE_BYTES: u64 = 2 << 30;
const SYNCS: usize = 32;
const BLOCK_BYTES: usize = 4096;
/// Above this, every acknowledgement is slow.
const SYNC_SLOW: Duration = Duration::from_millis(10);

/// All checks of the machine, with `directory` for the disk.
pub(super) fn checks(directory: &Path) -> Vec<Check> {
    let mut checks = vec![
        io_uring(),
        locked_memory(),
        udp_buffer("rmem_max"),
        udp_buffer("wmem_max"),
        segmentation(),
    ];
    match TemporaryFile::new(directory) {
        Ok(file) => {
            checks.push(direct(&file));
            checks.push(sync(&file));
        }
        Err(error) => checks.push(Check::failure(
            "disk",
            format!("{}: {error}", directory.display()),
            "Name a directory that can be written to with --data.",
        )),
    }
    checks.push(space(directory));
    checks
}

fn io_uring() -> Check {
    const NAME: &str = "io_uring";
    // `struct io_uring_params` of linux/io_uring.h: 120 bytes, all zero asks for defaults.
    let mut params = [0u64; 15];
    // SAFETY: io_uring_setup reads and writes `params`, which is as large as the kernel's struct and
    // lives across the call. A descriptor that comes back is closed below.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, params.as_mut_ptr()) };
    if ring >= 0 {
        // SAFETY: the descriptor was just made here and nothing else has it.
        unsafe { libc::close(ring as libc::c_int) };
        return Check::good(NAME, "available");
    }
    let error = io::Error::last_os_error();
    Check::warning(
        NAME,
        format!("not available: {error}"),
        "The broker uses its portable disk code. Containers often forbid io_uring: allow it in the seccomp profile, and set kernel.io_uring_disabled=0.",
    )
}

fn locked_memory() -> Check {
    const NAME: &str = "locked memory";
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid place for the answer.
    if unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) } != 0 {
        return Check::warning(NAME, io::Error::last_os_error().to_string(), "");
    }
    if limit.rlim_cur == libc::RLIM_INFINITY {
        return Check::good(NAME, "unlimited");
    }
    if limit.rlim_cur >= LOCKED_BYTES {
        return Check::good(NAME, bytes(limit.rlim_cur));
    }
    Check::warning(
        NAME,
        bytes(limit.rlim_cur),
        "Registered buffers do not fit, so writes cost a little more. Raise it: ulimit -l, or LimitMEMLOCK= in a systemd unit.",
    )
}

fn udp_buffer(which: &'static str) -> Check {
    let name = if which == "rmem_max" {
        "UDP receive buffer"
    } else {
        "UDP send buffer"
    };
    let path = format!("/proc/sys/net/core/{which}");
    match std::fs::read_to_string(&path).map(|text| text.trim().parse::<u64>()) {
        Ok(Ok(max)) if max >= UDP_BUFFER_BYTES => Check::good(name, bytes(max)),
        Ok(Ok(max)) => Check::warning(
            name,
            bytes(max),
            format!(
                "Packets are lost under load. Raise it: sysctl -w net.core.{which}={UDP_BUFFER_BYTES}"
            ),
        ),
        // A network namespace may hide it.
        _ => Check::good(name, "not shown in this network namespace"),
    }
}

fn segmentation() -> Check {
    const NAME: &str = "UDP segmentation (GSO)";
    const UDP_SEGMENT: libc::c_int = 103;
    let Ok(socket) = UdpSocket::bind("127.0.0.1:0") else {
        return Check::failure(NAME, "no UDP socket on loopback", "");
    };
    let size: libc::c_int = 1200;
    // SAFETY: the option takes one int, which lives across the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            UDP_SEGMENT,
            std::ptr::from_ref(&size).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Check::good(NAME, "available")
    } else {
        Check::warning(
            NAME,
            io::Error::last_os_error().to_string(),
            "Sending costs several times the CPU without it: use Linux 4.18 or later.",
        )
    }
}

fn direct(file: &TemporaryFile) -> Check {
    const NAME: &str = "direct I/O";
    match OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(&file.path)
    {
        Ok(_) => Check::good(NAME, "available"),
        Err(error) => Check::warning(
            NAME,
            format!("not available: {error}"),
            "The log goes through the page cache. Prefer ext4 or xfs for the data directory.",
        ),
    }
}

fn sync(file: &TemporaryFile) -> Check {
    const NAME: &str = "fdatasync";
    let measure = || -> io::Result<Vec<Duration>> {
        let mut out: &File = &file.file;
        let block = [0x5a; BLOCK_BYTES];
        out.write_all(&block.repeat(SYNCS))?;
        out.sync_all()?;
        let mut taken = Vec::with_capacity(SYNCS);
        for at in 0..SYNCS {
            let start = Instant::now();
            std::os::unix::fs::FileExt::write_all_at(out, &block, (at * BLOCK_BYTES) as u64)?;
            out.sync_data()?;
            taken.push(start.elapsed());
        }
        taken.sort();
        Ok(taken)
    };
    match measure() {
        Ok(taken) => {
            let (median, worst) = (taken[SYNCS / 2], taken[SYNCS - 1]);
            let found = format!(
                "median {:.3} ms, worst of {SYNCS} {:.3} ms",
                ms(median),
                ms(worst)
            );
            if median > SYNC_SLOW {
                Check::warning(
                    NAME,
                    found,
                    "Every acknowledgement waits for one: use a faster disk, or one with power-loss protection.",
                )
            } else {
                Check::good(NAME, found)
            }
        }
        Err(error) => Check::failure(
            NAME,
            error.to_string(),
            "The disk cannot make anything durable.",
        ),
    }
}

fn space(directory: &Path) -> Check {
    const NAME: &str = "free disk space";
    let Ok(path) = std::ffi::CString::new(directory.as_os_str().as_encoded_bytes()) else {
        return Check::failure(NAME, "the path holds a zero byte", "");
    };
    // SAFETY: all zeros is a value of this plain struct; the path is a terminated string and both live
    // across the call.
    let (result, stat) = unsafe {
        let mut stat: libc::statvfs = std::mem::zeroed();
        (libc::statvfs(path.as_ptr(), &raw mut stat), stat)
    };
    if result != 0 {
        return Check::failure(
            NAME,
            io::Error::last_os_error().to_string(),
            "Name an existing directory with --data.",
        );
    }
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < FREE_BYTES {
        Check::warning(
            NAME,
            bytes(free),
            "The broker refuses writes with DISK_FULL when files for the log run out: free some space or lower retention.",
        )
    } else {
        Check::good(NAME, bytes(free))
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A file that goes away with this value.
struct TemporaryFile {
    path: PathBuf,
    file: File,
}

impl TemporaryFile {
    fn new(directory: &Path) -> io::Result<Self> {
        let path = directory.join(format!(".millstream-doctor-{}", std::process::id()));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)?;
        Ok(Self { path, file })
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        // It may have been removed by someone else.
        let _ = std::fs::remove_file(&self.path);
    }
}
