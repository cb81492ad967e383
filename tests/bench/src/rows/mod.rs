//! The table of rows: what is measured, beside what, and what it should reach.
//!
//! One file a family; a row is a line here and a function there. Deliberately absent: how figures are
//! printed and compared ([`crate::report`]).

mod connections;
mod consume;
mod filter;
mod idle;
mod memory;
mod partitions;
mod produce;
mod restart;
mod subscriptions;

use anyhow::Result;

use crate::session::{Measured, Session};

/// One row.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// What is done.
    pub(crate) what: &'static str,
    /// What stands beside the product; empty when nothing does.
    pub(crate) ceiling: &'static str,
    pub(crate) targets: &'static [Target],
    /// Figures that the row is about, besides those with a target.
    pub(crate) shown: &'static [&'static str],
    /// Whether a short run counts system calls: for each batch, and of a broker that is idle.
    pub(crate) counts_syscalls: bool,
    pub(crate) measure: Measure,
}

/// How a row is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Measure {
    By(fn(&Session<'_>) -> Result<Measured>),
    /// Not at all yet, and why.
    NotYet(&'static str),
}

/// A bound of one figure's median.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) metric: &'static str,
    pub(crate) bound: Bound,
}

/// Ratios are product / ceiling: the median of the pairs'.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bound {
    RatioAtLeast(f64),
    RatioAtMost(f64),
    AtLeast(f64),
    AtMost(f64),
}

const fn target(metric: &'static str, bound: Bound) -> Target {
    Target { metric, bound }
}

const RECEIVER: &str = "bare quinn receiver, CRC-32C, durable group commit";
const SENDER: &str = "bare quinn sender of batches that lie in memory";

/// All rows, in the order they are run.
pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "produce",
        what: "durable produce, batches of 64 x 1 KiB, 16 in flight, MTU 1452",
        ceiling: RECEIVER,
        targets: &[
            target("mb_per_s", Bound::RatioAtLeast(0.8)),
            target("cpu_s_per_gb", Bound::RatioAtMost(1.25)),
        ],
        shown: &["p50_ms"],
        counts_syscalls: true,
        measure: Measure::By(produce::main),
    },
    Row {
        name: "produce-6500",
        what: "the same at MTU 6500, 32 in flight",
        ceiling: RECEIVER,
        targets: &[target("mb_per_s", Bound::RatioAtLeast(0.8))],
        shown: &["cpu_s_per_gb"],
        counts_syscalls: true,
        measure: Measure::By(produce::jumbo),
    },
    Row {
        name: "produce-depth-1",
        what: "the same at MTU 1452, one in flight",
        ceiling: RECEIVER,
        targets: &[target("p50_ms", Bound::RatioAtMost(1.3))],
        shown: &["mb_per_s"],
        counts_syscalls: true,
        measure: Measure::By(produce::depth_1),
    },
    Row {
        name: "small-batches",
        what: "durable produce, batches of 4 x 1 KiB, 64 in flight",
        ceiling: RECEIVER,
        targets: &[target("batches_per_s", Bound::RatioAtLeast(0.7))],
        shown: &["cpu_s_per_gb"],
        counts_syscalls: true,
        measure: Measure::By(produce::small_batches),
    },
    Row {
        name: "single-record",
        what: "one record of 100 B, one in flight",
        ceiling: "quinn ping whose answer waits for a bare durable append",
        targets: &[target("p50_ms", Bound::RatioAtMost(1.4))],
        shown: &[],
        counts_syscalls: true,
        measure: Measure::By(produce::single_record),
    },
    Row {
        name: "client-batching",
        what: "records of 100 B through the client's own batching",
        ceiling: "bare quinn receiver, durable, batches of the same size made beforehand",
        targets: &[target("records_per_s", Bound::AtLeast(2e6))],
        shown: &["client_cores"],
        counts_syscalls: true,
        measure: Measure::By(produce::client_batching),
    },
    Row {
        name: "produce-kept",
        what: "as `produce`, on a topic that keeps 512 MB and has been filled: files are written again",
        ceiling: RECEIVER,
        targets: &[
            target("mb_per_s", Bound::RatioAtLeast(0.8)),
            target("cpu_s_per_gb", Bound::RatioAtMost(1.25)),
        ],
        shown: &["p50_ms"],
        counts_syscalls: true,
        measure: Measure::By(produce::kept),
    },
    Row {
        name: "produce-6500-kept",
        what: "the same at MTU 6500, 32 in flight",
        ceiling: RECEIVER,
        targets: &[target("mb_per_s", Bound::RatioAtLeast(0.8))],
        shown: &["cpu_s_per_gb"],
        counts_syscalls: true,
        measure: Measure::By(produce::jumbo_kept),
    },
    Row {
        name: "produce-2-shards",
        what: "as `produce`, two shards, two producers, each to a partition of its own",
        ceiling: "two bare quinn receivers at once",
        targets: &[target("mb_per_s", Bound::RatioAtLeast(0.8))],
        shown: &["cpu_s_per_gb"],
        counts_syscalls: true,
        measure: Measure::By(produce::two_shards),
    },
    Row {
        name: "produce-2-shards-kept",
        what: "the same two shards, on a topic of which each partition keeps 512 MB and has been filled",
        ceiling: "two bare quinn receivers at once",
        targets: &[target("mb_per_s", Bound::RatioAtLeast(0.8))],
        shown: &["cpu_s_per_gb"],
        counts_syscalls: true,
        measure: Measure::By(produce::two_shards_kept),
    },
    Row {
        name: "produce-2-shards-mixed",
        what: "the same two shards in a new directory, each producer to both partitions in turn",
        ceiling: "two bare quinn receivers at once",
        targets: &[target("mb_per_s", Bound::RatioAtLeast(0.8))],
        shown: &["cpu_s_per_gb"],
        counts_syscalls: true,
        measure: Measure::By(produce::two_shards_mixed),
    },
    Row {
        name: "produce-2-shards-mixed-kept",
        what: "the same two shards, on a topic of which each partition keeps 512 MB and has been filled",
        ceiling: "two bare quinn receivers at once",
        targets: &[target("mb_per_s", Bound::RatioAtLeast(0.8))],
        shown: &["cpu_s_per_gb"],
        counts_syscalls: true,
        measure: Measure::By(produce::two_shards_mixed_kept),
    },
    Row {
        name: "consume-tail",
        what: "consume what lies in the hot tail, batches of 64 x 1 KiB, MTU 1452",
        ceiling: SENDER,
        targets: &[target("mb_per_s", Bound::RatioAtLeast(0.85))],
        shown: &["cpu_s_per_gb"],
        counts_syscalls: true,
        measure: Measure::By(consume::tail),
    },
    Row {
        name: "consume-cold",
        what: "consume from disk, after a restart of the broker, MTU 1452",
        ceiling: SENDER,
        targets: &[target("mb_per_s", Bound::RatioAtLeast(0.8))],
        shown: &["cpu_s_per_gb"],
        counts_syscalls: true,
        measure: Measure::By(consume::cold),
    },
    Row {
        name: "partitions-10000",
        what: "the load of `produce` over 10,000 partitions",
        ceiling: "the product with one partition",
        targets: &[
            target("mb_per_s", Bound::RatioAtLeast(0.9)),
            target("kib_per_partition", Bound::AtMost(8.0)),
        ],
        shown: &["cpu_s_per_gb"],
        counts_syscalls: true,
        measure: Measure::By(partitions::many),
    },
    Row {
        name: "restart-10gb",
        what: "restart on 10 GB, killed in the middle of a load",
        ceiling: "",
        targets: &[target("ready_ms", Bound::AtMost(1000.0))],
        shown: &["first_record_ms"],
        counts_syscalls: false,
        measure: Measure::By(restart::much_data),
    },
    Row {
        name: "filter",
        what: "`produce` with the bundled key-filter, view world; time of 100 B records",
        ceiling: "the product without a filter; for the time, the rule as native code on the same bytes",
        targets: &[
            target("filter_ns", Bound::AtMost(60.0)),
            target("mb_per_s", Bound::RatioAtLeast(0.85)),
        ],
        shown: &["filter_cpu_ns"],
        counts_syscalls: true,
        measure: Measure::By(filter::view_world),
    },
    Row {
        name: "process",
        what: "exactly-once consume-transform-produce",
        ceiling: "plain consume and plain produce by the Rust client",
        targets: &[target("records_per_s", Bound::RatioAtLeast(1.0))],
        shown: &[],
        counts_syscalls: false,
        measure: Measure::NotYet("the engine has no plug point `process` yet"),
    },
    Row {
        name: "memory",
        what: "four producers, a cold reader, 64 stalled readers; default bounds, then small ones",
        ceiling: "",
        targets: &[
            target("rss_peak_mib", Bound::AtMost(512.0)),
            target("bound_used", Bound::AtMost(1.0)),
            target("small_bound_used", Bound::AtMost(1.0)),
        ],
        shown: &["small_rss_peak_mib", "rss_idle_mib"],
        counts_syscalls: true,
        measure: Measure::By(memory::under_load),
    },
    Row {
        name: "connections-5000",
        what: "5,000 connections, idle and with a trickle of 1,000 records of 100 B a second",
        ceiling: "",
        targets: &[],
        shown: &[
            "kib_per_connection",
            "idle_cpu_ms_per_s",
            "idle_syscalls_per_s",
            "p50_ms",
            "p99_ms",
        ],
        counts_syscalls: true,
        measure: Measure::By(connections::many),
    },
    Row {
        name: "subscriptions-1000",
        what: "1,000 subscriptions on one topic: every batch to all, then single records",
        ceiling: "",
        targets: &[],
        shown: &["mb_per_s", "kib_per_subscription", "p50_ms", "p99_ms"],
        counts_syscalls: true,
        measure: Measure::By(subscriptions::many),
    },
    Row {
        name: "idle-cpu",
        what: "four idle shards after a load",
        ceiling: "",
        targets: &[target("idle_cpu_ms_per_s", Bound::AtMost(1.0))],
        shown: &["idle_switches_per_s", "idle_syscalls_per_s", "rss_idle_mib"],
        counts_syscalls: true,
        measure: Measure::By(idle::cpu),
    },
];

/// A row by its name.
pub(crate) fn find(name: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures;

    #[test]
    fn rows_name_figures_that_there_are() {
        for row in ROWS {
            let targets = row.targets.iter().map(|target| target.metric);
            for metric in targets.chain(row.shown.iter().copied()) {
                assert!(figures::find(metric).is_some(), "{}: {metric}", row.name);
            }
            let first = ROWS.iter().position(|other| other.name == row.name);
            assert!(std::ptr::eq(row, &raw const ROWS[first.expect("itself")]));
        }
    }

    #[test]
    fn a_ratio_needs_a_ceiling() {
        for row in ROWS.iter().filter(|row| row.ceiling.is_empty()) {
            for target in row.targets {
                assert!(
                    matches!(target.bound, Bound::AtLeast(_) | Bound::AtMost(_)),
                    "{}",
                    row.name
                );
            }
        }
    }
}
