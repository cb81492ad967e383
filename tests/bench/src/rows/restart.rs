//! A restart with much data: killed in the middle of a load, started again, and read from.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use millstream_client::{Client, Context, StartAt};
use serde_json::json;

use super::produce::{Plan, load, send};
use crate::broker::Broker;
use crate::figures::Run;
use crate::load::Load;
use crate::process::Child;
use crate::runtime;
use crate::session::{Measured, Session};

/// Partitions that the data lies in.
const PARTITIONS: u32 = 16;
/// Bytes appended between two kills: what a restart has to replay, several snapshots' worth.
const BETWEEN_BYTES: f64 = 300e6;
/// The load of which the broker is killed writes this by then.
const BETWEEN_MAX: Duration = Duration::from_secs(60);

pub(super) fn much_data(session: &Session<'_>) -> Result<Measured> {
    let size = load(session, 1, (64, 1024), 32, 6500);
    let wanted = session.settings.gb * 1e9 * session.settings.scale;
    let records = (wanted / size.size as f64) as u64;
    let plan = Plan {
        partitions: PARTITIONS,
        ..Plan::new(Load {
            mtu: size.mtu,
            ..size.with_records(records)
        })
    };
    let directory = session.directory()?;
    let broker = Broker::start(session.program, directory.path(), &plan.setup)?;
    broker.make_topic("bench", plan.partitions)?;
    eprintln!(
        "{}: writing {:.1} GB",
        session.row.name,
        plan.load.bytes() as f64 / 1e9
    );
    send(&broker, &plan, &plan.load)?;

    // Each time the same broker goes on, so it must be handed from one run to the next.
    let mut running = Some(broker);
    session.alone(
        json!({
            "plan": plan.describe(),
            "then": "killed with SIGKILL while a producer writes, started again",
        }),
        |_| {
            let broker = running.take().context("the broker of the last run")?;
            let written = kill_while_writing(&plan, broker, session.settings.scale)?;
            let began = Instant::now();
            let again = Broker::start(session.program, directory.path(), &plan.setup)?;
            let first_record = read_one(&again).map(|()| began.elapsed())?;
            let there = again.metric("millstream_shard_log_bytes")?;
            ensure!(
                there >= plan.load.bytes() as f64,
                "{there} bytes of log are left of {} and {written}",
                plan.load.bytes()
            );
            let mut run = Run::default();
            run.set("ready_ms", again.ready_after.as_secs_f64() * 1e3);
            run.set("first_record_ms", first_record.as_secs_f64() * 1e3);
            running = Some(again);
            Ok(run)
        },
    )
}

/// Kill the broker in the middle of a load that no client has finished. Gives the bytes it took of it.
fn kill_while_writing(plan: &Plan, broker: Broker, scale: f64) -> Result<f64> {
    let partitions = plan.partitions.to_string();
    let mut command = broker.command(&[
        "bench",
        "produce",
        "--topic",
        "bench",
        "--records",
        "1000000000",
        "--size",
        "1024",
        "--batch",
        "64",
        "--in-flight",
        "32",
        "--partitions",
        &partitions,
    ]);
    const RECEIVED: &str = "millstream_shard_bytes_total";
    let before = broker.metric(RECEIVED)?;
    let client = Child::spawn(
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null()),
    )?;
    let wanted = before + BETWEEN_BYTES * scale.min(1.0);
    let received = broker
        .wait_for(RECEIVED, BETWEEN_MAX, &client, |bytes| bytes >= wanted)
        .context("waiting for what the producer writes")?;
    broker.kill();
    drop(client);
    Ok(received - before)
}

/// The first record of the first partition, by a client that connects now.
fn read_one(broker: &Broker) -> Result<()> {
    let runtime = runtime::one_thread()?;
    runtime.block_on(async {
        let client = Client::connect(Context::load(broker.context())?).await?;
        let mut consumer = client
            .consumer()
            .partition("bench", 0)
            .from(StartAt::Start)
            .build()
            .await?;
        let record = consumer.next().await.context("the consumer ended")??;
        ensure!(record.offset == 0, "the first record is {}", record.offset);
        consumer.close().await;
        client.close().await;
        Ok(())
    })
}
