//! Which process has a port, as far as Linux tells: for the message of a start that finds it taken.
//!
//! The kernel's tables name the socket of a port (proc_pid_net(5)), the open files of processes name
//! their sockets. Those of other users are closed to us: then nobody is named.

use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Which table a port is looked up in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// Who has a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pid: u32,
    name: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.name, self.pid)
    }
}

/// The process that keeps us from `address`, if it can be seen.
pub(crate) fn holder(transport: Transport, address: SocketAddr) -> Option<Holder> {
    let tables = match transport {
        Transport::Udp => ["/proc/net/udp", "/proc/net/udp6"],
        Transport::Tcp => ["/proc/net/tcp", "/proc/net/tcp6"],
    };
    let socket = tables.iter().find_map(|table| {
        let text = fs::read_to_string(table).ok()?;
        text.lines().find_map(|line| socket_of(line, address))
    })?;
    owner(socket)
}

/// The inode of the socket in this line of a table, when it is bound where `address` is wanted.
fn socket_of(line: &str, address: SocketAddr) -> Option<u64> {
    let mut fields = line.split_ascii_whitespace();
    let (ip, port) = fields.nth(1)?.split_once(':')?;
    let bound = ip_of(ip)?;
    let meets = bound == address.ip()
        || bound.is_unspecified()
        || address.ip().is_unspecified()
        || matches!((bound, address.ip()), (IpAddr::V6(six), IpAddr::V4(four)) if six.to_ipv4_mapped() == Some(four));
    if u16::from_str_radix(port, 16).ok()? != address.port() || !meets {
        return None;
    }
    fields.nth(7)?.parse().ok()
}

/// Words of 32 bits in the machine's own order, each as eight hexadecimal digits.
fn ip_of(text: &str) -> Option<IpAddr> {
    let word = |at: usize| {
        let digits = text.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for (at, part) in bytes.chunks_mut(4).enumerate() {
                part.copy_from_slice(&word(at)?);
            }
            Some(Ipv6Addr::from(bytes).into())
        }
        _ => None,
    }
}

/// The process that has this socket among its open files.
fn owner(socket: u64) -> Option<Holder> {
    let link = format!("socket:[{socket}]");
    let processes = fs::read_dir("/proc").ok()?;
    processes.flatten().find_map(|process| {
        let pid = process.file_name().to_str()?.parse().ok()?;
        let mut files = fs::read_dir(process.path().join("fd")).ok()?.flatten();
        files.find(|file| fs::read_link(file.path()).is_ok_and(|to| to.as_os_str() == &*link))?;
        let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        Some(Holder {
            pid,
            name: name.trim().to_owned(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn the_kernels_tables_are_read() {
        let four = "  21: 0100007F:1CF3 00000000:0000 07 00000000:00000000 00:00000000 00000000  1000        0 12345 2 00000000 0";
        let six = "  22: 00000000000000000000000000000000:1CF3 00000000000000000000000000000000:0000 07 0:0 00:0 0 0 0 77 2 0 0";
        let at = |text: &str| text.parse().expect("an address");
        assert_eq!(socket_of(four, at("127.0.0.1:7411")), Some(12345));
        assert_eq!(socket_of(four, at("0.0.0.0:7411")), Some(12345));
        assert_eq!(socket_of(four, at("127.0.0.2:7411")), None);
        assert_eq!(socket_of(four, at("127.0.0.1:7412")), None);
        assert_eq!(socket_of(six, at("127.0.0.1:7411")), Some(77));
        for broken in ["", "sl local_address", "1: zz:1 2", "1: 0100007F:1CF3 x"] {
            assert_eq!(socket_of(broken, at("127.0.0.1:7411")), None);
        }
    }
}
