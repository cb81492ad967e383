//! What is done to the shard: power cuts, kills, faults of the disk, flipped bits, clock steps.
//!
//! Absent on purpose: when (the plan), and what the disk makes of it ([`crate::disk`]).

use std::collections::BTreeMap;

use millstream_batch::limits::BLOCK_BYTES;
use millstream_log::io::FileId;
use millstream_shard::call::Call;

use super::{Event, Open, To, World};
use crate::disk::Faults;
use crate::plan::{Mishap, Plan};

impl World {
    /// Power is cut.
    pub(crate) fn crash(&mut self, at: usize) {
        if self.shards[at].core.is_none() {
            return;
        }
        self.say(|_| format!("--- shard {at} crashes"));
        self.history.counts.crashes += 1;
        self.core_gone(at);
        self.shards[at].disk.crash();
        self.shards[at].disk.set_faults(faults(&self.plan));
        self.restart_soon(at);
    }

    /// The process is killed.
    pub(super) fn kill(&mut self, at: usize) {
        if self.shards[at].core.is_none() {
            return;
        }
        self.say(|_| format!("--- shard {at} is killed"));
        self.history.counts.kills += 1;
        self.core_gone(at);
        self.shards[at].disk.kill();
        self.restart_soon(at);
    }

    pub(super) fn restart_soon(&mut self, at: usize) {
        let pause = self.chance.skewed(10, 50_000);
        self.after(pause, Event::Restart(at));
    }

    pub(super) fn core_gone(&mut self, at: usize) {
        let shard = &mut self.shards[at];
        shard.core = None;
        shard.doubted = None;
        shard.shadow.gone();
        shard.ready = false;
        shard.tick_at = None;
        let (gone, open) = std::mem::take(&mut self.open)
            .into_iter()
            .partition(|(_, open)| open.shard == at);
        self.open = open;
        let gone: BTreeMap<u64, Open> = gone;
        for (_, open) in gone {
            self.history.unanswered(&open.asked);
            if let To::Client(client, tag) = open.to {
                let late = self.network.skewed(10, 20_000);
                self.after(late, Event::Lost { client, tag });
            }
        }
    }

    /// The shard failed and is to be started again: with the machine, or the process alone, which reads
    /// back what a failed sync did not bring to the disk.
    pub(super) fn start_again(&mut self, at: usize, after_us: u64) {
        self.shards[at].failed = true;
        let again = if self.chance.one_in(2) {
            Mishap::Kill
        } else {
            Mishap::Crash
        };
        self.after(after_us, Event::Mishap(at, again));
    }

    pub(super) fn mishap(&mut self, at: usize, mishap: Mishap) {
        // Once all is healed, only who failed before is started again.
        let again = matches!(mishap, Mishap::Crash | Mishap::Kill) && self.shards[at].failed;
        if self.closing && !again {
            return;
        }
        self.say(|_| format!("mishap at shard {at}: {mishap:?}"));
        match mishap {
            Mishap::Crash => self.crash(at),
            Mishap::Kill => self.kill(at),
            Mishap::Stop => {
                if self.shards[at].ready && !self.shards[at].failed {
                    self.shards[at].ready = false;
                    self.token += 1;
                    let token = self.token;
                    self.with_core(at, |core, now| core.call(now, token, Call::Stop));
                }
            }
            Mishap::FailWrite => self.shards[at].disk.fail_next_write(),
            Mishap::FailSync => self.shards[at].disk.fail_next_sync(),
            Mishap::Full { for_us } => {
                let disk = &mut self.shards[at].disk;
                disk.set_capacity(disk.used());
                self.after(for_us, Event::SpaceBack(at));
            }
            Mishap::Flip => self.flip(at),
            Mishap::Clock { ms } => self.wall_shift_ms += ms,
        }
    }

    /// In a group that is proved, or now and then in the footer of a file before the last two.
    fn flip(&mut self, at: usize) {
        let files = self.shards[at].disk.files();
        let sealed: Vec<(u64, u64)> = files
            .iter()
            .filter_map(|(file, len)| match file {
                FileId::Wal(n) => Some((*n, *len)),
                _ => None,
            })
            .collect();
        let sealed = &sealed[..sealed.len().saturating_sub(3)];
        let (file, from, to) = match self.chance.pick(sealed).copied() {
            Some((file, len)) if self.chance.one_in(4) => (file, len - 2 * BLOCK_BYTES as u64, len),
            _ => {
                let Some(group) = self
                    .chance
                    .pick(self.shards[at].shadow.proved_groups())
                    .copied()
                else {
                    return;
                };
                (group.file, group.at, group.at + group.bytes)
            }
        };
        let bit = self.chance.range(from * 8, to * 8);
        if self.shards[at].disk.flip_bit(FileId::Wal(file), bit) {
            self.say(|_| format!("flipped bit {bit} of file {file}"));
            self.history.flips += 1;
            self.history.counts.flips += 1;
        }
    }
}

pub(super) fn faults(plan: &Plan) -> Faults {
    Faults {
        delayed: plan.disk_delays,
        read_fails: plan.read_fails,
        ..Faults::default()
    }
}
