//! Produce filters through the driver, with a component that ships with the broker.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use millstream_batch::ids::{
    Offset, Partition, ProducerEpoch, ProducerId, Sequence, ShardId, TimestampMs, TopicId,
};
use millstream_batch::{Batch, BatchBuilder, Codec, Encoding, Records};
use millstream_machine::request::{Produce, Produced, Reply, Request};
use millstream_machine::topic::{Budget, FilterBinding, OnError, Stage, TopicConfig};
use millstream_sandbox::{Component, Engine, EngineConfig, Parameters};
use millstream_shard::call::{Answer, Call, Error, Fetch};
use millstream_shard::core::CoreConfig;
use millstream_shard::driver::{
    ComponentSource, FilterHost, Lookup, Own, ShardConfig, Site, run, system_clock,
};
use millstream_shard::handle::ShardHandle;
use millstream_uring::Preference;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, LocalSet};

const TOPIC: TopicId = TopicId([7; 16]);
const PARTITION: Partition = Partition {
    topic: TOPIC,
    index: 0,
};

/// One component, which may still be loading.
#[derive(Debug)]
struct Source {
    component: Arc<Component>,
    loading: AtomicBool,
}

impl ComponentSource for Source {
    fn component(&self, digest: &[u8; 32]) -> Lookup {
        if digest != self.component.digest().as_bytes() {
            Lookup::Lost("never uploaded".to_owned())
        } else if self.loading.load(Ordering::Relaxed) {
            Lookup::Loading
        } else {
            Lookup::Ready(Arc::clone(&self.component))
        }
    }
}

fn source() -> Arc<Source> {
    let wasm = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/dist/key-filter.wasm");
    let wasm = std::fs::read(wasm).expect("the component is in the tree");
    let engine = Engine::new(&EngineConfig::default()).expect("an engine");
    let component = engine.compile(&wasm).expect("it compiles");
    Arc::new(Source {
        component,
        loading: AtomicBool::new(false),
    })
}

fn binding(source: &Source, on_error: OnError, prefix: Option<&str>) -> FilterBinding {
    FilterBinding {
        name: "by-key".to_owned(),
        digest: *source.component.digest().as_bytes(),
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

fn batch(keys: &[&str]) -> Batch {
    let mut builder = BatchBuilder::new(Encoding::Lz4, 1 << 20);
    for key in keys {
        builder
            .append(Some(key.as_bytes()), Some(b"value"), [], 5)
            .expect("it fits");
    }
    builder.build().expect("records were appended")
}

fn produce(sequence: u64, keys: &[&str]) -> Call {
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
        raw: vec![batch.into_bytes()],
    }
}

fn produced(answer: &Answer) -> Produced {
    match answer {
        Answer::Reply(Reply::Produced(produced)) => *produced,
        other => panic!("{other:?}"),
    }
}

async fn open(dir: &Path, source: &Arc<Source>) -> (ShardHandle, JoinHandle<()>) {
    let log = millstream_log::Config {
        segment_bytes: 4 << 20,
        group_bytes_max: 1 << 20,
        hot_tail_bytes_max: 8 << 20,
        spares_ready: 1,
        recycle_max: 1,
        sync_each_group: true,
        incarnation: 1,
    };
    let config = ShardConfig::new(CoreConfig::new(ShardId(0), 1, log));
    let storage = millstream_uring::open(dir, Preference::Auto).expect("the directory opens");
    let (handle, inbox) = ShardHandle::new(ShardId(0), 1_000);
    let (ready, recovered) = oneshot::channel();
    let components = Arc::clone(source) as Arc<dyn ComponentSource>;
    let task = tokio::task::spawn_local(run(
        config,
        storage,
        inbox,
        system_clock(),
        components,
        ready,
    ));
    recovered.await.expect("recovery ends");
    let request = Request::CreateTopic {
        id: TOPIC,
        name: "orders".to_owned(),
        partitions: 1,
        config: TopicConfig::default(),
    };
    let answer = handle.call(Call::Machine(request)).await;
    assert!(matches!(answer, Answer::Reply(_)), "{answer:?}");
    (handle, task)
}

async fn deploy(shard: &ShardHandle, binding: FilterBinding) {
    let request = Request::DeployFilter {
        topic: "orders".to_owned(),
        binding,
    };
    let answer = shard.call(Call::Machine(request)).await;
    assert!(matches!(answer, Answer::Reply(_)), "{answer:?}");
}

/// Keys with their offsets, as stored.
async fn stored(shard: &ShardHandle) -> Vec<(u64, String)> {
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

#[tokio::test(flavor = "current_thread")]
async fn a_produce_filter_decides_what_is_stored() {
    LocalSet::new()
        .run_until(async {
            let (dir, source) = (tempfile::tempdir().expect("a directory"), source());
            let (shard, task) = open(dir.path(), &source).await;
            deploy(&shard, binding(&source, OnError::Reject, Some("eu-"))).await;

            source.loading.store(true, Ordering::Relaxed);
            let answer = shard.call(produce(0, &["eu-1"])).await;
            assert!(
                matches!(
                    answer,
                    Answer::Error(Error::Filter {
                        retriable: true,
                        ..
                    })
                ),
                "{answer:?}"
            );
            source.loading.store(false, Ordering::Relaxed);

            let first = produced(&shard.call(produce(0, &["eu-1", "us-1", "eu-2"])).await);
            assert_eq!(
                (first.base_offset, first.duplicate),
                (Some(Offset(0)), false)
            );
            let nothing = produced(&shard.call(produce(3, &["us-2"])).await);
            assert_eq!(
                nothing.base_offset, None,
                "nothing was kept, and the producer moved on"
            );
            let next = produced(&shard.call(produce(4, &["us-3", "eu-3"])).await);
            assert_eq!(
                next.base_offset,
                Some(Offset(2)),
                "offsets are dense over what was kept"
            );
            let again = produced(&shard.call(produce(0, &["eu-1", "us-1", "eu-2"])).await);
            assert_eq!(
                (again.base_offset, again.duplicate),
                (Some(Offset(0)), true)
            );
            let kept = ["eu-1", "eu-2", "eu-3"].map(str::to_owned);
            assert_eq!(stored(&shard).await, (0..).zip(kept).collect::<Vec<_>>());

            let Answer::Status(status) = shard.call(Call::Status).await else {
                panic!("no status")
            };
            let row = &status.filters[0];
            assert_eq!(
                (row.name.as_str(), row.records, row.kept, row.errors),
                ("by-key", 6, 3, 0),
                "{row:?}"
            );
            drop(shard);
            task.await.expect("it ends");
        })
        .await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_lost_component_fails_closed_under_every_policy() {
    LocalSet::new()
        .run_until(async {
            let (dir, source) = (tempfile::tempdir().expect("a directory"), source());
            let (shard, task) = open(dir.path(), &source).await;
            for on_error in [OnError::Pass, OnError::Drop, OnError::Reject] {
                let lost = FilterBinding {
                    digest: [1; 32],
                    ..binding(&source, on_error, Some("eu-"))
                };
                deploy(&shard, lost).await;
                let answer = shard.call(produce(0, &["eu-1"])).await;
                let Answer::Error(Error::Filter { message, .. }) = &answer else {
                    panic!("{on_error:?}: {answer:?}")
                };
                assert_eq!(message, "never uploaded");
            }
            assert_eq!(stored(&shard).await, []);
            drop(shard);
            task.await.expect("it ends");
        })
        .await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_filter_that_cannot_start_does_what_its_policy_says() {
    LocalSet::new()
        .run_until(async {
            let (dir, source) = (tempfile::tempdir().expect("a directory"), source());
            let (shard, task) = open(dir.path(), &source).await;
            // Without its prefix the component refuses to start.
            deploy(&shard, binding(&source, OnError::Reject, None)).await;
            let answer = shard.call(produce(0, &["eu-1"])).await;
            let Answer::Error(Error::Filter {
                message,
                retriable: false,
                ..
            }) = &answer
            else {
                panic!("{answer:?}")
            };
            assert!(message.contains("prefix"), "{message}");
            deploy(&shard, binding(&source, OnError::Pass, None)).await;
            assert_eq!(
                produced(&shard.call(produce(0, &["us-1"])).await).base_offset,
                Some(Offset(0))
            );
            deploy(&shard, binding(&source, OnError::Drop, None)).await;
            assert_eq!(
                produced(&shard.call(produce(1, &["eu-1"])).await).base_offset,
                None
            );
            assert_eq!(stored(&shard).await, [(0, "us-1".to_owned())]);
            drop(shard);
            task.await.expect("it ends");
        })
        .await;
}

/// A subscription's stage keeps offsets as they are.
#[test]
fn a_subscription_keeps_offsets_and_its_own_parameters_win() {
    let source = source();
    let mut host = FilterHost::new(Arc::clone(&source) as Arc<dyn ComponentSource>);
    let binding = FilterBinding {
        stage: Stage::Subscribe,
        ..binding(&source, OnError::Reject, Some("eu-"))
    };
    let owner = host.owner(1);
    for (prefix, expected) in [("eu-", vec![0, 2]), ("us-", vec![1])] {
        let parameters = Parameters::from([("prefix".to_owned(), prefix.to_owned())]);
        let site = Site {
            topic: TOPIC,
            topic_name: "orders",
            partition: 0,
            stage: Stage::Subscribe,
            time: TimestampMs(5),
            base_offset: Some(Offset(100)),
            own: Some(Own {
                owner,
                parameters: &parameters,
            }),
        };
        let rest = host.run(
            std::slice::from_ref(&binding),
            &site,
            batch(&["eu-1", "us-1", "eu-2"]),
        );
        let rest = rest.expect("filtered").expect("something is kept");
        let raw = rest.inflated(&mut Codec::new()).expect("it inflates");
        let offsets: Vec<i64> = Records::new(rest.header(), &raw)
            .map(|record| record.expect("a whole record").offset)
            .collect();
        assert_eq!(offsets, expected, "with {prefix}");
        assert_eq!(
            rest.header().last_offset_delta,
            2,
            "the batch still ends where it did"
        );
    }
}

/// The engine's pool has room for 256 instances: hundreds of distinct parameters all run, because
/// those that were needed longest ago make room.
#[test]
fn distinct_parameters_never_use_up_the_room() {
    let source = source();
    let mut host = FilterHost::new(Arc::clone(&source) as Arc<dyn ComponentSource>);
    let binding = FilterBinding {
        stage: Stage::Subscribe,
        ..binding(&source, OnError::Reject, Some("eu-"))
    };
    let site = Site {
        topic: TOPIC,
        topic_name: "orders",
        partition: 0,
        stage: Stage::Subscribe,
        time: TimestampMs(5),
        base_offset: Some(Offset(0)),
        own: None,
    };
    for connection in 0..300 {
        let prefix = format!("{connection}-");
        let parameters = Parameters::from([("prefix".to_owned(), prefix.clone())]);
        let own = Own {
            owner: host.owner(connection),
            parameters: &parameters,
        };
        let site = Site {
            own: Some(own),
            ..site
        };
        let key = format!("{prefix}1");
        let rest = host.run(std::slice::from_ref(&binding), &site, batch(&["x", &key]));
        let rest = rest.expect("filtered").expect("something is kept");
        assert_eq!(rest.header().records, 1, "of {connection}");
    }
    // What is shared still finds room.
    let rest = host.run(std::slice::from_ref(&binding), &site, batch(&["eu-1", "x"]));
    assert!(rest.expect("filtered").is_some());
}
