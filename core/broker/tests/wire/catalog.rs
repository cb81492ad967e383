//! Requests that change topics: repeated, asking for too much, and under way when the broker stops.

use bytes::{Bytes, BytesMut};
use millstream_broker::PrincipalSettings;
use millstream_protocol::frame::encode_head;
use millstream_protocol::messages::{
    self, CreateTopicRequest, CreateTopicResponse, DeleteTopicRequest, DeleteTopicResponse,
    DeployFilterRequest, FilterInfo, HelloRequest, HelloResponse,
};
use millstream_protocol::{Code, Kind};

use crate::client::{Client, Stream, World};

const JSON_FILTER: &[u8] = include_bytes!("../../../../plugins/dist/json-filter.wasm");

async fn create(client: &Client, key: &'static [u8]) -> Result<(Bytes, bool), u32> {
    let request = CreateTopicRequest {
        name: "t".to_owned(),
        partitions: 3,
        key: Bytes::from_static(key),
        ..CreateTopicRequest::default()
    };
    let answer: Result<CreateTopicResponse, _> = client.request(Kind::CreateTopic, &request).await;
    answer
        .map(|answer| (answer.topic.expect("a topic").id, answer.created))
        .map_err(|error| error.code)
}

#[test]
fn a_create_that_is_repeated_is_answered_as_the_first_time() {
    let mut world = World::new(|_| {});
    let exists = Err(Code::TopicExists.number());
    let first = world.run(async {
        let client = world.connect().await;
        let first = create(&client, b"k1").await.expect("created");
        assert!(first.1);
        assert_eq!(create(&client, b"k1").await, Ok(first.clone()));
        assert_eq!(create(&client, b"k2").await, exists, "another request");
        assert_eq!(
            create(&client, b"").await,
            exists,
            "a request without a key"
        );
        assert_eq!(
            create(&client, &[7; 33]).await,
            Err(Code::BadRequest.number())
        );
        first
    });
    world.stop();
    world.start_again();
    world.run(async {
        let client = world.connect().await;
        assert_eq!(create(&client, b"k1").await, Ok(first));
        let delete = DeleteTopicRequest {
            name: "t".to_owned(),
        };
        let _: DeleteTopicResponse = client
            .request(Kind::DeleteTopic, &delete)
            .await
            .expect("deleted");
        let late = create(&client, b"k1").await;
        assert_eq!(
            late,
            Err(Code::BadConfig.number()),
            "a late repeat brings nothing back"
        );
        assert!(create(&client, b"k3").await.expect("created").1);
    });
}

/// `printf %s alice | sha256sum`, and of `bob`.
const ALICE: &str = "2bd806c97f0e00af1a1fc3328fa763a9269723c8db8fac4f93af71db186d6e90";
const BOB: &str = "81b637d8fcd2c6da6359e6963113a1170de795e4b725b84d1e0b4cfd9ec58ce9";

#[test]
fn a_key_of_somebody_else_is_another_request() {
    let world = World::new(|config| {
        let principal = |name: &str, token_sha256: &str| PrincipalSettings {
            name: name.to_owned(),
            token_sha256: Some(token_sha256.to_owned()),
            rights: vec!["admin".to_owned()],
            ..PrincipalSettings::default()
        };
        config.principals = vec![principal("alice", ALICE), principal("bob", BOB)];
    });
    world.run(async {
        for (token, created) in [("alice", true), ("bob", false), ("alice", true)] {
            let client = world.connect_silently().await;
            let hello = HelloRequest {
                version_min: 1,
                version_max: 1,
                token: token.to_owned(),
                ..HelloRequest::default()
            };
            let _: HelloResponse = client.request(Kind::Hello, &hello).await.expect("known");
            assert_eq!(create(&client, b"k").await.is_ok(), created, "{token}");
        }
    });
}

/// The frame has left; its answer is to come.
async fn deploy(client: &Client, memory_bytes_max: u64, batch_ms_max: u32) -> Stream {
    let filter = FilterInfo {
        name: "errors".to_owned(),
        topic: "t".to_owned(),
        stage: "produce".to_owned(),
        parameters: vec![messages::Setting {
            key: "expr".to_owned(),
            value: Some("level == 'error'".to_owned()),
        }],
        memory_bytes_max,
        batch_ms_max,
        ..FilterInfo::default()
    };
    let request = DeployFilterRequest {
        filter: Some(filter),
    };
    let mut frame = BytesMut::new();
    encode_head(&mut frame, Kind::DeployFilter, &request, JSON_FILTER.len());
    frame.extend_from_slice(JSON_FILTER);
    let mut stream = client.open().await;
    stream.write(&frame).await;
    stream.send.finish().expect("finished");
    stream
}

#[test]
fn a_budget_over_the_brokers_bound_is_refused_not_cut() {
    let world = World::new(|config| {
        config.plugins.memory_bytes_max = 32 << 20;
        config.plugins.batch_ms_max = 500;
    });
    world.run(async {
        let client = world.connect().await;
        client.create_topic("t", 1).await;
        for (memory, ms, named) in [
            ((32 << 20) + 1, 0, "memory_bytes_max"),
            (0, 501, "batch_ms_max"),
        ] {
            let refused = deploy(&client, memory, ms).await.error().await;
            assert_eq!(refused.code, Code::BadConfig.number());
            assert!(refused.message.contains(named), "{}", refused.message);
        }
        let mut taken = deploy(&client, 32 << 20, 500).await;
        taken.expect(Kind::DeployFilter).await;
    });
}

#[test]
fn a_stop_waits_for_requests_under_way() {
    let mut world = World::new(|config| config.limits.drain_ms = 50_000);
    let (client, mut stream) = world.run(async {
        let client = world.connect().await;
        client.create_topic("t", 1).await;
        // Compiling takes the broker a while.
        let stream = deploy(&client, 0, 0).await;
        (client, stream)
    });
    // The frame leaves while the runtime runs.
    while world.metric("millstream_requests_running") < 1.0
        && world.metric("millstream_requests_total") < 2.0
    {
        world.run(tokio::task::yield_now());
    }
    let broker = world.take_broker();
    let stopping = std::thread::spawn(move || broker.stop());
    world.run(async {
        stream.expect(Kind::DeployFilter).await;
        client.connection.closed().await;
    });
    let stopped = stopping.join().expect("no panic");
    stopped.expect("it stops");
}
