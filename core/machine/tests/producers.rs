//! Idempotent producers against a model that keeps every record ever stored.

mod world;

use std::collections::BTreeMap;

use millstream_batch::ids::{Offset, ProducerEpoch, ProducerId, Sequence, TimestampMs};
use millstream_batch::limits::PRODUCER_BATCHES_REMEMBERED;
use millstream_machine::request::{Produce, Refusal, Reply, Request};
use millstream_machine::{Limits, Skew};
use world::{Rng, World, batch, partition};

/// The model: all that was stored, nothing forgotten, no sequence arithmetic beyond counting.
#[derive(Default)]
struct Model {
    end: u64,
    epochs: BTreeMap<u64, u32>,
    /// By (pid, epoch).
    stored: BTreeMap<(u64, u32), Vec<Stored>>,
}

/// Records sent, and the offset if any was kept.
type Stored = (u32, Option<u64>);

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Stored(Option<u64>),
    /// `Some` only when the offset must be remembered.
    Duplicate(Option<u64>),
    Fenced,
    Gap,
    Overlap,
}

impl Model {
    fn judge(&mut self, batch: &Produce) -> Verdict {
        let (pid, epoch) = (batch.pid.0, batch.epoch.0);
        if self
            .epochs
            .get(&pid)
            .is_some_and(|current| epoch < *current)
        {
            return Verdict::Fenced;
        }
        let stored = self.stored.get(&(pid, epoch)).cloned().unwrap_or_default();
        let sequences: Vec<usize> = stored
            .iter()
            .enumerate()
            .flat_map(|(at, (sent, _))| vec![at; *sent as usize])
            .collect();
        let known = (0..u64::from(batch.sent))
            .filter(|record| {
                sequences
                    .get((batch.sequence.0 + record) as usize)
                    .is_some()
            })
            .count();
        if known == batch.sent as usize {
            let first = sequences[batch.sequence.0 as usize];
            let starts = batch.sequence.0 == 0 || sequences[batch.sequence.0 as usize - 1] != first;
            let same = starts && stored[first].0 == batch.sent;
            let recent = stored.len() - first <= PRODUCER_BATCHES_REMEMBERED;
            return Verdict::Duplicate(stored[first].1.filter(|_| same && recent));
        }
        if known > 0 {
            return Verdict::Overlap;
        }
        if batch.sequence.0 != sequences.len() as u64 {
            return Verdict::Gap;
        }
        let offset = (batch.kept > 0).then_some(self.end);
        self.end += u64::from(batch.kept);
        self.epochs.insert(pid, epoch);
        self.stored
            .entry((pid, epoch))
            .or_default()
            .push((batch.sent, offset));
        Verdict::Stored(offset)
    }
}

fn verdict(world: &mut World, batch: Produce) -> Verdict {
    match world.produce(batch) {
        Ok(produced) => {
            let offset = produced.base_offset.map(|offset| offset.0);
            if produced.duplicate {
                Verdict::Duplicate(offset)
            } else {
                Verdict::Stored(offset)
            }
        }
        Err(Refusal::ProducerFenced { .. }) => Verdict::Fenced,
        Err(Refusal::SequenceGap { .. }) => Verdict::Gap,
        Err(Refusal::SequenceOverlap { .. }) => Verdict::Overlap,
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn idempotent_producers_agree_with_the_model() {
    for seed in 0..300 {
        let mut rng = Rng(seed);
        let mut world = World::new(0, 1, Limits::default());
        world.create(1, "t", 1);
        let mut model = Model::default();
        let mut sent: Vec<Produce> = Vec::new();
        for step in 0..200 {
            world.now.0 += 10;
            let (pid, epoch) = (
                1 + rng.below(3),
                rng.below(2) as u32 + u32::from(step > 120),
            );
            let next: u64 = model
                .stored
                .get(&(pid, epoch))
                .map_or(0, |all| all.iter().map(|(sent, _)| u64::from(*sent)).sum());
            let sequence = match rng.below(6) {
                0 => next.saturating_sub(rng.below(8)),
                1 => next + rng.below(4),
                _ => next,
            };
            let mut new = batch(
                partition(1, 0),
                pid,
                epoch,
                sequence,
                1 + rng.below(4) as u32,
            );
            if rng.one_in(5) {
                new.kept = rng.below(u64::from(new.sent) + 1) as u32;
            }
            let produce = if rng.one_in(4) {
                *rng.pick(&sent).unwrap_or(&new)
            } else {
                new
            };
            sent.push(produce);
            let expected = model.judge(&produce);
            assert_eq!(
                verdict(&mut world, produce),
                expected,
                "seed {seed} step {step}: {produce:?}"
            );
            let end = world.state.partition(partition(1, 0)).unwrap().end;
            assert_eq!(end, Offset(model.end), "offsets are dense");
        }
        assert!(world.replayed() == world.state, "seed {seed}");
    }
}

#[test]
fn sequences_count_records_and_duplicates_answer_as_the_first_time() {
    let mut world = World::new(0, 1, Limits::default());
    world.create(1, "t", 1);
    let at = partition(1, 0);
    let first = world.produce(batch(at, 9, 0, 0, 3)).unwrap();
    assert_eq!(
        (first.base_offset, first.duplicate),
        (Some(Offset(0)), false)
    );
    assert_eq!(
        world.produce(batch(at, 9, 0, 5, 1)),
        Err(Refusal::SequenceGap {
            pid: ProducerId(9),
            sent: Sequence(5),
            expected: Sequence(3)
        })
    );
    assert_eq!(
        world.produce(batch(at, 9, 0, 2, 2)),
        Err(Refusal::SequenceOverlap {
            pid: ProducerId(9),
            first: Sequence(2),
            last: Sequence(3),
            expected: Sequence(3)
        })
    );
    world.now.0 += 1_000;
    assert_eq!(
        world.produce(batch(at, 9, 0, 3, 1)).unwrap().base_offset,
        Some(Offset(3))
    );
    let again = world.produce(batch(at, 9, 0, 0, 3)).unwrap();
    assert_eq!(
        (again.base_offset, again.append_time, again.duplicate),
        (Some(Offset(0)), first.append_time, true)
    );
    for sequence in 4..20 {
        world.produce(batch(at, 9, 0, sequence, 1)).unwrap();
    }
    let forgotten = world.produce(batch(at, 9, 0, 0, 3)).unwrap();
    assert_eq!(
        (forgotten.base_offset, forgotten.duplicate),
        (None, true),
        "a duplicate for ever"
    );
    assert_eq!(world.state.partition(at).unwrap().end, Offset(20));
}

#[test]
fn trimming_does_not_touch_producers() {
    let mut world = World::new(0, 1, Limits::default());
    world.create(1, "t", 1);
    let at = partition(1, 0);
    world.produce(batch(at, 9, 0, 0, 3)).unwrap();
    world
        .ask(&Request::TrimPartition {
            partition: at,
            start: Offset(3),
        })
        .unwrap();
    assert!(world.produce(batch(at, 9, 0, 0, 3)).unwrap().duplicate);
    assert_eq!(
        world.produce(batch(at, 9, 0, 3, 1)).unwrap().base_offset,
        Some(Offset(3))
    );
}

#[test]
fn a_raised_epoch_fences_the_older_and_starts_again() {
    let mut world = World::new(0, 1, Limits::default());
    world.create(1, "t", 1);
    let at = partition(1, 0);
    let given = world
        .ask(&Request::InitProducer { pid: ProducerId(0) })
        .unwrap();
    assert_eq!(
        given,
        Reply::Producer {
            pid: ProducerId(1),
            epoch: ProducerEpoch(0)
        }
    );
    world.produce(batch(at, 1, 0, 0, 2)).unwrap();
    for epoch in 1..=2 {
        let raised = world
            .ask(&Request::InitProducer { pid: ProducerId(1) })
            .unwrap();
        assert_eq!(
            raised,
            Reply::Producer {
                pid: ProducerId(1),
                epoch: ProducerEpoch(epoch)
            }
        );
    }
    assert!(matches!(
        world.produce(batch(at, 1, 2, 2, 1)),
        Err(Refusal::SequenceGap { .. })
    ));
    assert_eq!(
        world.produce(batch(at, 1, 2, 0, 1)).unwrap().base_offset,
        Some(Offset(2))
    );
    let fenced = Refusal::ProducerFenced {
        pid: ProducerId(1),
        sent: ProducerEpoch(0),
        current: ProducerEpoch(2),
    };
    assert_eq!(world.produce(batch(at, 1, 0, 2, 1)), Err(fenced));
    let unknown = Refusal::UnknownProducer { pid: ProducerId(2) };
    assert_eq!(
        world.ask(&Request::InitProducer { pid: ProducerId(2) }),
        Err(unknown)
    );
}

#[test]
fn numbers_at_their_end_are_refused_not_wrapped() {
    let mut world = World::new(0, 1, Limits::default());
    world.create(1, "t", 1);
    let at = partition(1, 0);
    assert!(matches!(
        world.produce(batch(at, 9, 0, u64::MAX, 1)),
        Err(Refusal::SequenceGap { .. })
    ));
    assert!(matches!(
        world.produce(batch(at, 9, 0, u64::MAX, u32::MAX)),
        Err(Refusal::BatchTooLarge { .. })
    ));
    let wide = Produce {
        bytes: 10,
        ..batch(at, 9, 0, u64::MAX - 1, 40)
    };
    assert!(matches!(
        world.produce(wide),
        Err(Refusal::SequenceGap { .. })
    ));
    let none = Produce {
        sent: 0,
        kept: 0,
        ..batch(at, 9, 0, 0, 1)
    };
    assert!(matches!(world.produce(none), Err(Refusal::BadConfig(_))));
}

const HOUR: i64 = 3_600_000;

/// Two shards, as the broker expires them: the floor bound of both, then the request to both.
fn expire(worlds: &mut [World], before: TimestampMs) {
    let floor_max = worlds
        .iter()
        .map(|world| world.state.producer_floor_bound(before))
        .min()
        .unwrap();
    for world in worlds {
        world
            .ask(&Request::ExpireProducers {
                producer_unused_before: before,
                floor_max,
            })
            .unwrap();
    }
}

#[test]
fn expiry_refuses_the_dead_and_never_the_living() {
    for (seed, shards) in (0..60).flat_map(|seed| [(seed, 1), (seed, 2)]) {
        let mut rng = Rng(seed);
        let mut worlds: Vec<_> = (0..shards)
            .map(|shard| World::new(shard, shards, Limits::default()))
            .collect();
        let meta = worlds[0].create(1, "t", 8);
        worlds
            .last_mut()
            .unwrap()
            .ask(&Request::ApplyTopic { meta })
            .unwrap();
        let shard = |index: u32| usize::from(partition(1, index).shard(shards).0);
        // pid → (last use or birth, next sequence by partition)
        let mut living: BTreeMap<u64, (i64, BTreeMap<u32, u64>)> = BTreeMap::new();
        for step in 0..400 {
            for world in &mut worlds {
                world.now.0 += HOUR / 4;
                if matches!(world.state.clock_skew(world.now), Skew::Ahead { .. }) {
                    world.ask(&Request::AdvanceClock).unwrap(); // as the driver does
                }
            }
            let now = worlds[0].now;
            match rng.below(10) {
                0..=2 => {
                    let Ok(Reply::Producer { pid, .. }) =
                        worlds[0].ask(&Request::InitProducer { pid: ProducerId(0) })
                    else {
                        panic!()
                    };
                    living.insert(pid.0, (now.0, BTreeMap::new()));
                }
                3..=8 => {
                    let pids: Vec<_> = living.keys().copied().collect();
                    let Some(pid) = rng.pick(&pids) else { continue };
                    let (used, sequences) = living.get_mut(pid).unwrap();
                    let index = rng.below(8) as u32;
                    let next = sequences.entry(index).or_default();
                    let produce = batch(partition(1, index), *pid, 0, *next, 1);
                    let result = worlds[shard(index)].produce(produce);
                    if *used >= now.0 - 12 * HOUR {
                        assert!(
                            !result.unwrap().duplicate,
                            "seed {seed} step {step}: {pid} lives"
                        );
                    } else if result.is_err() {
                        assert_eq!(
                            result,
                            Err(Refusal::ProducerExpired {
                                pid: ProducerId(*pid)
                            })
                        );
                        living.remove(pid);
                        continue;
                    }
                    *next += 1;
                    *used = now.0;
                }
                _ => expire(&mut worlds, TimestampMs(now.0 - 12 * HOUR)),
            }
        }
        assert!(worlds.iter().all(|world| world.replayed() == world.state));
    }
}

#[test]
fn one_producer_that_lives_on_does_not_keep_the_dead() {
    let mut world = World::new(0, 1, Limits::default());
    world.create(1, "t", 2);
    for pid in 1..=100 {
        world
            .ask(&Request::InitProducer { pid: ProducerId(0) })
            .unwrap();
        world.produce(batch(partition(1, 0), pid, 0, 0, 1)).unwrap();
        world.produce(batch(partition(1, 0), 1, 0, pid, 1)).unwrap();
        world.now.0 += HOUR / 4;
    }
    let expire = |world: &mut World| {
        let before = TimestampMs(world.now.0 - HOUR);
        let floor_max = world.state.producer_floor_bound(before);
        world
            .ask(&Request::ExpireProducers {
                producer_unused_before: before,
                floor_max,
            })
            .unwrap();
        world.state.counts().producers
    };
    assert_eq!(
        expire(&mut world),
        5,
        "those of the last hour, and the first"
    );
    assert!(
        world
            .produce(batch(partition(1, 0), 1, 0, 0, 1))
            .unwrap()
            .duplicate
    );
    world
        .produce(batch(partition(1, 0), 1, 0, 101, 1))
        .expect("it lives");
    world
        .produce(batch(partition(1, 1), 1, 0, 0, 1))
        .expect("it lives where it was never seen, too");
    assert!(matches!(
        world.ask(&Request::InitProducer { pid: ProducerId(1) }),
        Ok(Reply::Producer { .. })
    ));
    let expired = |pid: u64| {
        Err(Refusal::ProducerExpired {
            pid: ProducerId(pid),
        })
    };
    assert_eq!(
        world.produce(batch(partition(1, 1), 50, 0, 0, 1)),
        expired(50)
    );
    let lsn = world.lsn();
    expire(&mut world);
    assert_eq!(world.lsn(), lsn, "nothing more to forget");
    world.now.0 += 3 * HOUR;
    world.ask(&Request::AdvanceClock).unwrap();
    assert_eq!(expire(&mut world), 0);
    assert_eq!(
        world.produce(batch(partition(1, 0), 1, 0, 102, 1)),
        expired(1)
    );
    assert!(world.replayed() == world.state);
}

#[test]
fn an_expired_producer_is_refused_never_taken_as_new() {
    let mut worlds = [World::new(0, 1, Limits::default())];
    worlds[0].create(1, "t", 1);
    let at = partition(1, 0);
    let old = worlds[0]
        .ask(&Request::InitProducer { pid: ProducerId(0) })
        .unwrap();
    assert_eq!(
        old,
        Reply::Producer {
            pid: ProducerId(1),
            epoch: ProducerEpoch(0)
        }
    );
    worlds[0].produce(batch(at, 1, 0, 0, 1)).unwrap();
    worlds[0].now.0 += HOUR;
    worlds[0]
        .ask(&Request::InitProducer { pid: ProducerId(0) })
        .unwrap();
    worlds[0].now.0 += HOUR;
    let now = worlds[0].now;
    expire(&mut worlds, TimestampMs(now.0 - HOUR - 1));
    assert_eq!(worlds[0].state.counts().producers, 0);
    let expired = Refusal::ProducerExpired { pid: ProducerId(1) };
    assert_eq!(
        worlds[0].produce(batch(at, 1, 0, 0, 1)),
        Err(expired.clone())
    );
    assert_eq!(
        worlds[0].ask(&Request::InitProducer { pid: ProducerId(1) }),
        Err(expired)
    );
    assert_eq!(
        worlds[0]
            .produce(batch(at, 2, 0, 0, 1))
            .unwrap()
            .base_offset,
        Some(Offset(1)),
        "2 lives"
    );
}

#[test]
fn producers_are_bounded() {
    let limits = Limits {
        producers: 3,
        producers_per_partition: 2,
        ..Limits::default()
    };
    let mut world = World::new(0, 1, limits);
    world.create(1, "t", 3);
    for (pid, index, ok) in [
        (1, 0, true),
        (2, 0, true),
        (3, 0, false),
        (3, 1, true),
        (4, 2, false),
        (1, 0, true),
    ] {
        let sequence = u64::from(pid == 1 && world.state.counts().producers > 1);
        let result = world.produce(batch(partition(1, index), pid, 0, sequence, 1));
        assert_eq!(result.is_ok(), ok, "{pid} {index}: {result:?}");
        assert!(ok || matches!(result, Err(Refusal::StateFull(_))));
    }
    world
        .produce(batch(partition(1, 2), 0, 0, 0, 1))
        .expect("without identity there is nothing to keep");
}

#[test]
fn append_time_never_runs_back_and_leaps_by_at_most_an_hour() {
    let mut world = World::new(0, 1, Limits::default());
    world.create(1, "t", 1);
    let start = world.now.0;
    let append = |world: &mut World| {
        world
            .produce(batch(partition(1, 0), 0, 0, 0, 1))
            .unwrap()
            .append_time
            .0
    };
    assert_eq!(append(&mut world), start);
    world.now.0 = start - 86_400_000;
    assert_eq!(append(&mut world), start);
    world.now.0 = start + 365 * 86_400_000;
    assert_eq!(append(&mut world), start + HOUR);
    assert_eq!(append(&mut world), start + 2 * HOUR);
    world.ask(&Request::AdvanceClock).unwrap();
    assert_eq!(append(&mut world), start + 365 * 86_400_000);
    assert!(world.replayed() == world.state);
}
