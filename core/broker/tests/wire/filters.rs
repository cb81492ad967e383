//! Components over the wire: at produce, for subscriptions, and for one subscription alone.

use bytes::{Bytes, BytesMut};
use millstream_batch::limits::FRAME_HEADER_BYTES_MAX;
use millstream_broker::PrincipalSettings;
use millstream_protocol::frame::encode_head;
use millstream_protocol::messages::{
    Batch, CaughtUp, DeployFilterRequest, DeployFilterResponse, DescribeTopicRequest,
    DescribeTopicResponse, FilterInfo, ListFiltersRequest, ListFiltersResponse, ListTopicsRequest,
    ListTopicsResponse, PartitionError, Produce, Produced, ProducerOpen, RemoveFilterRequest,
    RemoveFilterResponse, Seek, Setting, StartAt, Subscribe, SubscriptionFilter, start_at,
};
use millstream_protocol::{Code, Kind, Message as _};

use crate::client::{Client, Stream, World, batch, values, whole};
use crate::common;
use crate::poison::{not_compressed, poison};

pub(crate) const JSON_FILTER: &[u8] = include_bytes!("../../../../plugins/dist/json-filter.wasm");
const KEY_FILTER: &[u8] = include_bytes!("../../../../plugins/dist/key-filter.wasm");
const RECORDS: [&[u8]; 4] = [
    br#"{"level":"info","n":1}"#,
    br#"{"level":"error","n":2}"#,
    br#"{"level":"error","n":3}"#,
    br#"{"level":"info","n":4}"#,
];

pub(crate) fn expression(expression: &str) -> Vec<Setting> {
    vec![Setting {
        key: "expr".to_owned(),
        value: Some(expression.to_owned()),
    }]
}

pub(crate) async fn deploy(
    client: &Client,
    stage: &str,
    parameters: Vec<Setting>,
    digest: Bytes,
    component: &[u8],
) -> Result<DeployFilterResponse, millstream_protocol::messages::Error> {
    let filter = FilterInfo {
        name: "errors".to_owned(),
        topic: "t".to_owned(),
        stage: stage.to_owned(),
        digest,
        parameters,
        ..FilterInfo::default()
    };
    deploy_as(client, filter, component).await
}

async fn deploy_as(
    client: &Client,
    filter: FilterInfo,
    component: &[u8],
) -> Result<DeployFilterResponse, millstream_protocol::messages::Error> {
    let mut frame = BytesMut::new();
    encode_head(
        &mut frame,
        Kind::DeployFilter,
        &DeployFilterRequest {
            filter: Some(filter),
        },
        component.len(),
    );
    frame.extend_from_slice(component);
    let mut stream = client.open().await;
    stream.write(&frame).await;
    stream.send.finish().expect("finished");
    let answer = stream.next().await.expect("an answer");
    if answer.kind == Kind::Error.number() {
        return Err(answer.message().expect("an ERROR"));
    }
    Ok(answer.message().expect("DEPLOY_FILTER"))
}

async fn remove(client: &Client, name: &str) {
    let request = RemoveFilterRequest {
        topic: "t".to_owned(),
        name: name.to_owned(),
    };
    let _: RemoveFilterResponse = client
        .request(Kind::RemoveFilter, &request)
        .await
        .expect("removed");
}

async fn produce(client: &Client, topic_id: &Bytes) -> Produced {
    let mut producer = client.producer(&ProducerOpen::default()).await;
    producer
        .produce(
            Produce {
                tag: 1,
                topic_id: topic_id.clone(),
                ..Produce::default()
            },
            &batch(&RECORDS),
        )
        .await;
    producer
        .expect(Kind::Produced)
        .await
        .message()
        .expect("PRODUCED")
}

fn whole_topic() -> Subscribe {
    Subscribe {
        stop_at_end: true,
        ..whole("t")
    }
}

/// Headers and values of all batches, and where the end was.
async fn consume(mut stream: Stream) -> (Vec<(Batch, Vec<Vec<u8>>)>, u64) {
    let mut batches = Vec::new();
    let mut end = 0;
    while let Some(frame) = stream.next().await {
        match frame.known() {
            Some(Kind::Batch) => {
                let header = frame.message().expect("BATCH");
                batches.push((header, values(frame.payload.into_contiguous()).1));
            }
            Some(Kind::CaughtUp) => end = frame.message::<CaughtUp>().expect("CAUGHT_UP").offset,
            Some(Kind::Error | Kind::PartitionError) => panic!("{frame:?}"),
            _ => {}
        }
    }
    (batches, end)
}

#[test]
fn a_filter_at_produce_drops_for_good() {
    let mut world = World::new(|_| {});
    world.run(async {
        let client = world.connect().await;
        let topic_id = client.create_topic("t", 1).await;
        let deployed = deploy(
            &client,
            "produce",
            expression("level == 'error'"),
            Bytes::new(),
            JSON_FILTER,
        )
        .await
        .expect("deployed");
        let filter = deployed.filter.expect("a filter");
        assert_eq!(
            (filter.state.as_str(), filter.digest.len()),
            ("running", 32)
        );
        assert_eq!(produce(&client, &topic_id).await.base_offset, Some(0));
        let (batches, end) = consume(client.subscribe(&whole_topic()).await).await;
        assert_eq!(end, 2, "offsets close up");
        assert_eq!(batches[0].1, [RECORDS[1], RECORDS[2]]);
    });
    // Deployments survive a restart, and then too no record passes unfiltered.
    world.stop();
    world.start_again();
    world.run(async {
        let client = world.connect().await;
        let list: ListFiltersResponse = client
            .request(Kind::ListFilters, &ListFiltersRequest::default())
            .await
            .expect("listed");
        assert_eq!(
            (list.filters.len(), list.filters[0].state.as_str()),
            (1, "running")
        );
        let topics: millstream_protocol::messages::ListTopicsResponse = client
            .request(
                Kind::ListTopics,
                &millstream_protocol::messages::ListTopicsRequest::default(),
            )
            .await
            .expect("listed");
        let topic_id = topics.topics[0].id.clone();
        assert_eq!(produce(&client, &topic_id).await.base_offset, Some(2));
        remove(&client, "errors").await;
        assert_eq!(produce(&client, &topic_id).await.base_offset, Some(4));
        let (batches, end) = consume(client.subscribe(&whole_topic()).await).await;
        assert_eq!((end, batches.last().expect("a batch").1.len()), (8, 4));
    });
}

#[test]
fn a_filter_of_subscriptions_hides_and_keeps_offsets() {
    let world = World::new(|_| {});
    world.run(async {
        let client = world.connect().await;
        let topic_id = client.create_topic("t", 1).await;
        produce(&client, &topic_id).await;
        deploy(
            &client,
            "subscribe",
            expression("level == 'error'"),
            Bytes::new(),
            JSON_FILTER,
        )
        .await
        .expect("deployed");
        let (batches, end) = consume(client.subscribe(&whole_topic()).await).await;
        let (header, values) = &batches[0];
        assert_eq!(
            (header.base_offset, header.last_offset, header.filtered, end),
            (0, 3, true, 4)
        );
        assert_eq!(values, &[RECORDS[1], RECORDS[2]]);
        // The subscription's own filter runs after the topic's.
        let own = SubscriptionFilter {
            name: "errors".to_owned(),
            parameters: expression("n == 3"),
        };
        let (batches, _) = consume(
            client
                .subscribe(&Subscribe {
                    filters: vec![own],
                    ..whole_topic()
                })
                .await,
        )
        .await;
        assert_eq!(batches[0].1, [RECORDS[2]]);
        // One that keeps nothing sends no batch, and still tells the end.
        let none = SubscriptionFilter {
            name: "errors".to_owned(),
            parameters: expression("n == 99"),
        };
        let (batches, end) = consume(
            client
                .subscribe(&Subscribe {
                    filters: vec![none],
                    ..whole_topic()
                })
                .await,
        )
        .await;
        assert_eq!((batches.len(), end), (0, 4));
    });
}

#[test]
fn what_is_no_component_is_refused_and_changes_nothing() {
    let world = World::new(|_| {});
    world.run(async {
        let client = world.connect().await;
        let topic_id = client.create_topic("t", 1).await;
        let refused = deploy(
            &client,
            "produce",
            Vec::new(),
            Bytes::new(),
            b"\0asm garbage",
        )
        .await
        .expect_err("no component");
        assert_eq!(refused.code, Code::BadComponent.number());
        let refused = deploy(
            &client,
            "produce",
            Vec::new(),
            Bytes::from_static(&[1; 32]),
            b"",
        )
        .await
        .expect_err("unknown");
        assert_eq!(refused.code, Code::UnknownFilter.number());
        let refused = deploy(&client, "elsewhere", Vec::new(), Bytes::new(), JSON_FILTER)
            .await
            .expect_err("no stage");
        assert_eq!(refused.code, Code::BadConfig.number());
        assert_eq!(produce(&client, &topic_id).await.base_offset, Some(0));
        let (_, end) = consume(client.subscribe(&whole_topic()).await).await;
        assert_eq!(end, 4);
    });
}

#[test]
fn parameters_that_the_component_refuses_leave_the_deployment_as_it_was() {
    let world = World::new(|_| {});
    world.run(async {
        let client = world.connect().await;
        let topic_id = client.create_topic("t", 1).await;
        for stage in ["produce", "subscribe"] {
            let broken = expression("level == = 'error'");
            let refused = deploy(&client, stage, broken, Bytes::new(), JSON_FILTER)
                .await
                .expect_err("no expression");
            assert_eq!(refused.code, Code::BadConfig.number(), "{refused:?}");
            assert!(
                refused.message.contains("refused to start"),
                "the component's words: {}",
                refused.message
            );
            let list: ListFiltersResponse = client
                .request(Kind::ListFilters, &ListFiltersRequest::default())
                .await
                .expect("listed");
            assert_eq!(list.filters, []);
        }
        let good = deploy(
            &client,
            "produce",
            expression("level == 'error'"),
            Bytes::new(),
            JSON_FILTER,
        )
        .await
        .expect("deployed")
        .filter
        .expect("a filter");
        deploy(
            &client,
            "produce",
            expression("level == = 'info'"),
            good.digest,
            b"",
        )
        .await
        .expect_err("no expression");
        assert_eq!(produce(&client, &topic_id).await.base_offset, Some(0));
        let (batches, end) = consume(client.subscribe(&whole_topic()).await).await;
        assert_eq!(
            (&batches[0].1[..], end),
            (&[RECORDS[1].to_vec(), RECORDS[2].to_vec()][..], 2)
        );
    });
}

/// Crashes on a batch of two records, and keeps all else.
const DIES_OF_TWO: &str = "
    (if (i32.eq (local.get 8) (i32.const 12)) (then unreachable))
    (call $all (call $records (local.get 8)))";

#[test]
fn a_filter_that_is_killed_goes_to_the_workers_then_pauses_and_order_is_kept() {
    let world = World::new(|_| {});
    let batches: [&[&[u8]]; 4] = [&[b"0", b"1", b"2"], &[b"3", b"4"], &[b"5"], &[b"6"]];
    let state = async |client: &Client| {
        let list: ListFiltersResponse = client
            .request(Kind::ListFilters, &ListFiltersRequest::default())
            .await
            .expect("listed");
        list.filters[0].state.clone()
    };
    world.run(async {
        let client = world.connect().await;
        let topic_id = client.create_topic("t", 1).await;
        let mut producer = client.producer(&ProducerOpen::default()).await;
        for (tag, records) in (1..).zip(batches) {
            let produce = Produce {
                tag,
                topic_id: topic_id.clone(),
                ..Produce::default()
            };
            producer.produce(produce, &batch(records)).await;
            producer.expect(Kind::Produced).await;
        }
        let filter = FilterInfo {
            name: "fragile".to_owned(),
            topic: "t".to_owned(),
            stage: "subscribe".to_owned(),
            on_error: "pass".to_owned(),
            ..FilterInfo::default()
        };
        let wasm = common::wat_filter(DIES_OF_TWO);
        deploy_as(&client, filter.clone(), &wasm)
            .await
            .expect("deployed");
        assert_eq!(state(&client).await, "running");
        let all = batches.map(|batch| batch.iter().map(|value| value.to_vec()).collect::<Vec<_>>());
        // Each subscription kills it with the batch of two, which passes in parts: the first on its own thread
        // and then on a worker, the others on a worker.
        for _ in 0..2 {
            let (got, end) = consume(client.subscribe(&whole_topic()).await).await;
            let got: Vec<_> = got.into_iter().map(|(_, values)| values).collect();
            assert_eq!((got, end), (all.to_vec(), 7));
            let state = state(&client).await;
            assert!(state.starts_with("running on a worker thread"), "{state}");
        }
        // The third time is too often: what nobody judges does not pass, and where it stops is said.
        let mut stream = client.subscribe(&whole_topic()).await;
        let mut got = Vec::new();
        let error = loop {
            let frame = stream.next().await.expect("a frame");
            match frame.known() {
                Some(Kind::Batch) => got.push(values(frame.payload.into_contiguous()).1),
                Some(Kind::PartitionError) => {
                    let failed: PartitionError = frame.message().expect("PARTITION_ERROR");
                    break failed.error.expect("an error");
                }
                _ => {}
            }
        };
        assert_eq!(got, all[..2]);
        assert_eq!(
            (error.code, error.next_offset),
            (Code::FilterFailed.number(), Some(6))
        );
        assert!(error.message.contains("paused"), "{}", error.message);
        drop(stream);
        let paused = state(&client).await;
        assert!(paused.starts_with("paused"), "{paused}");
        assert_eq!(world.metric("millstream_subscribe_filter_kills_total"), 4.0);
        assert_eq!(
            world.metric("millstream_subscribe_filter_errors_total"),
            1.0,
            "the batch after the last kill"
        );
        assert_eq!(
            world.metric("millstream_subscribe_filter_failed_records_total"),
            0.0
        );
        assert_eq!(world.metric("millstream_filter_paused"), 1.0);

        let again = deploy_as(&client, filter, &wasm)
            .await
            .expect("deployed again");
        assert_eq!(again.filter.expect("a filter").state, "running");
        let (got, _) = consume(client.subscribe(&whole_topic()).await).await;
        assert_eq!(got.len(), 4);
        assert_eq!(world.metric("millstream_filter_paused"), 0.0);
        assert_eq!(
            world.metric("millstream_filter_on_worker"),
            1.0,
            "killed once again"
        );
    });
}

#[test]
fn compiled_code_goes_with_the_last_deployment_and_at_a_start() {
    let mut world = World::new(|_| {});
    let compiled = world.config.data.join("components/compiled");
    let code = || {
        let files = std::fs::read_dir(&compiled).into_iter().flatten().flatten();
        let is_code = |name: &str| name.ends_with(".compiled");
        files
            .filter(|file| file.file_name().to_str().is_some_and(is_code))
            .count()
    };
    world.run(async {
        let client = world.connect().await;
        client.create_topic("t", 1).await;
        for (name, component) in [
            ("one", common::wat_filter("(call $error)")),
            ("two", JSON_FILTER.to_vec()),
        ] {
            let filter = FilterInfo {
                name: name.to_owned(),
                topic: "t".to_owned(),
                stage: "produce".to_owned(),
                parameters: expression("a == 1"),
                ..FilterInfo::default()
            };
            deploy_as(&client, filter, &component)
                .await
                .expect("deployed");
        }
        assert_eq!(code(), 2);
        remove(&client, "one").await;
        // It goes beside what is answered.
        while code() > 1 {
            let _: ListFiltersResponse = client
                .request(Kind::ListFilters, &ListFiltersRequest::default())
                .await
                .expect("listed");
        }
    });
    world.stop();
    std::fs::write(compiled.join("0123.compiled"), "of another version").expect("written");
    world.start_again();
    assert_eq!(code(), 1, "what the topic names stays");
}

const BAD_LINE: &[u8] = b"this is not JSON";

/// A batch of many, with one record that the filter cannot judge.
fn one_bad(records: usize, bad: usize) -> Bytes {
    let good: &[u8] = br#"{"level":"error"}"#;
    let values: Vec<&[u8]> = (0..records)
        .map(|i| if i == bad { BAD_LINE } else { good })
        .collect();
    batch(&values)
}

async fn list(client: &Client) -> Vec<FilterInfo> {
    let list: ListFiltersResponse = client
        .request(Kind::ListFilters, &ListFiltersRequest::default())
        .await
        .expect("listed");
    list.filters
}

#[test]
fn one_bad_record_is_refused_alone_and_the_list_shows_it() {
    let world = World::new(|_| {});
    world.run(async {
        let client = world.connect().await;
        let topic_id = client.create_topic("t", 1).await;
        deploy(
            &client,
            "produce",
            expression("level == 'error'"),
            Bytes::new(),
            JSON_FILTER,
        )
        .await
        .expect("deployed");
        let before = list(&client).await.remove(0);
        assert_eq!((before.errors, before.last_error.as_str()), (0, ""));
        let mut producer = client.producer(&ProducerOpen::default()).await;
        for tag in 1..=5 {
            let produce = Produce {
                tag,
                topic_id: topic_id.clone(),
                ..Produce::default()
            };
            producer.produce(produce, &one_bad(1_000, 777)).await;
            let produced: Produced = producer.expect(Kind::Produced).await.message().expect("it");
            assert_eq!((produced.kept, produced.refused), (Some(999), 1));
            assert_eq!(produced.base_offset, Some((tag - 1) * 999));
            assert_eq!(produced.refused_map[777 / 8], 1 << (777 % 8));
            let why = &produced.refusals[0];
            assert_eq!((why.record, why.filter.as_str()), (777, "errors"));
            assert!(why.message.contains("JSON"), "{}", why.message);
        }
        let after = list(&client).await.remove(0);
        assert_eq!((after.errors, after.state.as_str()), (5, "running"));
        assert!(
            after
                .last_error
                .contains("record 777 of a batch produced to t/0"),
            "{}",
            after.last_error
        );
        assert!(after.last_error_at_ms >= after.errors_since_ms && after.errors_since_ms > 0);
        assert_eq!(world.metric("millstream_filter_failed_records_total"), 5.0);
        assert_eq!(world.metric("millstream_filter_errors_total"), 0.0);
    });
}

/// A subscription whose filter cannot judge a record gets all before it, an error that names its offset, and
/// goes on behind it.
#[test]
fn a_subscription_stops_before_the_record_at_fault_and_goes_on_behind_it() {
    let world = World::new(|_| {});
    world.run(async {
        let client = world.connect().await;
        let topic_id = client.create_topic("t", 1).await;
        let mut producer = client.producer(&ProducerOpen::default()).await;
        let produce = Produce {
            tag: 1,
            topic_id: topic_id.clone(),
            ..Produce::default()
        };
        producer.produce(produce, &one_bad(100, 60)).await;
        producer.expect(Kind::Produced).await;
        // Not deployed on any topic: the broker brings it along.
        let mut stream = client
            .subscribe(&Subscribe {
                filters: vec![SubscriptionFilter {
                    name: "json-filter".to_owned(),
                    parameters: expression("level == 'error'"),
                }],
                ..whole("t")
            })
            .await;
        let mut got = Vec::new();
        let (handle, error) = loop {
            let frame = stream.next().await.expect("a frame");
            match frame.known() {
                Some(Kind::Batch) => {
                    let header: Batch = frame.message().expect("BATCH");
                    assert_eq!(
                        header.last_offset, 59,
                        "what comes next is the record at fault"
                    );
                    assert!(header.filtered, "its batch spans more");
                    got.extend(values(frame.payload.into_contiguous()).1);
                }
                Some(Kind::PartitionError) => {
                    let failed: PartitionError = frame.message().expect("PARTITION_ERROR");
                    break (failed.handle, failed.error.expect("why"));
                }
                Some(Kind::CaughtUp) => panic!("it is not at the end"),
                _ => {}
            }
        };
        assert_eq!((got.len(), error.code), (60, Code::FilterFailed.number()));
        assert!(
            error.message.contains("offset 60") && error.message.contains("JSON"),
            "{error:?}"
        );
        assert!(error.hint.contains("61"), "{error:?}");
        let seek = Seek {
            handle,
            to: Some(StartAt {
                at: Some(start_at::At::Offset(61)),
                ..StartAt::default()
            }),
            generation: 1,
        };
        stream.frame(Kind::Seek, &seek).await;
        let mut records = 0;
        let end = loop {
            let frame = stream.next().await.expect("a frame");
            match frame.known() {
                Some(Kind::Batch) => {
                    let batch = millstream_batch::Batch::check(frame.payload.into_contiguous())
                        .expect("a good batch");
                    let raw = batch.section();
                    // A batch is given whole: what is before the position is for the client to skip.
                    records += batch
                        .header()
                        .records(&raw)
                        .filter(|record| record.as_ref().expect("a good record").offset > 60)
                        .count();
                }
                Some(Kind::CaughtUp) => {
                    break frame.message::<CaughtUp>().expect("CAUGHT_UP").offset;
                }
                Some(Kind::PartitionError) => panic!("{frame:?}"),
                _ => {}
            }
        };
        assert_eq!((records, end), (39, 100));
    });
}

/// What a subscription brings is started once before it is of use, and named when it does not.
#[test]
fn parameters_of_a_subscription_are_checked_at_its_start() {
    let world = World::new(|config| config.plugins.batch_ms_max = 200);
    world.run(async {
        let client = world.connect().await;
        client.create_topic("t", 1).await;
        let loops = common::wat_component(
            "(if (global.get $next) (then (loop $e (br $e))))",
            "unreachable",
            "",
            "",
        );
        let filter = |name: &str| FilterInfo {
            name: name.to_owned(),
            topic: "t".to_owned(),
            stage: "subscribe".to_owned(),
            ..FilterInfo::default()
        };
        let refused = deploy_as(&client, filter("loops"), &loops)
            .await
            .expect_err("it loops");
        assert_eq!(refused.code, Code::BadConfig.number());
        assert!(
            refused
                .message
                .contains("filter `loops`: the component did not start within 200 ms"),
            "{refused:?}"
        );

        for (name, parameters, code, words) in [
            (
                "json-filter",
                expression("level == = 1"),
                Code::BadConfig,
                "filter `json-filter`: the component refused to start",
            ),
            (
                "nothing",
                Vec::new(),
                Code::UnknownFilter,
                "json-filter, key-filter",
            ),
        ] {
            let mut stream = client.open().await;
            let own = SubscriptionFilter {
                name: name.to_owned(),
                parameters,
            };
            let subscribe = Subscribe {
                filters: vec![own],
                ..whole_topic()
            };
            stream.frame(Kind::Subscribe, &subscribe).await;
            let error = stream.error().await;
            assert_eq!(error.code, code.number(), "{error:?}");
            assert!(error.message.contains(words), "{error:?}");
        }
    });
}

/// A request whose answer does not fit a header is answered all the same.
#[test]
fn a_deployment_with_long_parameters_is_answered() {
    let world = World::new(|_| {});
    world.run(async {
        let client = world.connect().await;
        client.create_topic("t", 1).await;
        let of = |parameters: &[Setting]| FilterInfo {
            name: "keys".to_owned(),
            topic: "t".to_owned(),
            stage: "produce".to_owned(),
            parameters: parameters.to_vec(),
            ..FilterInfo::default()
        };
        // The answer says more than the request, the longest of which fills a header.
        let size = |bytes: usize| {
            let value = Some("p".repeat(bytes));
            let key = "prefix".to_owned();
            let filter = Some(of(&[Setting { key, value }]));
            DeployFilterRequest { filter }.encoded_len()
        };
        let longest = (0..=FRAME_HEADER_BYTES_MAX)
            .rev()
            .find(|bytes| size(*bytes) <= FRAME_HEADER_BYTES_MAX)
            .expect("one fits");
        for bytes in [1_000, longest - 50, longest] {
            let parameters = vec![Setting {
                key: "prefix".to_owned(),
                value: Some("p".repeat(bytes)),
            }];
            let deployed = deploy_as(&client, of(&parameters), KEY_FILTER)
                .await
                .expect("deployed");
            let filter = deployed.filter.expect("a filter");
            assert_eq!(filter.parameters, parameters, "{bytes}");
        }
    });
}

/// `printf %s alice | sha256sum`, and of `bob`.
const ALICE: &str = "2bd806c97f0e00af1a1fc3328fa763a9269723c8db8fac4f93af71db186d6e90";
const BOB: &str = "81b637d8fcd2c6da6359e6963113a1170de795e4b725b84d1e0b4cfd9ec58ce9";

/// They may be secrets: others who see the topic see that there are such parameters.
#[test]
fn values_of_parameters_are_for_those_who_may_deploy() {
    let world = World::new(|config| {
        let principal = |name: &str, token_sha256: &str, rights: &[&str]| PrincipalSettings {
            name: name.to_owned(),
            token_sha256: Some(token_sha256.to_owned()),
            rights: rights.iter().map(|right| (*right).to_owned()).collect(),
            ..PrincipalSettings::default()
        };
        config.principals = vec![
            principal("alice", ALICE, &["admin", "deploy"]),
            principal("bob", BOB, &["produce", "admin"]),
        ];
    });
    world.run(async {
        let (alice, _) = world.connect_with("alice").await;
        let (bob, _) = world.connect_with("bob").await;
        alice.create_topic("t", 1).await;
        deploy(
            &alice,
            "produce",
            expression("key == 's3cret'"),
            Bytes::new(),
            JSON_FILTER,
        )
        .await
        .expect("deployed");
        for (client, value) in [(&alice, Some("key == 's3cret'".to_owned())), (&bob, None)] {
            let described: DescribeTopicResponse = client
                .request(
                    Kind::DescribeTopic,
                    &DescribeTopicRequest {
                        name: "t".to_owned(),
                        partitions: false,
                        ..DescribeTopicRequest::default()
                    },
                )
                .await
                .expect("described");
            let topics: ListTopicsResponse = client
                .request(Kind::ListTopics, &ListTopicsRequest::default())
                .await
                .expect("listed");
            let topics = topics.topics.into_iter().chain(described.topic);
            let filters = topics.flat_map(|topic| topic.filters);
            let mut seen = 0;
            for filter in list(client).await.into_iter().chain(filters) {
                assert_eq!(filter.parameters.len(), 1);
                assert_eq!(filter.parameters[0].key, "expr");
                assert_eq!(filter.parameters[0].value, value);
                assert_eq!(filter.values_hidden, value.is_none());
                seen += 1;
            }
            assert_eq!(seen, 3);
        }
    });
}

/// Damage of before the walk at the door: what was compressed is stored as it came.
#[test]
fn a_batch_that_no_filter_can_read_is_named_behind_the_good_ones_before_it() {
    let world = World::new(|_| {});
    world.run(async {
        let client = world.connect().await;
        let topic_id = client.create_topic("t", 1).await;
        deploy(
            &client,
            "subscribe",
            expression("level == 'error'"),
            Bytes::new(),
            JSON_FILTER,
        )
        .await
        .expect("deployed");
        let mut producer = client.producer(&ProducerOpen::default()).await;
        let good = batch(&RECORDS);
        let bad = poison(&RECORDS, not_compressed);
        for (tag, batch) in [
            (1, &good[..]),
            (2, &good[..]),
            (3, &bad[..]),
            (4, &good[..]),
        ] {
            let header = Produce {
                tag,
                topic_id: topic_id.clone(),
                ..Produce::default()
            };
            producer.produce(header, batch).await;
            producer.expect(Kind::Produced).await;
        }
        let mut stream = client.subscribe(&whole("t")).await;
        let (mut read, mut handle) = (Vec::new(), 0);
        let error = loop {
            let frame = stream.next().await.expect("a frame");
            match frame.known() {
                Some(Kind::Batch) => {
                    let header: Batch = frame.message().expect("BATCH");
                    handle = header.handle;
                    read.push(header.base_offset);
                }
                Some(Kind::PartitionError) => {
                    let failed: PartitionError = frame.message().expect("PARTITION_ERROR");
                    break failed.error.expect("why");
                }
                _ => {}
            }
        };
        assert_eq!(read, [0, 4], "what came before is given");
        let told = (error.code, error.next_offset);
        assert_eq!(
            told,
            (Code::FilterFailed.number(), Some(12)),
            "{}",
            error.message
        );
        assert!(error.message.contains("8 to 11"), "{}", error.message);
        let to = Some(StartAt {
            at: Some(start_at::At::Offset(12)),
            leader_epoch: None,
        });
        let seek = Seek {
            handle,
            to,
            generation: 1,
        };
        stream.frame(Kind::Seek, &seek).await;
        stream.expect(Kind::Sought).await;
        let header: Batch = stream.expect(Kind::Batch).await.message().expect("BATCH");
        assert_eq!(header.base_offset, 12);
    });
}
