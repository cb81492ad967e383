//! The record batch and the vocabulary of the whole broker: ids, limits, the Kafka v2 layout.
//!
//! Pure: bytes in, bytes out. No clock, entropy, I/O or thread. This crate is the root of the
//! import graph, so it holds only what every other crate must agree on.

pub mod ids;
pub mod limits;
