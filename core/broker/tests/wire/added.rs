//! Topics that are read whole, and grow.

use millstream_protocol::Kind;
use millstream_protocol::messages::{
    AddPartitionsRequest, AddPartitionsResponse, Assigned, FixedPartition, Produce, Produced,
    ProducerOpen, Subscribe,
};

use crate::client::{World, batch, from_start, whole};

#[test]
fn who_reads_a_topic_whole_reads_partitions_that_are_added() {
    let world = World::new(|_| {});
    world.run(async {
        let client = world.connect().await;
        let topic_id = client.create_topic("t", 1).await;
        let first = FixedPartition {
            topic: "t".to_owned(),
            partition: 0,
            from: from_start(),
        };
        let mut all = client.subscribe(&whole("t")).await;
        let mut fixed = client
            .subscribe(&Subscribe {
                topics: Vec::new(),
                partitions: vec![first.clone()],
                ..whole("t")
            })
            .await;
        // A partition that is also named itself begins where it is said there.
        let mut both = client
            .subscribe(&Subscribe {
                partitions: vec![first],
                ..whole("t")
            })
            .await;
        for stream in [&mut all, &mut fixed, &mut both] {
            stream.expect(Kind::Subscribed).await;
            let first: Assigned = stream
                .expect(Kind::Assigned)
                .await
                .message()
                .expect("ASSIGNED");
            assert_eq!(first.partitions.len(), 1);
            stream.expect(Kind::CaughtUp).await;
        }
        let more = AddPartitionsRequest {
            name: "t".to_owned(),
            total: 4,
        };
        let _: AddPartitionsResponse = client
            .request(Kind::AddPartitions, &more)
            .await
            .expect("added");
        let mut producer = client.producer(&ProducerOpen::default()).await;
        for (tag, partition) in (1..).zip([0, 3]) {
            let header = Produce {
                tag,
                topic_id: topic_id.clone(),
                partition,
                sequence: 0,
            };
            producer.produce(header, &batch(&[b"x"])).await;
            producer.expect(Kind::Produced).await;
        }
        for stream in [&mut all, &mut both] {
            let (mut indexes, mut batches) = (Vec::new(), 0);
            while indexes.len() < 3 || batches < 2 {
                let frame = stream.next().await.expect("more");
                match frame.known() {
                    Some(Kind::Assigned) => {
                        let assigned: Assigned = frame.message().expect("ASSIGNED");
                        for partition in assigned.partitions {
                            assert_eq!(partition.offset, 0);
                            indexes.push(partition.partition);
                        }
                    }
                    Some(Kind::Batch) => batches += 1,
                    Some(Kind::CaughtUp) => {}
                    other => panic!("{other:?}"),
                }
            }
            indexes.sort_unstable();
            assert_eq!(indexes, [1, 2, 3]);
        }
        // Who named a partition reads that one.
        fixed.expect(Kind::Batch).await;
        fixed.send.finish().expect("finished");
        while let Some(frame) = fixed.next().await {
            assert_eq!(frame.known(), Some(Kind::CaughtUp));
        }
    });
}

/// The first acknowledgement of a topic on a stream says how many partitions it has, and so does the next
/// one after that changed; no other does.
#[test]
fn a_producer_is_told_of_partitions_that_are_added() {
    let world = World::new(|_| {});
    world.run(async {
        let client = world.connect().await;
        let topic_id = client.create_topic("t", 1).await;
        let mut producer = client.producer(&ProducerOpen::default()).await;
        let mut told = Vec::new();
        for tag in 1..=10_000 {
            if tag == 4 {
                let more = AddPartitionsRequest {
                    name: "t".to_owned(),
                    total: 4,
                };
                let _: AddPartitionsResponse = client
                    .request(Kind::AddPartitions, &more)
                    .await
                    .expect("added");
            }
            let header = Produce {
                tag,
                topic_id: topic_id.clone(),
                ..Produce::default()
            };
            producer.produce(header, &batch(&[b"x"])).await;
            let frame = producer.expect(Kind::Produced).await;
            let produced: Produced = frame.message().expect("PRODUCED");
            told.extend(produced.partitions.map(|partitions| (tag, partitions)));
            if told.len() == 2 {
                break;
            }
        }
        assert!(
            matches!(told[..], [(1, 1), (4.., 4)]),
            "the number of partitions with the tags that told it: {told:?}"
        );
    });
}
