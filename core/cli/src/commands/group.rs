//! `group …`: consumer groups and their offsets.

mod reset;

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use millstream_client::{Admin, GroupDescription, GroupOffset, GroupSummary};
use serde_json::{Value, json};

use crate::Global;
use crate::confirm::Yes;
use crate::connect::{block_on, client};
use crate::exit::{Failure, Outcome};
use crate::interrupt::Interrupt;
use crate::output::{Output, Table, grouped, line, note};
use crate::values::limit;

/// From the cursor's home on, nothing: a terminal shows what comes next alone.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// List, describe, reset and delete consumer groups
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List groups: how each stands, its members, and the records that it has still to read
    #[command(after_help = "\
What cannot be reached is said, and is a failure: lag is not 0 then but unknown.

Examples:
  millstream group list
  millstream group list -o json")]
    List,
    /// Show a group's members, offsets and lag
    #[command(after_help = "\
Every partition of the topics that the group reads, or has an offset in, is a row. What cannot be reached is \
said, and is a failure: its lag is not 0 but unknown.

Examples:
  millstream group describe billing
  millstream group describe billing --watch 5s        # again every 5 s, until Ctrl-C")]
    Describe {
        /// Name of the group.
        group: String,
        /// Show it again and again, so often. With -o json: one line each time.
        #[arg(short, long, value_name = "TIME", value_parser = limit, num_args = 0..=1, default_missing_value = "2s")]
        watch: Option<Duration>,
    },
    /// Set a group's offsets
    Reset(reset::Arguments),
    /// Delete a group, with its offsets
    #[command(after_help = "\
Examples:
  millstream group delete billing-old
  millstream group delete billing --force --yes    # its members end with an error")]
    Delete {
        /// Name of the group.
        group: String,
        /// Also while the group has members: they end.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        yes: Yes,
    },
}

pub(crate) fn run(command: Command, global: &Global) -> Outcome {
    // Before there is a connection: a person may think for longer than one lasts.
    if let Command::Delete {
        group,
        force: true,
        yes,
    } = &command
    {
        yes.confirm(&format!("Delete group {group}, and end its members?"))?;
    }
    block_on(async {
        let client = client(global).await?;
        let admin = client.admin();
        let output = global.output;
        let outcome = carry_out(&admin, command, output).await;
        client.close().await;
        outcome
    })
}

async fn carry_out(admin: &Admin, command: Command, output: Output) -> Outcome {
    match command {
        Command::List => {
            let list = admin.list_groups().await?;
            let mut table = Table::new(["GROUP", "STATE", "MEMBERS", "LAG"]);
            for group in &list.groups {
                table.row([
                    group.group.clone(),
                    group.state.clone(),
                    group.members.to_string(),
                    group.lag.map_or_else(|| "?".into(), grouped),
                ]);
            }
            let text = if table.is_empty() {
                "no groups".into()
            } else {
                table.to_string()
            };
            output.list(text, list.groups.iter().map(summary_json))?;
            told(&list.unreachable)
        }
        Command::Describe { group, watch: None } => {
            let described = admin.describe_group(&group).await?;
            output.show(describe(&described), &group_json(&described))?;
            told(&unreached(&described))
        }
        Command::Describe {
            group,
            watch: Some(every),
        } => watch(admin, &group, every, output).await,
        Command::Reset(arguments) => reset::run(admin, &arguments, output).await,
        Command::Delete { group, force, .. } => {
            admin.delete_group(&group, force).await?;
            output.show(format!("deleted {group}"), &json!({ "deleted": group }))
        }
    }
}

/// Again and again until Ctrl-C. What may pass is said and asked again; what will not, ends it.
async fn watch(admin: &Admin, group: &str, every: Duration, output: Output) -> Outcome {
    let mut interrupt = Interrupt::listen()?;
    let clears = !output.is_json() && io::stdout().is_terminal();
    loop {
        let described = tokio::select! {
            described = admin.describe_group(group) => described,
            () = interrupt.wait() => return Ok(()),
        };
        match described {
            Ok(described) if output.is_json() => line(&group_json(&described).to_string())?,
            Ok(described) => {
                let mut text = if clears {
                    CLEAR.to_owned()
                } else {
                    String::new()
                };
                text.push_str(&describe(&described));
                for why in unreached(&described) {
                    text.push_str(&format!("\nerror: {why}"));
                }
                line(&text)?;
            }
            Err(error) if error.retriable() => note(&format!("error: {error}")),
            Err(error) => return Err(error.into()),
        }
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = interrupt.wait() => return Ok(()),
        }
    }
}

/// To have reached not everything is to fail.
fn told(unreached: &[String]) -> Outcome {
    for why in unreached {
        note(&format!("error: {why}"));
    }
    if unreached.is_empty() {
        Ok(())
    } else {
        Err(Failure::Told)
    }
}

/// What is not known of a group, and why.
fn unreached(group: &GroupDescription) -> Vec<String> {
    let mut unreached = group.unreachable.clone();
    for offset in &group.offsets {
        if let Some(error) = &offset.error {
            unreached.push(format!("{}/{}: {error}", offset.topic, offset.partition));
        }
    }
    unreached
}

/// `None`: not all of it is known.
fn lag(group: &GroupDescription) -> Option<u64> {
    let whole = group.unreachable.is_empty();
    let lags = group.offsets.iter().map(|offset| offset.lag);
    lags.sum::<Option<u64>>().filter(|_| whole)
}

fn describe(group: &GroupDescription) -> String {
    let mut text = format!(
        "{}  {}  epoch {}  lag {}\n",
        group.group,
        group.state,
        group.epoch,
        lag(group).map_or_else(|| "unknown".into(), grouped)
    );
    if !group.members.is_empty() {
        let mut table = Table::new(["MEMBER", "CLIENT", "ADDRESS", "PARTITIONS"]);
        for member in &group.members {
            let owned = ranges(&member.partitions);
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

/// Partitions in the order of topic and number, those in a row together: `orders/0-3 orders/7`.
fn ranges(partitions: &[(String, u32)]) -> String {
    let mut rows: Vec<(&str, u32, u32)> = Vec::new();
    for (topic, partition) in partitions {
        match rows.last_mut() {
            Some((known, _, last))
                if *known == topic && last.checked_add(1) == Some(*partition) =>
            {
                *last = *partition;
            }
            _ => rows.push((topic, *partition, *partition)),
        }
    }
    if rows.is_empty() {
        return "-".into();
    }
    let texts: Vec<String> = rows
        .into_iter()
        .map(|(topic, first, last)| match first == last {
            true => format!("{topic}/{first}"),
            false => format!("{topic}/{first}-{last}"),
        })
        .collect();
    texts.join(" ")
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
            match offset.error {
                Some(_) => "?".into(),
                None => offset.end_offset.to_string(),
            },
            offset.lag.map_or_else(|| "?".into(), |lag| lag.to_string()),
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
        "error": offset.error,
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
        "lag": lag(group),
        "unreachable": group.unreachable,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_in_a_row_are_shown_together() {
        let owned = |numbers: &[u32], topic: &str| -> Vec<(String, u32)> {
            let named = numbers.iter().map(|number| (topic.to_owned(), *number));
            named.collect()
        };
        let mut all = owned(&[0, 1, 2, 7], "a");
        all.extend(owned(&[8, 9], "b"));
        assert_eq!(ranges(&all), "a/0-2 a/7 b/8-9");
        assert_eq!(ranges(&[]), "-");
        // Every second one of very many.
        let odd: Vec<u32> = (0..20_000).map(|n| 2 * n + 1).collect();
        let mut table = Table::new(["PARTITIONS", "N"]);
        table.row([ranges(&owned(&odd, "wide")), "1".to_owned()]);
        assert!(table.to_string().contains("wide/39999  1"));
    }
}
