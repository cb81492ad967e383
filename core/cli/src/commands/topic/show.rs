//! How topics are shown: as a list with what is in them, one with its partitions, one with its settings.

use millstream_client::{Admin, Code, PartitionInfo, TopicDescription};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::plural;
use crate::exit::{Failure, Outcome};
use crate::output::{Output, Table, bytes, grouped, note, uuid};

/// Topics that are described at the same time.
const TOGETHER: usize = 16;

pub(super) async fn list(admin: &Admin, names: bool, output: Output) -> Outcome {
    let mut topics = admin.list_topics().await?;
    topics.sort_by(|a, b| a.name.cmp(&b.name));
    if names {
        let names: Vec<&str> = topics.iter().map(|topic| topic.name.as_str()).collect();
        let text = names.join("\n");
        return match (names.is_empty(), output) {
            (true, Output::Text) => Ok(()),
            _ => output.list(text, names.iter().map(|name| json!({ "topic": name }))),
        };
    }
    let mut described: Vec<TopicDescription> = Vec::with_capacity(topics.len());
    for together in topics.chunks(TOGETHER) {
        let mut waiting = JoinSet::new();
        for topic in together {
            let (admin, name) = (admin.clone(), topic.name.clone());
            waiting.spawn(async move { admin.describe_topic(&name, true).await });
        }
        while let Some(answer) = waiting.join_next().await {
            match answer? {
                Ok(topic) => described.push(topic),
                // It was deleted meanwhile.
                Err(error) if error.code() == Some(Code::UnknownTopic) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    described.sort_by(|a, b| a.name.cmp(&b.name));
    let mut table = Table::new([
        "TOPIC",
        "PARTITIONS",
        "RECORDS",
        "BYTES",
        "RECORDS/S",
        "SETTINGS",
        "FILTERS",
    ]);
    for topic in &described {
        let totals = Totals::of(topic);
        table.row([
            topic.name.clone(),
            topic.partitions.to_string(),
            match unreached(topic) {
                0 => grouped(totals.records),
                _ => format!("{}+", grouped(totals.records)),
            },
            bytes(totals.bytes),
            rate(totals.records_per_second),
            set(topic),
            filters(topic),
        ]);
    }
    let text = if table.is_empty() {
        "no topics".into()
    } else {
        table.to_string()
    };
    let json = described.iter().map(|topic| {
        let totals = Totals::of(topic);
        let mut json = topic_json(topic);
        json["records"] = totals.records.into();
        json["bytes"] = totals.bytes.into();
        json["records_per_second"] = totals.records_per_second.into();
        json
    });
    output.list(text, json)?;
    all_reached(&described)
}

pub(super) async fn describe(admin: &Admin, topic: &str, output: Output) -> Outcome {
    let described = admin.describe_topic(topic, true).await?;
    let mut json = topic_json(&described);
    json["partitions"] = described
        .partition_infos
        .iter()
        .map(partition_json)
        .collect();
    output.show(description(&described), &json)?;
    all_reached(&[described])
}

/// Every setting with its value, the broker's default, and which of both holds.
pub(super) fn settings(topic: &TopicDescription, output: Output) -> Outcome {
    let mut table = Table::new(["SETTING", "VALUE", "MEANING", "DEFAULT", "ORIGIN"]);
    let mut all = Vec::new();
    for (key, default) in &topic.defaults {
        let own = topic.config.iter().find(|(name, _)| name == key);
        let (value, origin) = match own {
            Some((_, value)) => (value, "topic"),
            None => (default, "broker"),
        };
        table.row([
            key.clone(),
            value.clone(),
            meaning(key, value),
            default.clone(),
            origin.to_owned(),
        ]);
        all.push(json!({ "setting": key, "value": value, "default": default, "origin": origin }));
    }
    let mut json = topic_json(topic);
    json["settings"] = all.into();
    output.show(table.to_string(), &json)
}

/// What could not be reached is said, and is a failure: the numbers shown are not the whole.
fn all_reached(topics: &[TopicDescription]) -> Outcome {
    let mut reached = true;
    for topic in topics {
        for partition in &topic.partition_infos {
            if let Some(error) = &partition.error {
                reached = false;
                note(&format!(
                    "error: {} partition {} cannot be reached: {error}",
                    topic.name, partition.partition
                ));
            }
        }
    }
    if reached { Ok(()) } else { Err(Failure::Told) }
}

/// Partitions that cannot say what they hold.
fn unreached(topic: &TopicDescription) -> u64 {
    let infos = topic.partition_infos.iter();
    infos.filter(|info| info.error.is_some()).count() as u64
}

/// What a topic holds, of the partitions that can be reached.
#[derive(Debug, Default, PartialEq)]
struct Totals {
    records: u64,
    bytes: u64,
    records_per_second: f64,
}

impl Totals {
    fn of(topic: &TopicDescription) -> Self {
        let mut totals = Self::default();
        for partition in &topic.partition_infos {
            let kept = partition.end_offset.saturating_sub(partition.start_offset);
            totals.records += kept;
            // Bytes are counted as they are appended; what was given up since had the mean size.
            let mean = partition.bytes as f64 / partition.end_offset.max(1) as f64;
            totals.bytes += (mean * kept as f64).round() as u64;
            totals.records_per_second += partition.records_per_second;
        }
        totals
    }
}

/// A rate for people: whole numbers from ten on.
fn rate(per_second: f64) -> String {
    match per_second {
        x if x <= 0.0 => "0".to_owned(),
        x if x < 10.0 => format!("{x:.1}"),
        x => grouped(x.round() as u64),
    }
}

/// A setting's value in words, where its number does not say it to a person.
fn meaning(key: &str, value: &str) -> String {
    let Ok(number) = value.parse::<i64>() else {
        return "-".to_owned();
    };
    match (number, key.rsplit('.').next()) {
        (-1, Some("ms")) => "for ever".to_owned(),
        (-1, _) => "unbounded".to_owned(),
        (ms, Some("ms")) => duration(ms),
        (number, Some("bytes")) => bytes(number.unsigned_abs()),
        _ => "-".to_owned(),
    }
}

/// Milliseconds in the largest unit that leaves nothing over.
fn duration(ms: i64) -> String {
    let units = [
        (86_400_000, "d"),
        (3_600_000, "h"),
        (60_000, "m"),
        (1_000, "s"),
    ];
    units
        .iter()
        .find(|(unit, _)| ms >= *unit && ms % unit == 0)
        .map_or_else(
            || format!("{ms}ms"),
            |(unit, name)| format!("{}{name}", ms / unit),
        )
}

pub(super) fn topic_json(topic: &TopicDescription) -> Value {
    json!({
        "topic": topic.name,
        "id": uuid(&topic.id),
        "partition_count": topic.partitions,
        "config": topic.config.iter().map(|(key, value)| (key.clone(), value.clone().into())).collect::<serde_json::Map<_, _>>(),
        "filters": topic.filters.iter().map(crate::commands::plugin::filter_json).collect::<Value>(),
        "revision": topic.revision,
    })
}

fn partition_json(partition: &PartitionInfo) -> Value {
    json!({
        "partition": partition.partition,
        "start_offset": partition.start_offset,
        "end_offset": partition.end_offset,
        "records": partition.end_offset.saturating_sub(partition.start_offset),
        "bytes": partition.bytes,
        "records_per_second": partition.records_per_second,
        "shard": partition.shard,
        "leader_epoch": partition.leader_epoch,
        "error": partition.error,
    })
}

fn description(topic: &TopicDescription) -> String {
    let mut text = format!("{}  {}\n", topic.name, uuid(&topic.id));
    if !topic.config.is_empty() {
        text.push_str(&format!("settings  {}\n", set(topic)));
    }
    if !topic.filters.is_empty() {
        text.push_str(&format!("filters   {}\n", filters(topic)));
    }
    text.push('\n');
    let mut table = Table::new([
        "PARTITION",
        "START",
        "END",
        "RECORDS",
        "RECORDS/S",
        "BYTES",
        "SHARD",
        "STATE",
    ]);
    let mut records = 0;
    for partition in &topic.partition_infos {
        let count = partition.end_offset.saturating_sub(partition.start_offset);
        records += count;
        // Of a shard that cannot say it, the end is at least this.
        let known = |number: String| match partition.error {
            Some(_) => format!("{number}+"),
            None => number,
        };
        table.row([
            partition.partition.to_string(),
            partition.start_offset.to_string(),
            known(partition.end_offset.to_string()),
            known(count.to_string()),
            rate(partition.records_per_second),
            bytes(partition.bytes),
            partition.shard.to_string(),
            partition.error.clone().unwrap_or_else(|| "ok".into()),
        ]);
    }
    text.push_str(&table.to_string());
    text.push_str(&match unreached(topic) {
        0 => format!("\n{} record{}\n", grouped(records), plural(records)),
        count => format!(
            "\nat least {} record{}: {count} partition{} cannot be reached\n",
            grouped(records),
            plural(records),
            plural(count)
        ),
    });
    text
}

fn set(topic: &TopicDescription) -> String {
    match topic.config.is_empty() {
        true => "-".into(),
        false => topic
            .config
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect::<Vec<_>>()
            .join(" "),
    }
}

fn filters(topic: &TopicDescription) -> String {
    match topic.filters.is_empty() {
        true => "-".into(),
        false => {
            let named = topic
                .filters
                .iter()
                .map(|filter| format!("{} ({})", filter.name, filter.stage));
            named.collect::<Vec<_>>().join(", ")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_of_what_is_kept() {
        let partition = |start_offset, end_offset, bytes| PartitionInfo {
            start_offset,
            end_offset,
            bytes,
            records_per_second: 1.5,
            ..PartitionInfo::default()
        };
        let topic = TopicDescription {
            partition_infos: vec![
                partition(0, 0, 0),
                partition(0, 10, 1_000),
                partition(5, 10, 1_000),
            ],
            ..TopicDescription::default()
        };
        let totals = Totals {
            records: 15,
            bytes: 1_500,
            records_per_second: 4.5,
        };
        assert_eq!(Totals::of(&topic), totals);
    }

    #[test]
    fn settings_read_as_people_say_them() {
        for (key, value, words) in [
            ("retention.ms", "604800000", "7d"),
            ("retention.ms", "90000", "90s"),
            ("retention.ms", "1", "1ms"),
            ("retention.ms", "-1", "for ever"),
            ("retention.bytes", "-1", "unbounded"),
            ("max.message.bytes", "1048576", "1.0 MiB"),
            ("check.records", "plain", "-"),
        ] {
            assert_eq!(meaning(key, value), words, "{key} {value}");
        }
        assert_eq!(
            [rate(0.0), rate(0.25), rate(12_345.6)],
            ["0", "0.2", "12,346"]
        );
    }
}
