//! `bench …`: how fast a broker is, as its clients see it.
//!
//! Every rate is all records over all time: from the first record that is handed over to the last that
//! is acknowledged (or read). Deliberately absent: ceilings to compare with (`cargo xtask bench`).

mod consume;
mod e2e;
mod load;
mod produce;
mod report;

use std::path::PathBuf;

use millstream_client::Context;

use crate::Global;
use crate::commands::publish::Codec;
use crate::connect::context;
use crate::exit::{Failure, Outcome};
use crate::values::size;

/// Measure a broker
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Durable acknowledgements: records/s and latency
    #[command(after_help = "\
Latency is from handing a batch (with --batch 0, a sampled record) to the client until its \
acknowledgement, waiting for a place among those in flight not included.

Examples:
  millstream bench produce --records 1000000 --size 1024 --batch 64 --in-flight 16
  millstream bench produce --records 5000000 --size 100                # the client's own batching
  millstream bench produce --records 2000 --size 100 --batch 1 --in-flight 1
  millstream bench produce --batch 64 --producers 2 --partitions 2 --own-partition")]
    Produce(Load),
    /// Records out: fills a topic first, then reads it
    #[command(after_help = "\
Example:
  millstream bench consume --records 1000000 --size 1024 --consumers 2 --partitions 2")]
    Consume {
        #[command(flatten)]
        load: Load,
        /// Consumers, each with its own connection and its share of the partitions.
        #[arg(long, default_value_t = 1, value_name = "N")]
        consumers: u32,
        /// Read what is in --topic already, without filling it.
        #[arg(long, requires = "topic")]
        no_fill: bool,
    },
    /// From the producer through the disk to the consumer
    #[command(after_help = "\
Example:
  millstream bench e2e --records 100000 --size 100 --rate 5000")]
    E2e {
        #[command(flatten)]
        load: Load,
        /// Records a second, all producers together. 0: as many as will go.
        #[arg(long, default_value_t = 0, value_name = "N")]
        rate: u64,
    },
}

/// What is sent, and by whom.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Load {
    /// Records in all.
    #[arg(long, default_value_t = 1_000_000, value_name = "N")]
    records: u64,
    /// Bytes of a record's value.
    #[arg(long, value_parser = size, default_value = "100", value_name = "SIZE")]
    size: usize,
    /// Records in a batch; 0 leaves batching to the client.
    #[arg(long, default_value_t = 0, value_name = "N")]
    batch: u32,
    /// With --batch 0: size at which the client's batches are full.
    #[arg(long, value_parser = size, default_value = "128k", value_name = "SIZE")]
    batch_bytes: usize,
    /// Producers, each with its own connection and thread.
    #[arg(long, default_value_t = 1, value_name = "N")]
    producers: u32,
    /// Partitions of the topic.
    #[arg(long, default_value_t = 1, value_name = "N")]
    partitions: u32,
    /// Each producer writes to one partition, its number modulo --partitions, not to all in
    /// turn.
    #[arg(long)]
    own_partition: bool,
    /// Batches unanswered, of each producer.
    #[arg(long, default_value_t = 16, value_name = "N")]
    in_flight: usize,
    /// How batches are compressed.
    #[arg(long, value_enum, default_value_t)]
    compression: Codec,
    /// Give records keys, so many different ones; 0: none.
    #[arg(long, default_value_t = 0, value_name = "N")]
    keys: u64,
    /// Topic to use; it is made if it is not there. Default: a new one, deleted afterwards.
    #[arg(long)]
    topic: Option<String>,
    /// Do not delete the topic afterwards.
    #[arg(long)]
    keep: bool,
    /// Also report the CPU time of this process, the broker's.
    #[arg(long, value_name = "PID")]
    broker_pid: Option<u32>,
}

impl Load {
    fn check_partitions(&self) -> Outcome {
        if self.own_partition && self.batch == 0 {
            return Err(Failure::usage(
                "--own-partition needs --batch: with --batch 0 the client chooses partitions",
            ));
        }
        Ok(())
    }

    /// Where a producer's next batch goes.
    fn next_partition(&self, last: u32, partitions: u32) -> u32 {
        match self.own_partition {
            true => last,
            false => (last + 1) % partitions,
        }
    }
}

/// A prepared measurement: where to connect and to which topic.
#[derive(Clone, Debug)]
struct Bench {
    context: Context,
    load: Load,
    topic: String,
    timeout: std::time::Duration,
}

impl Bench {
    fn prepare(load: Load, global: &Global) -> Outcome<Self> {
        if load.producers == 0 || load.partitions == 0 || load.in_flight == 0 {
            return Err(Failure::usage(
                "--producers, --partitions and --in-flight are at least 1",
            ));
        }
        if let Some(pid) = load.broker_pid
            && !PathBuf::from(format!("/proc/{pid}/stat")).exists()
        {
            return Err(Failure::usage(format!("there is no process {pid}")));
        }
        let topic = load.topic.clone().unwrap_or_else(|| {
            format!(
                "bench-{}-{}",
                std::process::id(),
                jiff::Timestamp::now().as_millisecond()
            )
        });
        Ok(Self {
            context: context(global)?,
            load,
            topic,
            timeout: global.timeout(),
        })
    }

    fn with_client<T>(
        &self,
        work: impl AsyncFnOnce(&millstream_client::Client) -> Outcome<T>,
    ) -> Outcome<T> {
        crate::connect::block_on(async {
            let client = self.client().await?;
            let outcome = work(&client).await;
            client.close().await;
            outcome
        })
    }

    async fn client(&self) -> Outcome<millstream_client::Client> {
        let name = concat!("millstream-bench/", env!("CARGO_PKG_VERSION"));
        Ok(millstream_client::Client::builder(self.context.clone())
            .client_id(name)
            .timeout(self.timeout)
            .connect()
            .await?)
    }

    fn make_topic(&self) -> Outcome<u32> {
        self.with_client(async |client| {
            let (made, _) = client
                .admin()
                .create_topic(&self.topic, self.load.partitions, &[], true)
                .await?;
            Ok(made.partitions)
        })
    }

    fn drop_topic(&self) -> Outcome {
        if self.load.keep || self.load.topic.is_some() {
            return Ok(());
        }
        self.with_client(async |client| Ok(client.admin().delete_topic(&self.topic).await?))
    }
}

pub(crate) fn run(command: Command, global: &Global) -> Outcome {
    match command {
        Command::Produce(load) => {
            load.check_partitions()?;
            let bench = Bench::prepare(load, global)?;
            bench.make_topic()?;
            let report = produce::measure(&bench, true);
            bench.drop_topic()?;
            report?.show(global.output)
        }
        Command::Consume {
            load,
            consumers,
            no_fill,
        } => {
            load.check_partitions()?;
            let bench = Bench::prepare(load, global)?;
            let partitions = bench.make_topic()?;
            let report =
                consume::measure(&bench, consumers.clamp(1, partitions), partitions, no_fill);
            bench.drop_topic()?;
            report?.show(global.output)
        }
        Command::E2e { load, rate } => {
            let bench = Bench::prepare(load, global)?;
            bench.make_topic()?;
            let report = e2e::measure(&bench, rate);
            bench.drop_topic()?;
            report?.show(global.output)
        }
    }
}
