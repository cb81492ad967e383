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
pub(crate) struct Owner {
    pub(crate) member: MemberId,
    /// Already asked to let go: the first to move again.
    pub(crate) revoking: bool,
}

/// The wanted owner of every partition in `partitions`; none when nobody subscribes to its topic.
///
/// `subscriptions` holds sorted topics by member; `owners` the partitions that a living member owns.
pub(crate) fn plan(
    subscriptions: &BTreeMap<MemberId, &[TopicId]>,
    partitions: &BTreeSet<Partition>,
    owners: &BTreeMap<Partition, Owner>,
) -> BTreeMap<Partition, MemberId> {
    let mut loads = Loads::new(subscriptions);
    let mut wanted = BTreeMap::new();
    let mut free = Vec::new();
    for partition in partitions {
        match owners.get(partition) {
            Some(owner) if loads.subscribes(owner.member, partition.topic) => {
                loads.raise(owner.member);
                wanted.insert(*partition, owner.member);
            }
            _ => free.push(*partition),
        }
    }
    for partition in free {
        if let Some(member) = loads.least(partition.topic) {
            loads.raise(member);
            wanted.insert(partition, member);
        }
    }
    let mut lists: BTreeMap<(MemberId, TopicId), Vec<Partition>> = BTreeMap::new();
    let revoking =
        |partition: &Partition| owners.get(partition).is_some_and(|owner| owner.revoking);
    for last in [false, true] {
        for (partition, member) in wanted
            .iter()
            .filter(|(partition, _)| revoking(partition) == last)
        {
            lists
                .entry((*member, partition.topic))
                .or_default()
                .push(*partition);
        }
    }
    while level(&mut loads, &mut lists, &mut wanted) {}
    wanted
}

/// Lets the most loaded members give, each to the least loaded that could take, while that is at least
/// two behind. Every move lowers the sum of squares of the loads, so this ends. Giving from the top
/// is what keeps moves few: whoever receives has less than it will end with.
fn level(
    loads: &mut Loads<'_>,
    lists: &mut BTreeMap<(MemberId, TopicId), Vec<Partition>>,
    wanted: &mut BTreeMap<Partition, MemberId>,
) -> bool {
    let mut givers: BTreeSet<(u32, MemberId)> = loads
        .loads
        .iter()
        .map(|(member, load)| (*load, *member))
        .collect();
    let mut moved = false;
    while let Some((load, giver)) = givers.pop_last() {
        let topics = loads.subscriptions[&giver].iter().copied();
        let takers = topics
            .filter(|topic| {
                lists
                    .get(&(giver, *topic))
                    .is_some_and(|list| !list.is_empty())
            })
            .filter_map(|topic| {
                loads
                    .least(topic)
                    .map(|taker| (loads.of(taker), taker, topic))
            });
        let Some((_, taker, topic)) = takers.min().filter(|(least, ..)| load > least + 1) else {
            continue;
        };
        let partition = lists
            .get_mut(&(giver, topic))
            .and_then(Vec::pop)
            .expect("the list was not empty");
        lists.entry((taker, topic)).or_default().push(partition);
        wanted.insert(partition, taker);
        let waits = givers.remove(&(loads.of(taker), taker));
        loads.lower(giver);
        loads.raise(taker);
        givers.insert((loads.of(giver), giver));
        if waits {
            givers.insert((loads.of(taker), taker));
        }
        moved = true;
    }
    moved
}

/// Partitions per member, ranked within each topic's subscribers.
struct Loads<'a> {
    subscriptions: &'a BTreeMap<MemberId, &'a [TopicId]>,
    loads: BTreeMap<MemberId, u32>,
    ranked: BTreeMap<TopicId, BTreeSet<(u32, MemberId)>>,
}

impl<'a> Loads<'a> {
    fn new(subscriptions: &'a BTreeMap<MemberId, &'a [TopicId]>) -> Self {
        let mut ranked: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for (member, topics) in subscriptions {
            for topic in *topics {
                ranked.entry(*topic).or_default().insert((0, *member));
            }
        }
        Self {
            subscriptions,
            loads: subscriptions.keys().map(|member| (*member, 0)).collect(),
            ranked,
        }
    }

    fn subscribes(&self, member: MemberId, topic: TopicId) -> bool {
        self.subscriptions
            .get(&member)
            .is_some_and(|topics| topics.binary_search(&topic).is_ok())
    }

    fn of(&self, member: MemberId) -> u32 {
        self.loads[&member]
    }

    fn least(&self, topic: TopicId) -> Option<MemberId> {
        self.ranked.get(&topic)?.first().map(|(_, member)| *member)
    }

    fn raise(&mut self, member: MemberId) {
        self.set(member, self.of(member) + 1);
    }

    fn lower(&mut self, member: MemberId) {
        self.set(member, self.of(member) - 1);
    }

    fn set(&mut self, member: MemberId, load: u32) {
        let before = self
            .loads
            .insert(member, load)
            .expect("a member has a load");
        for topic in self.subscriptions[&member] {
            let ranked = self
                .ranked
                .get_mut(topic)
                .expect("every subscribed topic is ranked");
            ranked.remove(&(before, member));
            ranked.insert((load, member));
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
}
