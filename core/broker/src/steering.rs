//! One UDP port, one socket a thread, and packets that reach the thread of their connection.
//!
//! Connection ids carry the thread in their first byte; a classic BPF program in the kernel steers by
//! that byte (a client's own first connection id is random, so new connections spread). Where the
//! kernel refuses the program, one thread serves the endpoint alone. Absent: QUIC itself (quinn).
//!
//! A port belongs to one broker. `SO_REUSEPORT` would let a second one in, which takes a part of the
//! first one's packets: so the first socket is bound without it, which fails when anyone has the port,
//! and shares it only then.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use quinn::{ConnectionId, ConnectionIdGenerator};
use rustls::crypto::SecureRandom;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::ports::Transport;
use crate::{Error, sys};

const CONNECTION_ID_BYTES: usize = 8;

/// The sockets of one port, in thread order: one each, or one alone.
#[derive(Debug)]
pub(crate) struct Sockets {
    pub(crate) sockets: Vec<UdpSocket>,
    pub(crate) address: SocketAddr,
}

/// Bind `threads` sockets to `listen`, or one if packets cannot be steered.
pub(crate) fn bind(
    listen: SocketAddr,
    threads: usize,
    buffer_bytes: usize,
) -> Result<Sockets, Error> {
    let wish = threads.min(usize::from(u8::MAX) + 1);
    let first = bind_one(listen, false, buffer_bytes)?;
    let address = first
        .local_addr()
        .map_err(|why| Error::listen(Transport::Udp, listen, why))?;
    if wish == 1 {
        return Ok(Sockets {
            sockets: vec![first],
            address,
        });
    }
    SockRef::from(&first)
        .set_reuse_port(true)
        .map_err(|why| Error::listen(Transport::Udp, address, why))?;
    let mut sockets = vec![first];
    for _ in 1..wish {
        sockets.push(bind_one(address, true, buffer_bytes)?);
    }
    if let Err(error) = sys::steer_by_connection_id(&sockets[0], wish as u32) {
        tracing::warn!(%error, "the kernel does not let packets be steered to threads: one thread serves all clients");
        sockets.truncate(1);
    }
    Ok(Sockets { sockets, address })
}

fn bind_one(address: SocketAddr, share: bool, buffer_bytes: usize) -> Result<UdpSocket, Error> {
    let bind = || {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::DGRAM,
            Some(Protocol::UDP),
        )?;
        socket.set_reuse_port(share)?;
        // Best effort: the kernel caps both at net.core.{r,w}mem_max without an error.
        socket.set_recv_buffer_size(buffer_bytes)?;
        socket.set_send_buffer_size(buffer_bytes)?;
        socket.bind(&address.into())?;
        socket.set_nonblocking(true)?;
        let got = socket.recv_buffer_size()? / 2; // Linux reports twice what was asked
        if got < buffer_bytes {
            tracing::info!(
                "UDP receive buffer is {got} bytes, not {buffer_bytes}: raise net.core.rmem_max to lose fewer packets"
            );
        }
        Ok(UdpSocket::from(socket))
    };
    bind().map_err(|why| Error::listen(Transport::Udp, address, why))
}

/// Gives out connection ids of eight bytes: the thread, then random bytes.
pub(crate) struct SteeredIds {
    thread: u8,
    source: &'static dyn SecureRandom,
}

impl SteeredIds {
    pub(crate) fn new(thread: u8, source: &'static dyn SecureRandom) -> Self {
        Self { thread, source }
    }
}

impl ConnectionIdGenerator for SteeredIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut bytes = [0; CONNECTION_ID_BYTES];
        self.source
            .fill(&mut bytes)
            .expect("the system has entropy");
        bytes[0] = self.thread;
        ConnectionId::new(&bytes)
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    /// Packets go where their connection id says, by both header forms (RFC 9000, 17).
    #[test]
    fn packets_reach_the_socket_of_their_connection_id() {
        let bound = bind((Ipv4Addr::LOCALHOST, 0).into(), 4, 1 << 16).expect("bound");
        if bound.sockets.len() == 1 {
            return; // steering is refused here, which is allowed
        }
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound");
        for first in [0_u8, 1, 2, 3, 4, 7, 128, 255] {
            let thread = usize::from(first) % 4;
            let long = [0xc0, 0, 0, 0, 1, 8, first, 9, 9, 9, 9, 9, 9, 9];
            let short = [0x40, first, 9, 9, 9, 9, 9, 9, 9];
            for packet in [&long[..], &short[..]] {
                client.send_to(packet, bound.address).expect("sent");
                let socket = &bound.sockets[thread];
                socket.set_nonblocking(false).expect("set");
                socket
                    .set_read_timeout(Some(Duration::from_secs(20)))
                    .expect("set");
                let mut buffer = [0; 64];
                let (bytes, _) = socket.recv_from(&mut buffer).expect("the packet is here");
                assert_eq!(&buffer[..bytes], packet);
            }
        }
    }

    /// However many threads either has: the second hears who has the port, and takes no packet of it.
    #[test]
    fn a_port_in_use_is_an_error() {
        let here = (Ipv4Addr::LOCALHOST, 0).into();
        let everywhere = |port| (Ipv4Addr::UNSPECIFIED, port).into();
        for (first, second) in [(2, 2), (1, 2), (2, 1)] {
            let bound = bind(here, first, 1 << 16).expect("bound");
            for address in [bound.address, everywhere(bound.address.port())] {
                let error = bind(address, second, 1 << 16)
                    .expect_err("it is in use")
                    .to_string();
                let pid = format!("pid {}", std::process::id());
                assert!(error.contains("in use") && error.contains(&pid), "{error}");
            }
        }
    }

    #[test]
    fn connection_ids_carry_the_thread_and_differ() {
        let mut ids = SteeredIds::new(3, rustls::crypto::ring::default_provider().secure_random);
        let (a, b) = (ids.generate_cid(), ids.generate_cid());
        assert_eq!((a[0], b[0], a.len()), (3, 3, CONNECTION_ID_BYTES));
        assert_ne!(a, b);
    }
}
