//! The state machine of one shard: `decide` looks, `install` changes. Both are pure.
//!
//! ```text
//! request ──decide(&state, now, term, request)──▶ facts + reply   or a refusal; looks, does not touch
//! facts ────appended to the shard's log─────────▶ lsn             one for all of them: a unit
//! facts ────install(&mut state, lsn, facts)                       in log order, at append and at replay
//! reply ────released when the log is durable up to the last lsn installed at its decision
//! ```
//!
//! A folder (a file while it is short) a feature: topics, partitions, producers, offsets, groups, couriers, clock. Each
//! owns its cells of the state (`cell`), decides its requests and installs its facts (`mod`), and says how its
//! cells are archived (`section`). What there is stands once in two tables: facts (`fact/table.rs`) and
//! sections of the snapshot (`snapshot/table.rs`). What one request does to several features is a unit
//! ([`unit`]).
//!
//! Absent on purpose: clocks (`now` is an argument), bytes of batches (only their header's numbers),
//! disks, threads, plugins' code.

pub mod bounds;
pub mod clock;
mod couriers;
mod decide;
pub mod fact;
mod groups;
mod offsets;
mod partitions;
mod producers;
pub mod request;
mod snapshot;
mod state;
pub mod topics;
mod unit;

pub use bounds::Limits;
pub use clock::Skew;
pub use couriers::{Message, Row};
pub use decide::{Decision, decide};
pub use fact::{BatchMeta, BatchPlace, Fact, FactError, batch_meta, install};
pub use snapshot::{Cursor, Cut, SLICE_BYTES_MAX, SnapshotError};
pub use state::{Change, Counts, PartitionView, State};
