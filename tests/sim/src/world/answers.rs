//! What must hold at the very moment of an answer, whatever happens afterwards.
//!
//! Absent on purpose: what must still be there at the end of a run ([`crate::checkers`]).

use millstream_batch::ids::{Lsn, PartitionSlot, Term};
use millstream_machine::request::Reply;
use millstream_shard::call::{Answer, Error, Fetch, Fetched};

use super::World;
use crate::history::{Asked, Seen};
use crate::payload::Payload;

impl World {
    /// An answer to a producer or a reader.
    pub(super) fn check_promise(&mut self, at: usize, asked: &Asked, answer: &Answer) {
        match (asked, answer) {
            (Asked::Produce { partition, payload }, Answer::Reply(Reply::Produced(produced))) => {
                let Some(base) = produced.base_offset else {
                    return;
                };
                let Some(slot) = self.shards[at]
                    .core
                    .as_ref()
                    .and_then(|core| core.state().slot(*partition))
                else {
                    return;
                };
                let lsn = self.shards[at]
                    .shadow
                    .batch(slot, base.0)
                    .map(|place| place.lsn);
                let safe = self.shown_up_to(at);
                if lsn.is_none_or(|lsn| lsn > safe) {
                    let what = format!(
                        "{partition} offset {base} ({payload:?}, lsn {lsn:?}) acknowledged, only {safe} is on disk"
                    );
                    self.history.violation("no_acked_loss", what);
                }
            }
            (Asked::Fetch(fetch), Answer::Fetched(fetched)) => {
                let slot = self.shards[at]
                    .core
                    .as_ref()
                    .and_then(|core| core.state().slot(fetch.partition));
                self.check_fetched(at, fetch, slot, fetched);
            }
            _ => {}
        }
    }

    /// What may be acknowledged and shown: what is synced or, under `flush = interval`, written.
    fn shown_up_to(&self, at: usize) -> Lsn {
        let shard = &self.shards[at];
        if shard.config.log.sync_each_group {
            shard.shadow.synced()
        } else {
            shard.shadow.written()
        }
    }

    /// What is told of anything but records rests on nothing that a power cut could take, however the
    /// log is flushed.
    pub(super) fn check_told(
        &mut self,
        at: usize,
        asked: &Asked,
        answer: &Answer,
        installed: Option<Lsn>,
    ) {
        let told = match answer {
            Answer::Reply(Reply::Produced(_)) => false,
            Answer::Reply(_) | Answer::Assignment(_) | Answer::Catalog { .. } => true,
            Answer::Error(Error::Refused(_)) => !matches!(asked, Asked::Fetch(_)),
            _ => false,
        };
        let shard = &self.shards[at];
        let Some(core) = shard.core.as_ref().filter(|_| told) else {
            return;
        };
        let installed = installed.unwrap_or(core.lsns().0);
        let other = shard.shadow.other_up_to(installed);
        let synced = shard.shadow.synced();
        // After a failed write, what is installed and was never written is not what answers rest on.
        let written = installed <= self.shown_up_to(at) || shard.failed;
        if other > synced || !written {
            let what = format!(
                "{asked:?} was answered {answer:?}, which rests on lsn {other} and {installed}; {synced} is synced"
            );
            self.history.violation("told_is_kept", what);
        }
    }

    fn check_fetched(
        &mut self,
        at: usize,
        fetch: &Fetch,
        slot: Option<PartitionSlot>,
        fetched: &Fetched,
    ) {
        let safe = self.shown_up_to(at);
        let partition = fetch.partition;
        for batch in &fetched.batches {
            let base = batch.base_offset.0;
            let Some(payload) = Payload::decode(&batch.batch) else {
                let what =
                    format!("{partition} offset {base}: other bytes are served than were sent");
                self.history.violation("damage_reported", what);
                continue;
            };
            if (payload.kept, payload.pid, payload.epoch) != (batch.records, batch.pid, batch.epoch)
                || payload.pid != 0 && payload.sequence != batch.sequence
            {
                let what = format!("{partition} offset {base}: {payload:?} is served as {batch:?}");
                self.history.violation("damage_reported", what);
            }
            let place = slot.and_then(|slot| self.shards[at].shadow.batch(slot, base));
            if slot.is_some() && place.is_none_or(|place| place.lsn > safe) {
                let what =
                    format!("{partition} offset {base} was readable, and only {safe} is on disk");
                self.history.violation("released_only", what);
            }
            let seen = Seen {
                last: batch.last_offset.0,
                payload,
                epoch: Term(batch.leader_epoch),
            };
            if let Some(what) = self.history.saw(partition, base, seen) {
                self.history.violation("released_only", what);
            }
        }
    }
}
