//! The consumer over queues that a test fills in place of its task.

use bytes::Bytes;
use millstream_batch::{BatchBuilder, Encoding};

use super::*;

struct Task {
    changes: mpsc::UnboundedSender<Change>,
    arrivals: mpsc::UnboundedSender<Arrival>,
    commands: mpsc::UnboundedReceiver<Command>,
}

fn consumer(auto_commit: bool) -> (Consumer, Task) {
    let (change_out, changes) = mpsc::unbounded_channel();
    let (arrival_out, arrivals) = mpsc::unbounded_channel();
    let (command_out, commands) = mpsc::unbounded_channel();
    let queued = Arc::new(AtomicUsize::new(usize::MAX / 2));
    let consumer = Consumer::over(command_out, changes, arrivals, queued, auto_commit);
    (
        consumer,
        Task {
            changes: change_out,
            arrivals: arrival_out,
            commands,
        },
    )
}

fn assignment(partition: u32) -> Arc<Assignment> {
    Arc::new(Assignment::new(
        TopicPartition::new("t", partition),
        Bytes::new(),
        1,
        0,
    ))
}

/// A batch of one record at each of these offsets, which follow each other.
fn batch(assignment: &Arc<Assignment>, offsets: std::ops::Range<u64>) -> Arrival {
    let mut builder = BatchBuilder::new(Encoding::None, 1 << 20);
    for offset in offsets.clone() {
        builder
            .append(None, Some(offset.to_string().as_bytes()), [], 0)
            .unwrap();
    }
    let mut bytes = builder.build().unwrap().into_bytes().to_vec();
    bytes[..8].copy_from_slice(&offsets.start.to_be_bytes());
    let batch = FetchedBatch {
        name: assignment.name.clone(),
        batch: millstream_batch::Batch::check(bytes.into()).unwrap(),
        skip_below: 0,
        skip_before_ms: None,
        first_offset: offsets.start,
        last_offset: offsets.end - 1,
        append_time_ms: 0,
        pid: 0,
        epoch: 0,
        sequence: 0,
        end_offset: offsets.end,
        leader_epoch: 0,
        filtered: false,
    };
    Arrival {
        assignment: Arc::clone(assignment),
        generation: assignment.generation(),
        what: Arrived::Batch(Box::new(batch)),
    }
}

impl Task {
    fn assign(&self, assignments: &[&Arc<Assignment>]) {
        let fresh = assignments
            .iter()
            .map(|assignment| (Arc::clone(assignment), 0))
            .collect();
        self.changes.send(Change::Assigned(fresh)).unwrap();
    }

    fn give(&self, arrival: Arrival) {
        self.arrivals.send(arrival).unwrap();
    }

    /// Commands without the credit.
    fn heard(&mut self) -> Vec<Command> {
        std::iter::from_fn(|| self.commands.try_recv().ok())
            .filter(|command| !matches!(command, Command::Freed(_)))
            .collect()
    }
}

#[tokio::test]
async fn everything_that_arrived_before_the_end_is_given() {
    let (mut consumer, task) = consumer(false);
    let ours = assignment(0);
    task.assign(&[&ours]);
    // More than the runtime lets one task take without yielding.
    for at in 0..2_000 {
        task.give(batch(&ours, at..at + 1));
    }
    task.changes.send(Change::Ended(None)).unwrap();
    drop(task);
    for offset in 0..2_000 {
        assert_eq!(consumer.next().await.unwrap().unwrap().offset, offset);
    }
    assert!(consumer.next().await.is_none());
    assert!(consumer.next().await.is_none());
}

#[tokio::test]
async fn the_last_word_comes_after_the_last_record() {
    let (mut consumer, task) = consumer(false);
    let ours = assignment(0);
    task.assign(&[&ours]);
    task.changes
        .send(Change::Ended(Some(Error::transport("gone"))))
        .unwrap();
    task.give(batch(&ours, 0..2));
    drop(task);
    assert_eq!(consumer.next().await.unwrap().unwrap().offset, 0);
    assert_eq!(consumer.next().await.unwrap().unwrap().offset, 1);
    assert_eq!(
        consumer.next().await.unwrap().unwrap_err().message(),
        "gone"
    );
    assert!(consumer.next().await.is_none());
}

/// A member whose partitions are read to the end may be given another one while the application is at work.
#[tokio::test]
async fn what_came_after_the_end_is_given_too() {
    let (mut consumer, task) = consumer(true);
    let (first, second) = (assignment(0), assignment(1));
    task.assign(&[&first]);
    task.give(batch(&first, 0..1));
    task.changes.send(Change::Ended(None)).unwrap();
    assert_eq!(consumer.next().await.unwrap().unwrap().partition, 0);
    task.changes.send(Change::GoesOn).unwrap();
    task.assign(&[&second]);
    let mut next = Box::pin(consumer.next());
    let poll = std::future::poll_fn(|cx| Poll::Ready(next.as_mut().poll(cx)));
    assert!(poll.await.is_pending(), "it goes on");
    task.give(batch(&second, 0..1));
    assert_eq!(next.await.unwrap().unwrap().partition, 1);
    task.changes.send(Change::Ended(None)).unwrap();
    assert!(consumer.next().await.is_none());
}

#[tokio::test]
async fn a_record_is_processed_when_the_application_comes_back() {
    let (mut consumer, task) = consumer(true);
    let ours = assignment(0);
    task.assign(&[&ours]);
    task.give(batch(&ours, 0..3));
    task.give(batch(&ours, 3..4));
    for offset in 0..4 {
        assert_eq!(consumer.next().await.unwrap().unwrap().offset, offset);
        assert_eq!(
            ours.processed(),
            offset,
            "the record that was given may still be worked on"
        );
        assert_eq!(consumer.position(&ours.name), Some(offset + 1));
    }
}

#[tokio::test]
async fn a_revoked_partition_is_committed_and_let_go_when_the_application_comes_back() {
    let (mut consumer, mut task) = consumer(true);
    let (leaving, staying) = (assignment(0), assignment(1));
    task.assign(&[&leaving, &staying]);
    task.give(batch(&leaving, 0..2));
    assert!(matches!(
        consumer.next_event().await,
        Some(Ok(ConsumerEvent::Assigned(_)))
    ));
    assert!(matches!(
        consumer.next_event().await,
        Some(Ok(ConsumerEvent::Batch(_)))
    ));
    // What is still queued of it is the next owner's.
    task.give(batch(&leaving, 2..4));
    task.give(batch(&staying, 7..8));
    leaving.end();
    task.changes
        .send(Change::Revoking(vec![Arc::clone(&leaving)]))
        .unwrap();
    assert!(task.heard().is_empty());
    match consumer.next_event().await {
        Some(Ok(ConsumerEvent::Revoking(partitions))) => {
            assert_eq!(partitions[..], [TopicPartition::new("t", 0)]);
        }
        other => panic!("{other:?}"),
    }
    match &task.heard()[..] {
        [Command::Commit { offsets, .. }] => {
            assert_eq!(offsets[0].1, 2, "both records were processed");
        }
        other => panic!("{other:?}"),
    }
    match consumer.next_event().await {
        Some(Ok(ConsumerEvent::Batch(batch))) => {
            assert_eq!((batch.partition(), batch.first_offset), (1, 7));
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(&task.heard()[..], [Command::Released(_)]));
    assert_eq!(consumer.assignment(), [TopicPartition::new("t", 1)]);
}

#[tokio::test]
async fn paused_partitions_hold_what_arrived_and_go_on_inside_the_batch() {
    let (mut consumer, task) = consumer(false);
    let (first, second) = (assignment(0), assignment(1));
    task.assign(&[&first, &second]);
    task.give(batch(&first, 0..3));
    task.give(batch(&second, 0..1));
    let place = |record: ConsumedRecord| (record.partition, record.offset);
    assert_eq!(place(consumer.next().await.unwrap().unwrap()), (0, 0));
    consumer.pause(std::slice::from_ref(&first.name)).unwrap();
    assert_eq!(place(consumer.next().await.unwrap().unwrap()), (1, 0));
    consumer.resume(std::slice::from_ref(&first.name)).unwrap();
    assert_eq!(place(consumer.next().await.unwrap().unwrap()), (0, 1));
    assert_eq!(place(consumer.next().await.unwrap().unwrap()), (0, 2));
}

#[tokio::test]
async fn what_was_queued_before_a_seek_is_dropped() {
    let (mut consumer, mut task) = consumer(false);
    let ours = assignment(0);
    task.assign(&[&ours]);
    task.give(batch(&ours, 0..5));
    assert_eq!(consumer.next().await.unwrap().unwrap().offset, 0);
    task.give(batch(&ours, 5..9));
    let name = ours.name.clone();
    let seek = consumer.seek(&name, StartAt::Offset(40));
    let answer = async {
        match task.commands.recv().await.unwrap() {
            Command::Seek { to, reply, .. } => {
                assert_eq!(to, StartAt::Offset(40));
                reply.send(Ok(40)).unwrap();
            }
            other => panic!("{other:?}"),
        }
        task
    };
    let (sought, task) = tokio::join!(seek, answer);
    assert_eq!(sought.unwrap(), 40);
    task.give(batch(&ours, 40..41));
    assert_eq!(consumer.next().await.unwrap().unwrap().offset, 40);
    assert!(
        consumer
            .seek(&TopicPartition::new("t", 9), StartAt::End)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_batch_that_cannot_be_read_stops_its_partition_until_a_seek() {
    let (mut consumer, mut task) = consumer(true);
    let (ours, other) = (assignment(0), assignment(1));
    task.assign(&[&ours, &other]);
    task.give(batch(&ours, 0..2));
    let mut bad = batch(&ours, 2..5);
    if let Arrived::Batch(batch) = &mut bad.what {
        let mut bytes = batch.batch.bytes().to_vec();
        bytes[millstream_batch::HEADER_BYTES] ^= 2; // the first record's length
        batch.batch = millstream_batch::Batch::parse(bytes.into()).unwrap();
    }
    task.give(bad);
    task.give(batch(&ours, 5..6));
    task.give(batch(&other, 0..1));
    for offset in 0..2 {
        assert_eq!(consumer.next().await.unwrap().unwrap().offset, offset);
    }
    let error = consumer.next().await.unwrap().unwrap_err();
    assert_eq!(
        (error.kind(), error.next_offset()),
        (crate::error::Kind::Batch, Some(5))
    );
    assert!(error.to_string().contains("offsets 2 to 4"), "{error}");
    // The other partition goes on, this one does not as if nothing were missing.
    let record = consumer.next().await.unwrap().unwrap();
    assert_eq!((record.partition, record.offset), (1, 0));
    assert_eq!(ours.processed(), 2);
    assert!(
        matches!(&task.heard()[..], [Command::Pause { paused: true, .. }]),
        "the broker need not send more"
    );
    let name = ours.name.clone();
    let seeking = consumer.seek(&name, StartAt::Offset(5));
    let answering = async {
        let Some(Command::Seek { reply, .. }) = task.commands.recv().await else {
            panic!("no seek")
        };
        reply.send(Ok(5)).unwrap();
        let unpaused = task.commands.recv().await;
        assert!(matches!(
            unpaused,
            Some(Command::Pause { paused: false, .. })
        ));
    };
    assert_eq!(tokio::join!(seeking, answering).0.unwrap(), 5);
    task.give(batch(&ours, 5..6));
    assert_eq!(consumer.next().await.unwrap().unwrap().offset, 5);
}

/// What filters dropped is read: it is committed as what was given is.
#[tokio::test]
async fn what_filters_dropped_is_committed() {
    let (mut consumer, mut task) = consumer(false);
    let ours = assignment(0);
    task.assign(&[&ours]);
    task.give(batch(&ours, 0..3));
    let arrival = |what| Arrival {
        assignment: Arc::clone(&ours),
        generation: ours.generation(),
        what,
    };
    task.give(arrival(Arrived::Passed { offset: 9_000 }));
    task.give(arrival(Arrived::CaughtUp {
        offset: 20_000,
        ended: false,
    }));
    assert!(matches!(
        consumer.next_event().await,
        Some(Ok(ConsumerEvent::Assigned(_)))
    ));
    assert!(matches!(
        consumer.next_event().await,
        Some(Ok(ConsumerEvent::Batch(_)))
    ));
    for expected in [9_000, 20_000] {
        match consumer.next_event().await {
            Some(Ok(
                ConsumerEvent::Passed { offset, .. } | ConsumerEvent::CaughtUp { offset, .. },
            )) => assert_eq!(offset, expected),
            other => panic!("{other:?}"),
        }
        assert_eq!(consumer.position(&ours.name), Some(expected));
        // Dropped before it is answered: only what is sent counts here.
        drop(tokio::time::timeout(std::time::Duration::ZERO, consumer.commit()).await);
        match &task.heard()[..] {
            [Command::Commit { offsets, .. }] => assert_eq!(offsets[0].1, expected),
            other => panic!("{other:?}"),
        }
    }
}

/// A batch that was found by a time begins with its first record of that time; what comes after that one
/// is given whatever time it names.
#[test]
fn records_before_the_time_that_was_asked_for_are_skipped() {
    let mut builder = BatchBuilder::new(Encoding::None, 1 << 20);
    for timestamp in [10, 20, 30, 25, 5] {
        builder.append(None, None, [], timestamp).unwrap();
    }
    let bytes = builder.build().unwrap().into_bytes();
    let ours = assignment(0);
    let Arrived::Batch(mut fetched) = batch(&ours, 0..5).what else {
        panic!("a batch");
    };
    fetched.batch = millstream_batch::Batch::check(bytes).unwrap();
    let given = |skip_before_ms| {
        let fetched = FetchedBatch {
            skip_before_ms,
            ..(*fetched).clone()
        };
        let records = fetched.records().unwrap();
        records
            .iter()
            .map(|record| record.offset)
            .collect::<Vec<_>>()
    };
    assert_eq!(given(None), [0, 1, 2, 3, 4]);
    assert_eq!(given(Some(25)), [2, 3, 4]);
    assert_eq!(given(Some(31)), []);
}
