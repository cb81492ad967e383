//! `core/sandbox`: one call of the bundled key-filter, as a shard makes it.
//!
//! The engine is the product's but for the number of its instances: each reserves 4 GiB of address
//! space, and valgrind has less to give than a process. The filter is called without its deployment,
//! whose accounts go by the clock. Absent: the view and what is kept (the batch crate's rows).

use std::hint::black_box;

use millstream_batch::ids::TimestampMs;
use millstream_batch::{Codec, OpenBatch, RecordIndex};
use millstream_sandbox::{
    Budget, Context, Engine, EngineConfig, Filter, GuestLog, Parameters, Stage,
};

use super::Work;
use crate::fixture::{self, TIMESTAMP};

const BUNDLED: &str = "plugins/dist/key-filter.wasm";

pub(crate) fn call() -> Work {
    calling(100, 33)
}

pub(crate) fn call_small() -> Work {
    calling(1, 0)
}

fn calling(records: usize, kept: usize) -> Work {
    let engine = Engine::new(&EngineConfig {
        cache_dir: None,
        instances_max: 1,
        ..EngineConfig::default()
    })
    .expect("an engine");
    let wasm =
        std::fs::read(BUNDLED).expect("the bundled component, seen from the repository's root");
    let component = engine.compile(&wasm).expect("a good component");
    let parameters = Parameters::from([("prefix".to_owned(), "user-1".to_owned())]);
    let log = GuestLog::new("counts");
    let filter = Filter::new(&component, parameters, Budget::default(), &log);
    let mut filter = filter.expect("it takes its parameters");
    let batch = fixture::batch(records, 100);
    let open = OpenBatch::open(batch, &mut Codec::new(), RecordIndex::new()).expect("a good batch");
    Box::new(move || {
        let context = Context {
            topic: "orders",
            partition: 3,
            stage: Stage::Produce,
            time: TimestampMs(TIMESTAMP),
            base_offset: None,
        };
        let (index, timestamps) = (open.index().index(), open.index().timestamps());
        let verdict = filter.call(&context, index, timestamps, open.raw());
        let verdict = black_box(verdict.expect("an answer"));
        assert_eq!(verdict.kept(), kept);
    })
}
