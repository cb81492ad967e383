//! The driver on a real directory: what is acknowledged is there after a restart, readers wait for
//! what is released, a stop ends in good order.

mod world;

use std::path::Path;
use std::sync::Arc;

use millstream_batch::ids::{Offset, ProducerEpoch, ProducerId, Sequence, TimestampMs};
use millstream_batch::{Batch, BatchBuilder, Codec, Encoding, Records};
use millstream_log::Recovery;
use millstream_machine::request::{Produce, Produced, Refusal, Reply};
use millstream_shard::call::{Answer, Call, Error, Fetch, Position};
use millstream_shard::driver::{Deployments, NoComponents, Plugins, Workers};
use millstream_shard::handle::{ReplyTo, ShardHandle};
use millstream_uring::Preference;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, LocalSet};

use crate::world::{PARTITION, TOPIC, create, recover};

fn plugins() -> Plugins {
    let deployments = Deployments::new(Arc::new(NoComponents));
    let workers = Workers::start(&deployments, 1).expect("a thread");
    Plugins {
        deployments,
        workers: Arc::new(workers),
    }
}

async fn open(dir: &Path, preference: Preference) -> (ShardHandle, JoinHandle<()>, Recovery) {
    recover(dir, preference, plugins()).await
}

fn batch(values: &[&str]) -> Batch {
    let mut builder = BatchBuilder::new(Encoding::None, 1 << 20);
    for value in values {
        builder
            .append(None, Some(value.as_bytes()), [], 1_700_000_000_000)
            .expect("it fits");
    }
    builder.build().expect("records were appended")
}

fn produce(pid: u64, sequence: u64, values: &[&str]) -> Call {
    let batch = batch(values);
    let records = batch.header().records;
    let request = Produce {
        partition: PARTITION,
        pid: ProducerId(pid),
        epoch: ProducerEpoch(0),
        sequence: Sequence(sequence),
        sent: records,
        kept: records,
        bytes: batch.bytes().len() as u32,
        max_timestamp: TimestampMs(batch.header().max_timestamp),
    };
    Call::Produce {
        request,
        raw: vec![batch.into_bytes()].into(),
    }
}

fn fetch(offset: u64, wait_ms: u32) -> Call {
    Call::Fetch(Fetch {
        partition: PARTITION,
        offset: Offset(offset),
        leader_epoch: None,
        bytes_max: 1 << 20,
        wait_ms,
    })
}

async fn create_topic(shard: &ShardHandle) {
    create(shard, TOPIC, "orders", 1).await;
}

fn produced(answer: &Answer) -> Produced {
    match answer {
        Answer::Reply(Reply::Produced(produced)) => *produced,
        other => panic!("{other:?}"),
    }
}

fn values(answer: &Answer) -> Vec<(u64, String)> {
    let Answer::Fetched(fetched) = answer else {
        panic!("{answer:?}")
    };
    let mut values = Vec::new();
    for served in &fetched.batches {
        let batch = Batch::check(served.batch.clone()).expect("the stored batch is whole");
        let raw = batch.inflated(&mut Codec::new()).expect("it inflates");
        for (record, offset) in Records::new(batch.header(), &raw).zip(served.base_offset.0..) {
            let value = record
                .expect("a whole record")
                .value
                .expect("it has a value")
                .to_vec();
            values.push((offset, String::from_utf8(value).expect("text")));
        }
    }
    values
}

async fn on_local<F: Future>(test: F) -> F::Output {
    LocalSet::new().run_until(test).await
}

async fn what_is_acknowledged_survives(preference: Preference) {
    let dir = tempfile::tempdir().expect("a directory");
    let (shard, task, _) = open(dir.path(), preference).await;
    create_topic(&shard).await;
    assert_eq!(
        produced(&shard.call(produce(1, 0, &["a", "b"])).await).base_offset,
        Some(Offset(0))
    );
    assert_eq!(
        produced(&shard.call(produce(1, 2, &["c"])).await).base_offset,
        Some(Offset(2))
    );
    let expected = vec![
        (0, "a".to_owned()),
        (1, "b".to_owned()),
        (2, "c".to_owned()),
    ];
    assert_eq!(values(&shard.call(fetch(0, 0)).await), expected);

    drop(shard); // the last handle: the shard stops by itself
    task.await.expect("it ends");
    let (shard, task, recovery) = open(dir.path(), preference).await;
    assert_eq!((recovery.cut_bytes, recovery.damage.len()), (0, 0));
    assert_eq!(
        values(&shard.call(fetch(1, 0)).await),
        expected,
        "a batch is served whole"
    );
    let again = produced(&shard.call(produce(1, 2, &["c"])).await);
    assert_eq!(
        (again.base_offset, again.duplicate),
        (Some(Offset(2)), true),
        "a resend is known after the restart"
    );
    let end = shard
        .call(Call::OffsetAt {
            partition: PARTITION,
            at: Position::End,
        })
        .await;
    assert!(
        matches!(
            end,
            Answer::Offset {
                offset: Offset(3),
                found: true
            }
        ),
        "{end:?}"
    );
    assert!(matches!(shard.call(Call::Stop).await, Answer::Stopped));
    task.await.expect("it ends");
    assert!(
        matches!(
            shard.call(fetch(0, 0)).await,
            Answer::Error(Error::Stopping)
        ),
        "a shard that is gone says so"
    );
}

#[tokio::test(flavor = "current_thread")]
async fn what_is_acknowledged_survives_on_the_portable_storage() {
    on_local(what_is_acknowledged_survives(Preference::Portable)).await;
}

/// On io_uring where the machine has it.
#[tokio::test(flavor = "current_thread")]
async fn what_is_acknowledged_survives_on_the_best_storage() {
    on_local(what_is_acknowledged_survives(Preference::Auto)).await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_reader_at_the_end_waits_for_the_next_batch() {
    on_local(async {
        let dir = tempfile::tempdir().expect("a directory");
        let (shard, task, _) = open(dir.path(), Preference::Auto).await;
        create_topic(&shard).await;
        let waiting = {
            let shard = shard.clone();
            tokio::task::spawn_local(async move { shard.call(fetch(0, 60_000)).await })
        };
        tokio::task::yield_now().await;
        produced(&shard.call(produce(0, 0, &["x"])).await);
        assert_eq!(
            values(&waiting.await.expect("answered")),
            [(0, "x".to_owned())]
        );
        // A wait that nothing ends is ended by its deadline, with nothing.
        assert!(values(&shard.call(fetch(1, 20)).await).is_empty());
        drop(shard);
        task.await.expect("it ends");
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn pipelined_batches_are_answered_in_order_and_refusals_are_told() {
    on_local(async {
        let dir = tempfile::tempdir().expect("a directory");
        let (shard, task, _) = open(dir.path(), Preference::Auto).await;
        let (queue, mut answers) = mpsc::unbounded_channel();
        shard.send(
            produce(1, 0, &["early"]),
            ReplyTo::Queue {
                tag: 0,
                queue: queue.clone(),
            },
        );
        let (_, refused) = answers.recv().await.expect("answered");
        assert!(
            matches!(
                refused,
                Answer::Error(Error::Refused(Refusal::UnknownPartition(_)))
            ),
            "{refused:?}"
        );
        create_topic(&shard).await;
        for tag in 0..500 {
            shard.send(
                produce(1, tag, &["v"]),
                ReplyTo::Queue {
                    tag,
                    queue: queue.clone(),
                },
            );
        }
        shard.send(
            produce(1, 900, &["gap"]),
            ReplyTo::Queue { tag: 500, queue },
        );
        for tag in 0..500 {
            let (got, answer) = answers.recv().await.expect("answered");
            assert_eq!(
                (got, produced(&answer).base_offset),
                (tag, Some(Offset(tag)))
            );
        }
        let (_, gap) = answers.recv().await.expect("answered");
        assert!(
            matches!(
                gap,
                Answer::Error(Error::Refused(Refusal::SequenceGap { .. }))
            ),
            "{gap:?}"
        );
        let Answer::Status(status) = shard.call(Call::Status).await else {
            panic!("no status")
        };
        assert_eq!(
            (status.batches_in, status.partitions, status.state.as_str()),
            (500, 1, "serving")
        );
        assert!(
            status.syncs < 400,
            "a sync carries many batches: {}",
            status.syncs
        );
        assert_eq!(status.produce_us.last(), Some(&500));
        drop(shard);
        task.await.expect("it ends");
    })
    .await;
}
