//! First packets from addresses that nobody has proven, and what they cost.

use std::net::{Ipv4Addr, UdpSocket};

use millstream_protocol::Kind;
use millstream_protocol::messages::{PingRequest, PingResponse};
use quinn::Endpoint;

use crate::client::{PATIENCE, World};

const UNPROVEN_MAX: usize = 4;
const FORGED: usize = 12;
/// The first byte of a QUIC v1 long header: the packet's type stands in bits 4 and 5 (RFC 9000, 17.2).
const RETRY: u8 = 3;

/// A first packet as quinn sends it, caught before it reaches anybody.
async fn first_packet(world: &World) -> Vec<u8> {
    let sink = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound");
    sink.set_nonblocking(true).expect("set");
    let sink = tokio::net::UdpSocket::from_std(sink).expect("in the runtime");
    let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).expect("an endpoint");
    let connecting = endpoint
        .connect_with(
            world.client_config(),
            sink.local_addr().expect("an address"),
            "localhost",
        )
        .expect("it begins");
    let mut packet = vec![0; 2_048];
    let bytes = sink.recv(&mut packet).await.expect("the first packet");
    packet.truncate(bytes);
    drop(connecting);
    packet
}

#[test]
fn past_a_bound_addresses_are_proven_first_and_forged_ones_cost_nothing() {
    let world = World::new(|config| {
        config.limits.handshakes_unproven_max = UNPROVEN_MAX;
        config.limits.hello_ms = 600_000; // nothing here ends by time
    });
    let mut retries = 0;
    let mut senders = Vec::new();
    world.run(async {
        for _ in 0..FORGED {
            let packet = first_packet(&world).await;
            let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound");
            sender.set_read_timeout(Some(PATIENCE)).expect("set");
            sender
                .send_to(&packet, world.broker().address())
                .expect("sent");
            senders.push((sender, packet));
        }
    });
    for (sender, _) in &senders {
        let mut answer = [0; 2_048];
        let (_, from) = sender.recv_from(&mut answer).expect("each is answered");
        assert_eq!(from, world.broker().address());
        let kind = (answer[0] >> 4) & 3;
        retries += usize::from(kind == RETRY);
    }
    // Both threads look before either counts: one more may slip in for each.
    assert!(
        (FORGED - UNPROVEN_MAX - 1..=FORGED - UNPROVEN_MAX).contains(&retries),
        "{retries} of {FORGED} were asked"
    );
    assert_eq!(
        world.metric("millstream_handshakes"),
        (FORGED - retries) as f64
    );
    // Who answers from its address is served all the same.
    world.run(async {
        let client = world.connect().await;
        let _: PingResponse = client
            .request(Kind::Ping, &PingRequest {})
            .await
            .expect("it answers");
    });
    assert_eq!(
        world.metric("millstream_handshakes_retried_total"),
        (retries + 1) as f64
    );
}

#[test]
fn handshakes_are_bounded_and_come_again() {
    let world = World::new(|config| {
        config.limits.handshakes_unproven_max = 0;
        config.limits.handshakes_max = 1;
    });
    world.run(async {
        // Each proves its address; who finds the place taken asks again until it is free.
        let clients = tokio::join!(
            world.connect(),
            world.connect(),
            world.connect(),
            world.connect(),
        );
        for client in <[_; 4]>::from(clients) {
            let _: PingResponse = client
                .request(Kind::Ping, &PingRequest {})
                .await
                .expect("it answers");
        }
    });
    assert!(world.metric("millstream_handshakes_retried_total") >= 4.0);
    assert_eq!(world.metric("millstream_handshakes"), 0.0);
}
