//! What waits for the log: answers and visibility, held until durable ≥ the lsn they hang on.
//!
//! ```text
//!  released ◀── durable ──▶ held: (lsn 7, answer) (lsn 7, end of slot 3) (lsn 9, answer) …
//! ```
//! A reply without a fact of its own waits for the last lsn installed when it was decided, so the
//! queue is ordered by construction.
//!
//! Where durable means written (`flush = interval`), answers that are not of a batch wait beside it
//! until what they hang on is synced too: an id, an epoch or an owner that was told is never given
//! again, whatever a power loss takes.

use std::collections::VecDeque;

use millstream_batch::ids::{Lsn, Offset, Partition, PartitionSlot, ShardId};
use millstream_machine::Row;
use millstream_machine::request::Produced;

use crate::call::Answer;

/// One thing that waits.
#[derive(Debug)]
pub(crate) enum Held {
    /// A batch: its answer, and the end it makes visible when it appended something.
    Produced {
        token: u64,
        produced: Produced,
        end: Option<(PartitionSlot, Offset)>,
        started_us: u64,
    },
    /// An answer. `wrote`: whether a fact of this very call hangs on the log.
    Answer {
        token: u64,
        answer: Box<Answer>,
        wrote: bool,
    },
    /// Nothing below `start` is shown or needed any more.
    Start { slot: PartitionSlot, start: Offset },
    /// A partition was created.
    Born {
        slot: PartitionSlot,
        partition: Partition,
    },
    /// A partition was deleted: its bytes may go.
    Gone { slot: PartitionSlot },
    /// The catalog changed with this lsn.
    Catalog,
    /// So many bytes of the log's memory are no longer waiting.
    Bytes(usize),
    /// The group's assignments may have changed.
    Group { group: String },
    /// A change of the catalogue, for the other shards.
    Change { revision: u64 },
    /// A message to another shard.
    Courier { to: ShardId, row: Row, k: u64 },
    /// A shard has acknowledged messages.
    Acknowledged { to: ShardId, row: Row },
}

/// The queue, and how far it is open.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    durable: Lsn,
    held: VecDeque<(Lsn, Held)>,
    /// Waits for the first lsn to be durable and the second to be synced.
    held_synced: VecDeque<(Lsn, Lsn, Held)>,
}

impl Gate {
    pub(crate) fn durable(&self) -> Lsn {
        self.durable
    }

    /// Everything up to `lsn` survives a crash.
    pub(crate) fn open_to(&mut self, lsn: Lsn) {
        assert!(
            lsn >= self.durable,
            "the durable point went back from {} to {lsn}",
            self.durable
        );
        self.durable = lsn;
    }

    pub(crate) fn hold(&mut self, lsn: Lsn, held: Held) {
        debug_assert!(
            self.held.back().is_none_or(|(last, _)| *last <= lsn),
            "held out of order"
        );
        self.held.push_back((lsn, held));
    }

    /// Hold until `lsn` is durable and `synced` is synced.
    pub(crate) fn hold_synced(&mut self, lsn: Lsn, synced: Lsn, held: Held) {
        self.held_synced.push_back((lsn, synced, held));
    }

    /// The next thing that may be released, with the log synced up to `synced`.
    pub(crate) fn release(&mut self, synced: Lsn) -> Option<(Lsn, Held)> {
        if self.held.front().is_some_and(|h| h.0 <= self.durable) {
            return self.held.pop_front();
        }
        let (lsn, hangs_on, _) = self.held_synced.front()?;
        if *lsn > self.durable || *hangs_on > synced {
            return None;
        }
        let (lsn, _, held) = self.held_synced.pop_front()?;
        Some((lsn, held))
    }

    /// Everything that will never be released: the log has stopped.
    pub(crate) fn abandon(&mut self) -> impl Iterator<Item = Held> + use<> {
        let synced = std::mem::take(&mut self.held_synced);
        std::mem::take(&mut self.held)
            .into_iter()
            .map(|(_, held)| held)
            .chain(synced.into_iter().map(|(_, _, held)| held))
    }
}
