//! One engine a process: the compiler, the pool of instances, the ticker and the cache.
//! Deliberately absent: anything about one component (`component`) or one instance (`filter`).

use std::path::PathBuf;
use std::sync::Arc;

use millstream_batch::limits::COMPONENT_BYTES_MAX;
use tracing::warn;
use wasmtime::component::Linker;
use wasmtime::{Config, Enabled, InstanceAllocationStrategy, PoolingAllocationConfig};

use crate::cache::{self, Cache};
use crate::component::{Component, Digest, Origin};
use crate::error::{CompileError, EngineError};
use crate::host::{self, Host};
use crate::ticker::Ticker;

/// Settings of the engine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Where compiled code is kept between starts, with the key that signs it. None: nowhere.
    pub cache_dir: Option<PathBuf>,
    /// Component instances alive at once, over all shards, deployments and subscriptions. Each
    /// reserves 4 GiB of address space, and memory only for what it uses.
    pub instances_max: u32,
    /// Most memory that a deployment's budget can give to one instance, in bytes.
    pub instance_memory_bytes_max: usize,
    /// Memory that a freed slot of the pool keeps, so that the next instance in it does not fault
    /// its pages in again, in bytes.
    pub slot_resident_bytes_max: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            cache_dir: None,
            instances_max: 256,
            instance_memory_bytes_max: 256 << 20,
            slot_resident_bytes_max: 512 << 10,
        }
    }
}

/// Core instances that one component may consist of, on average: `wit-component` makes one for the
/// program, and two small ones for its imports.
const CORE_INSTANCES_PER_COMPONENT: u32 = 4;

/// Compiles components and holds what their instances share. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    ticker: Ticker,
    linker: Linker<Host>,
    cache: Option<Cache>,
    wasm: wasmtime::Engine,
    memory_bytes_max: usize,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("cache", &self.shared.cache)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Starts the engine and its ticker thread. A cache that cannot be used is logged and left out.
    pub fn new(config: &EngineConfig) -> Result<Self, EngineError> {
        let started = |error: wasmtime::Error| EngineError::Start(format!("{error:#}"));
        let wasm = wasmtime::Engine::new(&wasmtime_config(config)).map_err(started)?;
        let mut linker = Linker::new(&wasm);
        host::link(&mut linker).map_err(started)?;
        let cache = config.cache_dir.as_deref().and_then(|dir| {
            Cache::open(dir)
                .inspect_err(|error| {
                    warn!(dir = %dir.display(), %error, "compiled components are not kept: every start compiles them again");
                })
                .ok()
        });
        Ok(Self {
            shared: Arc::new(Shared {
                ticker: Ticker::start(&wasm)?,
                linker,
                cache,
                wasm,
                memory_bytes_max: config.instance_memory_bytes_max,
            }),
        })
    }

    /// Checks and compiles a component, or loads it as compiled earlier. Nothing of the component runs.
    ///
    /// Takes up to seconds of all processors, so never call it on a shard's thread; and the first call
    /// starts the compiler's own threads, which inherit the caller's processor affinity and niceness.
    pub fn compile(&self, wasm: &[u8]) -> Result<Arc<Component>, CompileError> {
        if wasm.len() > COMPONENT_BYTES_MAX {
            return Err(CompileError::TooLarge {
                bytes: wasm.len(),
                bytes_max: COMPONENT_BYTES_MAX,
            });
        }
        let engine = &self.shared.wasm;
        let digest = Digest::of(wasm);
        let cache = self.shared.cache.as_ref();
        if let Some(compiled) = cache.and_then(|cache| cache.load(engine, &digest)) {
            return Component::check(self, &compiled, digest, Origin::Cache).map(Arc::new);
        }
        require_component(wasm)?;
        let compiled = wasmtime::component::Component::from_binary(engine, wasm)
            .map_err(|error| CompileError::Malformed(format!("{error:#}")))?;
        let component = Component::check(self, &compiled, digest, Origin::Compiler)?;
        if let Some(cache) = cache {
            match compiled.serialize() {
                Ok(code) => cache.store(engine, &digest, &code),
                Err(error) => warn!(%error, "a compiled component could not be serialized"),
            }
        }
        Ok(Arc::new(component))
    }

    /// Removes compiled code that is kept of other components than `named`. Call it while nothing is
    /// compiled: what is being written goes too. How many files.
    ///
    /// # Errors
    /// The directory could not be read, or a file in it not removed.
    pub fn sweep_cache(&self, named: &[Digest]) -> std::io::Result<usize> {
        let cache = self.shared.cache.as_ref();
        cache.map_or(Ok(0), |cache| cache.sweep(self.wasm(), named))
    }

    /// Removes all compiled code in a cache's directory, without an engine: when no component is named.
    ///
    /// # Errors
    /// The directory could not be read, or a file in it not removed.
    pub fn clear_cache(dir: &std::path::Path) -> std::io::Result<usize> {
        cache::clear(dir)
    }

    pub(crate) fn wasm(&self) -> &wasmtime::Engine {
        &self.shared.wasm
    }

    pub(crate) fn linker(&self) -> &Linker<Host> {
        &self.shared.linker
    }

    pub(crate) fn ticker(&self) -> &Ticker {
        &self.shared.ticker
    }

    pub(crate) fn memory_bytes_max(&self) -> usize {
        self.shared.memory_bytes_max
    }
}

fn wasmtime_config(config: &EngineConfig) -> Config {
    let core_instances = config
        .instances_max
        .saturating_mul(CORE_INSTANCES_PER_COMPONENT);
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(config.instances_max)
        .total_core_instances(core_instances)
        .total_memories(config.instances_max)
        .total_tables(core_instances)
        .max_memory_size(config.instance_memory_bytes_max)
        .linear_memory_keep_resident(config.slot_resident_bytes_max)
        .table_keep_resident(4 << 10)
        .pagemap_scan(Enabled::Auto);
    let mut wasm = Config::new();
    wasm.allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
        .memory_init_cow(true)
        .epoch_interruption(true)
        // The same answer on every processor, so that a replay is a replay.
        .cranelift_nan_canonicalization(true)
        .wasm_relaxed_simd(false);
    wasm
}

/// Tells the common mistakes apart before the compiler's wording does.
fn require_component(wasm: &[u8]) -> Result<(), CompileError> {
    const MAGIC: [u8; 4] = *b"\0asm";
    const MODULE: [u8; 4] = [1, 0, 0, 0];
    match wasm.split_first_chunk::<4>() {
        Some((&MAGIC, rest)) if rest.starts_with(&MODULE) => Err(CompileError::CoreModule),
        Some((&MAGIC, _)) => Ok(()),
        _ => Err(CompileError::Malformed(
            "it does not begin with the WebAssembly magic number".into(),
        )),
    }
}
