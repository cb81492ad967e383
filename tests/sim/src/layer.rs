//! A layer between the core and the world, through which everything passes. The honest one changes
//! nothing; planted bugs are layers that lie.

use std::fmt::Debug;

use millstream_log::io::{Io, IoDone};
use millstream_machine::State;
use millstream_shard::call::{Answer, Call};

use crate::disk::SimDisk;

/// What becomes of a request to the disk.
#[derive(Debug)]
pub enum Passed {
    /// It goes to the disk, perhaps changed.
    On(Io),
    /// It never gets there; the core is told this.
    Answered(IoDone),
}

pub trait Layer: Debug {
    fn submit(&mut self, io: Io, _disk: &mut SimDisk) -> Passed {
        Passed::On(io)
    }

    fn done(&mut self, done: IoDone, _disk: &mut SimDisk) -> IoDone {
        done
    }

    fn call(&mut self, call: Call, _state: &State) -> Call {
        call
    }

    /// An answer given before the core has spoken.
    fn early(&mut self, _call: &Call, _state: &State) -> Option<Answer> {
        None
    }

    fn answer(&mut self, answer: Answer) -> Answer {
        answer
    }

    /// The shard is about to be opened again.
    fn restarting(&mut self, _disk: &mut SimDisk) {}

    /// Added to every delay: nothing, unless chance leaks in.
    fn jitter_us(&mut self) -> u64 {
        0
    }
}

/// Changes nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Honest;

impl Layer for Honest {}
