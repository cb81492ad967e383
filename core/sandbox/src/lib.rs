//! Components: compiling them, running them inside their budgets, and saying who erred.
//!
//! An author's WebAssembly component becomes a [`Component`] (compiled once, off the shard threads),
//! and a component, its parameters and its [`Budget`] become a [`Filter`] (one warm instance, on the
//! thread that calls it). [`Deployment`] is what all filters of one deployment share: the name, the
//! kill count that pauses it, and its measured cost.
//!
//! Order of use: [`Engine::new`] once a process, [`Engine::compile`] once a component,
//! [`Deployment::new`] once a deployment, [`Deployment::filter`] once a shard or subscription, then
//! [`Deployment::judge`] once a batch. After an error that [may be one record's](FilterError::may_be_of_a_record),
//! [`Deployment::search`] gives a [`Verdict`]: what is kept, and which records it cannot judge.
//!
//! Deliberately absent: what to do about an error (retry, reject, skip, dead-letter: that is the
//! deployment's failure policy, decided by the shard), record batches and how an index is made (the
//! batch crate), files other than the cache of compiled code, and any import beyond logging and
//! parameters: no file system, no network, no clock, no entropy.

mod bitmap;
mod cache;
mod component;
mod deployment;
mod engine;
mod error;
mod filter;
mod hmac;
mod host;
mod kills;
mod log;
mod placement;
mod ticker;
mod verdict;

pub use bitmap::Bitmap;
pub use component::{Component, Digest, Origin, PlugPoint};
pub use deployment::{Deployment, LastError, View};
pub use engine::{Engine, EngineConfig};
pub use error::{CompileError, EngineError, Erred, FilterError, StartError};
pub use filter::{Budget, Context, Filter, Stage};
pub use host::Parameters;
pub use log::GuestLog;
pub use placement::Placement;
pub use verdict::Verdict;
