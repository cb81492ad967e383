//! Groups over the wire: partitions come and go, commits are fenced.

use std::collections::BTreeSet;

use millstream_protocol::messages::{
    Assigned, Commit, CommitOffset, Committed, DescribeGroupRequest, DescribeGroupResponse,
    Produce, ProducerOpen, Released, Revoke, Subscribe, Subscribed,
};
use millstream_protocol::{Code, Kind};

use crate::client::{Client, Stream, World, batch, whole};

fn member(topic: &str) -> Subscribe {
    Subscribe {
        group: "g".to_owned(),
        ..whole(topic)
    }
}

/// Read until the partitions of this stream are as many; gives back what was assigned on the way.
async fn assigned(stream: &mut Stream, owned: &mut Vec<(u32, u32, u64)>, until: usize) {
    while owned.len() < until {
        let frame = stream.next().await.expect("a frame");
        match frame.known() {
            Some(Kind::Assigned) => {
                let assigned: Assigned = frame.message().expect("ASSIGNED");
                owned.extend(
                    assigned
                        .partitions
                        .iter()
                        .map(|p| (p.partition, p.handle, p.offset)),
                );
            }
            Some(Kind::Error) => panic!(
                "{:?}",
                frame.message::<millstream_protocol::messages::Error>()
            ),
            _ => {}
        }
    }
}

async fn produced(client: &Client, partitions: u32) {
    let topic_id = client.create_topic("t", partitions).await;
    let mut producer = client.producer(&ProducerOpen::default()).await;
    for partition in 0..partitions {
        let tag = u64::from(partition) + 1;
        let header = Produce {
            tag,
            topic_id: topic_id.clone(),
            partition,
            ..Produce::default()
        };
        producer.produce(header, &batch(&[b"a", b"b", b"c"])).await;
        producer.expect(Kind::Produced).await;
    }
}

#[test]
fn a_second_member_takes_over_half_and_goes_on_at_the_commits() {
    let world = World::new(|_| {});
    world.run(async {
        let client = world.connect().await;
        produced(&client, 4).await;
        let mut first = client.subscribe(&member("t")).await;
        let subscribed: Subscribed = first
            .expect(Kind::Subscribed)
            .await
            .message()
            .expect("SUBSCRIBED");
        assert!(subscribed.member > 0 && subscribed.session_timeout_ms > 0);
        let mut of_first = Vec::new();
        assigned(&mut first, &mut of_first, 4).await;
        assert!(of_first.iter().all(|(_, _, offset)| *offset == 0));
        let offsets = of_first
            .iter()
            .map(|(_, handle, _)| CommitOffset {
                handle: *handle,
                offset: 2,
                metadata: "m".to_owned(),
                leader_epoch: None,
            })
            .collect();
        first.frame(Kind::Commit, &Commit { tag: 1, offsets }).await;
        loop {
            let frame = first.next().await.expect("a frame");
            if frame.known() == Some(Kind::Committed) {
                let committed: Committed = frame.message().expect("COMMITTED");
                assert_eq!((committed.tag, committed.failed.len()), (1, 0));
                break;
            }
        }
        let other = world.connect().await;
        let mut second = other.subscribe(&member("t")).await;
        second.expect(Kind::Subscribed).await;
        let revoked = loop {
            let frame = first.next().await.expect("a frame");
            if frame.known() == Some(Kind::Revoke) {
                let revoke: Revoke = frame.message().expect("REVOKE");
                assert!(!revoke.lost);
                break revoke.handles;
            }
        };
        assert_eq!(revoked.len(), 2);
        first
            .frame(
                Kind::Released,
                &Released {
                    handles: revoked.clone(),
                },
            )
            .await;
        let mut of_second = Vec::new();
        assigned(&mut second, &mut of_second, 2).await;
        assert!(
            of_second.iter().all(|(_, _, offset)| *offset == 2),
            "from the commits: {of_second:?}"
        );
        let given: BTreeSet<u32> = of_first
            .iter()
            .filter(|(_, handle, _)| revoked.contains(handle))
            .map(|(p, _, _)| *p)
            .collect();
        assert_eq!(given, of_second.iter().map(|(p, _, _)| *p).collect());
        // What was released can no longer be committed.
        let offsets = vec![CommitOffset {
            handle: revoked[0],
            offset: 3,
            metadata: String::new(),
            leader_epoch: None,
        }];
        first.frame(Kind::Commit, &Commit { tag: 2, offsets }).await;
        loop {
            let frame = first.next().await.expect("a frame");
            if frame.known() == Some(Kind::Committed) {
                let committed: Committed = frame.message().expect("COMMITTED");
                let error = committed.failed[0].error.clone().expect("an error");
                assert_eq!(
                    (committed.tag, error.code),
                    (2, Code::MemberFenced.number())
                );
                break;
            }
        }
        let described: DescribeGroupResponse = client
            .request(
                Kind::DescribeGroup,
                &DescribeGroupRequest {
                    group: "g".to_owned(),
                    after: None,
                },
            )
            .await
            .expect("described");
        assert_eq!((described.members.len(), described.offsets.len()), (2, 4));
        assert!(
            described
                .offsets
                .iter()
                .all(|row| (row.committed, row.lag) == (Some(2), Some(1))),
            "{described:?}"
        );
    });
}

#[test]
fn a_member_that_leaves_gives_its_partitions_to_the_other() {
    let world = World::new(|_| {});
    world.run(async {
        let client = world.connect().await;
        produced(&client, 2).await;
        let mut first = client.subscribe(&member("t")).await;
        let mut of_first = Vec::new();
        assigned(&mut first, &mut of_first, 2).await;
        first.send.finish().expect("finished");
        while first.next().await.is_some() {}
        let mut second = client.subscribe(&member("t")).await;
        let mut of_second = Vec::new();
        assigned(&mut second, &mut of_second, 2).await;
    });
}

/// A member that reads to the end is not through while another has yet to let go what is to be its: if both
/// ended, nobody would read that.
#[test]
fn a_member_that_exits_at_the_end_waits_for_what_is_coming_to_it() {
    for shards in [1, 3] {
        let world = World::new(|config| config.shards = Some(shards));
        world.run(async {
            let client = world.connect().await;
            produced(&client, 4).await;
            let mut first = client.subscribe(&member("t")).await;
            assigned(&mut first, &mut Vec::new(), 4).await;
            let to_the_end = Subscribe {
                stop_at_end: true,
                ..member("t")
            };
            let mut second = client.subscribe(&to_the_end).await;
            let revoked = revoked(&mut first).await;
            assert_eq!(revoked.len(), 2);
            // One is let go, and read to its end, before the other is.
            for handle in revoked {
                let handles = vec![handle];
                first.frame(Kind::Released, &Released { handles }).await;
                loop {
                    let frame = second.next().await.expect("it is not through");
                    match frame.known() {
                        Some(Kind::CaughtUp) => break,
                        Some(Kind::Error | Kind::PartitionError) => panic!("{frame:?}"),
                        _ => {}
                    }
                }
            }
            while second.next().await.is_some() {}
        });
    }
}

/// Until an ASSIGNED says that so many are yet to come.
async fn opening(stream: &mut Stream, wanted: u32) {
    loop {
        let frame = stream.next().await.expect("a frame");
        match frame.known() {
            Some(Kind::Assigned) => {
                let assigned: Assigned = frame.message().expect("ASSIGNED");
                if assigned.opening == wanted {
                    return;
                }
            }
            Some(Kind::Error) => panic!("{frame:?}"),
            _ => {}
        }
    }
}

/// A client that ends by itself, because it commits first, knows while the group moves partitions that one may be
/// coming to it: also a member that gives none and is given none.
#[test]
fn members_are_told_while_partitions_move() {
    for shards in [1, 3] {
        let world = World::new(|config| config.shards = Some(shards));
        world.run(async {
            let client = world.connect().await;
            produced(&client, 5).await;
            let mut first = client.subscribe(&member("t")).await;
            assigned(&mut first, &mut Vec::new(), 5).await;
            let mut second = client.subscribe(&member("t")).await;
            let revoked = revoked(&mut first).await;
            opening(&mut first, 1).await;
            assert_eq!(revoked.len(), 2);
            // One is let go, and read to its end, before the other is.
            let mut believed = 0;
            for (let_go, handle) in (1..).zip(revoked) {
                let handles = vec![handle];
                first.frame(Kind::Released, &Released { handles }).await;
                let mut caught_up = false;
                while !caught_up {
                    let frame = second.next().await.expect("a frame");
                    match frame.known() {
                        Some(Kind::Assigned) => {
                            believed = frame.message::<Assigned>().expect("ASSIGNED").opening;
                        }
                        Some(Kind::CaughtUp) => caught_up = true,
                        Some(Kind::Error | Kind::PartitionError) => panic!("{frame:?}"),
                        _ => {}
                    }
                }
                let coming = u32::from(let_go == 1);
                assert_eq!(believed, coming, "{shards} shards, {let_go} let go");
            }
            opening(&mut first, 0).await;
            // A third takes one of the first's three: the second has no part in it, and is told.
            let mut third = client.subscribe(&member("t")).await;
            opening(&mut second, 1).await;
            let handles = self::revoked(&mut first).await;
            first.frame(Kind::Released, &Released { handles }).await;
            opening(&mut second, 0).await;
            assigned(&mut third, &mut Vec::new(), 1).await;
        });
    }
}

/// What a member that died had yet to let go is waited for as well.
#[test]
fn a_member_that_exits_at_the_end_reads_what_a_dead_one_had_yet_to_let_go() {
    for shards in [1, 3] {
        let world = World::new(|config| config.shards = Some(shards));
        world.run(async {
            let client = world.connect().await;
            produced(&client, 6).await;
            let mut lets_go = client.subscribe(&member("t")).await;
            assigned(&mut lets_go, &mut Vec::new(), 6).await;
            let other = world.connect().await;
            let of_short_life = Subscribe {
                session_timeout_ms: 1_000,
                ..member("t")
            };
            let mut dies = other.subscribe(&of_short_life).await;
            let handles = revoked(&mut lets_go).await;
            lets_go.frame(Kind::Released, &Released { handles }).await;
            assigned(&mut dies, &mut Vec::new(), 3).await;
            let to_the_end = Subscribe {
                stop_at_end: true,
                ..member("t")
            };
            let mut third = client.subscribe(&to_the_end).await;
            assert_eq!(revoked(&mut dies).await.len(), 1);
            let handles = revoked(&mut lets_go).await;
            lets_go.frame(Kind::Released, &Released { handles }).await;
            let mut caught_up = 0;
            while let Some(frame) = third.next().await {
                match frame.known() {
                    Some(Kind::CaughtUp) => caught_up += 1,
                    Some(Kind::Error | Kind::PartitionError) => panic!("{frame:?}"),
                    _ => {}
                }
                if caught_up == 1 {
                    other.connection.close(0_u32.into(), b"");
                }
            }
            assert_eq!(caught_up, 3, "{shards} shards: its half of six");
        });
    }
}

/// The handles that a member is asked for next.
async fn revoked(stream: &mut Stream) -> Vec<u32> {
    loop {
        let frame = stream.next().await.expect("a frame");
        if frame.known() == Some(Kind::Revoke) {
            return frame.message::<Revoke>().expect("REVOKE").handles;
        }
    }
}

/// As many offsets as anyone needs are taken in one COMMIT, and no more.
#[test]
fn a_commit_is_bounded() {
    let world = World::new(|_| {});
    world.run(async {
        let client = world.connect().await;
        produced(&client, 1).await;
        let mut stream = client.subscribe(&member("t")).await;
        let mut owned = Vec::new();
        assigned(&mut stream, &mut owned, 1).await;
        let offsets = |count: usize| {
            let offset = CommitOffset {
                handle: owned[0].1,
                offset: 1,
                metadata: String::new(),
                leader_epoch: None,
            };
            vec![offset; count]
        };
        for (tag, count) in [(1, 1_024), (2, 1_025)] {
            let commit = Commit {
                tag,
                offsets: offsets(count),
            };
            stream.frame(Kind::Commit, &commit).await;
            let frame = loop {
                let frame = stream.next().await.expect("a frame");
                if matches!(frame.known(), Some(Kind::Committed | Kind::Error)) {
                    break frame;
                }
            };
            if tag == 1 {
                let committed: Committed = frame.message().expect("COMMITTED");
                assert_eq!((committed.tag, committed.failed.len()), (1, 0));
            } else {
                let error: millstream_protocol::messages::Error = frame.message().expect("ERROR");
                assert_eq!(error.code, Code::TooLarge.number(), "{error:?}");
            }
        }
    });
}
