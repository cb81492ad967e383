//! One thread of the broker: its shards, its endpoint, its sessions, on one tokio runtime.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use millstream_batch::ids::TopicId;
use millstream_machine::topics::TopicMeta;
use millstream_protocol::messages;
use millstream_shard::driver::{self, FilterHost, ShardConfig};
use millstream_shard::handle::Message;
use quinn::{Endpoint, VarInt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, LocalSet};

use crate::broker::{Phase, Shared};
use crate::catalog::{self, Catalog};
use crate::config::Storage;
use crate::endpoint::{self, Socket};
use crate::{Error, session, sys};

/// How long a closed endpoint waits for its last packets to be sent.
const GOODBYE: Duration = Duration::from_millis(500);

/// What one thread is started with.
pub(crate) struct Start {
    pub(crate) index: usize,
    /// The core to be bound to.
    pub(crate) core: Option<usize>,
    pub(crate) shards: Vec<ShardStart>,
    /// Threads without a socket only drive shards.
    pub(crate) socket: Option<Socket>,
    pub(crate) shared: Arc<Shared>,
    /// Hears of the end of the start: recovered and listening, or why not.
    pub(crate) ready: oneshot::Sender<Result<(), Error>>,
}

pub(crate) struct ShardStart {
    pub(crate) config: ShardConfig,
    pub(crate) path: std::path::PathBuf,
    pub(crate) inbox: mpsc::UnboundedReceiver<Message>,
    /// Log files that it may keep open.
    pub(crate) files_max: usize,
}

/// What the tasks of one thread share.
#[derive(Debug)]
pub(crate) struct Thread {
    pub(crate) shared: Arc<Shared>,
    pub(crate) catalog: Catalog,
    /// The subscribe stage; the shards' drivers have their own for the produce stage.
    pub(crate) filters: RefCell<FilterHost>,
}

impl Thread {
    /// A topic changed at the catalogue's shard, which tells the others: wait until they know. Whoever asked for
    /// it sees it from now on, on this thread; the others hear of it from their shards.
    pub(crate) async fn spread(&self, meta: &TopicMeta) -> Result<(), messages::Error> {
        catalog::spread(&self.shared.shards, meta.revision).await?;
        self.catalog.learn(meta);
        Ok(())
    }

    /// A topic is gone as of this revision: as [`spread`](Self::spread).
    pub(crate) async fn forget(&self, id: TopicId, revision: u64) -> Result<(), messages::Error> {
        catalog::spread(&self.shared.shards, revision).await?;
        self.catalog.forget(id);
        Ok(())
    }
}

/// Run until the broker stops. On its own system thread.
pub(crate) fn run(start: Start) {
    if let Some(core) = start.core
        && let Err(error) = sys::pin_thread(core)
    {
        tracing::info!(%error, core, "the thread is not bound to a core");
    }
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            let error = Error::Internal(format!("no runtime for thread {}: {error}", start.index));
            drop(start.ready.send(Err(error))); // who started us is gone: nothing to do
            return;
        }
    };
    let local = LocalSet::new();
    local.block_on(&runtime, serve(start));
}

async fn serve(start: Start) {
    let Start {
        index,
        shards,
        socket,
        shared,
        ready,
        ..
    } = start;
    let first = shards.first().map(|shard| shard.config.core.shard);
    let drivers = match open_shards(&shared, shards).await {
        Ok(drivers) => drivers,
        Err(error) => return drop(ready.send(Err(error))),
    };
    let endpoint = match socket
        .map(|socket| endpoint::open(socket, index, &shared))
        .transpose()
    {
        Ok(endpoint) => endpoint,
        Err(error) => return drop(ready.send(Err(error))),
    };
    let Some(first) = first else {
        return drop(ready.send(Ok(())));
    };
    drop(ready.send(Ok(()))); // who started us is gone only when the process ends
    if let Some(endpoint) = endpoint {
        let thread = Rc::new(Thread {
            catalog: Catalog::new(shared.shards.shard(first).clone()),
            filters: RefCell::new(FilterHost::new(
                Arc::clone(&shared.plugins.deployments),
                Arc::clone(&shared.metrics.subscribe_filters),
            )),
            shared: Arc::clone(&shared),
        });
        accept(&thread, &endpoint).await;
    }
    // The shards end when the broker has stopped them.
    for driver in drivers {
        if let Err(error) = driver.await {
            tracing::error!(%error, "a shard ended badly");
        }
    }
}

/// Open all shards of this thread and wait until they have recovered.
async fn open_shards(
    shared: &Shared,
    shards: Vec<ShardStart>,
) -> Result<Vec<JoinHandle<()>>, Error> {
    let preference = match shared.config.log.storage {
        Storage::Auto => millstream_uring::Preference::Auto,
        Storage::Ring => millstream_uring::Preference::Ring,
        Storage::Portable => millstream_uring::Preference::Portable,
    };
    let mut drivers = Vec::new();
    let mut recoveries = Vec::new();
    for ShardStart {
        config,
        path,
        inbox,
        files_max,
    } in shards
    {
        let shard = config.core.shard.0;
        // As much as the log keeps, and a little for what is under way.
        let read_bytes = config.core.log.read_bytes_max / 2;
        let storage = millstream_uring::open(&path, preference, read_bytes, files_max)
            .map_err(|source| Error::directory(&path, "open", &source))?;
        let (to, recovered) = oneshot::channel();
        let plugins = shared.plugins.clone();
        let driver = driver::run(config, storage, inbox, driver::system_clock(), plugins, to);
        drivers.push(tokio::task::spawn_local(driver));
        recoveries.push((shard, recovered));
    }
    for (shard, recovered) in recoveries {
        let why = "recovery ended without a result: see the lines above".to_owned();
        recovered.await.map_err(|_| Error::Shard { shard, why })?;
    }
    Ok(drivers)
}

/// Take connections until the broker stops; then end them.
async fn accept(thread: &Rc<Thread>, endpoint: &Endpoint) {
    let shared = &thread.shared;
    let mut phase = shared.phase_watch();
    // Recovered everywhere and settled, before the first client.
    if phase
        .wait_for(|phase| *phase != Phase::Starting)
        .await
        .is_err()
    {
        return;
    }
    if let Err(error) = thread.catalog.load().await {
        tracing::error!(error = error.message, "the catalog cannot be read");
    }
    let watching = {
        let thread = Rc::clone(thread);
        tokio::task::spawn_local(async move { thread.catalog.watch().await })
    };
    let mut live = shared.live_watch();
    loop {
        tokio::select! {
            Ok(()) = live.changed() => {
                let server = live.borrow_and_update().server.clone();
                endpoint.set_server_config(Some(server));
            }
            incoming = endpoint.accept() => {
                let Some(incoming) = incoming else { break };
                if let Some(admitted) = endpoint::admit(shared, incoming) {
                    tokio::task::spawn_local(session::serve(Rc::clone(thread), admitted));
                }
            }
            _ = phase.wait_for(|phase| *phase != Phase::Serving) => break,
        }
    }
    endpoint.set_server_config(None);
    // Streams see the phase themselves and end; their connections are closed when all are through, or
    // when the time for that is over.
    let closed = phase
        .wait_for(|phase| *phase == Phase::Closing)
        .await
        .is_err();
    tracing::debug!(closed, "closing connections");
    let code = millstream_protocol::Code::Stopping;
    endpoint.close(VarInt::from_u32(code.number()), b"the broker is stopping");
    drop(tokio::time::timeout(GOODBYE, endpoint.wait_idle()).await); // what is not told by then is not told
    watching.abort();
}
