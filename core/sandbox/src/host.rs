//! The host's side of a component: its imports (logging, parameters) and its memory budget.
//! Deliberately absent: any other capability.

use std::collections::BTreeMap;
use std::sync::Arc;

use thiserror::Error;
use wasmtime::component::{ComponentType, Linker, Lower};
use wasmtime::{ResourceLimiter, Result, StoreContextMut};

use crate::log::{GuestLog, Level, one_line};

/// A deployment's or subscription's parameters, by name.
pub type Parameters = BTreeMap<String, String>;

/// The interfaces that [`link`] defines, for people.
pub(crate) const OFFERED: &str = "wasi:logging/logging@0.1.0-draft, wasi:config/store@0.2.0-rc.1";
/// Their names.
pub(crate) const INTERFACES: [&str; 2] = [
    "wasi:logging/logging@0.1.0-draft",
    "wasi:config/store@0.2.0-rc.1",
];
/// Table elements of one instance: function pointers and the like.
const TABLE_ELEMENTS_MAX: usize = 20_000;

/// Bytes of a component's last words that are kept.
const WORDS_BYTES_MAX: usize = 1 << 10;

/// What belongs to one instance.
#[derive(Debug)]
pub(crate) struct Host {
    log: Arc<GuestLog>,
    parameters: Arc<Parameters>,
    pub(crate) memory: Memory,
    /// What the component logged last as critical: an SDK does so with the message of a panic.
    pub(crate) last_words: Option<String>,
}

/// The memory budget of one instance.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) bytes: usize,
    pub(crate) bytes_max: usize,
}

/// Why an instance was stopped: it would have had `wanted` bytes.
#[derive(Clone, Copy, Debug, Error)]
#[error("{wanted} bytes of memory are over the budget")]
pub(crate) struct OverMemory {
    pub(crate) wanted: usize,
}

impl Host {
    pub(crate) fn new(log: Arc<GuestLog>, parameters: Arc<Parameters>, bytes_max: usize) -> Self {
        Self {
            log,
            parameters,
            memory: Memory {
                bytes: 0,
                bytes_max,
            },
            last_words: None,
        }
    }
}

impl ResourceLimiter for Memory {
    /// Over the budget is a trap here and now: an allocator that is told no would only crash later,
    /// with a worse message.
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> Result<bool> {
        let wanted = self.bytes.saturating_add(desired.saturating_sub(current));
        if wanted > self.bytes_max {
            return Err(OverMemory { wanted }.into());
        }
        self.bytes = wanted;
        Ok(true)
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> Result<bool> {
        Ok(desired <= TABLE_ELEMENTS_MAX)
    }
}

/// `error` of `wasi:config`. Parameters are in memory, so none is ever made.
#[derive(Clone, Debug, ComponentType, Lower)]
#[component(variant)]
enum ConfigError {
    #[component(name = "upstream")]
    #[expect(dead_code, reason = "the interface has it, memory does not fail")]
    Upstream(String),
    #[component(name = "io")]
    #[expect(dead_code, reason = "the interface has it, memory does not fail")]
    Io(String),
}

/// Defines every import that a component may have.
pub(crate) fn link(linker: &mut Linker<Host>) -> Result<()> {
    let [logging, config] = INTERFACES;
    linker.instance(logging)?.func_wrap(
        "log",
        |mut store: StoreContextMut<'_, Host>,
         (level, context, message): (Level, String, String)| {
            let host = store.data_mut();
            host.log.line(level, &context, &message);
            if matches!(level, Level::Critical) {
                host.last_words = Some(one_line(&message, WORDS_BYTES_MAX));
            }
            Ok(())
        },
    )?;
    let mut config = linker.instance(config)?;
    config.func_wrap(
        "get",
        |store: StoreContextMut<'_, Host>, (key,): (String,)| {
            let value = store.data().parameters.get(&key).cloned();
            Ok((Ok::<_, ConfigError>(value),))
        },
    )?;
    config.func_wrap("get-all", |store: StoreContextMut<'_, Host>, (): ()| {
        let all: Vec<(String, String)> = store
            .data()
            .parameters
            .iter()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        Ok((Ok::<_, ConfigError>(all),))
    })
}
