//! Connections that never say who they are: what they may hold, for how long, and what others get meanwhile.

use std::time::Duration;

use millstream_protocol::messages::{HelloRequest, HelloResponse, PingRequest, PingResponse};
use millstream_protocol::{Code, Kind};

use crate::client::{Client, World};

/// Streams and bytes that one may have before HELLO.
const STREAMS: usize = 4;
const BYTES: usize = 64 << 10;

async fn alive(client: &Client) {
    let _: PingResponse = client
        .request(Kind::Ping, &PingRequest {})
        .await
        .expect("it answers");
}

/// Streams that this connection may open now.
async fn streams(client: &Client, most: usize) -> usize {
    let mut open = Vec::new();
    while open.len() < most {
        // What may be opened was told with the handshake: no more comes, however long one waits.
        let opening = tokio::time::timeout(Duration::from_millis(200), client.connection.open_bi());
        match opening.await {
            Ok(stream) => open.push(stream.expect("a stream")),
            Err(_) => break,
        }
        let (send, _) = open.last_mut().expect("one");
        send.write_all(&[1]).await.expect("written"); // part of a frame: the broker has to hold it
    }
    open.len()
}

#[test]
fn before_hello_there_are_few_streams_and_small_windows() {
    let world = World::new(|_| {});
    world.run(async {
        let stranger = world.connect_silently().await;
        assert_eq!(streams(&stranger, 100).await, STREAMS);
        let flood = world.connect_silently().await;
        let mut written = 0;
        let mut stream = flood.open().await;
        let large = vec![1; 1 << 20];
        loop {
            let writing = stream.send.write(&large);
            match tokio::time::timeout(Duration::from_millis(200), writing).await {
                Ok(Ok(bytes)) => written += bytes,
                Ok(Err(_)) => break, // refused: 16 MB of nothing are no frame
                Err(_) => break,
            }
        }
        assert!(written <= 2 * BYTES, "{written} bytes were taken unread");
        // With HELLO come both.
        let client = world.connect().await;
        let mut open = Vec::new();
        for _ in 0..3 * STREAMS {
            open.push(client.open().await);
        }
        alive(&client).await;
    });
}

#[test]
fn strangers_have_a_share_of_the_connections_and_a_deadline() {
    let world = World::new(|config| {
        config.limits.handshakes_address_max = 3;
        config.limits.hello_ms = 1_000;
    });
    world.run(async {
        let known = world.connect().await;
        let mut silent = Vec::new();
        for _ in 0..3 {
            silent.push(world.connect_silently().await);
        }
        assert_eq!(world.metric("millstream_strangers"), 3.0);
        // Who comes next is turned away, or waits until their time is over; both come in.
        let late = loop {
            let late = world.connect_silently().await;
            let hello = HelloRequest {
                version_min: 1,
                version_max: 1,
                token: world.token(),
                ..HelloRequest::default()
            };
            let frame = millstream_protocol::frame::encode(Kind::Hello, &hello);
            if let Ok((mut send, mut recv)) = late.connection.open_bi().await
                && send.write_all(&frame).await.is_ok()
                && let Ok(Some(_)) = recv.read_chunk(1 << 10, true).await
            {
                break late;
            }
        };
        alive(&late).await;
        for stranger in silent {
            let quinn::ConnectionError::ApplicationClosed(close) =
                stranger.connection.closed().await
            else {
                panic!("it was not closed by the broker")
            };
            let code = u64::from(Code::Unauthenticated.number());
            assert_eq!(close.error_code.into_inner(), code);
        }
        alive(&known).await;
    });
    assert!(world.metric("millstream_connections_refused_total") >= 1.0);
}

#[test]
fn a_connection_leaves_streams_for_others() {
    let world = World::new(|config| config.limits.streams_total_max = 64);
    world.run(async {
        let greedy = world.connect().await;
        let mut held = Vec::new();
        for _ in 0..40 {
            let mut stream = greedy.open().await;
            drop(stream.send.write_all(&[1]).await); // refused before it was written, or behind it
            held.push(stream);
        }
        let refused = loop {
            let refused = world.metric("millstream_streams_refused_total");
            if refused + world.metric("millstream_streams") == 40.0 {
                break refused; // else `run` loses its patience
            }
            tokio::task::yield_now().await; // the client's packets
        };
        assert!((20.0..=36.0).contains(&refused), "{refused} of 40");
        let last = held.last_mut().expect("40");
        match last.recv.read_chunk(1, true).await {
            Err(quinn::ReadError::Reset(code)) => {
                assert_eq!(code.into_inner(), u64::from(Code::Busy.number()));
            }
            other => panic!("{other:?}"),
        }
        let other = world.connect().await;
        for _ in 0..10 {
            alive(&other).await;
        }
        let _: HelloResponse = world
            .connect_silently()
            .await
            .request(
                Kind::Hello,
                &HelloRequest {
                    version_min: 1,
                    version_max: 1,
                    token: world.token(),
                    ..HelloRequest::default()
                },
            )
            .await
            .expect("HELLO");
    });
}
