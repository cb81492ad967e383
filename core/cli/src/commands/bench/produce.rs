//! `bench produce`: durable acknowledgements.

use std::collections::VecDeque;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use millstream_client::{Delivery, Producer};

use super::Bench;
use super::load::{Source, builder, share};
use super::report::{Latencies, Report, cpu_seconds};
use crate::connect::block_on;
use crate::exit::{Failure, Outcome};
use crate::output::grouped;
use crate::progress::Progress;

/// Records handed over at once when the client batches.
const SLICE_RECORDS: usize = 1_024;

/// What one producer saw.
struct Seen {
    began: Instant,
    ended: Instant,
    latencies: Latencies,
    acknowledged: u64,
}

/// Run all producers, each on a thread of its own.
pub(super) fn measure(bench: &Bench, show_progress: bool) -> Outcome<Report> {
    let load = &bench.load;
    let barrier = Arc::new(Barrier::new(load.producers as usize));
    let cpu_before = load.broker_pid.map(cpu_seconds).transpose()?;
    let workers: Vec<_> = (0..load.producers)
        .map(|number| {
            let (bench, barrier) = (bench.clone(), Arc::clone(&barrier));
            let progress = show_progress && number == 0;
            std::thread::spawn(move || block_on(produce(&bench, number, &barrier, progress)))
        })
        .collect();
    let mut all: Option<Seen> = None;
    for worker in workers {
        let seen = worker
            .join()
            .map_err(|_| Failure::failed("a producer's thread panicked"))??;
        all = Some(match all.take() {
            None => seen,
            Some(mut all) => {
                all.began = all.began.min(seen.began);
                all.ended = all.ended.max(seen.ended);
                all.latencies.merge(&seen.latencies);
                all.acknowledged += seen.acknowledged;
                all
            }
        });
    }
    let all = all.ok_or_else(|| Failure::usage("--producers is at least 1"))?;
    let cpu = match (load.broker_pid, cpu_before) {
        (Some(pid), Some(before)) => Some(cpu_seconds(pid)? - before),
        _ => None,
    };
    if all.acknowledged != load.records {
        return Err(Failure::failed(format!(
            "{} of {} records were acknowledged",
            all.acknowledged, load.records
        )));
    }
    Ok(Report {
        what: "produce",
        records: load.records,
        bytes: load.records * load.size as u64,
        elapsed: all.ended - all.began,
        latencies: vec![("ack", all.latencies)],
        broker_cpu_s: cpu,
        load: load.clone(),
        extra: Vec::new(),
    })
}

async fn produce(
    bench: &Bench,
    number: u32,
    barrier: &Barrier,
    show_progress: bool,
) -> Outcome<Seen> {
    let load = &bench.load;
    let made = async {
        let client = bench.client().await?;
        let producer = client
            .producer()
            .in_flight(load.in_flight)
            .batch_bytes(load.batch_bytes)
            .compression(load.compression.into())
            .build()
            .await?;
        Ok::<_, Failure>((client, producer))
    }
    .await;
    // All wait for all, also for one that failed.
    barrier.wait();
    let (client, producer) = made?;
    let records = share(load.records, number, load.producers);
    let mut progress = Progress::new(show_progress);
    let seen = if load.batch == 0 {
        client_batches(bench, &producer, number, records, &mut progress).await?
    } else {
        own_batches(bench, &producer, number, records, &mut progress).await?
    };
    drop(progress);
    producer.close().await?;
    client.close().await;
    Ok(seen)
}

/// Batches of so many records, at most so many unanswered.
async fn own_batches(
    bench: &Bench,
    producer: &Producer,
    number: u32,
    records: u64,
    progress: &mut Progress,
) -> Outcome<Seen> {
    let load = &bench.load;
    let topic = producer.topic(&bench.topic).await?;
    let partitions = topic.partitions();
    let (mut source, mut builder) = (Source::new(load, number), builder(load.compression));
    let mut latencies = Latencies::new();
    let mut under_way: VecDeque<(Instant, Delivery)> = VecDeque::with_capacity(load.in_flight);
    let (mut left, mut partition) = (records, number % partitions);
    let began = Instant::now();
    while left > 0 || !under_way.is_empty() {
        while left > 0 && under_way.len() < load.in_flight {
            let count = left.min(load.batch.into()) as u32;
            let batch = source.batch(&mut builder, count, None)?;
            let start = Instant::now();
            let delivery = topic.enqueue_batch(partition, &batch).await?;
            under_way.push_back((start, delivery));
            left -= u64::from(count);
            partition = load.next_partition(partition, partitions);
        }
        // Acknowledgements come in order.
        if let Some((start, delivery)) = under_way.pop_front() {
            delivery.await?;
            latencies.add(start.elapsed());
        }
        progress.show(|| {
            format!(
                "{} of {} records",
                grouped(records - left),
                grouped(records)
            )
        });
    }
    Ok(Seen {
        began,
        ended: Instant::now(),
        latencies,
        acknowledged: producer.report().acknowledged,
    })
}

/// Records as they come, batched by the client; one record of each slice is timed.
async fn client_batches(
    bench: &Bench,
    producer: &Producer,
    number: u32,
    records: u64,
    progress: &mut Progress,
) -> Outcome<Seen> {
    let topic = producer.topic(&bench.topic).await?;
    let source = Source::new(&bench.load, number);
    let (timed, mut to_time) = tokio::sync::mpsc::unbounded_channel::<(Instant, Delivery)>();
    let timing = tokio::spawn(async move {
        let mut latencies = Latencies::new();
        while let Some((start, delivery)) = to_time.recv().await {
            if delivery.await.is_ok() {
                latencies.add(start.elapsed());
            }
        }
        latencies
    });
    let mut slice = Vec::with_capacity(SLICE_RECORDS);
    let mut sent = 0;
    let began = Instant::now();
    while sent < records {
        let count = (records - sent).min(SLICE_RECORDS as u64) as usize;
        source.slice(sent, count, &mut slice);
        let start = Instant::now();
        let delivery = topic.enqueue(slice[0]).await?;
        let _ = timed.send((start, delivery));
        let mut rest = &slice[1..];
        while !rest.is_empty() {
            let enqueued = topic.try_enqueue_all(rest);
            if let Some(error) = enqueued.refused {
                return Err(error.into());
            }
            rest = &rest[enqueued.taken..];
            if !rest.is_empty() {
                producer.room().await?;
            }
        }
        sent += count as u64;
        progress.show(|| format!("{} of {} records", grouped(sent), grouped(records)));
        // The network runs on this thread too.
        tokio::task::yield_now().await;
    }
    producer.flush().await?;
    let ended = Instant::now();
    drop(timed);
    let latencies = timing
        .await
        .map_err(|_| Failure::failed("the timing task panicked"))?;
    let report = producer.report();
    if let Some(error) = report.first_error {
        return Err(error.into());
    }
    Ok(Seen {
        began,
        ended,
        latencies,
        acknowledged: report.acknowledged,
    })
}

/// A pace of so many events a second; `None`: no bound.
#[derive(Debug)]
pub(super) struct Pace {
    every: Option<Duration>,
    next: Instant,
}

impl Pace {
    pub(super) fn new(per_second: f64) -> Self {
        let every = (per_second > 0.0).then(|| Duration::from_secs_f64(1.0 / per_second));
        Self {
            every,
            next: Instant::now(),
        }
    }

    /// Wait until the next is due. Gives when it was due, so that a stall counts as latency.
    pub(super) async fn due(&mut self) -> Instant {
        let Some(every) = self.every else {
            return Instant::now();
        };
        let due = self.next;
        self.next += every;
        tokio::time::sleep_until(due.into()).await;
        due
    }
}
