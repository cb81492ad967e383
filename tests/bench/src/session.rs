//! One session of measuring: what was asked for, and the order in which programs take turns.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::Value;

use crate::broker::{Broker, Setup};
use crate::cleanup::DataDir;
use crate::figures::{self, Pair, Run};
use crate::meter::Pass;
use crate::rows::Row;
use crate::runtime;

/// The share of a row's load by which system calls are counted.
const COUNTING_SHARE: f64 = 0.1;

/// What can be set. A row has a load of its own; what is given here replaces it.
#[derive(Clone, Debug, Args)]
pub(crate) struct Settings {
    /// Interleaved pairs of ceiling and product.
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub(crate) pairs: usize,
    /// Every row's load times this: 0.05 for a quick look.
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR")]
    pub(crate) scale: f64,
    /// Records, in rows that produce or consume.
    #[arg(long, value_name = "N")]
    pub(crate) records: Option<u64>,
    /// Batches in flight, in rows that produce.
    #[arg(long, value_name = "N")]
    pub(crate) in_flight: Option<usize>,
    /// Largest UDP payload, bytes.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(1200..=6500))]
    pub(crate) mtu: Option<u16>,
    /// GB that are there when `restart-10gb` restarts.
    #[arg(long, default_value_t = 10.0, value_name = "GB")]
    pub(crate) gb: f64,
    /// Do not count system calls.
    #[arg(long)]
    pub(crate) no_syscalls: bool,
    /// The product's binary (default: beside this program).
    #[arg(long, value_name = "FILE")]
    pub(crate) millstream: Option<PathBuf>,
    /// Where all programs write: on the disk that is to be measured (default: the temporary
    /// directory). What is written is removed.
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
}

/// A row that is being measured.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) program: &'a Path,
    pub(crate) row: &'a Row,
}

/// What a row measured.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    /// What was done, for those who want to repeat it.
    pub(crate) load: Value,
    pub(crate) pairs: Vec<Pair>,
    /// A short pair in which system calls were counted.
    pub(crate) counted: Option<Pair>,
    pub(crate) notes: Vec<String>,
}

impl Settings {
    /// The product's binary.
    pub(crate) fn program(&self) -> Result<PathBuf> {
        ensure!(self.pairs > 0, "--pairs 0 measures nothing");
        ensure!(
            self.scale > 0.0 && self.scale.is_finite() && self.gb > 0.0 && self.gb.is_finite(),
            "--scale and --gb are above 0"
        );
        let program = match &self.millstream {
            Some(program) => program.clone(),
            None => std::env::current_exe()?.with_file_name("millstream"),
        };
        ensure!(
            program.exists(),
            "{} is not there: build it with `cargo build --release -p millstream-cli`, or name it with --millstream",
            program.display()
        );
        Ok(program)
    }
}

impl Session<'_> {
    /// `whole` times the session's scale, at least `least`.
    pub(crate) fn scaled(&self, whole: u64, least: u64) -> u64 {
        ((whole as f64 * self.settings.scale) as u64).max(least)
    }

    /// A new directory on the disk that is to be measured.
    pub(crate) fn directory(&self) -> Result<DataDir> {
        DataDir::new(self.settings.data.as_deref())
    }

    /// One run of clients inside this process, on one thread: at a new broker of one shard with a topic
    /// `bench` of so many partitions.
    pub(crate) fn inside(
        &self,
        partitions: u32,
        measure: impl AsyncFnOnce(&Broker) -> Result<Run>,
    ) -> Result<Run> {
        let directory = self.directory()?;
        let setup = Setup::default().shards(1);
        let broker = Broker::start(self.program, directory.path(), &setup)?;
        broker.make_topic("bench", partitions)?;
        runtime::one_thread()?.block_on(measure(&broker))
    }

    /// Ceiling and product in turns; then, in a short pair, their system calls.
    pub(crate) fn pairs(
        &self,
        load: Value,
        mut ceiling: impl FnMut(&Pass) -> Result<Run>,
        mut product: impl FnMut(&Pass) -> Result<Run>,
    ) -> Result<Measured> {
        self.turns(load, |pass| {
            Ok(Pair {
                ceiling: Some(ceiling(pass)?),
                product: product(pass)?,
            })
        })
    }

    /// The product alone, where the target is a figure of its own.
    pub(crate) fn alone(
        &self,
        load: Value,
        mut product: impl FnMut(&Pass) -> Result<Run>,
    ) -> Result<Measured> {
        self.turns(load, |pass| {
            Ok(Pair {
                ceiling: None,
                product: product(pass)?,
            })
        })
    }

    fn turns(&self, load: Value, mut pair: impl FnMut(&Pass) -> Result<Pair>) -> Result<Measured> {
        let whole = Pass {
            share: 1.0,
            counts_syscalls: false,
        };
        let mut pairs = Vec::new();
        for number in 1..=self.settings.pairs {
            let pair = pair(&whole)?;
            eprintln!(
                "{}: {number} of {}{}",
                self.row.name,
                self.settings.pairs,
                self.headline(&pair)
            );
            pairs.push(pair);
        }
        let counts = self.row.counts_syscalls && !self.settings.no_syscalls;
        let counted = counts
            .then(|| {
                pair(&Pass {
                    share: COUNTING_SHARE,
                    counts_syscalls: true,
                })
            })
            .transpose()?;
        Ok(Measured {
            load,
            pairs,
            counted,
            notes: Vec::new(),
        })
    }

    /// The figures that the row is about.
    fn headline(&self, pair: &Pair) -> String {
        let mut line = String::new();
        let mut names: Vec<_> = self
            .row
            .targets
            .iter()
            .map(|target| target.metric)
            .collect();
        names.extend(self.row.shown);
        names.dedup();
        for metric in names.into_iter().filter_map(figures::find) {
            let of = |run: &Run| run.get(metric.name);
            let Some(product) = of(&pair.product) else {
                continue;
            };
            let digits = metric.digits;
            line.push_str(&format!(", {} {product:.digits$}", metric.label));
            if let Some(ceiling) = pair.ceiling.as_ref().and_then(of) {
                line.push_str(&format!(" (ceiling {ceiling:.digits$})"));
            }
        }
        line
    }
}
