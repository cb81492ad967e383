//! The QUIC settings of both ends: those that measurement showed to matter, and the same as the
//! product's. 4 MiB socket buffers, AES-128-GCM, windows above what is in flight, the row's MTU.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, Connection, Endpoint, EndpointConfig, MtuDiscoveryConfig, RecvStream, SendStream,
    ServerConfig, TokioRuntime, TransportConfig,
};
use rustls::crypto::{CryptoProvider, ring};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

const SOCKET_BUFFER_BYTES: usize = 4 << 20;
const STREAM_WINDOW_BYTES: u32 = 16 << 20;
const NAME: &str = "localhost";
const ALPN: &[u8] = b"ceiling";

/// What the receiver tells its sender, as one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) address: SocketAddr,
    certificate: Vec<u8>,
}

fn server(mtu: u16) -> Result<(Endpoint, Hello)> {
    let key = rcgen::generate_simple_self_signed(vec![NAME.to_owned()])?;
    let certificate = key.cert.der().clone();
    let secret = PrivatePkcs8KeyDer::from(key.signing_key.serialize_der());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], secret.into())?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config.transport_config(Arc::new(transport(mtu)));
    let endpoint = endpoint(mtu, Some(config))?;
    let hello = Hello {
        address: endpoint.local_addr()?,
        certificate: certificate.as_ref().to_vec(),
    };
    Ok((endpoint, hello))
}

/// Listen, say where in one line on standard output, and take the first connection's first stream. The
/// endpoint and the connection must outlive the stream.
pub(super) async fn accept(mtu: u16) -> Result<(Endpoint, Connection, SendStream, RecvStream)> {
    let (endpoint, hello) = server(mtu)?;
    println!("{}", serde_json::to_string(&hello)?);
    std::io::stdout().flush()?;
    let connection = endpoint.accept().await.context("no connection")?.await?;
    let (send, recv) = connection.accept_bi().await?;
    Ok((endpoint, connection, send, recv))
}

/// Connect to the receiver. The endpoint must outlive the connection.
pub(super) async fn connect(mtu: u16, hello: &Hello) -> Result<(Endpoint, Connection)> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from(hello.certificate.clone()))?;
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(Arc::new(transport(mtu)));
    let endpoint = endpoint(mtu, None)?;
    let connection = endpoint.connect_with(config, hello.address, NAME)?.await?;
    Ok((endpoint, connection))
}

fn provider() -> Arc<CryptoProvider> {
    let mut provider = ring::default_provider();
    provider.cipher_suites = vec![ring::cipher_suite::TLS13_AES_128_GCM_SHA256];
    Arc::new(provider)
}

fn endpoint(mtu: u16, server: Option<ServerConfig>) -> Result<Endpoint> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    // The kernel may grant less; both ends of both programs get the same.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(mtu).context("the MTU")?;
    Ok(Endpoint::new(
        config,
        server,
        socket.into(),
        Arc::new(TokioRuntime),
    )?)
}

fn transport(mtu: u16) -> TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(mtu);
    let mut transport = TransportConfig::default();
    transport
        .mtu_discovery_config(Some(discovery))
        .stream_receive_window(STREAM_WINDOW_BYTES.into())
        .send_window(u64::from(STREAM_WINDOW_BYTES))
        .datagram_receive_buffer_size(None);
    transport
}
