//! The table of facts: each kind once. Number, name, archived struct, as it is kept in [`Fact`], class, the
//! field with its logged time, and who installs it, in order.
//!
//! A fact is applied cell by cell, each from the fact and the cell alone: so the tail can be replayed
//! over a snapshot whose cells are of different lsns. Absent on purpose: any choice.

use std::borrow::Borrow;

use millstream_batch::ids::Lsn;
use rkyv::util::AlignedVec;

use super::archive::{
    BatchAppended, CatalogueKnown, ClockAccepted, ClockAdvanced, CourierApplied, CourierQueued,
    CourierTrimmed, GroupChanged, GroupDeleted, GroupForgotten, GroupOffsetsForgotten,
    OffsetCommitted, OffsetReset, PartitionClaimed, PartitionTrimmed, ProducerAdvanced,
    ProducerGiven, ProducersExpired, TopicApplied, TopicApplied16, TopicDeleted, TopicForgotten,
};
use super::{Class, Sound, decode, encode};
use crate::state::State;
use crate::{clock, couriers, groups, offsets, partitions, producers, topics};

macro_rules! facts {
    ($(
        $number:literal $kind:ident $variant:ident($kept:ty) $archived:ty, $class:ident
            $(at $time:ident)? => [$($install:path),*];
    )*
    $(read $old_number:literal $old_kind:ident $old:ty as $new:ident;)*) => {
        /// Kind numbers, as they stand in a log entry's header. Never reused.
        pub mod kind {
            $(pub const $kind: u16 = $number;)*
            $(pub const $old_kind: u16 = $old_number;)*
        }

        /// One thing that was decided.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Fact {
            $($variant($kept),)*
        }

        /// The class of a kind, if it is known here.
        #[must_use]
        pub fn class(kind: u16) -> Option<Class> {
            match kind {
                $($number => Some(Class::$class),)*
                $($old_number => class(kind::$new),)*
                _ => None,
            }
        }

        impl Fact {
            /// The number that names this fact's archived struct.
            #[must_use]
            pub fn kind(&self) -> u16 {
                match self {
                    $(Self::$variant(_) => $number,)*
                }
            }

            #[must_use]
            pub fn class(&self) -> Class {
                match self {
                    $(Self::$variant(_) => Class::$class,)*
                }
            }

            pub(super) fn archive(&self) -> AlignedVec {
                match self {
                    $(Self::$variant(fact) => encode(Borrow::<$archived>::borrow(fact)),)*
                }
            }

            /// `None`: of a kind that is not known here; inside: not an archive of it.
            pub(super) fn unarchive(kind: u16, bytes: &[u8]) -> Option<Option<Self>> {
                match kind {
                    $($number => {
                        Some(decode::<$archived>(bytes).map(|fact| Self::$variant(fact.into())))
                    })*
                    $($old_number => {
                        let old = decode::<$old>(bytes);
                        Some(old.map(|old| old.into()))
                    })*
                    _ => None,
                }
            }

            pub(super) fn is_sound(&self) -> bool {
                match self {
                    $(Self::$variant(fact) => fact.is_sound(),)*
                }
            }
        }

        fn install_fact(state: &mut State, lsn: Lsn, fact: &Fact) {
            match fact {
                $(Fact::$variant(fact) => {
                    $(state.clock.tick(fact.$time);)?
                    $($install(state, lsn, fact);)*
                })*
            }
        }
    };
}

facts! {
    1 BATCH_APPENDED BatchAppended(BatchAppended) BatchAppended, Batch at append_time_ms
        => [partitions::install_appended, producers::install_appended];
    2 PRODUCER_ADVANCED ProducerAdvanced(ProducerAdvanced) ProducerAdvanced, Batch at append_time_ms
        => [producers::install_advanced];
    3 PARTITION_TRIMMED PartitionTrimmed(PartitionTrimmed) PartitionTrimmed, State
        => [partitions::install_trimmed];

    18 TOPIC_APPLIED TopicApplied(Box<TopicApplied>) TopicApplied, State at time_ms
        => [topics::install_applied, partitions::install_applied];
    19 TOPIC_DELETED TopicDeleted(Box<TopicDeleted>) TopicDeleted, State at time_ms
        => [
            topics::install_deleted,
            partitions::install_deleted,
            producers::install_deleted,
            offsets::install_topic_deleted
        ];
    20 CATALOGUE_KNOWN CatalogueKnown(CatalogueKnown) CatalogueKnown, State
        => [topics::install_known];

    32 PRODUCER_GIVEN ProducerGiven(ProducerGiven) ProducerGiven, State at time_ms
        => [producers::install_given];
    33 PRODUCERS_EXPIRED ProducersExpired(Box<ProducersExpired>) ProducersExpired, State
        => [producers::install_expired];
    34 CLOCK_ADVANCED ClockAdvanced(ClockAdvanced) ClockAdvanced, State at time_ms => [];
    35 CLOCK_ACCEPTED ClockAccepted(ClockAccepted) ClockAccepted, State
        => [clock::install_accepted];

    48 PARTITION_CLAIMED PartitionClaimed(Box<PartitionClaimed>) PartitionClaimed, State
        => [offsets::install_claimed];
    49 OFFSET_COMMITTED OffsetCommitted(Box<OffsetCommitted>) OffsetCommitted, State at time_ms
        => [offsets::install_committed];
    50 OFFSET_RESET OffsetReset(Box<OffsetReset>) OffsetReset, State at time_ms
        => [offsets::install_reset];
    52 GROUP_OFFSETS_FORGOTTEN GroupOffsetsForgotten(Box<GroupOffsetsForgotten>) GroupOffsetsForgotten, State
        => [offsets::install_forgotten];

    64 GROUP_CHANGED GroupChanged(Box<GroupChanged>) GroupChanged, State at time_ms
        => [groups::install_changed];
    65 GROUP_DELETED GroupDeleted(Box<GroupDeleted>) GroupDeleted, State
        => [groups::install_deleted];

    80 COURIER_QUEUED CourierQueued(Box<CourierQueued>) CourierQueued, State
        => [couriers::install_queued];
    81 COURIER_APPLIED CourierApplied(CourierApplied) CourierApplied, State
        => [couriers::install_applied];
    82 COURIER_TRIMMED CourierTrimmed(CourierTrimmed) CourierTrimmed, State
        => [couriers::install_trimmed];

    // Before topics had settings as rows.
    read 16 TOPIC_APPLIED_16 TopicApplied16 as TOPIC_APPLIED;
    // Before the catalogue's deletions had revisions.
    read 17 TOPIC_FORGOTTEN TopicForgotten as TOPIC_DELETED;
    // Before a deletion said up to which epoch it holds.
    read 51 GROUP_FORGOTTEN GroupForgotten as GROUP_OFFSETS_FORGOTTEN;
}

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
