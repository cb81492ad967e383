//! A thousand subscriptions on one topic: every batch goes to all of them. First as fast as it goes,
//! then single records at a pace, for the time until a subscriber has one.

use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hdrhistogram::Histogram;
use millstream_client::{Client, Consumer, ConsumerEvent, Context, FetchedBatch, Record, StartAt};
use serde_json::json;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::broker::Broker;
use crate::figures::Run;
use crate::meter::{Meter, Pass, Work, clients, own_cpu_seconds};
use crate::process::{Memory, finish};
use crate::session::{Measured, Session};

const SUBSCRIPTIONS: u64 = 1_000;
/// Connections that they share.
const CONNECTIONS: usize = 8;
/// Of each subscription: a thousand of them must fit into this process.
const CREDIT_BYTES: u64 = 1 << 20;
/// Records of 1 KiB, 64 in a batch, that all subscriptions get.
const RECORDS: u64 = 64 * 60;
/// Single records for the latency, and how far apart.
const SINGLE: u64 = 100;
const EVERY: Duration = Duration::from_millis(50);
const SINGLE_BYTES: usize = 100;
/// All subscribers must have everything by then.
const LONGEST: Duration = Duration::from_secs(120);

pub(super) fn many(session: &Session<'_>) -> Result<Measured> {
    let subscriptions = session.scaled(SUBSCRIPTIONS, 20).min(SUBSCRIPTIONS);
    let records = session.scaled(RECORDS, 640).next_multiple_of(64);
    session.alone(
        json!({
            "subscriptions": subscriptions,
            "connections": CONNECTIONS,
            "records": records,
            "size": 1024,
            "batch": 64,
            "then_single_records": SINGLE,
            "every_ms": EVERY.as_millis() as u64,
            "shards": 1,
        }),
        |pass| {
            let records = pass.of(records, 640).next_multiple_of(64);
            session.inside(1, async |broker| {
                measure(broker, subscriptions, records, pass).await
            })
        },
    )
}

async fn measure(broker: &Broker, subscriptions: u64, records: u64, pass: &Pass) -> Result<Run> {
    let context = Context::load(broker.context())?;
    let pid = broker.pid();
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(Client::connect(context.clone()).await?);
    }
    let before = Memory::of(pid)?.anonymous;
    let seen = Arc::new(Seen::new());
    let mut consumers = JoinSet::new();
    for number in 0..subscriptions {
        let client = &connections[number as usize % CONNECTIONS];
        let consumer = client
            .consumer()
            .topic("bench")
            .from(StartAt::End)
            .credit_bytes(CREDIT_BYTES)
            .build()
            .await?;
        consumers.spawn(consume(consumer, Arc::clone(&seen)));
    }
    seen.wait(&mut consumers, |counts| counts.assigned == subscriptions)
        .await?;
    let after = Memory::of(pid)?.anonymous;

    // As fast as it goes.
    let meter = Meter::start(&[pid], pass)?;
    let own = own_cpu_seconds()?;
    let count = records.to_string();
    let command = broker.command(&[
        "bench",
        "produce",
        "--topic",
        "bench",
        "--records",
        &count,
        "--size",
        "1024",
        "--batch",
        "64",
        "--in-flight",
        "16",
    ]);
    let producer = tokio::task::spawn_blocking(move || {
        let mut command: Command = command;
        finish(&mut command, LONGEST)
    });
    let all = records * subscriptions;
    seen.wait(&mut consumers, |counts| counts.records == all)
        .await?;
    producer.await??;
    let work = {
        let counts = seen.lock();
        let first = counts.first.context("nothing came")?;
        Work {
            records: counts.records,
            bytes: counts.bytes,
            batches: counts.batches,
            seconds: (counts.last - first).as_secs_f64(),
        }
    };
    let mut run = meter.stop(&work)?;
    clients(&mut run, own_cpu_seconds()? - own, &work);

    // One by one, at a pace; none before all subscribers have seen the last.
    let producer = connections[0].producer().build().await?;
    seen.lock().timed = true;
    let mut pace = tokio::time::interval(EVERY);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 1..=SINGLE {
        pace.tick().await;
        let mut value = vec![0; SINGLE_BYTES];
        value[..8].copy_from_slice(&seen.micros().to_le_bytes());
        producer.send("bench", Record::new(value)).await?;
        let all = all + number * subscriptions;
        seen.wait(&mut consumers, |counts| counts.records == all)
            .await?;
    }
    run.set_latencies(&seen.lock().latencies);
    let grown = after.saturating_sub(before) as f64;
    run.set(
        "kib_per_subscription",
        grown / f64::from(1 << 10) / subscriptions as f64,
    );
    Ok(run)
}

/// What all subscribers saw together.
struct Seen {
    origin: Instant,
    counts: Mutex<Counts>,
    changed: Notify,
}

struct Counts {
    assigned: u64,
    records: u64,
    bytes: u64,
    batches: u64,
    first: Option<Instant>,
    last: Instant,
    /// Records carry their time.
    timed: bool,
    latencies: Histogram<u64>,
}

impl Seen {
    fn new() -> Self {
        let origin = Instant::now();
        Self {
            origin,
            counts: Mutex::new(Counts {
                assigned: 0,
                records: 0,
                bytes: 0,
                batches: 0,
                first: None,
                last: origin,
                timed: false,
                latencies: Histogram::new(3).expect("three digits are allowed"),
            }),
            changed: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn micros(&self) -> u64 {
        self.origin.elapsed().as_micros() as u64
    }

    fn batch(&self, batch: &FetchedBatch) -> Result<()> {
        let opened = batch.open()?;
        let now = Instant::now();
        let mut counts = self.lock();
        for record in opened.iter() {
            let value = record?.value.unwrap_or_default();
            counts.records += 1;
            counts.bytes += value.len() as u64;
            if counts.timed
                && let Some(stamp) = value.first_chunk()
            {
                let sent = u64::from_le_bytes(*stamp);
                let latency = self.micros().saturating_sub(sent);
                counts.latencies.record(latency)?;
            }
        }
        counts.batches += 1;
        counts.first.get_or_insert(now);
        counts.last = now;
        drop(counts);
        self.changed.notify_one();
        Ok(())
    }

    /// Until it is so; an error when a subscriber ends before.
    async fn wait(
        &self,
        consumers: &mut JoinSet<Result<()>>,
        is_so: impl Fn(&Counts) -> bool,
    ) -> Result<()> {
        let deadline = tokio::time::Instant::now() + LONGEST;
        loop {
            if is_so(&self.lock()) {
                return Ok(());
            }
            tokio::select! {
                () = self.changed.notified() => {}
                ended = consumers.join_next() => match ended {
                    Some(Ok(Err(error))) => return Err(error),
                    other => bail!("a subscriber ended: {other:?}"),
                },
                () = tokio::time::sleep_until(deadline) => {
                    let counts = self.lock();
                    bail!(
                        "{} assigned, {} records came, and no more",
                        counts.assigned,
                        counts.records
                    );
                }
            }
        }
    }
}

async fn consume(mut consumer: Consumer, seen: Arc<Seen>) -> Result<()> {
    while let Some(event) = consumer.next_event().await {
        match event? {
            ConsumerEvent::Assigned(partitions) => {
                ensure!(partitions.len() == 1, "{partitions:?}");
                seen.lock().assigned += 1;
                seen.changed.notify_one();
            }
            ConsumerEvent::Batch(batch) => seen.batch(&batch)?,
            ConsumerEvent::Failed { error, .. } => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}
