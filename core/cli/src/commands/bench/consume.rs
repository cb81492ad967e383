//! `bench consume`: records out.

use std::sync::{Arc, Barrier};
use std::time::Instant;

use millstream_client::{ConsumerEvent, StartAt};

use super::load::share;
use super::report::{Report, cpu_seconds};
use super::{Bench, produce};
use crate::connect::block_on;
use crate::exit::{Failure, Outcome};

/// What one consumer saw.
struct Seen {
    began: Instant,
    first: Option<Instant>,
    ended: Instant,
    records: u64,
    bytes: u64,
}

pub(super) fn measure(
    bench: &Bench,
    consumers: u32,
    partitions: u32,
    no_fill: bool,
) -> Outcome<Report> {
    let load = &bench.load;
    if !no_fill {
        produce::measure(bench, true)?;
    }
    let barrier = Arc::new(Barrier::new(consumers as usize));
    let cpu_before = load.broker_pid.map(cpu_seconds).transpose()?;
    let workers: Vec<_> = (0..consumers)
        .map(|number| {
            let (bench, barrier) = (bench.clone(), Arc::clone(&barrier));
            std::thread::spawn(move || {
                block_on(consume(&bench, number, consumers, partitions, &barrier))
            })
        })
        .collect();
    let mut seen = Vec::new();
    for worker in workers {
        seen.push(
            worker
                .join()
                .map_err(|_| Failure::failed("a consumer's thread panicked"))??,
        );
    }
    let cpu = match (load.broker_pid, cpu_before) {
        (Some(pid), Some(before)) => Some(cpu_seconds(pid)? - before),
        _ => None,
    };
    let began = seen
        .iter()
        .map(|seen| seen.began)
        .min()
        .unwrap_or_else(Instant::now);
    let ended = seen.iter().map(|seen| seen.ended).max().unwrap_or(began);
    let first = seen
        .iter()
        .filter_map(|seen| seen.first)
        .min()
        .unwrap_or(ended);
    let records: u64 = seen.iter().map(|seen| seen.records).sum();
    if !no_fill && load.topic.is_none() && records != load.records {
        return Err(Failure::failed(format!(
            "{records} of {} records came back",
            load.records
        )));
    }
    Ok(Report {
        what: "consume",
        records,
        bytes: seen.iter().map(|seen| seen.bytes).sum(),
        elapsed: ended - began,
        latencies: Vec::new(),
        broker_cpu_s: cpu,
        load: load.clone(),
        extra: vec![
            ("consumers", consumers.into()),
            (
                "first_record_ms",
                ((first - began).as_secs_f64() * 1e3).into(),
            ),
        ],
    })
}

async fn consume(
    bench: &Bench,
    number: u32,
    consumers: u32,
    partitions: u32,
    barrier: &Barrier,
) -> Outcome<Seen> {
    let made = bench.client().await;
    barrier.wait();
    let client = made?;
    let began = Instant::now();
    let mut builder = client
        .consumer()
        .from(StartAt::Start)
        .stop_at_end()
        .verify(true);
    let before: u64 = (0..number)
        .map(|other| share(partitions.into(), other, consumers))
        .sum();
    for partition in before..before + share(partitions.into(), number, consumers) {
        builder = builder.partition(bench.topic.as_str(), partition as u32);
    }
    let mut consumer = builder.build().await?;
    let mut seen = Seen {
        began,
        first: None,
        ended: began,
        records: 0,
        bytes: 0,
    };
    while let Some(event) = consumer.next_event().await {
        if let ConsumerEvent::Batch(batch) = event? {
            seen.first.get_or_insert_with(Instant::now);
            // Read as an application does: every record, without copying.
            for record in batch.open()?.iter() {
                let record = record?;
                seen.records += 1;
                seen.bytes += record.value.map_or(0, <[u8]>::len) as u64;
            }
            seen.ended = Instant::now();
        }
    }
    consumer.close().await;
    client.close().await;
    Ok(seen)
}
