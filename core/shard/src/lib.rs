//! One shard: the machine and its log behind one queue.
//!
//! [`core`] decides and writes without thread, clock or disk of its own; the simulator drives
//! exactly that. The `driver` feature adds the task that runs a core on tokio, the queue into it, and
//! the filters that run before it. Absent on purpose: sessions, routing between shards.

pub mod call;
pub mod core;
#[cfg(feature = "driver")]
pub mod driver;
#[cfg(feature = "driver")]
pub mod handle;
