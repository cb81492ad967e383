//! What becomes of batches: answered by the broker, expired, given up; and telling those who wait.
//!
//! Deliberately absent: sending (the driver), and what a refusal means for order (`lanes`).

use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use millstream_protocol::messages::Produced;
use millstream_protocol::{Code, Frame, Kind};

use super::super::delivery::{Kept, Stored};
use super::super::lanes::{OutOfOrder, Refused, Verdict};
use super::super::refusals::Refusals;
use super::{Driver, End};
use crate::connection::{Incoming, refusal};
use crate::error::{Error, Result};

impl Driver {
    /// All answers that have arrived.
    pub(super) fn answers(&mut self, incoming: &mut Incoming, now: Instant) -> Option<End> {
        loop {
            match incoming.ready() {
                Ok(Some(frame)) => match self.answer(&frame, now) {
                    Ok(None) => {}
                    Ok(Some(end)) => return Some(end),
                    Err(error) => return Some(End::Lost(error)),
                },
                Ok(None) => return None,
                Err(error) => return Some(End::Lost(error)),
            }
        }
    }

    fn answer(&mut self, frame: &Frame, now: Instant) -> Result<Option<End>> {
        let out_of_order = |error: OutOfOrder| Error::protocol(error.to_string());
        match frame.known() {
            Some(Kind::Produced) => {
                let produced: Produced = frame.message()?;
                let parcel = self.lanes.acked(produced.tag, now).map_err(out_of_order)?;
                if let Some(partitions) = produced.partitions {
                    let mut gathering = self.shared.lock();
                    let topic = gathering.topic_of(parcel.item.lane);
                    gathering.grow(topic, partitions);
                }
                let kept = match produced.kept {
                    Some(records) => Kept::told(records, produced.kept_map.clone(), parcel.records),
                    None if produced.duplicate && parcel.item.target.filtered => Kept::Unknown,
                    None => Kept::All,
                };
                let refused = Refusals::told(&produced, parcel.records);
                let (failed, _) = refused.counts(parcel.records);
                let stored = Stored {
                    base_offset: produced.base_offset,
                    kept,
                    refused,
                    append_time_ms: produced.append_time_ms,
                    duplicate: produced.duplicate,
                };
                let counters = &self.shared.counters;
                let records = u64::from(parcel.records - failed);
                counters.acknowledged.fetch_add(records, Ordering::Relaxed);
                let kept = produced.kept.unwrap_or(parcel.records);
                let dropped = (parcel.records - failed).saturating_sub(kept);
                counters
                    .filtered
                    .fetch_add(dropped.into(), Ordering::Relaxed);
                counters.batches.fetch_add(1, Ordering::Relaxed);
                counters
                    .bytes
                    .fetch_add(parcel.item.body.len() as u64, Ordering::Relaxed);
                if produced.duplicate {
                    counters.duplicates.fetch_add(records, Ordering::Relaxed);
                }
                self.done.push((parcel.item.ticket, Ok(stored)));
                self.last_refusal = None;
                Ok(None)
            }
            Some(Kind::Error) => {
                let (tag, error) = refusal(frame)?;
                if tag == 0 {
                    return Ok(Some(if error.retriable() {
                        End::Lost(error)
                    } else {
                        End::Fatal(error)
                    }));
                }
                if error.code() == Some(Code::ProducerFenced) && self.identity.pid != 0 {
                    return Ok(Some(End::Fatal(error)));
                }
                match self
                    .lanes
                    .refused(tag, verdict(&error), now)
                    .map_err(out_of_order)?
                {
                    Refused::Kept => {
                        tracing::debug!(%error, tag, "batch refused; it will be sent again");
                        // A gap behind a batch that was put off only follows from it.
                        let follows = error.code() == Some(Code::SequenceGap);
                        if !follows || self.last_refusal.is_none() {
                            self.last_refusal = Some(error);
                        }
                    }
                    Refused::Failed { parcel, unknown } => {
                        if matches!(
                            error.code(),
                            Some(Code::UnknownTopic | Code::UnknownPartition)
                        ) {
                            self.shared.lock().forget(parcel.item.lane);
                        }
                        let error = if unknown {
                            error.with_unknown_outcome()
                        } else {
                            error
                        };
                        self.done.push((parcel.item.ticket, Err(error)));
                    }
                }
                Ok(None)
            }
            // A newer broker may say more than we understand.
            None => Ok(None),
            Some(kind) => Err(Error::protocol(format!(
                "{} on a producer stream",
                kind.name()
            ))),
        }
    }

    pub(super) fn expire(&mut self, now: Instant) {
        for (parcel, unknown) in self.lanes.expire(now) {
            let error = match &self.last_refusal {
                Some(refusal) => Error::deadline(format!(
                    "the record was not acknowledged before its delivery deadline; the broker's last refusal: {refusal}"
                )),
                None => {
                    Error::deadline("the record was not acknowledged before its delivery deadline")
                }
            };
            let error = if unknown {
                error.with_unknown_outcome()
            } else {
                error
            };
            self.done.push((parcel.item.ticket, Err(error)));
        }
    }

    /// Everything fails, now and from now on.
    pub(super) fn fail(&mut self, error: &Error) {
        tracing::debug!(%error, "the producer cannot go on");
        {
            let mut gathering = self.shared.lock();
            gathering.failed = Some(error.clone());
            gathering.seal_due(Instant::now(), true);
            gathering.take_sealed(&mut self.taken);
        }
        self.queue_taken();
        for (parcel, unknown) in self.lanes.clear() {
            let error = if unknown {
                error.with_unknown_outcome()
            } else {
                error.clone()
            };
            self.done.push((parcel.item.ticket, Err(error)));
        }
        self.report();
    }

    /// Settle what is done, and tell those who wait.
    pub(super) fn report(&mut self) {
        if self.done.is_empty() {
            return;
        }
        let (starved, waited_for) = {
            let mut gathering = self.shared.lock();
            for (ticket, _) in &self.done {
                gathering.settled(ticket);
            }
            let waited_for = gathering.flush_up_to > 0 || gathering.closing;
            (std::mem::take(&mut gathering.starved), waited_for)
        };
        for (ticket, outcome) in self.done.drain(..) {
            let records = ticket.records;
            let (failed, unknown, error) = match &outcome {
                Err(error) if error.unknown_outcome() => (records, records, Some(error.clone())),
                Err(error) => (records, 0, Some(error.clone())),
                Ok(stored) => {
                    let (failed, unknown) = stored.refused.counts(records);
                    (failed, unknown, stored.refused.first(records))
                }
            };
            if let Some(error) = error {
                let counters = &self.shared.counters;
                let add =
                    |counter: &AtomicU64, n: u32| counter.fetch_add(n.into(), Ordering::Relaxed);
                add(&counters.failed, failed);
                add(&counters.unknown, unknown);
                let mut first = counters
                    .first_error
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                first.get_or_insert(error);
            }
            ticket.completion.complete(outcome);
        }
        if starved {
            self.shared.room.notify_waiters();
        }
        if waited_for {
            self.shared.settled.notify_waiters();
        }
    }
}

/// What a refusal means for the batch.
fn verdict(error: &Error) -> Verdict {
    match error.code() {
        Some(Code::SequenceGap) => Verdict::Gap,
        Some(Code::ProducerExpired | Code::UnknownProducer) => Verdict::Expired,
        _ if error.unknown_outcome() => Verdict::Unknown,
        _ if error.retriable() => Verdict::Later {
            after: error.retry_after(),
        },
        _ => Verdict::Never,
    }
}
