//! The log's promises, each on a disk in memory.

mod damage;
mod disk;
mod golden;
mod inspect;
mod life;
mod model;
mod snapshot;
mod space;
mod torn;
mod units;
