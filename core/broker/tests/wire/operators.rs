//! HTTP for operators, and a graceful stop as clients see it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use millstream_protocol::messages::{
    Produce, ProducerOpen, StatusRequest, StatusResponse, Subscribe,
};
use millstream_protocol::{Code, Kind};

use crate::client::{PATIENCE, World, batch};

fn get(world: &World, path: &str) -> (u16, String) {
    let mut stream =
        TcpStream::connect(world.broker().http_address().expect("it listens")).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("read");
    let status = answer
        .split_whitespace()
        .nth(1)
        .and_then(|s| s.parse().ok())
        .expect("a status");
    (
        status,
        answer.split_once("\r\n\r\n").expect("a body").1.to_owned(),
    )
}

#[test]
fn health_metrics_and_status() {
    let world = World::new(|_| {});
    assert_eq!(
        (
            get(&world, "/livez").0,
            get(&world, "/readyz").0,
            get(&world, "/x").0
        ),
        (200, 200, 404)
    );
    world.run(async {
        let client = world.connect().await;
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
        let status: StatusResponse = client
            .request(Kind::Status, &StatusRequest {})
            .await
            .expect("status");
        let status: serde_json::Value = serde_json::from_str(&status.json).expect("JSON");
        assert_eq!(status["shards"].as_array().map(Vec::len), Some(2));
    });
    let (_, metrics) = get(&world, "/metrics");
    let value = |name: &str| -> f64 {
        let samples = metrics
            .lines()
            .filter(|line| line.split(['{', ' ']).next() == Some(name));
        samples
            .map(|line| {
                line.rsplit(' ')
                    .next()
                    .and_then(|v| v.parse::<f64>().ok())
                    .expect("a number")
            })
            .sum()
    };
    assert_eq!(
        (
            value("millstream_batches_received_total"),
            value("millstream_produce_seconds_count")
        ),
        (1.0, 1.0)
    );
    assert!(
        value("process_resident_memory_bytes") > 1e6 && value("process_cpu_seconds_total") > 0.0
    );
    // The exposition format: a TYPE line before the samples of each family, `le` cumulative.
    let buckets: Vec<f64> = metrics
        .lines()
        .filter(|line| line.starts_with("millstream_produce_seconds_bucket{shard=\"0\""))
        .map(|line| {
            line.rsplit(' ')
                .next()
                .and_then(|v| v.parse().ok())
                .expect("a number")
        })
        .collect();
    assert!(
        buckets.len() == 15 && buckets.windows(2).all(|pair| pair[0] <= pair[1]),
        "{buckets:?}"
    );
}

/// The fields are those of opentelemetry-proto's `ExportMetricsServiceRequest`.
#[test]
fn metrics_are_exported_to_a_collector() {
    let collector = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("bound");
    let endpoint = format!("http://{}", collector.local_addr().expect("an address"));
    let _world = World::new(|config| {
        config.telemetry.otlp_endpoint = Some(endpoint);
        config.telemetry.interval_ms = 50;
    });
    let (mut stream, _) = collector.accept().expect("the broker comes");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    let mut text = Vec::new();
    let body = loop {
        let mut chunk = [0; 4096];
        let bytes = stream.read(&mut chunk).expect("read");
        text.extend_from_slice(&chunk[..bytes]);
        let all = String::from_utf8_lossy(&text).into_owned();
        let Some((head, body)) = all.split_once("\r\n\r\n") else {
            continue;
        };
        assert!(head.starts_with("POST /v1/metrics HTTP/1.1"), "{head}");
        let length = head.lines().find_map(|line| {
            line.to_lowercase()
                .strip_prefix("content-length: ")?
                .parse()
                .ok()
        });
        if body.len() >= length.expect("a length") {
            break body.to_owned();
        }
    };
    stream
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        .expect("written");
    let export: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    let metrics = export["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]
        .as_array()
        .expect("metrics");
    let of = |name: &str| {
        metrics
            .iter()
            .find(|metric| metric["name"] == name)
            .expect("there")
    };
    assert_eq!(
        of("millstream_connections_total")["sum"]["isMonotonic"],
        true
    );
    let point = &of("millstream_sync_seconds")["histogram"]["dataPoints"][0];
    let (bounds, counts) = (&point["explicitBounds"], &point["bucketCounts"]);
    assert_eq!(
        counts.as_array().map(Vec::len),
        bounds.as_array().map(|bounds| bounds.len() + 1)
    );
}

#[test]
fn a_stop_answers_what_is_in_flight_and_says_goodbye() {
    let mut world = World::new(|_| {});
    let (client, mut producer, mut subscription) = world.run(async {
        let client = world.connect().await;
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
        let wish = Subscribe {
            topics: vec!["t".to_owned()],
            credit_bytes: 1 << 20,
            ..Subscribe::default()
        };
        let mut subscription = client.subscribe(&wish).await;
        while subscription.next().await.expect("a frame").known() != Some(Kind::CaughtUp) {}
        (client, producer, subscription)
    });
    // The broker stops on its own threads while the client listens on this one.
    let broker = world.take_broker();
    let stopping = std::thread::spawn(move || broker.stop());
    world.run(async {
        for stream in [&mut producer, &mut subscription] {
            let error = stream.error().await;
            assert_eq!(
                (error.code, error.tag, error.retriable),
                (Code::Stopping.number(), 0, true)
            );
            assert!(stream.next().await.is_none());
        }
        let reason = client.connection.closed().await;
        let quinn::ConnectionError::ApplicationClosed(close) = reason else {
            panic!("{reason}")
        };
        assert_eq!(
            close.error_code.into_inner(),
            u64::from(Code::Stopping.number())
        );
    });
    stopping.join().expect("no panic").expect("a clean stop");
    world.start_again();
    world.run(async { world.connect().await });
}
