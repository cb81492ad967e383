//! The plug point `filter` in the view world: one warm instance, called once a batch.
//!
//! A batch goes in as three copies (index, timestamps, raw records), whatever its number of records,
//! and a bitmap comes out. After a kill, or past its memory limit, the instance is thrown away and the
//! next call starts another; its state is the component's own business and may vanish.
//!
//! Deliberately absent: counting kills (`deployment`) and deciding what becomes of the batch.

#![allow(
    unsafe_code,
    reason = "a typed function is made without the check that was done when the component was compiled"
)]

use std::sync::Arc;

use millstream_batch::STRIDE;
use millstream_batch::ids::{Offset, TimestampMs};
use wasmtime::component::{ComponentType, Func, Lower, TypedFunc};
use wasmtime::{PoolConcurrencyLimitError, Store, Trap, WasmBacktrace};

use crate::bitmap::Bitmap;
use crate::component::{Component, FilterExports};
use crate::error::{FilterError, StartError};
use crate::host::{Host, OverMemory, Parameters};
use crate::log::{GuestLog, one_line};

/// The exported interface.
pub(crate) const FILTER_VIEW: &str = "millstream:plugin/filter-view@0.1.0";
/// Bytes that one call may hand to the host: the bitmap of the largest batch is 128 KiB, the rest is
/// for an error text or a log line.
const HOSTCALL_BYTES_MAX: usize = 256 << 10;
/// Bytes of an error text that are kept.
const TEXT_BYTES_MAX: usize = 1 << 10;

/// What one deployment lets each instance use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Linear memory, in bytes. A batch is copied into it, so it must exceed the largest one.
    pub memory_bytes_max: usize,
    /// Time for one batch, in milliseconds.
    pub batch_ms_max: u32,
    /// An instance that has grown past this is replaced after the call, in bytes.
    pub warm_bytes_max: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            memory_bytes_max: 64 << 20,
            batch_ms_max: 100,
            warm_bytes_max: 8 << 20,
        }
    }
}

/// Where in a record's life a component runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ComponentType, Lower)]
#[component(enum)]
#[repr(u8)]
pub enum Stage {
    /// Before the batch is written.
    #[component(name = "produce")]
    Produce,
    /// On the way to one subscription.
    #[component(name = "subscription")]
    Subscription,
}

/// What a component may know about a batch.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Name of the topic.
    pub topic: &'a str,
    /// Partition of the topic.
    pub partition: u32,
    /// Where this call happens.
    pub stage: Stage,
    /// The batch's append time.
    pub time: TimestampMs,
    /// Offset of its first record, once it has one.
    pub base_offset: Option<Offset>,
}

/// `context` in `wit/types.wit`.
#[derive(Clone, Copy, Debug, ComponentType, Lower)]
#[component(record)]
pub(crate) struct WireContext<'a> {
    topic: &'a str,
    partition: u32,
    stage: Stage,
    time: i64,
    #[component(name = "base-offset")]
    base_offset: Option<u64>,
}

/// `batch-view` in `wit/types.wit`.
#[derive(Clone, Copy, Debug, ComponentType, Lower)]
#[component(record)]
pub(crate) struct WireBatch<'a> {
    index: &'a [u32],
    timestamps: &'a [i64],
    raw: &'a [u8],
}

pub(crate) type StartResult = Result<(), String>;
pub(crate) type KeepParams<'a> = (WireContext<'a>, WireBatch<'a>);
pub(crate) type KeepResult = Result<Vec<u8>, String>;

/// One component with its parameters, ready to judge batches. Belongs to one thread at a time.
#[derive(Debug)]
pub struct Filter {
    component: Arc<Component>,
    parameters: Arc<Parameters>,
    budget: Budget,
    log: Arc<GuestLog>,
    instance: Option<Instance>,
    instances_made: u64,
    kills: u64,
}

#[derive(Debug)]
struct Instance {
    store: Store<Host>,
    keep: Func,
}

impl Filter {
    /// Starts an instance, which reads its parameters and may refuse them.
    pub fn new(
        component: &Arc<Component>,
        parameters: Parameters,
        budget: Budget,
        log: &Arc<GuestLog>,
    ) -> Result<Self, StartError> {
        let memory_bytes_max = budget
            .memory_bytes_max
            .min(component.engine.memory_bytes_max());
        let mut filter = Self {
            component: Arc::clone(component),
            parameters: Arc::new(parameters),
            budget: Budget {
                memory_bytes_max,
                ..budget
            },
            log: Arc::clone(log),
            instance: None,
            instances_made: 0,
            kills: 0,
        };
        filter.instance = Some(filter.start()?);
        Ok(filter)
    }

    /// Asks which records of a batch to keep. `index` and `timestamps` are those of a
    /// [`RecordIndex`](millstream_batch::RecordIndex) over `raw`, the inflated records section; other
    /// lengths are our bug.
    pub fn call(
        &mut self,
        context: &Context<'_>,
        index: &[u32],
        timestamps: &[i64],
        raw: &[u8],
    ) -> Result<Bitmap, FilterError> {
        let records = timestamps.len();
        assert_eq!(
            index.len(),
            records * STRIDE,
            "an index has {STRIDE} numbers a record"
        );
        let mut instance = match self.instance.take() {
            Some(instance) => instance,
            None => self.start()?,
        };
        let params = (
            WireContext {
                topic: context.topic,
                partition: context.partition,
                stage: context.stage,
                time: context.time.0,
                base_offset: context.base_offset.map(|offset| offset.0),
            },
            WireBatch {
                index,
                timestamps,
                raw,
            },
        );
        // SAFETY: `filter_exports` checked this export against exactly these types before the
        // component could be instantiated, and `keep` is that export of such an instance.
        let keep =
            unsafe { TypedFunc::<KeepParams<'_>, (KeepResult,)>::new_unchecked(instance.keep) };
        instance.store.data_mut().last_words = None;
        instance.store.set_epoch_deadline(self.ticks());
        let ticking = self.component.engine.ticker().during_call();
        let answer = keep.call(&mut instance.store, params);
        drop(ticking);
        match answer {
            Err(error) => {
                self.kills += 1;
                Err(self.killed(&error, instance.store.data()))
            }
            Ok((Err(text),)) => {
                self.keep_warm(instance);
                Err(FilterError::Refused(cut(&text)))
            }
            Ok((Ok(bytes),)) => match Bitmap::parse(bytes, records) {
                Ok(bitmap) => {
                    self.keep_warm(instance);
                    Ok(bitmap)
                }
                Err(why) => {
                    self.kills += 1;
                    Err(FilterError::BadAnswer(why))
                }
            },
        }
    }

    /// Linear memory that the warm instance holds now, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let host = self.instance.as_ref().map(|instance| instance.store.data());
        host.map_or(0, |host| host.memory.bytes)
    }

    /// Instances made so far: one, and one more for each that was thrown away and needed again.
    #[must_use]
    pub fn instances_made(&self) -> u64 {
        self.instances_made
    }

    /// Instances that were killed in a call, for what they did.
    #[must_use]
    pub fn kills(&self) -> u64 {
        self.kills
    }

    fn start(&mut self) -> Result<Instance, StartError> {
        let Some(exports) = &self.component.filter else {
            return Err(StartError::NotOffered {
                plug_point: "filter",
                offered: format!("{:?}", self.component.plug_points()),
            });
        };
        let instance = self.instantiate(exports)?;
        self.instances_made += 1;
        Ok(instance)
    }

    fn instantiate(&self, exports: &FilterExports) -> Result<Instance, StartError> {
        let engine = &self.component.engine;
        let host = Host::new(
            Arc::clone(&self.log),
            Arc::clone(&self.parameters),
            self.budget.memory_bytes_max,
        );
        let mut store = Store::new(engine.wasm(), host);
        store.limiter(|host| &mut host.memory);
        store.set_hostcall_fuel(HOSTCALL_BYTES_MAX);
        store.set_epoch_deadline(self.ticks());
        let _ticking = engine.ticker().during_call();
        let started = self
            .component
            .pre
            .instantiate(&mut store)
            .and_then(|instance| {
                let start =
                    instance.get_typed_func::<(), (StartResult,)>(&mut store, exports.start)?;
                let (answer,) = start.call(&mut store, ())?;
                Ok((instance, answer))
            });
        let instance = match started {
            Ok((instance, Ok(()))) => instance,
            Ok((_, Err(text))) => return Err(StartError::Refused(cut(&text))),
            Err(error) => return Err(self.not_started(&error, store.data())),
        };
        let keep = instance
            .get_func(&mut store, exports.keep)
            .expect("the export was found when the component was compiled");
        Ok(Instance { store, keep })
    }

    fn keep_warm(&mut self, instance: Instance) {
        if instance.store.data().memory.bytes <= self.budget.warm_bytes_max {
            self.instance = Some(instance);
        }
    }

    /// The budget in ticks. The first one may come at once, hence one more.
    fn ticks(&self) -> u64 {
        u64::from(self.budget.batch_ms_max) + 1
    }

    fn killed(&self, error: &wasmtime::Error, host: &Host) -> FilterError {
        if let Some(OverMemory { wanted }) = error.downcast_ref() {
            return FilterError::OverMemory {
                wanted: *wanted,
                bytes_max: self.budget.memory_bytes_max,
            };
        }
        match error.downcast_ref::<Trap>() {
            Some(Trap::Interrupt) => FilterError::OutOfTime {
                ms_max: self.budget.batch_ms_max,
            },
            None if error.downcast_ref::<WasmBacktrace>().is_none() => {
                // It ended outside the component's code: the answer broke the canonical ABI.
                FilterError::BadAnswer(cut(&format!("{error:#}")))
            }
            trap => FilterError::Trap(match (&host.last_words, trap) {
                (Some(words), _) => words.clone(),
                (None, Some(trap)) => format!("{trap}{}", place(error)),
                (None, None) => cut(&format!("{error:#}")),
            }),
        }
    }

    fn not_started(&self, error: &wasmtime::Error, host: &Host) -> StartError {
        if error.is::<PoolConcurrencyLimitError>() {
            return StartError::NoRoom(format!("{error:#}"));
        }
        match self.killed(error, host) {
            FilterError::OverMemory { bytes_max, .. } => StartError::OverMemory { bytes_max },
            FilterError::OutOfTime { ms_max } => StartError::OutOfTime { ms_max },
            FilterError::Trap(text) => StartError::Trap(text),
            _ => StartError::Trap(cut(&format!("{error:#}"))),
        }
    }
}

/// Where in the component's code a trap came from, as far as it has names.
fn place(error: &wasmtime::Error) -> String {
    let backtrace = error.downcast_ref::<WasmBacktrace>();
    let names: Vec<&str> = backtrace
        .into_iter()
        .flat_map(WasmBacktrace::frames)
        .filter_map(wasmtime::FrameInfo::func_name)
        .take(3)
        .collect();
    if names.is_empty() {
        return String::new();
    }
    format!(" in {}", cut(&names.join(", called by ")))
}

/// Bounds a text that a component had a hand in.
fn cut(text: &str) -> String {
    one_line(text, TEXT_BYTES_MAX)
}

const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<Filter>();
};
