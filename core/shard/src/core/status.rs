//! Counters, and the answer to `Status`.

use std::collections::{BTreeMap, BTreeSet};

use millstream_batch::ids::{Offset, Partition, PartitionSlot, TopicId};
use millstream_log::io::IoErrorKind;

use super::latency::Latency;
use super::{ShardCore, Writes};
use crate::call::{Status, TopicTotals};

/// Most lag rows in one status.
const LAG_ROWS_MAX: usize = 1_000;
/// Most topics whose totals are told, and most partitions that are looked at for them.
const TOPIC_ROWS_MAX: usize = 1_000;
const TOPIC_PARTITIONS_MAX: usize = 50_000;
/// Most damaged ranges that are remembered.
const DAMAGED_MAX: usize = 1_024;
/// Most holder lines in one status.
const HOLDER_ROWS_MAX: usize = 100;

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) batches_in: u64,
    pub(super) records_in: u64,
    pub(super) bytes_in: u64,
    pub(super) duplicates: u64,
    pub(super) refused: u64,
    pub(super) bytes_out: u64,
    pub(super) produce_us: Latency,
    pub(super) fetch_us: Latency,
    /// From the submission of a group's write until it is durable.
    pub(super) sync_us: Latency,
    /// When the write under way was handed out.
    pub(super) written_us: Option<u64>,
    /// Where damaged ranges begin that were read, each once, up to a bound.
    damaged: BTreeSet<(PartitionSlot, Offset)>,
}

impl Counters {
    /// A range that begins here is damaged: it may be read again and again.
    pub(super) fn damage_met(&mut self, slot: PartitionSlot, from: Offset) {
        if self.damaged.len() < DAMAGED_MAX {
            self.damaged.insert((slot, from));
        }
    }
}

impl ShardCore {
    /// What operators want to know. `filters` is the driver's to fill.
    pub(super) fn status(&self) -> Status {
        let counts = self.state.counts();
        let stats = self.log.stats();
        let (state, why) = match &self.writes {
            Writes::Open => ("serving", None),
            Writes::Full(error) => match error.kind {
                IoErrorKind::Limit => ("limited", Some(error.to_string())),
                _ => ("disk-full", Some(error.to_string())),
            },
            Writes::ReadOnly(why) => ("read-only", Some(why.clone())),
            Writes::Stopped(why) => ("stopped", Some(why.clone())),
        };
        let c = &self.counters;
        Status {
            shard: self.config.shard,
            topics: counts.topics,
            partitions: counts.partitions,
            groups: counts.groups,
            last_lsn: self.installed.0,
            durable_lsn: self.gate.durable().0,
            term: self.term.0,
            disk: String::new(), // the driver knows its storage
            state: state.to_owned(),
            why,
            damaged: c.damaged.len() + self.damaged_at_start(),
            untold: self.state.messages_waiting() + self.shards_behind(),
            clock: self.clock_words(),
            log_bytes: stats.disk_bytes,
            log_files: stats.wal_files as usize,
            hot_tail_bytes: stats.hot_bytes as usize,
            holders: self.holders(),
            batches_in: c.batches_in,
            records_in: c.records_in,
            bytes_in: c.bytes_in,
            duplicates: c.duplicates,
            refused: c.refused,
            fetches_hot: stats.fetches_hot,
            fetches_cold: stats.fetches_cold,
            bytes_out: c.bytes_out,
            groups_written: stats.groups,
            syncs: stats.syncs,
            produce_us: c.produce_us.cumulative(),
            sync_us: c.sync_us.cumulative(),
            fetch_us: c.fetch_us.cumulative(),
            filters: Vec::new(),
            lag: self.lag(),
            recovery: self.recovery_words(),
        }
    }

    fn damaged_at_start(&self) -> usize {
        let recovery = self.recovery.as_ref();
        recovery.map_or(0, |recovery| recovery.damage.len())
    }

    /// What was appended to the oldest topics, as far as the bounds go.
    pub(super) fn topic_totals(&self) -> Vec<TopicTotals> {
        let mut looked_at = 0;
        let mut rows = Vec::new();
        for topic in self.state.topics().take(TOPIC_ROWS_MAX) {
            let filters = topic.filters.iter();
            let mut totals = TopicTotals {
                id: topic.id,
                filters: filters.map(|f| (f.name.clone(), f.stage)).collect(),
                topic: topic.name.clone(),
                records: 0,
                bytes: 0,
            };
            for slot in self.state.slots(topic.id) {
                looked_at += 1;
                totals.records += self.shown.get(&slot).map_or(0, |shown| shown.end.0);
                totals.bytes += self.state.partition_of(slot).map_or(0, |view| view.bytes);
            }
            if looked_at > TOPIC_PARTITIONS_MAX {
                break;
            }
            rows.push(totals);
        }
        rows
    }

    /// Records between each group's offset and the released end, in every partition of a topic that the
    /// group has an offset in. None while ends are not known: that is not none behind.
    fn lag(&self) -> Vec<(String, String, u32, u64)> {
        let mut rows = Vec::new();
        if let Writes::ReadOnly(_) = self.writes {
            return rows;
        }
        let mut of_topic: BTreeMap<TopicId, BTreeMap<u32, PartitionSlot>> = BTreeMap::new();
        for (slot, shown) in &self.shown {
            let Partition { topic, index } = shown.partition;
            of_topic.entry(topic).or_default().insert(index, *slot);
        }
        let mut groups: BTreeMap<&str, BTreeMap<PartitionSlot, Offset>> = BTreeMap::new();
        for (group, slot, offset) in self.state.committed() {
            groups.entry(group).or_default().insert(slot, offset);
        }
        for (group, committed) in groups {
            let topic_of = |slot| Some(self.shown.get(slot)?.partition.topic);
            let topics: BTreeSet<TopicId> = committed.keys().filter_map(topic_of).collect();
            for id in topics {
                let (Some(topic), Some(slots)) = (self.state.topic(id), of_topic.get(&id)) else {
                    continue;
                };
                for (index, slot) in slots {
                    let shown = self.shown[slot];
                    let next = committed
                        .get(slot)
                        .map_or(shown.start, |at| shown.start.max(*at));
                    let lag = shown.end.0.saturating_sub(next.0);
                    rows.push((group.to_owned(), topic.name.clone(), *index, lag));
                    if rows.len() == LAG_ROWS_MAX {
                        return rows;
                    }
                }
            }
        }
        rows
    }

    /// What keeps each old file, in words.
    fn holders(&self) -> Vec<String> {
        let holders = self.log.holders();
        holders
            .into_iter()
            .take(HOLDER_ROWS_MAX)
            .map(|held| format!("{}: {}", held.file, held.by.join("; ")))
            .collect()
    }

    fn recovery_words(&self) -> String {
        let Some(recovery) = &self.recovery else {
            return String::new();
        };
        let mut words = format!(
            "replayed {} entries from {} bytes of log up to lsn {}, term {}",
            recovery.replayed, recovery.bytes_read, recovery.last, recovery.term
        );
        if recovery.cut_bytes > 0 {
            words += &format!(
                "; cut {} bytes of a torn last group (never acknowledged)",
                recovery.cut_bytes
            );
        }
        for damage in &recovery.damage {
            words += &format!(
                "; damage in {} at {}: {}",
                damage.file, damage.at, damage.what
            );
        }
        words
    }
}
