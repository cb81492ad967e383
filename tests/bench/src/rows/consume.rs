//! The rows that consume: what the product serves from memory and from disk, beside a bare sender.

use anyhow::{Result, ensure};

use super::produce::{Plan, load, send};
use crate::broker::{Broker, Setup};
use crate::ceiling;
use crate::figures::Run;
use crate::meter::{Meter, Pass, Work, clients};
use crate::session::{Measured, Session};

/// Room for the whole load in the hot tail, so that nothing of it comes from disk.
const HOT: &str = "[memory]\nhot_tail_bytes = 2_147_483_648\n";

/// Where the records are when they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    InMemory,
    OnDisk,
}

pub(super) fn tail(session: &Session<'_>) -> Result<Measured> {
    consume(session, Kept::InMemory)
}

pub(super) fn cold(session: &Session<'_>) -> Result<Measured> {
    consume(session, Kept::OnDisk)
}

fn consume(session: &Session<'_>, kept: Kept) -> Result<Measured> {
    // 1 GB: below the room of the hot tail, and long enough to leave slow start behind.
    let plan = Plan::new(load(session, 1_000_000, (64, 1024), 16, 1452));
    let setup = match kept {
        Kept::InMemory => plan.setup.clone().with(HOT),
        Kept::OnDisk => plan.setup.clone(),
    };
    let plan = Plan { setup, ..plan };
    session.pairs(
        plan.describe(),
        |pass| ceiling::consume(&plan.load, pass),
        |pass| product(session, &plan, kept, pass),
    )
}

/// Fill a broker's topic, then read it from its start to its end.
fn product(session: &Session<'_>, plan: &Plan, kept: Kept, pass: &Pass) -> Result<Run> {
    let directory = session.directory()?;
    let load = plan.load;
    let load = load.with_records(pass.of(load.records, load.batch * 100));
    let setup: &Setup = &plan.setup;
    let mut broker = Broker::start(session.program, directory.path(), setup)?;
    broker.make_topic("bench", plan.partitions)?;
    let filling = crate::load::Load {
        in_flight: 64,
        ..load
    };
    send(&broker, plan, &filling)?;
    if kept == Kept::OnDisk {
        broker.stop()?;
        broker = Broker::start(session.program, directory.path(), setup)?;
    }
    let meter = Meter::start(&[broker.pid()], pass)?;
    let (report, client_cpu) = broker.bench(&["consume", "--no-fill", "--topic", "bench"])?;
    let work = Work {
        records: report.number("records")? as u64,
        bytes: report.number("bytes")? as u64,
        batches: load.batches(),
        seconds: report.number("seconds")?,
    };
    ensure!(
        work.records == load.records,
        "{} of {} records came back",
        work.records,
        load.records
    );
    let cold = broker.metric("millstream_shard_fetches_cold_total")?;
    ensure!(
        (kept == Kept::OnDisk) == (cold > 0.0),
        "the records are {kept:?}, and {cold} fetches went to the disk"
    );
    let mut run = meter.stop(&work)?;
    clients(&mut run, client_cpu, &work);
    run.set("first_record_ms", report.number("first_record_ms")?);
    Ok(run)
}
