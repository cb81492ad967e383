//! Families by topic: what was appended, and the deployments with where they run.
//!
//! The shards bound their rows, and here they are bounded again, so that labels stay few.

use std::collections::BTreeMap;

use millstream_batch::ids::{CATALOG_SHARD, ShardId};
use millstream_machine::topics::Stage;
use millstream_sandbox::Placement;
use millstream_shard::call::TopicTotals;

use super::{Family, Labels, Samples, gauge};
use crate::broker::Shared;

/// Most deployments that have rows.
const DEPLOYMENT_ROWS_MAX: usize = 1_000;

/// What was appended to each topic, over all shards. Topics past the shards' bound have no rows.
pub(super) fn families(shards: &[(ShardId, Vec<TopicTotals>)]) -> Vec<Family> {
    let mut all: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for totals in shards.iter().flat_map(|(_, rows)| rows) {
        let row = all.entry(&totals.topic).or_default();
        row.0 += totals.records;
        row.1 += totals.bytes;
    }
    let family = |name, help, value: fn(&(u64, u64)) -> u64| {
        let row = |(topic, totals): (&&str, &(u64, u64))| {
            let topic = vec![("topic", (*topic).to_owned())];
            (topic, value(totals) as f64)
        };
        Family {
            name,
            help,
            samples: Samples::Counter(all.iter().map(row).collect()),
        }
    };
    vec![
        family(
            "millstream_topic_records_total",
            "Records appended to the topic since it was created",
            |totals| totals.0,
        ),
        family(
            "millstream_topic_bytes_total",
            "Bytes appended to the topic since it was created",
            |totals| totals.1,
        ),
    ]
}

/// The deployments of each topic, as the catalog knows them, and where they run.
pub(super) fn deployments(shared: &Shared, shards: &[(ShardId, Vec<TopicTotals>)]) -> Vec<Family> {
    let mut rows: Vec<(Labels, Placement)> = Vec::new();
    let catalog = shards.iter().filter(|(shard, _)| *shard == CATALOG_SHARD);
    for topic in catalog.flat_map(|(_, topics)| topics) {
        if topic.filters.is_empty() {
            continue;
        }
        let placed = shared.plugins.deployments.placed_by_name(topic.id);
        for (filter, stage) in &topic.filters {
            let labels = vec![
                ("topic", topic.topic.clone()),
                ("filter", filter.clone()),
                ("stage", stage_name(*stage).to_owned()),
            ];
            // One that has not run yet begins on its shard's thread.
            let found = placed.iter().rev().find(|(name, _)| name == filter);
            rows.push((labels, found.map_or(Placement::Shard, |found| found.1)));
        }
    }
    rows.truncate(DEPLOYMENT_ROWS_MAX);
    let family = |name, help, is: fn(Placement) -> bool| {
        let row = |(labels, placement): &(Labels, Placement)| {
            (labels.clone(), f64::from(u8::from(is(*placement))))
        };
        Family {
            name,
            help,
            samples: Samples::Gauge(rows.iter().map(row).collect()),
        }
    };
    vec![
        family(
            "millstream_filter_deployed",
            "1 for each deployment",
            |_| true,
        ),
        family(
            "millstream_filter_on_worker",
            "1 when the filter is slow or was killed once, and runs on worker threads",
            |placement| placement == Placement::Worker,
        ),
        family(
            "millstream_filter_paused",
            "1 when the filter was killed too often: it waits to be deployed again",
            |placement| placement == Placement::Paused,
        ),
        gauge(
            "millstream_filter_workers_waiting",
            "Jobs that wait for a worker thread",
            shared.plugins.workers.waiting() as f64,
        ),
    ]
}

fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Produce => "produce",
        Stage::Subscribe => "subscribe",
    }
}

#[cfg(test)]
mod tests {
    use millstream_batch::ids::TopicId;

    use super::*;

    #[test]
    fn shards_are_summed_by_topic() {
        let totals = |topic: &str, records| TopicTotals {
            id: TopicId([1; 16]),
            topic: topic.to_owned(),
            filters: Vec::new(),
            records,
            bytes: 10 * records,
        };
        let shards = [
            (ShardId(0), vec![totals("a", 1), totals("b", 2)]),
            (ShardId(1), vec![totals("a", 4)]),
        ];
        let families = families(&shards);
        let Samples::Counter(rows) = &families[1].samples else {
            panic!("totals only rise");
        };
        let rows: Vec<_> = rows.iter().map(|(l, v)| (l[0].1.as_str(), *v)).collect();
        assert_eq!(rows, [("a", 50.0), ("b", 20.0)]);
    }
}
