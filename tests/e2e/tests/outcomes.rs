//! What a producer hears of each record, through the Rust client.

use anyhow::{Context as _, Result};
use millstream_client::{Client, Context, Record};
use millstream_e2e::{Options, PATIENCE, bundled};

/// With a filter at produce, each record has its own outcome: the offset where a consumer finds it, or
/// that it was dropped.
#[test]
fn a_filtered_batch_tells_each_record_where_it_is() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    broker.ok("topic create logs --partitions 1")?;
    let component = bundled("json-filter");
    let component = component.display();
    broker.ok(&format!("plugin deploy {component} --topic logs --stage produce --name errors --param expr=level=='error'"))?;
    let level = |n: usize| if n % 3 == 1 { "error" } else { "info" };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let stored = runtime.block_on(async {
        let client = Client::connect(Context::load(broker.context())?).await?;
        let producer = client.producer().build().await?;
        let topic = producer.topic("logs").await?;
        // Nothing yields here, so that these are one batch; then one of which nothing is kept.
        let mut waiting = Vec::new();
        for n in 0..100 {
            let value = format!("{{\"level\":\"{}\",\"n\":{n}}}", level(n));
            let delivery = topic.enqueue((&Record::new(value)).into()).await?;
            waiting.push(delivery);
        }
        let mut stored = Vec::new();
        for (n, delivery) in waiting.into_iter().enumerate() {
            let outcome = tokio::time::timeout(PATIENCE, delivery)
                .await
                .context("hung")??;
            assert_eq!(outcome.filtered, level(n) == "info", "{n}");
            assert_eq!(outcome.offset.is_none(), outcome.filtered, "{n}");
            stored.extend(outcome.offset.map(|offset| (offset, n)));
        }
        let dropped = Record::new("{\"level\":\"info\",\"n\":100}");
        let outcome = producer.send("logs", dropped).await?;
        assert!(outcome.filtered && outcome.offset.is_none());
        let report = producer.report();
        assert_eq!((report.acknowledged, report.filtered), (101, 68));
        assert!(report.batches < 101, "records shared batches");
        Ok::<_, anyhow::Error>(stored)
    })?;
    let read = broker.ok("sub logs --from start --exit-at-end -f %o:%v\\n")?;
    let expected: String = stored
        .iter()
        .map(|(offset, n)| format!("{offset}:{{\"level\":\"error\",\"n\":{n}}}\n"))
        .collect();
    assert_eq!(read, expected);
    Ok(())
}
