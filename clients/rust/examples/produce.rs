//! Send numbered records and wait for each to be durable.
//!
//! ```sh
//! millstream dev &
//! millstream topic create numbers --partitions 4
//! cargo run -p millstream-client --example produce -- numbers 1000
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::time::Duration;

use millstream_client::{Client, Record, Result};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let topic = arguments.next().unwrap_or_else(|| "numbers".into());
    let count: u32 = arguments
        .next()
        .and_then(|count| count.parse().ok())
        .unwrap_or(1_000);

    let client = Client::from_context(None).await?;
    let producer = client
        .producer()
        .linger(Duration::from_millis(5))
        .build()
        .await?;
    let mut deliveries = Vec::new();
    for number in 0..count {
        let record = Record::new(number.to_string()).key(format!("key-{}", number % 16));
        // Waits only when the producer's memory is used up; the acknowledgement comes later.
        deliveries.push(producer.enqueue(&topic, record).await?);
    }
    let mut last = None;
    for delivery in deliveries {
        last = Some(delivery.await?);
    }
    if let Some(stored) = last {
        println!(
            "{count} records are durable; the last is {}/{} at {:?}",
            stored.topic, stored.partition, stored.offset
        );
    }
    producer.close().await?;
    client.close().await;
    Ok(())
}
