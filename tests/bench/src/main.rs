//! `millstream-bench`: the product beside a bare program that does the same work, in one run.
//!
//! A figure of the product alone says little on a machine that others share; its ratio to a ceiling
//! measured seconds before and after says much. Each row is interleaved pairs (ceiling, product,
//! ceiling, product, …); what counts is the median ratio.
//!
//! Absent on purpose: tuning knobs of the product. It runs as `millstream serve` runs.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line program"
)]

mod ceiling;
mod process;
mod produce;
mod report;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

/// Measure millstream beside its ceiling.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Durable produce: the product and a bare quinn receiver with CRC-32C and group commit.
    Produce(produce::Options),
    /// The bare receiver and its client alone.
    CeilingProduce(CeilingOptions),
    /// The receiving process of the ceiling; started by the others.
    #[command(hide = true)]
    CeilingServe {
        #[arg(long)]
        data: PathBuf,
        #[command(flatten)]
        load: Load,
    },
}

#[derive(Debug, Args)]
struct CeilingOptions {
    #[command(flatten)]
    load: Load,
    /// Where the receiver writes: on the disk that is to be measured (default: a temporary
    /// directory).
    #[arg(long)]
    data: Option<PathBuf>,
    /// Machine-readable output.
    #[arg(short, long, value_enum, default_value_t)]
    output: report::Output,
}

/// What is sent, and how.
#[derive(Clone, Debug, Args)]
pub(crate) struct Load {
    /// Records in all.
    #[arg(long, default_value_t = 2_000_000)]
    records: u64,
    /// Bytes of one record's value.
    #[arg(long, default_value_t = 1024)]
    size: usize,
    /// Records in a batch.
    #[arg(long, default_value_t = 64)]
    batch: u64,
    /// Batches sent and not yet acknowledged.
    #[arg(long, default_value_t = 16)]
    in_flight: usize,
    /// Largest UDP payload, bytes: 1452 is an Ethernet path, 6500 a path with jumbo frames.
    #[arg(long, default_value_t = 1452, value_parser = clap::value_parser!(u16).range(1200..=6500))]
    mtu: u16,
}

impl Load {
    /// Batches in all; the last one is as large as the others.
    pub(crate) fn batches(&self) -> u64 {
        self.records.div_ceil(self.batch.max(1)).max(1)
    }

    pub(crate) fn batch_bytes(&self) -> usize {
        self.size * usize::try_from(self.batch).unwrap_or(usize::MAX)
    }
}

fn main() -> Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(tracing_level())
        .init();
    match Cli::parse().command {
        Command::Produce(options) => produce::run(&options),
        Command::CeilingProduce(options) => {
            let data = process::DataDir::new(options.data.as_deref())?;
            let run = ceiling::measure(&options.load, data.path())?;
            report::one("ceiling-produce", &run, options.output)
        }
        Command::CeilingServe { data, load } => ceiling::serve(&data, &load),
    }
}

fn tracing_level() -> tracing_subscriber::filter::LevelFilter {
    tracing_subscriber::filter::LevelFilter::WARN
}
