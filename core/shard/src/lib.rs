//! The thread that drives one machine: queue in, effects out.

pub mod call;
pub mod handle;
