//! The broker as a whole: start, serve, stop.
//!
//! ```text
//! Starting ──recovered, settled──▶ Serving ──stop──▶ Draining ──streams are through──▶ Closing
//! ```
//! Draining: no new connections or streams, what is in flight is answered. Closing: connections are
//! closed, then the shards flush, seal and snapshot.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use millstream_batch::ids::ShardId;
use millstream_shard::call::{Answer, Call};
use millstream_shard::core::CoreConfig;
use millstream_shard::driver::{Deployments, Peers, Plugins, ShardConfig, Workers};
use millstream_shard::handle::ShardHandle;
use tokio::sync::{oneshot, watch};

use crate::components::Components;
use crate::config::{Config, Flush};
use crate::directory::{Directory, Meta};
use crate::endpoint::Socket;
use crate::live::{self, Live};
use crate::members::Members;
use crate::memory::Bounds;
use crate::metrics::Metrics;
use crate::places::Places;
use crate::secrets::Secrets;
use crate::shards::Shards;
use crate::signals::{self, Hangup, Said, Stopper};
use crate::thread::{self, ShardStart, Start};
use crate::throttle::Throttle;
use crate::tls::Identity;
use crate::traces::Traces;
use crate::windows::Windows;
use crate::{Error, http, limits, preflight, service, settle, steering, sys, tls};

/// How often a stopping broker looks whether its streams are through.
const DRAIN_LOOK: Duration = Duration::from_millis(10);
/// A group is at most this part of its shard's hot tail, unless the configuration says more.
const GROUPS_IN_TAIL_MIN: usize = 8;
/// And at least so large, however small the hot tail is.
const GROUP_BYTES_LEAST: usize = 1 << 20;
/// How long connections may take to hear that they are closed.
const CLOSE: Duration = Duration::from_secs(1);

/// Where the broker stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Starting,
    Serving,
    Draining,
    Closing,
}

/// What every thread knows.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) meta: Meta,
    pub(crate) cluster_id: [u8; 16],
    pub(crate) address: SocketAddr,
    pub(crate) shards: Shards,
    pub(crate) bounds: Bounds,
    pub(crate) windows: Windows,
    pub(crate) places: Places,
    live: watch::Sender<Arc<Live>>,
    pub(crate) secrets: Secrets,
    pub(crate) members: Members,
    pub(crate) components: Arc<Components>,
    pub(crate) plugins: Plugins,
    pub(crate) metrics: Metrics,
    pub(crate) traces: Traces,
    pub(crate) started: Instant,
    refusals: Throttle,
    phase: watch::Sender<Phase>,
}

impl Shared {
    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Who is known now, and with which certificate.
    pub(crate) fn live(&self) -> Arc<Live> {
        Arc::clone(&self.live.borrow())
    }

    pub(crate) fn live_watch(&self) -> watch::Receiver<Arc<Live>> {
        self.live.subscribe()
    }

    pub(crate) fn phase_watch(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Wait until the broker stops.
    pub(crate) fn stopping(&self) -> impl Future<Output = ()> + use<> {
        let mut phase = self.phase.subscribe();
        // The sender lives as long as anything that waits here.
        async move { drop(phase.wait_for(|phase| *phase > Phase::Serving).await) }
    }

    /// Log that a client was not let in: its operator looks here, and often nobody else does.
    pub(crate) fn log_refusal(&self, peer: SocketAddr, why: &str) {
        if let Some(left_out) = self.refusals.pass() {
            tracing::warn!(%peer, left_out, "a client was refused: {why}");
        }
    }

    fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }
}

/// A broker that runs.
#[derive(Debug)]
pub struct Broker {
    shared: Arc<Shared>,
    directory: Directory,
    http: Option<http::Operators>,
    threads: Vec<JoinHandle<()>>,
    control: tokio::runtime::Runtime,
}

impl Broker {
    /// Start and wait until clients can connect.
    ///
    /// # Errors
    /// Everything that keeps the broker from serving, with what to do about it. Threads that were
    /// started by then end with the process.
    pub fn start(config: Config) -> Result<Self, Error> {
        for warning in preflight::check(&config)? {
            tracing::warn!("{warning}");
        }
        let cores = sys::allowed_cores();
        let directory = Directory::open(
            &config.data,
            config.shards,
            cores.len().clamp(1, 256) as u16,
        )?;
        limits::check_file_size(&directory, config.log.segment_bytes)?;
        let identity = tls::identity(&config, &directory)?;
        let shards = directory.meta().shards;
        let threads = config
            .threads
            .unwrap_or(cores.len())
            .clamp(1, usize::from(shards));
        let files = limits::prepare(
            usize::from(shards),
            threads,
            if config.http_off {
                0
            } else {
                http::CONNECTIONS_MAX
            },
        );
        let sockets = steering::bind(config.listen, threads, config.quic.socket_buffer_bytes)?;
        let (handles, inboxes): (Vec<_>, Vec<_>) = (0..shards)
            .map(|shard| ShardHandle::new(ShardId(shard), config.limits.shard_calls_max))
            .unzip();
        let cluster_id =
            uuid::Uuid::parse_str(&directory.meta().cluster_id).map_err(|error| Error::Meta {
                path: directory.path().join("meta.toml"),
                why: error.to_string(),
            })?;
        let secrets = Secrets::open(&directory)?;
        let live = Arc::new(Live::new(
            config.clone(),
            &secrets.owner_token(),
            &identity,
            None,
        )?);
        let server = live.server.clone();
        let peers = Peers::new(handles.clone());
        let components = Components::new(
            directory.components(),
            config.plugins.store_bytes_max,
            usize::from(shards) + threads + config.plugins.worker_threads,
        );
        let plugins = plugins(&components, config.plugins.worker_threads)?;
        let shared = Arc::new(Shared {
            meta: directory.meta().clone(),
            cluster_id: cluster_id.into_bytes(),
            address: sockets.address,
            shards: Shards::new(handles),
            bounds: Bounds::new(&config.memory),
            places: Places::new(&config.limits),
            windows: Windows::new(&config),
            live: watch::Sender::new(live),
            secrets,
            members: Members::default(),
            components,
            plugins,
            metrics: Metrics::default(),
            traces: Traces::new(&config.telemetry),
            started: Instant::now(),
            refusals: Throttle::default(),
            phase: watch::Sender::new(Phase::Starting),
            config,
        });
        say_what_is_unsafe(&shared);
        let control = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Error::Internal(format!("no runtime: {error}")))?;
        let http = http::start(&shared)?;

        let mut starts: Vec<Vec<ShardStart>> = (0..threads).map(|_| Vec::new()).collect();
        for (shard, inbox) in inboxes.into_iter().enumerate() {
            let mut config = shard_config(&shared, shard as u16);
            config.peers = Some(Arc::clone(&peers));
            let path = directory.shard(shard as u16);
            starts[shard % threads].push(ShardStart {
                config,
                path,
                inbox,
                files_max: files.each_shard,
            });
        }
        let mut sockets = sockets.sockets.into_iter();
        let mut running = Vec::new();
        let mut readies = Vec::new();
        for (index, shards) in starts.into_iter().enumerate() {
            let (ready, is_ready) = oneshot::channel();
            let socket = sockets.next().map(|socket| Socket {
                socket,
                server: server.clone(),
            });
            let core = (shared.config.pin_threads && threads > 1)
                .then(|| cores.get(index).copied())
                .flatten();
            let start = Start {
                index,
                core,
                shards,
                socket,
                shared: Arc::clone(&shared),
                ready,
            };
            let thread = std::thread::Builder::new()
                .name(format!("shard-{index}"))
                .spawn(move || thread::run(start))
                .map_err(|error| Error::thread(&error))?;
            running.push(thread);
            readies.push(is_ready);
        }
        for ready in readies {
            control.block_on(ready).unwrap_or_else(|_| {
                Err(Error::Internal(
                    "a thread ended before it was ready".to_owned(),
                ))
            })?;
        }
        control.block_on(settle::settle(&shared))?;
        write_context(&shared, &directory, &identity)?;
        shared.enter(Phase::Serving);
        tracing::info!(
            address = %shared.address,
            http = http.as_ref().map(|http| tracing::field::display(http.address)),
            data = %directory.path().display(),
            shards,
            threads,
            "serving"
        );
        Ok(Self {
            shared,
            directory,
            http,
            threads: running,
            control,
        })
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// Where operators look, if they may.
    #[must_use]
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(|http| http.address)
    }

    /// The data directory.
    #[must_use]
    pub fn data(&self) -> &Path {
        self.directory.path()
    }

    /// The file that tells clients on this machine how to connect.
    #[must_use]
    pub fn context(&self) -> std::path::PathBuf {
        self.directory.context()
    }

    /// Take the certificates and principals of other settings. Connections of principals that are no longer
    /// known, or have other rights now, are closed.
    ///
    /// # Errors
    /// When a broker would not start with these: then nothing has changed.
    pub fn reload(&self, config: Config) -> Result<(), Error> {
        for warning in preflight::check(&config)? {
            tracing::warn!("{warning}");
        }
        let identity = tls::identity(&config, &self.directory)?;
        let later = live::needs_restart(&self.shared.config, &config);
        let before = self.shared.live();
        let token = self.shared.secrets.owner_token();
        let live = Live::new(config, &token, &identity, Some(&before))?;
        self.shared.live.send_replace(Arc::new(live));
        write_context(&self.shared, &self.directory, &identity)?;
        tracing::info!("certificates and principals were read again");
        if !later.is_empty() {
            tracing::warn!(
                "changed, and only taken at the next start: {}",
                later.join(", ")
            );
        }
        Ok(())
    }

    /// Stop gracefully: answer what is in flight, tell clients, flush, seal and snapshot. Blocks.
    ///
    /// # Errors
    /// When a shard could not be stopped cleanly. What was acknowledged is durable all the same.
    pub fn stop(self) -> Result<(), Error> {
        let Self {
            shared,
            directory,
            http,
            threads,
            control,
        } = self;
        tracing::info!("stopping: what is in flight is answered first");
        let outcome = control.block_on(async {
            shared.enter(Phase::Draining);
            let metrics = &shared.metrics;
            let deadline = Instant::now() + Duration::from_millis(shared.config.limits.drain_ms);
            let busy = || {
                metrics.producers.value()
                    + metrics.subscriptions.value()
                    + metrics.requests_running.value()
            };
            while busy() > 0 && Instant::now() < deadline {
                tokio::time::sleep(DRAIN_LOOK).await;
            }
            shared.enter(Phase::Closing);
            let deadline = Instant::now() + CLOSE;
            while metrics.connections.value() > 0 && Instant::now() < deadline {
                tokio::time::sleep(DRAIN_LOOK).await;
            }
            stop_shards(&shared).await
        });
        if outcome.is_ok() {
            for thread in threads {
                if thread.join().is_err() {
                    return Err(Error::Internal(
                        "a thread panicked: see the lines above".to_owned(),
                    ));
                }
            }
        }
        if let Some(http) = http {
            http.stop();
        }
        drop(directory);
        outcome
    }
}

/// Run a broker until SIGINT or SIGTERM. A second signal ends the process at once: what was
/// acknowledged is durable at any moment. `hangup` says what SIGHUP does. `started` is called once
/// clients can connect, with what stops the broker from within the process.
///
/// # Errors
/// As [`Broker::start`] and [`Broker::stop`].
pub fn run(
    config: Config,
    hangup: &Hangup,
    started: impl FnOnce(&Broker, Stopper),
) -> Result<(), Error> {
    let (mut signals, stopper) = signals::listen(hangup)?;
    let broker = Broker::start(config)?;
    service::notify(service::READY);
    started(&broker, stopper);
    loop {
        match (broker.control.block_on(signals.recv()), hangup) {
            (Some(Said::Stop), _) | (Some(Said::Hangup), Hangup::Stop) => break,
            (Some(Said::Hangup), Hangup::Reload(load)) => {
                let outcome =
                    load().and_then(|config| broker.reload(config).map_err(|e| e.to_string()));
                if let Err(error) = outcome {
                    tracing::error!("nothing was reloaded: {error}");
                }
            }
            (None, _) => return Err(Error::Internal("signals cannot be heard".to_owned())),
        }
    }
    // What fails from here on, fails for the stop.
    signals.close();
    service::notify(service::STOPPING);
    broker.stop()
}

/// Tell clients on this machine how to connect, where the broker's certificate or the right to all is its own
/// making.
fn write_context(shared: &Shared, directory: &Directory, identity: &Identity) -> Result<(), Error> {
    let made = identity.made.as_ref();
    let all = shared.live().authority.grants_all();
    if made.is_none() && !all {
        return Ok(());
    }
    let token = all.then(|| shared.secrets.owner_token());
    tls::write_context(directory, made, token.as_deref(), shared.address)
}

/// What runs components. Before any thread is bound to a core, which its workers would inherit.
fn plugins(components: &Arc<Components>, worker_threads: usize) -> Result<Plugins, Error> {
    let deployments = Deployments::new(Arc::clone(components) as _);
    let workers =
        Workers::start(&deployments, worker_threads).map_err(|error| Error::thread(&error))?;
    Ok(Plugins {
        deployments,
        workers: Arc::new(workers),
    })
}

async fn stop_shards(shared: &Shared) -> Result<(), Error> {
    let calls: Vec<_> = shared
        .shards
        .all()
        .iter()
        .map(|shard| {
            let (to, answer) = oneshot::channel();
            shard.send(Call::Stop, millstream_shard::handle::ReplyTo::Once(to));
            (shard.shard(), answer)
        })
        .collect();
    let mut outcome = Ok(());
    for (shard, answer) in calls {
        match answer.await {
            Ok(Answer::Stopped) => {}
            Ok(Answer::Error(error)) => {
                outcome = Err(Error::Shard {
                    shard: shard.0,
                    why: error.to_string(),
                });
            }
            other => tracing::debug!(?other, "a shard was gone before it was stopped"),
        }
    }
    outcome
}

fn shard_config(shared: &Shared, shard: u16) -> ShardConfig {
    let config = &shared.config;
    let hot_tail_bytes_max = config.memory.hot_tail_bytes / usize::from(shared.meta.shards);
    let log = millstream_log::Config {
        segment_bytes: config.log.segment_bytes,
        first_segment_bytes: config.log.first_segment_bytes(),
        group_bytes_max: config.log.group_bytes_max.unwrap_or_else(|| {
            // Nothing else bounds groups on their way to the disk. A larger batch goes alone.
            let share = (hot_tail_bytes_max / GROUPS_IN_TAIL_MIN).max(GROUP_BYTES_LEAST);
            config.log.group_bytes().min(share)
        }),
        hot_tail_bytes_max,
        read_bytes_max: config.memory.read_bytes / usize::from(shared.meta.shards),
        spares_ready: config.log.spares_ready,
        recycle_max: config.log.recycle_max,
        sync_each_group: config.log.flush == Flush::Each,
        incarnation: uuid::Uuid::new_v4().as_u64_pair().0,
    };
    let mut core = CoreConfig::new(ShardId(shard), shared.meta.shards, log);
    core.limits.batch_bytes = config.log.batch_bytes() as u32;
    core.retention_ms = config.topics.retention_ms;
    core.retention_bytes = config.topics.retention_bytes;
    core.retention_check_ms = config.log.retention_check_ms;
    core.clock_ahead_max_ms = config.log.clock_ahead_max_ms;
    core.snapshot_after_bytes = config.log.snapshot_after_bytes;
    core.sync_interval_ms = config.log.flush_interval_ms;
    core.waiting_max = config.limits.shard_calls_max;
    ShardConfig::new(core)
}

fn say_what_is_unsafe(shared: &Shared) {
    if shared.live().authority.grants_all() {
        tracing::info!(
            "everything is granted to whoever has the token of context.toml: name [[principals]] in the \
             configuration to change that"
        );
    }
    if shared.config.log.flush == Flush::Interval {
        tracing::warn!(
            "log.flush = interval: records are acknowledged before they are durable; a crash of the machine can lose \
             the last {} ms",
            shared.config.log.flush_interval_ms
        );
    }
}
