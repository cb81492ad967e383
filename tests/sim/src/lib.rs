//! A seeded simulator of one shard: the shipped machine and log on a simulated disk.
//!
//! ```text
//!  seed ─▶ plan ─▶ world: clients ⇄ network ⇄ [layer] ⇄ ShardCore ⇄ [layer] ⇄ SimDisk
//!                    │ history (what was promised)   │ shadow (what was written)
//!                    └──────────── checkers ◀────────┘ audit (what is found)
//! ```
//! One seed is one run. A violated promise names its checker and the seed, and `--seed N` replays it
//! with a trace. `bugs` are planted on purpose, to test the checkers.

pub mod bugs;
pub mod checkers;
pub mod clients;
pub mod dice;
pub mod disk;
pub mod history;
pub mod layer;
pub mod payload;
pub mod plan;
pub mod run;
pub mod shadow;
pub mod world;
