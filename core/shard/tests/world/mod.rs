//! A shard on a real directory, with filters and without, for the tests of both.

#![allow(dead_code, reason = "each test crate uses a part of it")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use millstream_batch::ids::{
    Offset, Partition, ProducerEpoch, ProducerId, Sequence, ShardId, TimestampMs, TopicId,
};
use millstream_batch::{Batch, BatchBuilder, Codec, Encoding, Records};
use millstream_log::Recovery;
use millstream_machine::request::{Produce, Produced, Reply, Request};
use millstream_machine::topics::{Budget, FilterBinding, OnError, Stage, TopicConfig};
use millstream_sandbox::{Component, Engine, EngineConfig};
use millstream_shard::call::{Answer, Call, Fetch};
use millstream_shard::core::CoreConfig;
use millstream_shard::driver::{
    ComponentSource, Deployments, Lookup, Plugins, ShardConfig, Workers, run, system_clock,
};
use millstream_shard::handle::ShardHandle;
use millstream_uring::Preference;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub(crate) const TOPIC: TopicId = TopicId([7; 16]);
pub(crate) const PARTITION: Partition = Partition {
    topic: TOPIC,
    index: 0,
};

/// One component, which may still be loading.
#[derive(Debug)]
pub(crate) struct Source {
    components: Vec<Arc<Component>>,
    pub(crate) loading: AtomicBool,
}

impl ComponentSource for Source {
    fn component(&self, digest: &[u8; 32]) -> Lookup {
        let of_digest = |component: &&Arc<Component>| component.digest().as_bytes() == digest;
        match self.components.iter().find(of_digest) {
            None => Lookup::Lost("never uploaded".to_owned()),
            Some(_) if self.loading.load(Ordering::Relaxed) => Lookup::Loading,
            Some(component) => Lookup::Ready(Arc::clone(component)),
        }
    }
}

impl Source {
    /// These components, compiled.
    pub(crate) fn of(components: &[&[u8]]) -> Arc<Self> {
        let engine = Engine::new(&EngineConfig::default()).expect("an engine");
        let compile = |wasm: &&[u8]| engine.compile(wasm).expect("it compiles");
        Arc::new(Self {
            components: components.iter().map(compile).collect(),
            loading: AtomicBool::new(false),
        })
    }

    pub(crate) fn digest(&self, component: usize) -> [u8; 32] {
        *self.components[component].digest().as_bytes()
    }
}

/// The key filter.
pub(crate) fn source() -> Arc<Source> {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs this");
    let wasm = Path::new(&package).join("../../plugins/dist/key-filter.wasm");
    let wasm = std::fs::read(wasm).expect("the component is in the tree");
    Source::of(&[&wasm])
}

pub(crate) fn binding(source: &Source, on_error: OnError, prefix: Option<&str>) -> FilterBinding {
    FilterBinding {
        name: "by-key".to_owned(),
        digest: source.digest(0),
        stage: Stage::Produce,
        parameters: prefix
            .map(|prefix| ("prefix".to_owned(), prefix.to_owned()))
            .into_iter()
            .collect(),
        budget: Budget {
            memory_bytes_max: 64 << 20,
            batch_ms_max: 1_000,
        },
        on_error,
    }
}

pub(crate) fn batch(keys: &[&str]) -> Batch {
    let mut builder = BatchBuilder::new(Encoding::Lz4, 1 << 20);
    for key in keys {
        builder
            .append(Some(key.as_bytes()), Some(b"value"), [], 5)
            .expect("it fits");
    }
    builder.build().expect("records were appended")
}

pub(crate) fn produce(sequence: u64, keys: &[&str]) -> Call {
    let batch = batch(keys);
    let records = batch.header().records;
    let request = Produce {
        partition: PARTITION,
        pid: ProducerId(1),
        epoch: ProducerEpoch(0),
        sequence: Sequence(sequence),
        sent: records,
        kept: records,
        bytes: batch.bytes().len() as u32,
        max_timestamp: TimestampMs(5),
    };
    Call::Produce {
        request,
        raw: vec![batch.into_bytes()].into(),
    }
}

pub(crate) fn produced(answer: &Answer) -> Produced {
    match answer {
        Answer::Reply(Reply::Produced(produced)) | Answer::Filtered { produced, .. } => *produced,
        other => panic!("{other:?}"),
    }
}

/// A shard with one topic, and worker threads of its own.
pub(crate) async fn open(dir: &Path, source: &Arc<Source>) -> (ShardHandle, JoinHandle<()>) {
    let deployments = Deployments::new(Arc::clone(source) as Arc<dyn ComponentSource>);
    let workers = Workers::start(&deployments, 2).expect("threads");
    let plugins = Plugins {
        deployments,
        workers: Arc::new(workers),
    };
    let (handle, task) = open_with(dir, plugins).await;
    create(&handle, TOPIC, "orders", 1).await;
    (handle, task)
}

/// A shard without topics.
pub(crate) async fn open_with(dir: &Path, plugins: Plugins) -> (ShardHandle, JoinHandle<()>) {
    let (handle, task, _) = recover(dir, Preference::Auto, plugins).await;
    (handle, task)
}

/// A shard with what is in its directory, and how it was found.
pub(crate) async fn recover(
    dir: &Path,
    preference: Preference,
    plugins: Plugins,
) -> (ShardHandle, JoinHandle<()>, Recovery) {
    let log = millstream_log::Config {
        segment_bytes: 4 << 20,
        first_segment_bytes: 4 << 20,
        group_bytes_max: 1 << 20,
        hot_tail_bytes_max: 8 << 20,
        read_bytes_max: 36 << 20,
        spares_ready: 1,
        recycle_max: 1,
        sync_each_group: true,
        incarnation: 42,
    };
    let config = ShardConfig::new(CoreConfig::new(ShardId(0), 1, log));
    let storage = millstream_uring::open(dir, preference, 0, millstream_uring::OPEN_FILES_MAX)
        .expect("the directory opens");
    let (handle, inbox) = ShardHandle::new(ShardId(0), 1_000);
    let (ready, recovery) = oneshot::channel();
    let run = run(config, storage, inbox, system_clock(), plugins, ready);
    let task = tokio::task::spawn_local(run);
    (handle, task, recovery.await.expect("recovery ends"))
}

pub(crate) async fn create(handle: &ShardHandle, id: TopicId, name: &str, partitions: u32) {
    let request = Request::CreateTopic {
        id,
        name: name.to_owned(),
        partitions,
        config: TopicConfig::default(),
    };
    let answer = handle.call(Call::Machine(request)).await;
    assert!(
        matches!(answer, Answer::Reply(Reply::Topic(_))),
        "{answer:?}"
    );
}

pub(crate) async fn deploy(shard: &ShardHandle, binding: FilterBinding) {
    deploy_on(shard, "orders", binding).await;
}

pub(crate) async fn deploy_on(shard: &ShardHandle, topic: &str, binding: FilterBinding) {
    let request = Request::DeployFilter {
        topic: topic.to_owned(),
        binding,
    };
    let answer = shard.call(Call::Machine(request)).await;
    assert!(matches!(answer, Answer::Reply(_)), "{answer:?}");
}

/// Keys with their offsets, as stored.
pub(crate) async fn stored(shard: &ShardHandle) -> Vec<(u64, String)> {
    let fetch = Fetch {
        partition: PARTITION,
        offset: Offset(0),
        leader_epoch: None,
        bytes_max: 1 << 20,
        wait_ms: 0,
    };
    let Answer::Fetched(fetched) = shard.call(Call::Fetch(fetch)).await else {
        panic!("not fetched")
    };
    let mut codec = Codec::new();
    let mut keys = Vec::new();
    for served in fetched.batches {
        let batch = Batch::check(served.batch).expect("a whole batch");
        let raw = batch.inflated(&mut codec).expect("it inflates");
        for (record, offset) in
            Records::new(batch.header(), &raw).zip(served.base_offset.0..=served.last_offset.0)
        {
            let key = record
                .expect("a whole record")
                .key
                .expect("it has a key")
                .to_vec();
            keys.push((offset, String::from_utf8(key).expect("text")));
        }
    }
    keys
}
