//! The QUIC endpoint of a client: socket, TLS and transport settings.
//!
//! The settings are those that measurement showed to matter: 4 MiB socket buffers (default ones lose
//! packets), AES-128-GCM, windows that never throttle a local network, and MTU discovery up to 6,500
//! bytes (above that, a batch of ten segments passes 64 KiB and is silently dropped). Deliberately
//! absent: what is said over a connection.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{
    ClientConfig, ConnectionId, Endpoint, EndpointConfig, MtuDiscoveryConfig, TransportConfig,
    VarInt,
};
use rustls::crypto::{CryptoProvider, ring};
use rustls::{RootCertStore, version};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use socket2::{Domain, Protocol, Socket, Type};

use crate::context::Context;
use crate::error::{Error, Result};

/// Socket buffers, each way. Default ones (212 KiB on Linux) lose packets under load.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// Largest UDP payload tried: see the module's header.
const UDP_PAYLOAD_BYTES_MAX: u16 = 6_500;
/// Bytes the broker may send on one stream before we read them. Subscriptions have credit of their own.
const STREAM_WINDOW_BYTES: u32 = 16 << 20;
/// The same for a connection.
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
/// Unacknowledged bytes we may have sent on a connection.
const SEND_WINDOW_BYTES: u64 = 16 << 20;
/// QUIC's longest connection id.
const FIRST_ID_BYTES: usize = 20;
/// A peer that is silent for so long is gone. One that was restarted says so itself (a stateless reset).
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(6);
/// Well below the idle timeout, so that one lost packet is no reason to part.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// TLS settings of a context: TLS 1.3, ALPN `millstream/1`, the context's CA and certificate.
pub(crate) fn client_config(context: &Context, idle_timeout: Duration) -> Result<ClientConfig> {
    let mut provider: CryptoProvider = ring::default_provider();
    // The cheapest suite first; the broker takes the client's order.
    provider.cipher_suites = vec![
        ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
        ring::cipher_suite::TLS13_AES_256_GCM_SHA384,
        ring::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    let mut roots = RootCertStore::empty();
    let pem = context.ca_pem.as_deref().ok_or_else(|| {
        Error::usage_hint(
            format!("no certificate authority to check {} against", context.url),
            "Use the broker's context file (--context, MILLSTREAM_CONTEXT), or give the authority of its certificate: --ca FILE, ca_file in a context.",
        )
    })?;
    let origins = &context.origins;
    let wrong = |what: &str, origin: &Option<String>, why: &str| {
        Error::usage(match origin {
            Some(origin) => format!("{what} ({origin}) {why}"),
            None => format!("{what} {why}"),
        })
    };
    let ca = |why: &str| wrong("the certificate authority", &origins.ca, why);
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|error| ca(&format!("is not PEM: {error}")))?;
        roots
            .add(certificate)
            .map_err(|error| ca(&format!("cannot be used: {error}")))?;
    }
    if roots.is_empty() {
        return Err(ca("holds no certificate: a PEM file with one is wanted"));
    }
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&version::TLS13])
        .map_err(|error| Error::usage(format!("TLS 1.3 cannot be used: {error}")))?
        .with_root_certificates(roots);
    let mut tls = match (&context.cert_pem, &context.key_pem) {
        (None, None) => builder.with_no_client_auth(),
        (Some(chain), Some(key)) => {
            let cert = |why: &str| wrong("the client certificate", &origins.cert, why);
            let chain: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes())
                .collect::<Result<_, _>>()
                .map_err(|error| cert(&format!("is not PEM: {error}")))?;
            if chain.is_empty() {
                return Err(cert("holds no certificate: a PEM file with one is wanted"));
            }
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| {
                let why = match error {
                    rustls_pki_types::pem::Error::NoItemsFound => {
                        "holds no private key: a PEM file with one is wanted".to_owned()
                    }
                    error => format!("is not PEM: {error}"),
                };
                wrong("the client key", &origins.key, &why)
            })?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| cert(&format!("cannot be used: {error}")))?
        }
        (Some(_), None) => {
            let why = "needs its key: key_file, key_pem in a context";
            return Err(wrong("the client certificate", &origins.cert, why));
        }
        (None, Some(_)) => {
            let why = "needs its certificate: cert_file, cert_pem in a context";
            return Err(wrong("the client key", &origins.key, why));
        }
    };
    tls.alpn_protocols = vec![millstream_protocol::ALPN.to_vec()];
    let quic = QuicClientConfig::try_from(tls)
        .map_err(|error| Error::usage(format!("TLS for QUIC: {error}")))?;
    let mut config = ClientConfig::new(Arc::new(quic));
    config.transport_config(Arc::new(transport(idle_timeout)));
    config.initial_dst_cid_provider(Arc::new(first_id()?));
    Ok(config)
}

/// The id that a first packet is sent to: random (RFC 9000, section 7.2), but for its first byte, by which the
/// broker steers the connection to one of its threads. That counts up from a random one, so that the
/// connections of one process go round the threads instead of meeting on one of them.
fn first_id() -> Result<impl Fn() -> ConnectionId> {
    static TURN: OnceLock<AtomicU8> = OnceLock::new();
    let mut byte = [0];
    random(&mut byte)?;
    let turn = TURN.get_or_init(|| AtomicU8::new(byte[0]));
    Ok(move || {
        let mut id = [0; FIRST_ID_BYTES];
        random(&mut id).expect("there was entropy when the settings were made");
        id[0] = turn.fetch_add(1, Ordering::Relaxed);
        ConnectionId::new(&id)
    })
}

/// Bytes that nobody can guess.
pub(crate) fn random(bytes: &mut [u8]) -> Result<()> {
    let source = ring::default_provider().secure_random;
    source
        .fill(bytes)
        .map_err(|_| Error::usage("the system has no entropy"))
}

/// A socket and endpoint that reach `remote`.
pub(crate) fn endpoint(remote: SocketAddr) -> Result<Endpoint> {
    let failed = |what: &str, error: io::Error| Error::transport(format!("{what}: {error}"));
    let socket = Socket::new(
        Domain::for_address(remote),
        Type::DGRAM,
        Some(Protocol::UDP),
    )
    .map_err(|error| failed("no UDP socket", error))?;
    // The kernel may grant less; that is slower, not wrong (`millstream doctor` tells).
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    socket
        .bind(&anywhere(remote).into())
        .map_err(|error| failed("no local UDP port", error))?;
    let mut config = EndpointConfig::default();
    config
        .max_udp_payload_size(UDP_PAYLOAD_BYTES_MAX)
        .map_err(|error| Error::usage(format!("UDP payload size: {error}")))?;
    Endpoint::new(config, None, socket.into(), Arc::new(quinn::TokioRuntime))
        .map_err(|error| failed("no QUIC endpoint", error))
}

/// Ends when the network says that nothing can be reached at `remote`, and never else. A socket that is not
/// connected hears nothing of a refused port; this one is, and asks with an empty datagram, which is no QUIC
/// packet and has no effect on who listens.
pub(crate) async fn unreachable(remote: SocketAddr) -> io::Error {
    let Err(error) = ask(remote).await;
    error
}

async fn ask(remote: SocketAddr) -> io::Result<Infallible> {
    let socket = tokio::net::UdpSocket::bind(anywhere(remote)).await?;
    socket.connect(remote).await?;
    socket.send(&[]).await?;
    loop {
        socket.recv(&mut [0]).await?; // nobody answers that
    }
}

/// Any port of the family that reaches `remote`.
fn anywhere(remote: SocketAddr) -> SocketAddr {
    match remote {
        SocketAddr::V4(_) => (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

fn transport(idle_timeout: Duration) -> TransportConfig {
    let mut transport = TransportConfig::default();
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(UDP_PAYLOAD_BYTES_MAX);
    transport
        .max_idle_timeout(idle_timeout.try_into().ok())
        .keep_alive_interval(Some(KEEP_ALIVE.min(idle_timeout / 3)))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .mtu_discovery_config(Some(mtu))
        .congestion_controller_factory(Arc::new(CubicConfig::default()))
        .datagram_receive_buffer_size(None)
        // The broker opens no streams.
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0));
    transport
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_of_one_process_go_round_the_threads() {
        let [one, other] = [first_id(), first_id()].map(|made| made.expect("entropy"));
        let ids = [one(), other(), one()];
        // Other tests of this process may open connections meanwhile.
        for pair in ids.windows(2) {
            let step = pair[1][0].wrapping_sub(pair[0][0]);
            assert!((1..64).contains(&step), "{step}");
            assert_ne!(pair[0][1..], pair[1][1..], "the rest is random");
        }
    }
}
