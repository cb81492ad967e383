//! A seeded simulator of one shard: the shipped machine and log on a simulated disk.

pub mod disk;
