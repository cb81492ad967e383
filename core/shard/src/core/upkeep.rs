//! What a shard does by itself: members that went silent, groups whose topics changed, retention,
//! forgotten producers, the interval sync.

use std::cell::Cell;
use std::collections::BTreeMap;

use millstream_batch::ids::{MemberId, Partition, ProducerId, ShardId, TimestampMs};
use millstream_log::SealedRange;
use millstream_machine::request::Request;
use rustc_hash::FxHashMap;

use super::retention::{Age, Keep, new_start, open_start};
use super::{CoreConfig, Effect, Now, Phase, ShardCore, Writes};

/// How long nothing is appended until the log is idle.
const IDLE_MS: u64 = 50;
/// How long retention leaves a shard alone after it has looked at so many ranges of a partition in a
/// file, for each of them: far more than the look takes.
const RETENTION_PAUSE_US: u64 = 10;
/// What a trim costs, in such looks: it is a fact in the log.
const TRIM_COST: u64 = 10;
/// How often a full disk is asked again.
const SPACE_RETRY_MS: u64 = 1_000;

/// When what is due, and who was seen when. Moments are monotonic microseconds.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    /// Topics changed since groups were last looked at.
    pub(super) catalog_changed: bool,
    /// Members by group, and when they were last heard of.
    heard: FxHashMap<String, BTreeMap<MemberId, u64>>,
    members_us: Option<u64>,
    retention_us: Option<u64>,
    /// A file that was sealed brings retention forward, but not before this.
    retention_not_before_us: u64,
    producers_us: Option<u64>,
    sync_us: Option<u64>,
    /// When a log that stays quiet is to prove its last group.
    idle_us: Option<u64>,
    appended_us: u64,
    /// When to look for space again.
    space_us: Option<u64>,
}

impl Upkeep {
    /// After recovery: everyone was just heard of.
    pub(super) fn start(&mut self, now: Now, config: &CoreConfig) {
        self.catalog_changed = true;
        self.members_us = Some(now.after_ms(config.members_check_ms));
        self.retention_us = Some(now.after_ms(config.retention_check_ms));
        self.producers_us = Some(now.after_ms(config.producer_check_ms));
        self.sync_us = (!config.log.sync_each_group).then(|| now.after_ms(config.sync_interval_ms));
    }

    pub(super) fn seen(&mut self, group: &str, member: MemberId, now: Now) {
        match self.heard.get_mut(group) {
            Some(members) => drop(members.insert(member, now.mono_us)),
            None => drop(
                self.heard
                    .insert(group.to_owned(), BTreeMap::from([(member, now.mono_us)])),
            ),
        }
        self.members_us.get_or_insert(now.mono_us);
    }

    /// Space is wanted: look at once.
    pub(super) fn retention_soon(&mut self) {
        self.retention_us = Some(0);
    }

    /// A file was sealed: another may be let go for it, and be written again without being filled with
    /// zeros before.
    pub(super) fn sealed(&mut self) {
        if let Some(at) = &mut self.retention_us {
            *at = self.retention_not_before_us.min(*at);
        }
    }

    /// The log has work: it is idle some time after this.
    pub(super) fn busy(&mut self, now: Now) {
        self.appended_us = now.mono_us;
        self.idle_us.get_or_insert(now.after_ms(IDLE_MS));
    }

    pub(super) fn next(&self) -> Option<u64> {
        [
            self.members_us,
            self.retention_us,
            self.producers_us,
            self.sync_us,
            self.idle_us,
            self.space_us,
        ]
        .into_iter()
        .flatten()
        .min()
    }
}

impl ShardCore {
    /// At the end of each round of calls.
    pub(super) fn upkeep_after_round(&mut self) {
        self.claim_unowned();
        if !std::mem::take(&mut self.upkeep.catalog_changed) || !self.may_write() {
            return;
        }
        for group in self.state.groups_to_rebalance() {
            self.maintain(&Request::RebalanceGroup { group });
        }
    }

    pub(super) fn upkeep_tick(&mut self) {
        self.vouch_for_clock();
        self.claim_unowned();
        let now = self.now;
        let due = |at: Option<u64>| at.is_some_and(|at| at <= now.mono_us);
        if due(self.upkeep.sync_us) {
            self.log.sync_now();
            self.upkeep.sync_us = Some(now.after_ms(self.config.sync_interval_ms));
        }
        if due(self.upkeep.idle_us) {
            let idle_us = self.upkeep.appended_us + IDLE_MS * 1_000;
            self.upkeep.idle_us = (idle_us > now.mono_us).then_some(idle_us);
            if self.upkeep.idle_us.is_none() && !self.log.idle() {
                self.upkeep.idle_us = Some(now.after_ms(IDLE_MS)); // a slow sync is under way
            }
        }
        if due(self.upkeep.space_us) {
            self.log.retry_space();
            self.upkeep.space_us = None;
        }
        self.watch_space();
        if due(self.upkeep.members_us) {
            self.expire_members();
        }
        if due(self.upkeep.retention_us) {
            self.retain();
            self.upkeep.retention_us = Some(now.after_ms(self.config.retention_check_ms));
        }
        if due(self.upkeep.producers_us) {
            self.tell_producer_floor();
            self.upkeep.producers_us = Some(now.after_ms(self.config.producer_check_ms));
        }
    }

    /// While the log finds no space it is asked again, whether or not appends feel it yet.
    pub(super) fn watch_space(&mut self) {
        if self.log.has_no_space() && self.upkeep.space_us.is_none() {
            self.upkeep.space_us = Some(self.now.after_ms(SPACE_RETRY_MS));
        }
    }

    pub(super) fn may_write(&self) -> bool {
        self.phase == Phase::Serving && matches!(self.writes, Writes::Open | Writes::Full(_))
    }

    /// A request of the shard's own. Refusals are no news: what it wanted is so already, or waits.
    pub(super) fn maintain(&mut self, request: &Request) {
        let _outcome = self.carry_out(request);
    }

    fn expire_members(&mut self) {
        let now_us = self.now.mono_us;
        let mut silent: BTreeMap<String, Vec<MemberId>> = BTreeMap::new();
        let mut heard = FxHashMap::default();
        let mut any = false;
        for (group, member, timeout_ms) in self.state.members() {
            any = true;
            let last = self
                .upkeep
                .heard
                .get(group)
                .and_then(|members| members.get(&member))
                .copied()
                .unwrap_or(now_us);
            if now_us.saturating_sub(last) > u64::from(timeout_ms) * 1_000 {
                silent.entry(group.to_owned()).or_default().push(member);
            }
            let members: &mut BTreeMap<_, _> = match heard.get_mut(group) {
                Some(members) => members,
                None => heard.entry(group.to_owned()).or_default(),
            };
            members.insert(member, last);
        }
        self.upkeep.heard = heard; // whoever is no member any more is forgotten
        self.upkeep.members_us = any.then(|| self.now.after_ms(self.config.members_check_ms));
        if self.may_write() {
            for (group, members) in silent {
                self.maintain(&Request::ExpireMembers { group, members });
            }
        }
    }

    /// Trim what topics no longer keep. Each trim is a fact; files are let go when it is durable. A file
    /// that is not full and holds nothing alive is closed: a load that stopped would never fill it.
    fn retain(&mut self) {
        if !self.may_write() || self.doubts_clock() {
            return;
        }
        self.log.seal_dead();
        let age = Age {
            now: self.retention_now(),
            logged: self.state.clock(),
            accepted: self.state.accepted_clock(),
        };
        let looked_at = Cell::new(0_u64);
        let mut trims = Vec::new();
        for view in self.state.partitions() {
            looked_at.update(|n| n + 1);
            let ranges = self.log.sealed_ranges_of(view.slot);
            let ranges = ranges.inspect(|_| looked_at.update(|n| n + 1));
            let mut ranges = ranges.filter(|range| range.last_offset >= view.start);
            let keep = self.keep(view.partition);
            let active = self.log.open_ranges_of(view.slot).next();
            let followed = active.map_or(view.last_append, |range| range.append_time_max);
            let mut start = new_start(ranges.clone(), 0, followed, keep, age);
            let stays = |range: SealedRange| start.is_none_or(|start| range.last_offset >= start);
            if !ranges.any(stays) {
                let open = self.log.open_ranges_of(view.slot);
                let open = open.inspect(|_| looked_at.update(|n| n + 1));
                start = open_start(open, keep, age).or(start);
            }
            if let Some(start) = start {
                trims.push((view.partition, start));
            }
        }
        let cost = looked_at.get() + trims.len() as u64 * TRIM_COST;
        self.upkeep.retention_not_before_us = self.now.mono_us + cost * RETENTION_PAUSE_US;
        for (partition, start) in trims {
            self.maintain(&Request::TrimPartition { partition, start });
        }
    }

    /// Retention goes by logged time, so that a wall clock gone wild deletes nothing.
    fn retention_now(&self) -> TimestampMs {
        self.now.wall.min(TimestampMs(
            self.state
                .clock()
                .0
                .saturating_add(millstream_machine::bounds::CLOCK_STEP_MS_MAX),
        ))
    }

    /// What a partition's topic keeps, with the broker's defaults.
    pub(super) fn keep(&self, partition: Partition) -> Keep {
        let config = self
            .state
            .topic(partition.topic)
            .map(|topic| topic.config.clone())
            .unwrap_or_default();
        Keep {
            ms: config.retention_ms.unwrap_or(self.config.retention_ms),
            bytes: config
                .retention_bytes
                .unwrap_or(self.config.retention_bytes),
        }
    }

    /// The floor is the smallest over all shards: each tells the others its own.
    fn tell_producer_floor(&mut self) {
        let floor = if self.doubts_clock() {
            ProducerId(0) // nor do the others, for whom this is no bound any more
        } else {
            let before = self.producers_unused_before();
            self.state.producer_floor_bound(before)
        };
        if self.config.shards > 1 {
            self.effects.push_back(Effect::ProducerFloor(floor));
        }
        self.hear_producer_floor(self.config.shard, floor);
    }

    /// No producer below this lives at a shard, as it says.
    pub(super) fn hear_producer_floor(&mut self, shard: ShardId, floor: ProducerId) {
        if let Some(known) = self.producer_floors.get_mut(usize::from(shard.0)) {
            *known = floor;
        }
        if shard == self.config.shard {
            let floors = self.producer_floors.iter().copied();
            let floor = floors.min().unwrap_or_default();
            self.expire_producers(floor);
        }
    }

    pub(super) fn expire_producers(&mut self, floor_max: ProducerId) {
        if self.may_write() && !self.doubts_clock() {
            let producer_unused_before = self.producers_unused_before();
            self.maintain(&Request::ExpireProducers {
                producer_unused_before,
                floor_max,
            });
        }
    }

    fn producers_unused_before(&self) -> TimestampMs {
        TimestampMs(
            self.state
                .clock()
                .0
                .saturating_sub(self.config.producer_expiry_ms),
        )
    }
}
