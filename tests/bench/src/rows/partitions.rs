//! Ten thousand partitions: the same load over all of them beside one, and the memory of an idle one.

use anyhow::Result;
use serde_json::json;

use super::produce::{Plan, load, on, product};
use crate::broker::Broker;
use crate::figures::Run;
use crate::meter::Pass;
use crate::process::Memory;
use crate::session::{Measured, Session};

/// As many as one topic may have.
const PARTITIONS: u32 = 10_000;

pub(super) fn many(session: &Session<'_>) -> Result<Measured> {
    let one = Plan::new(load(session, 2_000_000, (64, 1024), 16, 1452));
    let many = Plan {
        partitions: PARTITIONS,
        ..one.clone()
    };
    session.pairs(
        json!({ "ceiling": one.describe(), "product": many.describe() }),
        |pass| product(session, &one, pass),
        |pass| over_all(session, &many, pass),
    )
}

fn over_all(session: &Session<'_>, plan: &Plan, pass: &Pass) -> Result<Run> {
    let directory = session.directory()?;
    let broker = Broker::start(session.program, directory.path(), &plan.setup)?;
    // A first topic brings into memory what any topic needs.
    broker.make_topic("other", 1)?;
    let before = Memory::of(broker.pid())?.anonymous;
    broker.make_topic("bench", plan.partitions)?;
    let after = Memory::of(broker.pid())?.anonymous;
    let mut run = on(&broker, plan, pass)?;
    let grown = after.saturating_sub(before) as f64;
    run.set(
        "kib_per_partition",
        grown / f64::from(1 << 10) / f64::from(plan.partitions),
    );
    Ok(run)
}
