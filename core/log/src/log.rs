//! [`Log`]: the engine of one shard's log. Holds the parts together and carries answers to them.
//!
//! ```text
//!  append ─▶ write (gather ▸ ready ▸ in flight) ─▶ index (hot tail) ◀─ fetch
//!               │ next file                          │ sealed files
//!             space (spares, recycling)            snapshot, recover
//! ```
//!
//! The protocol of use is in [`crate::api`]. Absent on purpose: the parts' own rules; each is in the
//! module of its name.

use std::collections::VecDeque;

use millstream_batch::ids::{Lsn, Offset, PartitionSlot, Term};
use rustc_hash::FxHashMap;

use crate::api::{Config, Event, Held, OpenRange, Recovery, SealedRange, Stats};
use crate::index::Index;
use crate::io::{FileId, Io, IoDone, IoError, IoErrorKind, IoId, IoOp, IoOutput};
use crate::reader::{Reader, Reading};
use crate::recover::Recover;
use crate::snapshot::Snapshots;
use crate::space::Space;
use crate::write::Writer;

/// What an answer is for.
#[derive(Debug)]
pub(crate) enum Purpose {
    Recover,
    /// The group in flight.
    Group,
    /// A sync without bytes, of the file with this number.
    Sync(u64),
    Footer(u64),
    /// As `Sync`, of a closed file before its footer.
    SyncClosed(u64),
    Allocate {
        spare: u64,
    },
    Take {
        spare: u64,
        wal: u64,
    },
    /// The file that was named ahead is too short for what waits: it is a spare again.
    PutBack {
        spare: u64,
        bytes: u64,
    },
    Recycle {
        wal: u64,
        spare: u64,
    },
    Remove {
        wal: u64,
    },
    /// Remove a file that nothing depends on.
    Tidy,
    SnapshotPart {
        run: u64,
        file: FileId,
    },
    Manifest,
    ManifestName,
    Read(Box<Reading>),
}

/// Events to be polled, and requests not answered yet.
#[derive(Debug, Default)]
pub(crate) struct Out {
    events: VecDeque<Event>,
    purposes: FxHashMap<IoId, Purpose>,
    next: u64,
}

impl Out {
    pub(crate) fn io(&mut self, op: IoOp, purpose: Purpose) {
        let id = IoId(self.next);
        self.next += 1;
        self.purposes.insert(id, purpose);
        self.events.push_back(Event::Io(Io { id, op }));
    }

    pub(crate) fn event(&mut self, event: Event) {
        self.events.push_back(event);
    }
}

/// The log of one shard. See [`crate::api`] for the order in which its methods are called.
#[derive(Debug)]
pub struct Log {
    pub(crate) config: Config,
    pub(crate) out: Out,
    /// Set until `Event::Recovered`.
    pub(crate) recover: Option<Box<Recover>>,
    /// What was found, while the end of the log is made safe before `Event::Recovered`.
    pub(crate) opening: Option<Recovery>,
    pub(crate) failed: Option<IoError>,
    pub(crate) read_only: Option<String>,
    pub(crate) write: Writer,
    pub(crate) index: Index,
    pub(crate) space: Space,
    pub(crate) snapshots: Snapshots,
    pub(crate) reader: Reader,
    pub(crate) stats: Stats,
}

impl Log {
    /// Begin to open the log; [`Event::Recovered`] says when it is open.
    ///
    /// # Panics
    /// When the settings contradict each other: that is the caller's bug.
    #[must_use]
    pub fn open(config: Config) -> Self {
        let block = millstream_batch::limits::BLOCK_BYTES as u64;
        assert!(
            config.segment_bytes.is_multiple_of(block),
            "segment_bytes is a multiple of {block}"
        );
        assert!(
            config.segment_bytes >= 4 * config.group_bytes_max as u64,
            "a segment holds four groups"
        );
        assert!(
            config.first_segment_bytes.is_multiple_of(block)
                && (1..=config.segment_bytes).contains(&config.first_segment_bytes),
            "first_segment_bytes is a multiple of {block}, and no more than segment_bytes"
        );
        assert!(
            config.group_bytes_max <= crate::format::GROUP_BYTES_LIMIT,
            "group_bytes_max is over the format's"
        );
        let mut log = Self {
            write: Writer::new(config.hot_tail_bytes_max),
            reader: Reader::new(config.read_bytes_max),
            config,
            out: Out::default(),
            recover: Some(Box::default()),
            opening: None,
            failed: None,
            read_only: None,
            index: Index::default(),
            space: Space::default(),
            snapshots: Snapshots::default(),
            stats: Stats::default(),
        };
        log.out.io(IoOp::List, Purpose::Recover);
        log
    }

    /// The next thing to do or to know.
    pub fn poll(&mut self) -> Option<Event> {
        self.out.events.pop_front()
    }

    /// The answer of the storage to an [`Event::Io`].
    ///
    /// # Panics
    /// When the request was not this log's, or was answered before.
    pub fn io_done(&mut self, done: IoDone) {
        let purpose = self
            .out
            .purposes
            .remove(&done.id)
            .expect("an answer to a request of this log");
        let result = done.result;
        match purpose {
            Purpose::Recover => self.recover_done(result),
            Purpose::Read(reading) => self.read_done(*reading, result),
            // Nothing is ever retried after a failure: a kernel may have dropped the pages.
            _ if self.failed.is_some() => {}
            Purpose::Group => match result {
                Ok(_) => self.group_done(),
                Err(e) => self.fail(e),
            },
            Purpose::Sync(file) => match result {
                Ok(_) => self.sync_done(file),
                Err(e) => self.fail(e),
            },
            Purpose::SyncClosed(file) => match result {
                Ok(_) => self.closed_synced(file),
                Err(e) => self.fail(e),
            },
            Purpose::Footer(file) => match result {
                Ok(_) => self.footer_done(file),
                Err(e) => self.fail(e),
            },
            Purpose::Allocate { spare } => self.allocate_done(spare, result.map(|_| ())),
            Purpose::Take { spare, wal } => match result {
                Ok(_) => self.take_done(spare, wal),
                Err(e) => self.fail(e),
            },
            Purpose::PutBack { spare, bytes } => match result {
                Ok(_) => self.put_back_done(spare, bytes),
                Err(e) => self.fail(e),
            },
            Purpose::Recycle { wal, spare } => match result {
                Ok(_) => self.freed_done(wal, Some(spare)),
                Err(e) => self.fail(e),
            },
            Purpose::Remove { wal } => match result {
                Ok(_) => self.freed_done(wal, None),
                Err(e) if e.kind == IoErrorKind::NotFound => self.freed_done(wal, None),
                Err(e) => self.fail(e),
            },
            Purpose::Tidy => match result {
                Ok(_) => self.tidy_done(),
                Err(e) if e.kind == IoErrorKind::NotFound => self.tidy_done(),
                Err(e) => self.fail(e),
            },
            Purpose::SnapshotPart { run, file } => {
                self.snapshot_part_done(run, file, result.map(|_| ()));
            }
            Purpose::Manifest => self.manifest_done(result.map(|_| ())),
            Purpose::ManifestName => match result {
                Ok(_) => self.published(),
                Err(e) => self.fail(e),
            },
        }
    }

    /// A write, sync or rename failed: stop writing for good.
    pub(crate) fn fail(&mut self, error: IoError) {
        if self.failed.is_none() {
            self.failed = Some(error.clone());
            self.write.stop();
            let why = format!("the end of the log could not be made safe: {error}");
            self.out.event(Event::Failed(error));
            if let Some(mut found) = self.opening.take() {
                found.read_only.get_or_insert(why);
                self.out.event(Event::Recovered(Box::new(found)));
            }
        }
    }

    /// Whether nothing may be written (failed, read-only, or not open yet).
    pub(crate) fn is_stopped(&self) -> bool {
        self.failed.is_some() || self.read_only.is_some() || self.recover.is_some()
    }

    /// All entries up to here survive a crash (with `sync_each_group = false`: are written).
    #[must_use]
    pub fn durable(&self) -> Lsn {
        self.write.durable
    }

    /// All entries up to here survive a loss of power. With `sync_each_group` it may trail
    /// `durable` while a file is being sealed; without, it is what the last sync covered.
    #[must_use]
    pub fn synced(&self) -> Lsn {
        self.write.synced.1
    }

    /// The last entry appended, durable or not.
    #[must_use]
    pub fn last(&self) -> Lsn {
        self.write.last
    }

    /// The term that new entries carry.
    #[must_use]
    pub fn term(&self) -> Term {
        self.write.term
    }

    /// Records below `start` may go. Never lowers it.
    pub fn set_start(&mut self, slot: PartitionSlot, start: Offset) {
        let released = self.index.set_start(slot, start);
        if !released.is_empty() {
            self.free_files();
        }
    }

    /// The partition is deleted: nothing of it is needed any more.
    pub fn drop_slot(&mut self, slot: PartitionSlot) {
        let released = self.index.drop_slot(slot);
        if !released.is_empty() {
            self.free_files();
        }
    }

    /// Every slot that the log holds batches of, in order, dropped ones left out. After start the
    /// caller drops those that it does not know.
    #[must_use]
    pub fn slots(&self) -> Vec<PartitionSlot> {
        let has = |(slot, s): (&PartitionSlot, &crate::index::SlotIndex)| {
            (!s.dropped && (!s.runs.is_empty() || !s.files.is_empty())).then_some(*slot)
        };
        let mut slots: Vec<_> = self.index.slots.iter().filter_map(has).collect();
        slots.sort_unstable();
        slots
    }

    /// What sealed files hold of each slot that is not dropped, by file and slot.
    pub fn sealed_ranges(&self) -> impl Iterator<Item = SealedRange> {
        self.index.sealed.values().flat_map(move |file| {
            let alive = |s: &&crate::footer::Summary| {
                self.index.slots.get(&s.slot).is_some_and(|i| !i.dropped)
            };
            file.directory.iter().filter(alive).map(|s| SealedRange {
                file: file.number,
                file_last: file.last_lsn,
                slot: s.slot,
                first_offset: s.first,
                last_offset: s.last,
                append_time_max: s.append_time_max,
                bytes: s.bytes,
            })
        })
    }

    /// What sealed files hold of one slot at or past its start, oldest first.
    pub fn sealed_ranges_of(
        &self,
        slot: PartitionSlot,
    ) -> impl Iterator<Item = SealedRange> + Clone {
        let files = self.index.slots.get(&slot).filter(|i| !i.dropped);
        files
            .into_iter()
            .flat_map(|index| index.files.iter())
            .filter_map(move |number| {
                let file = self.index.sealed.get(number)?;
                let s = file.summary(slot)?;
                Some(SealedRange {
                    file: file.number,
                    file_last: file.last_lsn,
                    slot,
                    first_offset: s.first,
                    last_offset: s.last,
                    append_time_max: s.append_time_max,
                    bytes: s.bytes,
                })
            })
    }

    /// What files that are not sealed hold of one slot at or past its start, oldest first.
    pub fn open_ranges_of(&self, slot: PartitionSlot) -> impl Iterator<Item = OpenRange> {
        let index = self.index.slots.get(&slot).filter(|index| !index.dropped);
        let open = self.write.open.front().and_then(|file| file.groups);
        let first_group = open.map_or(u64::MAX, |(first, _)| first);
        index
            .into_iter()
            .flat_map(move |index| {
                let from = index.runs.partition_point(|r| r.group < first_group);
                let runs = index.runs.range(from..);
                runs.skip_while(move |r| r.run.last < index.start)
            })
            .map(|r| OpenRange {
                last_offset: r.run.last,
                append_time_max: r.run.append_time_max,
            })
    }

    /// For each WAL file that is not freed, what still holds it.
    #[must_use]
    pub fn holders(&self) -> Vec<Held> {
        let mut held = Vec::new();
        for file in self.index.sealed.values() {
            let mut by = Vec::new();
            if file.last_lsn > self.snapshots.published
                || file.last_group > self.snapshots.published_group
            {
                by.push(format!(
                    "entries up to {} are not in a snapshot yet (the last one holds up to {})",
                    file.last_lsn, self.snapshots.published
                ));
            }
            let alive = |s: &&crate::footer::Summary| {
                self.index
                    .slots
                    .get(&s.slot)
                    .is_some_and(|i| !i.dropped && s.last >= i.start)
            };
            let slots = file.directory.iter().filter(alive).count();
            by.extend(file.directory.iter().filter(alive).take(8).map(|s| {
                format!(
                    "slot {} retains offsets {} to {} ({} bytes)",
                    s.slot, s.first, s.last, s.bytes
                )
            }));
            if slots > 8 {
                by.push(format!("and {} more slots", slots - 8));
            }
            held.push(Held {
                file: FileId::Wal(file.number).file_name(),
                bytes: file.bytes,
                by,
            });
        }
        for file in &self.write.open {
            let why = if file.closed {
                "its footer is being written"
            } else {
                "it is being written"
            };
            held.push(Held {
                file: FileId::Wal(file.number).file_name(),
                bytes: file.bytes,
                by: vec![why.to_owned()],
            });
        }
        for file in &self.space.freeing {
            let by = if self.reader.is_reading(file.number) {
                "nothing alive; a read in flight"
            } else {
                "nothing alive; it is being freed"
            };
            held.push(Held {
                file: FileId::Wal(file.number).file_name(),
                bytes: file.bytes,
                by: vec![by.to_owned()],
            });
        }
        held.sort_by(|a, b| a.file.cmp(&b.file));
        held
    }

    /// Counters and gauges as they are now.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let sealed: u64 = self.index.sealed.values().map(|f| f.bytes).sum();
        let open: u64 = self
            .write
            .open
            .iter()
            .filter(|f| f.exists)
            .map(|f| f.bytes)
            .sum();
        let freeing: u64 = self.space.freeing.iter().map(|f| f.bytes).sum();
        let (spares, spare_bytes) = self.space.waiting();
        Stats {
            disk_bytes: sealed + open + freeing + spare_bytes,
            wal_files: (self.index.sealed.len() + self.write.open.len() + self.space.freeing.len())
                as u64,
            spare_files: spares,
            hot_bytes: self.write.buffers.used_bytes() as u64,
            queued_bytes: self.write.queued_bytes() as u64,
            cache_bytes: self.reader.cache_bytes() as u64,
            ..self.stats
        }
    }
}

/// The bytes of a read, shared without copying.
pub(crate) fn read_output(result: Result<IoOutput, IoError>) -> Result<bytes::Bytes, IoError> {
    match result {
        Ok(IoOutput::Read(buf)) => Ok(bytes::Bytes::from_owner(buf)),
        Ok(_) => unreachable!("a read is answered by bytes or an error"),
        Err(e) => Err(e),
    }
}
