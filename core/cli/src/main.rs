//! `millstream`: the broker and everything that talks to it, in one binary.
//!
//! Here: parse, choose, and turn the outcome into an exit code. Each command is a file below
//! `commands`. Deliberately absent: behaviour of the broker and of the client, which are crates of
//! their own.

mod candidates;
#[cfg(test)]
mod command_line;
mod commands;
mod confirm;
mod connect;
mod exit;
mod format;
mod input;
mod interrupt;
mod ledger;
mod logging;
mod memory;
mod output;
mod progress;
mod settings;
mod values;

use std::process::ExitCode;

use clap::Parser;

use crate::output::Output;

/// Millstream: a durable stream broker over QUIC that runs your WebAssembly components.
///
/// `millstream dev` starts a broker in ./.millstream and writes the context file that every other
/// command finds by itself.
#[derive(Debug, Parser)]
#[command(name = "millstream", version, max_term_width = 100, after_long_help = EXAMPLES)]
struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: commands::Command,
}

/// Options of every command, shown after the command's own.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// How results are printed.
    #[arg(
        short = 'o',
        long = "output",
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT"
    )]
    output: Output,
    /// Broker to talk to, as a context: its NAME (`millstream context list`) or FILE. Default:
    /// MILLSTREAM_CONTEXT, else .millstream/context.toml here or above, else `context use`.
    #[arg(
        long,
        global = true,
        value_name = "NAME|FILE",
        help_heading = CONNECTION
    )]
    context: Option<std::path::PathBuf>,
    /// Broker to talk to, as HOST or HOST:PORT (7411 if not said); without --context nothing of a context
    /// is used.
    #[arg(long, global = true, value_name = "URL", help_heading = CONNECTION)]
    url: Option<String>,
    /// Bearer token. Others on this machine see a command line: the variable hides it.
    #[arg(
        long,
        global = true,
        env = millstream_client::TOKEN_VARIABLE,
        value_name = "TOKEN",
        hide_env_values = true,
        help_heading = CONNECTION
    )]
    token: Option<String>,
    /// Authority of the broker's certificate (PEM).
    #[arg(long, global = true, value_name = "FILE", help_heading = CONNECTION)]
    ca: Option<std::path::PathBuf>,
    /// Client certificate (PEM), with --client-key.
    #[arg(long, global = true, value_name = "FILE", help_heading = CONNECTION)]
    client_cert: Option<std::path::PathBuf>,
    /// Key of the client certificate (PEM), with --client-cert.
    #[arg(long, global = true, value_name = "FILE", help_heading = CONNECTION)]
    client_key: Option<std::path::PathBuf>,
    /// Wait for a broker that is not there yet. Without this and --timeout a command gives up at once
    /// when the port is refused, and after 5 s without an answer.
    #[arg(long, global = true, help_heading = CONNECTION)]
    wait: bool,
    /// Give up on a broker that does not answer after so long, for example 500ms, 10s, 2m; a lost
    /// connection is tried for as long. Default: 30s.
    #[arg(long, global = true, value_parser = values::limit, value_name = "TIME", help_heading = CONNECTION)]
    timeout: Option<std::time::Duration>,
    /// What this program is called in the broker's log and among a group's members.
    #[arg(long, global = true, env = "MILLSTREAM_CLIENT_ID", value_name = "NAME", help_heading = CONNECTION)]
    client_id: Option<String>,
    /// Form of the log on stderr.
    #[arg(
        long,
        global = true,
        env = "MILLSTREAM_LOG_FORMAT",
        value_enum,
        default_value_t,
        value_name = "FORMAT"
    )]
    log_format: logging::LogFormat,
    /// Log more: -v debug, -vv trace. MILLSTREAM_LOG takes a filter, for example `quinn=debug`.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

/// Heading of the options that say which broker.
const CONNECTION: &str = "Connection";
/// How long a request may take, unless the user says.
const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);

impl Global {
    /// How long a request may take, and a lost connection is tried for.
    fn timeout(&self) -> std::time::Duration {
        self.timeout.unwrap_or(TIMEOUT)
    }

    /// Whether a broker that is not there yet is waited for: the user said so, or for how long.
    fn waits(&self) -> bool {
        self.wait || self.timeout.is_some()
    }
}

const EXAMPLES: &str = "\
Examples:
  millstream dev                                   # a broker in ./.millstream
  millstream topic create orders --partitions 4
  echo 'hello' | millstream pub orders             # 1 record acknowledged: it is on disk
  millstream sub orders --from start --exit-at-end
  millstream bench produce --records 100000 --size 1024

Exit codes:
  0  done
  1  failed: what was asked was not, or not wholly, done
  2  usage: the command line or a settings file is wrong
  130  stopped by a second Ctrl-C";

fn main() -> ExitCode {
    // A shell that asks what could come next; then this does not return.
    clap_complete::CompleteEnv::with_factory(candidates::command).complete();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return exit::parsing(error, std::env::args_os().skip(1)),
    };
    exit::code(
        commands::run(arguments.command, &arguments.global),
        arguments.global.output,
    )
}
