//! `core/machine`: what a shard does with a produced batch before and after its log.

use std::hint::black_box;

use millstream_batch::ids::{
    Lsn, Partition, ProducerEpoch, ProducerId, Sequence, ShardId, Term, TimestampMs, TopicId,
};
use millstream_machine::request::{Produce, Reply, Request};
use millstream_machine::topics::TopicConfig;
use millstream_machine::{Limits, State, decide, install};

use super::Work;
use crate::fixture::TIMESTAMP;

const TOPIC: TopicId = TopicId([7; 16]);
const PARTITIONS: u32 = 64;
const PRODUCERS: usize = 16;
const RECORDS: u32 = 64;

pub(crate) fn produce() -> Work {
    let mut shard = Shard {
        state: State::new(ShardId(0), 1, Limits::default()),
        last: Lsn(0),
        now: TimestampMs(TIMESTAMP),
    };
    shard.ask(&Request::CreateTopic {
        id: TOPIC,
        name: "orders".into(),
        partitions: PARTITIONS,
        config: TopicConfig::default(),
    });
    let producers: Vec<(ProducerId, ProducerEpoch)> = (0..PRODUCERS)
        .map(|_| {
            let fresh = ProducerId(0);
            match shard.ask(&Request::InitProducer { pid: fresh }) {
                Reply::Producer { pid, epoch } => (pid, epoch),
                other => unreachable!("a producer was asked for: {other:?}"),
            }
        })
        .collect();
    let mut sequences = vec![[0_u64; PRODUCERS]; PARTITIONS as usize];
    let mut turn = 0_usize;
    Box::new(move || {
        // Each producer in turn, and each on to the next partition once all had theirs.
        let producer = turn % PRODUCERS;
        let partition = (turn / PRODUCERS * 7 + producer) % PARTITIONS as usize;
        turn += 1;
        shard.now.0 += i64::from(turn.is_multiple_of(8));
        let (pid, epoch) = producers[producer];
        let sequence = &mut sequences[partition][producer];
        let reply = shard.ask(&Request::Produce(Produce {
            partition: Partition {
                topic: TOPIC,
                index: partition as u32,
            },
            pid,
            epoch,
            sequence: Sequence(*sequence),
            sent: RECORDS,
            kept: RECORDS,
            bytes: 64 << 10,
            max_timestamp: TimestampMs(TIMESTAMP),
        }));
        *sequence += u64::from(RECORDS);
        assert!(matches!(reply, Reply::Produced(produced) if !produced.duplicate));
        black_box(reply);
    })
}

struct Shard {
    state: State,
    last: Lsn,
    now: TimestampMs,
}

impl Shard {
    /// As `core/shard` does it, with the log left out.
    fn ask(&mut self, request: &Request) -> Reply {
        let decision = decide(&self.state, self.now, Term(1), black_box(request));
        let decision = decision.expect("a request that is granted");
        if !decision.facts.is_empty() {
            for fact in &decision.facts {
                black_box(fact.encode());
            }
            self.last = self.last.next();
            install(&mut self.state, self.last, &decision.facts);
        }
        decision.reply
    }
}
