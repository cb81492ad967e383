//! Positions over the wire: what moves them, where they begin, and what becomes of one that is gone.

use std::collections::BTreeMap;

use bytes::Bytes;
use millstream_protocol::messages::{
    self, AddPartitionsRequest, AddPartitionsResponse, Assigned, Batch, CaughtUp, Commit,
    CommitOffset, Committed, Credit, DescribeGroupRequest, DescribeGroupResponse, OnLost,
    PartitionError, Passed, Produce, ProducerOpen, RecordsLost, Released, Revoke, Seek, StartAt,
    Subscribe, TrimPartitionRequest, TrimPartitionResponse, start_at,
};
use millstream_protocol::{Code, Kind};

use crate::client::{Client, Stream, World, batch, whole};
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

async fn trim(client: &Client, partition: u32, start_offset: u64) {
    let request = TrimPartitionRequest {
        topic: "t".to_owned(),
        partition,
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

/// A stream as a client reads it: what it was given, and what it was told of each partition since.
struct Reader {
    stream: Stream,
    given: Given,
    /// The first PASSED of each: an offset and its leader epoch.
    passed: BTreeMap<u32, Passed>,
    ends: BTreeMap<u32, u64>,
    /// Bounds of each batch, in the order in which they came.
    read: BTreeMap<u32, Vec<(u64, u64)>>,
    lost: BTreeMap<u32, Vec<(u64, u64)>>,
    failed: BTreeMap<u32, messages::Error>,
    /// Of any partition, given still or not.
    has_read: bool,
}

impl Reader {
    async fn new(client: &Client, subscribe: &Subscribe) -> Self {
        Self {
            stream: client.subscribe(subscribe).await,
            given: Given::new(),
            passed: BTreeMap::new(),
            ends: BTreeMap::new(),
            read: BTreeMap::new(),
            lost: BTreeMap::new(),
            failed: BTreeMap::new(),
            has_read: false,
        }
    }

    fn partition(&self, handle: u32) -> Option<u32> {
        let mut given = self.given.iter();
        given.find_map(|(partition, (of, _))| (*of == handle).then_some(*partition))
    }

    /// Take one frame; what is asked back is released at once, and what was told of it forgotten.
    async fn step(&mut self) {
        let frame = self.stream.next().await.expect("a frame");
        match frame.known() {
            Some(Kind::Assigned) => {
                let assigned: Assigned = frame.message().expect("ASSIGNED");
                for at in assigned.partitions {
                    self.given.insert(at.partition, (at.handle, at.offset));
                }
            }
            Some(Kind::Revoke) => {
                let revoke: Revoke = frame.message().expect("REVOKE");
                for &handle in &revoke.handles {
                    let partition = self.partition(handle).expect("it was given");
                    self.given.remove(&partition);
                    self.passed.remove(&partition);
                    self.ends.remove(&partition);
                    self.read.remove(&partition);
                    self.lost.remove(&partition);
                    self.failed.remove(&partition);
                }
                let handles = revoke.handles;
                self.stream
                    .frame(Kind::Released, &Released { handles })
                    .await;
            }
            Some(Kind::Batch) => {
                let batch: Batch = frame.message().expect("BATCH");
                let partition = self.partition(batch.handle).expect("it was given");
                let bounds = (batch.base_offset, batch.last_offset + 1);
                self.read.entry(partition).or_default().push(bounds);
                self.has_read = true;
            }
            Some(Kind::Passed) => {
                let passed: Passed = frame.message().expect("PASSED");
                let partition = self.partition(passed.handle).expect("it was given");
                self.passed.entry(partition).or_insert(passed);
            }
            Some(Kind::CaughtUp) => {
                let end: CaughtUp = frame.message().expect("CAUGHT_UP");
                let partition = self.partition(end.handle).expect("it was given");
                self.ends.insert(partition, end.offset);
            }
            Some(Kind::RecordsLost) => {
                let lost: RecordsLost = frame.message().expect("RECORDS_LOST");
                let partition = self.partition(lost.handle).expect("it was given");
                let lost = (lost.from, lost.to);
                self.lost.entry(partition).or_default().push(lost);
            }
            Some(Kind::PartitionError) => {
                let failed: PartitionError = frame.message().expect("PARTITION_ERROR");
                let partition = self.partition(failed.handle).expect("it was given");
                let error = failed.error.expect("an error");
                self.failed.insert(partition, error);
            }
            Some(Kind::Error) => panic!("{:?}", frame.message::<messages::Error>()),
            _ => {}
        }
    }

    async fn until(&mut self, holds: impl Fn(&Self) -> bool) {
        while !holds(self) {
            self.step().await;
        }
    }

    /// Whether this is known of every partition that it has.
    fn all<T>(&self, told: &BTreeMap<u32, T>) -> bool {
        self.given
            .keys()
            .all(|partition| told.contains_key(partition))
    }
}

/// End them, when all is seen: what one leaves is given to the other.
async fn leave_all(readers: impl IntoIterator<Item = Reader>) {
    for reader in readers {
        leave(reader.stream).await;
    }
}

/// Two members that share the topic's partitions evenly.
async fn two_readers(client: &Client, subscribe: &Subscribe) -> [Reader; 2] {
    let half = PARTITIONS as usize / 2;
    let mut first = Reader::new(client, subscribe).await;
    first.until(|it| it.given.len() == 2 * half).await;
    let mut second = Reader::new(client, subscribe).await;
    first.until(|it| it.given.len() == half).await;
    second.until(|it| it.given.len() == half).await;
    [first, second]
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

/// Filters that drop for long say how far they are: members commit that, and it is not read again.
#[test]
fn what_a_filter_drops_is_told_and_can_be_committed() {
    const RECORDS: u64 = 24;
    for shards in SHARDS {
        let world = world(shards);
        world.run(async {
            let client = world.connect().await;
            let topic_id = client.create_topic("t", PARTITIONS).await;
            // More than is read from the log at once.
            let pad = "x".repeat(100 << 10);
            let dropped = format!("{{\"level\":\"info\",\"pad\":\"{pad}\"}}");
            for partition in 0..PARTITIONS {
                let values = [dropped.as_bytes(); RECORDS as usize];
                produce(&client, &topic_id, partition, &values).await;
            }
            let errors = expression("level == 'error'");
            deploy(&client, "subscribe", errors, Bytes::new(), JSON_FILTER)
                .await
                .expect("deployed");
            let mut committed = BTreeMap::new();
            let mut readers = two_readers(&client, &member("t")).await;
            for reader in &mut readers {
                reader.until(|it| it.all(&it.passed)).await;
                for (partition, passed) in std::mem::take(&mut reader.passed) {
                    assert!(
                        (1..RECORDS).contains(&passed.offset),
                        "{shards} shards, {partition}: {passed:?}"
                    );
                    let (handle, _) = reader.given[&partition];
                    let epoch = passed.leader_epoch;
                    commit(&mut reader.stream, handle, passed.offset, epoch).await;
                    committed.insert(partition, passed.offset);
                }
                assert!(reader.read.is_empty(), "{shards} shards: all is dropped");
            }
            assert_eq!(committed.len(), PARTITIONS as usize);
            leave_all(readers).await;

            let mut readers = two_readers(&client, &member("t")).await;
            for reader in &mut readers {
                reader.until(|it| it.all(&it.ends)).await;
                for (partition, (_, offset)) in &reader.given {
                    assert_eq!(*offset, committed[partition], "{shards} shards");
                    assert_eq!(reader.ends[partition], RECORDS, "{shards} shards");
                }
            }
            leave_all(readers).await;
        });
    }
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

/// Members whose next records were removed: what they are told, and where they go on.
#[test]
fn records_that_were_removed_before_they_were_read_are_told() {
    for shards in SHARDS {
        let world = world(shards);
        world.run(async {
            let client = world.connect().await;
            let topic_id = client.create_topic("t", PARTITIONS).await;
            for _ in 0..3 {
                three_each(&client, &topic_id, 0..PARTITIONS).await;
            }
            let mut reader = Reader::new(&client, &member("t")).await;
            reader
                .until(|it| it.given.len() == PARTITIONS as usize)
                .await;
            for (handle, _) in reader.given.values() {
                commit(&mut reader.stream, *handle, 1, None).await;
            }
            leave(reader.stream).await;
            for partition in 0..PARTITIONS {
                trim(&client, partition, 6).await;
            }

            let mut readers = two_readers(&client, &member("t")).await;
            for reader in &mut readers {
                reader.until(|it| it.all(&it.failed)).await;
                for error in reader.failed.values() {
                    assert_eq!(
                        (error.code, error.next_offset),
                        (Code::RecordsLost.number(), Some(6))
                    );
                    assert!(error.message.starts_with("5 records"), "{}", error.message);
                }
                // It is the member's to say where to go on.
                for (handle, _) in reader.given.values() {
                    let to = Some(StartAt {
                        at: Some(start_at::At::Offset(6)),
                        leader_epoch: None,
                    });
                    let seek = Seek {
                        handle: *handle,
                        to,
                        generation: 1,
                    };
                    reader.stream.frame(Kind::Seek, &seek).await;
                }
                reader.until(|it| it.all(&it.read)).await;
                let mut firsts = reader.read.values().map(|read| read[0].0);
                assert!(firsts.all(|first| first == 6), "{shards} shards");
            }
            leave_all(readers).await;

            for (on_lost, to) in [(OnLost::Oldest, 6), (OnLost::Newest, 9)] {
                let subscribe = Subscribe {
                    on_lost: on_lost.into(),
                    ..member("t")
                };
                let mut readers = two_readers(&client, &subscribe).await;
                for reader in &mut readers {
                    reader.until(|it| it.all(&it.ends)).await;
                    for partition in reader.given.keys() {
                        let lost = reader.lost.get(partition);
                        assert_eq!(lost, Some(&vec![(1, to)]), "{shards} shards: {on_lost:?}");
                        assert_eq!(reader.ends[partition], 9);
                    }
                    assert!(reader.failed.is_empty(), "{:?}", reader.failed);
                }
                leave_all(readers).await;
            }
        });
    }
}

/// Retention may also overtake those that read; without a group they go on with the oldest, members stop.
#[test]
fn a_reader_that_is_overtaken_gets_what_was_ready_and_is_told() {
    let alone = |on_lost: OnLost| Subscribe {
        credit_bytes: 1, // one batch
        on_lost: on_lost.into(),
        ..whole("t")
    };
    let cases = [
        (alone(OnLost::Default), true),
        (alone(OnLost::Fail), false),
        (
            Subscribe {
                group: "fails".to_owned(),
                ..alone(OnLost::Default)
            },
            false,
        ),
        (
            Subscribe {
                group: "goes-on".to_owned(),
                ..alone(OnLost::Oldest)
            },
            true,
        ),
    ];
    for shards in SHARDS {
        let world = world(shards);
        world.run(async {
            let client = world.connect().await;
            let topic_id = client.create_topic("t", PARTITIONS).await;
            for _ in 0..3 {
                three_each(&client, &topic_id, 0..PARTITIONS).await;
            }
            for (end, (subscribe, goes_on)) in (9..).step_by(6).zip(&cases) {
                let mut readers = match subscribe.group.is_empty() {
                    false => Vec::from(two_readers(&client, subscribe).await),
                    true => {
                        let mut reader = Reader::new(&client, subscribe).await;
                        reader
                            .until(|it| it.given.len() == PARTITIONS as usize)
                            .await;
                        vec![reader]
                    }
                };
                for reader in &mut readers {
                    reader.until(|it| it.has_read).await;
                }
                // What was fetched already is ready; what follows is removed before it is fetched.
                three_each(&client, &topic_id, 0..PARTITIONS).await;
                three_each(&client, &topic_id, 0..PARTITIONS).await;
                for partition in 0..PARTITIONS {
                    trim(&client, partition, end + 3).await;
                }
                let mut overtaken = 0;
                for reader in &mut readers {
                    overtaken += read_on(reader, end, *goes_on).await;
                }
                assert!(overtaken > 0, "{shards} shards: {subscribe:?}");
                leave_all(readers).await;
            }
        });
    }
}

/// Read on where records up to three past `end` were removed, three more being there. How many partitions
/// were overtaken.
async fn read_on(reader: &mut Reader, end: u64, goes_on: bool) -> usize {
    let credit = Credit { bytes: 1 << 20 };
    reader.stream.frame(Kind::Credit, &credit).await;
    let is_done = |it: &Reader, partition: &u32| {
        it.failed.contains_key(partition) || it.ends.get(partition) == Some(&(end + 6))
    };
    let all_done = |it: &Reader| it.given.keys().all(|partition| is_done(it, partition));
    reader.until(all_done).await;
    assert!(reader.failed.is_empty() || !goes_on, "{:?}", reader.failed);
    assert!(reader.lost.is_empty() || goes_on, "{:?}", reader.lost);
    for (partition, (_, offset)) in &reader.given {
        let mut next = *offset;
        let mut lost = reader.lost.get(partition).into_iter().flatten();
        for (from, to) in reader.read.get(partition).into_iter().flatten() {
            if *from != next {
                assert_eq!(lost.next(), Some(&(next, end + 3)));
                next = end + 3;
            }
            assert_eq!(*from, next, "partition {partition}");
            next = *to;
        }
        assert_eq!(lost.next(), None, "lost is what was not read");
        match reader.failed.get(partition) {
            Some(error) => assert_eq!(error.next_offset, Some(end + 3), "{error:?}"),
            None => assert_eq!(next, end + 6, "partition {partition}"),
        }
    }
    reader.lost.len() + reader.failed.len()
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
