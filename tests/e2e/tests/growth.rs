//! A topic that gains partitions while it is produced to.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use millstream_client::{Client, Context, RecordRef, partition_of_key};
use millstream_e2e::{Options, json_lines};

const KEYS: usize = 20;

/// A running producer learns of added partitions with an acknowledgement. What it sent of a key before is
/// durable before it sends any of that key to its new partition.
#[test]
fn a_running_producer_uses_added_partitions_and_keeps_keys_in_order() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data"))
        .with("--shards 2")
        .start()?;
    broker.ok("topic create t --partitions 2")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let sent: u64 = runtime.block_on(async {
        let client = Client::connect(Context::load(broker.context())?).await?;
        let producer = client.producer().build().await?;
        let topic = producer.topic("t").await?;
        let mut number = 0u64;
        let mut rounds_after = 0;
        let begun = std::time::Instant::now();
        // Never idle: each round is taken while those before are under way.
        while rounds_after < 50 {
            if number == 50 * KEYS as u64 {
                client.admin().add_partitions("t", 7).await?;
            }
            for key in 0..KEYS {
                let (key, value) = (format!("k{key}"), number.to_string());
                let record = RecordRef {
                    key: Some(key.as_bytes()),
                    ..RecordRef::new(value.as_bytes())
                };
                drop(topic.enqueue(record).await?);
                number += 1;
            }
            tokio::task::yield_now().await;
            rounds_after += u32::from(topic.partitions() == 7);
            ensure!(
                begun.elapsed() < millstream_e2e::PATIENCE,
                "the producer is not told of the partitions"
            );
        }
        producer.close().await?;
        client.close().await;
        anyhow::Ok(number)
    })?;

    let out = json_lines(&broker.ok("sub t --from start --exit-at-end -o json")?)?;
    assert_eq!(out.len() as u64, sent);
    let mut of_key: BTreeMap<String, Vec<(u64, u64)>> = BTreeMap::new();
    for record in &out {
        let number = record["value"].as_str().unwrap_or_default().parse()?;
        let key = record["key"].as_str().unwrap_or_default().to_owned();
        let partition = record["partition"].as_u64().unwrap_or(u64::MAX);
        of_key.entry(key).or_default().push((number, partition));
    }
    for (key, mut records) in of_key {
        records.sort_unstable();
        let (old, new) = (
            u64::from(partition_of_key(key.as_bytes(), 2)),
            u64::from(partition_of_key(key.as_bytes(), 7)),
        );
        let moved = records.iter().position(|(_, partition)| *partition != old);
        let moved = moved.unwrap_or(records.len());
        assert!(
            records[moved..].iter().all(|(_, at)| *at == new),
            "{key}: back and forth: {records:?}"
        );
        // The first round after may have begun before.
        assert!(
            old == new || records.len() - moved >= 49,
            "{key} stays in its old partition"
        );
    }
    Ok(())
}
