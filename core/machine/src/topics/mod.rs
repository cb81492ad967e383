//! Topics: the catalog's decisions, and their application on every shard.
//!
//! One fact, `TopicApplied`, does both: on the catalog's shard it is the decision, elsewhere its
//! copy; on each it gives slots to the partitions that the shard owns. Absent on purpose: carrying
//! the description from shard to shard (the broker does, and repeats it at start).

mod archive;
mod cell;
pub mod meta;
mod section;
pub mod settings;

use std::ops::Bound;

use millstream_batch::ids::{
    CATALOG_SHARD, Lsn, Partition, PartitionSlot, ShardId, TimestampMs, TopicId,
};
use millstream_batch::limits::{TOPIC_PARTITIONS_MAX, is_name};

use crate::decide::{Decision, full};
use crate::fact::Fact;
use crate::fact::archive::{CatalogueKnown, SlotRecord, TopicApplied, TopicDeleted};
use crate::request::{Refusal, Reply, TOPICS_A_PAGE};
use crate::state::State;
use cell::Topic;
pub(crate) use cell::{Catalogue, Topics};
pub use meta::{Budget, CheckRecords, FilterBinding, OnError, Stage, TopicConfig, TopicMeta};
pub(crate) use section::{CatalogueSection, TopicsSection};
use section::{catalogue_key, key};

/// A page of topics is full with so many bytes of descriptions.
const PAGE_BYTES: usize = 1 << 20;

// --- the catalog ---------------------------------------------------------------------------------

pub(crate) fn create(
    state: &State,
    time: TimestampMs,
    id: TopicId,
    name: &str,
    partitions: u32,
    config: &TopicConfig,
) -> Result<Decision, Refusal> {
    catalog(state)?;
    if !is_name(name) {
        return Err(Refusal::BadName(name.to_owned()));
    }
    if state.topics.by_name(name).is_some() {
        return Err(Refusal::TopicExists(name.to_owned()));
    }
    if state.topics.cell(id).is_some() || state.catalogue.is_deleted(id) {
        return Err(Refusal::BadConfig(format!(
            "topic id {id} was used before: draw another"
        )));
    }
    if partitions == 0 || partitions > TOPIC_PARTITIONS_MAX {
        return Err(Refusal::BadPartitionCount {
            asked: partitions,
            has: 0,
            max: TOPIC_PARTITIONS_MAX,
        });
    }
    settings::check(config)?;
    let meta = TopicMeta {
        id,
        name: name.to_owned(),
        partitions,
        config: config.clone(),
        revision: 0, // `change` gives it
        filters: Vec::new(),
    };
    change(state, time, meta)
}

pub(crate) fn delete(state: &State, time: TimestampMs, name: &str) -> Result<Decision, Refusal> {
    catalog(state)?;
    let topic = by_name(state, name)?;
    let id = topic.meta.id;
    let (deleted, max) = (state.catalogue.untold(state.shards), state.limits.topics);
    if deleted >= max {
        return Err(full(
            "deleted topics that a shard has not heard of",
            deleted + 1,
            max,
        ));
    }
    let revision = state.catalogue.revision + 1;
    Ok(Decision::of(
        gone(id, Some(topic), time, revision),
        Reply::TopicGone { id, revision },
    ))
}

pub(crate) fn configure(
    state: &State,
    time: TimestampMs,
    name: &str,
    set: &[(String, Option<String>)],
) -> Result<Decision, Refusal> {
    catalog(state)?;
    let mut meta = by_name(state, name)?.meta.clone();
    let before = meta.config.clone();
    for (setting, value) in set {
        settings::apply(&mut meta.config, setting, value.as_deref())?;
    }
    if meta.config == before {
        return Ok(Decision::look(Reply::Topic(meta)));
    }
    change(state, time, meta)
}

pub(crate) fn add_partitions(
    state: &State,
    time: TimestampMs,
    name: &str,
    total: u32,
) -> Result<Decision, Refusal> {
    catalog(state)?;
    let mut meta = by_name(state, name)?.meta.clone();
    if total < meta.partitions || total > TOPIC_PARTITIONS_MAX {
        let (asked, has, max) = (total, meta.partitions, TOPIC_PARTITIONS_MAX);
        return Err(Refusal::BadPartitionCount { asked, has, max });
    }
    if total == meta.partitions {
        return Ok(Decision::look(Reply::Topic(meta)));
    }
    meta.partitions = total;
    change(state, time, meta)
}

/// A binding of the same name is replaced where it stands; a new one runs last.
pub(crate) fn deploy_filter(
    state: &State,
    time: TimestampMs,
    topic: &str,
    binding: &FilterBinding,
) -> Result<Decision, Refusal> {
    catalog(state)?;
    if !is_name(&binding.name) {
        return Err(Refusal::BadName(binding.name.clone()));
    }
    if binding.budget.memory_bytes_max == 0 || binding.budget.batch_ms_max == 0 {
        return Err(Refusal::BadConfig(
            "a filter's budget needs memory and time above zero".to_owned(),
        ));
    }
    let bytes: usize = binding
        .parameters
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    if bytes > state.limits.parameter_bytes {
        return Err(full(
            "bytes of filter parameters",
            bytes,
            state.limits.parameter_bytes,
        ));
    }
    let mut meta = by_name(state, topic)?.meta.clone();
    let mut binding = binding.clone();
    binding.parameters.sort();
    let bound = meta.filters.len();
    match meta
        .filters
        .iter_mut()
        .find(|filter| filter.name == binding.name)
    {
        Some(filter) if *filter == binding => return Ok(Decision::look(Reply::Topic(meta))),
        Some(filter) => *filter = binding,
        None if bound >= state.limits.filters_per_topic => {
            return Err(full(
                "filters on the topic",
                bound + 1,
                state.limits.filters_per_topic,
            ));
        }
        None => meta.filters.push(binding),
    }
    change(state, time, meta)
}

pub(crate) fn remove_filter(
    state: &State,
    time: TimestampMs,
    topic: &str,
    name: &str,
) -> Result<Decision, Refusal> {
    catalog(state)?;
    let mut meta = by_name(state, topic)?.meta.clone();
    let before = meta.filters.len();
    meta.filters.retain(|filter| filter.name != name);
    if meta.filters.len() == before {
        return Err(Refusal::UnknownFilter(name.to_owned()));
    }
    change(state, time, meta)
}

pub(crate) fn describe(state: &State, name: &str) -> Result<Decision, Refusal> {
    Ok(Decision::look(Reply::Topic(
        by_name(state, name)?.meta.clone(),
    )))
}

pub(crate) fn describe_id(state: &State, id: TopicId) -> Result<Decision, Refusal> {
    let topic = state.topics.cell(id);
    let topic = topic.ok_or_else(|| Refusal::UnknownTopic(id.to_string()))?;
    Ok(Decision::look(Reply::Topic(topic.meta.clone())))
}

/// A page of topics behind one, in the order of their ids: none when that was the last.
pub(crate) fn list_after(state: &State, after: Option<TopicId>) -> Decision {
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    let mut bytes = 0;
    let page = state
        .topics
        .cells
        .range((from, Bound::Unbounded))
        .map(|(_, topic)| &topic.meta)
        .take(TOPICS_A_PAGE)
        .take_while(|meta| {
            let fits = bytes < PAGE_BYTES; // the first always
            bytes += size_of::<TopicMeta>() + parameter_bytes(meta);
            fits
        });
    Decision::look(Reply::Topics(page.cloned().collect()))
}

fn parameter_bytes(meta: &TopicMeta) -> usize {
    let parameters = meta.filters.iter().flat_map(|filter| &filter.parameters);
    parameters.map(|(key, value)| key.len() + value.len()).sum()
}

pub(crate) fn list(state: &State) -> Decision {
    let mut topics: Vec<_> = state
        .topics
        .iter()
        .map(|topic| topic.meta.clone())
        .collect();
    topics.sort_by(|a, b| a.name.cmp(&b.name).then(a.id.cmp(&b.id)));
    Decision::look(Reply::Topics(topics))
}

// --- every shard ---------------------------------------------------------------------------------

/// Idempotent: an old revision, and a description of a topic deleted lately, do nothing.
pub(crate) fn apply(
    state: &State,
    time: TimestampMs,
    meta: &TopicMeta,
) -> Result<Decision, Refusal> {
    let known = state.topics.cell(meta.id);
    if known.is_some_and(|topic| topic.meta.revision >= meta.revision)
        || state.catalogue.is_deleted(meta.id)
    {
        return Ok(Decision::look(Reply::Done));
    }
    let has = known.map_or(0, |topic| topic.meta.partitions);
    if meta.partitions == 0 || meta.partitions < has || meta.partitions > TOPIC_PARTITIONS_MAX {
        return Err(Refusal::BadPartitionCount {
            asked: meta.partitions,
            has,
            max: TOPIC_PARTITIONS_MAX,
        });
    }
    if !is_name(&meta.name) {
        return Err(Refusal::BadName(meta.name.clone()));
    }
    settings::check(&meta.config)?;
    Ok(Decision::of(applied(state, time, meta)?, Reply::Done))
}

/// A topic that is not known here yet is remembered as deleted all the same: its description may still
/// be on its way.
pub(crate) fn forget(state: &State, time: TimestampMs, id: TopicId, revision: u64) -> Decision {
    match state.topics.cell(id) {
        None if state.catalogue.is_deleted(id) => Decision::look(Reply::Done),
        topic => Decision::of(gone(id, topic, time, revision), Reply::Done),
    }
}

/// Another shard has applied all changes up to a revision.
pub(crate) fn known(state: &State, shard: ShardId, revision: u64) -> Result<Decision, Refusal> {
    catalog(state)?;
    if shard == state.id || shard.0 >= state.shards || revision > state.catalogue.revision {
        return Err(Refusal::BadConfig(format!(
            "shard {shard} is said to know revision {revision} of a catalogue at {}",
            state.catalogue.revision
        )));
    }
    let before = state.catalogue.known.get(&shard).copied();
    if revision <= before.unwrap_or_default() {
        return Ok(Decision::look(Reply::Done));
    }
    let fact = CatalogueKnown {
        shard: shard.0,
        revision,
    };
    Ok(Decision::of(Fact::CatalogueKnown(fact), Reply::Done))
}

pub(crate) fn install_applied(state: &mut State, lsn: Lsn, fact: &TopicApplied) {
    let id = TopicId(fact.topic.id);
    state.catalogue.revision = state.catalogue.revision.max(fact.topic.revision);
    if let Some(last) = fact.added.last() {
        state.catalogue.slot_next = state.catalogue.slot_next.max(PartitionSlot(last.slot + 1));
    }
    if !state.guard.holds(lsn, || key(id)) {
        let added = fact
            .added
            .iter()
            .map(|added| (added.index, PartitionSlot(added.slot)));
        state.topics.put(TopicMeta::from(&fact.topic), added);
    }
}

pub(crate) fn install_deleted(state: &mut State, lsn: Lsn, fact: &TopicDeleted) {
    let id = TopicId(fact.id);
    state.catalogue.revision = state.catalogue.revision.max(fact.revision);
    if !state.guard.holds(lsn, catalogue_key) {
        let shards = if state.id == CATALOG_SHARD {
            state.shards
        } else {
            1
        };
        let known = state.catalogue.known_to_all(shards);
        state.catalogue.delete(id, fact.revision, known);
    }
    // Ids are not used again, so what a snapshot holds of them was taken before this fact.
    state.topics.remove(id);
}

pub(crate) fn install_known(state: &mut State, lsn: Lsn, fact: &CatalogueKnown) {
    if !state.guard.holds(lsn, catalogue_key) {
        let known = state
            .catalogue
            .known
            .entry(ShardId(fact.shard))
            .or_default();
        *known = fact.revision.max(*known);
    }
}

// --- helpers -------------------------------------------------------------------------------------

pub(crate) fn catalog(state: &State) -> Result<(), Refusal> {
    if state.id == CATALOG_SHARD {
        Ok(())
    } else {
        Err(Refusal::NotHome)
    }
}

fn by_name<'a>(state: &'a State, name: &str) -> Result<&'a Topic, Refusal> {
    state
        .topics
        .by_name(name)
        .ok_or_else(|| Refusal::UnknownTopic(name.to_owned()))
}

/// Gives the description the next revision.
fn change(state: &State, time: TimestampMs, mut meta: TopicMeta) -> Result<Decision, Refusal> {
    meta.revision = state.catalogue.revision + 1;
    Ok(Decision::of(
        applied(state, time, &meta)?,
        Reply::Topic(meta),
    ))
}

/// The fact that brings this shard to `meta`: the partitions it newly owns get the next slots.
fn applied(state: &State, time: TimestampMs, meta: &TopicMeta) -> Result<Fact, Refusal> {
    let known = state.topics.cell(meta.id);
    if known.is_none() && state.topics.len() >= state.limits.topics {
        return Err(full("topics", state.topics.len() + 1, state.limits.topics));
    }
    let from = known.map_or(0, |topic| topic.meta.partitions);
    let owned = |index: &u32| {
        Partition {
            topic: meta.id,
            index: *index,
        }
        .shard(state.shards)
            == state.id
    };
    let first = state.catalogue.slot_next.0;
    let added: Vec<_> = (from..meta.partitions)
        .filter(owned)
        .zip(first..u32::MAX)
        .map(|(index, slot)| SlotRecord { index, slot })
        .collect();
    let partitions = state.partitions.len() + added.len();
    if partitions > state.limits.partitions {
        return Err(full("partitions", partitions, state.limits.partitions));
    }
    Ok(Fact::TopicApplied(Box::new(TopicApplied {
        topic: meta.into(),
        added,
        time_ms: time.0,
    })))
}

fn gone(id: TopicId, topic: Option<&Topic>, time: TimestampMs, revision: u64) -> Fact {
    let slots = topic.map_or(&[][..], |topic| &topic.slots);
    Fact::TopicDeleted(Box::new(TopicDeleted {
        id: id.0,
        slots: slots.iter().map(|(_, slot)| slot.0).collect(),
        time_ms: time.0,
        revision,
    }))
}
