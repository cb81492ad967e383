//! `doctor`: what on this machine makes a broker slower or less safe, and whether one answers.

mod machine;

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::Global;
use crate::connect::{block_on, client};
use crate::exit::{Failure, Outcome};
use crate::output::{Table, bytes, grouped, line};

/// Check this machine and a running broker
///
/// A warning costs speed or comfort; a failure keeps something from working. The disk is measured with
/// a few synced writes in the data directory.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  millstream doctor --data /var/lib/millstream
  millstream doctor -o json                       # with all that the broker says of itself")]
pub(crate) struct Arguments {
    /// Directory whose disk is checked. Default: ./.millstream, or the working directory.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Do not look for a broker.
    #[arg(long)]
    offline: bool,
}

/// A broker that is to be looked at answers within this time.
const BROKER_WAIT: std::time::Duration = std::time::Duration::from_secs(5);

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Good,
    Warning,
    Failure,
}

/// One thing that was looked at.
#[derive(Debug)]
pub(crate) struct Check {
    pub(crate) name: &'static str,
    pub(crate) state: State,
    pub(crate) found: String,
    /// What to do about it; empty when all is well.
    pub(crate) hint: String,
}

impl Check {
    pub(crate) fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            state: State::Good,
            found: found.into(),
            hint: String::new(),
        }
    }

    pub(crate) fn warning(
        name: &'static str,
        found: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            name,
            state: State::Warning,
            found: found.into(),
            hint: hint.into(),
        }
    }

    pub(crate) fn failure(
        name: &'static str,
        found: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            name,
            state: State::Failure,
            found: found.into(),
            hint: hint.into(),
        }
    }
}

pub(crate) fn run(arguments: &Arguments, global: &Global) -> Outcome {
    let directory = arguments.data.clone().unwrap_or_else(|| {
        let dev = PathBuf::from(millstream_client::DEV_DIRECTORY);
        if dev.is_dir() {
            dev
        } else {
            PathBuf::from(".")
        }
    });
    let mut checks = machine::checks(&directory);
    let mut status = Value::Null;
    if !arguments.offline {
        let (check, json) = broker(global);
        checks.push(check);
        checks.extend(certificate(&json));
        checks.extend(shards(&json));
        status = json;
    }
    let failed = checks.iter().any(|check| check.state == State::Failure);
    if global.output.is_json() {
        let list: Value = checks
            .iter()
            .map(|check| json!({ "check": check.name, "state": word(check.state), "found": check.found, "hint": check.hint }))
            .collect();
        line(&json!({ "ok": !failed, "checks": list, "broker": status }).to_string())?;
    } else {
        let mut table = Table::new(["CHECK", "STATE", "FOUND"]);
        for check in &checks {
            table.row([
                check.name.into(),
                word(check.state).into(),
                check.found.clone(),
            ]);
        }
        let mut text = table.to_string();
        text.extend(summary(&status));
        for check in checks.iter().filter(|check| !check.hint.is_empty()) {
            text.push_str(&format!("\n{}: {}\n", check.name, check.hint));
        }
        line(text.trim_end())?;
    }
    if failed { Err(Failure::Told) } else { Ok(()) }
}

fn word(state: State) -> &'static str {
    match state {
        State::Good => "ok",
        State::Warning => "warning",
        State::Failure => "failed",
    }
}

/// What a person wants of a broker's status: the process, and each shard in a row.
fn summary(status: &Value) -> Option<String> {
    let shards = status["shards"].as_array()?;
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let mut table = Table::new([
        "SHARD",
        "STATE",
        "DISK",
        "PARTITIONS",
        "RECORDS IN",
        "LOG FILES",
        "LOG",
    ]);
    for shard in shards {
        let disk = shard["disk"].as_str().unwrap_or("-");
        table.row([
            shard["shard"].to_string(),
            shard["state"].as_str().unwrap_or("serving").to_owned(),
            disk.split(" (").next().unwrap_or(disk).to_owned(),
            grouped(number(&shard["partitions"])),
            grouped(number(&shard["records_in"])),
            grouped(number(&shard["log_files"])),
            bytes(number(&shard["log_bytes"])),
        ]);
    }
    let process = &status["process"];
    Some(format!(
        "\nThe broker has {} in memory, {} files open, {} connections (all that it says: -o json).\n{table}",
        bytes(number(&process["resident_bytes"])),
        number(&process["open_files"]),
        number(&status["sessions"]["connections"]),
    ))
}

/// Whether the broker's certificate holds for long enough, where it says.
fn certificate(status: &Value) -> Option<Check> {
    const NAME: &str = "certificate";
    const NO_END_DAYS: i64 = 1_000 * 365; // the broker made it: it ends in the year 9999
    let certificate = status["broker"]["certificate"].as_object()?;
    let days = certificate["left_s"].as_i64()? / (24 * 3600);
    Some(match certificate["warning"].as_str() {
        None if days > NO_END_DAYS => Check::good(NAME, "has no end"),
        None => Check::good(NAME, format!("holds for {days} days")),
        Some(warning) => Check::warning(NAME, format!("{days} days are left"), warning),
    })
}

/// What the broker's shards say of their clock, and of what they cannot do.
fn shards(status: &Value) -> Vec<Check> {
    let shards = status["shards"].as_array().into_iter().flatten();
    let named = |shard: &Value, words: &str| format!("shard {}: {words}", shard["shard"]);
    let mut checks = Vec::new();
    for shard in shards {
        if let Some(words) = shard["clock"].as_str() {
            let (found, hint) = words.split_once(": ").unwrap_or((words, ""));
            checks.push(Check::warning("broker's clock", named(shard, found), hint));
        }
        if let Some(ranges) = shard["damaged"].as_u64().filter(|ranges| *ranges > 0) {
            let found = named(shard, &format!("{ranges} damaged in its log"));
            let hint = "`millstream log verify` shows the extent, on a copy of the directory or a stopped broker's";
            checks.push(Check::failure("broker's shards", found, hint));
        }
        let state = shard["state"].as_str().unwrap_or("serving");
        if state != "serving" {
            let why = shard["why"].as_str().unwrap_or("it does not say why");
            let found = named(shard, &format!("{state}: {why}"));
            checks.push(Check::failure("broker's shards", found, ""));
        }
    }
    checks
}

/// Whether a broker answers, and what it says of itself.
fn broker(global: &Global) -> (Check, Value) {
    const NAME: &str = "broker";
    let global = Global {
        timeout: global.timeout.map(|timeout| timeout.min(BROKER_WAIT)),
        ..global.clone()
    };
    let outcome = block_on(async {
        let client = client(&global).await?;
        let info = client.broker().await?;
        let trip = client.admin().ping().await?;
        let status = client.admin().status().await;
        client.close().await;
        Ok((info, trip, status))
    });
    match outcome {
        Ok((info, trip, status)) => {
            let found = format!(
                "{}, {} shards, you are {}, round trip {:.2} ms",
                info.server,
                info.shards,
                info.principal,
                trip.as_secs_f64() * 1e3
            );
            match status {
                Ok(text) => (
                    Check::good(NAME, found),
                    serde_json::from_str(&text).unwrap_or(Value::String(text)),
                ),
                // It serves; only looking inside is not allowed.
                Err(error) => (
                    Check::warning(NAME, found, format!("no status: {error}")),
                    Value::Null,
                ),
            }
        }
        Err(Failure::Usage(message)) => (
            Check::warning(NAME, "no context", format!("{message} (or use --offline)")),
            Value::Null,
        ),
        Err(Failure::Failed(error)) => (
            Check::failure(NAME, "does not answer", format!("{error:#}")),
            Value::Null,
        ),
        Err(Failure::Told) => (Check::failure(NAME, "does not answer", ""), Value::Null),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A person gets rows, not the status as it is.
    #[test]
    fn a_brokers_status_is_summed_up() {
        let status = json!({
            "process": { "resident_bytes": 17_780_736, "open_files": 41 },
            "sessions": { "connections": 3 },
            "shards": [{
                "shard": 0, "state": "serving", "disk": "io_uring (SINGLE_ISSUER, O_DIRECT)",
                "partitions": 2, "records_in": 12_345, "log_files": 1, "log_bytes": 37_748_736,
            }],
        });
        let said = summary(&status).unwrap();
        for words in [
            "17.0 MiB in memory",
            "41 files",
            "3 connections",
            "12,345",
            "36.0 MiB",
        ] {
            assert!(said.contains(words), "{said}");
        }
        assert!(
            said.contains("io_uring  ") && !said.contains(['{', '"']),
            "{said}"
        );
        assert_eq!(summary(&Value::Null), None);
    }

    #[test]
    fn what_shards_say_of_themselves_is_shown() {
        let status = json!({ "shards": [
            { "shard": 0, "state": "serving", "clock": null },
            { "shard": 1, "state": "serving", "clock": "the clock is 3 days behind: set it right" },
            { "shard": 2, "state": "limited", "why": "too many open files", "clock": null },
        ] });
        let checks = shards(&status);
        let said: Vec<_> = checks
            .iter()
            .map(|check| (check.state, check.found.as_str(), check.hint.as_str()))
            .collect();
        let expected = [
            (
                State::Warning,
                "shard 1: the clock is 3 days behind",
                "set it right",
            ),
            (State::Failure, "shard 2: limited: too many open files", ""),
        ];
        assert_eq!(said, expected);
        assert!(shards(&Value::Null).is_empty());
    }
}
