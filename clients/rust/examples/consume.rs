//! Read a topic from its start to its present end, checking that nothing is missing.
//!
//! ```sh
//! cargo run -p millstream-client --example consume -- numbers
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use millstream_client::{Client, Result, StartAt};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let topic = std::env::args().nth(1).unwrap_or_else(|| "numbers".into());
    let client = Client::from_context(None).await?;
    let mut consumer = client
        .consumer()
        .topic(topic)
        .from(StartAt::Start)
        .stop_at_end()
        .verify(true)
        .build()
        .await?;
    while let Some(record) = consumer.next().await {
        let record = record?;
        let value = record.value.unwrap_or_default();
        println!(
            "{}/{}: {}",
            record.partition,
            record.offset,
            String::from_utf8_lossy(&value)
        );
    }
    consumer.close().await;
    client.close().await;
    Ok(())
}
