//! The QUIC endpoint of one thread, the transport's settings, and who is let in to a handshake.

use std::cell::Cell;
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicServerConfig;
use quinn::{
    Endpoint, EndpointConfig, IdleTimeout, Incoming, MtuDiscoveryConfig, ServerConfig,
    TokioRuntime, TransportConfig, VarInt,
};
use rustls::crypto::ring;

use crate::Error;
use crate::broker::Shared;
use crate::config::Config;
use crate::ports::Transport;
use crate::session::STREAMS_UNKNOWN;
use crate::steering::SteeredIds;
use crate::windows;

/// Handshakes that wait for the accept loop; more are dropped and come again.
const INCOMING_MAX: usize = 1_024;

/// Between two stateless resets. After a restart all clients ask for theirs at once; what is dropped comes
/// again with the client's next packet.
const RESET_INTERVAL_MIN: Duration = Duration::from_micros(500);

/// What one endpoint is made of.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) socket: UdpSocket,
    pub(crate) server: ServerConfig,
}

/// Server settings for all endpoints: cloned, so that tokens and tickets of one are known to all.
pub(crate) fn server_config(
    config: &Config,
    tls: Arc<rustls::ServerConfig>,
) -> Result<ServerConfig, Error> {
    let crypto = QuicServerConfig::try_from(tls).map_err(|error| Error::Tls(error.to_string()))?;
    let mut server = ServerConfig::with_crypto(Arc::new(crypto));
    server.transport_config(Arc::new(transport(config)?));
    server.max_incoming(INCOMING_MAX);
    Ok(server)
}

/// Open the endpoint of thread `index`, inside its runtime.
pub(crate) fn open(socket: Socket, index: usize, shared: &Shared) -> Result<Endpoint, Error> {
    // The same on every thread: a packet of a connection that is no longer known may reach any of them.
    let mut config = EndpointConfig::new(Arc::new(shared.secrets.reset_key()));
    let thread = index as u8;
    config.cid_generator(move || {
        Box::new(SteeredIds::new(
            thread,
            ring::default_provider().secure_random,
        ))
    });
    config
        .max_udp_payload_size(shared.config.quic.mtu_max.max(1472))
        .map_err(|error| Error::Internal(format!("quic.mtu_max: {error}")))?;
    config.min_reset_interval(RESET_INTERVAL_MIN);
    let address = shared.address;
    Endpoint::new(
        config,
        Some(socket.server),
        socket.socket,
        Arc::new(TokioRuntime),
    )
    .map_err(|why| Error::listen(Transport::Udp, address, why))
}

/// A handshake that may go on.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) incoming: Incoming,
    pub(crate) handshake: Handshake,
    pub(crate) place: Place,
}

/// Counts a handshake while it is under way.
#[derive(Debug)]
pub(crate) struct Handshake(Arc<Shared>);

impl Handshake {
    fn begin(shared: &Arc<Shared>) -> Self {
        shared.metrics.handshakes.add(1);
        Self(Arc::clone(shared))
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.0.metrics.handshakes.sub(1);
    }
}

/// The place of a connection, from its first packet on: that of a stranger until it is introduced.
#[derive(Debug)]
pub(crate) struct Place {
    shared: Arc<Shared>,
    is_stranger: Cell<bool>,
    /// Counted there, once it is proven that it is the sender's: or who forges packets would use up the share
    /// of others.
    address: Cell<Option<IpAddr>>,
}

impl Place {
    fn take(shared: &Arc<Shared>) -> Self {
        shared.metrics.strangers.add(1);
        Self {
            shared: Arc::clone(shared),
            is_stranger: Cell::new(true),
            address: Cell::new(None),
        }
    }

    /// The address is the sender's own. `false`: it has its share already.
    pub(crate) fn prove(&self, address: IpAddr) -> bool {
        if self.address.get().is_some() {
            return true;
        }
        let entered = self.shared.places.enter(address);
        if entered {
            self.address.set(Some(address));
        }
        entered
    }

    /// HELLO said whose connection it is.
    pub(crate) fn introduce(&self) {
        if self.is_stranger.replace(false) {
            self.shared.metrics.strangers.sub(1);
            if let Some(address) = self.address.get() {
                self.shared.places.introduce(address);
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let is_stranger = self.is_stranger.get();
        self.shared.metrics.strangers.sub(u64::from(is_stranger));
        if let Some(address) = self.address.get() {
            self.shared.places.leave(address, is_stranger);
        }
    }
}

/// Let a client in, or have it prove its address, or turn it away. Packets with forged senders are cheap
/// to make, and so are connections that say nothing: past a number of them, new ones get no state here, and no
/// more than a Retry.
pub(crate) fn admit(shared: &Arc<Shared>, incoming: Incoming) -> Option<Admitted> {
    let (metrics, limits) = (&shared.metrics, &shared.config.limits);
    let strangers = metrics.strangers.value();
    if strangers >= limits.handshakes_unproven_max as u64 && !incoming.remote_address_validated() {
        metrics.handshakes_retried.add(1);
        if incoming.retry().is_err() {
            tracing::debug!("an address that is not validated may always be asked to prove itself");
        }
        return None;
    }
    if strangers >= limits.handshakes_max as u64 {
        metrics.handshakes_ignored.add(1);
        incoming.ignore();
        return None;
    }
    let under_way = metrics.handshakes.value();
    if metrics.connections.value() + under_way >= limits.connections_max as u64 {
        metrics.connections_refused.add(1);
        incoming.refuse();
        return None;
    }
    let place = Place::take(shared);
    if incoming.remote_address_validated() && !place.prove(incoming.remote_address().ip()) {
        metrics.handshakes_ignored.add(1);
        incoming.ignore();
        return None;
    }
    Some(Admitted {
        incoming,
        handshake: Handshake::begin(shared),
        place,
    })
}

fn transport(config: &Config) -> Result<TransportConfig, Error> {
    let quic = &config.quic;
    let mut transport = TransportConfig::default();
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(quic.mtu_max);
    let idle = IdleTimeout::try_from(Duration::from_millis(u64::from(quic.idle_timeout_ms)))
        .map_err(|error| Error::Internal(format!("quic.idle_timeout_ms: {error}")))?;
    transport
        .mtu_discovery_config(Some(discovery))
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(Duration::from_millis(quic.keep_alive_ms)))
        .max_concurrent_bidi_streams(VarInt::from_u32(
            STREAMS_UNKNOWN.min(config.limits.streams_max),
        ))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(windows::of_stream(config)))
        .receive_window(VarInt::from_u32(windows::UNKNOWN_BYTES))
        .send_window(quic.send_window_bytes)
        .datagram_receive_buffer_size(None);
    Ok(transport)
}
