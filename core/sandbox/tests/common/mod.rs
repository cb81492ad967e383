//! What the sandbox's tests share: engines, batches, and components written in WebAssembly text.

#![allow(dead_code, reason = "each test crate uses a part of it")]

mod guest;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use millstream_batch::ids::{Offset, TimestampMs};
use millstream_batch::limits::BATCH_BYTES_MAX;
use millstream_batch::{BatchBuilder, Codec, Encoding, RecordIndex};
use millstream_sandbox::{
    Bitmap, Budget, Component, Context, Engine, EngineConfig, Filter, FilterError, GuestLog,
    Parameters, Stage,
};

pub(crate) use guest::wat_component_text;

pub(crate) const CONTEXT: Context<'static> = Context {
    topic: "orders",
    partition: 3,
    stage: Stage::Produce,
    time: TimestampMs(1_700_000_000_000),
    base_offset: None,
};

/// An engine for a few instances, that keeps nothing.
pub(crate) fn engine() -> Engine {
    engine_with(EngineConfig::default())
}

pub(crate) fn engine_with(config: EngineConfig) -> Engine {
    Engine::new(&EngineConfig {
        instances_max: 8,
        ..config
    })
    .unwrap()
}

/// Room and time enough that only a fault ends a call, however busy the machine is.
pub(crate) fn budget() -> Budget {
    Budget {
        batch_ms_max: 20_000,
        ..Budget::default()
    }
}

/// A component that ships with the broker, or as it was just built if the environment says where.
pub(crate) fn bundled(name: &str) -> Vec<u8> {
    let dist = std::env::var_os("MILLSTREAM_PLUGINS_DIST").map_or_else(
        || {
            let package = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs this");
            Path::new(&package).join("../../plugins/dist")
        },
        PathBuf::from,
    );
    std::fs::read(dist.join(name).with_extension("wasm")).unwrap()
}

pub(crate) fn parameters(pairs: &[(&str, &str)]) -> Parameters {
    pairs
        .iter()
        .map(|(k, v)| ((*k).into(), (*v).into()))
        .collect()
}

pub(crate) fn filter(engine: &Engine, wasm: &[u8], pairs: &[(&str, &str)]) -> Filter {
    filter_with(&engine.compile(wasm).unwrap(), pairs, budget())
}

pub(crate) fn filter_with(
    component: &Arc<Component>,
    pairs: &[(&str, &str)],
    budget: Budget,
) -> Filter {
    Filter::new(component, parameters(pairs), budget, &GuestLog::new("test")).unwrap()
}

/// A batch as the broker holds it when it calls a filter.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) index: RecordIndex,
    pub(crate) raw: Vec<u8>,
}

/// One record: key, value, headers.
pub(crate) type Record<'a> = (
    Option<&'a [u8]>,
    Option<&'a [u8]>,
    &'a [(&'a str, Option<&'a [u8]>)],
);

impl Batch {
    pub(crate) fn of_values<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Self {
        Self::of(values.into_iter().map(|value| (None, Some(value), &[][..])))
    }

    pub(crate) fn of<'a>(records: impl IntoIterator<Item = Record<'a>>) -> Self {
        let mut builder = BatchBuilder::new(Encoding::None, BATCH_BYTES_MAX);
        for (key, value, headers) in records {
            let headers = headers.iter().copied();
            builder
                .append(key, value, headers, 1_700_000_000_000)
                .unwrap();
        }
        let batch = builder.build().unwrap();
        let raw = batch.inflated(&mut Codec::new()).unwrap().to_vec();
        let mut index = RecordIndex::new();
        index.build(batch.header(), &raw).unwrap();
        Self { index, raw }
    }

    pub(crate) fn ask(&self, filter: &mut Filter) -> Result<Bitmap, FilterError> {
        self.ask_as(filter, &CONTEXT)
    }

    pub(crate) fn ask_as(
        &self,
        filter: &mut Filter,
        context: &Context<'_>,
    ) -> Result<Bitmap, FilterError> {
        filter.call(
            context,
            self.index.index(),
            self.index.timestamps(),
            &self.raw,
        )
    }
}

pub(crate) fn subscription(base_offset: u64) -> Context<'static> {
    Context {
        stage: Stage::Subscription,
        base_offset: Some(Offset(base_offset)),
        ..CONTEXT
    }
}

/// A filter in WebAssembly text. `keep` is its body: locals 7 and 8 are the index (address, numbers),
/// 9 and 10 the timestamps, 11 and 12 the raw bytes; it leaves the address of an answer, for which
/// `(call $bitmap …)`, `(call $error)` and 4 KiB of memory from 1024 are there.
pub(crate) fn wat_filter(keep: &str) -> Vec<u8> {
    wat_component("", keep, "", "")
}

pub(crate) fn wat_component(
    start: &str,
    keep: &str,
    imports: &str,
    module_imports: &str,
) -> Vec<u8> {
    let text = wat_component_text(start, keep, imports, module_imports);
    wat::parse_str(&text).unwrap_or_else(|error| panic!("{error}"))
}
