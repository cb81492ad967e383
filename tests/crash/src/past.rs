//! A shard's log as a broker with another wall clock would have left it.
//!
//! The shipped core on the shipped storage, under a wall clock that the caller names; no process's clock is
//! touched. Absent: filters and clients, which no log needs.

use std::future::poll_fn;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use millstream_batch::ids::{Partition, ProducerId, Sequence, ShardId, TimestampMs, TopicId};
use millstream_batch::{BatchBuilder, Encoding};
use millstream_log::io::Storage;
use millstream_machine::request::{Produce, Reply, Request};
use millstream_machine::topics::TopicConfig;
use millstream_shard::call::{Answer, Call};
use millstream_shard::core::{CoreConfig, Effect, Now, ShardCore};
use millstream_uring::{OPEN_FILES_MAX, Preference};

/// A topic of one partition, written while the wall clock said something else.
#[derive(Clone, Copy, Debug)]
pub struct Topic {
    pub name: &'static str,
    pub retention_ms: i64,
    pub records: u64,
}

/// Write these topics into the only shard of `data`, beginning when the wall clock says `wall_ms`.
pub fn write(data: &Path, wall_ms: i64, topics: &[Topic]) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut past = Past::open(&data.join("shard-0"), wall_ms).await?;
        for (topic, at) in topics.iter().zip(1..) {
            past.make(TopicId([at; 16]), *topic).await?;
        }
        past.call(Call::Stop).await.map(drop)
    })
}

struct Past {
    core: ShardCore,
    storage: Box<dyn Storage>,
    wall_ms: i64,
    began: Instant,
    token: u64,
}

impl Past {
    async fn open(shard: &Path, wall_ms: i64) -> Result<Self> {
        const SEGMENT_BYTES: u64 = 8 << 20;
        let log = millstream_log::Config {
            segment_bytes: SEGMENT_BYTES,
            first_segment_bytes: SEGMENT_BYTES,
            group_bytes_max: 1 << 20,
            hot_tail_bytes_max: 8 << 20,
            read_bytes_max: 36 << 20,
            spares_ready: 1,
            recycle_max: 1,
            sync_each_group: true,
            incarnation: 42,
        };
        let began = Instant::now();
        let wall = TimestampMs(wall_ms);
        let core = ShardCore::open(
            CoreConfig::new(ShardId(0), 1, log),
            Now { wall, mono_us: 0 },
        );
        let mut past = Self {
            core,
            storage: millstream_uring::open(shard, Preference::Portable, 0, OPEN_FILES_MAX)?,
            wall_ms,
            began,
            token: 0,
        };
        past.until(|effect| matches!(effect, Effect::Ready(_)))
            .await?;
        Ok(past)
    }

    fn now(&self) -> Now {
        let passed = self.began.elapsed();
        Now {
            wall: TimestampMs(self.wall_ms + passed.as_millis() as i64),
            mono_us: passed.as_micros() as u64,
        }
    }

    /// Carry out effects until one is as wanted.
    async fn until(&mut self, wanted: impl Fn(&Effect) -> bool) -> Result<Effect> {
        loop {
            while let Some(effect) = self.core.poll() {
                if wanted(&effect) {
                    return Ok(effect);
                }
                match effect {
                    Effect::Io(io) => self.storage.submit(io),
                    Effect::Failed(why) => bail!("the log failed: {why}"),
                    _ => {}
                }
            }
            let passed_us = self.now().mono_us;
            let due = self.core.next_wakeup();
            let due = due.map(|at| Duration::from_micros(at.saturating_sub(passed_us)));
            let done = poll_fn(|cx| self.storage.poll_done(cx));
            // A core that wants nothing by time waits for its disk.
            match tokio::time::timeout(due.unwrap_or(Duration::MAX), done).await {
                Ok(done) => self.core.io_done(self.now(), done),
                Err(_) => self.core.tick(self.now()),
            }
        }
    }

    async fn call(&mut self, call: Call) -> Result<Answer> {
        self.token += 1;
        let asked = self.token;
        self.core.call(self.now(), asked, call);
        self.core.flush(self.now());
        let is_it =
            |effect: &Effect| matches!(effect, Effect::Answer { token, .. } if *token == asked);
        match self.until(is_it).await? {
            Effect::Answer {
                answer: Answer::Error(error),
                ..
            } => bail!("{error:?}"),
            Effect::Answer { answer, .. } => Ok(answer),
            other => bail!("{other:?} is no answer"),
        }
    }

    async fn make(&mut self, id: TopicId, topic: Topic) -> Result<()> {
        let request = Request::CreateTopic {
            id,
            name: topic.name.to_owned(),
            partitions: 1,
            config: TopicConfig {
                retention_ms: Some(topic.retention_ms),
                ..TopicConfig::default()
            },
        };
        self.call(Call::Machine(request)).await?;
        let new = Request::InitProducer { pid: ProducerId(0) };
        let answer = self.call(Call::Machine(new)).await?;
        let Answer::Reply(Reply::Producer { pid, epoch }) = answer else {
            bail!("{answer:?} is no producer");
        };
        for number in 0..topic.records {
            let mut builder = BatchBuilder::new(Encoding::None, 1 << 20);
            let value = format!("{}-{number}", topic.name);
            builder
                .append(None, Some(value.as_bytes()), [], self.now().wall.0)
                .context("a small record fits")?;
            let batch = builder.build().context("a record was appended")?;
            let request = Produce {
                partition: Partition {
                    topic: id,
                    index: 0,
                },
                pid,
                epoch,
                sequence: Sequence(number),
                sent: 1,
                kept: 1,
                bytes: batch.bytes().len() as u32,
                max_timestamp: TimestampMs(batch.header().max_timestamp),
            };
            let raw = vec![batch.into_bytes()].into();
            self.call(Call::Produce { request, raw }).await?;
        }
        Ok(())
    }
}
