//! Topics that are read whole, and grow.

use millstream_protocol::Kind;
use millstream_protocol::messages::{
    AddPartitionsRequest, AddPartitionsResponse, Assigned, FixedPartition, Produce, ProducerOpen,
    Subscribe,
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
