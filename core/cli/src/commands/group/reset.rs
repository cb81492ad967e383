//! `group reset`: where a group goes on, by a position, by another group's place, or from a file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use millstream_client::{Admin, Code, GroupOffset, ResetOptions, StartAt};
use serde_json::{Value, json};

use super::{offset_json, offset_table};
use crate::exit::{Failure, Outcome};
use crate::output::{Output, note};
use crate::values::start_at;

#[derive(Debug, clap::Args)]
#[command(
    group = clap::ArgGroup::new("where").required(true).args(["to", "to_group", "from_file"]),
    after_help = "\
Positions: start, end, an offset, @milliseconds, -10m, a day like 2026-01-31 (from midnight UTC), or a time like 2026-01-31T12:00:00Z

A file holds what `group describe -o json` prints, or lines of TOPIC PARTITION OFFSET. Partitions that it \
does not name stay as they are.

Examples:
  millstream group reset billing --topic orders --to start --dry-run
  millstream group reset billing --topic orders --partition 3 --to 41
  millstream group reset billing --topic orders --to start --force      # its members follow
  millstream group reset billing --topic orders --to-group billing-old --create
  millstream group describe billing -o json > places.json
  millstream group reset billing --from-file places.json"
)]
pub(crate) struct Arguments {
    /// Name of the group.
    group: String,
    /// The topic. A file names its own: then only this one of them is reset.
    #[arg(long, required_unless_present = "from_file")]
    topic: Option<String>,
    /// Only this partition; may be given several times.
    #[arg(long, value_name = "N")]
    partition: Vec<u32>,
    /// Where the group goes on.
    #[arg(long, value_parser = start_at, value_name = "POSITION", allow_hyphen_values = true)]
    to: Option<StartAt>,
    /// Where this other group is.
    #[arg(long, value_name = "GROUP")]
    to_group: Option<String>,
    /// What this file says; - is standard input.
    #[arg(long, value_name = "FILE")]
    from_file: Option<PathBuf>,
    /// Also while the group has members: they go on from there, and what they have read and not
    /// committed by then is read again.
    #[arg(long)]
    force: bool,
    /// Also when there is no such group yet: its first member begins there.
    #[arg(long)]
    create: bool,
    /// Only show what would be. Needs no --force.
    #[arg(long)]
    dry_run: bool,
}

impl Arguments {
    fn options(&self, dry_run: bool) -> ResetOptions {
        ResetOptions {
            force: self.force,
            dry_run,
            create: self.create,
        }
    }
}

/// Offsets by topic and partition.
type Places = BTreeMap<(String, u32), u64>;

pub(super) async fn run(admin: &Admin, arguments: &Arguments, output: Output) -> Outcome {
    let outcome = set(admin, arguments, output).await;
    if let Err(Failure::Failed(error)) = &outcome
        && let Some(error) = error.downcast_ref::<millstream_client::Error>()
        && error.code() == Some(Code::UnknownGroup)
    {
        hint(admin, &arguments.group).await;
    }
    outcome
}

/// There is no such group: was another meant, or is it to be?
async fn hint(admin: &Admin, group: &str) {
    let known = admin.list_groups().await; // a hint that cannot be had is none
    let known = known.map(|list| list.groups).unwrap_or_default();
    let near = near(group, known.iter().map(|known| known.group.as_str()));
    if let Some(near) = near {
        note(&format!("is `{near}` meant?"));
    }
    note("to set where a group begins that is not there yet, add --create");
}

/// The name that is most like this one, if it may have been meant.
fn near<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let most = name.chars().count() / 3 + 1;
    let near = known.map(|known| (distance(name, known), known));
    let near = near.filter(|(distance, _)| *distance <= most).min();
    near.map(|(_, known)| known)
}

/// Letters to put in, take out or change.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (at, letter) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], at + 1);
        for (column, other) in b.iter().enumerate() {
            let change = diagonal + usize::from(letter != *other);
            diagonal = row[column + 1];
            row[column + 1] = change.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[b.len()]
}

async fn set(admin: &Admin, arguments: &Arguments, output: Output) -> Outcome {
    let group = &arguments.group;
    let offsets = match (&arguments.to, &arguments.topic) {
        (Some(to), Some(topic)) => {
            let offsets = admin
                .reset_group(
                    group,
                    topic,
                    &arguments.partition,
                    *to,
                    arguments.options(arguments.dry_run),
                )
                .await?;
            if let StartAt::Offset(asked) = to {
                outside(&offsets, *asked);
            }
            offsets
        }
        _ => by_place(admin, arguments).await?,
    };
    let head = if arguments.dry_run {
        "would be set to (nothing was changed):"
    } else {
        "is set to:"
    };
    let text = format!("{group} {head}\n{}", offset_table(&offsets));
    let json = json!({
        "group": group,
        "dry_run": arguments.dry_run,
        "offsets": offsets.iter().map(offset_json).collect::<Value>(),
    });
    output.show(text, &json)
}

/// Say where the wanted offset could not be had.
fn outside(offsets: &[GroupOffset], wanted: u64) {
    for set in offsets.iter().filter(|set| set.committed != Some(wanted)) {
        note(&format!(
            "warning: {}/{}: {wanted} is outside of what is kept ({} to {})",
            set.topic, set.partition, set.start_offset, set.end_offset
        ));
    }
}

/// Each partition to its own offset. All are tried before the first is changed.
async fn by_place(admin: &Admin, arguments: &Arguments) -> Outcome<Vec<GroupOffset>> {
    let (mut places, source) = match (&arguments.to_group, &arguments.from_file) {
        (Some(other), _) => (of_group(admin, other).await?, format!("group {other}")),
        (None, Some(file)) => (of_file(file)?, file.display().to_string()),
        (None, None) => return Err(Failure::usage("--to needs --topic")),
    };
    places.retain(|(topic, partition), _| {
        arguments.topic.as_ref().is_none_or(|only| only == topic)
            && (arguments.partition.is_empty() || arguments.partition.contains(partition))
    });
    if places.is_empty() {
        return Err(Failure::failed(format!(
            "{source} has no offset in what is to be reset"
        )));
    }
    let mut shown = Vec::new();
    let passes: &[bool] = if arguments.dry_run {
        &[true]
    } else {
        &[true, false]
    };
    for &dry_run in passes {
        shown.clear();
        for ((topic, partition), offset) in &places {
            let to = StartAt::Offset(*offset);
            let set = admin
                .reset_group(
                    &arguments.group,
                    topic,
                    &[*partition],
                    to,
                    arguments.options(dry_run),
                )
                .await?;
            shown.extend(set);
        }
    }
    for set in &shown {
        let wanted = places.get(&(set.topic.clone(), set.partition)).copied();
        outside(std::slice::from_ref(set), wanted.unwrap_or_default());
    }
    Ok(shown)
}

async fn of_group(admin: &Admin, group: &str) -> Outcome<Places> {
    let described = admin.describe_group(group).await?;
    if let Some(why) = super::unreached(&described).first() {
        return Err(Failure::failed(format!(
            "not all of group {group} is known: {why}"
        )));
    }
    let place = |offset: GroupOffset| Some(((offset.topic, offset.partition), offset.committed?));
    Ok(described.offsets.into_iter().filter_map(place).collect())
}

fn of_file(file: &Path) -> Outcome<Places> {
    let text = if file == Path::new("-") {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(file)
    };
    let name = file.display();
    let text = text.map_err(|error| Failure::usage(format!("{name}: {error}")))?;
    parse(&text).map_err(|why| Failure::usage(format!("{name}: {why}")))
}

/// What `group describe -o json` prints, or lines of `TOPIC PARTITION OFFSET`.
fn parse(text: &str) -> Result<Places, String> {
    if text.trim_start().starts_with('{') {
        return parse_json(text);
    }
    let mut places = Places::new();
    for (number, line) in text.lines().enumerate() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let place = match words[..] {
            [] => continue,
            [topic, partition, offset] => partition
                .parse()
                .ok()
                .zip(offset.parse().ok())
                .map(|(partition, offset)| ((topic.to_owned(), partition), offset)),
            _ => None,
        };
        let (at, offset) =
            place.ok_or_else(|| format!("line {} is not TOPIC PARTITION OFFSET", number + 1))?;
        if places.insert(at, offset).is_some() {
            return Err(format!("line {} names a partition again", number + 1));
        }
    }
    Ok(places)
}

fn parse_json(text: &str) -> Result<Places, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let rows = value["offsets"]
        .as_array()
        .ok_or("it has no list `offsets`: give what `group describe -o json` prints")?;
    let mut places = Places::new();
    for row in rows {
        let topic = row["topic"].as_str();
        let partition = row["partition"]
            .as_u64()
            .and_then(|n| u32::try_from(n).ok());
        let (Some(topic), Some(partition)) = (topic, partition) else {
            return Err(format!("{row} names no topic and partition"));
        };
        // Where nothing was committed, nothing is set.
        if row["committed"].is_null() {
            continue;
        }
        let offset = row["committed"]
            .as_u64()
            .ok_or_else(|| format!("{row} commits no offset"))?;
        places.insert((topic.to_owned(), partition), offset);
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_lines_or_what_describe_prints() {
        let place = |topic: &str, partition, offset| ((topic.to_owned(), partition), offset);
        let lines = parse("orders 0 41\n\n  orders 1 7\r\nreturns 0 0\n").unwrap();
        let expected = [
            place("orders", 0, 41),
            place("orders", 1, 7),
            place("returns", 0, 0),
        ];
        assert_eq!(lines, Places::from(expected));
        let json = r#"{"group": "g", "offsets": [
            {"topic": "orders", "partition": 0, "committed": 41, "lag": 3},
            {"topic": "orders", "partition": 1, "committed": null}]}"#;
        assert_eq!(parse(json).unwrap(), Places::from([place("orders", 0, 41)]));
    }

    #[test]
    fn a_mistyped_name_is_near_to_what_was_meant() {
        let known = ["billing", "billing-old", "audit"];
        let near = |name| near(name, known.into_iter());
        assert_eq!(near("biling"), Some("billing"));
        assert_eq!(near("billing"), Some("billing"));
        assert_eq!(near("billing_old"), Some("billing-old"));
        assert_eq!(near("adut"), Some("audit"));
        assert_eq!(near("shipping"), None);
        assert_eq!(near("x"), None);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }

    #[test]
    fn what_is_no_place_is_named() {
        assert!(parse("orders 0\n").unwrap_err().contains("line 1"));
        assert!(
            parse("orders 0 1\norders x 1")
                .unwrap_err()
                .contains("line 2")
        );
        assert!(
            parse("orders 0 1\norders 0 2")
                .unwrap_err()
                .contains("again")
        );
        assert!(parse("{}").unwrap_err().contains("offsets"));
        assert!(
            parse(r#"{"offsets": [{"topic": "t", "partition": 0, "committed": "x"}]}"#).is_err()
        );
    }
}
