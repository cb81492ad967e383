//! The broker over real QUIC, by a client that knows only frames: what it promises on the wire, and
//! what it does with clients that break the rules.

mod abuse;
mod added;
mod amounts;
mod catalog;
mod client;
#[path = "../../../sandbox/tests/common/mod.rs"]
mod common;
mod filters;
mod groups;
mod handshakes;
mod identities;
mod members;
mod operators;
mod poison;
mod positions;
mod producer_ids;
mod strangers;
mod streams;
