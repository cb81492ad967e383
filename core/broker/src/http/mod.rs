//! What operators see: `/livez`, `/readyz`, `/metrics`, `/status`, over plain HTTP on a thread of its
//! own, so that a busy shard does not look dead. It also exports metrics.

mod metrics;
mod otlp;
mod places;
mod prometheus;
pub(crate) mod report;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::watch;

use self::places::Places;
use self::report::Report;
use crate::broker::{Phase, Shared};
use crate::ports::Transport;
use crate::{Error, preflight};

/// Connections at a time; past it the oldest goes.
pub(crate) const CONNECTIONS_MAX: usize = 64;
/// A client that does not send its request in time is dropped.
const HEADER_WAIT: Duration = Duration::from_secs(10);
/// A client that has not taken its answer by then is dropped. One request a connection.
const CONNECTION_WAIT: Duration = Duration::from_secs(30);

/// The operators' thread.
#[derive(Debug)]
pub(crate) struct Operators {
    pub(crate) address: SocketAddr,
    thread: JoinHandle<()>,
    stop: watch::Sender<bool>,
}

impl Operators {
    /// End the thread. Connections under way are cut.
    pub(crate) fn stop(self) {
        self.stop.send_replace(true);
        if self.thread.join().is_err() {
            tracing::error!("the operators' thread panicked: see the lines above");
        }
    }
}

/// Listen and serve, from before recovery: `/readyz` says what the broker waits for.
pub(crate) fn start(shared: &Arc<Shared>) -> Result<Option<Operators>, Error> {
    let wanted = shared.config.http;
    let listen = |why| Error::listen(Transport::Tcp, wanted, why);
    let listener = match shared.config.http_off {
        true => None,
        false => {
            let listener = TcpListener::bind(wanted).map_err(listen)?;
            listener.set_nonblocking(true).map_err(listen)?;
            Some(listener)
        }
    };
    let address = listener
        .as_ref()
        .map(TcpListener::local_addr)
        .transpose()
        .map_err(listen)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::Internal(format!("no runtime: {error}")))?;
    let (stop, stopped) = watch::channel(false);
    let shared = Arc::clone(shared);
    let thread = std::thread::Builder::new()
        .name("operators".to_owned())
        .spawn(move || runtime.block_on(operate(shared, listener, stopped)))
        .map_err(|error| Error::thread(&error))?;
    Ok(address.map(|address| Operators {
        address,
        thread,
        stop,
    }))
}

async fn operate(
    shared: Arc<Shared>,
    listener: Option<TcpListener>,
    mut stop: watch::Receiver<bool>,
) {
    let serving = async {
        match listener.map(tokio::net::TcpListener::from_std) {
            Some(Ok(listener)) => accept(&shared, &listener).await,
            Some(Err(error)) => tracing::error!(%error, "the operators' HTTP does not listen"),
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = serving => {}
        () = otlp::export(&shared) => {}
        () = preflight::watch_certificate(&shared) => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
}

async fn accept(shared: &Arc<Shared>, listener: &tokio::net::TcpListener) {
    let mut places = Places::new(CONNECTIONS_MAX);
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "an HTTP connection was not taken");
                tokio::time::sleep(Duration::from_millis(100)).await; // out of file descriptors, most likely
                continue;
            }
        };
        if places.make_room() {
            tracing::debug!("the oldest HTTP connection went: {CONNECTIONS_MAX} were there");
        }
        let local = stream.local_addr().map(|address| address.ip());
        let loopback = local.is_ok_and(|address| address.to_canonical().is_loopback());
        let shared = Arc::clone(shared);
        let serving = tokio::spawn(async move {
            let service = service_fn(|request| {
                let shared = Arc::clone(&shared);
                async move { Ok::<_, Infallible>(answer(&shared, &request, loopback).await) }
            });
            let serving = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_WAIT)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            match tokio::time::timeout(CONNECTION_WAIT, serving).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "an HTTP connection ended badly"),
                Err(_) => tracing::debug!("an HTTP client did not take its answer in time"),
            }
        });
        places.take(serving.abort_handle());
    }
}

async fn answer(
    shared: &Shared,
    request: &Request<Incoming>,
    loopback: bool,
) -> Response<Full<Bytes>> {
    let host = request.headers().get(HOST).map(|host| host.to_str());
    if loopback && !host.is_none_or(|host| host.is_ok_and(names_loopback)) {
        let why =
            "this address is asked for under another name: ask localhost, 127.0.0.1 or [::1]\n";
        return text(StatusCode::MISDIRECTED_REQUEST, why.to_owned());
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n".to_owned());
    }
    match request.uri().path() {
        "/livez" => text(StatusCode::OK, "alive\n".to_owned()),
        "/readyz" => ready(shared).await,
        "/metrics" => {
            let report = Report::with_topics(shared).await;
            let mut response = text(
                StatusCode::OK,
                prometheus::page(&metrics::families(shared, &report)),
            );
            let kind = "text/plain; version=0.0.4; charset=utf-8";
            response
                .headers_mut()
                .insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
            response
        }
        "/status" => {
            let mut response = text(StatusCode::OK, Report::gather(shared).await.to_json());
            let kind = hyper::header::HeaderValue::from_static("application/json");
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        }
        _ => text(
            StatusCode::NOT_FOUND,
            "there are /livez /readyz /metrics /status\n".to_owned(),
        ),
    }
}

/// Whether a `Host` is one that a client on this machine has. A page from elsewhere whose name was made to
/// point here (DNS rebinding) asks under its own name, and must not read what its browser reaches.
fn names_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((v6, _port)) => v6,
        None => host.split_once(':').map_or(host, |(name, _port)| name),
    };
    name.eq_ignore_ascii_case("localhost")
        || name
            .parse::<IpAddr>()
            .is_ok_and(|address| address.to_canonical().is_loopback())
}

/// Ready: clients can connect and every shard takes writes. A clock in doubt is said, and is no reason
/// to send clients elsewhere.
async fn ready(shared: &Shared) -> Response<Full<Bytes>> {
    let mut doubts = String::new();
    let why = match shared.phase() {
        Phase::Starting => vec!["recovering".to_owned()],
        Phase::Draining | Phase::Closing => vec!["stopping".to_owned()],
        Phase::Serving => {
            let shards = Report::gather(shared).await.shards;
            for status in &shards {
                if let Some(clock) = &status.clock {
                    doubts += &format!("shard {}: {clock}\n", status.shard);
                }
            }
            let not_serving = shards.iter().filter(|status| status.state != "serving");
            not_serving
                .map(|status| {
                    format!(
                        "shard {}: {}{}",
                        status.shard,
                        status.state,
                        because(status.why.as_deref())
                    )
                })
                .collect()
        }
    };
    if why.is_empty() {
        return text(StatusCode::OK, format!("ready\n{doubts}"));
    }
    text(StatusCode::SERVICE_UNAVAILABLE, why.join("\n") + "\n")
}

fn because(why: Option<&str>) -> String {
    why.map(|why| format!(": {why}")).unwrap_or_default()
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_asked_under_its_own_names() {
        for host in [
            "localhost",
            "LOCALHOST:7412",
            "127.0.0.1:7412",
            "127.0.0.5",
            "[::1]:7412",
        ] {
            assert!(names_loopback(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example:7412",
            "10.0.0.1",
            "[2001:db8::1]",
            "[::1",
        ] {
            assert!(!names_loopback(host), "{host}");
        }
    }
}
