//! A shard's machine driven as the shard drives it: decide, log, install. What is logged goes through
//! its bytes, so that nothing lives on that the log would lose.

#![allow(dead_code, reason = "each test uses its part")]

use millstream_batch::ids::{
    GroupEpoch, Lsn, MemberId, Offset, Partition, ProducerEpoch, ProducerId, Sequence, ShardId,
    Term, TimestampMs, TopicId,
};
use millstream_machine::request::{Commit, Produce, Produced, Refusal, Reply, Request};
use millstream_machine::topics::{TopicConfig, TopicMeta};
use millstream_machine::{Fact, Limits, State, decide, install};

pub(crate) const TERM: Term = Term(3);

/// SplitMix64: one seed, one run.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        if items.is_empty() {
            None
        } else {
            items.get(self.below(items.len() as u64) as usize)
        }
    }
}

/// Facts that share an lsn: kind and archive of each.
pub(crate) type Unit = (Lsn, Vec<(u16, Vec<u8>)>);

pub(crate) struct World {
    pub(crate) state: State,
    pub(crate) log: Vec<Unit>,
    pub(crate) now: TimestampMs,
    /// Of the log: rises with every unclean start.
    pub(crate) term: Term,
}

fn decoded(unit: &[(u16, Vec<u8>)]) -> Vec<Fact> {
    let fact = |(kind, bytes): &(u16, Vec<u8>)| Fact::decode(*kind, bytes).expect("it was encoded");
    unit.iter().map(fact).collect()
}

impl World {
    pub(crate) fn new(shard: u16, shards: u16, limits: Limits) -> Self {
        let state = State::new(ShardId(shard), shards, limits);
        Self {
            state,
            log: Vec::new(),
            now: TimestampMs(1_700_000_000_000),
            term: TERM,
        }
    }

    pub(crate) fn lsn(&self) -> Lsn {
        self.log.last().map_or(Lsn(0), |(lsn, ..)| *lsn)
    }

    pub(crate) fn ask(&mut self, request: &Request) -> Result<Reply, Refusal> {
        let decision = decide(&self.state, self.now, self.term, request)?;
        if decision.facts.is_empty() {
            return Ok(decision.reply);
        }
        let encode = |fact: &Fact| {
            let (kind, bytes) = (fact.kind(), fact.encode().to_vec());
            let mut again = vec![7; 3];
            fact.encode_into(&mut again);
            assert_eq!(again[3..], bytes, "both ways to encode give the same bytes");
            (kind, bytes)
        };
        let unit: Vec<_> = decision.facts.iter().map(encode).collect();
        let lsn = self.lsn().next();
        install(&mut self.state, lsn, &decoded(&unit));
        self.log.push((lsn, unit));
        Ok(decision.reply)
    }

    /// A state made from the log alone.
    pub(crate) fn replayed(&self) -> State {
        let empty = State::new(
            self.state.shard(),
            self.state.shards(),
            self.state.limits().clone(),
        );
        self.replay_onto(empty, Lsn(0))
    }

    /// The tail after `begin`, installed on top of a restored state.
    pub(crate) fn replay_onto(&self, mut state: State, begin: Lsn) -> State {
        for (lsn, unit) in self.log.iter().filter(|(lsn, _)| *lsn > begin) {
            install(&mut state, *lsn, &decoded(unit));
        }
        state
    }

    pub(crate) fn create(&mut self, id: u8, name: &str, partitions: u32) -> TopicMeta {
        let request = Request::CreateTopic {
            id: TopicId([id; 16]),
            name: name.to_owned(),
            partitions,
            config: TopicConfig::default(),
        };
        match self.ask(&request) {
            Ok(Reply::Topic(meta)) => meta,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn produce(&mut self, batch: Produce) -> Result<Produced, Refusal> {
        match self.ask(&Request::Produce(batch))? {
            Reply::Produced(produced) => Ok(produced),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn commit(
        &mut self,
        group: &str,
        partition: Partition,
        member: u64,
        epoch: GroupEpoch,
        offset: u64,
    ) -> Result<(), Refusal> {
        let commit = Commit {
            group: group.to_owned(),
            partition,
            member: MemberId(member),
            epoch,
            offset: Offset(offset),
            leader_epoch: None,
            metadata: String::new(),
        };
        self.ask(&Request::Commit(commit))
            .map(|reply| assert_eq!(reply, Reply::Done))
    }

    pub(crate) fn claim(
        &mut self,
        group: &str,
        partition: Partition,
        member: MemberId,
        epoch: GroupEpoch,
    ) -> Result<Option<Offset>, Refusal> {
        let request = Request::ClaimPartition {
            group: group.to_owned(),
            partition,
            member,
            epoch,
        };
        match self.ask(&request)? {
            Reply::Claimed { committed } => Ok(committed),
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) fn partition(topic: u8, index: u32) -> Partition {
    Partition {
        topic: TopicId([topic; 16]),
        index,
    }
}

/// A batch of `sent` records, all kept.
pub(crate) fn batch(
    partition: Partition,
    pid: u64,
    epoch: u32,
    sequence: u64,
    sent: u32,
) -> Produce {
    Produce {
        partition,
        pid: ProducerId(pid),
        epoch: ProducerEpoch(epoch),
        sequence: Sequence(sequence),
        sent,
        kept: sent,
        bytes: sent.saturating_mul(100),
        max_timestamp: TimestampMs(5),
    }
}
