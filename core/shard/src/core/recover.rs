//! The way from a directory to a state: snapshot parts, then facts, then what readers may see.

use millstream_batch::ids::{Lsn, PartitionSlot};
use millstream_log::{Entry, Recovery, Unit};
use millstream_machine::{Fact, install};
use smallvec::SmallVec;

use super::{Effect, Phase, ShardCore, Shown, Writes, catalog_version};

impl ShardCore {
    pub(super) fn recover_part(&mut self, begin: Lsn, bytes: &[u8]) {
        self.restoring = Some(begin);
        if let Err(error) = self.state.restore_part(bytes) {
            self.halt_recovery(format!("snapshot {begin} cannot be restored: {error}"));
        }
    }

    /// All parts were given: the tail follows.
    fn parts_over(&mut self) {
        let Some(begin) = self.restoring.take() else {
            return;
        };
        self.installed = begin;
        if self.writes == Writes::Open
            && let Err(error) = self.state.restored(begin)
        {
            self.halt_recovery(format!("snapshot {begin} cannot be restored: {error}"));
        }
    }

    pub(super) fn recover_unit(&mut self, unit: &Unit) {
        self.parts_over();
        let decode = |entry: &Entry| Fact::decode(entry.kind, &entry.fact);
        let facts: Result<SmallVec<[Fact; 1]>, _> = unit.entries.iter().map(decode).collect();
        let facts = match facts {
            Ok(facts) => facts,
            Err(error) => {
                return self.halt_recovery(format!("fact {} cannot be read: {error}", unit.lsn));
            }
        };
        if self.writes == Writes::Open {
            install(&mut self.state, unit.lsn, &facts);
            self.installed = unit.lsn;
        } // else: what follows a fact that cannot be read cannot be understood
    }

    pub(super) fn recovered(&mut self, mut recovery: Recovery) {
        self.parts_over();
        if let Writes::ReadOnly(why) = &self.writes {
            recovery.read_only.get_or_insert_with(|| why.clone());
        }
        // A write that failed while the end was made safe: what was read there may yet go.
        let unproved = matches!(self.writes, Writes::Stopped(_));
        if let Some(why) = &recovery.read_only {
            if !unproved {
                self.writes = Writes::ReadOnly(why.clone());
            }
        } else {
            assert!(
                self.installed == recovery.last,
                "replay ended at {}, the log at {}",
                self.installed,
                recovery.last
            );
        }
        self.installed = recovery.last;
        self.installed_state = recovery.last;
        self.term = recovery.term;
        self.catalog_version = catalog_version(recovery.last);
        if !unproved {
            self.gate.open_to(recovery.last);
            self.show_all();
        }
        self.phase = Phase::Serving;
        self.anchor_clock();
        self.upkeep.start(self.now, &self.config);
        self.look_at_all_groups();
        self.recovery = Some(Box::new(recovery.clone()));
        self.effects.push_back(Effect::Ready(Box::new(recovery)));
        self.look_at_outboxes();
        self.start_spreading();
    }

    /// What the state knows is shown; what only the log still knows is dropped.
    fn show_all(&mut self) {
        let partitions: Vec<_> = self.state.partitions().collect();
        for info in partitions {
            self.shown.insert(
                info.slot,
                Shown {
                    partition: info.partition,
                    start: info.start,
                    end: info.end,
                    ..Shown::default()
                },
            );
            self.log.set_start(info.slot, info.start);
        }
        let mut gone: Vec<PartitionSlot> = self.log.slots();
        gone.retain(|slot| !self.shown.contains_key(slot));
        if self.writes == Writes::Open {
            for slot in gone {
                self.log.drop_slot(slot);
            }
        }
    }

    fn halt_recovery(&mut self, why: String) {
        if self.writes == Writes::Open {
            self.writes = Writes::ReadOnly(why);
        }
    }
}
