//! What the log reports, and what the durable point lets go.

use millstream_batch::ids::{Lsn, PartitionSlot};
use millstream_log::Event;
use millstream_log::io::{FileId, IoOp};
use millstream_machine::request::Reply;

use super::gate::Held;
use super::waiting::Wait;
use super::{Effect, ShardCore, Shown, Writes, catalog_version};
use crate::call::{Answer, Error};

impl ShardCore {
    pub(super) fn on_event(&mut self, event: Event) {
        match event {
            Event::Io(io) => {
                if let IoOp::Write {
                    file: FileId::Wal(_),
                    ..
                } = io.op
                {
                    self.counters.written_us = Some(self.now.mono_us);
                }
                self.effects.push_back(Effect::Io(io));
            }
            Event::SnapshotPart { begin, bytes } => self.recover_part(begin, &bytes),
            Event::Replay(unit) => self.recover_unit(&unit),
            Event::Recovered(recovery) => self.recovered(*recovery),
            Event::Durable(lsn) => self.durable(lsn),
            Event::Fetched { token, result } => self.fetched(token, result),
            Event::SnapshotPublished { begin } => self.snapshot_published(begin),
            Event::OffsetFound { token, result } => self.offset_found(token, result),
            Event::SnapshotAbandoned { .. } => self.snapshot_abandoned(),
            Event::Sealed { .. } => {
                self.snapshot.wanted();
                if let Writes::Full(_) = self.writes {
                    self.upkeep.retention_soon();
                }
                self.upkeep.sealed();
            }
            Event::SpaceGone(error) => {
                if let Writes::Open | Writes::Full(_) = self.writes {
                    self.effects.push_back(Effect::SpaceGone(error.to_string()));
                    self.writes = Writes::Full(error);
                    self.upkeep.retention_soon(); // may free what is needed
                }
            }
            Event::SpaceBack => {
                if let Writes::Full(_) = self.writes {
                    self.writes = Writes::Open;
                    self.effects.push_back(Effect::SpaceBack);
                }
            }
            Event::Failed(error) => self.failed(&error.to_string()),
        }
    }

    fn durable(&mut self, lsn: Lsn) {
        self.gate.open_to(lsn);
        if let Some(written_us) = self.counters.written_us.take() {
            self.counters
                .sync_us
                .record(self.now.mono_us.saturating_sub(written_us));
        }
        self.release();
        self.wake_readers();
        self.snapshot_publish();
    }

    /// Let go everything at or below the durable point.
    pub(super) fn release(&mut self) {
        while let Some((lsn, held)) = self.gate.release(self.synced()) {
            match held {
                Held::Bytes(bytes) => self.undurable_bytes -= bytes as u64,
                Held::Produced {
                    token,
                    produced,
                    end,
                    started_us,
                } => {
                    if let Some((slot, end)) = end
                        && let Some(shown) = self.shown.get_mut(&slot)
                    {
                        assert!(end > shown.end, "a partition's released end went back");
                        shown.rate.moved(self.now.mono_us, shown.end);
                        shown.end = end;
                        self.fresh.push(slot);
                    }
                    self.counters
                        .produce_us
                        .record(self.now.mono_us.saturating_sub(started_us));
                    self.answer(token, Answer::Reply(Reply::Produced(produced)));
                }
                Held::Answer { token, answer, .. } => self.answer(token, *answer),
                Held::Born { slot, partition } => {
                    self.shown.insert(
                        slot,
                        Shown {
                            partition,
                            ..Shown::default()
                        },
                    );
                }
                Held::Start { slot, start } => {
                    if let Some(shown) = self.shown.get_mut(&slot) {
                        shown.start = start.max(shown.start);
                        self.log.set_start(slot, start);
                    }
                }
                Held::Gone { slot } => self.forget(slot),
                Held::Catalog => {
                    self.catalog_version = catalog_version(lsn);
                    self.wake_catalog();
                }
                Held::Group { group } => {
                    self.wake_group(&group);
                    self.claiming.group_changed(group);
                }
                Held::Change { revision } => self.change_durable(revision),
                Held::Courier { to, row, k } => self.courier_durable(to, row, k),
                Held::Acknowledged { to, row } => {
                    self.courier_acknowledged(to, row);
                    self.wake_forgotten();
                }
            }
        }
    }

    fn forget(&mut self, slot: PartitionSlot) {
        self.shown.remove(&slot);
        self.log.drop_slot(slot);
        self.fresh.push(slot); // its readers learn that it is gone
    }

    /// Fetch again for those who waited for records that are there now.
    fn wake_readers(&mut self) {
        let mut fresh = std::mem::take(&mut self.fresh);
        fresh.sort_unstable();
        fresh.dedup();
        for slot in fresh.drain(..) {
            for token in self.waiting.of_slot(slot) {
                if let Some(Wait::Records {
                    fetch, started_us, ..
                }) = self.waiting.remove(token)
                {
                    self.fetch_again(token, fetch, started_us);
                }
            }
        }
        self.fresh = fresh; // keeps its memory
    }

    /// The log has stopped for good. What is durable goes on being served.
    fn failed(&mut self, why: &str) {
        if let Writes::Stopped(_) = self.writes {
            return;
        }
        self.writes = Writes::Stopped(why.to_owned());
        self.undurable_bytes = 0;
        for held in self.gate.abandon() {
            match held {
                Held::Produced { token, .. }
                | Held::Answer {
                    token, wrote: true, ..
                } => {
                    self.fail(token, Error::Unknown(why.to_owned()));
                }
                Held::Answer {
                    token,
                    wrote: false,
                    ..
                } => self.fail(token, Error::Stopped(why.to_owned())),
                Held::Bytes(_)
                | Held::Born { .. }
                | Held::Start { .. }
                | Held::Gone { .. }
                | Held::Catalog
                | Held::Group { .. }
                | Held::Change { .. }
                | Held::Courier { .. }
                | Held::Acknowledged { .. } => {}
            }
        }
        self.effects.push_back(Effect::Failed(why.to_owned()));
    }
}
