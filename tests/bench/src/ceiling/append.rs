//! The disk alone: one record in a group, written and synced, and the next.

use std::future::poll_fn;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use hdrhistogram::Histogram;

use super::frame;
use super::groups::Groups;
use crate::load::Load;
use crate::runtime;

/// Append the load's batches one after the other; latencies in microseconds.
pub(crate) fn append(load: &Load, directory: &Path) -> Result<Histogram<u64>> {
    let runtime = runtime::one_thread()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let mut groups = Groups::open(directory, load.bytes()).await?;
        let frame = frame::encode(&vec![7; load.batch_bytes()]);
        let mut latencies = Histogram::<u64>::new(3)?;
        for _ in 0..load.batches() {
            let began = Instant::now();
            groups.gathering().extend(&frame);
            groups.add_frames(1);
            groups.write();
            poll_fn(|cx| groups.poll_durable(cx)).await?;
            latencies.record(began.elapsed().as_micros() as u64)?;
        }
        Ok(latencies)
    })
}
