//! A filter of the view world: what it adds to a record, and what is left of the rate.
//!
//! The broker's own account of the time in the filter covers everything that a filter brings with it:
//! index, copies into the sandbox, verdict, and making a new batch when something was dropped. Beside it
//! stands the filter's rule as native code on the same bytes, index included.

use anyhow::{Result, ensure};
use serde_json::json;

use super::produce::{Plan, load, on};
use crate::broker::Broker;
use crate::ceiling::native;
use crate::figures::Run;
use crate::meter::Pass;
use crate::session::{Measured, Session};

/// Of the keys that are kept.
const PREFIX: &str = "key-";
/// Keys of the load; all begin with [`PREFIX`], so all records are kept.
const KEYS: u64 = 1_000;
/// Batches that native code judges.
const CALLS: u64 = 2_000;

pub(super) fn view_world(session: &Session<'_>) -> Result<Measured> {
    // The rate: the load of the row `produce`, with keys.
    let main = Plan {
        keys: KEYS,
        ..Plan::new(load(session, 2_000_000, (64, 1024), 16, 1452))
    };
    // The time of a record: small ones, so that it shows; 64 KiB of them, so that the broker's clock of
    // whole microseconds a batch is fine enough.
    let small = Plan {
        keys: KEYS,
        ..Plan::new(load(session, 6_400_000, (640, 100), 16, 1452))
    };
    let batch = native::batch(small.load.batch, small.load.size)?;
    let mut measured = session.pairs(
        json!({ "rate": main.describe(), "time": small.describe() }),
        |pass| {
            let mut run = produce(session, &main, false, pass)?;
            let cpu = produce(session, &small, false, pass)?.get("cpu_s_per_million");
            run.set("small_cpu_ns", cpu.unwrap_or(f64::NAN) * 1e3);
            let calls = pass.of(CALLS, 100);
            run.set(
                "filter_ns",
                native::nanoseconds(&batch, calls, PREFIX.as_bytes())?,
            );
            Ok(run)
        },
        |pass| {
            let mut run = produce(session, &main, true, pass)?;
            let with = produce(session, &small, true, pass)?;
            run.set(
                "small_cpu_ns",
                with.get("cpu_s_per_million").unwrap_or(f64::NAN) * 1e3,
            );
            run.set("filter_ns", with.get("filter_ns").unwrap_or(f64::NAN));
            Ok(run)
        },
    )?;
    for pair in &mut measured.pairs {
        let cpu = |run: &Run| run.get("small_cpu_ns").unwrap_or(f64::NAN);
        let added = cpu(&pair.product) - pair.ceiling.as_ref().map_or(f64::NAN, cpu);
        pair.product.set("filter_cpu_ns", added);
    }
    Ok(measured)
}

fn produce(session: &Session<'_>, plan: &Plan, filtered: bool, pass: &Pass) -> Result<Run> {
    let directory = session.directory()?;
    let broker = Broker::start(session.program, directory.path(), &plan.setup)?;
    broker.make_topic("bench", plan.partitions)?;
    if filtered {
        broker.run(&[
            "plugin",
            "deploy",
            "key-filter",
            "--topic",
            "bench",
            "--stage",
            "produce",
            "--param",
            &format!("prefix={PREFIX}"),
        ])?;
    }
    let mut run = on(&broker, plan, pass)?;
    if filtered {
        let [seconds, records, kept, errors] = ["seconds", "records", "kept", "errors"]
            .map(|what| broker.metric(&format!("millstream_filter_{what}_total")));
        let (seconds, records, kept) = (seconds?, records?, kept?);
        ensure!(
            records > 0.0 && kept == records && errors? == 0.0,
            "of {records} filtered records {kept} were kept"
        );
        run.set("filter_ns", seconds / records * 1e9);
    }
    Ok(run)
}
