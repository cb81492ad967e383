//! Producing and consuming over the wire.

use millstream_protocol::messages::{
    Ack, Assigned, Batch, CaughtUp, Credit, DescribeTopicRequest, DescribeTopicResponse,
    InitProducerRequest, InitProducerResponse, Pause, Produce, Produced, ProducerOpen, Seek,
    Sought, StartAt, Subscribe, start_at,
};
use millstream_protocol::{Code, Kind};

use crate::client::{World, batch, from_start, values, whole};

#[test]
fn what_is_produced_is_consumed_in_order_and_after_a_restart() {
    let mut world = World::new(|_| {});
    let topic = world.run(async {
        let client = world.connect().await;
        let topic = client.create_topic("t", 1).await;
        let mut producer = client.producer(&ProducerOpen::default()).await;
        for tag in 1..=100_u64 {
            let header = Produce {
                tag,
                topic_id: topic.clone(),
                ..Produce::default()
            };
            producer
                .produce(header, &batch(&[format!("a{tag}").as_bytes(), b"b"]))
                .await;
        }
        producer.send.finish().expect("finished");
        for tag in 1..=100_u64 {
            let produced: Produced = producer
                .expect(Kind::Produced)
                .await
                .message()
                .expect("PRODUCED");
            assert_eq!(
                (produced.tag, produced.base_offset),
                (tag, Some((tag - 1) * 2))
            );
        }
        assert!(
            producer.next().await.is_none(),
            "the stream ends when all is answered"
        );
        topic
    });
    for _ in 0..2 {
        world.run(async {
            let client = world.connect().await;
            let mut stream = client
                .subscribe(&Subscribe {
                    stop_at_end: true,
                    ..whole("t")
                })
                .await;
            stream.expect(Kind::Subscribed).await;
            let assigned: Assigned = stream
                .expect(Kind::Assigned)
                .await
                .message()
                .expect("ASSIGNED");
            assert_eq!(
                (
                    assigned.partitions[0].offset,
                    assigned.partitions[0].topic_id.clone()
                ),
                (0, topic.clone())
            );
            for tag in 1..=100_u64 {
                let frame = stream.expect(Kind::Batch).await;
                let header: Batch = frame.message().expect("BATCH");
                assert_eq!(
                    (header.base_offset, header.last_offset),
                    ((tag - 1) * 2, tag * 2 - 1)
                );
                assert!(!header.filtered && header.append_time_ms > 0);
                let (base, values) = values(frame.payload.into_contiguous());
                assert_eq!(
                    (base, &values[0], values.len()),
                    (header.base_offset, &format!("a{tag}").into_bytes(), 2)
                );
            }
            let caught: CaughtUp = stream
                .expect(Kind::CaughtUp)
                .await
                .message()
                .expect("CAUGHT_UP");
            assert_eq!((caught.offset, caught.ended), (200, true));
            assert!(stream.next().await.is_none(), "all partitions are over");
        });
        world.stop();
        world.start_again();
    }
}

#[test]
fn a_repeated_batch_is_answered_with_its_first_offset() {
    let world = World::new(|_| {});
    world.run(async {
        let client = world.connect().await;
        let topic_id = client.create_topic("t", 1).await;
        let init: InitProducerResponse = client
            .request(Kind::InitProducer, &InitProducerRequest::default())
            .await
            .expect("an id");
        let open = ProducerOpen {
            pid: init.pid,
            epoch: init.epoch,
            ack: Ack::Durable.into(),
            token: init.token,
        };
        let mut producer = client.producer(&open).await;
        for (tag, sequence) in [(1, 0), (2, 0), (3, 5), (4, 1)] {
            let header = Produce {
                tag,
                topic_id: topic_id.clone(),
                partition: 0,
                sequence,
            };
            producer.produce(header, &batch(&[b"x"])).await;
        }
        let first: Produced = producer
            .expect(Kind::Produced)
            .await
            .message()
            .expect("PRODUCED");
        let again: Produced = producer
            .expect(Kind::Produced)
            .await
            .message()
            .expect("PRODUCED");
        assert_eq!((first.base_offset, first.duplicate), (Some(0), false));
        assert_eq!((again.base_offset, again.duplicate), (Some(0), true));
        let gap = producer.error().await;
        assert_eq!(
            (gap.code, gap.tag, gap.retriable),
            (Code::SequenceGap.number(), 3, false)
        );
        let next: Produced = producer
            .expect(Kind::Produced)
            .await
            .message()
            .expect("PRODUCED");
        assert_eq!(
            (next.tag, next.base_offset),
            (4, Some(1)),
            "the stream goes on after a refused batch"
        );
    });
}

#[test]
fn a_consumer_at_the_tail_gets_what_comes_within_its_credit() {
    let world = World::new(|_| {});
    world.run(async {
        let client = world.connect().await;
        let topic_id = client.create_topic("t", 1).await;
        let one = batch(&[&[7; 1000]]);
        let credit = one.len() as u64 + 1; // a second batch may overdraw it, a third not
        let mut stream = client
            .subscribe(&Subscribe {
                credit_bytes: credit,
                ..whole("t")
            })
            .await;
        stream.expect(Kind::Subscribed).await;
        stream.expect(Kind::Assigned).await;
        let caught: CaughtUp = stream
            .expect(Kind::CaughtUp)
            .await
            .message()
            .expect("CAUGHT_UP");
        assert_eq!((caught.offset, caught.ended), (0, false));
        let mut producer = client.producer(&ProducerOpen::default()).await;
        for tag in 1..=3 {
            producer
                .produce(
                    Produce {
                        tag,
                        topic_id: topic_id.clone(),
                        ..Produce::default()
                    },
                    &one,
                )
                .await;
            producer.expect(Kind::Produced).await;
        }
        for base in 0..2 {
            let header: Batch = stream.expect(Kind::Batch).await.message().expect("BATCH");
            assert_eq!(header.base_offset, base);
        }
        // Nothing more without credit: the answer to a seek is the next frame.
        let to = Some(StartAt {
            at: Some(start_at::At::Offset(2)),
            leader_epoch: None,
        });
        stream
            .frame(
                Kind::Seek,
                &Seek {
                    handle: 1,
                    to,
                    generation: 9,
                },
            )
            .await;
        let sought: Sought = stream.expect(Kind::Sought).await.message().expect("SOUGHT");
        assert_eq!((sought.offset, sought.generation), (2, 9));
        stream.frame(Kind::Credit, &Credit { bytes: 1 << 20 }).await;
        let header: Batch = stream.expect(Kind::Batch).await.message().expect("BATCH");
        assert_eq!(header.base_offset, 2);
    });
}

#[test]
fn pause_and_seek_hold_for_their_partition() {
    let world = World::new(|_| {});
    world.run(async {
        let client = world.connect().await;
        let topic_id = client.create_topic("t", 2).await;
        let mut stream = client.subscribe(&whole("t")).await;
        stream.expect(Kind::Subscribed).await;
        let mut handles = std::collections::BTreeMap::new();
        while handles.len() < 2 {
            let frame = stream.next().await.expect("a frame");
            if frame.known() == Some(Kind::Assigned) {
                let assigned: Assigned = frame.message().expect("ASSIGNED");
                handles.extend(assigned.partitions.iter().map(|p| (p.partition, p.handle)));
                assert_eq!(
                    handles.len() + assigned.opening as usize,
                    2,
                    "what is not open yet is said"
                );
            }
        }
        stream
            .frame(
                Kind::Pause,
                &Pause {
                    handles: vec![handles[&0]],
                    paused: true,
                },
            )
            .await;
        // A seek's answer proves that the pause before it was taken.
        stream
            .frame(
                Kind::Seek,
                &Seek {
                    handle: handles[&1],
                    to: from_start(),
                    generation: 1,
                },
            )
            .await;
        while stream.next().await.expect("a frame").known() != Some(Kind::Sought) {}
        let mut producer = client.producer(&ProducerOpen::default()).await;
        for partition in 0..2 {
            let tag = u64::from(partition) + 1;
            let header = Produce {
                tag,
                topic_id: topic_id.clone(),
                partition,
                ..Produce::default()
            };
            producer.produce(header, &batch(&[b"x"])).await;
            producer.expect(Kind::Produced).await;
        }
        let mut batches = Vec::new();
        while batches.is_empty() {
            let frame = stream.next().await.expect("a frame");
            if frame.known() == Some(Kind::Batch) {
                batches.push(frame.message::<Batch>().expect("BATCH").handle);
            }
        }
        assert_eq!(batches, [handles[&1]], "the paused one is silent");
        stream
            .frame(
                Kind::Pause,
                &Pause {
                    handles: vec![handles[&0]],
                    paused: false,
                },
            )
            .await;
        while batches.len() < 2 {
            let frame = stream.next().await.expect("a frame");
            if frame.known() == Some(Kind::Batch) {
                batches.push(frame.message::<Batch>().expect("BATCH").handle);
            }
        }
        assert_eq!(batches[1], handles[&0]);
    });
}

#[test]
fn thousands_of_partitions_and_ten_thousand_batches_come_whole() {
    let world = World::new(|_| {});
    world.run(async {
        let client = world.connect().await;
        let topic_id = client.create_topic("t", 1000).await;
        let mut producer = client.producer(&ProducerOpen::default()).await;
        let one = batch(&[b"x"]);
        let (batches, partitions) = (10_000_u64, 1000);
        let mut acked = 0;
        for tag in 1..=batches {
            let partition = (tag % partitions) as u32;
            let header = Produce {
                tag,
                topic_id: topic_id.clone(),
                partition,
                ..Produce::default()
            };
            producer.produce(header, &one).await;
            if tag - acked >= 512 {
                producer.expect(Kind::Produced).await;
                acked += 1;
            }
        }
        for _ in acked..batches {
            producer.expect(Kind::Produced).await;
        }
        let described: DescribeTopicResponse = client
            .request(
                Kind::DescribeTopic,
                &DescribeTopicRequest {
                    name: "t".to_owned(),
                    partitions: true,
                    from_partition: 0,
                },
            )
            .await
            .expect("described");
        assert!(
            described
                .partitions
                .iter()
                .all(|p| (p.start_offset, p.end_offset) == (0, 10))
        );
        let wish = Subscribe {
            stop_at_end: true,
            credit_bytes: 1 << 30,
            ..whole("t")
        };
        let mut stream = client.subscribe(&wish).await;
        let (mut seen, mut next) = (0, std::collections::BTreeMap::new());
        while let Some(frame) = stream.next().await {
            assert_ne!(frame.known(), Some(Kind::Error));
            if frame.known() == Some(Kind::Batch) {
                let header: Batch = frame.message().expect("BATCH");
                let next = next.entry(header.handle).or_insert(0);
                assert_eq!(header.base_offset, *next, "in order, without a gap");
                *next = header.last_offset + 1;
                seen += 1;
            }
        }
        assert_eq!((seen, next.len()), (10_000, 1000));
    });
}
