//! A bare client: quinn, frames, nothing else. And a broker to talk to.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use millstream_batch::{BatchBuilder, Encoding};
use millstream_broker::{Broker, Config};
use millstream_protocol::frame::{any_payload, encode, encode_head};
use millstream_protocol::messages::{
    self, CreateTopicRequest, CreateTopicResponse, HelloRequest, HelloResponse, Produce,
    ProducerOpen, StartAt, Subscribe, start_at,
};
use millstream_protocol::{ALPN, Decoder, Frame, Kind, Message};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// How long anything may take before a test calls it hung.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A broker on a directory of its own, and a runtime for clients.
pub(crate) struct World {
    pub(crate) runtime: Runtime,
    broker: Option<Broker>,
    pub(crate) config: Config,
    _dir: TempDir,
}

impl World {
    pub(crate) fn new(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut config = Config {
            data: dir.path().join("data"),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            http: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            shards: Some(2),
            ..Config::default()
        };
        config.log.segment_bytes = 16 << 20;
        change(&mut config);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let broker = Broker::start(config.clone()).expect("the broker starts");
        Self {
            runtime,
            broker: Some(broker),
            config,
            _dir: dir,
        }
    }

    pub(crate) fn broker(&self) -> &Broker {
        self.broker.as_ref().expect("it runs")
    }

    pub(crate) fn take_broker(&mut self) -> Broker {
        self.broker.take().expect("it runs")
    }

    pub(crate) fn stop(&mut self) {
        self.take_broker().stop().expect("it stops");
    }

    pub(crate) fn start_again(&mut self) {
        self.config.shards = None;
        self.broker = Some(Broker::start(self.config.clone()).expect("the broker starts again"));
    }

    /// Run a client's part of the test, within patience.
    pub(crate) fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(async {
            tokio::time::timeout(PATIENCE, work)
                .await
                .expect("not hung")
        })
    }

    /// The sum of a metric's samples, as operators see it now.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let http = self.broker().http_address().expect("it listens");
        let mut stream = TcpStream::connect(http).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("read");
        answer
            .lines()
            .filter(|line| line.split(['{', ' ']).next() == Some(name))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .reduce(|sum, sample| sum + sample)
            .expect("a sample")
    }

    /// A connection with HELLO answered.
    pub(crate) async fn connect(&self) -> Client {
        self.connect_with(&self.token()).await.0
    }

    /// A connection of the principal with this token, whose name the broker tells.
    pub(crate) async fn connect_with(&self, token: &str) -> (Client, String) {
        let client = self.connect_silently().await;
        let request = HelloRequest {
            version_min: 1,
            version_max: 1,
            token: token.to_owned(),
            ..HelloRequest::default()
        };
        let hello: Result<HelloResponse, _> = client.request(Kind::Hello, &request).await;
        let hello = hello.expect("HELLO");
        assert_eq!(hello.version, 1);
        (client, hello.principal)
    }

    /// A connection that has not said who it is.
    pub(crate) async fn connect_silently(&self) -> Client {
        let connected = self.connect_as(self.client_config()).await;
        connected.expect("a connection")
    }

    /// The same with other settings of TLS.
    pub(crate) async fn connect_as(
        &self,
        config: quinn::ClientConfig,
    ) -> Result<Client, quinn::ConnectionError> {
        let mut endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).expect("an endpoint");
        endpoint.set_default_client_config(config);
        let connection = endpoint
            .connect(self.broker().address(), "localhost")
            .expect("a name")
            .await?;
        Ok(Client {
            connection,
            _endpoint: endpoint,
        })
    }

    /// The token of whoever owns the broker; none where principals are named.
    pub(crate) fn token(&self) -> String {
        let token = self.context().remove("token");
        token.map_or_else(String::new, |token| {
            token.as_str().expect("a string").to_owned()
        })
    }

    fn context(&self) -> toml::Table {
        let context = std::fs::read_to_string(self.broker().context()).expect("a context file");
        context.parse().expect("TOML")
    }

    /// What a client on this machine connects with.
    pub(crate) fn client_config(&self) -> quinn::ClientConfig {
        let context = self.context();
        let authority = context["ca_pem"].as_str().expect("a string");
        self.trusting(CertificateDer::from_pem_slice(authority.as_bytes()).expect("PEM"))
    }

    /// What a client connects with that trusts this certificate alone.
    pub(crate) fn trusting(&self, authority: CertificateDer<'static>) -> quinn::ClientConfig {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority).expect("a root");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        quinn::ClientConfig::new(Arc::new(
            QuicClientConfig::try_from(tls).expect("a QUIC suite"),
        ))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(broker) = self.broker.take()
            && !std::thread::panicking()
        {
            broker.stop().expect("it stops");
        }
    }
}

pub(crate) struct Client {
    pub(crate) connection: Connection,
    _endpoint: Endpoint,
}

impl Client {
    pub(crate) async fn open(&self) -> Stream {
        let (send, recv) = self.connection.open_bi().await.expect("a stream");
        Stream {
            send,
            recv,
            decoder: Decoder::new(any_payload),
        }
    }

    pub(crate) async fn request<M: Message + Default>(
        &self,
        kind: Kind,
        message: &impl Message,
    ) -> Result<M, messages::Error> {
        let mut stream = self.open().await;
        stream.write(&encode(kind, message)).await;
        stream.send.finish().expect("finished");
        let frame = stream.next().await.expect("an answer");
        assert!(stream.next().await.is_none(), "one frame answers a request");
        if frame.kind == Kind::Error.number() {
            return Err(frame.message().expect("an ERROR"));
        }
        assert_eq!(frame.kind, kind.number());
        Ok(frame.message().expect("the response"))
    }

    pub(crate) async fn create_topic(&self, name: &str, partitions: u32) -> Bytes {
        let request = CreateTopicRequest {
            name: name.to_owned(),
            partitions,
            ..CreateTopicRequest::default()
        };
        let response: CreateTopicResponse = self
            .request(Kind::CreateTopic, &request)
            .await
            .expect("created");
        response.topic.expect("a topic").id
    }

    pub(crate) async fn producer(&self, open: &ProducerOpen) -> Stream {
        let mut stream = self.open().await;
        stream.write(&encode(Kind::ProducerOpen, open)).await;
        stream.expect(Kind::ProducerOpened).await;
        stream
    }

    pub(crate) async fn subscribe(&self, subscribe: &Subscribe) -> Stream {
        let mut stream = self.open().await;
        stream.write(&encode(Kind::Subscribe, subscribe)).await;
        stream
    }
}

pub(crate) struct Stream {
    pub(crate) send: SendStream,
    pub(crate) recv: RecvStream,
    decoder: Decoder,
}

impl Stream {
    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        self.send.write_all(bytes).await.expect("written");
    }

    pub(crate) async fn frame(&mut self, kind: Kind, message: &impl Message) {
        self.write(&encode(kind, message)).await;
    }

    /// The next frame; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next_frame().expect("the broker sends frames") {
                return Some(frame);
            }
            let chunk = tokio::time::timeout(PATIENCE, self.recv.read_chunk(1 << 20, true))
                .await
                .expect("the broker is not silent");
            match chunk.expect("the stream holds") {
                Some(chunk) => self.decoder.push(chunk.bytes),
                None => return None,
            }
        }
    }

    pub(crate) async fn expect(&mut self, kind: Kind) -> Frame {
        let frame = self.next().await.expect("a frame");
        if frame.kind == Kind::Error.number() && kind != Kind::Error {
            panic!(
                "{} instead of an ERROR: {:?}",
                kind.name(),
                frame.message::<messages::Error>()
            );
        }
        assert_eq!(frame.known(), Some(kind), "{:?}", frame.header);
        frame
    }

    pub(crate) async fn error(&mut self) -> messages::Error {
        self.expect(Kind::Error).await.message().expect("an ERROR")
    }

    pub(crate) async fn produce(&mut self, header: Produce, batch: &[u8]) {
        let mut out = BytesMut::new();
        encode_head(&mut out, Kind::Produce, &header, batch.len());
        out.extend_from_slice(batch);
        self.write(&out).await;
    }
}

/// To begin with the oldest record that is there.
pub(crate) fn from_start() -> Option<StartAt> {
    Some(StartAt {
        at: Some(start_at::At::Start(true)),
        leader_epoch: None,
    })
}

/// To read a topic whole, with credit for a MiB.
pub(crate) fn whole(topic: &str) -> Subscribe {
    Subscribe {
        topics: vec![topic.to_owned()],
        from: from_start(),
        credit_bytes: 1 << 20,
        ..Subscribe::default()
    }
}

/// A batch of records with these values.
pub(crate) fn batch(values: &[&[u8]]) -> Bytes {
    let mut builder = BatchBuilder::new(Encoding::None, 8 << 20);
    for value in values {
        builder
            .append(None, Some(value), [], 1_700_000_000_000)
            .expect("it fits");
    }
    builder.build().expect("records").into_bytes()
}

/// The values of a served batch, checked as a client would.
pub(crate) fn values(payload: Bytes) -> (u64, Vec<Vec<u8>>) {
    let batch = millstream_batch::Batch::check(payload).expect("a good batch");
    let raw = batch.section();
    let values = batch
        .header()
        .records(&raw)
        .map(|record| {
            record
                .expect("a good record")
                .value
                .unwrap_or_default()
                .to_vec()
        })
        .collect();
    (batch.header().base_offset as u64, values)
}
