//! The log as written, read off the wire to the disk by another reader: what each lsn says, and up to
//! where the disk has really written and synced.
//!
//! ```text
//!   lsn   1 ──────────── synced ──────────── written ──────────── asked
//!                        a power cut leaves   a kill leaves at
//!                        at least this        least this
//! ```
//! From the facts alone it rebuilds the state a second time, which every recovered state and the live
//! state at the end are compared with (`rebuilt_equals_live`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use millstream_batch::ids::{Lsn, PartitionSlot, ShardId, Term};
use millstream_log::format::{EntryHeader, GROUP_HEADER_BYTES, GroupHeader};
use millstream_log::io::{FileId, Io, IoDone, IoId, IoOp};
use millstream_machine::fact::kind;
use millstream_machine::{Fact, Limits, State, batch_meta, install};

/// Where a group was written: what bits may be flipped in.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    pub file: u64,
    pub at: u64,
    pub bytes: u64,
    pub number: u64,
}

/// A group on its way to where a power cut does not take it.
#[derive(Debug)]
struct Waiting {
    file: u64,
    /// The lsn that it begins with.
    first: Lsn,
    /// Groups up to this one are proved once it is synced.
    proves: u64,
    written: bool,
}

/// A batch as the log has it.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub lsn: Lsn,
    /// Inclusive.
    pub last_offset: u64,
    pub epoch: Term,
}

/// A request to the disk that matters here, not yet answered.
#[derive(Clone, Copy, Debug)]
struct Asked {
    file: u64,
    bytes: usize,
    /// What reached the disk: `None`, nothing did.
    passed: Option<bool>,
}

#[derive(Debug)]
pub struct Shadow {
    /// By lsn: the facts of its unit.
    facts: BTreeMap<u64, Vec<(u16, Vec<u8>)>>,
    /// Lsns of units with a fact of class `State`.
    others: BTreeSet<u64>,
    /// Messages by destination and number: the unit that queued each.
    queued: BTreeMap<(u16, u64), Lsn>,
    /// Changes of the catalogue by revision: the unit of each.
    changes: BTreeMap<u64, Lsn>,
    /// By slot and base offset.
    batches: BTreeMap<(PartitionSlot, u64), Place>,
    asked: BTreeMap<IoId, Asked>,
    /// Groups that are not synced, in the order of the log.
    waiting: VecDeque<Waiting>,
    /// A start is under way: what it writes is not of the log's groups, and all it leaves is synced.
    starting: bool,
    written: Lsn,
    synced: Lsn,
    /// Groups up to this number are proved by one that is synced.
    proved: u64,
    groups: Vec<Written>,
    state: State,
}

impl Shadow {
    #[must_use]
    pub fn new(shard: ShardId, shards: u16) -> Self {
        Self {
            facts: BTreeMap::new(),
            others: BTreeSet::new(),
            queued: BTreeMap::new(),
            changes: BTreeMap::new(),
            batches: BTreeMap::new(),
            asked: BTreeMap::new(),
            waiting: VecDeque::new(),
            starting: true,
            written: Lsn(0),
            synced: Lsn(0),
            proved: 0,
            groups: Vec::new(),
            state: State::new(shard, shards, Limits::default()),
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
        let asked = Asked {
            file: *file,
            bytes: *len,
            passed: None,
        };
        self.asked.insert(io.id, asked);
        let Some(header) = GroupHeader::decode(&buf[..*len]) else {
            return;
        };
        let mut place = GROUP_HEADER_BYTES;
        let mut unit = Vec::new();
        for _ in 0..header.entries {
            let bytes = &buf[place..*len];
            let entry = EntryHeader::decode(header.incarnation, bytes)
                .expect("an entry that was just written");
            if !entry.is_control() {
                let fact = bytes[entry.fact_range()].to_vec();
                self.entry(&entry, &fact);
                unit.push((entry.kind, fact));
                if entry.ends_unit() {
                    // Once more what was found at a start, or another one after a cut.
                    self.facts.insert(entry.lsn.0, std::mem::take(&mut unit));
                }
            }
            place += entry.len();
        }
        self.waiting.push_back(Waiting {
            file: *file,
            first: header.first_lsn,
            proves: header.proved,
            written: false,
        });
        self.groups.push(Written {
            file: *file,
            at: *at,
            bytes: u64::from(header.length),
            number: header.number,
        });
    }

    fn entry(&mut self, entry: &EntryHeader, bytes: &[u8]) {
        if entry.kind == kind::BATCH_APPENDED {
            let meta = batch_meta(bytes).expect("a fact that was just written");
            let place = Place {
                lsn: entry.lsn,
                last_offset: meta.last_offset.0,
                epoch: meta.term,
            };
            self.batches.insert((meta.slot, meta.base_offset.0), place);
        }
        // A list of its own: what the product takes for which is what is checked.
        if !matches!(entry.kind, kind::BATCH_APPENDED | kind::PRODUCER_ADVANCED) {
            self.others.insert(entry.lsn.0);
        }
        match Fact::decode(entry.kind, bytes) {
            Ok(Fact::CourierQueued(queued)) => {
                self.queued.insert((queued.to, queued.k), entry.lsn);
            }
            Ok(Fact::TopicApplied(applied)) => {
                self.changes.insert(applied.topic.revision, entry.lsn);
            }
            Ok(Fact::TopicDeleted(deleted)) => {
                self.changes.insert(deleted.revision, entry.lsn);
            }
            _ => {}
        }
    }

    /// This is what reaches the disk.
    pub fn passed(&mut self, io: &Io) {
        if let IoOp::Write { sync, .. } = &io.op
            && let Some(asked) = self.asked.get_mut(&io.id)
        {
            asked.passed = Some(*sync);
        }
    }

    /// This is what the disk answers.
    pub fn done(&mut self, done: &IoDone) {
        let Some(asked) = self.asked.remove(&done.id) else {
            return;
        };
        let (Some(sync), true, false) = (asked.passed, done.result.is_ok(), self.starting) else {
            return;
        };
        if asked.bytes > 0
            && let Some(group) = self
                .waiting
                .iter_mut()
                .find(|group| group.file == asked.file && !group.written)
        {
            group.written = true; // a file's groups are written one after the other
        }
        if sync {
            for group in &self.waiting {
                if group.file == asked.file && group.written {
                    self.proved = self.proved.max(group.proves);
                }
            }
            self.waiting
                .retain(|group| group.file != asked.file || !group.written);
        }
        self.written = self.up_to(|group| group.written);
        self.synced = self.up_to(|_| false);
    }

    /// The last lsn before the first group that is not like this. A mark counts: without it, what follows is
    /// behind a gap.
    fn up_to(&self, is_past: impl Fn(&Waiting) -> bool) -> Lsn {
        let facts = Lsn(self.facts.last_key_value().map_or(0, |(lsn, _)| *lsn));
        let stopped_by = self.waiting.iter().find(|group| !is_past(group));
        stopped_by.map_or(facts, |group| Lsn(group.first.0 - 1))
    }

    /// The core is gone: what it asked for will not be answered.
    pub fn gone(&mut self) {
        self.asked.clear();
        self.starting = true;
    }

    /// The last lsn that the disk really holds for certain, whatever happens.
    #[must_use]
    pub fn synced(&self) -> Lsn {
        self.synced
    }

    /// The last lsn that is written for certain.
    #[must_use]
    pub fn written(&self) -> Lsn {
        self.written
    }

    /// The last lsn up to this one that is not of a batch.
    #[must_use]
    pub fn other_up_to(&self, lsn: Lsn) -> Lsn {
        Lsn(self
            .others
            .range(..=lsn.0)
            .next_back()
            .copied()
            .unwrap_or(0))
    }

    /// The unit that changed the catalogue to this revision.
    #[must_use]
    pub fn change(&self, revision: u64) -> Option<Lsn> {
        self.changes.get(&revision).copied()
    }

    /// The unit that queued a message.
    #[must_use]
    pub fn queued(&self, to: u16, k: u64) -> Option<Lsn> {
        self.queued.get(&(to, k)).copied()
    }

    /// The batch that begins at this offset.
    #[must_use]
    pub fn batch(&self, slot: PartitionSlot, base: u64) -> Option<Place> {
        self.batches.get(&(slot, base)).copied()
    }

    /// Groups that a synced one after them proves, with two more to spare: damage in them cannot be
    /// taken for a torn end.
    #[must_use]
    pub fn proved_groups(&self) -> &[Written] {
        let spared = &self.groups[..self.groups.len().saturating_sub(3)];
        let proved = spared.iter().rposition(|group| group.number <= self.proved);
        &spared[..proved.map_or(0, |last| last + 1)]
    }

    /// The log was recovered up to here: what came after never happened. Gives the batches of it. Says
    /// what is wrong when the recovered state is not what the facts make, or when something synced is
    /// missing.
    pub fn recovered(
        &mut self,
        last: Lsn,
        state: &State,
    ) -> Result<Vec<(PartitionSlot, u64, Place)>, String> {
        self.facts.split_off(&(last.0 + 1));
        self.others.split_off(&(last.0 + 1));
        let mut lost = Vec::new();
        self.batches.retain(|(slot, base), place| {
            if place.lsn > last {
                lost.push((*slot, *base, *place));
            }
            place.lsn <= last
        });
        self.groups.retain(|group| group.number <= self.proved);
        let synced = self.synced;
        self.started(last);
        if last < synced {
            return Err(format!(
                "recovered up to {last}, though {synced} was synced"
            ));
        }
        self.compare(last, state)?;
        Ok(lost)
    }

    /// A start is over; it found the log up to here and synced that.
    pub fn started(&mut self, last: Lsn) {
        self.starting = false;
        self.waiting.clear();
        (self.written, self.synced) = (last, last);
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
        for (lsn, unit) in self.facts.range(from..last.0 + 1) {
            let decode = |(kind, bytes): &(u16, Vec<u8>)| Fact::decode(*kind, bytes);
            let facts: Result<Vec<_>, _> = unit.iter().map(decode).collect();
            let facts = facts.map_err(|error| format!("fact {lsn}: {error}"))?;
            install(&mut self.state, Lsn(*lsn), &facts);
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
