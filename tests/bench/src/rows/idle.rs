//! A broker that nobody uses: it should use nothing.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::produce::{Plan, load, send};
use crate::broker::Broker;
use crate::figures::Run;
use crate::load::Load;
use crate::meter::Watch;
use crate::process::Memory;
use crate::session::{Measured, Session};

/// The load's client says goodbye; without that its connection has timed out by then.
const GONE_MAX: Duration = Duration::from_secs(60);
/// "Idle" is said of a broker whose last client has been gone so long: what it does in this time (seal
/// its log, forget the connection) belongs to the load.
const UNUSED: Duration = Duration::from_secs(5);
/// The measured window.
const WATCHED: Duration = Duration::from_secs(10);

pub(super) fn cpu(session: &Session<'_>) -> Result<Measured> {
    let plan = Plan::new(load(session, 64_000, (64, 1024), 16, 1452));
    let plan = Plan {
        setup: plan.setup.clone().shards(4),
        partitions: 1_000,
        ..plan
    };
    let watched = WATCHED.mul_f64(session.settings.scale.clamp(0.2, 1.0));
    session.alone(
        json!({
            "plan": plan.describe(),
            "watched_seconds": watched.as_secs_f64(),
            "after": "a load that has ended",
        }),
        |pass| {
            let directory = session.directory()?;
            let broker = Broker::start(session.program, directory.path(), &plan.setup)?;
            broker.make_topic("bench", plan.partitions)?;
            send(&broker, &plan, &Load { ..plan.load })?;
            let process = broker.process();
            broker.wait_for("millstream_connections", GONE_MAX, process, |n| n == 0.0)?;
            process.outlives(UNUSED).context("the broker")?;
            let pid = broker.pid();
            let watch = Watch::start(pid, pass)?;
            process.outlives(watched).context("the broker")?;
            let mut run = Run::default();
            watch.stop(watched, &mut run)?;
            run.set(
                "rss_idle_mib",
                Memory::of(pid)?.resident as f64 / f64::from(1 << 20),
            );
            Ok(run)
        },
    )
}
