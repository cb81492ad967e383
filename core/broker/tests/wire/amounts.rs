//! Requests that ask for much: what a client may make the broker hold or do, and what others get meanwhile.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use bytes::Bytes;
use millstream_protocol::messages::{
    DescribeTopicRequest, DescribeTopicResponse, FixedPartition, ListTopicsRequest,
    ListTopicsResponse, PingRequest, PingResponse, Produce, ProducerOpen, Released,
    ResetGroupRequest, ResetGroupResponse, StartAt, Subscribe, start_at,
};
use millstream_protocol::{Code, Kind};

use crate::client::{Client, PATIENCE, World, batch, from_start, whole};

async fn alive(client: &Client) {
    let _: PingResponse = client
        .request(Kind::Ping, &PingRequest {})
        .await
        .expect("it answers");
}

/// The most memory that this process ever had.
fn resident_peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = peak.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.expect("a number") << 10
}

#[test]
fn names_repeated_in_a_subscribe_are_found_before_they_are_expanded() {
    let world = World::new(|_| {});
    world.run(async {
        let client = world.connect().await;
        client.create_topic("t", 1_000).await;
        let before = resident_peak();
        let repeated = Subscribe {
            topics: vec!["t".to_owned(); 15_000],
            ..Subscribe::default()
        };
        let error = client.subscribe(&repeated).await.error().await;
        assert_eq!(error.code, Code::BadRequest.number(), "{}", error.message);
        // 15,000,000 partitions to open would be 600 MB, before the first is looked at.
        let grown = resident_peak().saturating_sub(before);
        assert!(grown < 256 << 20, "{grown} bytes");
        let mut named = repeated;
        named.topics.clear();
        named.partitions = vec![
            FixedPartition {
                topic: "t".to_owned(),
                partition: 7,
                from: None,
            };
            2
        ];
        let error = client.subscribe(&named).await.error().await;
        assert_eq!(error.code, Code::BadRequest.number(), "{}", error.message);
        alive(&client).await;
    });
}

#[test]
fn lists_of_nothing_are_refused_unread() {
    let world = World::new(|_| {});
    world.run(async {
        let client = world.connect().await;
        let nothing = Subscribe {
            partitions: vec![FixedPartition::default(); 200_000],
            ..Subscribe::default()
        };
        let error = client.subscribe(&nothing).await.error().await;
        assert_eq!(error.code, Code::TooLarge.number(), "{}", error.message);
        alive(&client).await;
    });
}

#[test]
fn a_subscription_and_a_principal_read_no_more_partitions_than_they_may() {
    let world = World::new(|config| {
        config.limits.subscription_partitions_max = 20;
        config.limits.principal_partitions_max = 25;
    });
    world.run(async {
        let client = world.connect().await;
        client.create_topic("a", 15).await;
        client.create_topic("b", 15).await;
        let both = Subscribe {
            topics: vec!["a".to_owned(), "b".to_owned()],
            ..Subscribe::default()
        };
        let error = client.subscribe(&both).await.error().await;
        assert_eq!(error.code, Code::TooLarge.number(), "{}", error.message);
        let mut first = client.subscribe(&whole("a")).await;
        first.expect(Kind::Subscribed).await;
        let other = world.connect().await;
        let error = other.subscribe(&whole("b")).await.error().await;
        assert_eq!(error.code, Code::Busy.number(), "{}", error.message);
        assert!(error.retriable && error.retry_after_ms > 0);
        // A member of a group is held to the same when partitions come to it.
        let member = Subscribe {
            group: "g".to_owned(),
            topics: vec!["b".to_owned()],
            ..Subscribe::default()
        };
        let mut joined = other.subscribe(&member).await;
        joined.expect(Kind::Subscribed).await;
        joined.expect(Kind::Assigned).await; // how many are coming
        assert_eq!(joined.error().await.code, Code::Busy.number());
        // What is over is given back.
        drop(first.send.finish());
        while first.next().await.is_some() {}
        loop {
            let mut second = other.subscribe(&whole("b")).await;
            if second.next().await.expect("a frame").known() == Some(Kind::Subscribed) {
                break; // else `run` loses its patience
            }
        }
    });
}

#[test]
fn frames_of_a_subscription_name_no_more_than_it_has() {
    let world = World::new(|_| {});
    world.run(async {
        let client = world.connect().await;
        client.create_topic("t", 1).await;
        let mut stream = client.subscribe(&whole("t")).await;
        stream.expect(Kind::Subscribed).await;
        let handles = vec![9; 500_000];
        stream.frame(Kind::Released, &Released { handles }).await;
        loop {
            let frame = stream.next().await.expect("an ERROR");
            if frame.known() == Some(Kind::Error) {
                let error: millstream_protocol::messages::Error =
                    frame.message().expect("an ERROR");
                assert_eq!(error.code, Code::TooLarge.number(), "{}", error.message);
                break;
            }
        }
        alive(&client).await;
    });
}

#[test]
fn a_reset_names_each_partition_once() {
    let world = World::new(|_| {});
    world.run(async {
        let client = world.connect().await;
        client.create_topic("t", 3).await;
        let reset = |partitions| ResetGroupRequest {
            group: "g".to_owned(),
            topic: "t".to_owned(),
            partitions,
            to: Some(StartAt {
                at: Some(start_at::At::Start(true)),
                leader_epoch: None,
            }),
            dry_run: true,
            create: true,
            ..ResetGroupRequest::default()
        };
        for (partitions, code) in [
            (vec![1; 300_000], Code::BadRequest),
            (vec![0, 3], Code::UnknownPartition),
        ] {
            let refused = client
                .request::<ResetGroupResponse>(Kind::ResetGroup, &reset(partitions))
                .await
                .expect_err("not each once");
            assert_eq!(refused.code, code.number(), "{}", refused.message);
        }
        let answer: ResetGroupResponse = client
            .request(Kind::ResetGroup, &reset(vec![2, 0]))
            .await
            .expect("a dry run");
        let named: Vec<u32> = answer.offsets.iter().map(|row| row.partition).collect();
        assert_eq!(named, [0, 2]);
    });
}

#[test]
fn lists_come_in_pages() {
    let world = World::new(|config| config.limits.connections_max = 100);
    world.run(async {
        let client = world.connect().await;
        let mut names = Vec::new();
        for i in 0..510 {
            names.push(format!("t{i:04}"));
            client.create_topic(&names[i], 1).await;
        }
        client.create_topic("wide", 1_003).await;
        names.push("wide".to_owned());
        let mut seen = Vec::new();
        let mut pages = 0;
        let mut request = ListTopicsRequest::default();
        loop {
            let page: ListTopicsResponse = client
                .request(Kind::ListTopics, &request)
                .await
                .expect("a page");
            assert!(page.topics.len() <= 500, "{}", page.topics.len());
            pages += 1;
            seen.extend(page.topics.into_iter().map(|topic| topic.name));
            if page.next.is_empty() {
                break;
            }
            request.after = page.next;
        }
        seen.sort_unstable();
        assert_eq!((seen, pages), (names, 3), "the last page is empty");
        let mut described = Vec::new();
        let mut request = DescribeTopicRequest {
            name: "wide".to_owned(),
            partitions: true,
            from_partition: 0,
        };
        loop {
            let page: DescribeTopicResponse = client
                .request(Kind::DescribeTopic, &request)
                .await
                .expect("a page");
            assert!(page.partitions.len() <= 1_000);
            described.extend(page.partitions.iter().map(|info| info.partition));
            match page.next_partition {
                0 => break,
                next => request.from_partition = next,
            }
        }
        assert!(described.into_iter().eq(0..1_003));
    });
}

#[test]
fn topics_that_nobody_knows_are_refused_at_once_and_a_new_one_is_found() {
    let world = World::new(|_| {});
    world.run(async {
        let client = world.connect().await;
        let mut producer = client.producer(&ProducerOpen::default()).await;
        let good = batch(&[b"x"]);
        for tag in 1..=200_u64 {
            let topic_id = Bytes::copy_from_slice(&u128::from(tag % 100).to_be_bytes());
            let header = Produce {
                tag,
                topic_id,
                ..Produce::default()
            };
            producer.produce(header, &good).await;
            let error = producer.error().await;
            assert_eq!(error.code, Code::UnknownTopic.number(), "{}", error.message);
        }
        let other = world.connect().await;
        let topic_id = other.create_topic("new", 1).await;
        let header = Produce {
            tag: 201,
            topic_id,
            ..Produce::default()
        };
        producer.produce(header, &good).await;
        producer.expect(Kind::Produced).await;
        let mut stream = client
            .subscribe(&Subscribe {
                from: from_start(),
                ..whole("new")
            })
            .await;
        stream.expect(Kind::Subscribed).await;
    });
}

#[test]
fn probes_are_answered_beside_clients_that_never_read() {
    let world = World::new(|_| {});
    let http = world.broker().http_address().expect("it listens");
    let request = |path: &str, host: &str| {
        let mut stream = TcpStream::connect(http).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").expect("written");
        stream
    };
    let answer = |mut stream: TcpStream| {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("read");
        answer
    };
    // One asks and does not read, the other says nothing at all.
    let deaf: Vec<_> = (0..100).map(|_| request("/metrics", "localhost")).collect();
    let mute: Vec<_> = (0..100)
        .map(|_| TcpStream::connect(http).expect("connected"))
        .collect();
    assert!(answer(request("/livez", "127.0.0.1:7412")).starts_with("HTTP/1.1 200"));
    assert!(answer(request("/readyz", "[::1]")).starts_with("HTTP/1.1 200"));
    assert!(answer(request("/status", "elsewhere.example")).starts_with("HTTP/1.1 421"));
    drop((deaf, mute));
}
