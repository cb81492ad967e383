//! One connection: HELLO, then streams, each told apart by its first frame and served by its own task.
//!
//! Absent: what requests, producers and subscriptions do.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use millstream_protocol::kinds::{Role, name_of};
use millstream_protocol::messages::{self, HelloRequest, HelloResponse};
use millstream_protocol::{Code, Kind, VERSION_MAX, VERSION_MIN};
use quinn::{Connection, ConnectionError, RecvStream, SendStream, VarInt};
use tokio::sync::watch;

use crate::authority::{Principal, Shown};
use crate::broker::{Phase, Shared};
use crate::endpoint::{Admitted, Place};
use crate::memory::{IngressShare, SendShare};
use crate::metrics::{Alive, HandshakeFailure};
use crate::stream::{FrameReader, ReadEnd, Received, refuse, write_frame};
use crate::thread::Thread;
use crate::windows::Window;
use crate::{producer, refusals, requests, subscription};

/// Streams that a connection may have open until it has said who it is.
pub(crate) const STREAMS_UNKNOWN: u32 = 4;
/// From then on; twice as many whenever half of them are, up to `limits.streams_max`. QUIC keeps 70 bytes for
/// every stream that could be opened.
const STREAMS_FIRST: u32 = 64;

/// What the streams of one connection share.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) shared: Arc<Shared>,
    pub(crate) thread: Rc<Thread>,
    pub(crate) ingress: IngressShare,
    pub(crate) send: SendShare,
    connection: Connection,
    window: Window,
    place: Place,
    principal: watch::Sender<Option<Arc<Principal>>>,
    /// What it was known by.
    shown: RefCell<Option<Shown>>,
    /// What the client calls itself, for messages.
    client: RefCell<String>,
}

/// What a client may say of itself, in characters.
const CLIENT_CHARS: usize = 64;

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
        place,
    }: Admitted,
) {
    let shared = Arc::clone(&thread.shared);
    let metrics = &shared.metrics;
    let hello = Duration::from_millis(shared.config.limits.hello_ms);
    let peer = incoming.remote_address();
    let connection = match incoming.accept() {
        Ok(connecting) => match tokio::time::timeout(hello, connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                metrics.handshakes_failed.add(HandshakeFailure::of(&error));
                match refused_by_tls(&error) {
                    true => shared.log_refusal(peer, &error.to_string()),
                    false => tracing::debug!(%peer, %error, "a handshake failed"),
                }
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
    // Its handshake proved the address, if nothing did before.
    if !place.prove(connection.remote_address().ip()) {
        metrics.connections_refused.add(1);
        let code = VarInt::from_u32(Code::Busy.number());
        return connection.close(code, b"too many connections from this address");
    }
    metrics.connections_total.add(1);
    let _alive = Alive::new(&metrics.connections);
    let session = Rc::new(Session {
        ingress: IngressShare::new(&shared.bounds),
        send: SendShare::new(&shared.bounds.send),
        connection: connection.clone(),
        window: Window::default(),
        place,
        principal: watch::Sender::new(None),
        shown: RefCell::default(),
        client: RefCell::default(),
        shared: Arc::clone(&shared),
        thread,
    });
    tokio::task::spawn_local(expect_hello(Rc::clone(&session), hello));
    let open = Rc::new(Cell::new(0));
    // Until the peer or the stop of the broker closes the connection.
    let streams_max = shared.config.limits.streams_max;
    let mut allowed = STREAMS_FIRST.min(streams_max);
    let mut live = shared.live_watch();
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept_bi() => accepted,
            changed = live.changed() => match changed {
                Ok(()) => {
                    session.judge_again();
                    continue;
                }
                Err(_) => return, // the sender is part of what this session holds
            },
        };
        let Ok((mut send, mut recv)) = accepted else {
            break;
        };
        if !shared.places.begin_stream(open.get()) {
            // It holds nothing here, and its end tells the client to come again.
            metrics.streams_refused.add(1);
            let code = VarInt::from_u32(Code::Busy.number());
            drop(recv.stop(code)); // it may have finished
            drop(send.reset(code)); // nothing was written
            continue;
        }
        let open = Rc::clone(&open);
        open.set(open.get() + 1);
        // A stranger keeps to what it began with.
        if session.is_authenticated() && open.get() > allowed as usize / 2 && allowed < streams_max
        {
            allowed = allowed.saturating_mul(2).min(streams_max);
            connection.set_max_concurrent_bi_streams(VarInt::from_u32(allowed));
        }
        let session = Rc::clone(&session);
        tokio::task::spawn_local(async move {
            let shared = Arc::clone(&session.shared);
            stream(session, send, recv).await;
            shared.places.end_stream();
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

    /// What the client calls itself.
    pub(crate) fn client(&self) -> String {
        self.client.borrow().clone()
    }

    /// Where the client is.
    pub(crate) fn address(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    /// Refuse a member that did not join as this principal: whoever joins again takes over what it has.
    pub(crate) fn check_member(
        &self,
        group: &str,
        member: u64,
        token: &[u8],
    ) -> Result<(), messages::Error> {
        let name = &self.principal().name;
        if self
            .shared
            .secrets
            .is_member_token(group, member, name, token)
        {
            return Ok(());
        }
        Err(Code::UnknownMember.error(format!(
            "`{name}` is not member {member} of group `{group}`, or came without its token: join anew"
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

    /// Those who are known have changed: whoever is not among them, or has other rights than its streams
    /// were opened with, is to connect anew.
    fn judge_again(&self) {
        let (shown, before) = (self.shown.borrow(), self.principal.borrow());
        let (Some(shown), Some(before)) = (&*shown, &*before) else {
            return; // HELLO will be judged by the new ones
        };
        match self.shared.live().authority.authenticate(shown) {
            Ok(now) if now.is_same(before) => {}
            Ok(now) => {
                let message = format!("the rights of `{}` were changed: connect anew", now.name);
                self.close(&Code::Stopping.error(message));
            }
            Err(error) => {
                let peer = self.connection.remote_address();
                self.shared.log_refusal(peer, &error.message);
                self.close(&error);
            }
        }
    }

    /// Whether the connection still stands.
    pub(crate) fn is_open(&self) -> bool {
        self.connection.close_reason().is_none()
    }

    /// Whether the peer itself said goodbye, rather than being lost.
    pub(crate) fn said_goodbye(&self) -> bool {
        matches!(
            self.connection.close_reason(),
            Some(ConnectionError::ApplicationClosed(_))
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
            .and_then(|any| any.downcast().ok())
            .map(|chain: Box<Vec<_>>| *chain);
        let shown = Shown::new(&request.token, certificates);
        let principal = self.shared.live().authority.authenticate(&shown)?;
        // Streams were judged by who this was when they were opened.
        let known = self.principal.borrow().clone();
        if let Some(before) = &known
            && before.name != principal.name
        {
            let message = format!(
                "this connection is `{}`: another principal connects anew",
                before.name
            );
            return Err(Code::BadRequest.error(message));
        }
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
        if known.is_some() {
            return Ok(response); // said again, which changes nothing
        }
        self.shown.replace(Some(shown));
        let said = match request.client_id.is_empty() {
            true => &request.client,
            false => &request.client_id,
        };
        *self.client.borrow_mut() = said.chars().take(CLIENT_CHARS).collect();
        self.principal.send_replace(Some(principal));
        self.place.introduce();
        let streams = STREAMS_FIRST.min(config.limits.streams_max);
        self.connection
            .set_max_concurrent_bi_streams(VarInt::from_u32(streams));
        self.set_window(Some(self.shared.windows.first()));
        Ok(response)
    }
}

/// Whether TLS ended a handshake: a certificate that one of the two does not take, or no common ground.
fn refused_by_tls(error: &ConnectionError) -> bool {
    let code = match error {
        ConnectionError::TransportError(error) => error.code,
        ConnectionError::ConnectionClosed(close) => close.error_code,
        _ => return false,
    };
    (0x100..0x200).contains(&u64::from(code)) // RFC 9001, 4.8
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
        // Each in memory of its own: a stream that has said nothing yet holds none of it.
        Some(Role::Request) => Box::pin(request(&session, send, reader, received)).await,
        Some(Role::Opens) if kind == Some(Kind::ProducerOpen) => {
            Box::pin(producer::serve(session, send, reader, received)).await;
        }
        Some(Role::Opens) => {
            Box::pin(subscription::serve(session, send, reader, received)).await;
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
            let peer = session.connection.remote_address();
            session.shared.log_refusal(peer, &error.message);
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
