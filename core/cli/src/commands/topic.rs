//! `topic …`: topics, their settings, and giving up what is in them.

mod cut;
mod show;

use millstream_client::StartAt;
use serde_json::json;

use crate::Global;
use crate::confirm::Yes;
use crate::connect::{block_on, client};
use crate::exit::{Failure, Outcome};
use crate::output::note;
use crate::values::{pair, start_at};
use show::topic_json;

/// What the settings of a topic are, for the help of every command that takes them.
macro_rules! settings_help {
    () => {
        "\
Settings:
  retention.ms         drop batches older than 90s, 12h, 5d or milliseconds; -1: never
  retention.bytes      of each partition: 64m, 10GiB, or bytes; -1: unbounded
  max.message.bytes    largest batch
  check.records        read records before storing: plain, or all (compressed too)
"
    };
}

/// Create, list, describe, change and delete topics
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Create a topic
    #[command(after_help = concat!(settings_help!(), "
Example:
  millstream topic create orders --partitions 8 --config retention.ms=5d"))]
    Create {
        /// Name of the topic: 1 to 249 of A-Z a-z 0-9 . _ -
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
    /// List topics with what is in them
    #[command(after_help = "\
RECORDS is what is kept, BYTES its size, estimated from the mean of all that was appended, RECORDS/S what \
was appended over the last ten seconds. A topic of which a partition cannot be reached is shown with what \
can, and the command fails.

Examples:
  millstream topic list
  millstream topic list --names")]
    List {
        /// Only the names, one a line.
        #[arg(long)]
        names: bool,
    },
    /// Show a topic with its partitions
    #[command(after_help = "\
BYTES is what was appended to the partition since it was created.

Example:
  millstream topic describe orders")]
    Describe {
        /// Name of the topic.
        topic: String,
    },
    /// Delete a topic with all its records
    #[command(after_help = "\
Example:
  millstream topic delete orders invoices --if-exists")]
    Delete {
        /// Names of the topics.
        #[arg(required = true)]
        topics: Vec<String>,
        /// It is no failure when a topic is not there.
        #[arg(long)]
        if_exists: bool,
        #[command(flatten)]
        yes: Yes,
    },
    /// Show or change a topic's settings
    #[command(after_help = concat!("\
Every setting is shown with its value, what that means, the broker's default, and which of both holds.

", settings_help!(), "
Examples:
  millstream topic config orders
  millstream topic config orders --set retention.ms=12h --unset retention.bytes"))]
    Config {
        /// Name of the topic.
        topic: String,
        /// Set a setting; may be given several times.
        #[arg(short, long, value_parser = pair, value_name = "KEY=VALUE")]
        set: Vec<(String, String)>,
        /// Go back to the broker's default; may be given several times.
        #[arg(short, long, value_name = "KEY")]
        unset: Vec<String>,
    },
    /// Raise a topic's number of partitions
    #[command(after_help = "\
Records with a key go to the partition of its hash, so more partitions move keys: producers that run \
change with their next acknowledgement, and keep the order of each key's records as they do.

Example:
  millstream topic add-partitions orders --total 12")]
    AddPartitions {
        /// Name of the topic.
        topic: String,
        /// The new number, old partitions included.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        total: u32,
    },
    /// Give up the oldest records of a topic
    #[command(after_help = "\
Positions: start, end, an offset, @milliseconds, -10m, a day like 2026-01-31 (from midnight UTC), or a time like 2026-01-31T12:00:00Z. A time is that \
of the records; the batch in which it lies is kept whole. Offsets are those of one partition.

Examples:
  millstream topic trim orders --before -7d --dry-run
  millstream topic trim orders --before 2026-01-31T12:00:00Z
  millstream topic trim orders --partition 0 --before 41")]
    Trim {
        /// Name of the topic.
        topic: String,
        /// What lies before this position goes.
        #[arg(long, value_parser = start_at, value_name = "POSITION", allow_hyphen_values = true)]
        before: StartAt,
        /// Only this partition; may be given several times.
        #[arg(short, long, value_name = "N")]
        partition: Vec<u32>,
        /// Only show what would be.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        yes: Yes,
    },
    /// Give up all records of a topic; the topic stays, and offsets go on
    #[command(after_help = "\
Examples:
  millstream topic purge orders --dry-run
  millstream topic purge orders --partition 3
  millstream topic purge orders --yes                 # in a script: does not ask")]
    Purge {
        /// Name of the topic.
        topic: String,
        /// Only this partition; may be given several times.
        #[arg(short, long, value_name = "N")]
        partition: Vec<u32>,
        /// Only show what would be.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        yes: Yes,
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
            Command::List { names } => show::list(&admin, names, output).await?,
            Command::Describe { topic } => show::describe(&admin, &topic, output).await?,
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
                if !changes.is_empty() {
                    admin.configure_topic(&topic, &changes).await?;
                }
                let described = admin.describe_topic(&topic, false).await?;
                show::settings(&described, output)?;
            }
            Command::AddPartitions { topic, total } => {
                let described = admin.add_partitions(&topic, total).await?;
                if described.partitions != total {
                    return Err(Failure::failed(format!(
                        "{topic} has {} partition{}",
                        described.partitions,
                        plural(described.partitions.into())
                    )));
                }
                output.show(
                    format!("{topic} has {total} partition{}", plural(total.into())),
                    &topic_json(&described),
                )?;
            }
            Command::Trim {
                topic,
                before,
                partition,
                dry_run,
                yes,
            } => {
                let cut = cut::Cut {
                    topic,
                    before,
                    partitions: partition,
                    dry_run,
                    yes,
                };
                cut.run(&admin, output).await?;
            }
            Command::Purge {
                topic,
                partition,
                dry_run,
                yes,
            } => {
                let cut = cut::Cut {
                    topic,
                    before: StartAt::End,
                    partitions: partition,
                    dry_run,
                    yes,
                };
                cut.run(&admin, output).await?;
            }
        }
        client.close().await;
        Ok(())
    })
}

fn plural(number: u64) -> &'static str {
    if number == 1 { "" } else { "s" }
}
