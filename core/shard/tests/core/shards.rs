//! What one shard tells the others: messages, and what is told from state.

use std::collections::BTreeMap;

use millstream_batch::ids::{ShardId, TopicId};
use millstream_machine::Row;
use millstream_machine::request::{Refusal, Reply, Request};
use millstream_machine::topics::TopicConfig;
use millstream_shard::call::{About, Answer, Call, Error, Outcome};
use millstream_shard::core::CoreConfig;

use crate::world::{TOPIC, World, config, create, start};

/// A group whose home is shard 0 of three.
fn group_of_three() -> String {
    let mut names = (0..).map(|n| format!("group-{n}"));
    let at_home = |name: &String| millstream_batch::ids::group_home(name, 3) == ShardId(0);
    names.find(at_home).expect("some name")
}

fn three_shards(sync_each_group: bool) -> CoreConfig {
    let mut config = config(sync_each_group);
    config.shards = 3;
    config
}

fn delete(group: &str) -> Call {
    Call::Machine(Request::DeleteGroup {
        group: group.to_owned(),
        force: false,
    })
}

fn acknowledged(to: u16, last: u64) -> Call {
    Call::Machine(Request::CourierAcknowledged {
        to: ShardId(to),
        row: Row::Control,
        last,
    })
}

/// Also under `flush = interval`: what is told to another shard is not told before it is synced.
#[test]
fn a_message_leaves_when_it_is_durable_and_again_until_it_is_acknowledged() {
    for sync in [true, false] {
        let group = group_of_three();
        let mut world = World::open(three_shards(sync), BTreeMap::new(), start());
        world.ask(1, delete(&group));
        assert_eq!(world.sent, [], "it is not on the disk yet");
        world.settle();
        let (one, two) = (ShardId(1), ShardId(2));
        assert_eq!(world.sent, [(one, 1), (two, 1)]);
        assert!(matches!(world.answer(1), Answer::Reply(Reply::Done)));

        // Lost on the way: sent again, later and later.
        world.sent.clear();
        let mut waits = Vec::new();
        for _ in 0..4 {
            let before = world.now.mono_us;
            while world.sent.is_empty() {
                world.pass_ms(1);
                world.settle();
            }
            assert_eq!(world.sent, [(one, 1), (two, 1)]);
            world.sent.clear();
            waits.push((world.now.mono_us - before) / 1_000);
        }
        assert_eq!(waits, [10, 20, 40, 80]);

        // One has it; the other is asked on, also after a restart.
        world.ask(2, acknowledged(1, 1));
        world.settle();
        world.pass_ms(200);
        world.settle();
        assert_eq!(world.sent, [(two, 1)]);
        let mut world = world.restart_with(three_shards(sync), 0);
        assert_eq!(world.sent, [(two, 1)], "at once");
        world.sent.clear();
        world.ask(3, acknowledged(2, 1));
        world.settle();
        world.pass_ms(5_000);
        world.settle();
        assert_eq!(world.sent, []);
        assert_eq!(world.core.state().outboxes().count(), 0);
    }
}

/// What is found at the end of a log may yet be cut, when a start cannot write it anew: nothing of it is told.
#[test]
fn a_start_that_cannot_make_its_end_safe_sends_nothing() {
    let group = group_of_three();
    let mut world = World::open(three_shards(true), BTreeMap::new(), start());
    world.ask(1, delete(&group));
    world.settle();
    assert_eq!(world.sent.len(), 2);
    let (files, now) = (world.files, world.now);
    let mut world = World::begin(three_shards(true), files, now);
    world.is_broken = true;
    world.settle();
    for _ in 0..5 {
        world.pass_ms(1_000);
        world.settle();
    }
    assert_eq!((&world.sent[..], &world.told[..]), (&[][..], &[][..]));
}

/// A directory that was restored from an older copy than its neighbour's: somebody is told, once.
#[test]
fn a_shard_that_is_out_of_step_is_named() {
    let mut world = World::open(three_shards(true), BTreeMap::new(), start());
    for token in 1..4 {
        world.ask(token, acknowledged(2, 7));
        world.settle();
        let refused = world.answer(token);
        let error = Answer::Error(Error::Refused(Refusal::BadConfig(String::new())));
        assert_eq!(
            std::mem::discriminant(&refused),
            std::mem::discriminant(&error)
        );
    }
    let [words] = &world.trouble[..] else {
        panic!("{:?}", world.trouble);
    };
    assert!(
        words.contains("shard 2") && words.contains("older copy"),
        "{words}"
    );
}

#[test]
fn a_deleted_name_is_free_when_every_shard_has_forgotten_it() {
    let group = group_of_three();
    let mut world = World::open(three_shards(true), BTreeMap::new(), start());
    let watch = |wait_ms| Call::WatchForgotten {
        group: group.clone(),
        wait_ms,
    };
    world.ask(1, delete(&group));
    world.settle();
    world.answer(1);
    world.ask(2, watch(0));
    world.ask(3, watch(60));
    world.ask(4, watch(60_000));
    let again = |answer: Answer| {
        matches!(
            answer,
            Answer::Error(Error::Refused(Refusal::GroupBeingDeleted(_)))
        )
    };
    assert!(again(world.answer(2)));
    world.ask(5, acknowledged(2, 1));
    world.settle();
    world.pass_ms(100);
    assert!(again(world.answer(3)), "one of them has not");
    assert!(!world.answers.contains_key(&4));
    let join = Request::JoinGroup {
        group: group.clone(),
        member: millstream_batch::ids::MemberId(0),
        again: None,
        client: String::new(),
        topics: Vec::new(),
        session_timeout_ms: 1_000,
    };
    world.ask(6, Call::Machine(join.clone()));
    assert!(again(world.answer(6)));
    world.ask(7, acknowledged(1, 1));
    assert!(
        !world.answers.contains_key(&4),
        "the acknowledgement is not on the disk yet"
    );
    world.settle();
    assert!(matches!(world.answer(4), Answer::Reply(Reply::Done)));
    world.ask(8, Call::Machine(join));
    world.settle();
    let joined = world.answer(8);
    assert!(
        matches!(joined, Answer::Reply(Reply::Joined { .. })),
        "{joined:?}"
    );
}

// --- what other shards are told, from state --------------------------------------------------------

fn revision(revision: u64) -> About {
    About::Catalogue { revision }
}

fn answered(shard: u16, about: &About, outcome: Outcome) -> Call {
    Call::Told {
        shard: ShardId(shard),
        about: about.clone(),
        outcome,
    }
}

fn configure(bytes: u64) -> Call {
    Call::Machine(Request::ConfigureTopic {
        name: "t".to_owned(),
        set: vec![("retention.bytes".to_owned(), Some(bytes.to_string()))],
    })
}

impl World {
    /// Time passes until something is told; how long that took, in milliseconds.
    fn until_told(&mut self) -> u64 {
        let before = self.now.mono_us;
        while self.told.is_empty() {
            self.pass_ms(1);
            self.settle();
        }
        (self.now.mono_us - before) / 1_000
    }

    fn settled(&mut self, token: u64, call: Call) {
        self.ask(token, call);
        self.settle();
    }
}

/// Each of the other shards by itself: one that does not answer holds up nobody, and is told what it missed.
#[test]
fn a_change_of_the_catalogue_is_told_until_it_is_known() {
    let mut world = World::open(three_shards(true), BTreeMap::new(), start());
    let (one, two) = (ShardId(1), ShardId(2));
    let watch = |revision, wait_ms| Call::WatchSpread { revision, wait_ms };
    let behind = |answer: Answer| match answer {
        Answer::Reply(Reply::Spread { behind }) => behind,
        other => panic!("{other:?}"),
    };
    world.ask(1, Call::Machine(create("t", TOPIC)));
    assert_eq!(world.told, [], "it is not on the disk yet");
    world.settle();
    assert_eq!(world.told, [(one, revision(1)), (two, revision(1))]);
    world.settled(2, watch(1, 60_000));
    world.told.clear();
    assert_eq!([world.until_told(), 0], [10, 0]);
    world.told.clear();
    assert_eq!(world.until_told(), 20);

    // One of them has it. The other cannot: whoever waits for both waits no more.
    world.settled(3, answered(1, &revision(1), Outcome::Done));
    assert!(!world.answers.contains_key(&2));
    world.settled(4, answered(2, &revision(1), Outcome::Failed));
    assert_eq!(behind(world.answer(2)), [two]);
    world.settled(5, watch(1, 60_000));
    assert_eq!(behind(world.answer(5)), [two], "at once");

    // What changed twice meanwhile is told once, as it is.
    for (token, bytes) in [(6, 10), (7, 20)] {
        world.settled(token, configure(bytes));
    }
    world.settled(8, answered(1, &revision(2), Outcome::Done));
    world.settled(9, answered(1, &revision(3), Outcome::Done));
    let mut world = world.restart_with(three_shards(true), 0);
    assert_eq!(world.told, [(two, revision(3))], "one of them knows");
    world.settled(10, answered(2, &revision(3), Outcome::Done));
    world.settled(11, watch(3, 60_000));
    assert_eq!(behind(world.answer(11)), []);
    world.told.clear();
    world.pass_ms(10_000);
    world.settle();
    assert_eq!(world.told, []);
}

/// One change is on the disk, the next is installed and is not: only the first is told.
#[test]
fn a_change_is_told_when_it_is_durable_whatever_is_installed_since() {
    let mut world = World::open(three_shards(true), BTreeMap::new(), start());
    world.ask(1, Call::Machine(create("a", TOPIC)));
    world.ask(2, Call::Machine(create("b", TopicId([8; 16]))));
    assert_eq!(world.core.state().catalogue_revision(), 2);
    while world.told.is_empty() {
        world.step();
    }
    let (one, two) = (ShardId(1), ShardId(2));
    assert_eq!(world.told, [(one, revision(1)), (two, revision(1))]);
    world.settle();
    assert_eq!(world.told[2..], [(one, revision(2)), (two, revision(2))]);
}

/// Answers come in any order; what is known has no gaps.
#[test]
fn what_a_shard_knows_of_the_catalogue_has_no_gaps() {
    let mut world = World::open(three_shards(true), BTreeMap::new(), start());
    for n in 1..=3_u8 {
        let name = format!("t{n}");
        world.settled(u64::from(n), Call::Machine(create(&name, TopicId([n; 16]))));
    }
    let known = |world: &World| world.core.state().catalogue_known(ShardId(1));
    world.settled(4, answered(1, &revision(3), Outcome::Done));
    world.settled(5, answered(1, &revision(2), Outcome::Done));
    assert_eq!(known(&world), 0);
    world.settled(6, answered(1, &revision(9), Outcome::Done));
    assert_eq!(known(&world), 0, "nobody was told that");
    world.settled(7, answered(1, &revision(1), Outcome::Done));
    assert_eq!(known(&world), 3);
}

/// Nobody owns a partition any more: where it is kept that is claimed, until the claim is answered.
#[test]
fn a_claim_for_nobody_is_asked_until_it_is_answered() {
    let group = group_of_three();
    let mut world = World::open(three_shards(true), BTreeMap::new(), start());
    let six = Request::CreateTopic {
        id: TOPIC,
        name: "t".to_owned(),
        partitions: 6,
        config: TopicConfig::default(),
    };
    world.settled(1, Call::Machine(six));
    let join = Request::JoinGroup {
        group: group.clone(),
        member: millstream_batch::ids::MemberId(0),
        again: None,
        client: String::new(),
        topics: vec![TOPIC],
        session_timeout_ms: 60_000,
    };
    world.settled(2, Call::Machine(join));
    let Answer::Reply(Reply::Joined { member, assignment }) = world.answer(2) else {
        panic!("refused");
    };
    world.told.clear();
    let leave = Request::LeaveGroup {
        group,
        member,
        joined: assignment.joined,
    };
    world.settled(3, Call::Machine(leave));
    world.settled(4, Call::Status);
    let claims = |world: &mut World| -> Vec<(ShardId, About)> {
        let told = std::mem::take(&mut world.told).into_iter();
        told.filter(|(_, about)| matches!(about, About::Claim { .. }))
            .collect()
    };
    let asked = claims(&mut world);
    let elsewhere = assignment.owned.iter();
    let elsewhere = elsewhere.filter(|(held, _)| held.shard(3) != ShardId(0));
    assert_eq!(asked.len(), elsewhere.count());
    assert!(asked.len() > 1);
    world.pass_ms(20);
    world.settle();
    assert_eq!(claims(&mut world), asked, "again");
    // Refused: somebody claimed it since. That is an answer; that a shard cannot be asked is none.
    for (token, (shard, about)) in (10..).zip(&asked) {
        let outcome = [Outcome::Done, Outcome::Refused, Outcome::Failed][token as usize % 3];
        world.settled(token, answered(shard.0, about, outcome));
    }
    let failed = (10..).zip(&asked).filter(|(token, _)| token % 3 == 2);
    let failed: Vec<_> = failed.map(|(_, asked)| asked.clone()).collect();
    world.pass_ms(10_000);
    world.settle();
    assert_eq!(claims(&mut world), failed);
}
