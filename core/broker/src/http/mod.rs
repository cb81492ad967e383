//! What operators see: `/livez`, `/readyz`, `/metrics`, `/status`, over plain HTTP on a thread of its
//! own, so that a busy shard does not look dead. It also exports metrics and keeps shards reconciled.

mod metrics;
mod otlp;
mod prometheus;
pub(crate) mod report;

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{Semaphore, watch};

use self::report::Report;
use crate::Error;
use crate::broker::{Phase, Shared};
use crate::thread::keep_reconciled;

/// Connections at a time; more wait in the kernel.
const CONNECTIONS_MAX: usize = 64;
/// A client that does not send its request in time is dropped.
const HEADER_WAIT: Duration = Duration::from_secs(10);

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
    let listen = |why| Error::Listen {
        address: wanted,
        why,
    };
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
        .map_err(|error| Error::Internal(format!("no thread: {error}")))?;
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
        () = keep_reconciled(&shared) => {}
        () = otlp::export(&shared) => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
}

async fn accept(shared: &Arc<Shared>, listener: &tokio::net::TcpListener) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "an HTTP connection was not taken");
                tokio::time::sleep(Duration::from_millis(100)).await; // out of file descriptors, most likely
                continue;
            }
        };
        let shared = Arc::clone(shared);
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let shared = Arc::clone(&shared);
                async move { Ok::<_, Infallible>(answer(&shared, &request).await) }
            });
            let serving = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_WAIT)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = serving.await {
                tracing::debug!(%error, "an HTTP connection ended badly");
            }
            drop(permit);
        });
    }
}

async fn answer(shared: &Shared, request: &Request<Incoming>) -> Response<Full<Bytes>> {
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

/// Ready: clients can connect and every shard takes writes.
async fn ready(shared: &Shared) -> Response<Full<Bytes>> {
    let why = match shared.phase() {
        Phase::Starting => vec!["recovering".to_owned()],
        Phase::Draining | Phase::Closing => vec!["stopping".to_owned()],
        Phase::Serving => Report::gather(shared)
            .await
            .shards
            .iter()
            .filter(|status| status.state != "serving")
            .map(|status| {
                format!(
                    "shard {}: {}{}",
                    status.shard,
                    status.state,
                    because(status.why.as_deref())
                )
            })
            .collect(),
    };
    if why.is_empty() {
        return text(StatusCode::OK, "ready\n".to_owned());
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
