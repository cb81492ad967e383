//! Whatever is asked, the state rebuilt from the log is the live one: from the start, and from a
//! snapshot taken in slices while facts went on.

mod world;

use std::collections::BTreeSet;

use millstream_batch::ids::{
    GroupEpoch, Lsn, MemberId, Offset, Partition, ProducerEpoch, ProducerId, Sequence, ShardId,
    Term, TimestampMs, TopicId,
};
use millstream_machine::request::{Commit, Produce, Refusal, Reply, Request};
use millstream_machine::topics::{Budget, FilterBinding, OnError, Stage, TopicConfig, TopicMeta};
use millstream_machine::{Cursor, Limits, Message, Row, State, decide};
use world::{Rng, World, batch};

/// Random requests, biased towards such as are granted.
struct Asker {
    rng: Rng,
    ids: u8,
    topics: Vec<TopicId>,
    metas: Vec<TopicMeta>,
    members: Vec<(String, MemberId, GroupEpoch)>,
}

impl Asker {
    fn new(seed: u64) -> Self {
        Self {
            rng: Rng(seed),
            ids: 0,
            topics: Vec::new(),
            metas: Vec::new(),
            members: Vec::new(),
        }
    }

    fn step(&mut self, world: &mut World) {
        world.now.0 += self.rng.below(2_000) as i64 - 200;
        if self.rng.one_in(50) {
            world.now.0 += self.rng.below(20_000_000) as i64;
        }
        if self.rng.one_in(60) {
            world.term.0 += 1;
        }
        let request = self.request(world);
        let before = world.state.clone();
        let lsn = world.lsn();
        match world.ask(&request) {
            Ok(Reply::Topic(meta)) => {
                if !self.topics.contains(&meta.id) {
                    self.topics.push(meta.id);
                }
                self.metas.push(meta);
            }
            Ok(Reply::Joined { member, assignment }) => {
                if let Request::JoinGroup { group, .. } = &request {
                    self.members
                        .push((group.clone(), member, assignment.joined));
                }
            }
            Ok(_) => {}
            Err(_) => assert!(
                lsn == world.lsn() && before == world.state,
                "a refusal changes nothing"
            ),
        }
    }

    fn group(&mut self) -> String {
        format!("g{}", self.rng.below(4))
    }

    fn name(&mut self) -> String {
        format!("t{}", self.rng.below(4))
    }

    fn topic(&mut self) -> TopicId {
        self.rng.pick(&self.topics).copied().unwrap_or_default()
    }

    fn partition(&mut self) -> Partition {
        Partition {
            topic: self.topic(),
            index: self.rng.below(6) as u32,
        }
    }

    fn member(&mut self) -> (String, MemberId, GroupEpoch) {
        let group = self.group();
        self.rng
            .pick(&self.members)
            .cloned()
            .unwrap_or((group, MemberId(0), GroupEpoch(0)))
    }

    fn request(&mut self, world: &World) -> Request {
        match self.rng.below(40) {
            0 => {
                self.ids += 1;
                let config = TopicConfig {
                    retention_ms: Some(self.ids.into()),
                    ..TopicConfig::default()
                };
                let partitions = 1 + self.rng.below(5) as u32;
                Request::CreateTopic {
                    id: TopicId([self.ids; 16]),
                    name: self.name(),
                    partitions,
                    config,
                }
            }
            1 if self.rng.one_in(2) => Request::DeleteTopic { name: self.name() },
            2 => {
                let value = self.rng.below(100).to_string();
                Request::ConfigureTopic {
                    name: self.name(),
                    set: vec![("retention.bytes".to_owned(), Some(value))],
                }
            }
            3 => Request::AddPartitions {
                name: self.name(),
                total: 1 + self.rng.below(6) as u32,
            },
            4 => Request::InitProducer {
                pid: ProducerId(self.rng.below(12)),
            },
            5 => {
                let binding = FilterBinding {
                    name: format!("f{}", self.rng.below(3)),
                    digest: [self.rng.below(256) as u8; 32],
                    stage: Stage::Produce,
                    parameters: vec![("key".to_owned(), "value".to_owned())],
                    budget: Budget {
                        memory_bytes_max: 1,
                        batch_ms_max: 1,
                    },
                    on_error: OnError::Pass,
                };
                Request::DeployFilter {
                    topic: self.name(),
                    binding,
                }
            }
            6 => Request::RemoveFilter {
                topic: self.name(),
                name: format!("f{}", self.rng.below(3)),
            },
            7 => match self.rng.pick(&self.metas).cloned() {
                Some(mut meta) => {
                    meta.revision += self.rng.below(3);
                    Request::ApplyTopic { meta }
                }
                None => Request::ListTopics,
            },
            8 => match self.rng.below(6) {
                0 => Request::CatalogueKnown {
                    shard: ShardId(1),
                    revision: self.rng.below(9),
                },
                1 | 2 => Request::ForgetTopic {
                    id: self.topic(),
                    revision: self.rng.below(20),
                },
                _ => Request::ListTopics,
            },
            9 => Request::TrimPartition {
                partition: self.partition(),
                start: Offset(self.rng.below(40)),
            },
            10..=17 => Request::Produce(self.produce(world)),
            18 | 19 => {
                let (group, member, _) = self.member();
                let epoch = GroupEpoch(self.rng.below(30));
                Request::ClaimPartition {
                    group,
                    partition: self.partition(),
                    member,
                    epoch,
                }
            }
            20..=23 => {
                let group = self.group();
                let metadata = "m".repeat(self.rng.below(9) as usize);
                let (member, epoch) = (MemberId(0), GroupEpoch(0));
                let offset = Offset(self.rng.below(20));
                let leader_epoch = self
                    .rng
                    .one_in(2)
                    .then(|| Term(2 + self.rng.below(6) as u32));
                Request::Commit(Commit {
                    group,
                    partition: self.partition(),
                    member,
                    epoch,
                    offset,
                    leader_epoch,
                    metadata,
                })
            }
            24 => {
                let places = 1 + self.rng.below(4);
                let places = (0..places).map(|_| (self.partition(), Offset(self.rng.below(20))));
                Request::ResetOffsets {
                    places: places.collect(),
                    group: self.group(),
                    force: self.rng.one_in(2),
                }
            }
            25 => match self.rng.below(3) {
                0 => Request::ApplyCourier {
                    from: ShardId(1),
                    row: Row::Control,
                    k: 1 + self.rng.below(9),
                    message: Message::ForgetGroup {
                        group: self.group(),
                        epoch: GroupEpoch(self.rng.below(30)),
                    },
                },
                1 => Request::CourierAcknowledged {
                    to: ShardId(1),
                    row: Row::Control,
                    last: self.rng.below(4),
                },
                _ => Request::DeleteGroup {
                    group: self.group(),
                    force: self.rng.one_in(2),
                },
            },
            26..=29 => {
                let (mut group, mut member, joined) = self.member();
                let mut again = self.rng.one_in(3).then_some(joined);
                if self.rng.one_in(2) {
                    (group, member, again) = (self.group(), MemberId(0), None);
                }
                let topics = (0..self.rng.below(3)).map(|_| self.topic()).collect();
                Request::JoinGroup {
                    group,
                    member,
                    again,
                    client: "c".to_owned(),
                    topics,
                    session_timeout_ms: 9,
                }
            }
            30 => {
                let (group, member, joined) = self.member();
                Request::LeaveGroup {
                    group,
                    member,
                    joined,
                }
            }
            31 | 32 => {
                let (group, member, joined) = self.member();
                let partitions: Vec<_> = (0..4).map(|_| self.partition()).collect();
                if self.rng.one_in(3) {
                    let fence = GroupEpoch(self.rng.below(40));
                    Request::ReassignPartitions {
                        group,
                        fenced: partitions.into_iter().map(|held| (held, fence)).collect(),
                    }
                } else {
                    Request::ReleasePartitions {
                        group,
                        member,
                        joined,
                        partitions,
                    }
                }
            }
            33 => {
                let (group, member, _) = self.member();
                Request::ExpireMembers {
                    group,
                    members: vec![member, MemberId(77)],
                }
            }
            34 | 35 => {
                let stale = world.state.groups_to_rebalance();
                let group = self
                    .rng
                    .pick(&stale)
                    .cloned()
                    .unwrap_or_else(|| "g0".to_owned());
                Request::RebalanceGroup { group }
            }
            36 if self.rng.one_in(2) => Request::DeleteGroup {
                group: self.group(),
                force: self.rng.one_in(4),
            },
            37 => {
                let before = TimestampMs(world.state.clock().0 - self.rng.below(20_000) as i64);
                let floor_max = world.state.producer_floor_bound(before);
                Request::ExpireProducers {
                    producer_unused_before: before,
                    floor_max,
                }
            }
            38 if self.rng.one_in(4) => Request::AdvanceClock,
            39 if self.rng.one_in(4) => Request::AcceptClock,
            _ => Request::DescribeGroup {
                group: self.group(),
                of: None,
            },
        }
    }

    fn produce(&mut self, world: &World) -> Produce {
        // Few send most, so that some remember all the batches they may.
        let (partition, pid) = match (self.rng.below(3), self.topics.last()) {
            (0, _) | (_, None) => (self.partition(), self.rng.below(8)),
            (_, Some(topic)) => (
                Partition {
                    topic: *topic,
                    index: 0,
                },
                1 + self.rng.below(2),
            ),
        };
        let mut produce = batch(partition, pid, 0, 0, 1 + self.rng.below(3) as u32);
        // Ask the machine what would follow: most batches are to be granted.
        for _ in 0..2 {
            let probe = Produce {
                sequence: Sequence(u64::MAX / 2),
                ..produce
            };
            match decide(
                &world.state,
                world.now,
                world::TERM,
                &Request::Produce(probe),
            ) {
                Err(Refusal::SequenceGap { expected, .. }) => produce.sequence = expected,
                Err(Refusal::ProducerFenced { current, .. }) => produce.epoch = current,
                _ => {}
            }
        }
        if self.rng.one_in(30) {
            (produce.epoch, produce.sequence) = (ProducerEpoch(produce.epoch.0 + 1), Sequence(0));
        }
        if self.rng.one_in(6) {
            produce.kept = 0;
        }
        produce
    }
}

#[test]
fn replaying_the_log_gives_the_live_state() {
    let mut kinds = BTreeSet::new();
    for seed in 0..60 {
        for (shard, shards) in [(0, 1), (0, 2)] {
            let mut world = World::new(shard, shards, Limits::default());
            let mut asker = Asker::new(seed);
            for _ in 0..600 {
                asker.step(&mut world);
            }
            let replayed = world.replayed();
            assert!(replayed == world.state, "seed {seed}");
            assert_eq!(replayed.digest(), world.state.digest());
            let facts = world.log.iter().flat_map(|(_, unit)| unit);
            kinds.extend(facts.map(|(kind, _)| *kind));
        }
    }
    assert_eq!(kinds.len(), 19, "facts of every kind were made: {kinds:?}");
}

/// Takes a snapshot in slices of `bytes`, `steps` requests apart. Returns its parts, when it began, and
/// how far the log must be durable.
fn snapshot(
    world: &mut World,
    asker: &mut Asker,
    bytes: usize,
    steps: u64,
) -> (Vec<Vec<u8>>, Lsn, Lsn) {
    let begin = world.lsn();
    let mut parts = Vec::new();
    let mut cursor: Option<Cursor> = None;
    loop {
        for _ in 0..asker.rng.below(steps + 1) {
            asker.step(world);
        }
        let cut = world.state.snapshot(cursor.as_ref(), bytes);
        parts.push(cut.bytes.to_vec());
        match cut.next {
            Some(next) => cursor = Some(next),
            None => return (parts, begin, cut.as_of),
        }
    }
}

#[test]
fn a_snapshot_in_slices_and_the_tail_give_the_live_state() {
    for seed in 0..200 {
        // With others, messages go to them and come from them.
        let shards = if seed % 2 == 0 { 1 } else { 3 };
        let mut world = World::new(0, shards, Limits::default());
        let mut asker = Asker::new(1_000 + seed);
        for _ in 0..asker.rng.below(400) {
            asker.step(&mut world);
        }
        let (bytes, steps) = (1 + asker.rng.below(600) as usize, asker.rng.below(6));
        let (parts, begin, as_of) = snapshot(&mut world, &mut asker, bytes, steps);
        // The log may end anywhere at or after the newest slice.
        for _ in 0..asker.rng.below(3) * 40 {
            asker.step(&mut world);
        }
        assert!(begin <= as_of && as_of <= world.lsn());
        let state = world.state.clone();
        let restored =
            State::restore(state.shard(), shards, Limits::default(), begin, &parts).unwrap();
        let restored = world.replay_onto(restored, begin);
        assert!(
            restored == state,
            "seed {seed}: {} parts, {begin} to {}",
            parts.len(),
            world.lsn()
        );
        assert_eq!(restored.digest(), state.digest());
        assert_eq!(restored.installed(), state.installed());

        // What was restored goes on as the live one would.
        let (mut live, mut other) = (world, World::new(0, shards, Limits::default()));
        other.state = restored;
        other.log.clone_from(&live.log);
        (other.now, other.term) = (live.now, live.term);
        let mut twin = Asker::new(seed);
        let mut twin_asker = Asker::new(seed);
        for asker in [&mut twin, &mut twin_asker] {
            asker.topics.clone_from(&self::Asker::topics_of(&live));
        }
        for _ in 0..60 {
            twin.step(&mut live);
            twin_asker.step(&mut other);
        }
        assert!(
            live.state == other.state && live.log == other.log,
            "seed {seed}"
        );

        // And the snapshot of a restored state, with nothing in between, is the same again.
        let whole = live.state.snapshot(None, usize::MAX);
        let again = State::restore(
            state.shard(),
            shards,
            Limits::default(),
            live.lsn(),
            [&whole.bytes],
        )
        .unwrap();
        assert!(again == live.state && again.snapshot(None, usize::MAX).bytes == whole.bytes);
    }
}

impl Asker {
    fn topics_of(world: &World) -> Vec<TopicId> {
        world.state.topics().map(|meta| meta.id).collect()
    }
}

#[test]
fn slices_hold_about_what_was_asked_for() {
    let mut world = World::new(0, 1, Limits::default());
    for id in 0..40 {
        world.create(id + 1, &format!("t{id}"), 50);
    }
    for index in 0..2_000_u32 {
        let partition = world::partition(1 + (index % 40) as u8, index / 40);
        world
            .produce(batch(partition, 1 + u64::from(index), 0, 0, 1))
            .unwrap();
    }
    let mut cursor = None;
    let mut sizes = Vec::new();
    loop {
        let cut = world.state.snapshot(cursor.as_ref(), 16 << 10);
        sizes.push(cut.bytes.len());
        let Some(next) = cut.next else { break };
        cursor = Some(next);
    }
    let last = sizes.pop().unwrap();
    assert!(sizes.len() > 10 && last < 24 << 10);
    assert!(
        sizes.iter().all(|size| (8 << 10..24 << 10).contains(size)),
        "{sizes:?}"
    );
}
