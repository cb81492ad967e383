//! A broker that was killed and started again says so to the clients of its former life: they go on at
//! once, not after the time in which a silent network would have been given up.

use std::error::Error as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use millstream_client::{Client, ConnectionError, Connections, Consumer, Context, Record};
use millstream_e2e::{Options, PATIENCE};

/// So long that nothing in this test ends by it.
const IDLE: Duration = Duration::from_secs(600);
const RECORDS: usize = 200;

#[test]
fn a_restarted_broker_resets_the_connections_it_no_longer_knows() -> Result<()> {
    millstream_e2e::binary(); // which may have to be built, in more time than the test has
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        tokio::time::timeout(PATIENCE, resets())
            .await
            .context("hung: no reset came")?
    })
}

async fn resets() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = options(&dir.path().join("data")).start()?;
    broker.ok("topic create t --partitions 2")?;
    let (port, context) = (broker.port(), broker.context());
    let client = || async {
        Client::builder(Context::load(&context)?)
            .idle_timeout(IDLE)
            .connect()
            .await
    };
    let (producing, consuming) = (client().await?, client().await?);
    let producer = producing.producer().build().await?;
    let mut consumer = consuming.consumer().topic("t").build().await?;
    for n in 0..RECORDS {
        let delivery = producer.enqueue("t", Record::new(n.to_string())).await?;
        drop(delivery);
    }
    receive(&mut consumer, RECORDS).await?;

    let data = broker.kill()?;
    // Under way while the broker is gone: the stream's packets are sent again and again until it is back.
    let mut waiting = Vec::new();
    for n in 0..RECORDS {
        waiting.push(producer.enqueue("t", Record::new(n.to_string())).await?);
    }
    let again = options(&data).listen(port);
    let _broker = tokio::task::spawn_blocking(move || again.start()).await??;
    for delivery in waiting {
        delivery.await?;
    }
    receive(&mut consumer, RECORDS).await?;

    for (who, connections) in [
        ("producer", producing.connections()),
        ("consumer", consuming.connections()),
    ] {
        let Connections { made, lost, .. } = &connections;
        ensure!(*made == 2, "{who}: {connections:?}");
        let cause = lost.as_ref().and_then(|error| error.source());
        let cause = cause.and_then(|cause| cause.downcast_ref::<ConnectionError>());
        ensure!(
            matches!(cause, Some(ConnectionError::Reset)),
            "{who}: lost by {cause:?}, not by a reset"
        );
    }
    Ok(())
}

/// Two threads, so that both endpoints and the steering to them take part.
fn options(data: &Path) -> Options {
    Options::on(data)
        .with("--shards 2")
        .setting("QUIC__IDLE_TIMEOUT_MS", &IDLE.as_millis().to_string())
        .setting("LOG__SEGMENT_BYTES", "16777216")
}

async fn receive(consumer: &mut Consumer, records: usize) -> Result<()> {
    for _ in 0..records {
        consumer.next().await.context("the consumer goes on")??;
    }
    Ok(())
}
