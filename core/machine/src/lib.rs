//! The state machine of one shard: `decide` looks, `install` changes. Both are pure.
//!
//! ```text
//! request ──decide(&state, now, term, request)──▶ facts + reply   or a refusal; looks, does not touch
//! facts ────appended to the shard's log─────────▶ lsn             one for all of them: a unit
//! facts ────install(&mut state, lsn, facts)                       in log order, at append and at replay
//! reply ────released when the log is durable up to the last lsn installed at its decision
//! ```
//!
//! One file an area: [`settings`] and topics, partitions, producers, offsets, groups. Each owns its cells
//! of the state, decides its requests and installs its facts; a new area (transactions, queues,
//! timers, plugin state) is a new file, new kind numbers and a new section of the snapshot.
//!
//! Absent on purpose: clocks (`now` is an argument), bytes of batches (only their header's numbers),
//! disks, threads, plugins' code.

mod assign;
pub mod bounds;
pub mod clock;
mod decide;
mod epochs;
pub mod fact;
mod groups;
mod install;
mod offsets;
mod partitions;
mod producers;
pub mod request;
pub mod settings;
mod shard;
mod snapshot;
mod state;
pub mod topic;
mod topics;
mod unit;

pub use bounds::Limits;
pub use clock::Skew;
pub use decide::{Decision, decide};
pub use fact::{BatchMeta, BatchPlace, Fact, FactError, batch_meta};
pub use install::install;
pub use snapshot::{Cursor, Cut, SLICE_BYTES_MAX, SnapshotError};
pub use state::{Counts, PartitionView, State};
