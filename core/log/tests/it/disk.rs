//! A disk in memory with a live and a durable plane, and a driver that carries I/O to it.
//!
//! Absent on purpose: random schedules (the simulator has those); here each test says what happens.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use millstream_batch::ids::{Lsn, Offset, PartitionSlot, TimestampMs};
use millstream_log::buffer::AlignedBuf;
use millstream_log::io::{FileId, Io, IoDone, IoError, IoErrorKind, IoOp, IoOutput};
use millstream_log::{
    Append, Config, Entry, Event, Fetch, FetchError, IndexKey, Log, Recovery, Refused, TimeQuery,
    Unit,
};

pub(crate) const BLOCK: usize = 4096;
pub(crate) const SEGMENT: u64 = 1 << 18;

/// Files by name; what a crash leaves is `durable` and some of what was not synced.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) live: BTreeMap<FileId, Vec<u8>>,
    pub(crate) durable: BTreeMap<FileId, Vec<u8>>,
    /// Written and not synced: a crash keeps some of these blocks.
    pub(crate) unsynced: Vec<(FileId, usize, Vec<u8>)>,
    /// Bytes that all files may take; `None`: no bound.
    pub(crate) capacity: Option<u64>,
    /// The next operation with this property fails.
    pub(crate) fail_op: Option<fn(&IoOp) -> bool>,
    /// The sync of the next write with this property fails: the write can be read back, and never gets
    /// to the disk, as Linux does it.
    pub(crate) fail_sync: Option<fn(&IoOp) -> bool>,
    /// Every operation done, in words.
    pub(crate) trace: Vec<String>,
}

impl Disk {
    fn used(&self) -> u64 {
        self.live.values().map(|f| f.len() as u64).sum()
    }

    fn error(kind: IoErrorKind, what: &str) -> IoError {
        IoError {
            kind,
            message: format!("test disk: {what}"),
        }
    }

    pub(crate) fn perform(&mut self, op: IoOp) -> Result<IoOutput, IoError> {
        self.trace.push(match &op {
            IoOp::Write {
                file,
                at,
                len,
                sync,
                ..
            } => format!("write {} {at}+{len} sync={sync}", file.file_name()),
            IoOp::WriteFile { file, bytes } => {
                format!("write file {} {}", file.file_name(), bytes.len())
            }
            other => format!("{other:?}"),
        });
        if let Some(fails) = self.fail_op
            && fails(&op)
        {
            self.fail_op = None;
            return Err(Self::error(IoErrorKind::Failed, "input/output error"));
        }
        let sync_fails = self.fail_sync.is_some_and(|fails| fails(&op));
        if sync_fails {
            self.fail_sync = None;
        }
        match op {
            IoOp::List => Ok(IoOutput::Listed(
                self.live
                    .iter()
                    .map(|(f, b)| (*f, b.len() as u64))
                    .collect(),
            )),
            IoOp::Allocate { file, len } => {
                if self.capacity.is_some_and(|c| self.used() + len > c) {
                    return Err(Self::error(IoErrorKind::NoSpace, "no space left on device"));
                }
                assert!(
                    self.live.insert(file, vec![0; len as usize]).is_none(),
                    "{file:?} exists"
                );
                self.durable.insert(file, vec![0; len as usize]);
                Ok(IoOutput::Done)
            }
            IoOp::Write {
                file,
                at,
                buf,
                len,
                sync,
            } => {
                let at = at as usize;
                let live = self
                    .live
                    .get_mut(&file)
                    .expect("write to a file that exists");
                assert!(
                    at.is_multiple_of(BLOCK) && len.is_multiple_of(BLOCK) && at + len <= live.len(),
                    "{file:?} {at}+{len}"
                );
                live[at..at + len].copy_from_slice(&buf[..len]);
                self.unsynced.push((file, at, buf[..len].to_vec()));
                if sync {
                    let durable = self.durable.get_mut(&file).expect("it was made durably");
                    for (_, at, bytes) in self.unsynced.extract_if(.., |(f, _, _)| *f == file) {
                        if !sync_fails {
                            durable[at..at + bytes.len()].copy_from_slice(&bytes);
                        }
                    }
                }
                if sync_fails {
                    return Err(Self::error(
                        IoErrorKind::Failed,
                        "fdatasync: input/output error",
                    ));
                }
                Ok(IoOutput::Done)
            }
            IoOp::WriteFile { file, bytes } => {
                let old = self.live.get(&file).map_or(0, |f| f.len() as u64);
                if self
                    .capacity
                    .is_some_and(|c| self.used() - old + bytes.len() as u64 > c)
                {
                    return Err(Self::error(IoErrorKind::NoSpace, "no space left on device"));
                }
                self.live.insert(file, bytes.to_vec());
                self.durable.insert(file, bytes.to_vec());
                Ok(IoOutput::Done)
            }
            IoOp::Read { file, at, len } => {
                let Some(bytes) = self.live.get(&file) else {
                    return Err(Self::error(IoErrorKind::NotFound, "no such file"));
                };
                assert!((at as usize).is_multiple_of(BLOCK) && len.is_multiple_of(BLOCK));
                let start = (at as usize).min(bytes.len());
                let end = (start + len).min(bytes.len());
                Ok(IoOutput::Read(AlignedBuf::copy_of(&bytes[start..end])))
            }
            IoOp::Rename { from, to } => {
                let Some(bytes) = self.live.remove(&from) else {
                    return Err(Self::error(IoErrorKind::NotFound, "no such file"));
                };
                self.live.insert(to, bytes);
                if let Some(bytes) = self.durable.remove(&from) {
                    self.durable.insert(to, bytes);
                }
                Ok(IoOutput::Done)
            }
            IoOp::Remove { file } => {
                self.durable.remove(&file);
                match self.live.remove(&file) {
                    Some(_) => Ok(IoOutput::Done),
                    None => Err(Self::error(IoErrorKind::NotFound, "no such file")),
                }
            }
        }
    }

    /// Power is lost: only what was synced remains.
    pub(crate) fn crash(&mut self) {
        self.crash_keeping(|| false);
    }

    /// Power is lost: of what was not synced, the blocks that `keep` says remain.
    pub(crate) fn crash_keeping(&mut self, mut keep: impl FnMut() -> bool) {
        for (file, at, bytes) in std::mem::take(&mut self.unsynced) {
            let Some(durable) = self.durable.get_mut(&file) else {
                continue;
            };
            for (i, block) in bytes.chunks(BLOCK).enumerate() {
                if keep() {
                    durable[at + i * BLOCK..][..BLOCK].copy_from_slice(block);
                }
            }
        }
        self.live = self.durable.clone();
    }

    /// A request that was on its way when power was lost: as if written, not synced.
    pub(crate) fn begin_write(&mut self, op: &IoOp) {
        if let IoOp::Write {
            file, at, buf, len, ..
        } = op
        {
            self.unsynced
                .push((*file, *at as usize, buf[..*len].to_vec()));
        }
    }

    /// The process dies: everything written remains.
    pub(crate) fn kill(&mut self) {
        self.durable = self.live.clone();
        self.unsynced.clear();
    }

    pub(crate) fn wal_files(&self) -> Vec<u64> {
        let number = |f: &FileId| {
            if let FileId::Wal(n) = f {
                Some(*n)
            } else {
                None
            }
        };
        self.live.keys().filter_map(number).collect()
    }

    /// Change a byte on both planes.
    pub(crate) fn flip(&mut self, file: FileId, at: usize) {
        for plane in [&mut self.live, &mut self.durable] {
            plane.get_mut(&file).expect("the file exists")[at] ^= 0x10;
        }
    }
}

pub(crate) fn config() -> Config {
    Config {
        segment_bytes: SEGMENT,
        first_segment_bytes: SEGMENT,
        group_bytes_max: 1 << 15,
        hot_tail_bytes_max: 1 << 20,
        read_bytes_max: 36 << 20,
        spares_ready: 1,
        recycle_max: 2,
        sync_each_group: true,
        incarnation: 0x5eed,
    }
}

/// A log on a disk.
pub(crate) struct Shard {
    pub(crate) log: Log,
    pub(crate) disk: Disk,
    pub(crate) waiting: VecDeque<Io>,
    pub(crate) events: Vec<Event>,
    pub(crate) recovery: Option<Recovery>,
    pub(crate) replayed: Vec<Unit>,
    pub(crate) snapshot: Vec<(Lsn, Bytes)>,
    next_token: u64,
}

impl Shard {
    /// Open and run until recovered.
    pub(crate) fn open(disk: Disk, config: Config) -> Self {
        let mut shard = Self::begin(disk, config);
        shard.run();
        assert!(
            shard.recovery.is_some(),
            "not recovered: {:?}",
            shard.disk.trace
        );
        shard
    }

    pub(crate) fn begin(disk: Disk, config: Config) -> Self {
        Self {
            log: Log::open(config),
            disk,
            waiting: VecDeque::new(),
            events: Vec::new(),
            recovery: None,
            replayed: Vec::new(),
            snapshot: Vec::new(),
            next_token: 0,
        }
    }

    /// Take events; I/O waits in `waiting`.
    pub(crate) fn drain(&mut self) {
        while let Some(event) = self.log.poll() {
            match event {
                Event::Io(io) => self.waiting.push_back(io),
                Event::Replay(unit) => {
                    assert!(self.recovery.is_none(), "replay after recovered");
                    assert!(unit.entries.iter().all(|entry| entry.lsn == unit.lsn));
                    self.replayed.push(unit);
                }
                Event::SnapshotPart { begin, bytes } => {
                    assert!(self.replayed.is_empty(), "snapshot after replay");
                    self.snapshot.push((begin, bytes));
                }
                Event::Recovered(recovery) => self.recovery = Some(*recovery),
                other => self.events.push(other),
            }
        }
    }

    /// Do the oldest waiting request. Gives whether there was one.
    pub(crate) fn step(&mut self) -> bool {
        self.drain();
        let Some(io) = self.waiting.pop_front() else {
            return false;
        };
        let result = self.disk.perform(io.op);
        self.log.io_done(IoDone { id: io.id, result });
        self.drain();
        true
    }

    /// Do a waiting request of the caller's choice; requests that touch one file keep their order.
    pub(crate) fn step_any(&mut self, mut pick: impl FnMut(usize) -> usize) -> bool {
        self.drain();
        if self.waiting.is_empty() {
            return false;
        }
        let chosen = files(&self.waiting[pick(self.waiting.len())].op);
        let first = self
            .waiting
            .iter()
            .position(|io| files(&io.op).iter().any(|f| chosen.contains(f)));
        let io = self.waiting.remove(first.unwrap_or(0)).expect("one waits");
        let result = self.disk.perform(io.op);
        self.log.io_done(IoDone { id: io.id, result });
        self.drain();
        true
    }

    pub(crate) fn run(&mut self) {
        while self.step() {}
    }

    pub(crate) fn append(
        &mut self,
        slot: u32,
        offset: u64,
        records: u64,
        raw: &[u8],
    ) -> Result<Lsn, Refused> {
        self.log.append(batch(slot, offset, records, raw))
    }

    /// Append one batch, flush, run, and check that it is durable.
    pub(crate) fn put(&mut self, slot: u32, offset: u64, raw: &[u8]) -> Lsn {
        let lsn = self.append(slot, offset, 1, raw).expect("appended");
        self.log.flush();
        self.run();
        assert!(self.log.durable() >= lsn, "not durable: {:?}", self.events);
        lsn
    }

    pub(crate) fn fetch(
        &mut self,
        slot: u32,
        offset: u64,
        end: u64,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, FetchError> {
        self.next_token += 1;
        let token = self.next_token;
        self.log.fetch(Fetch {
            token,
            slot: PartitionSlot(slot),
            offset: Offset(offset),
            end: Offset(end),
            bytes_max,
        });
        self.run();
        let i = self
            .events
            .iter()
            .position(|e| matches!(e, Event::Fetched { token: t, .. } if *t == token))
            .expect("answered");
        match self.events.remove(i) {
            Event::Fetched { result, .. } => result,
            _ => unreachable!(),
        }
    }

    /// All batches of a slot from `offset`, fetched piece by piece.
    pub(crate) fn read_all(
        &mut self,
        slot: u32,
        offset: u64,
        end: u64,
        bytes_max: usize,
    ) -> Vec<(u64, Bytes)> {
        let mut out = Vec::new();
        let mut offset = offset;
        while offset < end {
            let entries = self.fetch(slot, offset, end, bytes_max).expect("fetched");
            if entries.is_empty() {
                break;
            }
            for entry in entries {
                let (base, last) = fact_offsets(&entry.fact);
                out.push((base, entry.raw));
                offset = last + 1;
            }
        }
        out
    }

    pub(crate) fn by_time(
        &mut self,
        slot: u32,
        timestamp: i64,
        end: u64,
    ) -> Result<Option<IndexKey>, FetchError> {
        self.next_token += 1;
        let token = self.next_token;
        self.log.offset_for_timestamp(TimeQuery {
            token,
            slot: PartitionSlot(slot),
            timestamp: TimestampMs(timestamp),
            end: Offset(end),
        });
        self.run();
        let i = self
            .events
            .iter()
            .position(|e| matches!(e, Event::OffsetFound { token: t, .. } if *t == token))
            .expect("answered");
        match self.events.remove(i) {
            Event::OffsetFound { result, .. } => result,
            _ => unreachable!(),
        }
    }

    /// A snapshot with these archives, published.
    pub(crate) fn snapshot(&mut self, parts: &[&[u8]]) -> Lsn {
        let begin = self.log.begin_snapshot();
        for part in parts {
            self.log.snapshot_part(Bytes::copy_from_slice(part));
        }
        self.log.publish_snapshot();
        self.log.flush();
        self.run();
        begin
    }

    pub(crate) fn has(&self, wanted: impl Fn(&Event) -> bool) -> bool {
        self.events.iter().any(wanted)
    }

    pub(crate) fn found(&self) -> &Recovery {
        self.recovery.as_ref().expect("recovered")
    }
}

fn files(op: &IoOp) -> Vec<FileId> {
    match op {
        IoOp::List => Vec::new(),
        IoOp::Allocate { file, .. }
        | IoOp::Write { file, .. }
        | IoOp::WriteFile { file, .. }
        | IoOp::Read { file, .. }
        | IoOp::Remove { file } => vec![*file],
        IoOp::Rename { from, to } => vec![*from, *to],
    }
}

/// A batch whose fact tells its offsets; timestamps are ten times the offset.
pub(crate) fn batch(slot: u32, offset: u64, records: u64, raw: &[u8]) -> Append {
    let last = offset + records - 1;
    let mut fact = offset.to_le_bytes().to_vec();
    fact.extend(last.to_le_bytes());
    Append {
        kind: 7,
        fact: fact.into(),
        raw: vec![
            Bytes::copy_from_slice(&raw[..raw.len() / 2]),
            Bytes::copy_from_slice(&raw[raw.len() / 2..]),
        ]
        .into(),
        index: Some(IndexKey {
            slot: PartitionSlot(slot),
            base_offset: Offset(offset),
            last_offset: Offset(last),
            append_time: TimestampMs(offset as i64 * 10),
            max_timestamp: TimestampMs(offset as i64 * 10),
        }),
    }
}

pub(crate) fn fact_offsets(fact: &[u8]) -> (u64, u64) {
    let number = |b: &[u8]| u64::from_le_bytes(b.try_into().expect("eight bytes"));
    (number(&fact[..8]), number(&fact[8..16]))
}

/// Bytes that tell where they belong.
pub(crate) fn payload(slot: u32, offset: u64, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (u64::from(slot) * 31 + offset * 7 + i as u64) as u8)
        .collect()
}
