//! kill -9 in a loop under load over QUIC, several producers: every acknowledged record is there once,
//! in its producer's order.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use millstream_client::{Client, Context, Record};
use millstream_e2e::{Options, eventually};

const PRODUCERS: u64 = 4;
const ROUNDS: usize = 6;
const RECORDS_A_ROUND: u64 = 3_000;

/// What the producers know: numbers acknowledged, by producer.
type Acknowledged = Arc<[Mutex<BTreeSet<u64>>]>;

#[test]
fn no_acknowledged_record_is_lost_or_doubled_by_kill_9() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut broker = Options::on(dir.path().join("data"))
        .with("--shards 2")
        .setting("LOG__SEGMENT_BYTES", "16777216")
        .start()?;
    broker.ok("topic create t --partitions 3")?;
    let port = broker.port();
    let acknowledged: Acknowledged = (0..PRODUCERS).map(|_| Mutex::default()).collect();
    let (count, stop) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let producers: Vec<_> = (0..PRODUCERS)
        .map(|n| {
            let (context, acknowledged) = (broker.context(), Arc::clone(&acknowledged));
            let (count, stop) = (Arc::clone(&count), Arc::clone(&stop));
            std::thread::spawn(move || {
                runtime()?.block_on(produce(n, &context, &acknowledged, &count, &stop))
            })
        })
        .collect();

    for round in 0..ROUNDS {
        let goal = count.load(Ordering::Relaxed) + RECORDS_A_ROUND;
        eventually(
            &format!("{goal} records acknowledged in round {round}"),
            || Ok(count.load(Ordering::Relaxed) >= goal),
        )?;
        let data = broker.kill()?;
        broker = Options::on(data).listen(port).start()?;
    }
    stop.store(true, Ordering::Relaxed);
    for producer in producers {
        producer.join().expect("a producer does not panic")?;
    }

    let total: u64 = (0..3)
        .map(|p| end_offset(&broker, p))
        .sum::<Result<u64>>()?;
    let out = broker.ok(&format!("sub t --from start --count {total} -f %k|%v\\n"))?;
    let mut stored: Vec<Vec<u64>> = vec![Vec::new(); PRODUCERS as usize];
    for line in out.lines() {
        let (producer, number) = line.split_once('|').context("key|value")?;
        stored[producer.parse::<usize>()?].push(number.parse()?);
    }
    for (n, stored) in stored.iter().enumerate() {
        for pair in stored.windows(2) {
            ensure!(
                pair[0] < pair[1],
                "producer {n}: {} comes after {}: doubled or out of order",
                pair[1],
                pair[0]
            );
        }
        let stored: BTreeSet<u64> = stored.iter().copied().collect();
        let acknowledged = acknowledged[n].lock().expect("nobody panics with it");
        let lost: Vec<_> = acknowledged.difference(&stored).take(10).collect();
        ensure!(
            lost.is_empty(),
            "producer {n}: acknowledged but lost: {lost:?}"
        );
        ensure!(
            !acknowledged.is_empty(),
            "producer {n} was never acknowledged"
        );
    }
    Ok(())
}

/// One producer: numbers in order under its own key, until told to stop.
async fn produce(
    n: u64,
    context: &std::path::Path,
    acknowledged: &Acknowledged,
    count: &Arc<AtomicU64>,
    stop: &AtomicBool,
) -> Result<()> {
    let client = Client::connect(Context::load(context)?).await?;
    let producer = client
        .producer()
        .delivery_timeout(Duration::from_secs(50))
        .build()
        .await?;
    let mut number = 0;
    let mut waiting = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        // A round of sends in flight together, then their outcomes.
        for _ in 0..100 {
            let record = Record::new(number.to_string()).key(n.to_string());
            waiting.push((number, producer.enqueue("t", record).await?));
            number += 1;
        }
        for (number, delivery) in waiting.drain(..) {
            delivery
                .await
                .with_context(|| format!("producer {n}, record {number}"))?;
            acknowledged[n as usize]
                .lock()
                .expect("nobody panics with it")
                .insert(number);
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
    producer.close().await?;
    Ok(())
}

fn end_offset(broker: &millstream_e2e::Broker, partition: usize) -> Result<u64> {
    let topic = broker.json("topic describe t")?;
    topic["partitions"][partition]["end_offset"]
        .as_u64()
        .context("an end offset")
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}
