//! `topic …`: topics and their settings.

use millstream_client::{PartitionInfo, TopicDescription};
use serde_json::{Value, json};

use crate::Global;
use crate::confirm::Yes;
use crate::connect::{block_on, client};
use crate::exit::{Failure, Outcome};
use crate::output::{Table, bytes, grouped, note, uuid};
use crate::values::pair;

/// Create, list, describe, change and delete topics
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Create a topic
    #[command(after_help = "\
Settings:
  retention.ms         drop batches older than this: 90s, 12h, 5d, or milliseconds; -1: never
  retention.bytes      of each partition: 64m, 10GiB, or bytes; -1: unbounded
  max.message.bytes    largest batch

Example:
  millstream topic create orders --partitions 8 --config retention.ms=5d")]
    Create {
        topic: String,
        /// Number of partitions; it can grow later, never shrink.
        #[arg(short, long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        partitions: u32,
        /// A setting; may be given several times.
        #[arg(short, long, value_parser = pair, value_name = "KEY=VALUE")]
        config: Vec<(String, String)>,
        /// It is no failure when the topic is there already.
        #[arg(long)]
        if_not_exists: bool,
    },
    /// List topics
    List,
    /// Show a topic with its partitions
    Describe { topic: String },
    /// Delete a topic with all its records
    Delete {
        #[arg(required = true)]
        topics: Vec<String>,
        /// It is no failure when a topic is not there.
        #[arg(long)]
        if_exists: bool,
        #[command(flatten)]
        yes: Yes,
    },
    /// Show or change a topic's settings
    #[command(after_help = "\
Examples:
  millstream topic config orders
  millstream topic config orders --set retention.ms=12h --unset retention.bytes")]
    Config {
        topic: String,
        /// Set a setting; may be given several times.
        #[arg(short, long, value_parser = pair, value_name = "KEY=VALUE")]
        set: Vec<(String, String)>,
        /// Go back to the broker's default; may be given several times.
        #[arg(short, long, value_name = "KEY")]
        unset: Vec<String>,
    },
    /// Raise a topic's number of partitions
    AddPartitions {
        topic: String,
        /// The new number, old partitions included.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        total: u32,
    },
}

pub(crate) fn run(command: Command, global: &Global) -> Outcome {
    if let Command::Delete { topics, yes, .. } = &command {
        let list = topics.join(", ");
        yes.confirm(&format!("Delete {list} with all records?"))?;
    }
    block_on(async {
        let client = client(global).await?;
        let admin = client.admin();
        let output = global.output;
        match command {
            Command::Create {
                topic,
                partitions,
                config,
                if_not_exists,
            } => {
                let (made, created) = admin
                    .create_topic(&topic, partitions, &config, if_not_exists)
                    .await?;
                let text = if created {
                    format!(
                        "created {topic} with {} partition{}",
                        made.partitions,
                        plural(made.partitions.into())
                    )
                } else {
                    format!(
                        "{topic} is there already, with {} partition{}",
                        made.partitions,
                        plural(made.partitions.into())
                    )
                };
                let mut json = topic_json(&made);
                json["created"] = created.into();
                output.show(text, &json)?;
            }
            Command::List => {
                let mut topics = admin.list_topics().await?;
                topics.sort_by(|a, b| a.name.cmp(&b.name));
                let mut table = Table::new(["TOPIC", "PARTITIONS", "SETTINGS", "FILTERS"]);
                for topic in &topics {
                    table.row([
                        topic.name.clone(),
                        topic.partitions.to_string(),
                        settings(topic),
                        filters(topic),
                    ]);
                }
                let text = if table.is_empty() {
                    "no topics".into()
                } else {
                    table.to_string()
                };
                output.show(text, &topics.iter().map(topic_json).collect::<Value>())?;
            }
            Command::Describe { topic } => {
                let described = admin.describe_topic(&topic, true).await?;
                let mut json = topic_json(&described);
                json["partitions"] = described
                    .partition_infos
                    .iter()
                    .map(partition_json)
                    .collect();
                output.show(describe(&described), &json)?;
                // What cannot be reached is not empty.
                if described
                    .partition_infos
                    .iter()
                    .any(|partition| partition.error.is_some())
                {
                    return Err(Failure::Told);
                }
            }
            Command::Delete {
                topics, if_exists, ..
            } => {
                let (mut deleted, mut failed) = (Vec::new(), Vec::new());
                for topic in topics {
                    match admin.delete_topic(&topic).await {
                        Ok(()) => deleted.push(topic),
                        Err(error)
                            if if_exists
                                && error.code() == Some(millstream_client::Code::UnknownTopic) => {}
                        Err(error) => failed.push((topic, error)),
                    }
                }
                let what: Vec<_> = failed
                    .iter()
                    .map(|(topic, error)| {
                        json!({ "topic": topic, "name": error.name(), "message": error.message() })
                    })
                    .collect();
                let text = match deleted.len() {
                    0 => "deleted nothing".to_owned(),
                    _ => format!("deleted {}", deleted.join(", ")),
                };
                output.show(text, &json!({ "deleted": deleted, "failed": what }))?;
                if !failed.is_empty() {
                    for (topic, error) in failed {
                        note(&format!("error: {topic}: {error}"));
                    }
                    return Err(Failure::Told);
                }
            }
            Command::Config { topic, set, unset } => {
                let changes: Vec<_> = set
                    .into_iter()
                    .map(|(key, value)| (key, Some(value)))
                    .chain(unset.into_iter().map(|key| (key, None)))
                    .collect();
                let described = if changes.is_empty() {
                    admin.describe_topic(&topic, false).await?
                } else {
                    admin.configure_topic(&topic, &changes).await?
                };
                let mut table = Table::new(["SETTING", "VALUE"]);
                for (key, value) in &described.config {
                    table.row([key.clone(), value.clone()]);
                }
                let text = if table.is_empty() {
                    "only defaults".into()
                } else {
                    table.to_string()
                };
                output.show(text, &topic_json(&described))?;
            }
            Command::AddPartitions { topic, total } => {
                let described = admin.add_partitions(&topic, total).await?;
                if described.partitions != total {
                    return Err(Failure::failed(format!(
                        "{topic} has {} partitions",
                        described.partitions
                    )));
                }
                output.show(
                    format!("{topic} has {total} partitions"),
                    &topic_json(&described),
                )?;
            }
        }
        client.close().await;
        Ok(())
    })
}

fn topic_json(topic: &TopicDescription) -> Value {
    json!({
        "topic": topic.name,
        "id": uuid(&topic.id),
        "partition_count": topic.partitions,
        "config": topic.config.iter().map(|(key, value)| (key.clone(), value.clone().into())).collect::<serde_json::Map<_, _>>(),
        "filters": topic.filters.iter().map(super::plugin::filter_json).collect::<Value>(),
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
        "shard": partition.shard,
        "leader_epoch": partition.leader_epoch,
        "error": partition.error,
    })
}

fn describe(topic: &TopicDescription) -> String {
    let mut text = format!("{}  {}\n", topic.name, uuid(&topic.id));
    if !topic.config.is_empty() {
        text.push_str(&format!("settings  {}\n", settings(topic)));
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
            bytes(partition.bytes),
            partition.shard.to_string(),
            partition.error.clone().unwrap_or_else(|| "ok".into()),
        ]);
    }
    text.push_str(&table.to_string());
    let unreached = topic
        .partition_infos
        .iter()
        .filter(|partition| partition.error.is_some());
    text.push_str(&match unreached.count() {
        0 => format!("\n{} records\n", grouped(records)),
        count => format!(
            "\nat least {} records: {count} partition{} cannot be reached\n",
            grouped(records),
            plural(count as u64)
        ),
    });
    text
}

fn settings(topic: &TopicDescription) -> String {
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

fn plural(number: u64) -> &'static str {
    if number == 1 { "" } else { "s" }
}
