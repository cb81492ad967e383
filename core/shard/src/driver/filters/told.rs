//! What producers were told of their latest filtered batches, to answer a repetition as the first try was.
//!
//! In memory and bounded: what is forgotten, by a restart too, is answered as not known. Absent on purpose:
//! whether a batch is a repetition (the machine).

use std::collections::VecDeque;

use millstream_batch::ids::{Partition, ProducerEpoch, ProducerId, Sequence};
use millstream_machine::request::Produce;
use rustc_hash::FxHashMap;

use crate::call::Kept;

/// Batches remembered by one shard.
const BATCHES_MAX: usize = 8_192;
/// What their maps and texts may take, in bytes.
const BYTES_MAX: usize = 4 << 20;

/// A batch, as its producer names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Name {
    partition: Partition,
    pid: ProducerId,
    epoch: ProducerEpoch,
    sequence: Sequence,
    sent: u32,
}

/// See the module's header.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// `None`: everything was kept.
    batches: FxHashMap<Name, Option<Kept>>,
    /// Oldest first.
    order: VecDeque<Name>,
    bytes: usize,
}

impl Told {
    /// What the filters left of a batch that is now to be stored.
    pub(super) fn note(&mut self, batch: &Produce, kept: Option<&Kept>) {
        if batch.pid.0 == 0 {
            return; // it is never known for a repetition
        }
        let name = Name::of(batch);
        let kept = kept.cloned();
        self.bytes += bytes(kept.as_ref());
        match self.batches.insert(name, kept) {
            Some(before) => self.bytes -= bytes(before.as_ref()),
            None => self.order.push_back(name),
        }
        while self.order.len() > BATCHES_MAX || self.bytes > BYTES_MAX {
            let Some(oldest) = self.order.pop_front() else {
                return;
            };
            let gone = self.batches.remove(&oldest);
            self.bytes -= bytes(gone.flatten().as_ref());
        }
    }

    /// What they left of it the first time, if that is still known; within, `None`: everything.
    pub(super) fn of(&self, batch: &Produce) -> Option<Option<&Kept>> {
        self.batches.get(&Name::of(batch)).map(Option::as_ref)
    }
}

impl Name {
    fn of(batch: &Produce) -> Self {
        Self {
            partition: batch.partition,
            pid: batch.pid,
            epoch: batch.epoch,
            sequence: batch.sequence,
            sent: batch.sent,
        }
    }
}

fn bytes(kept: Option<&Kept>) -> usize {
    kept.map_or(0, Kept::bytes)
}

#[cfg(test)]
mod tests {
    use millstream_batch::ids::{TimestampMs, TopicId};

    use super::*;

    fn batch(sequence: u64) -> Produce {
        Produce {
            partition: Partition {
                topic: TopicId([1; 16]),
                index: 0,
            },
            pid: ProducerId(7),
            epoch: ProducerEpoch(0),
            sequence: Sequence(sequence),
            sent: 10,
            kept: 10,
            bytes: 100,
            max_timestamp: TimestampMs(0),
        }
    }

    fn kept(bytes: usize) -> Kept {
        Kept {
            records: 1,
            map: Some(vec![0; bytes].into()),
            refused: None,
        }
    }

    #[test]
    fn a_repetition_is_known_until_it_is_long_ago() {
        let mut told = Told::default();
        told.note(&batch(0), Some(&kept(2)));
        told.note(&batch(10), None);
        told.note(&batch(10), None);
        assert_eq!(told.of(&batch(0)), Some(Some(&kept(2))));
        assert_eq!(told.of(&batch(10)), Some(None));
        assert_eq!(told.of(&batch(20)), None);
        for later in 1..=BATCHES_MAX as u64 {
            told.note(&batch(later * 10), None);
        }
        assert_eq!(told.of(&batch(0)), None);
        assert_eq!((told.order.len(), told.bytes), (BATCHES_MAX, 0));
    }

    #[test]
    fn memory_is_bounded() {
        let mut told = Told::default();
        for sequence in 0..2_000 {
            told.note(&batch(sequence), Some(&kept(8 << 10)));
        }
        assert!(told.bytes <= BYTES_MAX && !told.batches.is_empty());
        assert_eq!(told.order.len(), told.batches.len());
        let all: usize = told.batches.values().map(|kept| bytes(kept.as_ref())).sum();
        assert_eq!(told.bytes, all);
    }

    #[test]
    fn who_has_no_identity_repeats_nothing() {
        let mut told = Told::default();
        let anyone = Produce {
            pid: ProducerId(0),
            ..batch(0)
        };
        told.note(&anyone, Some(&kept(1)));
        assert_eq!(told.of(&anyone), None);
    }
}
