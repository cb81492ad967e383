//! What the shell offers where a topic or a group is wanted: those that the broker has.
//!
//! Every argument called `topic` or `group` is one, whichever command it is of. A broker that does not
//! answer at once offers nothing, and the shell says nothing of it.

use std::ffi::OsString;
use std::time::Duration;

use clap::{CommandFactory as _, FromArgMatches as _};
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use millstream_client::Admin;

use crate::connect::{block_on, client};
use crate::exit::Outcome;
use crate::{Arguments, Global};

/// Who presses a key does not wait longer.
const PATIENCE: Duration = Duration::from_millis(1_500);

/// The command line, with candidates where there are some.
pub(crate) fn command() -> clap::Command {
    attach(Arguments::command())
}

fn attach(command: clap::Command) -> clap::Command {
    // A topic that is created is not there yet.
    let creates = command.get_name() == "create";
    let command = command.mut_args(|arg| match arg.get_id().as_str() {
        "topic" | "topics" if !creates => arg.add(ArgValueCandidates::new(topics)),
        "group" | "groups" | "to_group" => arg.add(ArgValueCandidates::new(groups)),
        _ => arg,
    });
    command.mut_subcommands(attach)
}

fn topics() -> Vec<CompletionCandidate> {
    offered(async |admin| {
        let topics = admin.list_topics().await?;
        Ok(topics.into_iter().map(|topic| topic.name).collect())
    })
}

fn groups() -> Vec<CompletionCandidate> {
    offered(async |admin| {
        let list = admin.list_groups().await?;
        Ok(list.groups.into_iter().map(|group| group.group).collect())
    })
}

fn offered(list: impl AsyncFnOnce(Admin) -> Outcome<Vec<String>>) -> Vec<CompletionCandidate> {
    let listed = block_on(async {
        let global = global()?;
        let listing = async {
            let client = client(&global).await?;
            let names = list(client.admin()).await;
            client.close().await;
            names
        };
        match tokio::time::timeout(PATIENCE, listing).await {
            Ok(names) => names,
            Err(_) => Ok(Vec::new()),
        }
    });
    let mut names = listed.unwrap_or_default();
    names.sort_unstable();
    names.into_iter().map(CompletionCandidate::new).collect()
}

/// What the line says so far of the broker to ask. The shell gives it behind `--`.
fn global() -> Outcome<Global> {
    let line: Vec<OsString> = std::env::args_os()
        .skip_while(|word| word != "--")
        .skip(1)
        .collect();
    let matches = Arguments::command()
        .ignore_errors(true)
        .try_get_matches_from(line)?;
    Ok(Global::from_arg_matches(&matches)?)
}
