//! `millstream-sim`: run seeds, replay one with a trace, or soak for as long as asked.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Parser;
use millstream_sim::bugs::BUGS;
use millstream_sim::history::Counts;
use millstream_sim::run::{Outcome, run};

/// Seeded runs of a shard on a simulated disk.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    /// Replay one seed with a trace.
    #[arg(long)]
    seed: Option<u64>,
    /// Run these seeds: FROM..TO.
    #[arg(long, value_parser = range, default_value = "0..200")]
    seeds: (u64, u64),
    /// Run random seeds for so many minutes.
    #[arg(long, value_name = "MINUTES")]
    soak: Option<u64>,
    /// Go on after a seed that fails, and list them all.
    #[arg(long)]
    all: bool,
    /// Plant each bug and say which seed and which checker catch it.
    #[arg(long)]
    bugs: bool,
    /// Threads; 0: one a core.
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

fn range(text: &str) -> Result<(u64, u64), String> {
    let (from, to) = text.split_once("..").ok_or("write FROM..TO")?;
    let number = |s: &str| s.parse::<u64>().map_err(|error| format!("`{s}`: {error}"));
    let (from, to) = (number(from)?, number(to)?);
    if from < to {
        Ok((from, to))
    } else {
        Err("FROM is below TO".to_owned())
    }
}

fn main() -> io::Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(seed) = arguments.seed {
        let outcome = run(seed, true);
        let mut out = io::stdout().lock();
        writeln!(out, "{:?}\ndigest {:016x}", outcome.counts, outcome.digest)?;
        return report(&mut out, &outcome);
    }
    if arguments.bugs {
        return bugs(arguments.seeds);
    }
    let threads = match arguments.threads {
        0 => std::thread::available_parallelism()?.get(),
        n => n,
    };
    match arguments.soak {
        None => many(threads, arguments.all, arguments.seeds.0, |seed| {
            seed < arguments.seeds.1
        }),
        Some(minutes) => {
            let end = Instant::now() + Duration::from_secs(minutes * 60);
            let start = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            many(threads, arguments.all, start.as_nanos() as u64, |_| {
                Instant::now() < end
            })
        }
    }
}

/// Run seeds from `from` on while `more` says so, until the first that fails or, with `all`, to the end.
fn many(
    threads: usize,
    all: bool,
    from: u64,
    more: impl Fn(u64) -> bool + Sync,
) -> io::Result<ExitCode> {
    let (next, failed, counts) = (
        AtomicU64::new(from),
        Mutex::new(Vec::new()),
        Mutex::new(Counts::default()),
    );
    let lock = || failed.lock().expect("no thread panics with it");
    let started = Instant::now();
    std::panic::set_hook(Box::new(|_| ())); // a panic is an outcome like others
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if !more(seed) || !all && !lock().is_empty() {
                        return;
                    }
                    let outcome = run(seed, false);
                    *counts.lock().expect("no thread panics with it") += outcome.counts;
                    if !outcome.violations.is_empty() {
                        lock().push(outcome);
                    }
                }
            });
        }
    });
    let mut out = io::stdout().lock();
    let runs = next.load(Ordering::Relaxed) - from;
    let failed = failed.into_inner().expect("no thread panics with it");
    writeln!(
        out,
        "about {runs} runs in {:.1} s, {} failed",
        started.elapsed().as_secs_f64(),
        failed.len()
    )?;
    writeln!(
        out,
        "{:?}",
        counts.into_inner().expect("no thread panics with it")
    )?;
    let mut code = ExitCode::SUCCESS;
    for outcome in &failed {
        code = report(&mut out, outcome)?;
    }
    Ok(code)
}

fn bugs((from, to): (u64, u64)) -> io::Result<ExitCode> {
    std::panic::set_hook(Box::new(|_| ()));
    let mut out = io::stdout().lock();
    let mut code = ExitCode::SUCCESS;
    for bug in BUGS {
        match bug.caught(from..to) {
            Some((seed, violation)) => {
                let what: String = violation.what.chars().take(120).collect();
                writeln!(
                    out,
                    "{}: seed {seed}, {}: {what}",
                    bug.name, violation.promise
                )?;
            }
            None => {
                code = ExitCode::FAILURE;
                writeln!(out, "{}: NOT CAUGHT ({})", bug.name, bug.stands_for)?;
            }
        }
    }
    Ok(code)
}

fn report(out: &mut impl Write, outcome: &Outcome) -> io::Result<ExitCode> {
    if outcome.violations.is_empty() {
        writeln!(out, "seed {}: every promise was kept", outcome.seed)?;
        return Ok(ExitCode::SUCCESS);
    }
    for violation in &outcome.violations {
        writeln!(
            out,
            "seed {}: {} is broken: {}",
            outcome.seed, violation.promise, violation.what
        )?;
    }
    writeln!(
        out,
        "replay: cargo run -p millstream-sim -- --seed {}",
        outcome.seed
    )?;
    Ok(ExitCode::FAILURE)
}
