//! Clients that break the rules, or only use them up: the broker goes on serving others.

use bytes::Bytes;
use millstream_broker::PrincipalSettings;
use millstream_protocol::messages::{
    CreateTopicRequest, CreateTopicResponse, HelloRequest, HelloResponse, ListTopicsRequest,
    ListTopicsResponse, PingRequest, PingResponse, Produce, ProducerOpen, Subscribe,
};
use millstream_protocol::{Code, Kind};

use crate::client::{Client, World, batch, whole};

async fn alive(client: &Client) {
    let _: PingResponse = client
        .request(Kind::Ping, &PingRequest {})
        .await
        .expect("it answers");
}

#[test]
fn garbage_is_answered_with_an_error_and_others_are_served() {
    let world = World::new(|_| {});
    world.run(async {
        let client = world.connect().await;
        let cases: [(&[u8], Code); 7] = [
            (&[3, 0, 0, 0, 3, 0, 0, 0], Code::BadRequest), // a length below its own prefix
            (&[255, 255, 255, 255, 3, 0, 0, 0], Code::TooLarge), // 4 GiB
            (&[4, 0, 0, 0, 0xe7, 3, 0, 0], Code::Unsupported), // kind 999
            (&[6, 0, 0, 0, 16, 0, 2, 0, 0xff, 0xff], Code::BadRequest), // no protobuf
            (&[4, 0, 0, 0, 35, 0, 0, 0], Code::BadRequest), // PRODUCE opens nothing
            (&[4, 0, 0, 0, 36, 0, 0, 0], Code::BadRequest), // PRODUCED is ours to say
            (&[0, 0, 0x20, 0, 16, 0, 0, 0], Code::TooLarge), // 2 MiB of CREATE_TOPIC
        ];
        for (bytes, code) in cases {
            let mut stream = client.open().await;
            stream.write(bytes).await;
            assert_eq!(stream.error().await.code, code.number(), "{bytes:?}");
        }
        // Pseudo-random bytes, the same in every run.
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        for _ in 0..200 {
            let mut stream = client.open().await;
            let bytes: Vec<u8> = (0..64)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state as u8
                })
                .collect();
            stream.write(&bytes).await;
            drop(stream.send.finish()); // it may have been stopped already
        }
        alive(&client).await;
    });
}

#[test]
fn bad_batches_are_refused_one_by_one() {
    let world = World::new(|_| {});
    world.run(async {
        let client = world.connect().await;
        let topic_id = client.create_topic("t", 1).await;
        let mut producer = client.producer(&ProducerOpen::default()).await;
        let good = batch(&[b"x"]);
        let mut flipped = good.to_vec();
        *flipped.last_mut().expect("bytes") ^= 1;
        let cut = &good[..good.len() - 1];
        let unknown = Bytes::from_static(&[9; 16]);
        for (tag, batch, topic, partition, code) in [
            (1, &flipped[..], &topic_id, 0, Code::BadBatch),
            (2, cut, &topic_id, 0, Code::BadBatch),
            (3, b"", &topic_id, 0, Code::BadBatch),
            (4, &good[..], &unknown, 0, Code::UnknownTopic),
            (5, &good[..], &topic_id, 7, Code::UnknownPartition),
        ] {
            let header = Produce {
                tag,
                topic_id: topic.clone(),
                partition,
                ..Produce::default()
            };
            producer.produce(header, batch).await;
            let error = producer.error().await;
            assert_eq!(
                (error.tag, error.code),
                (tag, code.number()),
                "{}",
                error.message
            );
        }
        producer
            .produce(
                Produce {
                    tag: 6,
                    topic_id: topic_id.clone(),
                    ..Produce::default()
                },
                &good,
            )
            .await;
        producer.expect(Kind::Produced).await;
        // A tag out of turn ends the stream.
        producer
            .produce(
                Produce {
                    tag: 9,
                    topic_id,
                    ..Produce::default()
                },
                &good,
            )
            .await;
        let error = producer.error().await;
        assert_eq!((error.tag, error.code), (0, Code::BadRequest.number()));
        assert!(producer.next().await.is_none());
        alive(&client).await;
    });
}

#[test]
fn ten_thousand_idle_streams_cost_little() {
    let world = World::new(|_| {});
    world.run(async {
        let client = world.connect().await;
        alive(&client).await;
        let before = resident_bytes();
        let mut streams = Vec::new();
        for _ in 0..10_000 {
            let mut stream = client.open().await;
            stream.write(&[1]).await; // part of a frame: the broker has to hold it
            streams.push(stream);
        }
        alive(&client).await;
        // Both ends are in this process.
        let grown = resident_bytes().saturating_sub(before);
        assert!(grown < 200 << 20, "{grown} bytes for 10,000 streams");
    });
}

#[test]
fn a_client_that_never_reads_holds_back_only_itself() {
    let world = World::new(|config| config.memory.send_bytes = 32 << 20);
    world.run(async {
        let client = world.connect().await;
        let topic_id = client.create_topic("t", 1).await;
        let mut producer = client.producer(&ProducerOpen::default()).await;
        let large = batch(&[&vec![7; 1 << 20]]);
        for tag in 1..=64 {
            producer
                .produce(
                    Produce {
                        tag,
                        topic_id: topic_id.clone(),
                        ..Produce::default()
                    },
                    &large,
                )
                .await;
            producer.expect(Kind::Produced).await;
        }
        let wish = Subscribe {
            credit_bytes: 1 << 40,
            ..whole("t")
        };
        let mut deaf = Vec::new();
        for _ in 0..8 {
            let other = world.connect().await;
            let stream = other.subscribe(&wish).await;
            deaf.push((other, stream)); // never read
        }
        let mut stream = client
            .subscribe(&Subscribe {
                stop_at_end: true,
                ..wish
            })
            .await;
        let mut batches = 0;
        while let Some(frame) = stream.next().await {
            batches += u32::from(frame.known() == Some(Kind::Batch));
        }
        assert_eq!(batches, 64);
        alive(&client).await;
    });
}

#[test]
fn half_a_frame_does_not_hold_memory_for_ever() {
    let world = World::new(|config| {
        config.limits.frame_stall_ms = 200;
        config.memory.ingress_bytes = 32 << 20;
    });
    world.run(async {
        let client = world.connect().await;
        let mut streams = Vec::new();
        for _ in 0..8 {
            let mut producer = client.producer(&ProducerOpen::default()).await;
            producer.write(&[4, 0, 0x80, 0, 35, 0, 0, 0, 1, 2, 3]).await; // of 8 MiB
            streams.push(producer);
        }
        for stream in &mut streams {
            assert_eq!(stream.error().await.code, Code::BadRequest.number());
        }
        let topic_id = client.create_topic("t", 1).await;
        let mut producer = client.producer(&ProducerOpen::default()).await;
        producer
            .produce(
                Produce {
                    tag: 1,
                    topic_id,
                    ..Produce::default()
                },
                &batch(&[b"x"]),
            )
            .await;
        producer.expect(Kind::Produced).await;
    });
}

/// `printf %s secret | sha256sum`
const SECRET: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";

#[test]
fn who_is_not_known_or_not_allowed_gets_nothing() {
    let world = World::new(|config| {
        config.principals = vec![PrincipalSettings {
            name: "app".to_owned(),
            token_sha256: Some(SECRET.to_owned()),
            rights: vec!["produce".to_owned()],
            topics: "shop.".to_owned(),
            ..PrincipalSettings::default()
        }];
    });
    world.run(async {
        let hello = |token: &str| HelloRequest {
            version_min: 1,
            version_max: 3,
            token: token.to_owned(),
            ..HelloRequest::default()
        };
        for token in ["", "wrong"] {
            let stranger = world.connect_silently().await;
            let refused = stranger
                .request::<HelloResponse>(Kind::Hello, &hello(token))
                .await
                .expect_err("unknown");
            assert_eq!(refused.code, Code::Unauthenticated.number());
            stranger.connection.closed().await;
        }
        let app = world.connect_silently().await;
        let answer: HelloResponse = app
            .request(Kind::Hello, &hello("secret"))
            .await
            .expect("known");
        assert_eq!((answer.principal.as_str(), answer.version), ("app", 1));
        let create = CreateTopicRequest {
            name: "shop.a".to_owned(),
            ..CreateTopicRequest::default()
        };
        let refused = app
            .request::<CreateTopicResponse>(Kind::CreateTopic, &create)
            .await
            .expect_err("no admin");
        assert_eq!(refused.code, Code::Forbidden.number());
        let topics: ListTopicsResponse = app
            .request(Kind::ListTopics, &ListTopicsRequest::default())
            .await
            .expect("a list");
        assert!(topics.topics.is_empty());
        let wish = Subscribe {
            topics: vec!["shop.a".to_owned()],
            ..Subscribe::default()
        };
        assert_eq!(
            app.subscribe(&wish).await.error().await.code,
            Code::Forbidden.number()
        );
        let old = world.connect_silently().await;
        let request = HelloRequest {
            version_min: 2,
            version_max: 3,
            ..hello("secret")
        };
        let refused = old
            .request::<HelloResponse>(Kind::Hello, &request)
            .await
            .expect_err("no common version");
        assert_eq!(refused.code, Code::Unsupported.number());
    });
}

#[test]
fn no_stream_is_served_before_hello() {
    let world = World::new(|config| config.limits.hello_ms = 300);
    world.run(async {
        let client = world.connect_silently().await;
        let mut stream = client.open().await;
        stream.frame(Kind::Ping, &PingRequest {}).await;
        let reason = client.connection.closed().await;
        let quinn::ConnectionError::ApplicationClosed(close) = reason else {
            panic!("{reason}")
        };
        assert_eq!(
            close.error_code.into_inner(),
            u64::from(Code::Unauthenticated.number())
        );
    });
}

#[test]
fn who_never_says_hello_leaves_nothing_behind() {
    let world = World::new(|config| config.limits.hello_ms = 300);
    world.run(async {
        let mut large = vec![0; 8 + (4 << 20)];
        large[..8].copy_from_slice(&[4, 0, 0x40, 0, 35, 0, 0, 0]); // PRODUCE of 4 MiB
        // One is put out, the other goes by itself.
        let (silent, leaving) = (
            world.connect_silently().await,
            world.connect_silently().await,
        );
        let (mut left, mut put_out) = (leaving.open().await, silent.open().await);
        drop(left.send.write_all(&large[..1 << 20]).await); // fails when the connection is closed first
        leaving.connection.close(0u32.into(), b"");
        drop(put_out.send.write_all(&large).await); // as above
        silent.connection.closed().await;
        let other = world.connect().await;
        loop {
            alive(&other).await;
            let held = world.metric("millstream_ingress_bytes");
            let streams = world.metric("millstream_streams");
            if held == 0.0 && streams == 0.0 {
                break; // else `run` loses its patience
            }
        }
    });
}

fn resident_bytes() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    stat.split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok())
        .expect("a number")
        * 4096
}
