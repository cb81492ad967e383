//! The write-ahead log of one shard: format, group assembly, index, recovery. Pure over [`io`].
//!
//! Absent on purpose: what a fact means (that is `millstream-machine`), files and threads (that is
//! `millstream-uring`), time.

pub mod api;
pub mod buffer;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod io;

pub use api::*;
