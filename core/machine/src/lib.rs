//! The state machine of one shard: `decide` looks, `install` changes. Both are pure.
//!
//! Absent on purpose: clocks (`now` is an argument), bytes of batches (only their header's numbers),
//! disks, threads, plugins' code.

pub mod request;
pub mod topic;
