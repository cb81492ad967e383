//! Calls that wait for something to happen, with their deadlines.

use std::collections::BTreeSet;

use millstream_batch::ids::{GroupEpoch, MemberId, PartitionSlot};
use rustc_hash::FxHashMap;

use crate::call::{Fetch, Seen};

/// What a call waits for.
#[derive(Debug)]
pub(crate) enum Wait {
    /// Records released in this partition.
    Records {
        slot: PartitionSlot,
        fetch: Fetch,
        started_us: u64,
    },
    /// Another assignment of this member.
    Assignment {
        group: String,
        member: MemberId,
        joined: GroupEpoch,
        seen: Seen,
    },
    /// A newer catalog.
    Catalog { seen: u64 },
    /// That every shard has forgotten a deleted group.
    Forgotten { group: String },
    /// That every shard knows the catalogue up to here.
    Spread { revision: u64 },
}

/// All waiting calls by token, and their deadlines in order.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    calls: FxHashMap<u64, (Wait, u64)>,
    deadlines: BTreeSet<(u64, u64)>,
    by_slot: FxHashMap<PartitionSlot, BTreeSet<u64>>,
    by_group: FxHashMap<String, BTreeSet<u64>>,
    catalog: BTreeSet<u64>,
    forgotten: BTreeSet<u64>,
    spread: BTreeSet<u64>,
}

impl Waiting {
    pub(crate) fn len(&self) -> usize {
        self.calls.len()
    }

    pub(crate) fn insert(&mut self, token: u64, deadline_us: u64, wait: Wait) {
        match &wait {
            Wait::Records { slot, .. } => {
                self.by_slot.entry(*slot).or_default().insert(token);
            }
            Wait::Assignment { group, .. } => match self.by_group.get_mut(group) {
                Some(tokens) => drop(tokens.insert(token)),
                None => drop(self.by_group.insert(group.clone(), BTreeSet::from([token]))),
            },
            Wait::Catalog { .. } => drop(self.catalog.insert(token)),
            Wait::Forgotten { .. } => drop(self.forgotten.insert(token)),
            Wait::Spread { .. } => drop(self.spread.insert(token)),
        }
        self.deadlines.insert((deadline_us, token));
        let before = self.calls.insert(token, (wait, deadline_us));
        assert!(before.is_none(), "token {token} waits twice");
    }

    /// Stop waiting: it is answered now, or cancelled.
    pub(crate) fn remove(&mut self, token: u64) -> Option<Wait> {
        let (wait, deadline) = self.calls.remove(&token)?;
        self.deadlines.remove(&(deadline, token));
        match &wait {
            Wait::Records { slot, .. } => {
                if let Some(tokens) = self.by_slot.get_mut(slot) {
                    tokens.remove(&token);
                    if tokens.is_empty() {
                        self.by_slot.remove(slot);
                    }
                }
            }
            Wait::Assignment { group, .. } => {
                if let Some(tokens) = self.by_group.get_mut(group) {
                    tokens.remove(&token);
                    if tokens.is_empty() {
                        self.by_group.remove(group);
                    }
                }
            }
            Wait::Catalog { .. } => drop(self.catalog.remove(&token)),
            Wait::Forgotten { .. } => drop(self.forgotten.remove(&token)),
            Wait::Spread { .. } => drop(self.spread.remove(&token)),
        }
        Some(wait)
    }

    /// What a waiting call waits for.
    pub(crate) fn wait(&self, token: u64) -> Option<&Wait> {
        self.calls.get(&token).map(|(wait, _)| wait)
    }

    /// A call whose deadline has come, and what it waited for.
    pub(crate) fn expired(&mut self, now_us: u64) -> Option<(u64, Wait)> {
        let &(deadline, token) = self.deadlines.first()?;
        if deadline > now_us {
            return None;
        }
        Some((
            token,
            self.remove(token)
                .expect("a deadline belongs to a waiting call"),
        ))
    }

    /// The earliest deadline, in monotonic microseconds.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.deadlines.first().map(|&(deadline, _)| deadline)
    }

    /// Those who wait for records of `slot`, in token order.
    pub(crate) fn of_slot(&self, slot: PartitionSlot) -> Vec<u64> {
        listed(self.by_slot.get(&slot))
    }

    pub(crate) fn of_group(&self, group: &str) -> Vec<u64> {
        listed(self.by_group.get(group))
    }

    pub(crate) fn of_catalog(&self) -> Vec<u64> {
        listed(Some(&self.catalog))
    }

    pub(crate) fn of_spread(&self) -> Vec<u64> {
        listed(Some(&self.spread))
    }

    pub(crate) fn of_forgotten(&self) -> Vec<u64> {
        listed(Some(&self.forgotten))
    }

    /// Everyone, in token order: the shard stops.
    pub(crate) fn tokens(&self) -> Vec<u64> {
        let mut tokens: Vec<u64> = self.calls.keys().copied().collect();
        tokens.sort_unstable();
        tokens
    }
}

fn listed(tokens: Option<&BTreeSet<u64>>) -> Vec<u64> {
    tokens.map_or_else(Vec::new, |tokens| tokens.iter().copied().collect())
}

#[cfg(test)]
mod tests {
    use millstream_batch::ids::{Offset, Partition};

    use super::*;

    fn records(slot: u32) -> Wait {
        let fetch = Fetch {
            partition: Partition::default(),
            offset: Offset(0),
            leader_epoch: None,
            bytes_max: 1,
            wait_ms: 1,
        };
        Wait::Records {
            slot: PartitionSlot(slot),
            fetch,
            started_us: 0,
        }
    }

    #[test]
    fn each_call_expires_once_and_leaves_every_list() {
        let mut waiting = Waiting::default();
        waiting.insert(1, 30, records(7));
        waiting.insert(2, 10, records(7));
        waiting.insert(3, 20, Wait::Catalog { seen: 0 });
        assert_eq!(waiting.next_deadline(), Some(10));
        assert_eq!(waiting.expired(20).map(|(t, _)| t), Some(2));
        assert_eq!(waiting.expired(20).map(|(t, _)| t), Some(3));
        assert!(waiting.expired(20).is_none());
        assert_eq!(
            (waiting.of_slot(PartitionSlot(7)), waiting.of_catalog()),
            (vec![1], vec![])
        );
        assert!(waiting.remove(1).is_some() && waiting.remove(1).is_none());
        assert_eq!((waiting.len(), waiting.next_deadline()), (0, None));
    }
}
