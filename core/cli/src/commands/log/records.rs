//! `log inspect --records`: the records that stand in a data directory, with the names of their topics.
//!
//! The printed JSON is what `pub --json` reads, so that records can be carried over from a directory that
//! no broker starts on.

use std::collections::BTreeMap;

use bytes::Bytes;
use millstream_batch::Batch;
use millstream_batch::ids::PartitionSlot;
use millstream_batch::{BatchError, Codec};
use millstream_client::{ConsumedRecord, Header};
use millstream_log::io::FileId;
use millstream_log::manifest::Manifest;
use millstream_log::scan::ScannedEntry;
use millstream_machine::fact::archive::BatchAppended;
use millstream_machine::{Fact, Limits, State};

use super::{Shard, fact_of};

/// Which topic and partition each slot of a shard belongs to.
#[derive(Debug, Default)]
pub(super) struct Names(BTreeMap<u32, (String, u32)>);

impl Names {
    /// Those that the newest snapshot knows. The log tells of the others.
    pub(super) fn of(shard: &Shard) -> Self {
        let mut names = Self::default();
        let manifests = shard
            .files
            .iter()
            .rev()
            .filter_map(|(file, bytes)| match file {
                FileId::Manifest {
                    temporary: false, ..
                } => Some((*file, *bytes)),
                _ => None,
            });
        for (file, bytes) in manifests {
            if let Some(state) = restore(shard, file, bytes) {
                names.learn_state(&state);
                break;
            }
        }
        names
    }

    fn learn_state(&mut self, state: &State) {
        for view in state.partitions() {
            if let Some(topic) = state.topic(view.partition.topic) {
                let name = (topic.name.clone(), view.partition.index);
                self.0.insert(view.slot.0, name);
            }
        }
    }

    /// A fact may name the slots of new partitions.
    pub(super) fn learn(&mut self, fact: &Fact) {
        if let Fact::TopicApplied(applied) = fact {
            for added in &applied.added {
                let name = (applied.topic.name.clone(), added.index);
                self.0.insert(added.slot, name);
            }
        }
    }

    pub(super) fn knows(&self, topic: &str) -> bool {
        self.0.values().any(|(name, _)| name == topic)
    }

    /// The topic and partition of a slot; a slot whose name is lost is named by its number.
    fn get(&self, slot: PartitionSlot) -> (String, u32) {
        let known = self.0.get(&slot.0).cloned();
        known.unwrap_or_else(|| (format!("(slot {slot})"), 0))
    }
}

/// The state of a snapshot. `None`: it cannot be used.
fn restore(shard: &Shard, file: FileId, bytes: u64) -> Option<State> {
    let read = |file, len: u64| shard.read(file, 0, usize::try_from(len).ok()?).ok();
    let manifest = Manifest::decode(&read(file, bytes)?)?;
    let begin = manifest.begin;
    let parts = (0..).zip(&manifest.parts).map(|(part, known)| {
        let file = FileId::Snapshot {
            begin: begin.0,
            part,
        };
        read(file, known.len)
    });
    let parts: Vec<Bytes> = parts.collect::<Option<_>>()?;
    State::restore_any(Limits::default(), begin, parts).ok()
}

/// What an entry holds.
#[derive(Debug)]
pub(super) enum Found {
    Nothing,
    Records(Vec<ConsumedRecord>),
    /// Its records cannot be read, and why.
    Lost(String),
}

/// The records of one entry. Names that it brings are learned.
pub(super) fn of(entry: &ScannedEntry, names: &mut Names, codec: &mut Codec) -> Found {
    if entry.header.is_control() {
        return Found::Nothing;
    }
    let fact = match fact_of(entry) {
        Some(Ok(fact)) => fact,
        _ if !entry.header.is_indexed() => return Found::Nothing,
        Some(Err(error)) => return Found::Lost(error.to_string()),
        None => return Found::Lost("its fact is damaged".to_owned()),
    };
    names.learn(&fact);
    let Fact::BatchAppended(batch) = &fact else {
        return Found::Nothing;
    };
    match &entry.raw {
        None => Found::Lost("its bytes are damaged".to_owned()),
        Some(raw) => match records(batch, raw, names, codec) {
            Ok(records) => Found::Records(records),
            Err(error) => Found::Lost(error.to_string()),
        },
    }
}

fn records(
    fact: &BatchAppended,
    raw: &Bytes,
    names: &Names,
    codec: &mut Codec,
) -> Result<Vec<ConsumedRecord>, BatchError> {
    let batch = Batch::check(raw.clone())?;
    let inflated = batch.inflated(codec)?;
    let share = |bytes: &[u8]| inflated.slice_ref(bytes);
    let (topic, partition) = names.get(PartitionSlot(fact.slot));
    let topic: std::sync::Arc<str> = topic.into();
    let base = batch.header().base_offset;
    let records = batch.header().records(&inflated).map(|record| {
        let record = record?;
        let headers = record.headers.map(|header| Header {
            name: String::from_utf8_lossy(header.key).into_owned(),
            value: header.value.map(share),
        });
        Ok(ConsumedRecord {
            topic: topic.clone(),
            partition,
            // Offsets are given when a batch is appended, beside it.
            offset: fact.base_offset + record.offset.wrapping_sub(base) as u64,
            timestamp_ms: record.timestamp,
            append_time_ms: fact.append_time_ms,
            key: record.key.map(share),
            value: record.value.map(share),
            headers: headers.collect(),
        })
    });
    records.collect()
}
