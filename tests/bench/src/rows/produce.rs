//! The rows that produce: durable acknowledgements of the product beside a bare receiver's.

use anyhow::Result;
use serde_json::{Value, json};

use crate::broker::{Broker, Report, Setup};
use crate::ceiling;
use crate::cleanup::DataDir;
use crate::figures::Run;
use crate::load::Load;
use crate::meter::{Meter, Pass, Work, clients};
use crate::session::{Measured, Session};

/// The least that a short run sends.
const BATCHES_MIN: u64 = 200;
/// Size at which the client's own batches are full: its default.
const CLIENT_BATCH_BYTES: u64 = 128 << 10;

/// Who sends the load to the product, and to what.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) load: Load,
    pub(super) setup: Setup,
    pub(super) producers: u32,
    pub(super) partitions: u32,
    /// Each producer writes to one partition, not to all in turn.
    pub(super) own_partition: bool,
    /// Records have keys, so many different ones; 0: none.
    pub(super) keys: u64,
    /// The client makes the batches.
    pub(super) client_batches: bool,
}

impl Plan {
    /// One producer, one partition, one shard.
    pub(super) fn new(load: Load) -> Self {
        Self {
            load,
            setup: Setup::mtu(load.mtu),
            producers: 1,
            partitions: 1,
            own_partition: false,
            keys: 0,
            client_batches: false,
        }
    }

    pub(super) fn describe(&self) -> Value {
        let mut described = json!({
            "load": self.load,
            "producers": self.producers,
            "partitions": self.partitions,
            "keys": self.keys,
            "client_batches": self.client_batches,
            "shards": self.setup.shards,
            "config": self.setup.config,
        });
        // Only where it is so: reports of before it was known stay comparable.
        if self.own_partition {
            described["own_partition"] = true.into();
        }
        described
    }
}

/// A row's load, with what the session's settings put in its place.
pub(super) fn load(
    session: &Session<'_>,
    records: u64,
    (batch, size): (u64, usize),
    in_flight: usize,
    mtu: u16,
) -> Load {
    let settings = session.settings;
    let load = Load {
        records: settings.records.unwrap_or(records),
        size,
        batch,
        in_flight: settings.in_flight.unwrap_or(in_flight),
        mtu: settings.mtu.unwrap_or(mtu),
    };
    load.with_records(session.scaled(load.records, batch * BATCHES_MIN))
}

pub(super) fn main(session: &Session<'_>) -> Result<Measured> {
    beside_receivers(
        session,
        &Plan::new(load(session, 2_000_000, (64, 1024), 16, 1452)),
    )
}

pub(super) fn jumbo(session: &Session<'_>) -> Result<Measured> {
    beside_receivers(
        session,
        &Plan::new(load(session, 3_000_000, (64, 1024), 32, 6500)),
    )
}

/// A topic that has been written for a while: what it keeps, and what is written to it before anything is
/// measured, so that its files are written again and no new ones are filled with zeros.
const KEPT_BYTES: u64 = 512_000_000;
const WRITTEN_BEFORE_BYTES: u64 = 3 * KEPT_BYTES / 2;

pub(super) fn kept(session: &Session<'_>) -> Result<Measured> {
    on_a_kept_topic(
        session,
        &Plan::new(load(session, 2_000_000, (64, 1024), 16, 1452)),
    )
}

pub(super) fn jumbo_kept(session: &Session<'_>) -> Result<Measured> {
    on_a_kept_topic(
        session,
        &Plan::new(load(session, 3_000_000, (64, 1024), 32, 6500)),
    )
}

pub(super) fn two_shards_kept(session: &Session<'_>) -> Result<Measured> {
    on_a_kept_topic(session, &on_two_shards(session))
}

fn on_a_kept_topic(session: &Session<'_>, plan: &Plan) -> Result<Measured> {
    let keep = format!("[topics]\nretention_bytes = {KEPT_BYTES}\n");
    let plan = Plan {
        setup: plan.setup.clone().with(&keep),
        ..plan.clone()
    };
    let before = WRITTEN_BEFORE_BYTES * u64::from(plan.partitions);
    let before = plan.load.with_records(before / plan.load.size as u64);
    let directories = receivers(session, &plan)?;
    session.pairs(
        plan.describe(),
        |pass| ceiling::produce(&plan.load, &directories, pass),
        |pass| {
            let directory = session.directory()?;
            let broker = Broker::start(session.program, directory.path(), &plan.setup)?;
            broker.make_topic("bench", plan.partitions)?;
            send(&broker, &plan, &before)?;
            on(&broker, &plan, pass)
        },
    )
}

pub(super) fn depth_1(session: &Session<'_>) -> Result<Measured> {
    beside_receivers(
        session,
        &Plan::new(load(session, 320_000, (64, 1024), 1, 1452)),
    )
}

pub(super) fn small_batches(session: &Session<'_>) -> Result<Measured> {
    beside_receivers(
        session,
        &Plan::new(load(session, 1_000_000, (4, 1024), 64, 1452)),
    )
}

pub(super) fn client_batching(session: &Session<'_>) -> Result<Measured> {
    let batch = CLIENT_BATCH_BYTES / 110;
    let plan = Plan {
        client_batches: true,
        ..Plan::new(load(session, 10_000_000, (batch, 100), 16, 1452))
    };
    beside_receivers(session, &plan)
}

pub(super) fn two_shards(session: &Session<'_>) -> Result<Measured> {
    beside_receivers(session, &on_two_shards(session))
}

pub(super) fn two_shards_mixed(session: &Session<'_>) -> Result<Measured> {
    beside_receivers(session, &mixed(on_two_shards(session)))
}

pub(super) fn two_shards_mixed_kept(session: &Session<'_>) -> Result<Measured> {
    on_a_kept_topic(session, &mixed(on_two_shards(session)))
}

/// Each producer to all partitions in turn.
fn mixed(plan: Plan) -> Plan {
    Plan {
        own_partition: false,
        ..plan
    }
}

fn on_two_shards(session: &Session<'_>) -> Plan {
    let plan = Plan::new(load(session, 2_000_000, (64, 1024), 16, 1452));
    Plan {
        setup: plan.setup.clone().shards(2),
        producers: 2,
        partitions: 2,
        own_partition: true,
        ..plan
    }
}

/// The ceiling is measured three ways: an answer that waits for an append is what counts, and its two
/// halves alone tell where the time goes.
pub(super) fn single_record(session: &Session<'_>) -> Result<Measured> {
    let plan = Plan::new(load(session, 20_000, (1, 100), 1, 1452));
    let directories = [session.directory()?];
    session.pairs(
        plan.describe(),
        |pass| {
            let mut run = ceiling::produce(&plan.load, &directories, pass)?;
            if !pass.counts_syscalls {
                let append = ceiling::append(&plan.load, directories[0].path())?;
                run.set("append_p50_ms", append.value_at_quantile(0.5) as f64 / 1e3);
                let ping = ceiling::ping(&plan.load, pass)?.get("p50_ms");
                run.set("ping_p50_ms", ping.unwrap_or(f64::NAN));
            }
            Ok(run)
        },
        |pass| product(session, &plan, pass),
    )
}

/// As many receivers as the product has shards.
fn beside_receivers(session: &Session<'_>, plan: &Plan) -> Result<Measured> {
    let directories = receivers(session, plan)?;
    session.pairs(
        plan.describe(),
        |pass| ceiling::produce(&plan.load, &directories, pass),
        |pass| product(session, plan, pass),
    )
}

/// A directory for each of them.
fn receivers(session: &Session<'_>, plan: &Plan) -> Result<Vec<DataDir>> {
    let shards = 0..plan.setup.shards;
    shards.map(|_| session.directory()).collect()
}

/// One broker on an empty directory, one run of its own bench client.
pub(super) fn product(session: &Session<'_>, plan: &Plan, pass: &Pass) -> Result<Run> {
    let directory = session.directory()?;
    let broker = Broker::start(session.program, directory.path(), &plan.setup)?;
    broker.make_topic("bench", plan.partitions)?;
    on(&broker, plan, pass)
}

/// One run of the bench client into the topic `bench` of a broker.
pub(super) fn on(broker: &Broker, plan: &Plan, pass: &Pass) -> Result<Run> {
    let load = plan.load;
    let load = load.with_records(pass.of(load.records, load.batch * BATCHES_MIN));
    let meter = Meter::start(&[broker.pid()], pass)?;
    let batches_before = broker.metric("millstream_shard_batches_total")?;
    let (report, client_cpu) = send(broker, plan, &load)?;
    let batches = broker.metric("millstream_shard_batches_total")? - batches_before;
    let work = Work {
        records: load.records,
        bytes: load.bytes(),
        batches: batches as u64,
        seconds: report.number("seconds")?,
    };
    let mut run = meter.stop(&work)?;
    clients(&mut run, client_cpu, &work);
    for name in ["p50_ms", "p99_ms", "p999_ms"] {
        run.set(name, report.number(name)?);
    }
    Ok(run)
}

/// `millstream bench produce` with a plan's load into the topic `bench`.
pub(super) fn send(broker: &Broker, plan: &Plan, load: &Load) -> Result<(Report, f64)> {
    let batch = if plan.client_batches { 0 } else { load.batch };
    let [records, size, batch, in_flight] =
        [load.records, load.size as u64, batch, load.in_flight as u64]
            .map(|number| number.to_string());
    let [producers, partitions, keys] =
        [plan.producers.into(), plan.partitions.into(), plan.keys].map(|n: u64| n.to_string());
    let mut arguments = vec![
        "produce",
        "--topic",
        "bench",
        "--records",
        &records,
        "--size",
        &size,
        "--batch",
        &batch,
        "--in-flight",
        &in_flight,
        "--producers",
        &producers,
        "--partitions",
        &partitions,
        "--keys",
        &keys,
    ];
    if plan.own_partition {
        arguments.push("--own-partition");
    }
    broker.bench(&arguments)
}
