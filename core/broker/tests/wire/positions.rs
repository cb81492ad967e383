//! Positions over the wire: what moves them, where they begin, and what becomes of one that is gone.

use std::collections::BTreeMap;

use bytes::Bytes;
use millstream_protocol::messages::{
    AddPartitionsRequest, AddPartitionsResponse, Assigned, Batch, CaughtUp, Commit, CommitOffset,
    Committed, Credit, DescribeGroupRequest, DescribeGroupResponse, FixedPartition, OnLost,
    PartitionError, Passed, Produce, ProducerOpen, RecordsLost, Seek, StartAt, Subscribe,
    TrimPartitionRequest, TrimPartitionResponse, start_at,
};
use millstream_protocol::{Code, Kind};

use crate::client::{Client, Stream, World, batch, from_start, whole};
use crate::filters::{JSON_FILTER, deploy, expression};

/// One shard, and more than a topic has partitions on.
const SHARDS: [u16; 2] = [1, 3];
const PARTITIONS: u32 = 4;

fn world(shards: u16) -> World {
    World::new(|config| config.shards = Some(shards))
}

fn member(topic: &str) -> Subscribe {
    Subscribe {
        group: "g".to_owned(),
        ..whole(topic)
    }
}

fn member_from(at: start_at::At) -> Subscribe {
    Subscribe {
        from: Some(StartAt {
            at: Some(at),
            leader_epoch: None,
        }),
        ..member("t")
    }
}

fn member_from_end() -> Subscribe {
    member_from(start_at::At::End(true))
}

/// Each partition that a stream was given: its handle, and where it goes on.
type Given = BTreeMap<u32, (u32, u64)>;

/// Read until so many partitions were given.
async fn given(stream: &mut Stream, count: usize) -> Given {
    let mut given = Given::new();
    while given.len() < count {
        let assigned: Assigned = until(stream, Kind::Assigned)
            .await
            .message()
            .expect("ASSIGNED");
        for at in assigned.partitions {
            given.insert(at.partition, (at.handle, at.offset));
        }
    }
    given
}

fn offsets(given: &Given) -> Vec<u64> {
    given.values().map(|(_, offset)| *offset).collect()
}

/// End a stream as a member that leaves does.
async fn leave(mut stream: Stream) {
    stream.send.finish().expect("finished");
    while stream.next().await.is_some() {}
}

/// Three records into each of these partitions, in one batch.
async fn three_each(client: &Client, topic_id: &Bytes, partitions: std::ops::Range<u32>) {
    let mut producer = client.producer(&ProducerOpen::default()).await;
    for (tag, partition) in (1..).zip(partitions) {
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

async fn trim(client: &Client, start_offset: u64) {
    let request = TrimPartitionRequest {
        topic: "t".to_owned(),
        partition: 0,
        start_offset,
    };
    let _: TrimPartitionResponse = client
        .request(Kind::TrimPartition, &request)
        .await
        .expect("trimmed");
}

async fn add_partitions(client: &Client, total: u32) {
    let request = AddPartitionsRequest {
        name: "t".to_owned(),
        total,
    };
    let _: AddPartitionsResponse = client
        .request(Kind::AddPartitions, &request)
        .await
        .expect("added");
}

async fn described(client: &Client) -> DescribeGroupResponse {
    let request = DescribeGroupRequest {
        group: "g".to_owned(),
        after: None,
    };
    client
        .request(Kind::DescribeGroup, &request)
        .await
        .expect("described")
}

/// Batches of one record each.
async fn produce(client: &Client, topic_id: &Bytes, partition: u32, values: &[&[u8]]) {
    let mut producer = client.producer(&ProducerOpen::default()).await;
    for (at, value) in values.iter().enumerate() {
        let header = Produce {
            tag: at as u64 + 1,
            topic_id: topic_id.clone(),
            partition,
            ..Produce::default()
        };
        producer.produce(header, &batch(&[value])).await;
        producer.expect(Kind::Produced).await;
    }
}

/// The next frame of this kind; others are passed over, errors are not.
async fn until(stream: &mut Stream, kind: Kind) -> millstream_protocol::Frame {
    loop {
        let frame = stream.next().await.expect("a frame");
        match frame.known() {
            Some(known) if known == kind => return frame,
            Some(Kind::Error | Kind::PartitionError) => panic!("{frame:?}"),
            _ => {}
        }
    }
}

async fn commit(stream: &mut Stream, handle: u32, offset: u64, leader_epoch: Option<u32>) {
    let offsets = vec![CommitOffset {
        handle,
        offset,
        metadata: String::new(),
        leader_epoch,
    }];
    stream
        .frame(Kind::Commit, &Commit { tag: 1, offsets })
        .await;
    let committed: Committed = until(stream, Kind::Committed)
        .await
        .message()
        .expect("COMMITTED");
    assert!(committed.failed.is_empty(), "{committed:?}");
}

/// Filters that drop for long say how far they are: a member commits that, and it is not read again.
#[test]
fn what_a_filter_drops_is_told_and_can_be_committed() {
    const RECORDS: u64 = 24;
    let world = World::new(|_| {});
    world.run(async {
        let client = world.connect().await;
        let topic_id = client.create_topic("t", 1).await;
        // More than is read from the log at once.
        let dropped = format!(
            "{{\"level\":\"info\",\"pad\":\"{}\"}}",
            "x".repeat(100 << 10)
        );
        produce(
            &client,
            &topic_id,
            0,
            &[dropped.as_bytes(); RECORDS as usize],
        )
        .await;
        let errors = expression("level == 'error'");
        deploy(&client, "subscribe", errors, Bytes::new(), JSON_FILTER)
            .await
            .expect("deployed");
        let mut stream = client.subscribe(&member("t")).await;
        let assigned: Assigned = until(&mut stream, Kind::Assigned)
            .await
            .message()
            .expect("ASSIGNED");
        let handle = assigned.partitions[0].handle;
        let passed: Passed = until(&mut stream, Kind::Passed)
            .await
            .message()
            .expect("PASSED");
        assert_eq!(passed.handle, handle);
        assert!((1..RECORDS).contains(&passed.offset), "{passed:?}");
        commit(&mut stream, handle, passed.offset, passed.leader_epoch).await;
        stream.send.finish().expect("finished");
        while stream.next().await.is_some() {}

        let mut stream = client.subscribe(&member("t")).await;
        let assigned: Assigned = until(&mut stream, Kind::Assigned)
            .await
            .message()
            .expect("ASSIGNED");
        assert_eq!(assigned.partitions[0].offset, passed.offset);
        let caught_up: CaughtUp = until(&mut stream, Kind::CaughtUp)
            .await
            .message()
            .expect("CAUGHT_UP");
        assert_eq!(caught_up.offset, RECORDS);
    });
}

/// A group's positions are durable before anything is read: whoever comes next resolves nothing anew.
#[test]
fn a_position_that_was_resolved_is_not_resolved_anew() {
    for shards in SHARDS {
        let mut world = world(shards);
        let topic_id = world.run(async {
            let client = world.connect().await;
            let topic_id = client.create_topic("t", PARTITIONS).await;
            three_each(&client, &topic_id, 0..PARTITIONS).await;
            let mut first = client.subscribe(&member_from_end()).await;
            let mut second = client.subscribe(&member_from_end()).await;
            let of_first = given(&mut first, 2).await;
            assert!(offsets(&of_first).iter().all(|offset| *offset == 3));
            // What comes now was never read by anybody, and nothing was committed.
            three_each(&client, &topic_id, 0..PARTITIONS).await;
            leave(first).await;
            let mut taken = given(&mut second, 2).await;
            while taken.len() < PARTITIONS as usize {
                taken.extend(given(&mut second, 1).await);
            }
            assert_eq!(offsets(&taken), [3; 4], "{shards} shards: a take-over");
            leave(second).await;
            let rows = described(&client).await.offsets;
            assert!(
                rows.iter()
                    .all(|row| (row.committed, row.lag) == (Some(3), Some(3)))
            );
            topic_id
        });
        world.stop();
        world.start_again();
        world.run(async {
            let client = world.connect().await;
            three_each(&client, &topic_id, 0..PARTITIONS).await;
            let mut third = client.subscribe(&member_from_end()).await;
            let again = given(&mut third, PARTITIONS as usize).await;
            assert_eq!(offsets(&again), [3; 4], "{shards} shards: a restart");
            leave(third).await;
        });
    }
}

/// `from` is where a group begins, in every partition; past the end it is the end.
#[test]
fn a_group_begins_where_its_first_member_says() {
    let cases = [
        (start_at::At::Start(true), 0),
        (start_at::At::End(true), 3),
        (start_at::At::Offset(2), 2),
        (start_at::At::Offset(99), 3),
        // All records are of one batch and as old.
        (start_at::At::TimestampMs(1_600_000_000_000), 0),
        (start_at::At::TimestampMs(1_800_000_000_000), 3),
    ];
    for shards in SHARDS {
        let world = world(shards);
        world.run(async {
            let client = world.connect().await;
            let topic_id = client.create_topic("t", PARTITIONS).await;
            three_each(&client, &topic_id, 0..PARTITIONS).await;
            for (number, (at, expected)) in cases.iter().enumerate() {
                let group = Subscribe {
                    group: format!("g{number}"),
                    ..member_from(*at)
                };
                let mut stream = client.subscribe(&group).await;
                let begun = given(&mut stream, PARTITIONS as usize).await;
                assert_eq!(offsets(&begun), [*expected; 4], "{shards} shards: {at:?}");
                leave(stream).await;
            }
        });
    }
}

/// Partitions that were added are new to the group: all of them is read, whenever its members come.
#[test]
fn partitions_that_were_added_are_read_from_their_start() {
    for shards in SHARDS {
        let world = world(shards);
        world.run(async {
            let client = world.connect().await;
            let topic_id = client.create_topic("t", 2).await;
            three_each(&client, &topic_id, 0..2).await;
            let mut lives = client.subscribe(&member_from_end()).await;
            assert_eq!(offsets(&given(&mut lives, 2).await), [3, 3]);
            add_partitions(&client, 3).await;
            three_each(&client, &topic_id, 2..3).await;
            let added = given(&mut lives, 1).await;
            assert_eq!(
                added.get(&2).map(|(_, offset)| *offset),
                Some(0),
                "while it reads"
            );
            leave(lives).await;
            add_partitions(&client, 5).await;
            three_each(&client, &topic_id, 3..5).await;
            // Nobody has read them, and they are not absent. The thread hears of new partitions in a moment.
            let rows = loop {
                let rows = described(&client).await.offsets;
                if rows.len() == 5 {
                    break rows;
                }
            };
            assert_eq!((rows[3].committed, rows[3].lag), (None, Some(3)));
            let mut comes = client.subscribe(&member_from_end()).await;
            let all = given(&mut comes, 5).await;
            assert_eq!(
                offsets(&all),
                [3, 3, 0, 0, 0],
                "{shards} shards: while nobody did"
            );
            leave(comes).await;
        });
    }
}

/// A member whose next records were removed: what it is told, and where it goes on.
#[test]
fn records_that_were_removed_before_they_were_read_are_told() {
    for shards in SHARDS {
        let world = world(shards);
        world.run(async {
            let client = world.connect().await;
            let topic_id = client.create_topic("t", 1).await;
            for _ in 0..3 {
                three_each(&client, &topic_id, 0..1).await;
            }
            // The group stands at 1, and 1 to 5 go.
            let mut stream = client.subscribe(&member("t")).await;
            let handle = given(&mut stream, 1).await[&0].0;
            commit(&mut stream, handle, 1, None).await;
            leave(stream).await;
            trim(&client, 6).await;

            let mut stream = client.subscribe(&member("t")).await;
            let handle = given(&mut stream, 1).await[&0].0;
            let failed = loop {
                let frame = stream.next().await.expect("a frame");
                if frame.known() == Some(Kind::PartitionError) {
                    break frame.message::<PartitionError>().expect("PARTITION_ERROR");
                }
            };
            let error = failed.error.expect("an error");
            assert_eq!(
                (error.code, error.next_offset),
                (Code::RecordsLost.number(), Some(6))
            );
            assert!(error.message.starts_with("5 records"), "{}", error.message);
            // It is the member's to say where to go on.
            let to = Some(StartAt {
                at: Some(start_at::At::Offset(6)),
                leader_epoch: None,
            });
            let seek = Seek {
                handle,
                to,
                generation: 1,
            };
            stream.frame(Kind::Seek, &seek).await;
            let read: Batch = until(&mut stream, Kind::Batch)
                .await
                .message()
                .expect("BATCH");
            assert_eq!(read.base_offset, 6);
            leave(stream).await;

            for (on_lost, to) in [(OnLost::Oldest, 6), (OnLost::Newest, 9)] {
                let subscribe = Subscribe {
                    on_lost: on_lost.into(),
                    ..member("t")
                };
                let mut stream = client.subscribe(&subscribe).await;
                given(&mut stream, 1).await;
                let lost: RecordsLost = until(&mut stream, Kind::RecordsLost)
                    .await
                    .message()
                    .expect("RECORDS_LOST");
                assert_eq!((lost.from, lost.to), (1, to), "{on_lost:?}");
                let end: CaughtUp = until(&mut stream, Kind::CaughtUp)
                    .await
                    .message()
                    .expect("CAUGHT_UP");
                assert_eq!(end.offset, 9);
                leave(stream).await;
            }
        });
    }
}

/// Retention may also overtake one that reads; without a group it goes on with the oldest.
#[test]
fn a_reader_that_is_overtaken_gets_what_was_ready_and_is_told() {
    let world = World::new(|_| {});
    world.run(async {
        let client = world.connect().await;
        let topic_id = client.create_topic("t", 1).await;
        for _ in 0..3 {
            three_each(&client, &topic_id, 0..1).await;
        }
        let first = FixedPartition {
            topic: "t".to_owned(),
            partition: 0,
            from: from_start(),
        };
        for (on_lost, goes_on) in [(OnLost::Default, true), (OnLost::Fail, false)] {
            let subscribe = Subscribe {
                topics: Vec::new(),
                partitions: vec![first.clone()],
                credit_bytes: 1, // one batch
                on_lost: on_lost.into(),
                ..whole("t")
            };
            let mut stream = client.subscribe(&subscribe).await;
            let read: Batch = until(&mut stream, Kind::Batch)
                .await
                .message()
                .expect("BATCH");
            let end = read.end_offset;
            // What was fetched with it is ready; what follows is removed before it is fetched.
            three_each(&client, &topic_id, 0..1).await;
            three_each(&client, &topic_id, 0..1).await;
            trim(&client, end + 3).await;
            stream.frame(Kind::Credit, &Credit { bytes: 1 << 20 }).await;
            let mut next = read.last_offset + 1;
            loop {
                let frame = stream.next().await.expect("a frame");
                match frame.known() {
                    Some(Kind::Batch) => {
                        let read: Batch = frame.message().expect("BATCH");
                        assert_eq!(read.base_offset, next, "{on_lost:?}");
                        next = read.last_offset + 1;
                    }
                    Some(Kind::RecordsLost) => {
                        let lost: RecordsLost = frame.message().expect("RECORDS_LOST");
                        assert!(
                            goes_on && lost.from == next && lost.to == end + 3,
                            "{lost:?}"
                        );
                        next = lost.to;
                    }
                    Some(Kind::PartitionError) => {
                        let failed: PartitionError = frame.message().expect("PARTITION_ERROR");
                        let error = failed.error.expect("an error");
                        assert!(!goes_on, "{error:?}");
                        assert_eq!(error.next_offset, Some(end + 3));
                        break;
                    }
                    Some(Kind::CaughtUp) if next == end + 6 => break,
                    _ => {}
                }
            }
            leave(stream).await;
        }
    });
}

/// A member that is to read to the end knows when it was given all that it has.
#[test]
fn a_member_is_told_how_many_of_its_partitions_are_being_opened() {
    for shards in SHARDS {
        let world = world(shards);
        world.run(async {
            let client = world.connect().await;
            client.create_topic("t", PARTITIONS).await;
            let mut stream = client.subscribe(&member("t")).await;
            let (mut told, mut opening) = (0, u32::MAX);
            while opening > 0 {
                let assigned: Assigned = until(&mut stream, Kind::Assigned)
                    .await
                    .message()
                    .expect("ASSIGNED");
                told += assigned.partitions.len() as u32;
                opening = assigned.opening;
                assert_eq!(told + opening, PARTITIONS, "{shards} shards");
            }
            leave(stream).await;
        });
    }
}
