//! Bugs planted on purpose, each a layer that lies where a broken product would: the checkers must
//! catch every one. None of this is in the product.

mod disk;
mod network;
mod recovery;

use crate::history::Violation;
use crate::layer::Layer;
use crate::run::run_with;

/// A bug to plant.
#[derive(Clone, Copy, Debug)]
pub struct Bug {
    pub name: &'static str,
    /// The product fault that it stands for.
    pub stands_for: &'static str,
    /// Checkers of which at least one is to catch it.
    pub caught_by: &'static [&'static str],
    pub plant: fn() -> Box<dyn Layer>,
}

impl Bug {
    /// The first of these seeds in which a checker that should catch it does, and which.
    #[must_use]
    pub fn caught(&self, mut seeds: std::ops::Range<u64>) -> Option<(u64, Violation)> {
        seeds.find_map(|seed| {
            let outcome = run_with(seed, &self.plant, false);
            if self.caught_by == ["same_seed_same_bytes"] {
                let second = run_with(seed, &self.plant, false);
                let what = format!("{:x}, then {:x}", outcome.digest, second.digest);
                let violation = Violation {
                    promise: "same_seed_same_bytes",
                    what,
                };
                return (outcome.digest != second.digest).then_some((seed, violation));
            }
            let mut violations = outcome.violations.into_iter();
            Some((
                seed,
                violations.find(|violation| self.caught_by.contains(&violation.promise))?,
            ))
        })
    }
}

/// What is not on disk shows in whatever is answered first.
const UNSAFE: &[&str] = &[
    "no_acked_loss",
    "released_only",
    "rebuilt_equals_live",
    "told_is_kept",
];

/// All of them.
pub const BUGS: &[Bug] = &[
    Bug {
        name: "sync_is_a_lie",
        stands_for: "a write is reported durable and was never synced",
        caught_by: UNSAFE,
        plant: || Box::new(disk::NoSync),
    },
    Bug {
        name: "failed_sync_is_retried",
        stands_for: "a failed sync is tried again, and its success believed",
        caught_by: UNSAFE,
        plant: || Box::new(disk::RetriedSync::default()),
    },
    Bug {
        name: "write_is_dropped",
        stands_for: "a group is forgotten between the log and the disk",
        caught_by: UNSAFE,
        plant: || Box::new(disk::DroppedWrite::default()),
    },
    Bug {
        name: "read_is_stale",
        stands_for: "a reader is given a block that was recycled or never written",
        caught_by: &[
            "damage_reported",
            "no_acked_loss",
            "dense_offsets",
            "released_only",
        ],
        plant: || Box::new(disk::StaleRead::default()),
    },
    Bug {
        name: "checksum_is_not_checked",
        stands_for: "stored bytes have changed and are served as if they had not",
        caught_by: &["damage_reported", "no_acked_loss"],
        plant: || Box::new(disk::UncheckedRot::default()),
    },
    Bug {
        name: "recycled_too_early",
        stands_for: "a file is recycled while records in it are alive",
        caught_by: &[
            "no_acked_loss",
            "released_only",
            "damage_reported",
            "rebuilt_equals_live",
            "dense_offsets",
        ],
        plant: || Box::new(recovery::RecycledEarly),
    },
    Bug {
        name: "cut_below_the_durable_point",
        stands_for: "recovery takes the last proved group for a torn one and cuts it",
        caught_by: UNSAFE,
        plant: || Box::new(recovery::CutTooMuch),
    },
    Bug {
        name: "found_end_is_only_synced",
        stands_for: "recovery believes that a sync brings to the disk what a failed one did not",
        caught_by: &["damage_reported", "no_acked_loss", "dense_offsets"],
        plant: || Box::new(recovery::OnlySynced::default()),
    },
    Bug {
        name: "snapshot_before_durable",
        stands_for: "a snapshot is published whose log is not durable yet",
        caught_by: &[
            "rebuilt_equals_live",
            "no_acked_loss",
            "released_only",
            "no_panic",
            "dense_offsets",
        ],
        plant: || Box::new(recovery::SnapshotFirst::default()),
    },
    Bug {
        name: "snapshot_part_is_lost",
        stands_for: "a snapshot's manifest is durable before its parts",
        caught_by: &[
            "rebuilt_equals_live",
            "no_acked_loss",
            "damage_reported",
            "no_panic",
        ],
        plant: || Box::new(recovery::LostPart),
    },
    Bug {
        name: "fact_changes_at_restart",
        stands_for: "replay decides instead of installing, and comes to another result",
        caught_by: &["rebuilt_equals_live"],
        plant: || Box::new(recovery::ChangedFact),
    },
    Bug {
        name: "unit_is_torn",
        stands_for: "a restart installs a part of what was decided together",
        caught_by: &["rebuilt_equals_live", "told_is_kept"],
        plant: || Box::new(recovery::TornUnit),
    },
    Bug {
        name: "acknowledged_before_durable",
        stands_for: "a batch is acknowledged when it is decided",
        caught_by: &["no_acked_loss"],
        plant: || Box::new(network::EarlyAck),
    },
    Bug {
        name: "readable_before_durable",
        stands_for: "a reader at the tail is given what is not durable yet",
        caught_by: &["released_only"],
        plant: || Box::new(network::EarlyRead::default()),
    },
    Bug {
        name: "producers_are_forgotten_at_restart",
        stands_for: "a duplicate is not known as one after a restart",
        caught_by: &["no_duplicates"],
        plant: || Box::new(network::ForgottenProducers::default()),
    },
    Bug {
        name: "a_batch_is_skipped",
        stands_for: "a fetch leaves out a batch in the middle",
        caught_by: &["no_acked_loss", "dense_offsets", "released_only"],
        plant: || Box::new(network::SkippedBatch::default()),
    },
    Bug {
        name: "offset_is_given_twice",
        stands_for: "two batches are told the same offset",
        caught_by: &["no_acked_loss"],
        plant: || Box::new(network::OffsetTwice::default()),
    },
    Bug {
        name: "zombie_may_commit",
        stands_for: "a commit is not held against the epoch of the newest claim",
        caught_by: &["commits_fenced"],
        plant: || Box::new(network::Zombie::default()),
    },
    Bug {
        name: "message_is_acknowledged_early",
        stands_for: "a shard answers for another's message that a crash then takes back",
        caught_by: &["couriers_kept", "told_is_kept"],
        plant: || Box::new(network::EarlyReceipt),
    },
    Bug {
        name: "message_does_nothing",
        stands_for: "a message leaves its receipt and not its effect",
        caught_by: &["couriers_kept"],
        plant: || Box::new(network::EmptyMessage),
    },
    Bug {
        name: "change_is_not_told",
        stands_for: "a shard is taken to know a change of the catalogue that it never heard of",
        caught_by: &["catalogue_spread"],
        plant: || Box::new(network::UntoldChange::default()),
    },
    Bug {
        name: "damage_is_swallowed",
        stands_for: "a fetch passes over damaged offsets without a word",
        caught_by: &[
            "no_acked_loss",
            "dense_offsets",
            "released_only",
            "damage_reported",
        ],
        plant: || Box::new(network::SwallowedDamage::default()),
    },
    Bug {
        name: "told_before_synced",
        stands_for: "under interval, answers that promise a sync are released without it",
        caught_by: &["told_is_kept"],
        plant: || Box::new(disk::SyncToCome),
    },
    Bug {
        name: "leader_epoch_does_not_rise",
        stands_for: "an unclean end is taken for one in good order",
        caught_by: &["epochs_rise", "truncation_told"],
        plant: || Box::new(recovery::LooksClean),
    },
    Bug {
        name: "cut_is_not_told",
        stands_for: "a reader past a cut is given the records that took the place of what it read",
        caught_by: &["truncation_told"],
        plant: || Box::new(network::CutNotTold),
    },
    Bug {
        name: "chance_leaks_in",
        stands_for: "something depends on more than the inputs",
        caught_by: &["same_seed_same_bytes"],
        plant: || Box::new(network::Leak),
    },
];
