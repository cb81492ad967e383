//! The log as written, read off the wire to the disk by another reader: what each lsn says, and up to
//! where the disk has really synced.
//!
//! From the facts alone it rebuilds the state a second time, which every recovered state and the live
//! state at the end are compared with (`rebuilt_equals_live`).

use std::collections::BTreeMap;

use millstream_batch::ids::{Lsn, PartitionSlot, ShardId};
use millstream_log::format::{EntryHeader, GROUP_HEADER_BYTES, GroupHeader};
use millstream_log::io::{FileId, Io, IoDone, IoId, IoOp};
use millstream_machine::{Fact, Limits, State, batch_meta, fact::kind, install};

/// Where a group was written: what bits may be flipped in.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    pub file: u64,
    pub at: u64,
    pub bytes: u64,
    pub last: Lsn,
}

#[derive(Debug)]
pub struct Shadow {
    facts: BTreeMap<u64, (u16, Vec<u8>)>,
    /// Lsn of each batch, by slot and base offset.
    batches: BTreeMap<(PartitionSlot, u64), Lsn>,
    /// Writes asked for and not yet answered: the last lsn in them.
    asked: BTreeMap<IoId, Lsn>,
    /// Of those, what really reached the disk as a synced write.
    passed: BTreeMap<IoId, bool>,
    synced: Lsn,
    groups: Vec<Written>,
    state: State,
}

impl Shadow {
    #[must_use]
    pub fn new() -> Self {
        Self {
            facts: BTreeMap::new(),
            batches: BTreeMap::new(),
            asked: BTreeMap::new(),
            passed: BTreeMap::new(),
            synced: Lsn(0),
            groups: Vec::new(),
            state: State::new(ShardId(0), 1, Limits::default()),
        }
    }

    /// The core asks the disk for this.
    pub fn asked(&mut self, io: &Io) {
        let IoOp::Write {
            file: FileId::Wal(file),
            at,
            buf,
            len,
            ..
        } = &io.op
        else {
            return;
        };
        let Some(header) = GroupHeader::decode(&buf[..*len]) else {
            return;
        };
        let mut place = GROUP_HEADER_BYTES;
        let mut last = Lsn(header.first_lsn.0 - 1);
        for _ in 0..header.entries {
            let bytes = &buf[place..*len];
            let entry = EntryHeader::decode(header.incarnation, bytes)
                .expect("an entry that was just written");
            if !entry.is_control() {
                let fact = bytes[entry.fact_range()].to_vec();
                if entry.kind == kind::BATCH_APPENDED {
                    let meta = batch_meta(&fact).expect("a fact that was just written");
                    self.batches
                        .insert((meta.slot, meta.base_offset.0), entry.lsn);
                }
                self.facts.insert(entry.lsn.0, (entry.kind, fact));
                last = entry.lsn;
            }
            place += entry.len();
        }
        self.asked.insert(io.id, last);
        self.groups.push(Written {
            file: *file,
            at: *at,
            bytes: u64::from(header.length),
            last,
        });
    }

    /// This is what reaches the disk.
    pub fn passed(&mut self, io: &Io) {
        if let IoOp::Write { sync, .. } = &io.op {
            self.passed.insert(io.id, *sync);
        }
    }

    /// This is what the disk answers.
    pub fn done(&mut self, done: &IoDone) {
        let synced = self.passed.remove(&done.id).unwrap_or(false);
        if let Some(last) = self.asked.remove(&done.id)
            && synced
            && done.result.is_ok()
        {
            self.synced = self.synced.max(last);
        }
    }

    /// The core is gone: what it asked for will not be answered.
    pub fn gone(&mut self) {
        self.asked.clear();
        self.passed.clear();
    }

    /// The last lsn that the disk really holds for certain.
    #[must_use]
    pub fn synced(&self) -> Lsn {
        self.synced
    }

    /// The lsn of the batch that begins at this offset.
    #[must_use]
    pub fn batch(&self, slot: PartitionSlot, base: u64) -> Option<Lsn> {
        self.batches.get(&(slot, base)).copied()
    }

    /// Groups followed by at least two more: damage in them cannot be taken for a torn end.
    #[must_use]
    pub fn proved_groups(&self) -> &[Written] {
        &self.groups[..self.groups.len().saturating_sub(3)]
    }

    /// The log was recovered up to here: what came after never happened. Says what is wrong when the
    /// recovered state is not what the facts make, or when something synced is missing.
    pub fn recovered(&mut self, last: Lsn, state: &State) -> Result<(), String> {
        self.facts.split_off(&(last.0 + 1));
        self.batches.retain(|_, lsn| *lsn <= last);
        self.groups.retain(|group| group.last <= last);
        let synced = std::mem::replace(&mut self.synced, last);
        if last < synced {
            return Err(format!(
                "recovered up to {last}, though {synced} was synced"
            ));
        }
        self.compare(last, state)
    }

    /// Whether `state` is what the facts up to `last` make.
    pub fn compare(&mut self, last: Lsn, state: &State) -> Result<(), String> {
        let from = self.state.installed().0 + 1;
        if last.0 + 1 < from {
            return Err(format!(
                "the log went back to {last}, {} was recovered before",
                from - 1
            ));
        }
        for (lsn, (kind, bytes)) in self.facts.range(from..last.0 + 1) {
            let fact =
                Fact::decode(*kind, bytes).map_err(|error| format!("fact {lsn}: {error}"))?;
            install(&mut self.state, Lsn(*lsn), &fact);
        }
        if self.state.installed() != last {
            return Err(format!(
                "facts end at {}, the log at {last}",
                self.state.installed()
            ));
        }
        if self.state != *state {
            return Err(format!("the state at {last} is not what its facts make"));
        }
        Ok(())
    }
}

impl Default for Shadow {
    fn default() -> Self {
        Self::new()
    }
}
