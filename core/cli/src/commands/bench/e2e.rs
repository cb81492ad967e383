//! `bench e2e`: from handing a record over until a consumer has it, through the disk.

use std::collections::VecDeque;
use std::time::Instant;

use millstream_client::{ConsumerEvent, Delivery, StartAt};
use tokio::sync::oneshot;

use super::Bench;
use super::load::{Source, builder, share};
use super::produce::Pace;
use super::report::{Latencies, Report, cpu_seconds};
use crate::connect::block_on;
use crate::exit::{Failure, Outcome};

/// Room for the time stamp in a value.
const STAMP_BYTES: usize = 8;

pub(super) fn measure(bench: &Bench, rate: u64) -> Outcome<Report> {
    let load = &bench.load;
    if load.size < STAMP_BYTES {
        return Err(Failure::usage(format!(
            "--size is at least {STAMP_BYTES} here: a record carries its time"
        )));
    }
    let origin = Instant::now();
    let (ready, is_ready) = oneshot::channel();
    let consumer = {
        let bench = bench.clone();
        std::thread::spawn(move || block_on(consume(&bench, origin, ready)))
    };
    if is_ready.blocking_recv().is_err() {
        return Err(match consumer.join() {
            Ok(Err(failure)) => failure,
            _ => Failure::failed("the consumer ended early"),
        });
    }
    let cpu_before = load.broker_pid.map(cpu_seconds).transpose()?;
    let began = Instant::now();
    let producers: Vec<_> = (0..load.producers)
        .map(|number| {
            let bench = bench.clone();
            std::thread::spawn(move || block_on(produce(&bench, number, rate, origin)))
        })
        .collect();
    let mut acks = Latencies::new();
    for producer in producers {
        acks.merge(
            &producer
                .join()
                .map_err(|_| Failure::failed("a producer's thread panicked"))??,
        );
    }
    let (latencies, ended) = consumer
        .join()
        .map_err(|_| Failure::failed("the consumer's thread panicked"))??;
    let cpu = match (load.broker_pid, cpu_before) {
        (Some(pid), Some(before)) => Some(cpu_seconds(pid)? - before),
        _ => None,
    };
    Ok(Report {
        what: "e2e",
        records: load.records,
        bytes: load.records * load.size as u64,
        elapsed: ended - began,
        latencies: vec![("ack", acks), ("e2e", latencies)],
        broker_cpu_s: cpu,
        load: load.clone(),
        extra: Vec::new(),
    })
}

async fn produce(bench: &Bench, number: u32, rate: u64, origin: Instant) -> Outcome<Latencies> {
    let load = &bench.load;
    let client = bench.client().await?;
    let producer = client
        .producer()
        .in_flight(load.in_flight)
        .compression(load.compression.into())
        .build()
        .await?;
    let topic = producer.topic(&bench.topic).await?;
    let partitions = topic.partitions();
    let (mut source, mut builder) = (Source::new(load, number), builder(load.compression));
    let size = load.batch.max(1);
    let mut pace = Pace::new(rate as f64 / f64::from(load.producers) / f64::from(size));
    let mut latencies = Latencies::new();
    let mut under_way: VecDeque<(Instant, Delivery)> = VecDeque::new();
    let mut left = share(load.records, number, load.producers);
    let mut partition = number % partitions;
    while left > 0 || !under_way.is_empty() {
        if left == 0 || under_way.len() == load.in_flight {
            if let Some((start, delivery)) = under_way.pop_front() {
                delivery.await?;
                latencies.add(start.elapsed());
            }
            continue;
        }
        let start = pace.due().await;
        while let Some((start, outcome)) = under_way
            .front()
            .and_then(|(start, d)| Some((*start, d.outcome()?)))
        {
            outcome?;
            latencies.add(start.elapsed());
            under_way.pop_front();
        }
        let count = left.min(size.into()) as u32;
        let stamp = u64::try_from((start - origin).as_nanos()).unwrap_or(u64::MAX);
        let batch = source.batch(&mut builder, count, Some(stamp))?;
        under_way.push_back((start, topic.enqueue_batch(partition, &batch).await?));
        left -= u64::from(count);
        partition = load.next_partition(partition, partitions);
    }
    producer.close().await?;
    client.close().await;
    Ok(latencies)
}

async fn consume(
    bench: &Bench,
    origin: Instant,
    ready: oneshot::Sender<()>,
) -> Outcome<(Latencies, Instant)> {
    let client = bench.client().await?;
    let mut consumer = client
        .consumer()
        .topic(&bench.topic)
        .from(StartAt::End)
        .build()
        .await?;
    // Only what is assigned from its end now is sure to see every record.
    let mut ready = Some(ready);
    let mut latencies = Latencies::new();
    let mut records = 0;
    while records < bench.load.records {
        match consumer.next_event().await {
            None => return Err(Failure::failed("the subscription ended early")),
            Some(Ok(ConsumerEvent::Batch(batch))) => {
                let opened = batch.open()?;
                for record in opened.iter() {
                    let record = record?;
                    let stamp = record
                        .value
                        .and_then(|value| value.first_chunk::<STAMP_BYTES>());
                    let sent = stamp.map_or(0, |stamp| u64::from_le_bytes(*stamp));
                    let now = u64::try_from(origin.elapsed().as_nanos()).unwrap_or(u64::MAX);
                    latencies.add(std::time::Duration::from_nanos(now.saturating_sub(sent)));
                    records += 1;
                }
            }
            Some(Ok(_)) => {
                if consumer.assignment().len() == bench.load.partitions as usize
                    && let Some(ready) = ready.take()
                {
                    let _ = ready.send(());
                }
            }
            Some(Err(error)) => return Err(error.into()),
        }
    }
    let ended = Instant::now();
    consumer.close().await;
    client.close().await;
    Ok((latencies, ended))
}
