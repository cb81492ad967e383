//! The log's promises, each on a disk in memory.

mod disk;
mod life;
