//! The ceilings: bare programs that do what the product does and nothing else, with the same libraries
//! and the same settings. The side that stands for the broker is a process of its own, one thread; the
//! client runs in this process.
//!
//! | program | what it does |
//! |---|---|
//! | receiver | bare quinn receiver: checks each batch's CRC-32C, writes batches in groups with one write linked to one `fdatasync` in flight, acknowledges what is durable |
//! | echo | the same without a disk: what a round trip costs |
//! | append | the same without a network: what one durable append costs |
//! | bare sender | sends batches that lie in memory on one stream, as fast as they are taken |
//! | filter | [`native`]: `key-filter`'s rule as native code over the same record index |
//!
//! Deliberately absent: everything that makes a broker (topics, offsets, index, readers, plugins).

mod append;
mod bare_sender;
mod frame;
mod groups;
pub(crate) mod native;
mod quic;
mod receiver;
mod sender;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};

use crate::cleanup::DataDir;
use crate::figures::Run;
use crate::load::Load;
use crate::meter::{Meter, Pass, Work, clients, own_cpu_seconds};
use crate::process::Child;

pub(crate) use append::append;
pub(crate) use bare_sender::serve as serve_sender;
pub(crate) use receiver::{echo as serve_echo, serve as serve_receiver};

/// A receiver has allocated its files by then, a sender made its batches.
const START_MAX: Duration = Duration::from_secs(300);

/// Hidden subcommands of this program: the processes that stand for the broker.
pub(crate) const RECEIVER: &str = "ceiling-receiver";
pub(crate) const ECHO: &str = "ceiling-echo";
pub(crate) const SENDER: &str = "ceiling-sender";

/// A ceiling that runs over the network.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Which {
    Produce,
    Ping,
    Consume,
}

/// One run of one of them, system calls counted.
pub(crate) fn alone(which: Which, load: &Load, data: Option<&Path>) -> Result<Run> {
    let pass = Pass {
        share: 1.0,
        counts_syscalls: true,
    };
    match which {
        Which::Produce => produce(load, &[DataDir::new(data)?], &pass),
        Which::Ping => ping(load, &pass),
        Which::Consume => consume(load, &pass),
    }
}

/// Durable produce into so many receivers at once, each with its part of the load. Each directory is
/// one receiver's; used again, it is not allocated again.
pub(crate) fn produce(load: &Load, directories: &[DataDir], pass: &Pass) -> Result<Run> {
    let parts = directories.len() as u64;
    let records = pass.of(load.records, load.batch * 100);
    let load = load.with_records(records / parts);
    let mut receivers = Vec::new();
    for directory in directories {
        let mut command = child(RECEIVER, &load)?;
        command.arg("--data").arg(directory.path());
        receivers.push(start(&mut command)?);
    }
    send(&load, &receivers, pass)
}

/// The same without a disk.
pub(crate) fn ping(load: &Load, pass: &Pass) -> Result<Run> {
    let receiver = start(&mut child(ECHO, load)?)?;
    send(load, &[receiver], pass)
}

/// Read batches that a bare sender has in memory, until the end.
pub(crate) fn consume(load: &Load, pass: &Pass) -> Result<Run> {
    let load = load.with_records(pass.of(load.records, load.batch * 100));
    let (process, hello) = start(&mut child(SENDER, &load)?)?;
    let meter = Meter::start(&[process.id()], pass)?;
    let own = own_cpu_seconds()?;
    let seen = bare_sender::read(&load, &hello)?;
    let work = work(&load, 1, seen.seconds);
    let own = own_cpu_seconds()? - own;
    let mut run = meter.stop(&work)?;
    clients(&mut run, own, &work);
    run.set("first_record_ms", seen.first_batch_seconds * 1e3);
    Ok(run)
}

fn send(load: &Load, receivers: &[(Child, quic::Hello)], pass: &Pass) -> Result<Run> {
    let pids: Vec<u32> = receivers.iter().map(|(process, _)| process.id()).collect();
    let meter = Meter::start(&pids, pass)?;
    let own = own_cpu_seconds()?;
    let barrier = Arc::new(Barrier::new(receivers.len()));
    let all = std::thread::scope(|scope| {
        let senders: Vec<_> = receivers
            .iter()
            .map(|(_, hello)| {
                let barrier = Arc::clone(&barrier);
                scope.spawn(move || sender::run(load, hello, &barrier))
            })
            .collect();
        let mut all: Option<sender::Sent> = None;
        for sender in senders {
            let sent = sender
                .join()
                .map_err(|_| anyhow!("a sender's thread panicked"))??;
            all = Some(match all.take() {
                None => sent,
                Some(all) => all.and(&sent)?,
            });
        }
        all.context("no receiver")
    })?;
    let own = own_cpu_seconds()? - own;
    let work = work(load, receivers.len() as u64, all.seconds());
    let mut run = meter.stop(&work)?;
    clients(&mut run, own, &work);
    run.set_latencies(&all.latencies);
    Ok(run)
}

fn work(load: &Load, times: u64, seconds: f64) -> Work {
    Work {
        records: load.batches() * load.batch * times,
        bytes: load.bytes() * times,
        batches: load.batches() * times,
        seconds,
    }
}

fn child(subcommand: &str, load: &Load) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(subcommand).args(load.arguments());
    Ok(command)
}

/// Start a process of ours, and read where it listens. It stays until its input ends.
fn start(command: &mut Command) -> Result<(Child, quic::Hello)> {
    let process = Child::spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
    let hello = process
        .first_line(START_MAX)
        .context("the ceiling's process did not start")?;
    Ok((process, serde_json::from_str(&hello)?))
}
