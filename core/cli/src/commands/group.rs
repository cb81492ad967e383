//! `group …`: consumer groups and their offsets.

use millstream_client::{GroupDescription, GroupOffset, GroupSummary, StartAt};
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
    Describe { group: String },
    /// Set a group's offsets
    #[command(after_help = "\
Positions: start, end, an offset, @milliseconds, -10m, or a time like 2026-01-31T12:00:00Z

Examples:
  millstream group reset billing --topic orders --to start --dry-run
  millstream group reset billing --topic orders --partition 3 --to 41")]
    Reset {
        group: String,
        #[arg(long)]
        topic: String,
        /// Only this partition; may be given several times.
        #[arg(long, value_name = "N")]
        partition: Vec<u32>,
        #[arg(long, value_parser = start_at, value_name = "POSITION", allow_hyphen_values = true)]
        to: StartAt,
        /// Also while the group has members: they go on from there, and what they have read and not
        /// committed by then is read again.
        #[arg(long)]
        force: bool,
        /// Only show what would be. Needs no --force.
        #[arg(long)]
        dry_run: bool,
    },
    /// Delete a group, with its offsets
    #[command(after_help = "\
Examples:
  millstream group delete billing
  millstream group delete billing --force    # its members end with an error")]
    Delete {
        group: String,
        /// Also while the group has members: they end.
        #[arg(long)]
        force: bool,
    },
}

pub(crate) fn run(command: Command, global: &Global) -> Outcome {
    block_on(async {
        let client = client(global).await?;
        let admin = client.admin();
        let output = global.output;
        match command {
            Command::List => {
                let groups = admin.list_groups().await?;
                let mut table = Table::new(["GROUP", "STATE", "MEMBERS", "LAG"]);
                for group in &groups {
                    table.row([
                        group.group.clone(),
                        group.state.clone(),
                        group.members.to_string(),
                        grouped(group.lag),
                    ]);
                }
                let text = if table.is_empty() {
                    "no groups".into()
                } else {
                    table.to_string()
                };
                output.show(text, &groups.iter().map(summary_json).collect::<Value>())?;
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
            Command::Delete { group, force } => {
                admin.delete_group(&group, force).await?;
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
        let mut table = Table::new(["MEMBER", "CLIENT", "ADDRESS", "PARTITIONS"]);
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
            table.row([
                member.member.to_string(),
                member.client.clone(),
                member.address.clone().unwrap_or_else(|| "-".into()),
                owned,
            ]);
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

fn summary_json(group: &GroupSummary) -> Value {
    json!({
        "group": group.group,
        "state": group.state,
        "members": group.members,
        "lag": group.lag,
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
            "address": member.address,
            "partitions": member.partitions.iter()
                .map(|(topic, partition)| json!({ "topic": topic, "partition": partition })).collect::<Value>(),
        })).collect::<Value>(),
        "offsets": group.offsets.iter().map(offset_json).collect::<Value>(),
    })
}
