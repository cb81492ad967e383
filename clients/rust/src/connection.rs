//! One connection to the broker, made again when it is lost, and requests over it.
//!
//! [`Link`] is shared by everything that a client makes. It holds at most one live connection; whoever
//! needs it first makes it, the others wait for that attempt. Deliberately absent: what the streams of
//! producers and consumers carry.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use millstream_batch::limits::{FRAME_HEADER_BYTES_MAX, FRAME_PAYLOAD_BYTES_MAX};
use millstream_protocol::messages::{HelloRequest, HelloResponse};
use millstream_protocol::{
    Decoder, Frame, Kind, Message, VERSION_MAX, VERSION_MIN, frame, messages,
};
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::backoff::Backoff;
use crate::context::Context;
use crate::error::{Error, Kind as Fault, Result};
use crate::transport;

/// What this library calls itself in HELLO.
const CLIENT_NAME: &str = concat!("millstream-rust/", env!("CARGO_PKG_VERSION"));
/// One try to connect, TLS and HELLO included. Short, because a broker that restarts on the same port
/// does not answer packets sent before it listened. Also how long a first connection is tried, unless the
/// broker is waited for.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Chunks taken from a stream at once.
const CHUNKS: usize = 32;

/// A live connection, and what the broker said of itself in HELLO.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) connection: Connection,
    pub(crate) hello: Arc<HelloResponse>,
}

/// The connection there is or was, and what became of those before it.
#[derive(Debug, Default)]
struct Current {
    session: Option<Session>,
    connections: u64,
    lost: Option<Error>,
    /// Since when it was said that the connection is lost.
    told_lost: Option<Instant>,
}

/// What became of a client's connections: see [`Client::connections`](crate::Client::connections).
#[derive(Clone, Debug, Default)]
pub struct Connections {
    /// Made so far, the live one included.
    pub made: u64,
    /// Why the last one that is gone was lost.
    pub lost: Option<Error>,
}

/// The way to one broker. Cheap to share.
#[derive(Debug)]
pub(crate) struct Link {
    context: Context,
    client_id: String,
    config: quinn::ClientConfig,
    /// Whether a broker that is not there yet is waited for.
    wait: bool,
    current: Mutex<Current>,
    /// Held while connecting, so that one attempt serves all.
    connecting: tokio::sync::Mutex<Option<(Endpoint, SocketAddr)>>,
}

/// Whether a request may be sent again when its answer was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It only looks, or doing it twice is the same as once.
    Safe,
    /// The caller is told that the outcome is unknown.
    Never,
}

impl Link {
    pub(crate) fn new(
        context: Context,
        client_id: String,
        idle_timeout: Duration,
        wait: bool,
    ) -> Result<Self> {
        let config = transport::client_config(&context, idle_timeout)?;
        Ok(Self {
            context,
            client_id,
            config,
            wait,
            current: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
        })
    }

    /// The live connection, made if there is none. Tries until `deadline`, backing off. A first connection
    /// is given up on as soon as the network says that nobody is there, and after [`ATTEMPT`] without an
    /// answer, unless the broker is waited for.
    pub(crate) async fn session(&self, deadline: Instant) -> Result<Session> {
        if let Some(session) = self.live() {
            return Ok(session);
        }
        let Ok(mut endpoint) = timeout_at(deadline, self.connecting.lock()).await else {
            return Err(self.unreachable(None));
        };
        if let Some(session) = self.live() {
            return Ok(session);
        }
        let first = self.current().connections == 0 && !self.wait;
        let deadline = match first {
            true => deadline.min(Instant::now() + ATTEMPT),
            false => deadline,
        };
        self.tell_lost(deadline);
        let mut backoff = Backoff::connecting();
        loop {
            let attempt = deadline.min(Instant::now() + ATTEMPT);
            let error = match timeout_at(attempt, self.connect(&mut endpoint)).await {
                Ok(Ok(session)) => {
                    self.connected(&session);
                    return Ok(session);
                }
                Ok(Err(error)) if !error.retriable() => return Err(error),
                Ok(Err(error)) => Some(error),
                Err(_) => None,
            };
            // A fresh socket and a fresh look at the name for the next try.
            *endpoint = None;
            let again = Instant::now() + backoff.next_wait();
            let absent = error.as_ref().is_some_and(Error::is_absent);
            if again >= deadline || first && absent {
                return Err(self.unreachable(error.as_ref()));
            }
            let error = error.as_ref().map(tracing::field::display);
            tracing::debug!(url = %self.context.url, error, "connecting failed; trying again");
            sleep_until(again).await;
        }
    }

    fn connected(&self, session: &Session) {
        let mut current = self.current();
        let before = current.session.replace(session.clone());
        current.connections += 1;
        let reason = before.and_then(|before| before.connection.close_reason());
        if let Some(reason) = reason {
            current.lost = Some(reason.into());
        }
        if let Some(since) = current.told_lost.take() {
            let after = since.elapsed().as_secs_f64();
            tracing::warn!("connected to {} again after {after:.1} s", self.context.url);
        }
    }

    /// Say once that a connection that stood is lost, and until when another is tried for. Whoever knows
    /// that says it first.
    pub(crate) fn tell_lost(&self, until: Instant) {
        let mut current = self.current();
        let reason = current
            .session
            .as_ref()
            .and_then(|session| session.connection.close_reason());
        let Some(reason) = reason else { return };
        if current.told_lost.is_some() || reason == quinn::ConnectionError::LocallyClosed {
            return;
        }
        let now = Instant::now();
        current.told_lost = Some(now);
        let left = until.saturating_duration_since(now).as_secs_f64().ceil();
        tracing::warn!(
            "connection to {} lost ({}), retrying for {left:.0} s",
            self.context.url,
            Error::from(reason).message()
        );
    }

    /// The live connection, if there is one.
    pub(crate) fn live(&self) -> Option<Session> {
        let current = self.current();
        let session = current.session.as_ref();
        session
            .filter(|session| session.connection.close_reason().is_none())
            .cloned()
    }

    /// What became of the connections so far.
    pub(crate) fn connections(&self) -> Connections {
        let current = self.current();
        let session = current.session.as_ref();
        let reason = session.and_then(|session| session.connection.close_reason());
        Connections {
            made: current.connections,
            lost: reason.map(Error::from).or_else(|| current.lost.clone()),
        }
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Say goodbye and let go of the socket.
    pub(crate) async fn close(&self) {
        let session = self.current().session.take();
        if let Some(session) = session {
            session.connection.close(0u32.into(), b"");
        }
        let endpoint = self.connecting.lock().await.take();
        if let Some((endpoint, _)) = endpoint {
            // Returns when the goodbye is out; a broker that is gone must not hold us.
            let _ = tokio::time::timeout(Duration::from_millis(500), endpoint.wait_idle()).await;
        }
    }

    /// One request: a stream of its own, one frame there, one frame back.
    pub(crate) async fn request<Q: Message, R: Message + Default>(
        &self,
        kind: Kind,
        request: &Q,
        payload: Bytes,
        repeat: Repeat,
        deadline: Instant,
    ) -> Result<R> {
        let mut backoff = Backoff::busy();
        loop {
            let session = self.session(deadline).await?;
            let outcome = timeout_at(
                deadline,
                exchange(&session.connection, kind, request, payload.clone()),
            )
            .await;
            let error = match outcome {
                Ok(Ok(answer)) => return Ok(answer.message::<R>()?),
                Ok(Err(error)) => error,
                Err(_) => Error::deadline(format!("{} was not answered in time", kind.name())),
            };
            let lost = matches!(error.kind(), Fault::Transport | Fault::Deadline);
            if repeat == Repeat::Never && (lost || error.unknown_outcome()) {
                return Err(error.with_unknown_outcome());
            }
            let again = Instant::now()
                + backoff
                    .next_wait()
                    .max(error.retry_after().unwrap_or_default());
            if !error.retriable() || again >= deadline {
                return Err(error);
            }
            tracing::debug!(kind = kind.name(), %error, "request failed; trying again");
            sleep_until(again).await;
        }
    }

    /// Open a stream that stays open, and write its first frame.
    pub(crate) async fn open<Q: Message>(
        session: &Session,
        kind: Kind,
        first: &Q,
    ) -> Result<(SendStream, Incoming)> {
        let (mut send, recv) = session.connection.open_bi().await?;
        send.write_all(&frame::encode(kind, first)).await?;
        Ok((send, Incoming::new(recv)))
    }

    async fn connect(&self, endpoint: &mut Option<(Endpoint, SocketAddr)>) -> Result<Session> {
        let (host, port) = self.context.address()?;
        let (endpoint, remote) = match endpoint {
            Some((endpoint, remote)) => (endpoint.clone(), *remote),
            none => {
                let remote = tokio::net::lookup_host((host.as_str(), port))
                    .await
                    .map_err(|error| Error::absent(format!("`{host}` has no address: {error}")))?
                    .next()
                    .ok_or_else(|| Error::absent(format!("`{host}` has no address")))?;
                let made = transport::endpoint(remote)?;
                *none = Some((made.clone(), remote));
                (made, remote)
            }
        };
        let name = self.context.server_name.as_deref().unwrap_or(&host);
        let connecting = endpoint
            .connect_with(self.config.clone(), remote, name)
            .map_err(|error| Error::usage(format!("{}: {error}", self.context.url)))?;
        let connection = tokio::select! {
            connection = connecting => connection.map_err(|lost| {
                let authority = self.context.origins.ca.as_deref();
                Error::refused_by_us(lost, &self.context.url, authority)
            })?,
            error = transport::unreachable(remote) => {
                return Err(Error::absent(match error.kind() {
                    std::io::ErrorKind::ConnectionRefused => {
                        "nothing listens there (the port is refused)".to_owned()
                    }
                    _ => format!("there is no way to it: {error}"),
                }));
            }
        };
        let hello = HelloRequest {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            client: CLIENT_NAME.to_owned(),
            token: self.context.token.clone().unwrap_or_default(),
            client_id: self.client_id.clone(),
        };
        let answer = exchange(&connection, Kind::Hello, &hello, Bytes::new()).await?;
        let hello: HelloResponse = answer.message()?;
        if !(VERSION_MIN..=VERSION_MAX).contains(&hello.version) {
            return Err(Error::protocol(format!(
                "the broker chose protocol version {}",
                hello.version
            )));
        }
        tracing::debug!(server = %hello.server, principal = %hello.principal, "connected");
        Ok(Session {
            connection,
            hello: Arc::new(hello),
        })
    }

    fn unreachable(&self, last: Option<&Error>) -> Error {
        let url = &self.context.url;
        match last {
            Some(error) => error.context(&format!("no connection to {url}")),
            None => Error::transport(format!("no connection to {url}: it does not answer")),
        }
    }
}

async fn exchange<Q: Message>(
    connection: &Connection,
    kind: Kind,
    request: &Q,
    payload: Bytes,
) -> Result<Frame> {
    let bytes = request.encoded_len();
    let bytes_max = match payload.is_empty() {
        true => FRAME_PAYLOAD_BYTES_MAX,
        false => FRAME_HEADER_BYTES_MAX,
    };
    if bytes > bytes_max || payload.len() > FRAME_PAYLOAD_BYTES_MAX {
        return Err(Error::usage(format!(
            "{} of {bytes} bytes with {} more is over the limit of {bytes_max} and {FRAME_PAYLOAD_BYTES_MAX}",
            kind.name(),
            payload.len()
        )));
    }
    let (mut send, recv) = connection.open_bi().await?;
    let mut head = BytesMut::new();
    if payload.is_empty() {
        frame::encode_into(&mut head, kind, request);
    } else {
        frame::encode_head(&mut head, kind, request, payload.len());
    }
    let mut parts = [head.freeze(), payload];
    let parts = if parts[1].is_empty() {
        &mut parts[..1]
    } else {
        &mut parts[..]
    };
    // A broker that refuses early may stop reading; its answer says more than our failed write.
    let written = send.write_all_chunks(parts).await;
    let _ = send.finish();
    let mut incoming = Incoming::new(recv);
    match incoming.next().await {
        Ok(Some(answer)) if answer.kind == kind.number() => Ok(answer),
        Ok(Some(answer)) if answer.known() == Some(Kind::Error) => {
            Err(Error::refused(answer.message()?))
        }
        Ok(Some(answer)) => {
            let other = millstream_protocol::kinds::name_of(answer.kind);
            Err(Error::protocol(format!(
                "{} was answered with {other}",
                kind.name()
            )))
        }
        Ok(None) => match written {
            Err(error) => Err(error.into()),
            Ok(()) => Err(Error::transport(format!(
                "{} was not answered",
                kind.name()
            ))),
        },
        Err(error) => Err(error),
    }
}

/// The broker's side of a stream, as frames.
#[derive(Debug)]
pub(crate) struct Incoming {
    recv: RecvStream,
    decoder: Decoder,
    ended: bool,
}

impl Incoming {
    pub(crate) fn new(recv: RecvStream) -> Self {
        Self {
            recv,
            decoder: Decoder::new(frame::any_payload),
            ended: false,
        }
    }

    /// A frame that has already arrived.
    pub(crate) fn ready(&mut self) -> Result<Option<Frame>> {
        Ok(self.decoder.next_frame()?)
    }

    /// Wait for more bytes. `false`: the stream has ended. Safe to cancel.
    pub(crate) async fn fill(&mut self) -> Result<bool> {
        if self.ended {
            return Ok(false);
        }
        let mut chunks = [const { Bytes::new() }; CHUNKS];
        match self.recv.read_chunks(&mut chunks).await? {
            Some(count) => {
                for chunk in &mut chunks[..count] {
                    self.decoder.push(std::mem::take(chunk));
                }
                Ok(true)
            }
            None => {
                self.ended = true;
                self.decoder.finish()?;
                Ok(false)
            }
        }
    }

    /// The next frame; `None` when the stream has ended. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.ready()? {
                return Ok(Some(frame));
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }
}

/// The error that an ERROR frame carries, with the tag of what it answers.
pub(crate) fn refusal(frame: &Frame) -> Result<(u64, Error)> {
    let error: messages::Error = frame.message()?;
    Ok((error.tag, Error::refused(error)))
}
