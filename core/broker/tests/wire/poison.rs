//! Batches whose header and checksum hold, and whose records are none: a sender can make them by mistake or on
//! purpose, and who reads them cannot go on.

use millstream_batch::{BatchBuilder, Encoding};
use millstream_broker::{CheckRecords, Config};
use millstream_protocol::messages::{
    self, CreateTopicRequest, CreateTopicResponse, Produce, Produced, ProducerOpen, Setting,
    Subscribe,
};
use millstream_protocol::{Code, Kind};

use crate::client::{World, batch, values, whole};

/// Where the fields of the v2 layout begin.
const CRC_AT: usize = 17;
const ATTRIBUTES_AT: usize = 21;
const RECORDS_AT: usize = 61;

type Change = fn(&mut [u8]);

/// Bit by bit: a batch a test.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 }
        })
    })
}

/// These values' batch after `change`, with the checksum that it then has.
pub(crate) fn poison(values: &[&[u8]], change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut bytes = batch(values).to_vec();
    change(&mut bytes);
    let crc = crc32c(&bytes[ATTRIBUTES_AT..]);
    bytes[CRC_AT..ATTRIBUTES_AT].copy_from_slice(&crc.to_be_bytes());
    bytes
}

/// Records that say they are compressed (zstd), and are not.
pub(crate) fn not_compressed(bytes: &mut [u8]) {
    bytes[ATTRIBUTES_AT + 1] = 4;
}

#[test]
fn records_are_walked_at_the_door() {
    let world = World::new(|_| {});
    world.run(async {
        let client = world.connect().await;
        let topic_id = client.create_topic("t", 1).await;
        let mut producer = client.producer(&ProducerOpen::default()).await;
        let large = vec![7; 100_000]; // in many packets
        let values_of: [&[u8]; 3] = [b"one", &large, b"three"];
        let changes: [(&str, Change); 5] = [
            ("record 0", |b| b[RECORDS_AT] ^= 2),
            ("record 0", |b| b[RECORDS_AT + 3] = 0x7e), // its offset delta
            ("record 0", |b| b[RECORDS_AT + 4] = 0x7e), // its key's length
            ("record 2", |b| *b.last_mut().expect("bytes") = 0x7e), // the last one's headers
            ("record", |b| b[RECORDS_AT..].fill(0xff)),
        ];
        let mut tag = 0;
        for (named, change) in changes {
            tag += 1;
            let header = Produce {
                tag,
                topic_id: topic_id.clone(),
                ..Produce::default()
            };
            producer.produce(header, &poison(&values_of, change)).await;
            let error = producer.error().await;
            assert_eq!(
                (error.tag, error.code),
                (tag, Code::BadBatch.number()),
                "{}",
                error.message
            );
            assert!(error.message.contains(named), "{}", error.message);
        }
        let header = Produce {
            tag: tag + 1,
            topic_id,
            ..Produce::default()
        };
        producer.produce(header, &poison(&values_of, |_| {})).await;
        producer.expect(Kind::Produced).await;
        let wish = Subscribe {
            stop_at_end: true,
            ..whole("t")
        };
        let mut stream = client.subscribe(&wish).await;
        let mut read = Vec::new();
        while let Some(frame) = stream.next().await {
            if frame.known() == Some(Kind::Batch) {
                read.extend(values(frame.payload.into_contiguous()).1);
            }
        }
        assert_eq!(read, values_of);
    });
}

/// These values in a batch that is compressed.
fn compressed(values: &[&[u8]]) -> Vec<u8> {
    let mut builder = BatchBuilder::new(Encoding::Zstd, 8 << 20);
    for value in values {
        builder
            .append(None, Some(value), [], 1_700_000_000_000)
            .expect("it fits");
    }
    builder.build().expect("records").into_bytes().to_vec()
}

#[test]
fn compressed_records_are_walked_where_that_is_asked_for_and_order_is_kept() {
    let by_default = |config: &mut Config| config.topics.check_records = CheckRecords::All;
    all_are_walked(&World::new(by_default), None);
    all_are_walked(&World::new(|_| {}), Some("all"));
}

fn all_are_walked(world: &World, setting: Option<&str>) {
    world.run(async {
        let client = world.connect().await;
        let config = setting.map(|value| Setting {
            key: "check.records".to_owned(),
            value: Some(value.to_owned()),
        });
        let request = CreateTopicRequest {
            name: "t".to_owned(),
            partitions: 1,
            config: config.into_iter().collect(),
            ..CreateTopicRequest::default()
        };
        let created: CreateTopicResponse = client
            .request(Kind::CreateTopic, &request)
            .await
            .expect("created");
        let topic_id = created.topic.expect("a topic").id;
        let mut producer = client.producer(&ProducerOpen::default()).await;
        let large = vec![7; 2 << 20]; // takes its time to inflate
        let batches = [
            compressed(&[&large]),
            poison(&[b"one", b"two"], not_compressed),
            batch(&[b"plain"]).to_vec(),
            compressed(&[&large[..1_000], b"last"]),
        ];
        // All at once: whoever is quick must not overtake.
        for (tag, batch) in (1..).zip(&batches) {
            let header = Produce {
                tag,
                topic_id: topic_id.clone(),
                ..Produce::default()
            };
            producer.produce(header, batch).await;
        }
        let mut answers = Vec::new();
        for _ in &batches {
            let frame = producer.next().await.expect("an answer");
            answers.push(match frame.known() {
                Some(Kind::Produced) => {
                    let produced: Produced = frame.message().expect("PRODUCED");
                    Ok(produced.base_offset)
                }
                _ => Err(frame.message::<messages::Error>().expect("an ERROR").code),
            });
        }
        assert_eq!(
            answers,
            [
                Ok(Some(0)),
                Err(Code::BadBatch.number()),
                Ok(Some(1)),
                Ok(Some(2))
            ]
        );
    });
}
