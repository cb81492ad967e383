//! `millstream`: the broker and everything that talks to it, in one binary.
//!
//! Here: parse, choose, and turn the outcome into an exit code. Each command is a file below
//! `commands`. Deliberately absent: behaviour of the broker and of the client, which are crates of
//! their own.

mod candidates;
#[cfg(test)]
mod command_line;
mod commands;
mod connect;
mod exit;
mod format;
mod input;
mod interrupt;
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
    /// Context file of the broker to talk to. Default: ./.millstream/context.toml.
    #[arg(
        long,
        global = true,
        env = "MILLSTREAM_CONTEXT",
        value_name = "FILE",
        hide_env_values = true
    )]
    context: Option<std::path::PathBuf>,
    /// Give up on a broker that does not answer after so long, for example 500ms, 10s, 2m.
    #[arg(long, global = true, default_value = "30s", value_parser = values::duration, value_name = "TIME")]
    timeout: std::time::Duration,
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
    let arguments = Arguments::parse();
    exit::code(
        commands::run(arguments.command, &arguments.global),
        arguments.global.output,
    )
}
