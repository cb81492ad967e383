//! HTTP for operators, and a graceful stop as clients see it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};

use millstream_protocol::messages::{
    Produce, ProducerOpen, StatusRequest, StatusResponse, Subscribe,
};
use millstream_protocol::{Code, Kind};
use serde_json::{Value as Json, json};

use crate::client::{PATIENCE, World, batch, whole};

fn get(world: &World, path: &str) -> (u16, String) {
    let mut stream =
        TcpStream::connect(world.broker().http_address().expect("it listens")).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
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

/// A collector: what is posted to it, by path. It ends with who listens.
fn collector() -> (String, Receiver<(String, Json)>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bound");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let (posts, posted) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.expect("a connection"));
            let mut head = Vec::new();
            for line in stream.by_ref().lines() {
                match line.expect("a line") {
                    line if line.is_empty() => break,
                    line => head.push(line),
                }
            }
            let length = head.iter().find_map(|line| {
                let line = line.to_lowercase();
                line.strip_prefix("content-length: ")?.parse().ok()
            });
            let mut body = vec![0; length.expect("a length")];
            stream.read_exact(&mut body).expect("a body");
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
            stream.get_mut().write_all(answer).expect("written");
            let path = head[0]
                .strip_prefix("POST ")
                .and_then(|line| line.strip_suffix(" HTTP/1.1"));
            let body = serde_json::from_slice(&body).expect("JSON");
            if posts
                .send((path.expect("a POST").to_owned(), body))
                .is_err()
            {
                return;
            }
        }
    });
    (endpoint, posted)
}

fn service_name(resource: &Json) -> &Json {
    let attributes = resource["attributes"].as_array().expect("attributes");
    let name = attributes
        .iter()
        .find(|attribute| attribute["key"] == "service.name");
    &name.expect("a name")["value"]["stringValue"]
}

/// The fields are those of opentelemetry-proto's `ExportMetricsServiceRequest`.
#[test]
fn metrics_are_exported_to_a_collector() {
    let (endpoint, posted) = collector();
    let _world = World::new(|config| {
        config.telemetry.otlp_endpoint = Some(endpoint);
        config.telemetry.interval_ms = 50;
    });
    let (path, export) = posted.recv_timeout(PATIENCE).expect("the broker comes");
    assert_eq!(path, "/v1/metrics");
    let export = &export["resourceMetrics"][0];
    assert_eq!(service_name(&export["resource"]), "millstream");
    let metrics = export["scopeMetrics"][0]["metrics"]
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

/// The fields are those of opentelemetry-proto's `ExportTraceServiceRequest`.
#[test]
fn spans_of_a_batch_its_delivery_and_requests_are_exported() {
    let (endpoint, posted) = collector();
    let world = World::new(|config| {
        config.telemetry.otlp_endpoint = Some(endpoint);
        config.telemetry.interval_ms = 50;
        config.telemetry.trace_share = 1.0;
    });
    world.run(async {
        let client = world.connect().await;
        let topic_id = client.create_topic("t", 1).await;
        let mut producer = client.producer(&ProducerOpen::default()).await;
        let produce = Produce {
            tag: 1,
            topic_id,
            ..Produce::default()
        };
        producer.produce(produce, &batch(&[b"x", b"y"])).await;
        producer.expect(Kind::Produced).await;
        let nowhere = Produce {
            tag: 2,
            topic_id: vec![9; 16].into(),
            ..Produce::default()
        };
        producer.produce(nowhere, &batch(&[b"x"])).await;
        producer.expect(Kind::Error).await;
        let mut subscription = client.subscribe(&whole("t")).await;
        while subscription.next().await.expect("a frame").known() != Some(Kind::CaughtUp) {}
    });
    let mut spans: Vec<Json> = Vec::new();
    let named = |spans: &[Json], name: &str| -> Vec<Json> {
        spans
            .iter()
            .filter(|span| span["name"] == name)
            .cloned()
            .collect()
    };
    while named(&spans, "deliver").is_empty() {
        let (path, export) = posted.recv_timeout(PATIENCE).expect("an export");
        if path == "/v1/traces" {
            let export = &export["resourceSpans"][0];
            assert_eq!(service_name(&export["resource"]), "millstream");
            let new = export["scopeSpans"][0]["spans"].as_array().expect("spans");
            spans.extend(new.iter().cloned());
        }
    }
    let number = |value: &Json| {
        value
            .as_str()
            .expect("text")
            .parse::<u64>()
            .expect("a number")
    };
    let attribute = |span: &Json, key: &str| {
        let attributes = span["attributes"].as_array().expect("attributes").clone();
        let found = attributes
            .into_iter()
            .find(|attribute| attribute["key"] == key);
        found.map(|attribute| attribute["value"].clone())
    };
    let whole = &named(&spans, "produce")[0];
    assert!(
        whole["parentSpanId"].is_null() && whole["kind"] == 2,
        "{whole}"
    );
    let hex = |id: &Json, digits| {
        let id = id.as_str().expect("text");
        assert!(
            id.len() == digits && id.bytes().all(|b| b.is_ascii_hexdigit()),
            "{id}"
        );
    };
    hex(&whole["traceId"], 32);
    hex(&whole["spanId"], 16);
    assert_eq!(
        attribute(whole, "messaging.destination.name"),
        Some(json!({ "stringValue": "t" }))
    );
    assert_eq!(
        attribute(whole, "messaging.batch.message_count"),
        Some(json!({ "intValue": "2" }))
    );
    let mut before = number(&whole["startTimeUnixNano"]);
    let parts: Vec<&Json> = spans
        .iter()
        .filter(|span| span["parentSpanId"] == whole["spanId"])
        .collect();
    let names: Vec<&Json> = parts.iter().map(|part| &part["name"]).collect();
    assert_eq!(names, ["check", "queue", "append", "durable"]);
    for part in parts {
        assert_eq!(part["traceId"], whole["traceId"]);
        assert_eq!(
            number(&part["startTimeUnixNano"]),
            before,
            "one follows the other: {part}"
        );
        before = number(&part["endTimeUnixNano"]);
    }
    assert!(before <= number(&whole["endTimeUnixNano"]));

    let failed = named(&spans, "produce")
        .into_iter()
        .find(|span| span["status"]["code"] == 2);
    let message = failed.expect("the batch for no topic")["status"]["message"].clone();
    assert!(message.as_str().is_some_and(|message| !message.is_empty()));
    let deliver = &named(&spans, "deliver")[0];
    assert_eq!(
        attribute(deliver, "messaging.batch.message_count"),
        Some(json!({ "intValue": "2" }))
    );
    assert!(
        named(&spans, "fetch")
            .iter()
            .any(|part| part["parentSpanId"] == deliver["spanId"])
    );
    let create = named(&spans, "request").into_iter().find(|span| {
        attribute(span, "rpc.method") == Some(json!({ "stringValue": "CREATE_TOPIC" }))
    });
    assert!(create.is_some(), "{:?}", named(&spans, "request"));
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
