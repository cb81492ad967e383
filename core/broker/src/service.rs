//! What a service manager is told (sd_notify(3)): one datagram to the socket that `NOTIFY_SOCKET` names.
//!
//! Without one nothing is said, and a manager that does not listen is no failure: the broker serves all the
//! same. Absent: libsystemd, of which this is all that is needed, and watchdogs (`/livez` is for those).

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Clients can connect.
pub(crate) const READY: &str = "READY=1";
/// The end has begun: what is in flight is answered first.
pub(crate) const STOPPING: &str = "STOPPING=1";

/// Tell the manager, if there is one.
pub(crate) fn notify(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = notify_at(&socket, state) {
        tracing::warn!(%error, state, "the service manager is not told");
    }
}

fn notify_at(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_socket_are_told() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("notify");
        let name = format!("millstream-test-{}", std::process::id());
        let by_path = UnixDatagram::bind(&path)?;
        let by_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
        notify_at(path.as_os_str(), READY)?;
        notify_at(OsStr::new(&format!("@{name}")), STOPPING)?;
        for (socket, state) in [(by_path, READY), (by_name, STOPPING)] {
            let mut bytes = [0; 64];
            let len = socket.recv(&mut bytes)?;
            assert_eq!(&bytes[..len], state.as_bytes());
        }
        assert!(notify_at(folder.path().join("nobody").as_os_str(), READY).is_err());
        Ok(())
    }
}
