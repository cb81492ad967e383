//! Memory under load: four producers as fast as they go, a reader of old data, and readers that stall,
//! with the default bounds and with small ones.

use std::cell::Cell;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use millstream_client::{Client, Consumer, Context, StartAt};
use serde_json::json;

use super::produce::{Plan, load, on};
use crate::broker::{Broker, Setup};
use crate::figures::Run;
use crate::meter::Pass;
use crate::process::{Memory, Overdue};
use crate::runtime;
use crate::session::{Measured, Session};

/// Consumers that never take what they are sent.
const STALLED: u32 = 64;
/// The reader of old data ends by then, unless the stalled ones keep it from reading.
const READER_MAX: Duration = Duration::from_secs(60);
/// The settings of `[memory]` that bound what grows with load: their defaults, and small ones, in bytes.
const DEFAULTS: [u64; 4] = [128 << 20, 40 << 20, 96 << 20, 96 << 20];
const SMALL: [u64; 4] = [32 << 20, 16 << 20, 32 << 20, 32 << 20];

pub(super) fn under_load(session: &Session<'_>) -> Result<Measured> {
    let plan = Plan {
        producers: 4,
        partitions: 16,
        ..Plan::new(load(session, 2_000_000, (64, 1024), 64, 6500))
    };
    let defaults = Plan {
        setup: Setup {
            shards: 2,
            ..Setup::default()
        },
        ..plan.clone()
    };
    let [hot_tail, read, ingress, send] = SMALL;
    let small = Plan {
        setup: defaults.setup.clone().with(&format!(
            "[memory]\nhot_tail_bytes = {hot_tail}\nread_bytes = {read}\ningress_bytes = {ingress}\nsend_bytes = {send}\n"
        )),
        ..plan
    };
    let starved = Cell::new(false);
    let mut measured = session.alone(
        json!({
            "defaults": defaults.describe(),
            "small": small.describe(),
            "stalled_consumers": STALLED,
        }),
        |pass| {
            let mut run = loaded(session, &defaults, DEFAULTS, &starved, pass)?;
            let bounded = loaded(session, &small, SMALL, &starved, pass)?;
            for (of, name) in [
                ("rss_peak_mib", "small_rss_peak_mib"),
                ("bound_used", "small_bound_used"),
            ] {
                run.set(name, bounded.get(of).context("it was measured")?);
            }
            Ok(run)
        },
    )?;
    if starved.get() {
        measured.notes.push(format!(
            "beside {STALLED} stalled readers the reader of old data did not end within {} s",
            READER_MAX.as_secs()
        ));
    }
    Ok(measured)
}

fn loaded(
    session: &Session<'_>,
    plan: &Plan,
    bounds: [u64; 4],
    starved: &Cell<bool>,
    pass: &Pass,
) -> Result<Run> {
    let directory = session.directory()?;
    let broker = Broker::start(session.program, directory.path(), &plan.setup)?;
    broker.make_topic("bench", plan.partitions)?;
    let idle = Memory::of(broker.pid())?;
    let stalled = Stalled::start(&broker)?;
    let mut run = on(&broker, plan, pass)?;
    // From its start: what the hot tail no longer has comes from disk.
    let read = broker.bench_for(&["consume", "--no-fill", "--topic", "bench"], READER_MAX);
    match read {
        Ok((read, _)) => ensure!(
            read.number("records")? > 0.0,
            "the reader of old data saw none"
        ),
        Err(error) if error.is::<Overdue>() => starved.set(starved.get() || !pass.counts_syscalls),
        Err(error) => return Err(error),
    }
    stalled.end()?;
    let peak = Memory::of(broker.pid())?.peak;
    run.set("rss_idle_mib", idle.resident as f64 / f64::from(1 << 20));
    run.set("rss_peak_mib", peak as f64 / f64::from(1 << 20));
    let grown = peak.saturating_sub(idle.resident) as f64;
    run.set("bound_used", grown / bounds.iter().sum::<u64>() as f64);
    Ok(run)
}

/// Consumers that have been assigned everything and read nothing. Their connections live on a thread.
struct Stalled {
    over: tokio::sync::oneshot::Sender<()>,
    thread: std::thread::JoinHandle<Result<()>>,
}

impl Stalled {
    fn start(broker: &Broker) -> Result<Self> {
        let context = Context::load(broker.context())?;
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (over, is_over) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = runtime::one_thread()?;
            runtime.block_on(async {
                let mut all: Vec<(Client, Consumer)> = Vec::new();
                for _ in 0..STALLED {
                    let client = Client::connect(context.clone()).await?;
                    let consumer = client
                        .consumer()
                        .topic("bench")
                        .from(StartAt::Start)
                        .build()
                        .await?;
                    all.push((client, consumer));
                }
                let _ = ready.send(());
                let _ = is_over.await;
                anyhow::Ok(())
            })
        });
        if is_ready.recv().is_err() {
            // It ended before it was ready: its own words say why.
            return Err(match thread.join() {
                Ok(Err(error)) => error,
                _ => anyhow::anyhow!("the stalled consumers did not start"),
            });
        }
        Ok(Self { over, thread })
    }

    fn end(self) -> Result<()> {
        let _ = self.over.send(());
        self.thread
            .join()
            .map_err(|_| anyhow::anyhow!("the thread of the stalled consumers panicked"))?
    }
}
