//! `flush = interval`: the machine loses power, records that were acknowledged and read are gone, and
//! others take their offsets. Readers are told.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use millstream_client::{Client, Consumer, Context, OnTruncation, Record, StartAt, TopicPartition};
use millstream_e2e::{Broker, Options};

const BLOCK: usize = 4096;
/// How long a broker may take to be back, and a client to notice.
const PATIENCE: Duration = Duration::from_secs(60);

fn start(data: PathBuf, port: Option<u16>) -> Result<Broker> {
    let options = Options::on(data)
        .with("--shards 1")
        .setting("LOG__FLUSH", "interval");
    match port {
        Some(port) => options.listen(port).start(),
        None => options.start(),
    }
}

#[test]
fn a_reader_past_a_cut_is_told_and_goes_on_from_the_safe_offset() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = start(dir.path().join("data"), None)?;
    broker.ok("topic create t --partitions 1")?;
    let port = broker.port();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let client = runtime.block_on(Client::connect(Context::load(broker.context())?))?;
    let (mut told, mut resuming) = runtime.block_on(async {
        send(&client, "old", 10).await?;
        let mut told = client.consumer().topic("t").build().await?;
        let resume = OnTruncation::Resume;
        let mut resuming = client
            .consumer()
            .topic("t")
            .on_truncation(resume)
            .build()
            .await?;
        for consumer in [&mut told, &mut resuming] {
            for offset in 0..10 {
                ensure!(next(consumer).await? == (offset, format!("old-{offset}")));
            }
        }
        anyhow::Ok((told, resuming))
    })?;

    // Killing takes nothing that was written; power loss does, of what was written last.
    let data = broker.kill()?;
    zero_last_blocks(&data.join("shard-0"), 3)?;
    let broker = start(data, Some(port))?;

    runtime.block_on(async {
        let client = Client::connect(Context::load(broker.context())?).await?;
        send(&client, "new", 5).await?;
        let refusal = tokio::time::timeout(PATIENCE, told.next()).await?;
        let error = refusal
            .context("the consumer goes on")?
            .err()
            .context("not told")?;
        ensure!(error.name() == "OFFSET_TRUNCATED", "{error}");
        ensure!(error.safe_offset() == Some(7), "{error:?}");
        let partition = TopicPartition::new("t", 0);
        let committed = told.seek(&partition, StartAt::Offset(7)).await?;
        ensure!(committed == 7);
        for consumer in [&mut told, &mut resuming] {
            for number in 0..5 {
                ensure!(next(consumer).await? == (7 + number, format!("new-{number}")));
            }
        }
        anyhow::Ok(())
    })
}

/// One batch, and so one group of the log, each.
async fn send(client: &Client, what: &str, count: u64) -> Result<()> {
    let producer = client.producer().build().await?;
    for number in 0..count {
        let record = Record::new(format!("{what}-{number}"));
        producer.enqueue("t", record).await?.await?;
    }
    producer.close().await?;
    Ok(())
}

async fn next(consumer: &mut Consumer) -> Result<(u64, String)> {
    let record = tokio::time::timeout(PATIENCE, consumer.next()).await?;
    let record = record.context("the consumer goes on")??;
    let value = record.value.context("a value")?;
    Ok((record.offset, String::from_utf8(value.to_vec())?))
}

/// As if the last blocks that hold anything had never been written.
fn zero_last_blocks(shard: &Path, blocks: usize) -> Result<()> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(shard)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if name.is_some_and(|name| name.starts_with("wal-")) {
            files.push(path);
        }
    }
    files.sort();
    for path in files.iter().rev() {
        let bytes = std::fs::read(path)?;
        let used = bytes
            .chunks(BLOCK)
            .rposition(|block| block.iter().any(|byte| *byte != 0));
        let Some(last) = used else { continue };
        let file = std::fs::OpenOptions::new().write(true).open(path)?;
        let first = (last + 1).checked_sub(blocks).context("too few blocks")?;
        file.write_all_at(&vec![0; blocks * BLOCK], (first * BLOCK) as u64)?;
        return Ok(());
    }
    anyhow::bail!("the log is empty")
}
