//! `millstream-bench`: the product beside a bare program that does the same work, in one run.
//!
//! A figure of the product alone says little on a machine that others share; its ratio to a ceiling
//! measured seconds before and after says much. Each row is interleaved pairs (ceiling, product,
//! ceiling, product, …); what counts is the median ratio.
//!
//! Absent on purpose: tuning knobs of the product. It runs as `millstream serve` runs, but for the
//! settings that a row names.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line program"
)]

mod broker;
mod ceiling;
mod cleanup;
mod figures;
mod load;
mod meter;
mod process;
mod report;
mod rows;
mod runtime;
mod session;
mod sys;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, Subcommand};

use load::Load;
use report::{Conditions, Output, Report, RowReport, against};
use rows::{Measure, Row};
use session::{Measured, Session, Settings};

/// Open files that the rows with many connections need.
const OPEN_FILES: u64 = 16_384;

/// Measure millstream beside its ceilings.
#[derive(Debug, Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    after_help = "\
Figures are medians over the pairs, ratios are product / ceiling. Progress is told on stderr.

Examples:
  cargo xtask bench --list
  cargo xtask bench produce consume-tail
  cargo xtask bench --save now.json --against before.json
  cargo xtask bench --from now.json -o markdown"
)]
struct Cli {
    #[command(subcommand)]
    child: Option<ChildProcess>,
    /// Rows to measure. Default: all.
    #[arg(value_name = "ROW")]
    rows: Vec<String>,
    /// Tell which rows there are.
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    settings: Settings,
    /// How the result is printed.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// Print the table of core/docs/performance.md: `-o markdown`.
    #[arg(long, conflicts_with = "output")]
    markdown: bool,
    /// Also write the result as JSON, after every row.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Measure nothing: show what was saved earlier.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Compare with what was saved earlier.
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Exit with 1 when a figure is worse than in --against by more than this and by more than noise.
    #[arg(long, value_name = "PERCENT", requires = "against")]
    fail_on_regression: Option<f64>,
}

/// A ceiling alone, and the processes of the ceilings that stand for the broker, which rows start.
#[derive(Debug, Subcommand)]
enum ChildProcess {
    /// A ceiling program and its client alone, for a profiler: prints its figures as JSON.
    Ceiling {
        #[arg(value_enum)]
        which: ceiling::Which,
        #[command(flatten)]
        load: Load,
        /// Where it writes (default: the temporary directory).
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
    },
    #[command(hide = true, name = ceiling::RECEIVER)]
    Receiver {
        #[arg(long)]
        data: PathBuf,
        #[command(flatten)]
        load: Load,
    },
    #[command(hide = true, name = ceiling::ECHO)]
    Echo {
        #[command(flatten)]
        load: Load,
    },
    #[command(hide = true, name = ceiling::SENDER)]
    Sender {
        #[command(flatten)]
        load: Load,
    },
}

impl ChildProcess {
    /// Do the work, then stay until whoever started this is done looking at it.
    fn run(&self) -> Result<()> {
        match self {
            Self::Ceiling { which, load, data } => {
                cleanup::install()?;
                let run = ceiling::alone(*which, load, data.as_deref())?;
                println!("{}", serde_json::to_string(&run)?);
                return Ok(());
            }
            Self::Receiver { data, load } => ceiling::serve_receiver(data, load)?,
            Self::Echo { load } => ceiling::serve_echo(load)?,
            Self::Sender { load } => ceiling::serve_sender(load)?,
        }
        std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
        Ok(())
    }
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .init();
    dispatch(&Cli::parse()).unwrap_or_else(|error| {
        eprintln!("millstream-bench: {error:#}");
        ExitCode::FAILURE
    })
}

fn dispatch(cli: &Cli) -> Result<ExitCode> {
    match &cli.child {
        Some(child) => child.run()?,
        None if cli.list => list(),
        None => return run(cli),
    }
    Ok(ExitCode::SUCCESS)
}

fn list() {
    for row in rows::ROWS {
        println!("{:<20} {}", row.name, row.what);
        if let Measure::NotYet(why) = row.measure {
            println!("{:<20} not available: {why}", "");
        }
    }
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let before = cli.against.as_deref().map(Report::load).transpose()?;
    let report = match &cli.from {
        Some(from) => Report::load(from)?,
        None => measure(cli)?,
    };
    let output = if cli.markdown {
        Output::Markdown
    } else {
        cli.output
    };
    report.print(output)?;
    let failed = report.rows.iter().any(|row| row.failed.is_some());
    let mut code = if failed { 1 } else { 0 };
    if let Some(before) = &before {
        let changes = against::changes(before, &report);
        // JSON and Markdown on stdout stay what they are.
        if output == Output::Table {
            print!("\n{}", against::table(&changes));
        } else {
            eprint!("{}", against::table(&changes));
        }
        if let Some(percent) = cli.fail_on_regression
            && changes.iter().any(|change| change.is_regression(percent))
        {
            eprintln!("worse by more than {percent} % and by more than noise: see WORSE above");
            code = 1;
        }
    }
    Ok(ExitCode::from(code))
}

fn measure(cli: &Cli) -> Result<Report> {
    let chosen = choose(&cli.rows)?;
    let settings = &cli.settings;
    let program = settings.program()?;
    cleanup::install()?;
    sys::raise_open_files(OPEN_FILES).context("the limit of open files")?;
    if let Some(data) = &settings.data {
        std::fs::create_dir_all(data)
            .with_context(|| format!("cannot write to {}", data.display()))?;
    }
    let mut report = Report::new(Conditions::now(settings, &program));
    for row in chosen {
        let outcome = match row.measure {
            Measure::NotYet(_) => Ok(Measured::default()),
            Measure::By(measure) => {
                eprintln!("{}: {}", row.name, row.what);
                measure(&Session {
                    settings,
                    program: &program,
                    row,
                })
            }
        };
        if let Err(error) = &outcome {
            eprintln!("{}: FAILED: {error:#}", row.name);
        }
        report.rows.push(RowReport::new(row, outcome));
        if let Some(path) = &cli.save {
            report.save(path)?;
        }
    }
    Ok(report)
}

/// The rows of these names, or all.
fn choose(names: &[String]) -> Result<Vec<&'static Row>> {
    if names.is_empty() {
        return Ok(rows::ROWS.iter().collect());
    }
    let mut chosen = Vec::new();
    for name in names {
        let Some(row) = rows::find(name) else {
            let all: Vec<_> = rows::ROWS.iter().map(|row| row.name).collect();
            bail!("no row `{name}`; there are: {}", all.join(" "));
        };
        ensure!(
            !chosen.iter().any(|other: &&Row| other.name == row.name),
            "row `{name}` is named twice"
        );
        chosen.push(row);
    }
    Ok(chosen)
}
