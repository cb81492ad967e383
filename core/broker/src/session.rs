//! One connection: HELLO, then streams, each told apart by its first frame and served by its own task.
//!
//! Absent: what requests, producers and subscriptions do.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use millstream_protocol::kinds::{Role, name_of};
use millstream_protocol::messages::{self, HelloRequest, HelloResponse};
use millstream_protocol::{Code, Kind, VERSION_MAX, VERSION_MIN};
use quinn::{Connection, RecvStream, SendStream, VarInt};
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

use crate::authority::Principal;
use crate::broker::{Phase, Shared};
use crate::endpoint::Admitted;
use crate::memory::{IngressShare, SendShare};
use crate::metrics::{Alive, HandshakeFailure};
use crate::stream::{FrameReader, ReadEnd, Received, refuse, write_frame};
use crate::thread::Thread;
use crate::windows::Window;
use crate::{producer, refusals, requests, subscription};

/// Streams that a connection may have open at first; twice as many whenever half of them are, up to
/// `limits.streams_max`. QUIC keeps 70 bytes for every stream that could be opened.
pub(crate) const STREAMS_FIRST: u32 = 64;

/// What the streams of one connection share.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) shared: Arc<Shared>,
    pub(crate) thread: Rc<Thread>,
    pub(crate) ingress: IngressShare,
    pub(crate) send: SendShare,
    connection: Connection,
    window: Window,
    principal: watch::Sender<Option<Arc<Principal>>>,
    /// What the client calls itself, for messages.
    client: RefCell<String>,
}

/// A producer's stream lives.
#[derive(Debug)]
pub(crate) struct Producing(Rc<Session>);

impl Drop for Producing {
    fn drop(&mut self) {
        let session = &self.0;
        session.set_window(session.window.end(&session.shared.windows));
    }
}

/// Serve a connection from its first packet to its end.
pub(crate) async fn serve(
    thread: Rc<Thread>,
    Admitted {
        incoming,
        handshake,
    }: Admitted,
) {
    let shared = Arc::clone(&thread.shared);
    let metrics = &shared.metrics;
    let hello = Duration::from_millis(shared.config.limits.hello_ms);
    let connection = match incoming.accept() {
        Ok(connecting) => match tokio::time::timeout(hello, connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                metrics.handshakes_failed.add(HandshakeFailure::of(&error));
                tracing::debug!(%error, "a handshake failed");
                return;
            }
            Err(_) => return metrics.handshakes_failed.add(HandshakeFailure::Timeout),
        },
        Err(error) => {
            metrics.handshakes_failed.add(HandshakeFailure::of(&error));
            tracing::debug!(%error, "a connection was not taken");
            return;
        }
    };
    drop(handshake);
    metrics.connections_total.add(1);
    let _alive = Alive::new(&metrics.connections);
    let session = Rc::new(Session {
        ingress: IngressShare::new(&shared.bounds),
        send: SendShare::new(&shared.bounds.send),
        connection: connection.clone(),
        window: Window::default(),
        principal: watch::Sender::new(None),
        client: RefCell::default(),
        shared: Arc::clone(&shared),
        thread,
    });
    tokio::task::spawn_local(expect_hello(Rc::clone(&session), hello));
    let open = Rc::new(Cell::new(0));
    // Until the peer or the stop of the broker closes the connection.
    let streams_max = shared.config.limits.streams_max;
    let mut allowed = STREAMS_FIRST.min(streams_max);
    while let Ok((send, recv)) = connection.accept_bi().await {
        let open = Rc::clone(&open);
        open.set(open.get() + 1);
        if open.get() > allowed / 2 && allowed < streams_max {
            allowed = allowed.saturating_mul(2).min(streams_max);
            connection.set_max_concurrent_bi_streams(VarInt::from_u32(allowed));
        }
        let session = Rc::clone(&session);
        tokio::task::spawn_local(async move {
            stream(session, send, recv).await;
            open.set(open.get() - 1);
        });
    }
    tracing::debug!(client = %session.client.borrow(), reason = ?connection.close_reason(), "a connection ended");
}

impl Session {
    /// Who the client is. Only for streams that [`authenticated`](Self::authenticated) let pass.
    pub(crate) fn principal(&self) -> Arc<Principal> {
        self.principal
            .borrow()
            .clone()
            .expect("a stream is served when HELLO was answered")
    }

    /// Refuse a producer id that was not given to this principal. So nobody fences the producer of another,
    /// and an id that was never given out reaches no shard.
    pub(crate) fn check_producer(&self, pid: u64, token: &[u8]) -> Result<(), messages::Error> {
        let name = &self.principal().name;
        if self.shared.secrets.is_producer_token(pid, name, token) {
            return Ok(());
        }
        Err(Code::UnknownProducer.error(format!(
            "producer id {pid} was not given to `{name}`, or not with this token"
        )))
    }

    /// A producer's stream has begun: the connection's receive window grows while the result lives.
    pub(crate) fn begin_producing(self: &Rc<Self>) -> Producing {
        self.set_window(self.window.begin(&self.shared.windows));
        Producing(Rc::clone(self))
    }

    /// Before a batch is read: the window follows how many connections produce.
    pub(crate) fn fit_window(&self) {
        self.set_window(self.window.fit(&self.shared.windows));
    }

    fn set_window(&self, bytes: Option<u32>) {
        if let Some(bytes) = bytes {
            self.connection.set_receive_window(VarInt::from_u32(bytes));
        }
    }

    /// Whether HELLO was answered yet.
    pub(crate) fn is_authenticated(&self) -> bool {
        self.principal.borrow().is_some()
    }

    /// Wait until HELLO was answered; `false` when the connection ends without it. Whoever waits holds
    /// the session and with it the sender, so the end of the connection has to end the wait.
    pub(crate) async fn authenticated(&self) -> bool {
        let mut principal = self.principal.subscribe();
        tokio::select! {
            biased;
            known = principal.wait_for(Option::is_some) => known.is_ok(),
            _ = self.connection.closed() => false,
        }
    }

    /// Close the connection with a code and a reason that a person can read.
    pub(crate) fn close(&self, error: &messages::Error) {
        self.connection
            .close(VarInt::from_u32(error.code), error.message.as_bytes());
    }

    /// Whether the connection still stands.
    pub(crate) fn is_open(&self) -> bool {
        self.connection.close_reason().is_none()
    }

    /// Whether the peer itself said goodbye, rather than being lost.
    pub(crate) fn said_goodbye(&self) -> bool {
        matches!(
            self.connection.close_reason(),
            Some(quinn::ConnectionError::ApplicationClosed(_))
        )
    }

    fn hello(&self, request: &HelloRequest) -> Result<HelloResponse, messages::Error> {
        if request.version_min > VERSION_MAX || request.version_max < VERSION_MIN {
            let message = format!(
                "the client speaks versions {} to {}, this broker {VERSION_MIN} to {VERSION_MAX}",
                request.version_min, request.version_max
            );
            return Err(Code::Unsupported.error(message));
        }
        let identity = self.connection.peer_identity();
        let certificates = identity
            .as_ref()
            .and_then(|any| any.downcast_ref::<Vec<CertificateDer<'static>>>());
        let principal = self
            .shared
            .authority
            .authenticate(&request.token, certificates.map(Vec::as_slice))?;
        let config = &self.shared.config;
        let response = HelloResponse {
            version: request.version_max.min(VERSION_MAX),
            cluster_id: self.shared.cluster_id.to_vec().into(),
            server: concat!("millstream/", env!("CARGO_PKG_VERSION")).to_owned(),
            principal: principal.name.clone(),
            shards: u32::from(self.shared.shards.count()),
            batch_bytes_max: config.log.batch_bytes() as u32,
            in_flight_max: config.limits.in_flight_max,
            idle_timeout_ms: config.quic.idle_timeout_ms,
        };
        request
            .client
            .chars()
            .take(64)
            .collect::<String>()
            .clone_into(&mut self.client.borrow_mut());
        self.principal.send_replace(Some(principal));
        Ok(response)
    }
}

/// A client that does not say who it is goes.
async fn expect_hello(session: Rc<Session>, within: Duration) {
    tokio::select! {
        _ = session.authenticated() => {}
        () = tokio::time::sleep(within) => {
            let message = format!("no HELLO within {} ms", within.as_millis());
            session.close(&Code::Unauthenticated.error(message));
        }
    }
}

async fn stream(session: Rc<Session>, mut send: SendStream, recv: RecvStream) {
    let shared = Arc::clone(&session.shared);
    let _alive = Alive::new(&shared.metrics.streams);
    let mut reader = FrameReader::new(recv, &session);
    let first = Duration::from_millis(shared.config.limits.first_frame_ms);
    let received = match tokio::time::timeout(first, reader.next()).await {
        Ok(Ok(received)) => received,
        Ok(Err(ReadEnd::Refused(error))) => return refuse(&mut send, &mut reader, &error).await,
        Ok(Err(ReadEnd::Finished | ReadEnd::Gone)) => return,
        Err(_) => {
            let error = Code::BadRequest.error(format!("no frame within {} ms", first.as_millis()));
            return refuse(&mut send, &mut reader, &error).await;
        }
    };
    let kind = received.frame.known();
    if kind == Some(Kind::Hello) {
        return hello(&session, send, reader, &received).await;
    }
    if !session.authenticated().await {
        return; // nobody to tell
    }
    if shared.phase() != Phase::Serving {
        return refuse(
            &mut send,
            &mut reader,
            &Code::Stopping.error("the broker is stopping"),
        )
        .await;
    }
    match kind.map(Kind::role) {
        Some(Role::Request) => request(&session, send, reader, received).await,
        Some(Role::Opens) if kind == Some(Kind::ProducerOpen) => {
            producer::serve(session, send, reader, received).await;
        }
        Some(Role::Opens) => {
            subscription::serve(session, send, reader, received).await;
        }
        Some(Role::FromClient | Role::FromBroker) => {
            let message = format!("{} opens no stream", name_of(received.frame.kind));
            refuse(&mut send, &mut reader, &Code::BadRequest.error(message)).await;
        }
        None => {
            let message = format!(
                "{} is not known to this broker",
                name_of(received.frame.kind)
            );
            refuse(&mut send, &mut reader, &Code::Unsupported.error(message)).await;
        }
    }
}

async fn hello(
    session: &Session,
    mut send: SendStream,
    mut reader: FrameReader,
    received: &Received,
) {
    let answer = received
        .frame
        .message()
        .map_err(refusals::of_frame)
        .and_then(|request| session.hello(&request));
    match answer {
        Ok(response) => {
            if write_frame(&mut send, Kind::Hello, &response).await.is_ok() {
                drop(send.finish()); // a peer that went away needs no end
            }
        }
        Err(error) => {
            session.shared.metrics.hellos_refused.add(error.code);
            refuse(&mut send, &mut reader, &error).await;
            // Give the answer a moment to arrive: closing drops what is not yet sent.
            drop(tokio::time::timeout(Duration::from_millis(200), send.stopped()).await);
            session.close(&error);
        }
    }
}

async fn request(
    session: &Rc<Session>,
    mut send: SendStream,
    mut reader: FrameReader,
    received: Received,
) {
    let metrics = &session.shared.metrics;
    metrics.requests.add(1);
    let _running = Alive::new(&metrics.requests_running);
    match requests::answer(session, received).await {
        Ok(frame) => {
            if send.write_chunk(frame).await.is_ok() {
                drop(send.finish()); // a peer that went away needs no end
            }
        }
        Err(error) => {
            session.shared.metrics.requests_refused.add(error.code);
            refuse(&mut send, &mut reader, &error).await;
        }
    }
}
