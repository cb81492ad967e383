//! Checks of this machine: rings, locked memory, direct I/O, sync latency, UDP, disk space, clock.
#![allow(
    unsafe_code,
    reason = "statvfs, setsockopt and io_uring_setup have no safe wrapper here"
)]

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use millstream_broker::{Resource, limit};

use super::Check;
use crate::output::bytes;

/// What the broker asks for, each way.
const UDP_BUFFER_BYTES: u64 = 4 << 20;
/// Rings want this much, where it is counted.
const LOCKED_BYTES: u64 = 64 << 20;
/// From this kernel on, rings do not count as locked memory.
const RINGS_NOT_COUNTED: (u32, u32) = (5, 12);
/// Below this, files for the log run out soon.
const FREE_BYTES: u64 = 2 << 30;
/// A broker of many shards keeps so many open.
const OPEN_FILES: u64 = 4_096;
/// The default length of a log file.
const FILE_BYTES: u64 = 64 << 20;
/// A broker of many shards has so many.
const THREADS: u64 = 512;
/// Below this, no files can be made soon.
const FREE_INODES: u64 = 1_000;
const SYNCS: usize = 32;
const BLOCK_BYTES: usize = 4096;
/// Above this, every acknowledgement is slow.
const SYNC_SLOW: Duration = Duration::from_millis(10);

/// All checks of the machine, with `directory` for the disk.
pub(super) fn checks(directory: &Path) -> Vec<Check> {
    let ring = ring();
    let mut checks = vec![
        io_uring(&ring),
        locked_memory(
            limit(Resource::LockedMemory).map(|(soft, _)| soft),
            kernel(),
            &ring,
        ),
        open_files(),
        file_size(),
        threads(),
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

/// Whether a ring can be made, and closed again.
fn ring() -> io::Result<()> {
    // `struct io_uring_params` of linux/io_uring.h: 120 bytes, all zero asks for defaults.
    let mut params = [0u64; 15];
    // SAFETY: io_uring_setup reads and writes `params`, which is as large as the kernel's struct and
    // lives across the call. A descriptor that comes back is closed below.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, params.as_mut_ptr()) };
    if ring >= 0 {
        // SAFETY: the descriptor was just made here and nothing else has it.
        unsafe { libc::close(ring as libc::c_int) };
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

fn io_uring(ring: &io::Result<()>) -> Check {
    const NAME: &str = "io_uring";
    let Err(error) = ring else {
        return Check::good(NAME, "available");
    };
    Check::warning(
        NAME,
        format!("not available: {error}"),
        "The broker uses its portable disk code. Containers often forbid io_uring: allow it in the seccomp profile, and set kernel.io_uring_disabled=0.",
    )
}

/// Release and patch level of the running kernel, where it says.
fn kernel() -> Option<(u32, u32)> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The broker registers no memory, so this limit matters only where the kernel counts rings against it: before
/// `RINGS_NOT_COUNTED`, or where it just refused one for it.
fn locked_memory(soft: Option<u64>, kernel: Option<(u32, u32)>, ring: &io::Result<()>) -> Check {
    const NAME: &str = "locked memory";
    let found = match soft {
        None => "the system does not say".to_owned(),
        Some(u64::MAX) => "unlimited".to_owned(),
        Some(soft) => bytes(soft),
    };
    let refused = ring
        .as_ref()
        .is_err_and(|error| error.raw_os_error() == Some(libc::ENOMEM));
    let counted = kernel.is_none_or(|kernel| kernel < RINGS_NOT_COUNTED);
    let small = soft.is_some_and(|soft| soft < LOCKED_BYTES);
    if refused || counted && small {
        return Check::warning(
            NAME,
            found,
            "This kernel counts rings against it: with too little the broker uses its portable disk code. Raise it: ulimit -l, or LimitMEMLOCK= in a systemd unit.",
        );
    }
    Check::good(NAME, found)
}

/// The limits of processes that are started from here, as the broker would be. A running one says its own.
fn open_files() -> Check {
    const NAME: &str = "open files";
    match limit(Resource::OpenFiles) {
        Some((soft, hard)) if hard < OPEN_FILES => Check::warning(
            NAME,
            if soft == hard {
                format!("at most {hard}")
            } else {
                format!("at most {soft}, the broker raises it to {hard}")
            },
            "The broker keeps fewer log files open, and reads of old records cost more. Raise the hard limit: ulimit -Hn, or LimitNOFILE= in a systemd unit.",
        ),
        Some((soft, hard)) if soft == hard => Check::good(NAME, soft.to_string()),
        Some((soft, u64::MAX)) => Check::good(NAME, format!("{soft}, the broker raises it")),
        Some((soft, hard)) => Check::good(NAME, format!("{soft}, the broker raises it to {hard}")),
        None => Check::warning(NAME, "the system does not say", ""),
    }
}

fn file_size() -> Check {
    const NAME: &str = "file size";
    match limit(Resource::FileSize) {
        Some((soft, _)) if soft < FILE_BYTES => Check::failure(
            NAME,
            format!("at most {}", bytes(soft)),
            "Log files are made up to log.segment_bytes long: a broker whose files may not be so long does not start. Raise it: ulimit -f, or LimitFSIZE= in a systemd unit; or lower the setting.",
        ),
        Some((u64::MAX, _)) => Check::good(NAME, "unlimited"),
        Some((soft, _)) => Check::good(NAME, bytes(soft)),
        None => Check::warning(NAME, "the system does not say", ""),
    }
}

fn threads() -> Check {
    const NAME: &str = "threads";
    match limit(Resource::Threads) {
        Some((soft, _)) if soft < THREADS => Check::warning(
            NAME,
            format!("at most {soft} processes and threads of this user"),
            "The broker needs some for each shard and for components. Raise it: ulimit -u, or TasksMax= and LimitNPROC= in a systemd unit.",
        ),
        Some((u64::MAX, _)) => Check::good(NAME, "unlimited"),
        Some((soft, _)) => Check::good(NAME, soft.to_string()),
        None => Check::warning(NAME, "the system does not say", ""),
    }
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
    // File systems that make inodes as they need them count none.
    if stat.f_files > 0 && stat.f_favail < FREE_INODES {
        return Check::warning(
            NAME,
            format!("{}, but {} inodes are left", bytes(free), stat.f_favail),
            "The broker refuses writes with DISK_FULL when no file can be made: remove files (df -i shows where).",
        );
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::State;

    #[test]
    fn locked_memory_is_a_warning_only_where_it_is_counted() {
        let no_memory = || Err(io::Error::from_raw_os_error(libc::ENOMEM));
        let forbidden = || Err(io::Error::from_raw_os_error(libc::EPERM));
        let default = Some(8 << 20);
        for (soft, kernel, ring, state) in [
            (default, Some((6, 1)), Ok(()), State::Good),
            (default, Some((5, 12)), Ok(()), State::Good),
            (default, Some((5, 12)), forbidden(), State::Good),
            (default, Some((5, 4)), Ok(()), State::Warning),
            (default, None, Ok(()), State::Warning),
            (default, Some((6, 1)), no_memory(), State::Warning),
            (Some(64 << 20), Some((5, 4)), Ok(()), State::Good),
            (Some(u64::MAX), Some((5, 4)), Ok(()), State::Good),
            (None, Some((6, 1)), Ok(()), State::Good),
        ] {
            let check = locked_memory(soft, kernel, &ring);
            assert_eq!(check.state, state, "{soft:?} {kernel:?} {ring:?}");
        }
        assert!(kernel().is_some_and(|kernel| kernel >= (3, 0)));
    }
}
