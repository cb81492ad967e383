//! Simulated clients: each sleeps, sends, gets an answer or loses it.
//!
//! They behave as clients do over a bad network: they resend what was lost, in any order the network
//! makes of it. What they are promised is written down by the world, not by them.

mod admin;
mod member;
mod producer;
mod reader;

use millstream_shard::call::{Answer, Call};

pub use admin::Admin;
pub use member::Member;
pub use producer::Producer;
pub use reader::Reader;

use crate::dice::Dice;
use crate::history::History;

/// What a client can see and do in one moment.
#[derive(Debug)]
pub struct Scene<'a> {
    pub now_us: u64,
    pub dice: &'a mut Dice,
    pub history: &'a mut History,
    /// Calls to send, with tags of the client's own.
    pub out: Vec<(u64, Call)>,
    /// When to be woken next.
    pub wake_us: Option<u64>,
    /// No new work: finish what is under way.
    pub closing: bool,
    pub shards: u16,
}

impl Scene<'_> {
    pub fn send(&mut self, tag: u64, call: Call) {
        self.out.push((tag, call));
    }

    pub fn wake_in(&mut self, us: u64) {
        let at = self.now_us + us;
        self.wake_us = Some(self.wake_us.map_or(at, |before| before.min(at)));
    }
}

pub trait Client: std::fmt::Debug {
    /// A wake-up asked for earlier.
    fn wake(&mut self, scene: &mut Scene<'_>);
    fn answer(&mut self, scene: &mut Scene<'_>, tag: u64, answer: Answer);
    /// No answer will come: the call may have arrived or not.
    fn lost(&mut self, scene: &mut Scene<'_>, tag: u64);
    /// Whether nothing is under way.
    fn is_idle(&self) -> bool;
}
