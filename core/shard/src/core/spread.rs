//! Changes of the catalogue to the other shards: from the state, until each says that it has them.
//!
//! ```text
//!   known (durable) ── acknowledged, some out of turn ── sent ── revision
//! ```
//! Nothing is queued: what a shard does not know yet is read off the state, so a topic that changed twice is
//! told once, and a shard that is down holds nobody up. At the catalogue's shard alone; elsewhere all of this
//! does nothing. Absent on purpose: what a change does (the machine), the wire (the driver).

use std::collections::{BTreeMap, BTreeSet};

use millstream_batch::ids::{CATALOG_SHARD, ShardId};
use millstream_machine::Change;
use millstream_machine::request::{Reply, Request};

use super::gate::Held;
use super::waiting::Wait;
use super::{Effect, ShardCore, Writes};
use crate::call::{About, Answer};

/// Changes on their way to one shard.
const WINDOW: usize = 64;
/// How long an answer is waited for before all is sent again: doubled each time, up to the longest.
const AGAIN_MS: u64 = 10;
const AGAIN_MS_MAX: u64 = 1_000;

/// How far each of the other shards is.
#[derive(Debug, Default)]
pub(super) struct Spreading {
    shards: BTreeMap<ShardId, Told>,
    /// Newest revision that is durable here.
    durable: u64,
}

#[derive(Debug)]
struct Told {
    /// All up to this one are applied there.
    known: u64,
    /// Applied there beyond that.
    beyond: BTreeSet<u64>,
    /// The last that was sent.
    sent: u64,
    /// When what is not answered is sent again, in monotonic microseconds, and after how long that was.
    again_us: Option<u64>,
    after_ms: u64,
    /// It answered with an error: nobody waits for it.
    refuses: bool,
}

impl Spreading {
    pub(super) fn next(&self) -> Option<u64> {
        self.shards.values().filter_map(|told| told.again_us).min()
    }

    /// The shards that do not know this revision, and those of them that are worth waiting for.
    fn behind(&self, revision: u64) -> (Vec<ShardId>, bool) {
        let behind = self.shards.iter();
        let behind = behind.filter(|(_, told)| told.known < revision);
        let waits = behind.clone().any(|(_, told)| !told.refuses);
        (behind.map(|(shard, _)| *shard).collect(), waits)
    }
}

impl ShardCore {
    /// After recovery: what each shard said, and all there is to tell.
    pub(super) fn start_spreading(&mut self) {
        if self.config.shard != CATALOG_SHARD {
            return;
        }
        for shard in (1..self.config.shards).map(ShardId) {
            let known = self.state.catalogue_known(shard);
            let told = Told {
                known,
                beyond: BTreeSet::new(),
                sent: known,
                again_us: None,
                after_ms: AGAIN_MS,
                refuses: false,
            };
            self.spreading.shards.insert(shard, told);
        }
        self.change_durable(self.state.catalogue_revision());
    }

    /// The catalogue is durable up to this revision; the state may be further.
    pub(super) fn change_durable(&mut self, revision: u64) {
        self.spreading.durable = revision;
        let shards: Vec<_> = self.spreading.shards.keys().copied().collect();
        for shard in shards {
            self.tell(shard);
        }
    }

    /// What was not answered in time is told again, from what is known on.
    pub(super) fn spread_tick(&mut self) {
        if !self.may_write() {
            return self.stop_telling();
        }
        let now_us = self.now.mono_us;
        let due = |told: &&mut Told| told.again_us.is_some_and(|at| at <= now_us);
        let mut again = Vec::new();
        for (shard, told) in &mut self.spreading.shards {
            let mut told = Some(told).filter(due);
            if let Some(told) = &mut told {
                told.sent = told.known;
                told.after_ms = (told.after_ms * 2).min(AGAIN_MS_MAX);
                told.again_us = None;
                again.push(*shard);
            }
        }
        for shard in again {
            self.tell(shard);
        }
    }

    /// Another shard has applied the change of this revision, durably; or it could not.
    pub(super) fn spread_told(&mut self, shard: ShardId, revision: u64, applied: bool) {
        let Some(told) = self.spreading.shards.get_mut(&shard) else {
            return;
        };
        told.refuses = !applied;
        if !applied {
            return self.wake_spread(); // it is told again, and nobody waits
        }
        if revision <= told.known || revision > self.spreading.durable {
            return;
        }
        told.beyond.insert(revision);
        told.after_ms = AGAIN_MS;
        let before = told.known;
        for (change, _) in self.state.catalogue_changes(told.known) {
            if !told.beyond.remove(&change) {
                break;
            }
            told.known = change;
        }
        // Of changes that others replaced since, nothing is left to be said.
        let known = told.known;
        told.beyond.retain(|beyond| *beyond > known);
        if told.known > before {
            let revision = told.known;
            if matches!(self.writes, Writes::Open | Writes::Full(_)) {
                let known = Request::CatalogueKnown { shard, revision };
                let _noted = self.carry_out(&known); // if not, it is asked for again after a start
            }
            self.wake_spread();
        }
        self.tell(shard);
    }

    /// Answered when every other shard knows the catalogue up to this revision, but for those that do not
    /// answer, or after `wait_ms`.
    pub(super) fn watch_spread(&mut self, token: u64, revision: u64, wait_ms: u32) {
        let revision = revision.min(self.state.catalogue_revision());
        let (behind, waits) = self.spreading.behind(revision);
        if !waits || wait_ms == 0 {
            return self.spread_to(token, behind);
        }
        self.wait(token, wait_ms, Wait::Spread { revision });
    }

    /// Shards that are not known to know the whole catalogue.
    pub(super) fn shards_behind(&self) -> usize {
        let (behind, _) = self.spreading.behind(self.state.catalogue_revision());
        behind.len()
    }

    pub(super) fn wake_spread(&mut self) {
        for token in self.waiting.of_spread() {
            let Some(Wait::Spread { revision }) = self.waiting.wait(token) else {
                continue;
            };
            let (behind, waits) = self.spreading.behind(*revision);
            if !waits {
                self.waiting.remove(token);
                self.spread_to(token, behind);
            }
        }
    }

    pub(super) fn expired_spread(&mut self, token: u64, revision: u64) {
        let (behind, _) = self.spreading.behind(revision);
        self.spread_to(token, behind);
    }

    fn spread_to(&mut self, token: u64, behind: Vec<ShardId>) {
        if let Some(error) = self.may_never_be() {
            return self.fail(token, error);
        }
        self.hold(Held::Answer {
            token,
            answer: Box::new(Answer::Reply(Reply::Spread { behind })),
            wrote: false,
        });
    }

    /// Nothing is told that could not be noted, or may yet be cut; a start tells it.
    fn stop_telling(&mut self) {
        let shards = self.spreading.shards.values_mut();
        shards.for_each(|told| told.again_us = None);
    }

    fn tell(&mut self, shard: ShardId) {
        if !self.may_write() {
            return self.stop_telling();
        }
        let Some(told) = self.spreading.shards.get_mut(&shard) else {
            return;
        };
        let durable = self.spreading.durable;
        let changes = self.state.catalogue_changes(told.known);
        let window = changes.take(WINDOW);
        let mut any = false;
        for (revision, change) in window.take_while(|(revision, _)| *revision <= durable) {
            if told.beyond.contains(&revision) {
                continue;
            }
            any = true;
            if revision <= told.sent {
                continue; // on its way
            }
            told.sent = revision;
            let request = match change {
                Change::Topic(meta) => Request::ApplyTopic { meta: meta.clone() },
                Change::Gone(id) => Request::ForgetTopic { id, revision },
            };
            self.effects.push_back(Effect::Tell {
                shard,
                request,
                about: About::Catalogue { revision },
            });
        }
        match (any, told.again_us) {
            (false, _) => told.again_us = None,
            (true, None) => told.again_us = Some(self.now.after_ms(told.after_ms)),
            (true, Some(_)) => {}
        }
    }
}
