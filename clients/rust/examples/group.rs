//! Share a topic with other members of a group; run it several times at once.
//!
//! ```sh
//! cargo run -p millstream-client --example group -- numbers readers
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use millstream_client::{Client, ConsumerEvent, Result};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let topic = arguments.next().unwrap_or_else(|| "numbers".into());
    let group = arguments.next().unwrap_or_else(|| "readers".into());

    let client = Client::from_context(None).await?;
    let mut consumer = client
        .consumer()
        .group(group)
        .topic(topic)
        .auto_commit(None)
        .build()
        .await?;
    while let Some(event) = consumer.next_event().await {
        match event? {
            ConsumerEvent::Batch(batch) => {
                println!(
                    "{}: {} records from {}",
                    batch.partition(),
                    batch.record_count(),
                    batch.first_offset
                );
                // Durable before the next batch is asked for: after a crash, at most this one repeats.
                consumer.commit().await?;
            }
            ConsumerEvent::Assigned(partitions) => println!("assigned {partitions:?}"),
            ConsumerEvent::Revoking(partitions) => println!("letting go of {partitions:?}"),
            ConsumerEvent::Lost(partitions) => println!("lost {partitions:?}"),
            ConsumerEvent::CaughtUp {
                partition, offset, ..
            }
            | ConsumerEvent::Passed { partition, offset } => {
                println!("{partition} is read up to {offset}");
                // What a filter dropped is read too, and not to be read again.
                consumer.commit().await?;
            }
            ConsumerEvent::RecordsLost {
                partition,
                from,
                to,
            } => println!("{partition}: {from} to {to} were removed before they were read"),
            ConsumerEvent::Failed { partition, error } => println!("{partition} failed: {error}"),
        }
    }
    Ok(())
}
