//! Components on this broker: stored by their SHA-256, compiled off the shards' threads, handed to
//! every thread's filters.
//!
//! A component is written and synced before any fact names it. Absent: deployments (facts of the
//! catalog) and running filters (`millstream_shard::driver::FilterHost`).

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use bytes::Bytes;
use millstream_batch::limits::COMPONENT_BYTES_MAX;
use millstream_machine::topics::FilterBinding;
use millstream_protocol::{Code, messages};
use millstream_sandbox::{
    Component, Digest, Engine, EngineConfig, Parameters, Placement, StartError,
};
use millstream_shard::driver::{ComponentSource, Lookup, deployment};
use rustc_hash::{FxHashMap, FxHashSet};
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;

use crate::bundled;
use crate::directory::write_file;

/// Instances that the pool has room for at least, and at most: each reserves address space.
const POOL_MIN: u32 = 256;
const POOL_MAX: u32 = 1_024;
/// Room of the pool that no host has: for starting deployments once.
const POOL_SPARE: u32 = 16;
/// What every host should be able to hold.
const HOST_INSTANCES: u32 = 16;

/// The store. One a broker, shared by all threads.
#[derive(Debug)]
pub(crate) struct Components {
    path: PathBuf,
    store_bytes_max: u64,
    /// Hosts that run filters: one a shard for produce, one a thread for subscriptions, one a worker.
    hosts: u32,
    /// Held from before a component is stored until the fact that names it is there, so that nothing
    /// takes the component for one that no topic names.
    pub(crate) deploying: tokio::sync::Mutex<()>,
    /// Started with the first component: brokers without components pay nothing.
    engine: OnceLock<Result<Engine, String>>,
    known: Mutex<FxHashMap<[u8; 32], Lookup>>,
    me: Weak<Components>,
}

impl Components {
    pub(crate) fn new(path: PathBuf, store_bytes_max: u64, hosts: usize) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            path,
            store_bytes_max,
            hosts: u32::try_from(hosts).unwrap_or(POOL_MAX).max(1),
            deploying: tokio::sync::Mutex::default(),
            engine: OnceLock::new(),
            known: Mutex::default(),
            me: me.clone(),
        })
    }

    /// Compile and store what was uploaded. Its digest.
    pub(crate) async fn add(self: &Arc<Self>, wasm: Bytes) -> Result<[u8; 32], messages::Error> {
        if wasm.len() > COMPONENT_BYTES_MAX {
            return Err(Code::BadComponent.error(format!(
                "{} bytes are over {COMPONENT_BYTES_MAX}",
                wasm.len()
            )));
        }
        let me = Arc::clone(self);
        blocking(move || {
            let digest: [u8; 32] = Sha256::digest(&wasm).into();
            if matches!(me.lookup(&digest), Some(Lookup::Ready(_))) && me.file(&digest).exists() {
                return Ok(digest);
            }
            let component = me.compile(&wasm)?;
            me.store(&digest, &wasm)?;
            me.remember(digest, Lookup::Ready(component));
            Ok(digest)
        })
        .await
    }

    /// Make sure that a component which a topic names can run. What it lacks is remembered.
    pub(crate) async fn load(self: &Arc<Self>, digest: [u8; 32]) -> Result<(), messages::Error> {
        self.loaded(digest, true).await
    }

    /// Make sure that a component which a client names can run. That it cannot is forgotten: clients
    /// can name as many as they like.
    pub(crate) async fn find(self: &Arc<Self>, digest: [u8; 32]) -> Result<(), messages::Error> {
        self.loaded(digest, false).await
    }

    /// Delete components that no topic names. Under [`deploying`](Self::deploying), with what the
    /// topics name since it is held.
    pub(crate) async fn sweep(self: &Arc<Self>, named: FxHashSet<[u8; 32]>) {
        let me = Arc::clone(self);
        let swept = blocking(move || {
            me.known().retain(|digest, _| named.contains(digest));
            let files = std::fs::read_dir(&me.path).into_iter().flatten().flatten();
            for file in files {
                let name = file.file_name();
                let unnamed = name
                    .to_str()
                    .and_then(|name| name.strip_suffix(".wasm"))
                    .is_some_and(|name| !named.iter().any(|digest| hex(digest) == name));
                if !unnamed {
                    continue;
                }
                match std::fs::remove_file(file.path()) {
                    Ok(()) => {
                        tracing::info!(?name, "a component that no topic names is deleted");
                    }
                    Err(error) => {
                        tracing::warn!(?name, %error, "a component that no topic names stays");
                    }
                }
            }
            Ok(())
        });
        if let Err(error) = swept.await {
            tracing::error!(
                error = error.message,
                "looking for components that no topic names ended badly"
            );
        }
    }

    /// Delete compiled code of components that no topic names. Under [`deploying`](Self::deploying), once
    /// those that topics name are loaded.
    pub(crate) async fn sweep_compiled(self: &Arc<Self>, named: FxHashSet<[u8; 32]>) {
        let me = Arc::clone(self);
        let swept = blocking(move || {
            let named: Vec<Digest> = named.into_iter().map(Digest::from).collect();
            Ok(match me.engine.get() {
                Some(Ok(engine)) => engine.sweep_cache(&named),
                None if named.is_empty() => Engine::clear_cache(&me.compiled()),
                _ => Ok(0),
            })
        });
        match swept.await {
            Ok(Ok(0)) => {}
            Ok(Ok(files)) => tracing::info!(files, "compiled code that no topic needs is deleted"),
            Ok(Err(error)) => {
                tracing::warn!(%error, "compiled code that no topic needs stays for now");
            }
            Err(error) => {
                tracing::error!(
                    error = error.message,
                    "looking for compiled code that no topic needs ended badly"
                );
            }
        }
    }

    async fn loaded(
        self: &Arc<Self>,
        digest: [u8; 32],
        remember: bool,
    ) -> Result<(), messages::Error> {
        let me = Arc::clone(self);
        blocking(move || match me.load_now(&digest, remember) {
            Lookup::Ready(_) | Lookup::Loading => Ok(()),
            Lookup::Lost(why) => Err(Code::UnknownFilter.error(why)),
        })
        .await
    }

    /// Start a deployment once, as its topic would or a subscription with parameters of its own, and throw
    /// the instance away: what does not start is refused before it is a fact, or filters anything.
    pub(crate) async fn try_start(
        self: &Arc<Self>,
        binding: FilterBinding,
        own: Parameters,
    ) -> Result<(), messages::Error> {
        let me = Arc::clone(self);
        blocking(move || {
            let Some(Lookup::Ready(component)) = me.lookup(&binding.digest) else {
                return Err(
                    Code::UnknownFilter.error("the component is not loaded: deploy it again")
                );
            };
            let said = |code: Code, error: StartError| {
                Err(code.error(format!("filter `{}`: {error}", binding.name)))
            };
            match deployment(&binding, component, Placement::Shard).filter(&own) {
                Ok(_) => Ok(()),
                Err(error @ StartError::NoRoom(_)) => said(Code::Busy, error),
                Err(error) => said(Code::BadConfig, error),
            }
        })
        .await
    }

    /// What operators see of a component: `running`, `loading`, or why it is lost.
    pub(crate) fn state(&self, digest: &[u8; 32]) -> String {
        match self.lookup(digest) {
            Some(Lookup::Ready(_)) => "running".to_owned(),
            Some(Lookup::Loading) | None => "loading".to_owned(),
            Some(Lookup::Lost(why)) => format!("lost: {why}"),
        }
    }

    fn lookup(&self, digest: &[u8; 32]) -> Option<Lookup> {
        self.known().get(digest).cloned()
    }

    fn remember(&self, digest: [u8; 32], lookup: Lookup) {
        self.known().insert(digest, lookup);
    }

    fn known(&self) -> std::sync::MutexGuard<'_, FxHashMap<[u8; 32], Lookup>> {
        // Nothing panics while it holds the lock; if it did, the map would still be whole.
        self.known
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn load_now(&self, digest: &[u8; 32], remember: bool) -> Lookup {
        if let Some(ready @ Lookup::Ready(_)) = self.lookup(digest) {
            return ready;
        }
        let file = self.file(digest);
        let read = match bundled::by_digest(digest) {
            Some(wasm) => Ok(wasm.to_vec()),
            None => std::fs::read(&file),
        };
        let lookup = match read {
            Err(error) => {
                Lookup::Lost(format!("component {} cannot be read: {error}", hex(digest)))
            }
            Ok(wasm) if <[u8; 32]>::from(Sha256::digest(&wasm)) != *digest => Lookup::Lost(
                format!("{} is damaged: deploy the component again", file.display()),
            ),
            Ok(wasm) => match self.compile(&wasm) {
                Ok(component) => Lookup::Ready(component),
                Err(error) => Lookup::Lost(error.message),
            },
        };
        if !remember && matches!(lookup, Lookup::Lost(_)) {
            return lookup;
        }
        if let Lookup::Lost(why) = &lookup {
            tracing::error!("{why}; deployments that use it fail closed");
        }
        self.remember(*digest, lookup.clone());
        lookup
    }

    fn compile(&self, wasm: &[u8]) -> Result<Arc<Component>, messages::Error> {
        let engine = self.engine.get_or_init(|| {
            let config = EngineConfig {
                cache_dir: Some(self.compiled()),
                instances_max: self.pool(),
                ..EngineConfig::default()
            };
            Engine::new(&config).map_err(|error| error.to_string())
        });
        let engine = engine
            .as_ref()
            .map_err(|why| Code::Internal.error(why.clone()))?;
        engine.compile(wasm).map_err(|error| {
            Code::BadComponent.error(format!("the component is not usable: {error}"))
        })
    }

    fn store(&self, digest: &[u8; 32], wasm: &[u8]) -> Result<(), messages::Error> {
        let stored: u64 = std::fs::read_dir(&self.path)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.metadata().ok())
            .filter(std::fs::Metadata::is_file)
            .map(|metadata| metadata.len())
            .sum();
        if stored + wasm.len() as u64 > self.store_bytes_max {
            let message = format!(
                "{stored} bytes of components are stored, of at most {}",
                self.store_bytes_max
            );
            return Err(Code::StateFull.error(message));
        }
        write_file(&self.file(digest), wasm, 0o644).map_err(|error| match error.kind() {
            std::io::ErrorKind::StorageFull => Code::DiskFull.error("no room for the component"),
            _ => Code::Internal.error(format!("the component cannot be stored: {error}")),
        })
    }

    fn pool(&self) -> u32 {
        let wanted = self.hosts.saturating_mul(HOST_INSTANCES) + POOL_SPARE;
        wanted
            .clamp(POOL_MIN, POOL_MAX)
            .max(self.hosts + POOL_SPARE)
    }

    fn compiled(&self) -> PathBuf {
        self.path.join("compiled")
    }

    fn file(&self, digest: &[u8; 32]) -> PathBuf {
        self.path.join(format!("{}.wasm", hex(digest)))
    }
}

impl ComponentSource for Components {
    fn share(&self) -> usize {
        ((self.pool() - POOL_SPARE) / self.hosts) as usize
    }

    fn component(&self, digest: &[u8; 32]) -> Lookup {
        if let Some(lookup) = self.lookup(digest) {
            return lookup;
        }
        self.remember(*digest, Lookup::Loading);
        if let Some(me) = self.me.upgrade() {
            let digest = *digest;
            let load = std::thread::Builder::new()
                .name("component".to_owned())
                .spawn(move || me.load_now(&digest, true));
            if let Err(error) = load {
                // Not lost: whoever asks again tries again.
                tracing::warn!(%error, "no thread to compile a component on");
                self.known().remove(&digest);
            }
        }
        Lookup::Loading
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, messages::Error> + Send + 'static,
) -> Result<T, messages::Error> {
    // A thread that cannot be had is an answer: the runtime's own pool panics then.
    let (to, done) = oneshot::channel();
    std::thread::Builder::new()
        .name("component".to_owned())
        .spawn(move || drop(to.send(work()))) // whoever asked may be gone
        .map_err(|error| {
            Code::Busy.error(format!(
                "the broker can start no thread for this ({error}): raise its limit of threads, or try again"
            ))
        })?;
    done.await.unwrap_or_else(|_| {
        Err(Code::Internal.error("a component's work ended badly: see the broker's log"))
    })
}

fn hex(digest: &[u8; 32]) -> String {
    digest
        .iter()
        .fold(String::with_capacity(64), |mut text, byte| {
            let _infallible = write!(text, "{byte:02x}");
            text
        })
}
