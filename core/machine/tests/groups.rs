//! Consumer groups: who owns what, and that nobody reads or commits what is another's.

mod world;

use std::collections::{BTreeMap, BTreeSet};

use millstream_batch::ids::{GroupEpoch, MemberId, Offset, Partition, ShardId, Term, TopicId};
use millstream_machine::request::{Assignment, MemberInfo, Refusal, Reply, Request, Standing};
use millstream_machine::{Limits, State};
use world::{Rng, World, batch, partition};

const GROUP: &str = "billing";

fn join(world: &mut World, member: u64, topics: &[u8]) -> Result<(MemberId, Assignment), Refusal> {
    let request = Request::JoinGroup {
        group: GROUP.to_owned(),
        member: MemberId(member),
        again: None,
        client: "client".to_owned(),
        topics: topics.iter().map(|topic| TopicId([*topic; 16])).collect(),
        session_timeout_ms: 10_000,
    };
    match world.ask(&request)? {
        Reply::Joined { member, assignment } => Ok((member, assignment)),
        other => panic!("{other:?}"),
    }
}

/// The epoch of the member's newest join.
fn joined(world: &mut World, member: MemberId) -> GroupEpoch {
    let group = GROUP.to_owned();
    match world.ask(&Request::DescribeGroup { group, of: None }) {
        Ok(Reply::Group(info)) => {
            let of_member = |known: &&MemberInfo| known.member == member;
            info.members.iter().find(of_member).expect("known").joined
        }
        other => panic!("{other:?}"),
    }
}

fn assignment(world: &mut World, member: MemberId) -> Assignment {
    let joined = joined(world, member);
    match world.ask(&Request::GroupAssignment {
        group: GROUP.to_owned(),
        member,
        joined,
    }) {
        Ok(Reply::Assignment(assignment)) => assignment,
        other => panic!("{other:?}"),
    }
}

fn leave(world: &mut World, member: MemberId) {
    let joined = joined(world, member);
    world
        .ask(&Request::LeaveGroup {
            group: GROUP.to_owned(),
            member,
            joined,
        })
        .unwrap();
}

fn release(world: &mut World, member: MemberId, partitions: Vec<Partition>) {
    let joined = joined(world, member);
    world
        .ask(&Request::ReleasePartitions {
            group: GROUP.to_owned(),
            member,
            joined,
            partitions,
        })
        .unwrap();
}

/// What every member may read or still holds, with its epoch where it may read.
fn holdings(
    world: &mut World,
    members: &BTreeMap<MemberId, Vec<u8>>,
) -> BTreeMap<Partition, (MemberId, bool)> {
    let mut all = BTreeMap::new();
    for member in members.keys() {
        let Assignment {
            owned, revoking, ..
        } = assignment(world, *member);
        let held = owned
            .iter()
            .map(|(held, _)| (*held, false))
            .chain(revoking.iter().map(|held| (*held, true)));
        for (held, revoking) in held {
            assert!(
                all.insert(held, (*member, revoking)).is_none(),
                "{held} has one owner"
            );
        }
    }
    all
}

/// Every member lets go of all it is asked to, until nobody is asked.
fn settle(world: &mut World, members: &BTreeMap<MemberId, Vec<u8>>) {
    for _ in 0..100 {
        let mut asked = false;
        for member in members.keys() {
            let revoking = assignment(world, *member).revoking;
            asked |= !revoking.is_empty();
            release(world, *member, revoking);
        }
        if !asked {
            return;
        }
    }
    panic!("the group does not come to rest");
}

#[test]
fn a_partition_has_one_owner_and_moves_only_after_it_was_let_go() {
    for seed in 0..150 {
        let mut rng = Rng(seed);
        let mut world = World::new(0, 1, Limits::default());
        let equal = seed % 2 == 0;
        let mut sizes: BTreeMap<u8, u32> = BTreeMap::new();
        for topic in 1..=3 {
            sizes.insert(topic, 1 + rng.below(6) as u32);
            world.create(topic, &format!("t{topic}"), sizes[&topic]);
        }
        let mut members: BTreeMap<MemberId, Vec<u8>> = BTreeMap::new();
        let mut seen: BTreeSet<MemberId> = BTreeSet::new();
        let mut epochs: BTreeMap<Partition, GroupEpoch> = BTreeMap::new();
        for step in 0..80 {
            let before = holdings(&mut world, &members);
            // Partitions that may change hands in this step.
            let mut free: BTreeSet<Partition> = BTreeSet::new();
            let owned_by = |member: MemberId| {
                before
                    .iter()
                    .filter(move |(_, held)| held.0 == member)
                    .map(|(p, _)| *p)
            };
            let ids: Vec<_> = members.keys().copied().collect();
            match rng.below(10) {
                0..=2 if members.len() < 7 => {
                    let topics: Vec<u8> = if equal {
                        vec![1, 2, 3]
                    } else {
                        (1..=3).filter(|_| rng.one_in(2)).collect()
                    };
                    let (member, _) = join(&mut world, 0, &topics).unwrap();
                    assert!(seen.insert(member), "ids are never reused");
                    if equal && before.values().all(|(_, revoking)| !revoking) {
                        let after = holdings(&mut world, &members);
                        let asked = after.values().filter(|(_, revoking)| *revoking).count();
                        let share = before.len().div_ceil(members.len() + 1);
                        assert!(
                            asked <= share,
                            "a join moves at most one share: {asked} of {share}"
                        );
                    }
                    members.insert(member, topics);
                }
                3 => {
                    let Some(member) = rng.pick(&ids).copied() else {
                        continue;
                    };
                    free.extend(owned_by(member));
                    leave(&mut world, member);
                    members.remove(&member);
                }
                4 => {
                    let gone: Vec<_> = ids.iter().copied().filter(|_| rng.one_in(3)).collect();
                    free.extend(gone.iter().flat_map(|member| owned_by(*member)));
                    world
                        .ask(&Request::ExpireMembers {
                            group: GROUP.to_owned(),
                            members: gone.clone(),
                        })
                        .unwrap();
                    members.retain(|member, _| !gone.contains(member));
                }
                5 => {
                    let Some(member) = rng.pick(&ids).copied() else {
                        continue;
                    };
                    let revoking = assignment(&mut world, member).revoking;
                    free.extend(revoking.iter().copied());
                    release(&mut world, member, revoking);
                }
                6 => {
                    let topic = 1 + rng.below(3) as u8;
                    let total = sizes[&topic] + 1 + rng.below(2) as u32;
                    sizes.insert(topic, total);
                    world
                        .ask(&Request::AddPartitions {
                            name: format!("t{topic}"),
                            total,
                        })
                        .unwrap();
                }
                7 => {
                    let Some(member) = rng.pick(&ids).copied() else {
                        continue;
                    };
                    free.extend(assignment(&mut world, member).revoking);
                    join(&mut world, member.0, &members[&member]).unwrap();
                }
                8 => {
                    let owned = before.keys().filter(|_| rng.one_in(3));
                    let fenced: Vec<_> = owned.map(|held| (*held, GroupEpoch(u64::MAX))).collect();
                    free.extend(fenced.iter().map(|(held, _)| *held));
                    world
                        .ask(&Request::ReassignPartitions {
                            group: GROUP.to_owned(),
                            fenced,
                        })
                        .unwrap();
                }
                _ => {
                    for group in world.state.groups_to_rebalance() {
                        world.ask(&Request::RebalanceGroup { group }).unwrap();
                    }
                    assert_eq!(world.state.groups_to_rebalance(), [""; 0]);
                }
            }
            let after = holdings(&mut world, &members);
            for (partition, (owner, _)) in &before {
                let now = after.get(partition).map(|(now, _)| now);
                assert!(
                    now == Some(owner) || free.contains(partition),
                    "seed {seed} step {step}: {partition} was taken"
                );
            }
            // Every change of owner comes with a higher epoch.
            for member in members.keys() {
                for (held, epoch) in assignment(&mut world, *member).owned {
                    let was = epochs.insert(held, epoch).unwrap_or_default();
                    let same = before.get(&held).is_some_and(|(owner, _)| owner == member);
                    assert!(
                        epoch > was || (same && epoch == was),
                        "seed {seed} step {step}: {held}"
                    );
                }
            }
        }
        for group in world.state.groups_to_rebalance() {
            world.ask(&Request::RebalanceGroup { group }).unwrap();
        }
        settle(&mut world, &members);
        let held = holdings(&mut world, &members);
        let read: BTreeSet<u8> = members.values().flatten().copied().collect();
        let expected: u32 = read.iter().map(|topic| sizes[topic]).sum();
        assert_eq!(
            held.len(),
            expected as usize,
            "seed {seed}: every subscribed partition has an owner"
        );
        assert!(
            held.iter()
                .all(|(partition, (owner, _))| members[owner].contains(&partition.topic.0[0]))
        );
        if equal && !members.is_empty() {
            let loads: Vec<_> = members
                .keys()
                .map(|member| held.values().filter(|(owner, _)| owner == member).count())
                .collect();
            assert!(
                loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1,
                "seed {seed}: {loads:?}"
            );
        }
        assert!(world.replayed() == world.state, "seed {seed}");
    }
}

#[test]
fn the_next_member_waits_and_the_former_is_fenced() {
    let mut world = World::new(0, 1, Limits::default());
    world.create(1, "t", 2);
    for index in 0..2 {
        world
            .produce(batch(partition(1, index), 0, 0, 0, 10))
            .unwrap();
    }
    let (a, first) = join(&mut world, 0, &[1]).unwrap();
    assert_eq!(first.owned.len(), 2, "free partitions are given at once");
    for (held, epoch) in &first.owned {
        assert_eq!(world.claim(GROUP, *held, a, *epoch), Ok(None));
        world.commit(GROUP, *held, a.0, *epoch, 4).unwrap();
    }
    let (b, second) = join(&mut world, 0, &[1]).unwrap();
    assert_eq!(
        (second.owned.len(), second.revoking.len()),
        (0, 0),
        "nothing before it was let go"
    );
    let asked = assignment(&mut world, a);
    assert_eq!((asked.owned.len(), asked.revoking.len()), (1, 1));
    assert!(asked.version > first.version);
    let moving = asked.revoking[0];
    let (_, old_epoch) = *first
        .owned
        .iter()
        .find(|(held, _)| *held == moving)
        .unwrap();
    world
        .commit(GROUP, moving, a.0, old_epoch, 6)
        .expect("it may commit until it lets go");
    release(&mut world, a, vec![moving]);
    let given = assignment(&mut world, b);
    let [(held, epoch)] = given.owned[..] else {
        panic!("{given:?}")
    };
    assert!(held == moving && epoch > old_epoch);
    assert_eq!(
        world.claim(GROUP, moving, b, epoch),
        Ok(Some(Offset(6))),
        "it goes on where the former stopped"
    );
    assert_eq!(
        world.claim(GROUP, moving, b, epoch),
        Ok(Some(Offset(6))),
        "a repeated claim is granted"
    );
    let fenced = Refusal::MemberFenced {
        member: a,
        sent: old_epoch,
        current: epoch,
    };
    assert_eq!(
        world.commit(GROUP, moving, a.0, old_epoch, 9),
        Err(fenced.clone())
    );
    assert_eq!(world.claim(GROUP, moving, a, old_epoch), Err(fenced));
    world.commit(GROUP, moving, b.0, epoch, 7).unwrap();
    // A commit from nowhere is refused while a member holds the partition.
    assert!(matches!(
        world.commit(GROUP, moving, 0, GroupEpoch(0), 1),
        Err(Refusal::MemberFenced { .. })
    ));
    assert!(matches!(
        world.commit(GROUP, moving, b.0, epoch, 11),
        Err(Refusal::OffsetOutOfRange { .. })
    ));
}

#[test]
fn a_late_commit_from_an_earlier_ownership_of_the_same_member_is_fenced() {
    let mut world = World::new(0, 1, Limits::default());
    world.create(1, "t", 2);
    let (a, first) = join(&mut world, 0, &[1]).unwrap();
    let (b, _) = join(&mut world, 0, &[1]).unwrap();
    let moving = assignment(&mut world, a).revoking[0];
    let (_, early) = *first
        .owned
        .iter()
        .find(|(held, _)| *held == moving)
        .unwrap();
    world.claim(GROUP, moving, a, early).unwrap();
    release(&mut world, a, vec![moving]);
    leave(&mut world, b);
    let owned = assignment(&mut world, a).owned;
    let (_, late) = *owned.iter().find(|(held, _)| *held == moving).unwrap();
    assert!(late > early, "it came back, through another's hands");
    world.claim(GROUP, moving, a, late).unwrap();
    let fenced = Refusal::MemberFenced {
        member: a,
        sent: early,
        current: late,
    };
    assert_eq!(world.commit(GROUP, moving, a.0, early, 0), Err(fenced));
    world.commit(GROUP, moving, a.0, late, 0).unwrap();
}

#[test]
fn when_the_last_member_leaves_fixed_consumers_may_commit_and_it_may_not() {
    let mut world = World::new(0, 1, Limits::default());
    world.create(1, "t", 1);
    let at = partition(1, 0);
    world.produce(batch(at, 0, 0, 0, 10)).unwrap();
    world
        .commit(GROUP, at, 0, GroupEpoch(0), 1)
        .expect("nobody holds it");
    let (a, Assignment { owned, .. }) = join(&mut world, 0, &[1]).unwrap();
    let (_, epoch) = owned[0];
    assert_eq!(world.claim(GROUP, at, a, epoch), Ok(Some(Offset(1))));
    assert!(world.commit(GROUP, at, 0, GroupEpoch(0), 2).is_err());
    assert_eq!(world.state.unowned(GROUP).count(), 0);
    leave(&mut world, a);
    let unowned: Vec<_> = world.state.unowned(GROUP).collect();
    assert_eq!(unowned.len(), 1);
    match world.ask(&Request::DescribeGroup {
        group: GROUP.to_owned(),
        of: None,
    }) {
        Ok(Reply::Group(info)) => assert_eq!(info.unowned, unowned),
        other => panic!("{other:?}"),
    }
    assert!(unowned[0].0 == at && unowned[0].1 > epoch);
    for _ in 0..2 {
        assert_eq!(
            world.claim(GROUP, at, MemberId(0), unowned[0].1),
            Ok(Some(Offset(1)))
        );
    }
    assert!(matches!(
        world.commit(GROUP, at, a.0, epoch, 3),
        Err(Refusal::MemberFenced { .. })
    ));
    assert!(
        world.claim(GROUP, at, a, epoch).is_err(),
        "a late claim of the one that left"
    );
    world.commit(GROUP, at, 0, GroupEpoch(0), 5).unwrap();
    // The group comes back, above all that was.
    let (b, Assignment { owned, .. }) = join(&mut world, 0, &[1]).unwrap();
    assert!(b > a && owned[0].1 > unowned[0].1);
    assert_eq!(world.claim(GROUP, at, b, owned[0].1), Ok(Some(Offset(5))));
}

#[test]
fn a_group_made_anew_is_above_the_fences_of_its_namesake() {
    let mut world = World::new(0, 1, Limits::default());
    world.create(1, "t", 1);
    let at = partition(1, 0);
    for _ in 0..5 {
        let (member, _) = join(&mut world, 0, &[1]).unwrap();
        leave(&mut world, member);
    }
    let (old, Assignment { owned, .. }) = join(&mut world, 0, &[1]).unwrap();
    world.claim(GROUP, at, old, owned[0].1).unwrap();
    assert_eq!(
        world.ask(&Request::DeleteGroup {
            group: GROUP.to_owned(),
            force: false,
        }),
        Err(Refusal::GroupBusy(GROUP.to_owned()))
    );
    // With force its members are out of it.
    world
        .ask(&Request::DeleteGroup {
            group: GROUP.to_owned(),
            force: true,
        })
        .unwrap();
    let out = world.ask(&Request::GroupAssignment {
        group: GROUP.to_owned(),
        member: old,
        joined: GroupEpoch(old.0),
    });
    assert_eq!(out, Err(Refusal::UnknownGroup(GROUP.to_owned())));
    assert_eq!(world.state.counts().groups, 0);
    let (new, Assignment { owned, .. }) = join(&mut world, 0, &[1]).unwrap();
    assert!(new > old);
    assert_eq!(world.claim(GROUP, at, new, owned[0].1), Ok(None));
}

#[test]
fn joining_again_keeps_what_is_owned() {
    let mut world = World::new(0, 1, Limits::default());
    world.create(1, "t", 4);
    world.create(2, "u", 2);
    let (a, first) = join(&mut world, 0, &[1]).unwrap();
    let (again, second) = join(&mut world, a.0, &[1]).unwrap();
    assert_eq!((again, &second.owned), (a, &first.owned));
    assert!(second.joined > first.joined, "as another incarnation");
    let (_, wider) = join(&mut world, a.0, &[1, 2]).unwrap();
    assert_eq!(wider.owned.len(), 6);
    assert!(first.owned.iter().all(|held| wider.owned.contains(held)));
    let (_, narrower) = join(&mut world, a.0, &[2]).unwrap();
    assert_eq!((narrower.owned.len(), narrower.revoking.len()), (2, 4));
    release(&mut world, a, narrower.revoking);
    assert_eq!(assignment(&mut world, a).revoking, []);
    assert_eq!(world.state.unowned(GROUP).count(), 4);
    let unknown = Refusal::UnknownMember {
        group: GROUP.to_owned(),
        member: MemberId(77),
    };
    assert_eq!(join(&mut world, 77, &[1]), Err(unknown));
}

#[test]
fn deleted_topics_leave_the_group() {
    let mut world = World::new(0, 1, Limits::default());
    world.create(1, "t", 2);
    world.create(2, "u", 2);
    let (a, first) = join(&mut world, 0, &[1, 2]).unwrap();
    world
        .ask(&Request::DeleteTopic {
            name: "t".to_owned(),
        })
        .unwrap();
    assert_eq!(world.state.groups_to_rebalance(), [GROUP]);
    world
        .ask(&Request::RebalanceGroup {
            group: GROUP.to_owned(),
        })
        .unwrap();
    assert_eq!(world.state.groups_to_rebalance(), [""; 0]);
    let after = assignment(&mut world, a);
    assert!(after.version > first.version);
    assert_eq!(
        after.owned,
        first
            .owned
            .into_iter()
            .filter(|(held, _)| held.topic.0[0] == 2)
            .collect::<Vec<_>>()
    );
    // A topic nobody subscribes to may grow without the group being asked for ever.
    join(&mut world, a.0, &[]).unwrap();
    world
        .ask(&Request::AddPartitions {
            name: "u".to_owned(),
            total: 5,
        })
        .unwrap();
    assert_eq!(world.state.groups_to_rebalance(), [""; 0]);
}

#[test]
fn a_forced_reset_fences_the_member_that_holds_the_partition() {
    let mut world = World::new(0, 1, Limits::default());
    world.create(1, "t", 1);
    let at = partition(1, 0);
    world.produce(batch(at, 0, 0, 0, 10)).unwrap();
    let (a, Assignment { owned, .. }) = join(&mut world, 0, &[1]).unwrap();
    let epoch = owned[0].1;
    world.claim(GROUP, at, a, epoch).unwrap();
    let reset = |offset: u64, force: bool| Request::ResetOffsets {
        group: GROUP.to_owned(),
        places: vec![(at, Offset(offset))],
        force,
    };
    assert_eq!(
        world.ask(&reset(3, false)),
        Err(Refusal::GroupBusy(GROUP.to_owned()))
    );
    assert!(matches!(
        world.ask(&reset(11, true)),
        Err(Refusal::OffsetOutOfRange { .. })
    ));
    assert_eq!(
        world.ask(&reset(3, true)),
        Ok(Reply::Reset {
            fences: vec![epoch]
        })
    );
    assert!(matches!(
        world.commit(GROUP, at, a.0, epoch, 9),
        Err(Refusal::MemberFenced { .. })
    ));
    assert!(world.claim(GROUP, at, a, epoch).is_err());
    leave(&mut world, a);
    let (b, Assignment { owned, .. }) = join(&mut world, 0, &[1]).unwrap();
    assert_eq!(world.claim(GROUP, at, b, owned[0].1), Ok(Some(Offset(3))));
}

#[test]
fn groups_are_bounded_and_asked_at_their_home() {
    let limits = Limits {
        groups: 1,
        members_per_group: 2,
        offsets: 1,
        metadata_bytes: 10,
        ..Limits::default()
    };
    let mut world = World::new(0, 1, limits);
    world.create(1, "t", 2);
    join(&mut world, 0, &[1]).unwrap();
    join(&mut world, 0, &[1]).unwrap();
    assert!(matches!(
        join(&mut world, 0, &[1]),
        Err(Refusal::StateFull(_))
    ));
    let other = |group: &str| Request::JoinGroup {
        group: group.to_owned(),
        member: MemberId(0),
        again: None,
        client: String::new(),
        topics: Vec::new(),
        session_timeout_ms: 1,
    };
    assert!(matches!(
        world.ask(&other("second")),
        Err(Refusal::StateFull(_))
    ));
    assert!(matches!(
        world.ask(&other("no/name")),
        Err(Refusal::BadName(_))
    ));
    world
        .commit("x", partition(1, 0), 0, GroupEpoch(0), 0)
        .unwrap();
    assert!(matches!(
        world.commit("x", partition(1, 1), 0, GroupEpoch(0), 0),
        Err(Refusal::StateFull(_))
    ));
    let commit = |metadata: &str| {
        Request::Commit(millstream_machine::request::Commit {
            group: "x".to_owned(),
            partition: partition(1, 0),
            member: MemberId(0),
            epoch: GroupEpoch(0),
            offset: Offset(0),
            leader_epoch: None,
            metadata: metadata.to_owned(),
        })
    };
    world.ask(&commit("0123456789")).unwrap();
    world
        .ask(&commit("9876543210"))
        .expect("it takes the place of the former");
    assert!(matches!(
        world.ask(&commit("0123456789a")),
        Err(Refusal::StateFull(_))
    ));
    let mut halves = [
        World::new(0, 2, Limits::default()),
        World::new(1, 2, Limits::default()),
    ];
    let homes = halves
        .iter_mut()
        .filter_map(|world| world.ask(&other("somewhere")).ok())
        .count();
    assert_eq!(homes, 1);
}

#[test]
fn a_commit_over_records_that_were_cut_away_is_refused() {
    let mut world = World::new(0, 1, Limits::default());
    world.create(1, "orders", 1);
    let orders = partition(1, 0);
    world.produce(batch(orders, 0, 0, 0, 10)).unwrap();
    let read_under = world.term;
    // Ten more were read, and an unclean stop took them; others have their offsets now.
    world.term.0 += 1;
    world.produce(batch(orders, 0, 0, 0, 10)).unwrap();
    let mut commit = |offset, leader_epoch| {
        world.ask(&Request::Commit(millstream_machine::request::Commit {
            group: "g".to_owned(),
            partition: orders,
            member: MemberId(0),
            epoch: GroupEpoch(0),
            offset: Offset(offset),
            leader_epoch,
            metadata: String::new(),
        }))
    };
    let refusal = Refusal::OffsetTruncated {
        offset: Offset(11),
        leader_epoch: read_under,
        safe: Offset(10),
    };
    assert_eq!(commit(11, Some(read_under)), Err(refusal));
    commit(10, Some(read_under)).expect("up to there nothing was lost");
    commit(20, Some(Term(read_under.0 + 1))).expect("these were read after it");
    commit(20, None).expect("who does not know is believed");
    let beyond = commit(25, Some(Term(read_under.0 + 1)));
    assert!(
        matches!(
            beyond,
            Err(Refusal::OffsetTruncated {
                safe: Offset(20),
                ..
            })
        ),
        "{beyond:?}"
    );
}

/// Where a group begins is set once, by whoever comes first, and whoever holds the partition.
#[test]
fn a_group_begins_once() {
    let mut world = World::new(0, 1, Limits::default());
    world.create(1, "t", 2);
    let (free, held) = (partition(1, 0), partition(1, 1));
    world.produce(batch(free, 0, 0, 0, 10)).unwrap();
    let begin = |world: &mut World, partition, offset| {
        let request = Request::BeginOffset {
            group: GROUP.to_owned(),
            partition,
            offset: Offset(offset),
        };
        match world.ask(&request) {
            Ok(Reply::Committed { offset, .. }) => offset,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(begin(&mut world, free, 99), Some(Offset(10)), "the end");
    let lsn = world.lsn();
    assert_eq!(begin(&mut world, free, 3), Some(Offset(10)));
    assert_eq!(world.lsn(), lsn, "nothing changed, nothing is logged");
    let (a, Assignment { owned, .. }) = join(&mut world, 0, &[1]).unwrap();
    let epoch = owned[1].1;
    assert_eq!(world.claim(GROUP, held, a, epoch), Ok(None));
    assert_eq!(begin(&mut world, held, 0), Some(Offset(0)));
    world.produce(batch(held, 0, 0, 0, 5)).unwrap();
    world.commit(GROUP, held, a.0, epoch, 4).unwrap();
    assert_eq!(begin(&mut world, held, 0), Some(Offset(4)));
}

/// What a reset overruled is given out anew, as a rule to whoever had it, who goes on from the reset.
#[test]
fn a_member_that_a_reset_fenced_is_given_its_partitions_anew() {
    let mut world = World::new(0, 1, Limits::default());
    world.create(1, "t", 2);
    let (a, Assignment { owned, version, .. }) = join(&mut world, 0, &[1]).unwrap();
    for (at, epoch) in &owned {
        world.produce(batch(*at, 0, 0, 0, 10)).unwrap();
        world.claim(GROUP, *at, a, *epoch).unwrap();
        world.commit(GROUP, *at, a.0, *epoch, 8).unwrap();
    }
    let (at, epoch) = owned[0];
    let reset = Request::ResetOffsets {
        group: GROUP.to_owned(),
        places: vec![(at, Offset(3))],
        force: true,
    };
    let Ok(Reply::Reset { fences }) = world.ask(&reset) else {
        panic!("the reset is refused");
    };
    let fence = fences[0];
    let reassign = Request::ReassignPartitions {
        group: GROUP.to_owned(),
        fenced: vec![(at, fence), (partition(9, 9), fence)],
    };
    world.ask(&reassign).unwrap();
    let anew = assignment(&mut world, a);
    assert!(anew.version > version, "the member is told");
    assert!(anew.owned.contains(&owned[1]), "the other one is untouched");
    let (_, since) = *anew.owned.iter().find(|(held, _)| *held == at).unwrap();
    assert!(since > epoch && anew.under(since) > fence);
    assert_eq!(world.claim(GROUP, at, a, since), Ok(Some(Offset(3))));
    world.commit(GROUP, at, a.0, since, 4).unwrap();
    // Told twice, or late: the fence is below what holds.
    let lsn = world.lsn();
    world.ask(&reassign).unwrap();
    assert_eq!(world.lsn(), lsn);
    // One that was being moved goes where it was to go.
    let (b, _) = join(&mut world, 0, &[1]).unwrap();
    let asked_back = assignment(&mut world, a);
    let moving = asked_back.revoking[0];
    let fenced = vec![(moving, asked_back.joined.max(anew.under(since)))];
    world
        .ask(&Request::ReassignPartitions {
            group: GROUP.to_owned(),
            fenced,
        })
        .unwrap();
    let given = assignment(&mut world, b).owned;
    assert_eq!(
        given.iter().map(|(at, _)| *at).collect::<Vec<_>>(),
        [moving]
    );
    assert!(world.replayed() == world.state);
}

/// Two streams under one member id: the one that joined last is the member. The other is fenced where
/// the partitions are kept, and takes nothing from it at the home: neither by leaving nor by releasing.
#[test]
fn joining_again_fences_the_incarnation_of_before() {
    let mut world = World::new(0, 1, Limits::default());
    world.create(1, "t", 2);
    let (a, first) = join(&mut world, 0, &[1]).unwrap();
    let (at, epoch) = first.owned[0];
    world.produce(batch(at, 0, 0, 0, 10)).unwrap();
    world.claim(GROUP, at, a, first.under(epoch)).unwrap();
    world.commit(GROUP, at, a.0, epoch, 4).unwrap();
    let (_, second) = join(&mut world, a.0, &[1]).unwrap();
    let (held, since) = second.owned[0];
    assert_eq!((held, since), (at, epoch), "nobody had it between");
    let under = second.under(since);
    assert!(under > epoch && second.version > first.version);
    assert_eq!(world.claim(GROUP, at, a, under), Ok(Some(Offset(4))));
    let fenced = Refusal::MemberFenced {
        member: a,
        sent: epoch,
        current: under,
    };
    assert_eq!(world.commit(GROUP, at, a.0, epoch, 5), Err(fenced.clone()));
    assert_eq!(world.claim(GROUP, at, a, epoch), Err(fenced));
    world.commit(GROUP, at, a.0, under, 6).unwrap();
    let replaced = Refusal::MemberReplaced {
        group: GROUP.to_owned(),
        member: a,
        joined: first.joined,
        current: second.joined,
    };
    let group = || GROUP.to_owned();
    let late = [
        Request::LeaveGroup {
            group: group(),
            member: a,
            joined: first.joined,
        },
        Request::ReleasePartitions {
            group: group(),
            member: a,
            joined: first.joined,
            partitions: vec![at],
        },
        Request::GroupAssignment {
            group: group(),
            member: a,
            joined: first.joined,
        },
    ];
    for request in late {
        assert_eq!(world.ask(&request), Err(replaced.clone()));
    }
    assert_eq!(assignment(&mut world, a), second);
    // What it was to let go it has let go with its end.
    let (b, _) = join(&mut world, 0, &[1]).unwrap();
    assert_eq!(assignment(&mut world, a).revoking.len(), 1);
    join(&mut world, a.0, &[1]).unwrap();
    assert_eq!(assignment(&mut world, b).owned.len(), 1);
    let snapshot = world.state.snapshot(None, usize::MAX).bytes;
    let limits = Limits::default();
    let restored = State::restore(ShardId(0), 1, limits, world.lsn(), [&snapshot]).unwrap();
    assert!(restored == world.state && world.replayed() == world.state);
}

#[test]
fn groups_are_listed_with_how_they_stand() {
    let mut world = World::new(0, 1, Limits::default());
    world.create(1, "t", 2);
    let (a, Assignment { owned, .. }) = join(&mut world, 0, &[1]).unwrap();
    for (at, epoch) in &owned {
        world.produce(batch(*at, 0, 0, 0, 10)).unwrap();
        world.claim(GROUP, *at, a, *epoch).unwrap();
    }
    world.commit(GROUP, owned[0].0, a.0, owned[0].1, 8).unwrap();
    let list = |world: &mut World, after: &str| {
        let after = after.to_owned();
        match world.ask(&Request::ListGroups { after }) {
            Ok(Reply::Groups { groups, more }) => (groups, more),
            other => panic!("{other:?}"),
        }
    };
    let (groups, more) = list(&mut world, "");
    let [group] = &groups[..] else {
        panic!("{groups:?}")
    };
    assert_eq!((group.name.as_str(), more), (GROUP, false));
    assert_eq!(group.home, Some((Standing::Stable, 1)));
    assert_eq!(
        group.lag,
        [(TopicId([1; 16]), 12)],
        "2 of one, all of the other"
    );
    assert!(!assignment(&mut world, a).moves);
    let (b, of_b) = join(&mut world, 0, &[1]).unwrap();
    assert_eq!(
        list(&mut world, "").0[0].home,
        Some((Standing::Rebalancing, 2))
    );
    assert!(of_b.moves && assignment(&mut world, a).moves);
    let asked_back = assignment(&mut world, a).revoking;
    release(&mut world, a, asked_back);
    assert!(!assignment(&mut world, a).moves && !assignment(&mut world, b).moves);
    for n in 0..250 {
        let group = format!("x{n:03}");
        world
            .commit(&group, owned[0].0, 0, GroupEpoch(0), 0)
            .unwrap();
    }
    let (mut all, mut after) = (Vec::new(), String::new());
    loop {
        let (groups, more) = list(&mut world, &after);
        all.extend(groups.into_iter().map(|group| group.name));
        after.clone_from(all.last().expect("some"));
        if !more {
            break;
        }
    }
    assert_eq!(all.len(), 251);
    assert!(all.is_sorted());
}

/// A stream that joins again says which join it is: another that took the member since keeps it.
#[test]
fn a_stream_that_was_replaced_does_not_take_its_member_back() {
    let mut world = World::new(0, 1, Limits::default());
    world.create(1, "t", 2);
    world.create(2, "u", 2);
    let again = |member: MemberId, joined: GroupEpoch| Request::JoinGroup {
        group: GROUP.to_owned(),
        member,
        again: Some(joined),
        client: "client".to_owned(),
        topics: vec![TopicId([2; 16])],
        session_timeout_ms: 10_000,
    };
    let (member, older) = join(&mut world, 0, &[1]).unwrap();
    let (_, newer) = join(&mut world, member.0, &[1]).unwrap();
    let refused = world.ask(&again(member, older.joined));
    assert_eq!(
        refused,
        Err(Refusal::MemberReplaced {
            group: GROUP.to_owned(),
            member,
            joined: older.joined,
            current: newer.joined,
        })
    );
    assert_eq!(joined(&mut world, member), newer.joined);
    assert_eq!(assignment(&mut world, member).owned, newer.owned);
    // The one that has it may.
    match world.ask(&again(member, newer.joined)) {
        Ok(Reply::Joined { assignment, .. }) => assert!(assignment.joined > newer.joined),
        other => panic!("{other:?}"),
    }
}

/// A description of some partitions says nothing of others, but for the topics there are.
#[test]
fn a_group_is_described_as_far_as_it_is_asked_for() {
    let mut world = World::new(0, 1, Limits::default());
    world.create(1, "t", 40);
    let (member, assignment) = join(&mut world, 0, &[1]).unwrap();
    assert_eq!(assignment.owned.len(), 40);
    let reset = Request::ResetOffsets {
        group: GROUP.to_owned(),
        places: (0..40)
            .map(|index| (partition(1, index), Offset(0)))
            .collect(),
        force: true,
    };
    world.ask(&reset).unwrap();
    let mut described = |of: Option<Vec<Partition>>| {
        let group = GROUP.to_owned();
        match world.ask(&Request::DescribeGroup { group, of }) {
            Ok(Reply::Group(info)) => info,
            other => panic!("{other:?}"),
        }
    };
    let all = described(None);
    assert_eq!(
        (all.offsets.len(), all.members[0].partitions.len()),
        (40, 40)
    );
    let nothing = described(Some(Vec::new()));
    assert_eq!(nothing.topics, [TopicId([1; 16])]);
    assert_eq!(nothing.members[0].member, member);
    assert!(nothing.offsets.is_empty() && nothing.members[0].partitions.is_empty());
    let gone = partition(9, 0);
    let some = vec![partition(1, 7), gone, partition(1, 3)];
    let some = described(Some(some));
    assert_eq!(
        some.offsets,
        [all.offsets[3].clone(), all.offsets[7].clone()]
    );
    assert_eq!(
        some.members[0].partitions,
        [partition(1, 7), partition(1, 3)]
    );
}
