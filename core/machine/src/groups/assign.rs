//! Who should own which partition of a group: sticky, balanced, incremental, deterministic.
//!
//! In the spirit of KIP-429 (cooperative: a partition moves only after its owner let go) and KIP-848
//! (the broker assigns). A partition stays with its owner unless that owner has at least two more
//! than a member that could take it; free ones go to the member with fewest. With equal
//! subscriptions loads differ by at most one, and no move happens that balance does not need. With
//! unequal ones no single move improves the balance. Absent on purpose: epochs and facts.

use std::collections::{BTreeMap, BTreeSet};

use millstream_batch::ids::{MemberId, Partition, TopicId};

/// Who owns a partition now, as the plan needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) member: MemberId,
    /// Already asked to let go: the first to move again.
    pub(super) revoking: bool,
}

/// The wanted owner of every partition in `partitions`; none when nobody subscribes to its topic.
///
/// `subscriptions` holds sorted topics by member; `owners` the partitions that a living member owns.
pub(super) fn plan(
    subscriptions: &BTreeMap<MemberId, &[TopicId]>,
    partitions: &BTreeSet<Partition>,
    owners: &BTreeMap<Partition, Owner>,
) -> BTreeMap<Partition, MemberId> {
    let mut loads = Loads::new(subscriptions);
    let mut wanted = Vec::with_capacity(partitions.len());
    for partition in partitions {
        let owner = owners
            .get(partition)
            .filter(|owner| loads.subscribes(owner.member, partition.topic));
        if let Some(owner) = owner {
            loads.raise(owner.member);
        }
        let revoking = owner.is_some_and(|owner| owner.revoking);
        wanted.push(Wanted {
            partition: *partition,
            member: owner.map(|owner| owner.member),
            revoking,
        });
    }
    for wanted in wanted.iter_mut().filter(|wanted| wanted.member.is_none()) {
        wanted.member = loads.least_of(wanted.partition.topic);
        if let Some(member) = wanted.member {
            loads.raise(member);
        }
    }
    let mut lists: Lists = BTreeMap::new();
    for last in [false, true] {
        for (at, wanted) in wanted
            .iter()
            .enumerate()
            .filter(|(_, wanted)| wanted.revoking == last)
        {
            if let (Some(member), Some(class)) =
                (wanted.member, loads.class(wanted.partition.topic))
            {
                lists.entry((member, class)).or_default().push(at);
            }
        }
    }
    while level(&mut loads, &mut lists, &mut wanted) {}
    wanted
        .into_iter()
        .filter_map(|wanted| Some((wanted.partition, wanted.member?)))
        .collect()
}

struct Wanted {
    partition: Partition,
    member: Option<MemberId>,
    revoking: bool,
}

/// Where in the plan the partitions of a member are whose topics have the same subscribers. The last
/// moves first.
type Lists = BTreeMap<(MemberId, usize), Vec<usize>>;

/// Lets the most loaded members give, each to the least loaded that could take, while that is at least
/// two behind. Every move lowers the sum of squares of the loads, so this ends. Giving from the top
/// is what keeps moves few: whoever receives has less than it will end with.
fn level(loads: &mut Loads<'_>, lists: &mut Lists, wanted: &mut [Wanted]) -> bool {
    let mut givers: BTreeSet<(u32, MemberId)> = loads
        .members
        .iter()
        .map(|(id, member)| (member.load, *id))
        .collect();
    let mut moved = false;
    while let Some((load, giver)) = givers.pop_last() {
        let classes = loads.members[&giver].classes.iter().copied();
        let takers = classes
            .filter(|class| {
                lists
                    .get(&(giver, *class))
                    .is_some_and(|list| !list.is_empty())
            })
            .filter_map(|class| {
                loads
                    .least(class)
                    .map(|(least, taker)| (least, taker, class))
            });
        let Some((least, taker, class)) = takers.min().filter(|(least, ..)| load > least + 1)
        else {
            continue;
        };
        let at = lists
            .get_mut(&(giver, class))
            .and_then(Vec::pop)
            .expect("the list was not empty");
        lists.entry((taker, class)).or_default().push(at);
        wanted[at].member = Some(taker);
        let waits = givers.remove(&(least, taker));
        loads.lower(giver);
        loads.raise(taker);
        givers.insert((load - 1, giver));
        if waits {
            givers.insert((least + 1, taker));
        }
        moved = true;
    }
    moved
}

/// Partitions per member, ranked within each class: topics that have the same subscribers. In most
/// groups all members subscribe to the same topics, and there is one class.
struct Loads<'a> {
    subscriptions: &'a BTreeMap<MemberId, &'a [TopicId]>,
    members: BTreeMap<MemberId, Load>,
    classes: BTreeMap<TopicId, usize>,
    ranked: Vec<BTreeSet<(u32, MemberId)>>,
}

#[derive(Default)]
struct Load {
    load: u32,
    classes: Vec<usize>,
}

impl<'a> Loads<'a> {
    fn new(subscriptions: &'a BTreeMap<MemberId, &'a [TopicId]>) -> Self {
        let mut subscribers: BTreeMap<TopicId, Vec<MemberId>> = BTreeMap::new();
        for (member, topics) in subscriptions {
            for topic in *topics {
                subscribers.entry(*topic).or_default().push(*member);
            }
        }
        let mut members: BTreeMap<_, _> = subscriptions
            .keys()
            .map(|member| (*member, Load::default()))
            .collect();
        let mut known: BTreeMap<Vec<MemberId>, usize> = BTreeMap::new();
        let mut classes = BTreeMap::new();
        let mut ranked = Vec::new();
        for (topic, subscribers) in subscribers {
            let class = *known.entry(subscribers).or_insert_with_key(|subscribers| {
                for member in subscribers {
                    members
                        .get_mut(member)
                        .expect("subscribers are members")
                        .classes
                        .push(ranked.len());
                }
                ranked.push(subscribers.iter().map(|member| (0, *member)).collect());
                ranked.len() - 1
            });
            classes.insert(topic, class);
        }
        Self {
            subscriptions,
            members,
            classes,
            ranked,
        }
    }

    fn subscribes(&self, member: MemberId, topic: TopicId) -> bool {
        self.subscriptions
            .get(&member)
            .is_some_and(|topics| topics.binary_search(&topic).is_ok())
    }

    fn class(&self, topic: TopicId) -> Option<usize> {
        self.classes.get(&topic).copied()
    }

    fn least(&self, class: usize) -> Option<(u32, MemberId)> {
        self.ranked[class].first().copied()
    }

    fn least_of(&self, topic: TopicId) -> Option<MemberId> {
        self.least(self.class(topic)?).map(|(_, member)| member)
    }

    fn raise(&mut self, member: MemberId) {
        self.shift(member, |load| load + 1);
    }

    fn lower(&mut self, member: MemberId) {
        self.shift(member, |load| load - 1);
    }

    fn shift(&mut self, id: MemberId, shift: impl Fn(u32) -> u32) {
        let member = self.members.get_mut(&id).expect("a member has a load");
        let before = member.load;
        member.load = shift(before);
        for class in &member.classes {
            self.ranked[*class].remove(&(before, id));
            self.ranked[*class].insert((member.load, id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(id: u8) -> TopicId {
        TopicId([id; 16])
    }

    fn all(topic: TopicId, count: u32) -> BTreeSet<Partition> {
        (0..count).map(|index| Partition { topic, index }).collect()
    }

    fn owned(wanted: &BTreeMap<Partition, MemberId>) -> BTreeMap<Partition, Owner> {
        wanted
            .iter()
            .map(|(partition, member)| {
                (
                    *partition,
                    Owner {
                        member: *member,
                        revoking: false,
                    },
                )
            })
            .collect()
    }

    fn loads(wanted: &BTreeMap<Partition, MemberId>, members: u64) -> Vec<usize> {
        (1..=members)
            .map(|member| wanted.values().filter(|owner| owner.0 == member).count())
            .collect()
    }

    #[test]
    fn join_moves_no_more_than_the_newcomers_share() {
        let topics = [topic(1)];
        for partitions in [1_u32, 2, 7, 12, 100] {
            let all = all(topic(1), partitions);
            let mut wanted = BTreeMap::new();
            for members in 1..=20_u64 {
                let subscriptions = (1..=members)
                    .map(|member| (MemberId(member), topics.as_slice()))
                    .collect();
                let next = plan(&subscriptions, &all, &owned(&wanted));
                let moved = wanted
                    .iter()
                    .filter(|(partition, owner)| next[partition] != **owner)
                    .count();
                assert!(
                    moved <= (partitions as usize).div_ceil(members as usize),
                    "{partitions} {members}: {moved}"
                );
                let loads = loads(&next, members);
                assert!(
                    loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1,
                    "{loads:?}"
                );
                wanted = next;
            }
        }
    }

    #[test]
    fn leaving_moves_only_what_the_leaver_owned() {
        let topics = [topic(1)];
        let all = all(topic(1), 30);
        let members = |ids: &[u64]| {
            ids.iter()
                .map(|id| (MemberId(*id), topics.as_slice()))
                .collect()
        };
        let before = plan(&members(&[1, 2, 3]), &all, &BTreeMap::new());
        let mut owners = owned(&before);
        owners.retain(|_, owner| owner.member.0 != 2);
        let after = plan(&members(&[1, 3]), &all, &owners);
        for (partition, owner) in &before {
            assert!(owner.0 == 2 || after[partition] == *owner);
        }
        assert_eq!(loads(&after, 3), [15, 0, 15]);
    }

    #[test]
    fn topics_go_only_to_their_subscribers() {
        let (a, b) = ([topic(1)], [topic(1), topic(2)]);
        let subscriptions =
            BTreeMap::from([(MemberId(1), a.as_slice()), (MemberId(2), b.as_slice())]);
        let mut partitions = all(topic(1), 4);
        partitions.extend(all(topic(2), 4));
        partitions.extend(all(topic(3), 1));
        let wanted = plan(&subscriptions, &partitions, &BTreeMap::new());
        assert_eq!(wanted.len(), 8, "nobody subscribes to the third topic");
        assert!(
            wanted
                .iter()
                .all(|(partition, member)| partition.topic == topic(1) || member.0 == 2)
        );
        assert_eq!(loads(&wanted, 2), [4, 4]);
    }

    #[test]
    fn what_is_asked_back_already_moves_first() {
        let topics = [topic(1)];
        let subscriptions = BTreeMap::from([
            (MemberId(1), topics.as_slice()),
            (MemberId(2), topics.as_slice()),
        ]);
        let all = all(topic(1), 4);
        let mut owners = owned(
            &all.iter()
                .map(|partition| (*partition, MemberId(1)))
                .collect(),
        );
        for index in [2, 3] {
            owners
                .get_mut(&Partition {
                    topic: topic(1),
                    index,
                })
                .unwrap()
                .revoking = true;
        }
        let wanted = plan(&subscriptions, &all, &owners);
        let moved: Vec<_> = wanted
            .iter()
            .filter(|(_, member)| member.0 == 2)
            .map(|(p, _)| p.index)
            .collect();
        assert_eq!(moved, [2, 3]);
    }

    /// Subscriptions of every shape, drawn from a counter's bits.
    #[test]
    fn no_single_move_would_improve_the_balance() {
        for bits in 0..4_096_u32 {
            let of = |member: u32| -> Vec<TopicId> {
                (0..3)
                    .filter(|topic| bits >> (3 * member + topic) & 1 == 1)
                    .map(|id| topic(id as u8))
                    .collect()
            };
            let topics: Vec<_> = (0..4).map(of).collect();
            let subscriptions: BTreeMap<_, _> = (0..4)
                .map(|at| (MemberId(at as u64 + 1), topics[at].as_slice()))
                .collect();
            let mut partitions = all(topic(0), 1 + bits % 5);
            partitions.extend(all(topic(1), 3));
            partitions.extend(all(topic(2), bits % 7));
            let owners = partitions.iter().map(|partition| {
                (
                    *partition,
                    Owner {
                        member: MemberId(u64::from(partition.index % 2 + 1)),
                        revoking: false,
                    },
                )
            });
            let wanted = plan(&subscriptions, &partitions, &owners.collect());
            let loads = loads(&wanted, 4);
            for partition in &partitions {
                let takers: Vec<_> = (0..4)
                    .filter(|member| topics[*member].contains(&partition.topic))
                    .collect();
                let Some(owner) = wanted.get(partition) else {
                    assert!(
                        takers.is_empty(),
                        "{bits}: {partition} has subscribers and no owner"
                    );
                    continue;
                };
                let load = loads[owner.0 as usize - 1];
                assert!(takers.contains(&(owner.0 as usize - 1)));
                assert!(
                    takers.iter().all(|taker| load <= loads[*taker] + 1),
                    "{bits}: {loads:?}"
                );
            }
        }
    }
}
