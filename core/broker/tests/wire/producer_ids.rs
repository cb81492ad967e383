//! Producer ids belong to the principal that they were given to.

use bytes::Bytes;
use millstream_broker::PrincipalSettings;
use millstream_protocol::messages::{
    InitProducerRequest, InitProducerResponse, Produce, Produced, ProducerOpen,
};
use millstream_protocol::{Code, Kind};

use crate::client::{Client, World, batch};

/// `printf %s alice | sha256sum`, and of `bob`.
const ALICE: &str = "2bd806c97f0e00af1a1fc3328fa763a9269723c8db8fac4f93af71db186d6e90";
const BOB: &str = "81b637d8fcd2c6da6359e6963113a1170de795e4b725b84d1e0b4cfd9ec58ce9";

fn principal(name: &str, token_sha256: &str) -> PrincipalSettings {
    PrincipalSettings {
        name: name.to_owned(),
        token_sha256: Some(token_sha256.to_owned()),
        rights: vec!["produce".to_owned(), "admin".to_owned()],
        topics: format!("{name}."),
        ..PrincipalSettings::default()
    }
}

async fn connect(world: &World, token: &str) -> Client {
    let (client, principal) = world.connect_with(token).await;
    assert_eq!(principal, token);
    client
}

async fn init(client: &Client, pid: u64, token: &Bytes) -> Result<InitProducerResponse, u32> {
    let request = InitProducerRequest {
        pid,
        token: token.clone(),
    };
    let answer = client.request(Kind::InitProducer, &request).await;
    answer.map_err(|error| error.code)
}

async fn refused(client: &Client, open: &ProducerOpen) -> u32 {
    let mut stream = client.open().await;
    stream.frame(Kind::ProducerOpen, open).await;
    stream.error().await.code
}

#[test]
fn an_id_is_of_use_to_its_principal_alone() {
    let mut world = World::new(|config| {
        config.principals = vec![principal("alice", ALICE), principal("bob", BOB)];
    });
    let unknown = Code::UnknownProducer.number();
    let none = Bytes::new();
    let (first, topic) = world.run(async {
        let alice = connect(&world, "alice").await;
        let topic = alice.create_topic("alice.t", 4).await;
        (init(&alice, 0, &none).await.expect("an id"), topic)
    });
    // The second round is after a restart.
    for round in 0..2 {
        world.run(async {
            let (alice, bob) = (connect(&world, "alice").await, connect(&world, "bob").await);
            let bobs = init(&bob, 0, &none).await.expect("an id of his own");
            for token in [&none, &bobs.token, &first.token] {
                assert_eq!(init(&bob, first.pid, token).await, Err(unknown));
                let open = ProducerOpen {
                    pid: first.pid,
                    epoch: u32::MAX,
                    token: token.clone(),
                    ..ProducerOpen::default()
                };
                assert_eq!(refused(&bob, &open).await, unknown);
            }
            // Never given out, to anybody: refused before any shard is asked.
            for token in [&none, &bobs.token] {
                let open = ProducerOpen {
                    pid: 1 << 40,
                    token: token.clone(),
                    ..ProducerOpen::default()
                };
                assert_eq!(refused(&bob, &open).await, unknown);
            }
            assert_eq!(
                init(&alice, first.pid, &none).await,
                Err(unknown),
                "not even she, without its token"
            );
            let next = init(&alice, first.pid, &first.token).await.expect("hers");
            assert_eq!(
                (next.pid, next.epoch, &next.token),
                (first.pid, first.epoch + 1 + round, &first.token),
                "nobody raised it meanwhile"
            );
            let open = ProducerOpen {
                pid: next.pid,
                epoch: next.epoch,
                token: next.token,
                ..ProducerOpen::default()
            };
            let mut producer = alice.producer(&open).await;
            for (tag, partition) in (1..).zip(0..4) {
                let header = Produce {
                    tag,
                    topic_id: topic.clone(),
                    partition,
                    sequence: 0,
                };
                producer.produce(header, &batch(&[b"x"])).await;
                let produced: Produced = producer
                    .expect(Kind::Produced)
                    .await
                    .message()
                    .expect("PRODUCED");
                assert_eq!(produced.base_offset, Some(u64::from(round)));
            }
        });
        world.stop();
        world.start_again();
    }
}
