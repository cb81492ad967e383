//! Claims for nobody: former owners of partitions that nobody owns are shut out where those are kept, so that
//! consumers with fixed partitions may commit there again.
//!
//! From the state: what a group lists as unowned is claimed whenever the group changed and after a start, and
//! again until the partition's shard has answered. Claiming twice does nothing. Absent on purpose: who owns
//! what (the machine).

use std::collections::{BTreeMap, BTreeSet};

use millstream_batch::ids::{GroupEpoch, MemberId, Partition};
use millstream_machine::request::Request;

use super::{Effect, ShardCore};
use crate::call::About;

/// How long answers are waited for before all is asked again: doubled each time, up to the longest.
const AGAIN_MS: u64 = 20;
const AGAIN_MS_MAX: u64 = 5_000;

#[derive(Debug, Default)]
pub(super) struct Claiming {
    /// Groups whose members changed since they were last looked at.
    changed: BTreeSet<String>,
    /// Asked of other shards and not answered: the epoch of the claim.
    asked: BTreeMap<(String, Partition), GroupEpoch>,
    again_us: Option<u64>,
    after_ms: u64,
}

impl Claiming {
    pub(super) fn next(&self) -> Option<u64> {
        self.again_us
    }

    pub(super) fn group_changed(&mut self, group: String) {
        self.changed.insert(group);
    }
}

impl ShardCore {
    /// What other shards are asked is durable here first.
    pub(super) fn claim_unowned(&mut self) {
        if self.claiming.changed.is_empty()
            || self.installed_state > self.settled()
            || !self.may_write()
        {
            return;
        }
        for group in std::mem::take(&mut self.claiming.changed) {
            let unowned: Vec<_> = self.state.unowned(&group).collect();
            for (partition, epoch) in unowned {
                if partition.shard(self.config.shards) == self.config.shard {
                    self.maintain(&claim(&group, partition, epoch));
                } else {
                    let key = (group.clone(), partition);
                    self.claiming.asked.insert(key, epoch);
                    self.ask_claim(&group, partition, epoch);
                }
            }
        }
        if !self.claiming.asked.is_empty() && self.claiming.again_us.is_none() {
            self.claiming.after_ms = AGAIN_MS;
            self.claiming.again_us = Some(self.now.after_ms(AGAIN_MS));
        }
    }

    /// After recovery: whatever may have been left undone is looked at again.
    pub(super) fn look_at_all_groups(&mut self) {
        let groups = self.state.groups_at_home().map(str::to_owned);
        self.claiming.changed.extend(groups);
    }

    pub(super) fn claims_tick(&mut self) {
        if !self.may_write() {
            self.claiming.again_us = None; // a start asks again
            return;
        }
        let is_due = |at: u64| at <= self.now.mono_us;
        if !self.claiming.again_us.is_some_and(is_due) {
            return;
        }
        let asked = std::mem::take(&mut self.claiming.asked);
        for ((group, partition), epoch) in &asked {
            // What somebody owns again needs no claim.
            if self.state.is_unowned(group, *partition, *epoch) {
                self.ask_claim(group, *partition, *epoch);
                let key = (group.clone(), *partition);
                self.claiming.asked.insert(key, *epoch);
            }
        }
        self.claiming.after_ms = (self.claiming.after_ms * 2).min(AGAIN_MS_MAX);
        let waits = !self.claiming.asked.is_empty();
        self.claiming.again_us = waits.then(|| self.now.after_ms(self.claiming.after_ms));
    }

    /// A partition's shard has answered: the claim holds, or a later one does, or the partition is gone.
    pub(super) fn claimed(&mut self, group: String, partition: Partition, epoch: GroupEpoch) {
        let key = (group, partition);
        if self.claiming.asked.get(&key) == Some(&epoch) {
            self.claiming.asked.remove(&key);
        }
        if self.claiming.asked.is_empty() {
            self.claiming.again_us = None;
        }
    }

    fn ask_claim(&mut self, group: &str, partition: Partition, epoch: GroupEpoch) {
        self.effects.push_back(Effect::Tell {
            shard: partition.shard(self.config.shards),
            request: claim(group, partition, epoch),
            about: About::Claim {
                group: group.to_owned(),
                partition,
                epoch,
            },
        });
    }
}

fn claim(group: &str, partition: Partition, epoch: GroupEpoch) -> Request {
    Request::ClaimPartition {
        group: group.to_owned(),
        partition,
        member: MemberId(0),
        epoch,
    }
}
