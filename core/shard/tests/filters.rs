//! Produce filters through the driver, with a component that ships with the broker.

mod world;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use millstream_batch::ids::{Offset, TimestampMs};
use millstream_batch::{Codec, Records};
use millstream_machine::topics::{FilterBinding, OnError, Stage};
use millstream_sandbox::Parameters;
use millstream_shard::call::{Answer, Call, Error};
use millstream_shard::driver::{ComponentSource, Deployments, FilterCounts, FilterHost, Own, Site};
use tokio::task::LocalSet;

use crate::world::{TOPIC, batch, binding, deploy, open, produce, produced, source, stored};

fn host(source: &Arc<world::Source>) -> (Arc<Deployments>, FilterHost) {
    let deployments = Deployments::new(Arc::clone(source) as Arc<dyn ComponentSource>);
    let host = FilterHost::new(Arc::clone(&deployments), Arc::new(FilterCounts::default()));
    (deployments, host)
}

/// A filter of the topic's subscriptions.
fn of_subscriptions(source: &world::Source) -> FilterBinding {
    FilterBinding {
        stage: Stage::Subscribe,
        ..binding(source, OnError::Reject, Some("eu-"))
    }
}

/// A batch on its way to a subscription with parameters of its own, or to any.
fn to_subscription(base_offset: u64, own: Option<Own<'_>>) -> Site<'_> {
    Site {
        topic: TOPIC,
        topic_name: "orders",
        partition: 0,
        stage: Stage::Subscribe,
        time: TimestampMs(5),
        base_offset: Some(Offset(base_offset)),
        from: Offset(0),
        own,
    }
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
    let (deployments, mut host) = host(&source);
    let binding = of_subscriptions(&source);
    let owner = deployments.owner(1);
    for (prefix, expected) in [("eu-", vec![0, 2]), ("us-", vec![1])] {
        let parameters = Parameters::from([("prefix".to_owned(), prefix.to_owned())]);
        let own = Own {
            owner,
            parameters: &parameters,
        };
        let site = to_subscription(100, Some(own));
        let rest = host.run(
            std::slice::from_ref(&binding),
            &site,
            batch(&["eu-1", "us-1", "eu-2"]),
        );
        let rest = rest.expect("filtered").batch.expect("something is kept");
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
    let (deployments, mut host) = host(&source);
    let binding = of_subscriptions(&source);
    for connection in 0..300 {
        let prefix = format!("{connection}-");
        let parameters = Parameters::from([("prefix".to_owned(), prefix.clone())]);
        let own = Own {
            owner: deployments.owner(connection),
            parameters: &parameters,
        };
        let site = to_subscription(0, Some(own));
        let key = format!("{prefix}1");
        let rest = host.run(std::slice::from_ref(&binding), &site, batch(&["x", &key]));
        let rest = rest.expect("filtered").batch.expect("something is kept");
        assert_eq!(rest.header().records, 1, "of {connection}");
    }
    // What is shared still finds room.
    let site = to_subscription(0, None);
    let rest = host.run(std::slice::from_ref(&binding), &site, batch(&["eu-1", "x"]));
    assert!(rest.expect("filtered").batch.is_some());
}
