//! Topics: the catalog decides, every shard applies, nothing is done twice.

mod world;

use millstream_batch::ids::{
    GroupEpoch, Offset, Partition, PartitionSlot, ProducerId, ShardId, Term, TopicId,
};
use millstream_batch::limits::TOPIC_PARTITIONS_MAX;
use millstream_machine::request::{Refusal, Reply, Request};
use millstream_machine::topics::{Budget, FilterBinding, OnError, Stage, TopicConfig, TopicMeta};
use millstream_machine::{Change, Fact, Limits, decide};
use world::{TERM, World, batch, partition};

fn create(id: u8, name: &str, partitions: u32) -> Request {
    Request::CreateTopic {
        id: TopicId([id; 16]),
        name: name.to_owned(),
        partitions,
        config: TopicConfig::default(),
    }
}

#[test]
fn every_partition_has_one_shard_and_slots_are_never_reused() {
    let mut worlds: Vec<_> = (0..3)
        .map(|shard| World::new(shard, 3, Limits::default()))
        .collect();
    let mut slots = vec![0_u32; 3];
    for round in 1..=4_u8 {
        let mut meta = worlds[0].create(round, "t", 7);
        for total in [7, 12] {
            if total > meta.partitions {
                let Ok(Reply::Topic(grown)) = worlds[0].ask(&Request::AddPartitions {
                    name: "t".to_owned(),
                    total,
                }) else {
                    panic!()
                };
                meta = grown;
            }
            for world in &mut worlds {
                for _ in 0..2 {
                    world
                        .ask(&Request::ApplyTopic { meta: meta.clone() })
                        .unwrap();
                }
            }
            for index in 0..total {
                let partition = Partition {
                    topic: meta.id,
                    index,
                };
                let owners: Vec<_> = worlds
                    .iter()
                    .filter(|world| world.state.partition(partition).is_some())
                    .collect();
                assert_eq!(owners.len(), 1);
                assert_eq!(owners[0].state.shard(), partition.shard(3));
                let view = owners[0].state.partition(partition).unwrap();
                assert_eq!(owners[0].state.partition_of(view.slot), Some(view));
            }
        }
        for (world, next) in worlds.iter_mut().zip(&mut slots) {
            let mut used: Vec<_> = world.state.partitions().map(|view| view.slot.0).collect();
            used.sort_unstable();
            assert_eq!(
                used,
                (*next..*next + used.len() as u32).collect::<Vec<_>>(),
                "dense, and new"
            );
            *next += used.len() as u32;
        }
        let Ok(Reply::TopicGone { id, revision }) = worlds[0].ask(&Request::DeleteTopic {
            name: "t".to_owned(),
        }) else {
            panic!()
        };
        for world in &mut worlds {
            world.ask(&Request::ForgetTopic { id, revision }).unwrap();
            let lsn = world.lsn();
            world
                .ask(&Request::ApplyTopic { meta: meta.clone() })
                .unwrap();
            assert_eq!(
                world.lsn(),
                lsn,
                "a late description does not bring a deleted topic back"
            );
            assert_eq!(world.state.counts(), millstream_machine::Counts::default());
        }
    }
}

#[test]
fn an_older_revision_does_nothing() {
    let mut catalog = World::new(0, 2, Limits::default());
    let mut other = World::new(1, 2, Limits::default());
    let first = catalog.create(1, "t", 4);
    let set = |value: Option<&str>| Request::ConfigureTopic {
        name: "t".to_owned(),
        set: vec![("retention.ms".to_owned(), value.map(str::to_owned))],
    };
    let Ok(Reply::Topic(second)) = catalog.ask(&set(Some("1000"))) else {
        panic!()
    };
    assert!(second.revision > first.revision);
    other
        .ask(&Request::ApplyTopic {
            meta: second.clone(),
        })
        .unwrap();
    let lsn = other.lsn();
    other.ask(&Request::ApplyTopic { meta: first }).unwrap();
    assert_eq!(
        (other.lsn(), other.state.topic(second.id)),
        (lsn, Some(&second))
    );
    let lsn = catalog.lsn();
    assert_eq!(
        catalog.ask(&set(Some("1000"))),
        Ok(Reply::Topic(second)),
        "as it is already"
    );
    assert_eq!(catalog.lsn(), lsn);
    let Ok(Reply::Topic(third)) = catalog.ask(&set(None)) else {
        panic!()
    };
    assert_eq!(third.config, TopicConfig::default());
}

#[test]
fn only_the_catalog_decides_on_topics_and_ids() {
    let mut world = World::new(1, 2, Limits::default());
    for request in [
        create(1, "t", 1),
        Request::DeleteTopic {
            name: "t".to_owned(),
        },
        Request::ConfigureTopic {
            name: "t".to_owned(),
            set: Vec::new(),
        },
        Request::AddPartitions {
            name: "t".to_owned(),
            total: 2,
        },
        Request::InitProducer { pid: ProducerId(0) },
        Request::RemoveFilter {
            topic: "t".to_owned(),
            name: "f".to_owned(),
        },
    ] {
        assert_eq!(world.ask(&request), Err(Refusal::NotHome), "{request:?}");
    }
}

#[test]
fn what_cannot_be_a_topic_is_refused() {
    let limits = Limits {
        topics: 2,
        partitions: 5,
        ..Limits::default()
    };
    let mut world = World::new(0, 1, limits);
    for name in ["", "..", "a b", "ä", &"x".repeat(250)] {
        assert_eq!(
            world.ask(&create(1, name, 1)),
            Err(Refusal::BadName(name.to_owned()))
        );
    }
    for asked in [0, TOPIC_PARTITIONS_MAX + 1] {
        let refusal = Refusal::BadPartitionCount {
            asked,
            has: 0,
            max: TOPIC_PARTITIONS_MAX,
        };
        assert_eq!(world.ask(&create(1, "t", asked)), Err(refusal));
    }
    world.create(1, "t", 3);
    assert_eq!(
        world.ask(&create(2, "t", 1)),
        Err(Refusal::TopicExists("t".to_owned()))
    );
    assert!(
        matches!(world.ask(&create(1, "u", 1)), Err(Refusal::BadConfig(_))),
        "an id is used once"
    );
    assert!(
        matches!(world.ask(&create(2, "u", 3)), Err(Refusal::StateFull(_))),
        "six partitions"
    );
    world.create(2, "u", 2);
    assert!(
        matches!(world.ask(&create(3, "v", 1)), Err(Refusal::StateFull(_))),
        "three topics"
    );
    let fewer = Request::AddPartitions {
        name: "t".to_owned(),
        total: 2,
    };
    let refusal = Refusal::BadPartitionCount {
        asked: 2,
        has: 3,
        max: TOPIC_PARTITIONS_MAX,
    };
    assert_eq!(world.ask(&fewer), Err(refusal));
    let more = Request::AddPartitions {
        name: "t".to_owned(),
        total: 4,
    };
    assert!(matches!(world.ask(&more), Err(Refusal::StateFull(_))));
    let unknown = Refusal::UnknownTopic("w".to_owned());
    assert_eq!(
        world.ask(&Request::DescribeTopic {
            name: "w".to_owned()
        }),
        Err(unknown)
    );
    world
        .ask(&Request::DeleteTopic {
            name: "t".to_owned(),
        })
        .unwrap();
    world.create(4, "t", 3);
}

#[test]
fn filters_are_bound_replaced_in_place_and_removed() {
    let mut world = World::new(
        0,
        1,
        Limits {
            filters_per_topic: 2,
            parameter_bytes: 9,
            ..Limits::default()
        },
    );
    world.create(1, "t", 1);
    let binding = |name: &str, digest: u8| FilterBinding {
        name: name.to_owned(),
        digest: [digest; 32],
        stage: Stage::Subscribe,
        parameters: vec![
            ("b".to_owned(), "2".to_owned()),
            ("a".to_owned(), "1".to_owned()),
        ],
        budget: Budget {
            memory_bytes_max: 1 << 20,
            batch_ms_max: 5,
        },
        on_error: OnError::Drop,
    };
    let deploy = |binding: FilterBinding| Request::DeployFilter {
        topic: "t".to_owned(),
        binding,
    };
    world.ask(&deploy(binding("first", 1))).unwrap();
    world.ask(&deploy(binding("second", 2))).unwrap();
    let lsn = world.lsn();
    world.ask(&deploy(binding("second", 2))).unwrap();
    assert_eq!(world.lsn(), lsn, "deployed already");
    world.ask(&deploy(binding("first", 3))).unwrap();
    let filters = world.state.filters(partition(1, 0));
    assert_eq!(
        filters
            .iter()
            .map(|f| (f.name.as_str(), f.digest[0]))
            .collect::<Vec<_>>(),
        [("first", 3), ("second", 2)]
    );
    assert_eq!(filters[0].parameters[0].0, "a", "sorted by key");
    assert!(matches!(
        world.ask(&deploy(binding("third", 1))),
        Err(Refusal::StateFull(_))
    ));
    let long = FilterBinding {
        parameters: vec![("k".to_owned(), "123456789".to_owned())],
        ..binding("first", 1)
    };
    assert!(matches!(
        world.ask(&deploy(long)),
        Err(Refusal::StateFull(_))
    ));
    let idle = FilterBinding {
        budget: Budget {
            memory_bytes_max: 0,
            batch_ms_max: 5,
        },
        ..binding("first", 1)
    };
    assert!(matches!(
        world.ask(&deploy(idle)),
        Err(Refusal::BadConfig(_))
    ));
    let remove = Request::RemoveFilter {
        topic: "t".to_owned(),
        name: "first".to_owned(),
    };
    world.ask(&remove).unwrap();
    assert_eq!(
        world.ask(&remove),
        Err(Refusal::UnknownFilter("first".to_owned()))
    );
    assert!(world.replayed() == world.state);
}

#[test]
fn a_deleted_topic_leaves_nothing_behind() {
    let mut world = World::new(0, 1, Limits::default());
    world.create(1, "t", 2);
    world.create(2, "u", 1);
    for (topic, index) in [(1, 0), (1, 1), (2, 0)] {
        world
            .produce(batch(partition(topic, index), 5, 0, 0, 2))
            .unwrap();
        world
            .commit("g", partition(topic, index), 0, GroupEpoch(0), 1)
            .unwrap();
    }
    let decision = decide(
        &world.state,
        world.now,
        TERM,
        &Request::DeleteTopic {
            name: "t".to_owned(),
        },
    )
    .unwrap();
    let dropped: Vec<_> = decision.facts[0].dropped().collect();
    assert_eq!(dropped, [PartitionSlot(0), PartitionSlot(1)]);
    world
        .ask(&Request::DeleteTopic {
            name: "t".to_owned(),
        })
        .unwrap();
    let counts = world.state.counts();
    assert_eq!(
        (
            counts.topics,
            counts.partitions,
            counts.producers,
            counts.offsets
        ),
        (1, 1, 1, 1)
    );
    let gone = Refusal::UnknownPartition(partition(1, 0));
    assert_eq!(world.produce(batch(partition(1, 0), 5, 0, 2, 1)), Err(gone));
    assert!(world.replayed() == world.state);
}

#[test]
fn trimming_raises_the_start_and_only_that() {
    let mut world = World::new(0, 1, Limits::default());
    world.create(1, "t", 1);
    let at = partition(1, 0);
    world.produce(batch(at, 0, 0, 0, 10)).unwrap();
    let trim = |start: u64| Request::TrimPartition {
        partition: at,
        start: Offset(start),
    };
    let decision = decide(&world.state, world.now, TERM, &trim(4)).unwrap();
    assert_eq!(
        decision.facts[0].trimmed(),
        Some((PartitionSlot(0), Offset(4)))
    );
    world.ask(&trim(4)).unwrap();
    let lsn = world.lsn();
    world.ask(&trim(2)).unwrap();
    assert_eq!(world.lsn(), lsn, "below the start: no effect");
    assert!(matches!(
        world.ask(&trim(11)),
        Err(Refusal::OffsetOutOfRange { .. })
    ));
    let Ok(Reply::Partition(info)) = world.ask(&Request::DescribePartition { partition: at })
    else {
        panic!()
    };
    assert_eq!(
        (info.start, info.end, info.bytes, info.term),
        (Offset(4), Offset(10), 1_000, Term(3))
    );
}

#[test]
fn batches_past_the_topics_limit_are_refused() {
    let mut world = World::new(
        0,
        1,
        Limits {
            batch_bytes: 500,
            ..Limits::default()
        },
    );
    world.create(1, "t", 1);
    let at = partition(1, 0);
    let refusal = Refusal::BatchTooLarge {
        bytes: 600,
        max: 500,
    };
    assert_eq!(world.produce(batch(at, 0, 0, 0, 6)), Err(refusal));
    let set = vec![("max.message.bytes".to_owned(), Some("600".to_owned()))];
    world
        .ask(&Request::ConfigureTopic {
            name: "t".to_owned(),
            set,
        })
        .unwrap();
    world.produce(batch(at, 0, 0, 0, 6)).unwrap();
}

#[test]
fn a_namesake_that_is_still_to_be_forgotten_does_not_hide_the_new_topic() {
    let mut other = World::new(1, 2, Limits::default());
    let meta = |id: u8, revision: u64| TopicMeta {
        id: TopicId([id; 16]),
        name: "t".to_owned(),
        partitions: 2,
        config: TopicConfig::default(),
        revision,
        filters: Vec::new(),
    };
    for (id, revision) in [(9, 1), (2, 5)] {
        other
            .ask(&Request::ApplyTopic {
                meta: meta(id, revision),
            })
            .unwrap();
    }
    assert_eq!(other.state.topic_by_name("t").unwrap().id, TopicId([2; 16]));
    other
        .ask(&Request::ForgetTopic {
            id: TopicId([2; 16]),
            revision: 6,
        })
        .unwrap();
    assert_eq!(other.state.topic_by_name("t").unwrap().id, TopicId([9; 16]));
}

#[test]
fn a_deletion_that_overtakes_the_description_wins() {
    let mut other = World::new(1, 2, Limits::default());
    let id = TopicId([7; 16]);
    other
        .ask(&Request::ForgetTopic { id, revision: 2 })
        .unwrap();
    let lsn = other.lsn();
    let meta = TopicMeta {
        id,
        name: "t".to_owned(),
        partitions: 2,
        config: TopicConfig::default(),
        revision: 1,
        filters: Vec::new(),
    };
    other.ask(&Request::ApplyTopic { meta }).unwrap();
    other
        .ask(&Request::ForgetTopic { id, revision: 2 })
        .unwrap();
    assert!(other.state.topic_by_name("t").is_none());
    assert_eq!(other.lsn(), lsn, "once is enough");
}

/// What a shard has not said that it knows is listed for it, in order; a topic that changed twice once, as it is.
#[test]
fn changes_after_a_revision_are_listed_until_they_are_known() {
    let mut world = World::new(0, 3, Limits::default());
    for (id, name) in [(1, "a"), (2, "b"), (3, "c")] {
        world.create(id, name, 2);
    }
    let grow = Request::AddPartitions {
        name: "a".to_owned(),
        total: 4,
    };
    world.ask(&grow).unwrap();
    let delete = Request::DeleteTopic {
        name: "b".to_owned(),
    };
    let gone = world.ask(&delete);
    let id = TopicId([2; 16]);
    assert_eq!(gone, Ok(Reply::TopicGone { id, revision: 5 }));
    let listed = |world: &World, after: u64| -> Vec<(u64, u8, bool)> {
        let changes = world.state.catalogue_changes(after);
        let short = |(revision, change): (u64, Change<'_>)| match change {
            Change::Topic(meta) => (revision, meta.id.0[0], true),
            Change::Gone(id) => (revision, id.0[0], false),
        };
        changes.map(short).collect()
    };
    let all = [(3, 3, true), (4, 1, true), (5, 2, false)];
    assert_eq!(listed(&world, 0), all);
    assert_eq!(listed(&world, 3), all[1..]);
    assert_eq!(listed(&world, 5), []);
    let known = |shard, revision| Request::CatalogueKnown {
        shard: ShardId(shard),
        revision,
    };
    world.ask(&known(1, 4)).unwrap();
    world.ask(&known(1, 2)).unwrap();
    assert_eq!(world.state.catalogue_known(ShardId(1)), 4);
    assert_eq!(world.state.catalogue_known(ShardId(2)), 0);
    assert!(world.ask(&known(1, 6)).is_err(), "it was never told");
    assert!(world.ask(&known(0, 1)).is_err() && world.ask(&known(3, 1)).is_err());
    assert!(world.replayed() == world.state);
}

/// A shard that is down hears of every deletion when it is back, however many there were.
#[test]
fn deletions_are_remembered_until_every_shard_knows_them() {
    let limits = Limits {
        topics: 2_000,
        ..Limits::default()
    };
    let mut world = World::new(0, 2, limits);
    for n in 0..2_000_u64 {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&n.to_be_bytes());
        id[15] = 1;
        let create = Request::CreateTopic {
            id: TopicId(id),
            name: "t".to_owned(),
            partitions: 1,
            config: TopicConfig::default(),
        };
        world.ask(&create).unwrap();
        let delete = Request::DeleteTopic {
            name: "t".to_owned(),
        };
        world.ask(&delete).unwrap();
    }
    assert_eq!(world.state.catalogue_changes(0).count(), 2_000);
    world.create(9, "t", 1);
    let delete = Request::DeleteTopic {
        name: "t".to_owned(),
    };
    assert!(matches!(world.ask(&delete), Err(Refusal::StateFull(_))));
    let known = Request::CatalogueKnown {
        shard: ShardId(1),
        revision: world.state.catalogue_revision(),
    };
    world.ask(&known).unwrap();
    world.ask(&delete).unwrap();
    let changes = world.state.catalogue_changes(0).count();
    assert_eq!(changes, 1_024, "no more than are remembered anyway");
}

#[test]
fn facts_say_what_they_touch() {
    let mut world = World::new(0, 1, Limits::default());
    let decision = decide(&world.state, world.now, TERM, &create(1, "t", 1)).unwrap();
    let [fact] = &decision.facts[..] else {
        panic!("one decision, one fact")
    };
    assert!(fact.touches_topics() && fact.touches_group().is_none() && fact.index_key().is_none());
    world.create(1, "t", 1);
    let produce = Request::Produce(batch(partition(1, 0), 0, 0, 0, 3));
    let decision = decide(&world.state, world.now, TERM, &produce).unwrap();
    let place = decision.facts[0].index_key().unwrap();
    assert_eq!(
        (place.base_offset, place.last_offset),
        (Offset(0), Offset(2))
    );
    assert!(matches!(decision.facts[0], Fact::BatchAppended(_)));
}
