//! The ceiling of durable produce: a bare quinn receiver that checks each batch's CRC-32C, writes
//! batches in groups with one write linked to one `fdatasync` in flight, and acknowledges what is
//! durable. One thread, one stream. Receiver and sender are two processes, as in the product's row.
//!
//! Deliberately absent: everything that makes a broker (topics, offsets, index, readers, plugins).

mod frame;
mod groups;
mod quic;
mod receiver;
mod sender;

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use crate::Load;
use crate::process::{Child, cpu_seconds};
use crate::report::Run;

pub(crate) use receiver::serve;

/// Start a receiver on `data`, send it the load, and stop it.
pub(crate) fn measure(load: &Load, data: &Path) -> Result<Run> {
    let program = std::env::current_exe()?;
    let mut command = Command::new(program);
    command.arg("ceiling-serve").arg("--data").arg(data);
    for (flag, value) in [
        ("--records", load.records.to_string()),
        ("--size", load.size.to_string()),
        ("--batch", load.batch.to_string()),
        ("--in-flight", load.in_flight.to_string()),
        ("--mtu", load.mtu.to_string()),
    ] {
        command.arg(flag).arg(value);
    }
    let mut receiver = Child::spawn(command.stdout(Stdio::piped()))?;
    let hello = receiver
        .first_line()
        .context("the receiver did not start")?;
    let hello: quic::Hello = serde_json::from_str(&hello)?;
    let before = cpu_seconds(receiver.id())?;
    let sent = sender::run(load, &hello)?;
    let cpu = cpu_seconds(receiver.id())? - before;
    Ok(Run::new(load, sent.seconds, &sent.latencies, cpu))
}
