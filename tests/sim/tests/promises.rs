//! The fixed seeds, and the test of the tests. Each promise that a checker watches has a test of its
//! name; the runs are shared.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use millstream_sim::bugs::BUGS;
use millstream_sim::history::{Counts, Violation};
use millstream_sim::run::{Outcome, run};

/// Fixed seeds of every test run.
const SEEDS: u64 = 2_000;
/// Seeds within which each planted bug is to be caught.
const BUG_SEEDS: u64 = 600;

/// All fixed seeds, run once on all cores.
fn outcomes() -> &'static [Outcome] {
    static OUTCOMES: OnceLock<Vec<Outcome>> = OnceLock::new();
    OUTCOMES.get_or_init(|| {
        let next = AtomicU64::new(0);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let mut outcomes: Vec<Outcome> = std::thread::scope(|scope| {
            let worker = || {
                let mut outcomes = Vec::new();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= SEEDS {
                        return outcomes;
                    }
                    outcomes.push(run(seed, false));
                }
            };
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
            workers
                .into_iter()
                .flat_map(|worker| worker.join().expect("runs catch their panics"))
                .collect()
        });
        outcomes.sort_unstable_by_key(|outcome| outcome.seed);
        outcomes
    })
}

/// No run broke this promise, or any that is not named.
fn kept(promise: &str) {
    let broken: Vec<(u64, &Violation)> = outcomes()
        .iter()
        .flat_map(|outcome| {
            outcome
                .violations
                .iter()
                .map(|violation| (outcome.seed, violation))
        })
        .filter(|(_, violation)| violation.promise == promise)
        .take(5)
        .collect();
    assert!(
        broken.is_empty(),
        "replay with `cargo run -p millstream-sim -- --seed N`: {broken:#?}"
    );
}

#[test]
fn no_acked_loss() {
    kept("no_acked_loss");
}

#[test]
fn no_duplicates() {
    kept("no_duplicates");
}

#[test]
fn dense_offsets() {
    kept("dense_offsets");
}

#[test]
fn rebuilt_equals_live() {
    kept("rebuilt_equals_live");
}

#[test]
fn logged_time_steps() {
    kept("logged_time_steps");
}

#[test]
fn released_only() {
    kept("released_only");
}

#[test]
fn commits_fenced() {
    kept("commits_fenced");
}

#[test]
fn damage_reported() {
    kept("damage_reported");
}

#[test]
fn told_is_kept() {
    kept("told_is_kept");
}

#[test]
fn epochs_rise() {
    kept("epochs_rise");
}

#[test]
fn truncation_told() {
    kept("truncation_told");
}

#[test]
fn catalogue_spread() {
    kept("catalogue_spread");
}

#[test]
fn couriers_kept() {
    kept("couriers_kept");
}

#[test]
fn no_panic() {
    kept("no_panic");
}

#[test]
fn same_seed_same_bytes() {
    for first in outcomes().iter().step_by(20) {
        let second = run(first.seed, false);
        assert_eq!(
            (first.digest, first.counts),
            (second.digest, second.counts),
            "seed {}",
            first.seed
        );
    }
}

/// A promise that is never put to the test is not tested: over the seeds, everything happens.
#[test]
fn runs_are_not_idle() {
    let mut all = Counts::default();
    outcomes().iter().for_each(|outcome| all += outcome.counts);
    let Counts {
        acked,
        duplicates,
        read,
        commits,
        claims,
        crashes,
        failures,
        full,
        snapshots,
        ..
    } = all;
    for (what, count, least) in [
        ("acknowledged batches", acked, 1_000_000),
        ("duplicates", duplicates, 100_000),
        ("batches read", read, 500_000),
        ("commits", commits, 3_000),
        ("claims", claims, 4_000),
        ("crashes", crashes, 2_000),
        ("kills", all.kills, 400),
        ("failed writes and syncs", failures, 150),
        ("full disks", full, 150),
        ("snapshots", snapshots, 50_000),
        ("flipped bits", all.flips, 100),
        ("damaged ranges told", all.damaged, 5),
        ("read-only shards", all.read_only, 2),
        ("recycled files", all.recycled, 8_000),
        ("batches lost under interval", all.lost, 800),
        ("readers told of a cut", all.truncated, 60),
        ("messages between shards", all.messages, 1_500),
        ("deleted groups", all.deletions, 2_000),
    ] {
        assert!(
            count >= least,
            "only {count} {what} over all seeds: {all:?}"
        );
    }
}

#[test]
fn every_planted_bug_is_caught() {
    let missed: Vec<&str> = BUGS
        .iter()
        .filter(|bug| bug.caught(0..BUG_SEEDS).is_none())
        .map(|bug| bug.name)
        .collect();
    assert!(missed.is_empty(), "no checker sees {missed:?}");
}
