//! The table of facts: what each does to the state.
//!
//! A fact is applied cell by cell, each from the fact and the cell alone: so the tail can be replayed
//! over a snapshot whose cells are of different lsns. Absent on purpose: any choice.

use millstream_batch::ids::Lsn;

use crate::fact::Fact;
use crate::state::State;
use crate::{clock, groups, offsets, partitions, producers, topics};

/// Installs a unit, in log order: live, right after it was appended; at start, from the replay.
///
/// # Panics
/// When a fact does not follow from the state: the log's checksums held, so one of the two was made
/// by a bug, and going on would spread it.
pub fn install(state: &mut State, lsn: Lsn, unit: &[Fact]) {
    assert!(
        lsn > state.installed,
        "unit {lsn} after {}",
        state.installed
    );
    for fact in unit {
        install_fact(state, lsn, fact);
    }
    state.installed = lsn;
    state.guard.passed(lsn);
}

fn install_fact(state: &mut State, lsn: Lsn, fact: &Fact) {
    match fact {
        Fact::BatchAppended(fact) => producers::install_batch(state, lsn, fact),
        Fact::ProducerAdvanced(fact) => producers::install_advanced(state, lsn, fact),
        Fact::PartitionTrimmed(fact) => partitions::install_trimmed(state, lsn, fact),
        Fact::TopicApplied(fact) => topics::install_applied(state, lsn, fact),
        Fact::TopicForgotten(fact) => topics::install_forgotten(state, lsn, fact),
        Fact::ProducerGiven(fact) => producers::install_given(state, lsn, fact),
        Fact::ProducersExpired(fact) => producers::install_expired(state, lsn, fact),
        Fact::ClockAdvanced(fact) => state.shard.tick(fact.time_ms),
        Fact::ClockAccepted(fact) => clock::install_accepted(state, lsn, fact),
        Fact::PartitionClaimed(fact) => offsets::install_claimed(state, lsn, fact),
        Fact::OffsetCommitted(fact) => offsets::install_committed(state, lsn, fact),
        Fact::OffsetReset(fact) => offsets::install_reset(state, lsn, fact),
        Fact::GroupForgotten(fact) => offsets::install_forgotten(state, lsn, fact),
        Fact::GroupChanged(fact) => groups::install_changed(state, lsn, fact),
        Fact::GroupDeleted(fact) => groups::install_deleted(state, lsn, fact),
    }
}
