//! The write-ahead log of one shard: format, group assembly, index, recovery. Pure over [`io`].
//!
//! Absent on purpose: what a fact means (that is `millstream-machine`), files and threads (that is
//! `millstream-uring`), time.

pub mod api;
pub mod buffer;
mod census;
#[cfg(feature = "conformance")]
pub mod conformance;
mod fetch;
pub mod footer;
pub mod format;
mod group;
mod index;
pub mod inspect;
pub mod io;
mod log;
pub mod manifest;
mod reader;
mod recover;
pub mod rehearse;
mod rescan;
pub mod scan;
mod seal;
mod snapshot;
mod space;
mod walk;
mod write;

pub use api::*;
pub use log::Log;
