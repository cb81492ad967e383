//! `group …`: consumer groups and their offsets.

use millstream_client::{GroupDescription, GroupOffset, StartAt};
use serde_json::{Value, json};

use crate::Global;
use crate::connect::{block_on, client};
use crate::exit::Outcome;
use crate::output::{Table, grouped};
use crate::values::start_at;

/// List, describe, reset and delete consumer groups
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List groups
    List,
    /// Show a group's members, offsets and lag
    Describe {
        /// Name of the group.
        group: String,
    },
    /// Set a group's offsets
    #[command(after_help = "\
Positions: start, end, an offset, @milliseconds, -10m, or a time like 2026-01-31T12:00:00Z

Examples:
  millstream group reset billing --topic orders --to start --dry-run
  millstream group reset billing --topic orders --partition 3 --to 41")]
    Reset {
        /// Name of the group.
        group: String,
        /// Topic whose offsets are set.
        #[arg(long)]
        topic: String,
        /// Only this partition; may be given several times.
        #[arg(long, value_name = "N")]
        partition: Vec<u32>,
        /// Where the group goes on.
        #[arg(long, value_parser = start_at, value_name = "POSITION", allow_hyphen_values = true)]
        to: StartAt,
        /// Also while the group has members.
        #[arg(long)]
        force: bool,
        /// Only show what would be.
        #[arg(long)]
        dry_run: bool,
    },
    /// Delete a group without members, with its offsets
    Delete {
        /// Name of the group.
        group: String,
    },
}

pub(crate) fn run(command: Command, global: &Global) -> Outcome {
    block_on(async {
        let client = client(global).await?;
        let admin = client.admin();
        let output = global.output;
        match command {
            Command::List => {
                let mut groups = admin.list_groups().await?;
                groups.sort();
                let mut table = Table::new(["GROUP"]);
                for group in &groups {
                    table.row([group.clone()]);
                }
                let text = if table.is_empty() {
                    "no groups".into()
                } else {
                    table.to_string()
                };
                output.show(text, &json!(groups))?;
            }
            Command::Describe { group } => {
                let described = admin.describe_group(&group).await?;
                output.show(describe(&described), &group_json(&described))?;
            }
            Command::Reset {
                group,
                topic,
                partition,
                to,
                force,
                dry_run,
            } => {
                let offsets = admin
                    .reset_group(&group, &topic, &partition, to, force, dry_run)
                    .await?;
                let head = if dry_run {
                    "would be set to (nothing was changed):"
                } else {
                    "is set to:"
                };
                let text = format!("{group} {head}\n{}", offset_table(&offsets));
                let json = json!({ "group": group, "dry_run": dry_run, "offsets": offsets.iter().map(offset_json).collect::<Value>() });
                output.show(text, &json)?;
            }
            Command::Delete { group } => {
                admin.delete_group(&group).await?;
                output.show(format!("deleted {group}"), &json!({ "deleted": group }))?;
            }
        }
        client.close().await;
        Ok(())
    })
}

fn describe(group: &GroupDescription) -> String {
    let lag: u64 = group.offsets.iter().map(|offset| offset.lag).sum();
    let mut text = format!(
        "{}  {}  epoch {}  lag {}\n",
        group.group,
        group.state,
        group.epoch,
        grouped(lag)
    );
    if !group.members.is_empty() {
        let mut table = Table::new(["MEMBER", "CLIENT", "PARTITIONS"]);
        for member in &group.members {
            let owned: Vec<_> = member
                .partitions
                .iter()
                .map(|(topic, partition)| format!("{topic}/{partition}"))
                .collect();
            let owned = if owned.is_empty() {
                "-".into()
            } else {
                owned.join(" ")
            };
            table.row([member.member.to_string(), member.client.clone(), owned]);
        }
        text.push_str(&format!("\n{table}"));
    }
    if !group.offsets.is_empty() {
        text.push_str(&format!("\n{}", offset_table(&group.offsets)));
    }
    text
}

fn offset_table(offsets: &[GroupOffset]) -> String {
    let mut table = Table::new(["TOPIC", "PARTITION", "COMMITTED", "END", "LAG", "MEMBER"]);
    for offset in offsets {
        table.row([
            offset.topic.clone(),
            offset.partition.to_string(),
            offset
                .committed
                .map_or_else(|| "-".into(), |committed| committed.to_string()),
            offset.end_offset.to_string(),
            offset.lag.to_string(),
            if offset.member == 0 {
                "-".into()
            } else {
                offset.member.to_string()
            },
        ]);
    }
    table.to_string()
}

fn offset_json(offset: &GroupOffset) -> Value {
    json!({
        "topic": offset.topic,
        "partition": offset.partition,
        "committed": offset.committed,
        "start_offset": offset.start_offset,
        "end_offset": offset.end_offset,
        "lag": offset.lag,
        "member": (offset.member != 0).then_some(offset.member),
        "metadata": offset.metadata,
    })
}

fn group_json(group: &GroupDescription) -> Value {
    json!({
        "group": group.group,
        "state": group.state,
        "epoch": group.epoch,
        "lag": group.offsets.iter().map(|offset| offset.lag).sum::<u64>(),
        "members": group.members.iter().map(|member| json!({
            "member": member.member,
            "client": member.client,
            "partitions": member.partitions.iter()
                .map(|(topic, partition)| json!({ "topic": topic, "partition": partition })).collect::<Value>(),
        })).collect::<Value>(),
        "offsets": group.offsets.iter().map(offset_json).collect::<Value>(),
    })
}
