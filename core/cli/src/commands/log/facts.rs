//! Facts as fields: what `log inspect` shows of each.

use millstream_machine::Fact;
use millstream_machine::fact::archive::{
    FilterRecord, HoldRecord, MemberRecord, ParameterRecord, PartitionRecord,
};
use serde_json::{Value, json};

use crate::output::uuid;

/// An object of the given fields, by their names.
macro_rules! fields {
    ($kind:literal, $fact:ident: $($field:ident),* $(; $name:literal: $value:expr)*) => {
        json!({ "kind": $kind, $(stringify!($field): $fact.$field,)* $($name: $value,)* })
    };
}

/// A fact's kind and fields.
pub(super) fn fields(fact: &Fact) -> Value {
    match fact {
        Fact::BatchAppended(f) => fields!("batch-appended", f:
            slot, term, base_offset, kept, sent, bytes, append_time_ms, timestamp_ms_max, pid, epoch, sequence),
        Fact::ProducerAdvanced(f) => {
            fields!("producer-advanced", f: slot, pid, epoch, sequence, sent, append_time_ms)
        }
        Fact::PartitionTrimmed(f) => fields!("partition-trimmed", f: slot, start),
        Fact::TopicApplied(f) => {
            let topic = &f.topic;
            let added = f.added.iter();
            let added = added.map(|a| json!({ "partition": a.index, "slot": a.slot }));
            fields!("topic-applied", topic:
                name, partitions, revision;
                "topic": uuid(&topic.id);
                "settings": topic.settings.iter().map(setting).collect::<Value>();
                "filters": topic.filters.iter().map(filter).collect::<Value>();
                "added": added.collect::<Value>();
                "time_ms": f.time_ms)
        }
        Fact::TopicDeleted(f) => {
            fields!("topic-deleted", f: slots, time_ms, revision; "topic": uuid(&f.id))
        }
        Fact::CatalogueKnown(f) => fields!("catalogue-known", f: shard, revision),
        Fact::ProducerGiven(f) => fields!("producer-given", f: pid, epoch, time_ms),
        Fact::ProducersExpired(f) => {
            fields!("producers-expired", f: floor, survivors, unused_before_ms)
        }
        Fact::ClockAdvanced(f) => fields!("clock-advanced", f: time_ms),
        Fact::ClockAccepted(f) => fields!("clock-accepted", f: time_ms),
        Fact::PartitionClaimed(f) => {
            fields!("partition-claimed", f: group, slot, member, epoch)
        }
        Fact::OffsetCommitted(f) => {
            fields!("offset-committed", f: group, slot, offset, metadata, time_ms)
        }
        Fact::OffsetReset(f) => fields!("offset-reset", f: group, slot, offset, time_ms),
        Fact::GroupOffsetsForgotten(f) => fields!("group-offsets-forgotten", f: group, epoch),
        Fact::CourierQueued(f) => {
            fields!("courier-queued", f: to, row, k; "message": f.kind; "bytes": f.body.len())
        }
        Fact::CourierApplied(f) => fields!("courier-applied", f: from, row, k),
        Fact::CourierTrimmed(f) => fields!("courier-trimmed", f: to, row, last),
        Fact::GroupChanged(f) => fields!("group-changed", f: group, epoch, left, time_ms;
            "joined": f.joined.iter().map(member).collect::<Value>();
            "gone": f.gone.iter().map(partition).collect::<Value>();
            "holds": f.holds.iter().map(hold).collect::<Value>()),
        Fact::GroupDeleted(f) => fields!("group-deleted", f: group, epoch),
    }
}

/// Kind and fields on one line; what a fact does not say is left out.
pub(super) fn line(fields: &Value) -> String {
    let mut words = fields["kind"].as_str().unwrap_or_default().to_owned();
    for (name, value) in fields.as_object().into_iter().flatten() {
        match value {
            Value::Null => {}
            Value::Array(list) if list.is_empty() => {}
            _ if name == "kind" => {}
            Value::String(text) => words.push_str(&format!(" {name}={text:?}")),
            value => words.push_str(&format!(" {name}={value}")),
        }
    }
    words
}

fn setting(record: &ParameterRecord) -> Value {
    json!({ "name": record.key, "value": record.value })
}

/// Values of parameters may be secrets: only the keys are shown.
fn filter(record: &FilterRecord) -> Value {
    let parameters = record.parameters.iter();
    let stage = if record.stage == 0 {
        "produce"
    } else {
        "subscribe"
    };
    let digest: String = record.digest.iter().map(|b| format!("{b:02x}")).collect();
    json!({
        "name": record.name, "stage": stage, "digest": digest,
        "parameters": parameters.map(|p| p.key.as_str()).collect::<Vec<_>>(),
    })
}

fn member(record: &MemberRecord) -> Value {
    json!({
        "member": record.member, "client": record.client,
        "topics": record.topics.iter().map(|id| uuid(id)).collect::<Vec<_>>(),
        "session_timeout_ms": record.session_timeout_ms,
    })
}

fn partition(record: &PartitionRecord) -> Value {
    json!({ "topic": uuid(&record.topic), "partition": record.index })
}

fn hold(record: &HoldRecord) -> Value {
    json!({
        "topic": uuid(&record.topic), "partition": record.index, "member": record.member,
        "epoch": record.epoch, "revoking": record.revoking,
    })
}
