//! Five thousand connections: what one costs while it is idle, and how fast a trickle over all of them
//! is acknowledged.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hdrhistogram::Histogram;
use millstream_client::{Client, Context, Producer, Record};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::broker::Broker;
use crate::figures::Run;
use crate::meter::{Meter, Pass, Watch, Work, clients, own_cpu_seconds};
use crate::process::Memory;
use crate::session::{Measured, Session};
use crate::sys;

const CONNECTIONS: u64 = 5_000;
/// Handshakes under way at once.
const CONNECTING: usize = 64;
/// "Idle" is said of connections whose handshakes are over so long: what ends in this time (the search
/// for the path's MTU, session tickets) belongs to connecting.
const UNUSED: Duration = Duration::from_secs(3);
/// The measured window.
const WATCHED: Duration = Duration::from_secs(5);
/// Of all connections together.
const RECORDS_PER_S: u32 = 1_000;
const TRICKLE_SECONDS: u64 = 10;
const RECORD_BYTES: usize = 100;

pub(super) fn many(session: &Session<'_>) -> Result<Measured> {
    sys::map_large_memory();
    let connections = session.scaled(CONNECTIONS, 50).min(CONNECTIONS);
    let seconds = session.scaled(TRICKLE_SECONDS, 2);
    session.alone(
        json!({
            "connections": connections,
            "trickle_records_per_s": RECORDS_PER_S,
            "trickle_seconds": seconds,
            "record_bytes": RECORD_BYTES,
            "shards": 1,
        }),
        |pass| {
            session.inside(16, async |broker| {
                // As many connections when system calls are counted: their keep-alives are the broker's work.
                measure(broker, connections, pass.of(seconds, 2), pass).await
            })
        },
    )
}

async fn measure(broker: &Broker, connections: u64, seconds: u64, pass: &Pass) -> Result<Run> {
    let context = Context::load(broker.context())?;
    let pid = broker.pid();
    let before = Memory::of(pid)?;
    let began = Instant::now();
    let all = connect(&context, connections).await?;
    let connecting = began.elapsed().as_secs_f64();
    ensure_there(broker, connections)?;
    let process = broker.process();
    process
        .outlives_beside_tasks(UNUSED)
        .await
        .context("the broker")?;
    let after = Memory::of(pid)?;

    let mut run = Run::default();
    let watch = Watch::start(pid, pass)?;
    process
        .outlives_beside_tasks(WATCHED)
        .await
        .context("the broker")?;
    watch.stop(WATCHED, &mut run)?;
    ensure_there(broker, connections)?;

    let producers = producers(&all).await?;
    let records = seconds * u64::from(RECORDS_PER_S);
    let meter = Meter::start(&[pid], pass)?;
    let own = own_cpu_seconds()?;
    let began = Instant::now();
    let latencies = trickle(&producers, records).await?;
    let work = Work {
        records,
        bytes: records * RECORD_BYTES as u64,
        batches: records,
        seconds: began.elapsed().as_secs_f64(),
    };
    run.extend(meter.stop(&work)?);
    clients(&mut run, own_cpu_seconds()? - own, &work);
    run.set_latencies(&latencies);
    run.set("connections_per_s", connections as f64 / connecting);
    let grown = after.anonymous.saturating_sub(before.anonymous) as f64;
    run.set(
        "kib_per_connection",
        grown / f64::from(1 << 10) / connections as f64,
    );
    run.set("rss_idle_mib", after.resident as f64 / f64::from(1 << 20));
    // The process is about to go, and so are they: nobody waits for goodbyes.
    drop(producers);
    drop(all);
    Ok(run)
}

/// A client is connected when the broker has greeted it, so it counts them all.
fn ensure_there(broker: &Broker, connections: u64) -> Result<()> {
    let there = broker.metric("millstream_connections")?;
    ensure!(
        there >= connections as f64,
        "{there} of {connections} connections are there"
    );
    Ok(())
}

async fn connect(context: &Context, connections: u64) -> Result<Vec<Client>> {
    let places = Arc::new(Semaphore::new(CONNECTING));
    let mut under_way = JoinSet::new();
    for _ in 0..connections {
        let (context, places) = (context.clone(), Arc::clone(&places));
        under_way.spawn(async move {
            let _place = places.acquire_owned().await?;
            anyhow::Ok(Client::connect(context).await?)
        });
    }
    let mut all = Vec::new();
    while let Some(client) = under_way.join_next().await {
        all.push(client?.with_context(|| format!("connection {}", all.len() + 1))?);
    }
    Ok(all)
}

/// One a connection; each has sent a record, so that what happens once has happened.
async fn producers(clients: &[Client]) -> Result<Vec<Producer>> {
    let places = Arc::new(Semaphore::new(CONNECTING));
    let mut under_way = JoinSet::new();
    for client in clients {
        let (client, places) = (client.clone(), Arc::clone(&places));
        under_way.spawn(async move {
            let _place = places.acquire_owned().await?;
            let producer = client.producer().build().await?;
            producer.send("bench", Record::new("first")).await?;
            anyhow::Ok(producer)
        });
    }
    let mut all = Vec::new();
    while let Some(producer) = under_way.join_next().await {
        all.push(producer??);
    }
    Ok(all)
}

/// Records at an even pace, each from the next connection: from when one was due until it is durable,
/// in microseconds.
async fn trickle(producers: &[Producer], records: u64) -> Result<Histogram<u64>> {
    let began = tokio::time::Instant::now();
    let every = Duration::from_secs(1) / RECORDS_PER_S;
    let value = vec![b'v'; RECORD_BYTES];
    let mut under_way = JoinSet::new();
    for number in 0..records {
        let due = began + every * u32::try_from(number)?;
        tokio::time::sleep_until(due).await;
        let producer = producers[(number % producers.len() as u64) as usize].clone();
        let record = Record::new(value.clone());
        under_way.spawn(async move {
            producer.send("bench", record).await?;
            anyhow::Ok(due.elapsed())
        });
    }
    let mut latencies = Histogram::<u64>::new(3)?;
    while let Some(latency) = under_way.join_next().await {
        latencies.record(latency??.as_micros() as u64)?;
    }
    Ok(latencies)
}
