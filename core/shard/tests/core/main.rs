//! The core without its thread, on a disk in memory that answers when the test says so: what is told
//! after a failed write, what waits for a sync, what is looked at again.

mod shards;
mod world;

use std::collections::BTreeMap;

use bytes::Bytes;
use millstream_batch::ids::{Offset, ProducerId, TopicId};
use millstream_log::io::{FileId, IoOp};
use millstream_machine::request::{Refusal, Reply, Request};
use millstream_shard::call::{Answer, Call, Error, Fetch};

use crate::world::{
    HOUR_MS, TOPIC, World, batch, batch_of, config, create, partition, retaining, start,
};

/// Filling files with zeros costs as much of the disk as what is then written to them.
#[test]
fn what_retention_frees_is_written_again_and_no_new_file_is_filled() {
    let mut config = config(true);
    config.retention_bytes = 3 << 20;
    config.log.recycle_max = 4;
    let seconds_in_all = config.retention_check_ms / 1_000;
    let mut world = World::open(config, BTreeMap::new(), start());
    world.create_topic();
    let raw = Bytes::from(vec![1; 60_000]);
    let mut token = 1;
    let mut write_mib = |world: &mut World, mib: u64| {
        for _ in 0..mib * 16 {
            token += 1;
            world.ask(token, batch_of(world.now, &raw));
            world.settle();
            world.pass_ms(1);
            world.settle();
            let answer = world.answer(token);
            assert!(
                matches!(answer, Answer::Reply(Reply::Produced(_))),
                "{answer:?}"
            );
        }
        world.allocations
    };
    let before = write_mib(&mut world, 12);
    assert_eq!(write_mib(&mut world, 60), before);
    assert!(world.now.mono_us < seconds_in_all * 1_000_000);
    let log_bytes: usize = world.files.values().map(Vec::len).sum();
    assert!(log_bytes < 14 << 20, "{log_bytes}");
}

#[test]
fn after_a_failed_write_look_ups_answer() {
    let mut world = World::open(config(true), BTreeMap::new(), start());
    world.create_topic();
    world.is_broken = true;
    world.ask(2, batch(world.now));
    world.settle();
    let answer = world.answer(2);
    assert!(
        matches!(answer, Answer::Error(Error::Unknown(_))),
        "{answer:?}"
    );

    world.ask(3, Call::Machine(Request::ListTopics));
    let answer = world.answer(3);
    assert!(
        matches!(&answer, Answer::Reply(Reply::Topics(topics)) if topics.len() == 1),
        "{answer:?}"
    );
    let watch = Call::WatchCatalog {
        seen: 0,
        wait_ms: 1_000,
    };
    world.ask(4, watch);
    let answer = world.answer(4);
    assert!(matches!(answer, Answer::Catalog { .. }), "{answer:?}");
    let nowhere = Call::Fetch(Fetch {
        partition: partition(TopicId([9; 16])),
        offset: Offset(0),
        leader_epoch: None,
        bytes_max: 1,
        wait_ms: 0,
    });
    world.ask(5, nowhere);
    let answer = world.answer(5);
    assert!(
        matches!(
            answer,
            Answer::Error(Error::Refused(Refusal::UnknownPartition(_)))
        ),
        "{answer:?}"
    );
    world.ask(6, Call::Machine(create("more", TopicId([8; 16]))));
    let answer = world.answer(6);
    assert!(
        matches!(answer, Answer::Error(Error::Stopped(_))),
        "{answer:?}"
    );
}

/// Nothing is the first version of the catalog: whoever saw the empty one hears of the first topic.
#[test]
fn the_first_topic_of_a_new_log_is_news() {
    let mut world = World::open(config(true), BTreeMap::new(), start());
    let watch = |seen| Call::WatchCatalog {
        seen,
        wait_ms: 10_000,
    };
    world.ask(2, watch(0));
    let Answer::Catalog { version, topics } = world.answer(2) else {
        panic!("a look at the catalog is answered with it");
    };
    assert!(version > 0 && topics.is_empty(), "{version} {topics:?}");
    world.ask(3, watch(version));
    world.create_topic();
    let answer = world.answer(3);
    assert!(
        matches!(&answer, Answer::Catalog { version: newer, topics } if *newer > version && topics.len() == 1),
        "{answer:?}"
    );
}

#[test]
fn with_interval_flush_identities_are_told_only_when_synced() {
    let mut world = World::open(config(false), BTreeMap::new(), start());
    world.create_topic();
    // A write under way, so that the next group is not the first to be handed out.
    world.ask(2, batch(world.now));
    let init = Request::InitProducer { pid: ProducerId(0) };
    world.ask(3, Call::Machine(init));
    let mut was_told = false;
    while let Some(io) = world.asked.front() {
        let syncs = matches!(io.op, IoOp::Write { sync: true, .. });
        world.step();
        if world.answers.contains_key(&3) && !was_told {
            assert!(syncs, "the id was told before a sync");
            was_told = true;
        }
    }
    assert!(was_told, "the answer brings its own sync");
    assert!(matches!(world.answer(2), Answer::Reply(Reply::Produced(_))));
}

#[test]
fn a_slow_sync_does_not_cost_the_idle_mark() {
    let mut world = World::open(config(true), BTreeMap::new(), start());
    world.create_topic();
    world.ask(2, batch(world.now));
    world.pass_ms(60); // the write is still under way
    world.settle();
    assert!(
        world
            .core
            .next_wakeup()
            .is_some_and(|at| at <= world.now.mono_us + 50_000)
    );
    world.pass_ms(60);
    let marks = world.asked.iter();
    let marks = marks.filter(|io| matches!(io.op, IoOp::Write { sync: true, .. }));
    assert_eq!(marks.count(), 1, "the last group is proved");
}

#[test]
fn a_disk_that_has_no_room_for_a_spare_is_asked_again() {
    let mut world = World::open(config(true), BTreeMap::new(), start());
    world.create_topic();
    world.settle();
    world.is_full = true;
    // Fill files until a spare is wanted and cannot be made.
    let mut token = 10;
    let before = world.allocations;
    while world.allocations == before {
        for _ in 0..64 {
            world.ask(token, batch(world.now));
            token += 1;
        }
        world.settle();
    }
    world.is_full = false;
    world.pass_ms(1_000);
    world.settle();
    for token in token..token + 1_000 {
        world.ask(token, batch(world.now));
        world.settle();
        let answer = world.answer(token);
        assert!(
            matches!(answer, Answer::Reply(Reply::Produced(_))),
            "there is room long since: {answer:?}"
        );
    }
}

#[test]
fn a_clock_gone_wild_moves_logged_time_by_one_step_in_all() {
    let mut world = World::open(config(true), BTreeMap::new(), start());
    world.create_topic();
    world.now.wall.0 += 1_000 * HOUR_MS;
    for token in 2..50 {
        world.ask(token, batch(world.now));
        world.settle();
    }
    let logged = world.core.state().clock();
    assert_eq!(logged.0, start().wall.0 + HOUR_MS);

    assert!(world.doubt().expect("doubted").contains("41 days ahead"));

    // A restart finds it as far ahead of what was logged: nobody can say how long the stop was.
    let mut world = world.restart(0);
    world.pass_ms(1);
    world.settle();
    let logged = world.core.state().clock();
    assert!(
        logged.0 <= start().wall.0 + 2 * HOUR_MS + 1,
        "one step more"
    );
    assert!(world.doubt().expect("doubted").contains("clock accept"));
    world.accept_clock();
    assert_eq!(world.doubt(), None);
    assert_eq!(world.core.state().clock(), world.now.wall);
    world.ask(50, batch(world.now));
    world.settle();
    assert_eq!(world.core.state().clock(), world.now.wall);
}

#[test]
fn a_stop_of_some_days_is_believed() {
    let mut world = World::open(config(true), BTreeMap::new(), start());
    world.create_topic();
    let mut world = world.restart(6 * 24 * HOUR_MS);
    world.pass_ms(1);
    world.settle();
    assert_eq!(world.doubt(), None);
    assert_eq!(world.core.state().clock(), world.now.wall);
}

/// A machine that starts before its clock is set, and the clock that is right a minute later.
#[test]
fn a_start_before_the_clock_is_set_loses_no_time_and_heals_by_itself() {
    let mut world = World::open(retaining(), BTreeMap::new(), start());
    world.create_topic();
    world.produce(2);
    let wrong = -world.now.wall.0 + 5_000; // five seconds after 1970
    let mut world = world.restart(wrong);
    world.pass_ms(30_000);
    world.settle();
    assert!(world.doubt().expect("doubted").contains("behind"));
    world.produce(3);
    assert_eq!(
        world.core.state().clock(),
        start().wall,
        "logged time stands"
    );
    world.now.wall.0 += -wrong;
    world.pass_ms(1);
    world.settle();
    assert_eq!(world.doubt(), None, "it is right again");
    world.produce(4);
    assert_eq!(world.core.state().clock(), world.now.wall);
}

/// A first boot before the clock is set: an empty log is no reason to doubt the right clock later.
#[test]
fn the_first_clock_of_an_empty_log_binds_nobody() {
    let mut now = start();
    now.wall.0 = 5_000; // five seconds after 1970
    let mut world = World::open(config(true), BTreeMap::new(), now);
    world.pass_ms(30_000);
    world.settle();
    world.now.wall = start().wall;
    world.pass_ms(1_000);
    world.settle();
    assert_eq!(world.doubt(), None);
    world.create_topic();
    assert_eq!(world.core.state().clock(), world.now.wall);
    // From here on it is held against the time that passes.
    world.now.wall.0 += 1_000 * HOUR_MS;
    world.pass_ms(1);
    assert!(world.doubt().expect("doubted").contains("ahead"));
}

#[test]
fn while_the_clock_is_in_doubt_retention_and_expiry_rest() {
    for (restart, shift) in [
        (true, 30 * 24 * HOUR_MS),
        (true, -30 * 24 * HOUR_MS),
        (false, 30 * 24 * HOUR_MS),
        (false, -30 * 24 * HOUR_MS),
    ] {
        let mut config = retaining();
        config.producer_expiry_ms = 1_000;
        config.producer_check_ms = 100;
        let mut world = World::open(config.clone(), BTreeMap::new(), start());
        world.create_topic();
        world.ask(
            2,
            Call::Machine(Request::InitProducer { pid: ProducerId(0) }),
        );
        world.settle();
        world.produce(3);
        if restart {
            world = world.restart_with(config, shift);
        } else {
            world.now.wall.0 += shift;
        }
        world.pass_ms(1_000);
        world.settle();
        let decided = world.core.lsns();
        for _ in 0..60 {
            world.pass_ms(1_000);
            world.settle();
        }
        assert_eq!(
            world.core.lsns(),
            decided,
            "{restart} {shift}: nothing is decided"
        );
        assert!(world.doubt().is_some(), "{restart} {shift}");
        assert_eq!(
            world.offsets(),
            (0, 1),
            "{restart} {shift}: nothing is deleted"
        );
        world.accept_clock();
        for _ in 0..60 {
            world.pass_ms(1_000);
            world.settle();
        }
        assert_eq!(world.doubt(), None);
        assert_eq!(
            world.offsets(),
            (1, 1),
            "{restart} {shift}: it is past its time"
        );
    }
}

/// What was logged while the clock was a year ahead keeps its time, and goes when what is kept of it has
/// passed by the right clock, not in a year.
#[test]
fn records_of_the_future_go_as_of_the_accepted_clock() {
    let mut world = World::open(retaining(), BTreeMap::new(), start());
    world.create_topic();
    world.now.wall.0 += 365 * 24 * HOUR_MS;
    world.accept_clock();
    let future = world.now.wall;
    world.produce(2);
    world.now.wall.0 -= 365 * 24 * HOUR_MS;
    world.pass_ms(1);
    assert!(world.doubt().expect("doubted").contains("behind"));
    world.accept_clock();
    assert_eq!(world.core.state().clock(), world.now.wall, "back at once");
    let view = world
        .core
        .state()
        .partition(partition(TOPIC))
        .expect("there");
    assert_eq!(view.last_append, future, "they keep their time");
    for _ in 0..9 {
        world.pass_ms(1_000);
        world.settle();
    }
    assert_eq!(world.offsets(), (0, 1), "not past its time");
    // A restart knows of it, from the log or from a snapshot.
    let mut world = world.restart_with(retaining(), 0);
    for _ in 0..6 {
        world.pass_ms(1_000);
        world.settle();
    }
    assert_eq!(world.offsets(), (1, 1));
}

/// The file that was open when the clock was accepted holds records of the future, and fresh ones: those
/// are as old as they are.
#[test]
fn what_was_appended_after_the_acceptance_is_no_older_than_that() {
    let mut world = World::open(retaining(), BTreeMap::new(), start());
    world.create_topic();
    world.now.wall.0 += 365 * 24 * HOUR_MS;
    world.accept_clock();
    world.produce(2);
    world.now.wall.0 -= 365 * 24 * HOUR_MS;
    world.accept_clock();
    for _ in 0..9 {
        world.pass_ms(1_000);
        world.settle();
    }
    // Nine seconds later the file is full.
    let raw = Bytes::from(vec![1; 32 << 10]);
    for token in 3..43 {
        world.ask(token, batch_of(world.now, &raw));
        world.settle();
    }
    for _ in 0..8 {
        world.pass_ms(1_000);
        world.settle();
    }
    assert_eq!(world.offsets(), (0, 41), "a second or nine old");
    for _ in 0..6 {
        world.pass_ms(1_000);
        world.settle();
    }
    assert_eq!(world.offsets(), (41, 41));
}

/// The load has stopped and the file is not full: what is past its time goes all the same, and its file.
#[test]
fn what_is_past_its_time_goes_though_nothing_fills_the_file() {
    let mut world = World::open(retaining(), BTreeMap::new(), start());
    world.create_topic();
    for token in 2..10 {
        world.produce(token);
    }
    let first = FileId::Wal(1);
    assert!(world.files.contains_key(&first));
    for _ in 0..9 {
        world.pass_ms(1_000);
        world.settle();
    }
    assert_eq!(world.offsets(), (0, 8), "not past its time");
    for _ in 0..12 {
        world.pass_ms(1_000);
        world.settle();
    }
    assert_eq!(world.offsets(), (8, 8));
    assert!(
        !world.files.contains_key(&first),
        "{:?}",
        world.files.keys()
    );
    let newest = *world.files.keys().next_back().expect("files");
    for _ in 0..60 {
        world.pass_ms(1_000);
        world.settle();
    }
    assert_eq!(
        world.files.keys().next_back(),
        Some(&newest),
        "an empty file is not closed again and again"
    );
    world.produce(10);
    let world = world.restart_with(retaining(), 0);
    assert_eq!(world.offsets(), (8, 9));
}
