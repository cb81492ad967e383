//! What a process used between two moments, as figures for the work it did in between.
//!
//! System calls are counted in a short run of their own, because counting slows what is counted: with
//! `perf` where the kernel lets it see the tracepoint, else with `strace`, else not at all.

use std::io::{PipeReader, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::cleanup::DataDir;
use crate::figures::Run;
use crate::process::{Activity, Child, Memory, context_switches, cpu_seconds, first_line};
use crate::sys;

/// `perf` and `strace` attach and end within this.
const COUNTER_MAX: Duration = Duration::from_secs(10);

/// One measurement of a row: the whole load, or a part of it to count system calls by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pass {
    /// Of the row's load, how much.
    pub(crate) share: f64,
    pub(crate) counts_syscalls: bool,
}

impl Pass {
    /// The share of `whole`, at least `least`.
    pub(crate) fn of(&self, whole: u64, least: u64) -> u64 {
        ((whole as f64 * self.share) as u64).max(least.min(whole))
    }
}

/// What was done, and how long it took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    pub(crate) records: u64,
    /// Of record values.
    pub(crate) bytes: u64,
    pub(crate) batches: u64,
    pub(crate) seconds: f64,
}

/// Looks at the processes that serve. Start it when they are ready and nobody uses them yet.
#[derive(Debug)]
pub(crate) struct Meter {
    pids: Vec<u32>,
    cpu_before: f64,
    switches_before: u64,
    counters: Vec<Counter>,
}

impl Meter {
    pub(crate) fn start(pids: &[u32], pass: &Pass) -> Result<Self> {
        let mut counters = Vec::new();
        if pass.counts_syscalls {
            for pid in pids {
                counters.extend(Counter::start(*pid)?);
            }
        }
        Ok(Self {
            pids: pids.to_vec(),
            cpu_before: sum(pids, cpu_seconds)?,
            switches_before: context_switches_of(pids)?,
            counters,
        })
    }

    /// The figures of what was done since the start.
    pub(crate) fn stop(self, work: &Work) -> Result<Run> {
        let cpu = sum(&self.pids, cpu_seconds)? - self.cpu_before;
        // Threads that ended take theirs with them.
        let switches = context_switches_of(&self.pids)?.checked_sub(self.switches_before);
        let peak = sum(&self.pids, |pid| Ok(Memory::of(pid)?.peak as f64))?;
        let mut run = Run::rates(work);
        run.set("cpu_s_per_gb", cpu / (work.bytes as f64 / 1e9));
        run.set("cpu_s_per_million", cpu / (work.records as f64 / 1e6));
        run.set("cores", cpu / work.seconds);
        run.set("rss_peak_mib", peak / f64::from(1 << 20));
        let batches = work.batches as f64;
        if let Some(switches) = switches {
            run.set("switches_per_batch", switches as f64 / batches);
        }
        if self.counters.len() == self.pids.len() {
            let mut calls = 0;
            for counter in self.counters {
                calls += counter.stop()?;
            }
            run.set("syscalls_per_batch", calls as f64 / batches);
        }
        Ok(run)
    }
}

/// Looks at a process that nobody uses.
#[derive(Debug)]
pub(crate) struct Watch {
    pid: u32,
    before: Activity,
    counter: Option<Counter>,
}

impl Watch {
    pub(crate) fn start(pid: u32, pass: &Pass) -> Result<Self> {
        let counter = match pass.counts_syscalls {
            true => Counter::start(pid)?,
            false => None,
        };
        Ok(Self {
            pid,
            before: Activity::of(pid)?,
            counter,
        })
    }

    /// Set the figures of the time since the start.
    pub(crate) fn stop(self, watched: Duration, run: &mut Run) -> Result<()> {
        let (cpu, switches) = Activity::of(self.pid)?.since(&self.before);
        let seconds = watched.as_secs_f64();
        run.set("idle_cpu_ms_per_s", cpu * 1e3 / seconds);
        run.set("idle_switches_per_s", switches as f64 / seconds);
        if let Some(counter) = self.counter {
            let calls = counter.stop()?;
            run.set("idle_syscalls_per_s", calls as f64 / seconds);
        }
        Ok(())
    }
}

fn sum(pids: &[u32], of: impl Fn(u32) -> Result<f64>) -> Result<f64> {
    pids.iter().map(|pid| of(*pid)).sum()
}

fn context_switches_of(pids: &[u32]) -> Result<u64> {
    pids.iter().map(|pid| context_switches(*pid)).sum()
}

/// Adds what the clients used to a run's figures.
pub(crate) fn clients(run: &mut Run, cpu_seconds: f64, work: &Work) {
    run.set(
        "client_cpu_s_per_gb",
        cpu_seconds / (work.bytes as f64 / 1e9),
    );
    run.set("client_cores", cpu_seconds / work.seconds);
}

/// Counts the system calls of one process.
#[derive(Debug)]
struct Counter {
    child: Child,
    /// Where it said that it counts, and says more that nobody reads: without a reader it would end.
    _words: PipeReader,
    directory: DataDir,
    parse: fn(&str) -> Option<u64>,
}

impl Counter {
    /// Nothing where neither program can count.
    fn start(pid: u32) -> Result<Option<Self>> {
        match Self::perf(pid)? {
            Some(counter) => Ok(Some(counter)),
            None => Self::strace(pid),
        }
    }

    /// `perf` begins when it is told to on its standard input, and acknowledges that on the other.
    fn perf(pid: u32) -> Result<Option<Self>> {
        let directory = DataDir::new(None)?;
        let (mut words, theirs) = std::io::pipe()?;
        let (control, mut tell) = std::io::pipe()?;
        tell.write_all(b"enable\n")?;
        let spawned = Child::spawn(
            Command::new("perf")
                .args(["stat", "-x,", "-e", "raw_syscalls:sys_enter"])
                .args(["--delay", "-1", "--control", "fd:0,1"])
                .args(["-p", &pid.to_string(), "-o"])
                .arg(directory.path().join("count"))
                .stdin(control)
                .stdout(theirs)
                .stderr(Stdio::null()),
        );
        let Ok(child) = spawned else {
            return Ok(None); // it is not installed
        };
        let said = first_line(&mut words, COUNTER_MAX);
        // Where it sees no tracepoint it ends, or counts nothing.
        let counts = matches!(said, Ok(Some(word)) if word == "ack") && has_perf_event(child.id());
        Ok(counts.then_some(Self {
            child,
            _words: words,
            directory,
            parse: perf_total,
        }))
    }

    /// `strace` says when it has attached itself to all threads.
    fn strace(pid: u32) -> Result<Option<Self>> {
        let directory = DataDir::new(None)?;
        let (mut words, theirs) = std::io::pipe()?;
        let spawned = Child::spawn(
            Command::new("strace")
                .args(["-f", "-c", "-U", "calls,name"])
                .args(["-p", &pid.to_string(), "-o"])
                .arg(directory.path().join("count"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(theirs),
        );
        let Ok(child) = spawned else {
            return Ok(None); // it is not installed
        };
        let said = first_line(&mut words, COUNTER_MAX);
        let counts = matches!(said, Ok(Some(word)) if word.contains(" attached"))
            && is_traced(&format!("/proc/{pid}/task"));
        Ok(counts.then_some(Self {
            child,
            _words: words,
            directory,
            parse: strace_total,
        }))
    }

    fn stop(self) -> Result<u64> {
        sys::interrupt(self.child.id())?;
        // By SIGINT: the exit code says nothing.
        self.child.wait(COUNTER_MAX)?;
        let text = std::fs::read_to_string(self.directory.path().join("count"))?;
        match (self.parse)(&text) {
            // `strace` writes nothing when there was none.
            None if text.trim().is_empty() => Ok(0),
            Some(calls) => Ok(calls),
            None => bail!("system calls were counted, but this says how many:\n{text}"),
        }
    }
}

fn has_perf_event(perf: u32) -> bool {
    let Ok(files) = std::fs::read_dir(format!("/proc/{perf}/fd")) else {
        return false;
    };
    files.flatten().any(|file| {
        std::fs::read_link(file.path())
            .is_ok_and(|to| to.to_string_lossy().contains("[perf_event]"))
    })
}

fn is_traced(threads: &str) -> bool {
    let Ok(mut threads) = std::fs::read_dir(threads) else {
        return false;
    };
    threads.all(|thread| {
        let status = thread.and_then(|t| std::fs::read_to_string(t.path().join("status")));
        status.is_ok_and(|status| {
            let tracer = status.lines().find_map(|l| l.strip_prefix("TracerPid:"));
            tracer.is_some_and(|pid| pid.trim() != "0")
        })
    })
}

/// `1234,,raw_syscalls:sys_enter,…`
fn perf_total(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.contains("raw_syscalls"))?;
    match line.split(',').next()? {
        "<not counted>" => Some(0),
        number => number.parse().ok(),
    }
}

/// The line `1234 total` below the table.
fn strace_total(text: &str) -> Option<u64> {
    let line = text.lines().find(|l| l.trim_end().ends_with("total"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// What a client that runs inside this process has used so far, in CPU seconds.
pub(crate) fn own_cpu_seconds() -> Result<f64> {
    cpu_seconds(std::process::id()).context("this process")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read() {
        let perf = "# started on Sat\n\n1234,,raw_syscalls:sys_enter,5000,100.00,,\n";
        assert_eq!(perf_total(perf), Some(1234));
        let none = "<not counted>,,raw_syscalls:sys_enter,0,100.00,,";
        assert_eq!(perf_total(none), Some(0));
        assert_eq!(perf_total("<not supported>,,raw_syscalls:sys_enter"), None);
        let strace = "    calls syscall\n--------- ----\n       12 sendmmsg\n--------- ----\n       40 total\n";
        assert_eq!(strace_total(strace), Some(40));
    }

    #[test]
    fn a_pass_has_its_share() {
        let pass = Pass {
            share: 0.125,
            counts_syscalls: false,
        };
        assert_eq!((pass.of(800, 10), pass.of(40, 10)), (100, 10));
        assert_eq!(pass.of(4, 10), 4, "never more than the whole");
    }
}
