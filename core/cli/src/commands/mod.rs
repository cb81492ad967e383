//! The commands, one file each.

mod bench;
mod clock;
mod completions;
mod config;
mod context;
mod demo;
mod dev;
mod doctor;
mod group;
mod log;
mod plugin;
mod publish;
mod serve;
mod subscribe;
mod topic;

use clap::Subcommand;

use crate::exit::{Failure, Outcome};
use crate::{Global, logging};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a broker for development: no settings, no root, no TLS step
    Dev(dev::Arguments),
    /// Run a broker
    Serve(serve::Arguments),
    /// Create, list, describe, change and delete topics
    #[command(subcommand)]
    Topic(topic::Command),
    /// Send records: lines of standard input, messages or files
    #[command(visible_alias = "produce")]
    Pub(publish::Arguments),
    /// Print records
    #[command(visible_alias = "consume")]
    Sub(subscribe::Arguments),
    /// List, describe, reset and delete consumer groups
    #[command(subcommand)]
    Group(group::Command),
    /// Deploy, list and remove components
    #[command(subcommand)]
    Plugin(plugin::Command),
    /// Send real input through a bundled component and print what comes out
    Demo(demo::Arguments),
    /// Look into a data directory while no broker runs on it
    #[command(subcommand)]
    Log(log::Command),
    /// Measure a broker
    #[command(subcommand)]
    Bench(bench::Command),
    /// Say that the broker's wall clock is right
    #[command(subcommand)]
    Clock(clock::Command),
    /// Check this machine and a running broker
    Doctor(doctor::Arguments),
    /// Check and show the settings of a broker
    #[command(subcommand)]
    Config(config::Command),
    /// Keep brokers under names: add, list, use, show, remove
    #[command(subcommand)]
    Context(context::Command),
    /// Print a completion script for a shell
    Completions(completions::Arguments),
}

pub(crate) fn run(command: Command, global: &Global) -> Outcome {
    logging::start(
        global,
        if matches!(command, Command::Serve(_) | Command::Dev(_)) {
            "info"
        } else {
            "warn"
        },
    )?;
    if global.output.is_of_values() && !matches!(command, Command::Sub(_)) {
        return Err(Failure::usage(
            "-o raw, hex and base64 print the values of records, and only `sub` has them: use text or json",
        ));
    }
    match command {
        Command::Dev(arguments) => dev::run(arguments, global),
        Command::Serve(arguments) => serve::run(&arguments, global),
        Command::Topic(command) => topic::run(command, global),
        Command::Pub(arguments) => publish::run(&arguments, global),
        Command::Sub(arguments) => subscribe::run(arguments, global),
        Command::Group(command) => group::run(command, global),
        Command::Plugin(command) => plugin::run(command, global),
        Command::Demo(arguments) => demo::run(&arguments, global),
        Command::Log(command) => log::run(&command, global),
        Command::Bench(command) => bench::run(command, global),
        Command::Clock(command) => clock::run(&command, global),
        Command::Doctor(arguments) => doctor::run(&arguments, global),
        Command::Config(command) => config::run(&command, global),
        Command::Context(command) => context::run(command, global),
        Command::Completions(arguments) => completions::run(&arguments),
    }
}
