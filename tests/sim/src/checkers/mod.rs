//! One promise, one checker: `core/docs/guarantees.md` names them.
//!
//! Each looks at the history of a run and at what an audit found (everything read back through the
//! shipped code after a restart), and says what does not fit. More promises are checked where they are
//! at home: `rebuilt_equals_live` in the shadow, `same_seed_same_bytes` by running twice, and at each
//! answer `told_is_kept` (the world), `truncation_told` (the history), after each input
//! `logged_time_steps` (the world), and at the end of a run `catalogue_spread` and
//! `couriers_kept` (the run, and the world when a message is sent).
//!
//! How the log is flushed decides what may be lost. `durable`: nothing that was acknowledged or read.
//! `interval`: batches that were not synced, which the world takes out of the history at the start that
//! does not find them; everything else, and all that was told of anything but batches, is kept.

mod commits_fenced;
mod damage_reported;
mod dense_offsets;
mod epochs_rise;
mod no_acked_loss;
mod no_duplicates;
mod released_only;

use std::collections::BTreeMap;

use millstream_batch::ids::Partition;

use crate::history::{History, Seen};

/// What was found when everything was read back.
#[derive(Debug, Default)]
pub struct Audit {
    pub partitions: BTreeMap<Partition, Found>,
    pub committed: BTreeMap<(String, Partition), Option<u64>>,
    /// The shard is read-only: what follows the damaged fact is not shown, and it said so.
    pub read_only: bool,
}

/// A partition as read back from start to end.
#[derive(Debug, Default)]
pub struct Found {
    /// `false`: the shard does not know this partition.
    pub exists: bool,
    pub start: u64,
    pub end: u64,
    /// By base offset.
    pub batches: BTreeMap<u64, Seen>,
    /// Reported as damaged, inclusive.
    pub damaged: Vec<(u64, u64)>,
}

impl Found {
    fn is_damaged(&self, from: u64, to: u64) -> bool {
        self.damaged.iter().any(|(a, b)| *a <= to && from <= *b)
    }
}

/// Says what does not fit, one text a finding.
type Checker = fn(&History, &Audit, &mut dyn FnMut(String));

/// Every checker.
pub fn check(history: &mut History, audit: &Audit) {
    let mut found = Vec::new();
    let checkers: [(&'static str, Checker); 7] = [
        ("no_acked_loss", no_acked_loss::check),
        ("no_duplicates", no_duplicates::check),
        ("dense_offsets", dense_offsets::check),
        ("epochs_rise", epochs_rise::check),
        ("released_only", released_only::check),
        ("commits_fenced", commits_fenced::check),
        ("damage_reported", damage_reported::check),
    ];
    for (promise, checker) in checkers {
        checker(history, audit, &mut |what| found.push((promise, what)));
    }
    for (promise, what) in found {
        history.violation(promise, what);
    }
}
