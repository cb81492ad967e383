//! What is done to the shard: power cuts, kills, faults of the disk, flipped bits, clock steps.
//!
//! Absent on purpose: when (the plan), and what the disk makes of it ([`crate::disk`]).

use millstream_batch::limits::BLOCK_BYTES;
use millstream_log::io::FileId;
use millstream_shard::call::Call;

use super::{Event, World};
use crate::disk::Faults;
use crate::plan::{Mishap, Plan};

impl World {
    /// Power is cut.
    pub(crate) fn crash(&mut self) {
        if self.core.is_none() {
            return;
        }
        self.say(|_| "--- crash".to_owned());
        self.history.counts.crashes += 1;
        self.core_gone();
        self.disk.crash();
        self.disk.set_faults(faults(&self.plan));
        self.restart_soon();
    }

    /// The process is killed.
    pub(super) fn kill(&mut self) {
        if self.core.is_none() {
            return;
        }
        self.say(|_| "--- kill".to_owned());
        self.history.counts.kills += 1;
        self.core_gone();
        self.disk.kill();
        self.restart_soon();
    }

    pub(super) fn restart_soon(&mut self) {
        let pause = self.chance.skewed(10, 50_000);
        self.after(pause, Event::Restart);
    }

    pub(super) fn core_gone(&mut self) {
        self.core = None;
        self.doubted = None;
        self.shadow.gone();
        self.ready = false;
        self.tick_at = None;
        for (_, open) in std::mem::take(&mut self.open) {
            self.history.unanswered(&open.asked);
            if let Some((client, tag)) = open.to {
                let late = self.network.skewed(10, 20_000);
                self.after(late, Event::Lost { client, tag });
            }
        }
    }

    /// The shard failed and is to be started again: with the machine, or the process alone, which reads
    /// back what a failed sync did not bring to the disk.
    pub(super) fn start_again(&mut self, after_us: u64) {
        self.failed = true;
        let again = if self.chance.one_in(2) {
            Mishap::Kill
        } else {
            Mishap::Crash
        };
        self.after(after_us, Event::Mishap(again));
    }

    pub(super) fn mishap(&mut self, mishap: Mishap) {
        // Once all is healed, only who failed before is started again.
        let again = matches!(mishap, Mishap::Crash | Mishap::Kill) && self.failed;
        if self.closing && !again {
            return;
        }
        self.say(|_| format!("mishap: {mishap:?}"));
        match mishap {
            Mishap::Crash => self.crash(),
            Mishap::Kill => self.kill(),
            Mishap::Stop => {
                if self.ready && !self.failed {
                    self.ready = false;
                    self.token += 1;
                    let token = self.token;
                    self.with_core(|core, now| core.call(now, token, Call::Stop));
                }
            }
            Mishap::FailWrite => self.disk.fail_next_write(),
            Mishap::FailSync => self.disk.fail_next_sync(),
            Mishap::Full { for_us } => {
                self.disk.set_capacity(self.disk.used());
                self.after(for_us, Event::SpaceBack);
            }
            Mishap::Flip => self.flip(),
            Mishap::Clock { ms } => self.wall_shift_ms += ms,
        }
    }

    /// In a group that is proved, or now and then in the footer of a file before the last two.
    fn flip(&mut self) {
        let files = self.disk.files();
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
                let Some(group) = self.chance.pick(self.shadow.proved_groups()).copied() else {
                    return;
                };
                (group.file, group.at, group.at + group.bytes)
            }
        };
        let bit = self.chance.range(from * 8, to * 8);
        if self.disk.flip_bit(FileId::Wal(file), bit) {
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
