//! Couriers between shards over a wire that loses, doubles, delays and reorders, each shard crashing alone.
//!
//! A shard is its log: what is not durable is lost by a crash, and the state is made anew from the rest. A
//! message or an answer leaves only when what it was decided on is durable.

mod world;

use std::collections::BTreeMap;

use millstream_batch::ids::{GroupEpoch, MemberId, Partition, ShardId, TopicId, group_home};
use millstream_machine::request::{Refusal, Reply, Request};
use millstream_machine::topics::TopicMeta;
use millstream_machine::{Fact, Limits, Message, Row};

use world::{Rng, Unit, World};

const SHARDS: u16 = 3;
const GROUPS: [&str; 4] = ["g", "h", "ledger", "reports"];

/// What a broken product would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    SentBeforeDurable,
    AcknowledgedBeforeDurable,
    /// A message is taken for the next one, whatever its number.
    NoReceipt,
}

/// On its way to a shard.
#[derive(Clone, Debug)]
enum Mail {
    Message {
        from: ShardId,
        k: u64,
        message: Message,
    },
    Acknowledged {
        by: ShardId,
        last: u64,
    },
}

struct Shard {
    world: World,
    /// Units of the log that a crash leaves.
    durable: usize,
}

struct Cluster {
    shards: Vec<Shard>,
    wire: Vec<(ShardId, Mail)>,
    rng: Rng,
    bug: Option<Bug>,
    /// Deletions that were answered as done by all: the group and its epoch.
    forgotten: u64,
}

impl Cluster {
    fn new(seed: u64, bug: Option<Bug>) -> Self {
        let mut shards: Vec<Shard> = (0..SHARDS)
            .map(|shard| Shard {
                world: World::new(shard, SHARDS, Limits::default()),
                durable: 0,
            })
            .collect();
        let meta: TopicMeta = shards[0].world.create(1, "t", 6);
        for shard in &mut shards {
            let meta = meta.clone();
            shard.world.ask(&Request::ApplyTopic { meta }).unwrap();
            shard.durable = shard.world.log.len();
        }
        Self {
            shards,
            wire: Vec::new(),
            rng: Rng(seed),
            bug,
            forgotten: 0,
        }
    }

    fn home(group: &str) -> usize {
        usize::from(group_home(group, SHARDS).0)
    }

    fn sync(&mut self, shard: usize) {
        self.shards[shard].durable = self.shards[shard].world.log.len();
    }

    fn crash(&mut self, shard: usize) {
        let shard = &mut self.shards[shard];
        shard.world.log.truncate(shard.durable);
        shard.world.state = shard.world.replayed();
    }

    /// Send what is durable, from any message on that is not acknowledged.
    fn send(&mut self, at: usize) {
        let shard = &self.shards[at];
        if shard.durable < shard.world.log.len() && self.bug != Some(Bug::SentBeforeDurable) {
            return;
        }
        let from = ShardId(at as u16);
        for (to, row) in shard.world.state.outboxes() {
            for (k, message) in shard.world.state.outbox(to, row, 0) {
                let message = message.clone();
                self.wire.push((to, Mail::Message { from, k, message }));
            }
        }
    }

    /// Something arrives, or is lost, or comes twice.
    fn deliver(&mut self) {
        if self.wire.is_empty() {
            return;
        }
        let at = self.rng.below(self.wire.len() as u64) as usize;
        let (to, mail) = if self.rng.one_in(3) {
            self.wire[at].clone()
        } else {
            self.wire.swap_remove(at)
        };
        if self.rng.one_in(4) {
            return;
        }
        let shard = &mut self.shards[usize::from(to.0)];
        match mail {
            Mail::Message { from, k, message } => {
                let next = receipts(&shard.world).get(&from.0).map_or(0, Vec::len) as u64 + 1;
                let request = Request::ApplyCourier {
                    from,
                    row: Row::Control,
                    k: if self.bug == Some(Bug::NoReceipt) {
                        next
                    } else {
                        k
                    },
                    message,
                };
                let Ok(Reply::CourierTaken { last }) = shard.world.ask(&request) else {
                    panic!("a destination cannot refuse");
                };
                // The answer waits for the disk, and a crash before takes both.
                if self.bug != Some(Bug::AcknowledgedBeforeDurable) {
                    if self.rng.one_in(3) {
                        return self.crash(usize::from(to.0));
                    }
                    self.sync(usize::from(to.0));
                }
                self.wire.push((from, Mail::Acknowledged { by: to, last }));
            }
            Mail::Acknowledged { by, last } => {
                let request = Request::CourierAcknowledged {
                    to: by,
                    row: Row::Control,
                    last,
                };
                let asked = shard.world.ask(&request);
                assert!(asked.is_ok() || self.bug.is_some(), "{asked:?}");
            }
        }
    }

    /// Consumers without members commit; members join, claim and commit; groups are deleted.
    fn act(&mut self) {
        let group = GROUPS[self.rng.below(4) as usize];
        let home = Self::home(group);
        let partition = Partition {
            topic: TopicId([1; 16]),
            index: self.rng.below(6) as u32,
        };
        let of = usize::from(partition.shard(SHARDS).0);
        match self.rng.below(4) {
            0 => {
                let shard = &mut self.shards[of].world;
                drop(shard.commit(group, partition, 0, GroupEpoch(0), 0));
            }
            1 => {
                let join = Request::JoinGroup {
                    group: group.to_owned(),
                    member: MemberId(0),
                    again: None,
                    client: String::new(),
                    topics: vec![partition.topic],
                    session_timeout_ms: 1,
                };
                let forgetting = self.shards[home].world.state.is_forgetting(group);
                match self.shards[home].world.ask(&join) {
                    Ok(Reply::Joined { assignment, .. }) => {
                        assert!(!forgetting, "a name is free again too early");
                        self.sync(home);
                        for (held, epoch) in assignment.owned.clone() {
                            let of = usize::from(held.shard(SHARDS).0);
                            let member = MemberId(assignment.joined.0);
                            let under = assignment.under(epoch);
                            // Refused where a namesake's fence was above it: then it is claimed again.
                            drop(self.shards[of].world.claim(group, held, member, under));
                        }
                    }
                    Err(Refusal::GroupBeingDeleted(_)) => assert!(forgetting),
                    other => panic!("{other:?}"),
                }
            }
            _ => {
                let delete = Request::DeleteGroup {
                    group: group.to_owned(),
                    force: true,
                };
                let is_deleted = self.shards[home].world.ask(&delete);
                let again = Refusal::GroupBeingDeleted(group.to_owned());
                assert!(is_deleted == Ok(Reply::Done) || is_deleted == Err(again));
                self.forgotten += 1;
            }
        }
    }

    fn live(&mut self) -> Result<(), String> {
        for _ in 0..300 {
            let shard = self.rng.below(u64::from(SHARDS)) as usize;
            match self.rng.below(10) {
                0..=1 => self.act(),
                2 => self.crash(shard),
                3..=4 => self.sync(shard),
                5 => self.send(shard),
                6 if self.rng.one_in(20) => self.wire.clear(),
                _ => self.deliver(),
            }
            check(self)?;
        }
        Ok(())
    }

    /// Everything that is sent arrives, until nothing waits.
    fn settle(&mut self) {
        for _ in 0..200 {
            for shard in 0..self.shards.len() {
                self.sync(shard);
                self.send(shard);
            }
            let waiting = |shard: &Shard| shard.world.state.outboxes().next().is_some();
            if !self.shards.iter().any(waiting) {
                return;
            }
            for (to, mail) in std::mem::take(&mut self.wire) {
                let shard = &mut self.shards[usize::from(to.0)].world;
                let (request, from) = match mail {
                    Mail::Message { from, k, message } => (
                        Request::ApplyCourier {
                            from,
                            row: Row::Control,
                            k,
                            message,
                        },
                        Some(from),
                    ),
                    Mail::Acknowledged { by, last } => (
                        Request::CourierAcknowledged {
                            to: by,
                            row: Row::Control,
                            last,
                        },
                        None,
                    ),
                };
                let reply = shard.ask(&request).unwrap();
                if let (Some(from), Reply::CourierTaken { last }) = (from, reply) {
                    self.wire.push((from, Mail::Acknowledged { by: to, last }));
                }
            }
        }
        panic!("messages are never acknowledged");
    }
}

/// COURIER: what a destination applied is what the source durably sent, once, in order; nothing is trimmed
/// that was not applied. REST: from any state all is acknowledged in the end, also after all mail is lost.
#[test]
fn messages_are_applied_once_and_in_order_over_any_wire() {
    let (mut applied, mut deletions) = (0, 0);
    for seed in 0..300 {
        let mut cluster = Cluster::new(seed, None);
        cluster
            .live()
            .unwrap_or_else(|what| panic!("seed {seed}: {what}"));
        cluster.wire.clear();
        cluster.settle();
        check(&cluster).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
        deletions += cluster.forgotten;
        for shard in &cluster.shards {
            assert!(shard.world.replayed() == shard.world.state, "seed {seed}");
            applied += receipts(&shard.world).values().map(Vec::len).sum::<usize>();
        }
        for group in GROUPS {
            let home = &cluster.shards[Cluster::home(group)].world.state;
            assert!(!home.is_forgetting(group), "seed {seed}");
        }
    }
    assert!(
        applied > 2_000 && deletions > 2_000,
        "{applied} {deletions}"
    );
}

fn facts(log: &[Unit]) -> impl Iterator<Item = Fact> + '_ {
    let facts = log.iter().flat_map(|(_, unit)| unit);
    facts.map(|(kind, bytes)| Fact::decode(*kind, bytes).expect("it was encoded"))
}

/// Numbers of the messages that a shard applied, by source, as its log has them.
fn receipts(world: &World) -> BTreeMap<u16, Vec<u64>> {
    let mut receipts: BTreeMap<u16, Vec<u64>> = BTreeMap::new();
    for fact in facts(&world.log) {
        if let Fact::CourierApplied(fact) = fact {
            receipts.entry(fact.from).or_default().push(fact.k);
        }
    }
    receipts
}

/// What a shard durably sent, by destination: the last message, and up to which it is trimmed.
fn sent(shard: &Shard) -> BTreeMap<u16, (u64, u64)> {
    let mut sent: BTreeMap<u16, (u64, u64)> = BTreeMap::new();
    for fact in facts(&shard.world.log[..shard.durable.min(shard.world.log.len())]) {
        match fact {
            Fact::CourierQueued(fact) => sent.entry(fact.to).or_default().0 = fact.k,
            Fact::CourierTrimmed(fact) => sent.entry(fact.to).or_default().1 = fact.last,
            _ => {}
        }
    }
    sent
}

fn check(cluster: &Cluster) -> Result<(), String> {
    for (at, shard) in cluster.shards.iter().enumerate() {
        for (from, applied) in receipts(&shard.world) {
            let sent = sent(&cluster.shards[usize::from(from)]);
            let (last, _) = sent.get(&(at as u16)).copied().unwrap_or_default();
            if !applied.iter().copied().eq(1..=applied.len() as u64) {
                return Err(format!("shard {at} applied {applied:?} of shard {from}"));
            }
            if applied.len() as u64 > last {
                return Err(format!("shard {at} applied more than shard {from} holds"));
            }
        }
        for (to, (_, trimmed)) in sent(shard) {
            let durable = &cluster.shards[usize::from(to)];
            let durable = durable.durable.min(durable.world.log.len());
            let log = &cluster.shards[usize::from(to)].world.log[..durable];
            let applied = facts(log).filter(
                |fact| matches!(fact, Fact::CourierApplied(a) if usize::from(a.from) == at),
            );
            if trimmed > applied.count() as u64 {
                return Err(format!("shard {at} trimmed what shard {to} may yet lose"));
            }
        }
    }
    Ok(())
}

/// Each bug is seen: so the check is one.
#[test]
fn every_planted_bug_is_caught() {
    for bug in [
        Bug::SentBeforeDurable,
        Bug::AcknowledgedBeforeDurable,
        Bug::NoReceipt,
    ] {
        let caught = (0..300).any(|seed| Cluster::new(seed, Some(bug)).live().is_err());
        assert!(caught, "{bug:?}");
    }
}

/// A message that comes late spares the namesake that was made since.
#[test]
fn a_late_deletion_spares_a_namesake() {
    let mut world = World::new(1, 2, Limits::default());
    let meta = World::new(0, 2, Limits::default()).create(1, "t", 4);
    world.ask(&Request::ApplyTopic { meta }).unwrap();
    let here = |index: u32| Partition {
        topic: TopicId([1; 16]),
        index,
    };
    let mut of_shard = (0..4).map(here).filter(|at| at.shard(2) == ShardId(1));
    let (old, new) = (of_shard.next().unwrap(), of_shard.next().unwrap());
    world.claim("g", old, MemberId(3), GroupEpoch(3)).unwrap();
    world.claim("g", new, MemberId(9), GroupEpoch(9)).unwrap();
    let forget = Request::ApplyCourier {
        from: ShardId(0),
        row: Row::Control,
        k: 1,
        message: Message::ForgetGroup {
            group: "g".to_owned(),
            epoch: GroupEpoch(8),
        },
    };
    for _ in 0..2 {
        assert_eq!(world.ask(&forget), Ok(Reply::CourierTaken { last: 1 }));
        assert_eq!(world.state.counts().offsets, 1, "the namesake's stays");
    }
    world.commit("g", new, 9, GroupEpoch(9), 0).unwrap();
    // Nor does a late claim of the old one's bring it back.
    for epoch in [3, 8] {
        let late = world.claim("g", old, MemberId(3), GroupEpoch(epoch));
        assert!(
            matches!(late, Err(Refusal::MemberFenced { .. })),
            "{late:?}"
        );
    }
    assert_eq!(world.claim("g", old, MemberId(9), GroupEpoch(9)), Ok(None));
}

/// What is queued for a shard that does not answer is bounded: the source refuses, and nothing is lost.
#[test]
fn an_outbox_is_bounded() {
    let limits = Limits {
        outbox: 2,
        ..Limits::default()
    };
    let mut world = World::new(0, 2, limits);
    let at_home = |name: &String| group_home(name, 2) == ShardId(0);
    let names: Vec<String> = (0..)
        .map(|n| format!("g{n}"))
        .filter(at_home)
        .take(3)
        .collect();
    let delete = |group: &str| Request::DeleteGroup {
        group: group.to_owned(),
        force: false,
    };
    world.ask(&delete(&names[0])).unwrap();
    world.ask(&delete(&names[1])).unwrap();
    let full = Refusal::OutboxFull { to: ShardId(1) };
    assert_eq!(world.ask(&delete(&names[2])), Err(full));
    let again = Refusal::GroupBeingDeleted(names[1].clone());
    assert_eq!(world.ask(&delete(&names[1])), Err(again));
    let acknowledge = |last| Request::CourierAcknowledged {
        to: ShardId(1),
        row: Row::Control,
        last,
    };
    assert!(world.ask(&acknowledge(3)).is_err(), "it was never sent");
    world.ask(&acknowledge(1)).unwrap();
    assert!(!world.state.is_forgetting(&names[0]) && world.state.is_forgetting(&names[1]));
    world.ask(&delete(&names[2])).unwrap();
    let lsn = world.lsn();
    world.ask(&acknowledge(1)).unwrap();
    assert_eq!(world.lsn(), lsn, "said before");
}
