//! `pub`: records from standard input, from files or from the command line, as fast as they come.
//!
//! One thread reads and splits large blocks and hands whole slices of records to the producer; the main
//! thread drives the network and follows what becomes of each record. No record costs a future or an
//! allocation of its own. Bytes are sent as they are given.

mod outcomes;
mod reader;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use millstream_client::Compression;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use crate::Global;
use crate::connect::{block_on, client};
use crate::exit::{Failure, Outcome};
use crate::input::Cut;
use crate::interrupt::Interrupt;
use crate::output::{grouped, note, partitions};
use crate::progress::Progress;
use crate::values::{Delimiter, delimiter, duration, limit, pair, size};
use outcomes::{Complaints, Names, Outcomes};
use reader::{Plan, Reader, Source};

/// Default of `--batch-bytes`.
const BATCH_BYTES: usize = 128 << 10;

/// Send records
///
/// Each line of standard input is a record, or each MESSAGE, or each file. A record counts as acknowledged when
/// it is on the broker's disk. Prints how many were, and fails if any was not.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "millstream pub [OPTIONS] <TOPIC> [MESSAGE]...\n       \
        millstream pub [OPTIONS] <TOPIC> --file <PATH>...", // the files come last: PATH takes what follows
    after_help = "\
JSON lines (--json) are what `sub -o json` prints: key, value, headers, timestamp, partition; \
key_base64 and value_base64 for bytes that are not text. What is not a JSON string is kept as written.

Examples:
  echo 'hello' | millstream pub orders
  millstream pub orders 'hello' 'world' --key customer-7
  millstream pub orders --key-separator : < lines-with-keys.txt
  millstream pub orders --file invoice.pdf scan.png --compression zstd
  find . -type f -print0 | millstream pub orders --delimiter '\\0'
  millstream sub orders --from start --exit-at-end -o json | millstream pub copy --json")]
pub(crate) struct Arguments {
    /// Topic to send to; it must be there.
    topic: String,
    /// Records to send; standard input is not read then.
    #[arg(value_name = "MESSAGE", conflicts_with_all = ["file", "whole", "delimiter", "crlf"])]
    messages: Vec<OsString>,
    /// Each of these files is one record; standard input is not read then.
    #[arg(long, value_name = "PATH", num_args = 1.., conflicts_with_all = ["whole", "delimiter", "crlf"])]
    file: Vec<PathBuf>,
    /// Standard input is one record.
    #[arg(long, conflicts_with_all = ["delimiter", "crlf"])]
    whole: bool,
    /// What ends a record on standard input: text with \n \t \r \0 \\ \xHH. Default: a line feed.
    #[arg(short = 'd', long, value_name = "TEXT", value_parser = delimiter, conflicts_with = "crlf")]
    delimiter: Option<Delimiter>,
    /// A carriage return before a line feed belongs to the line's end. Default: to the record.
    #[arg(long)]
    crlf: bool,
    /// What precedes this in a record is the record's key.
    #[arg(short = 'k', long, value_name = "TEXT", conflicts_with = "json")]
    key_separator: Option<String>,
    /// The key of every record.
    #[arg(long, conflicts_with_all = ["json", "key_separator"])]
    key: Option<String>,
    /// The partition of every record. Default: by key, else in turn.
    #[arg(short, long, value_name = "N")]
    partition: Option<u32>,
    /// Each record is given as a JSON object.
    #[arg(long)]
    json: bool,
    /// With --json: records that were read from a topic (they have an offset) go to the partition of the same
    /// number. Default: by key, as any other.
    #[arg(long, requires = "json", conflicts_with = "partition")]
    keep_partitions: bool,
    /// A header of every record; may be given several times.
    #[arg(short = 'H', long, value_parser = pair, value_name = "KEY=VALUE")]
    header: Vec<(String, String)>,
    /// Print each record's partition and offset when it is acknowledged, in the order of the input.
    #[arg(long)]
    offsets: bool,
    /// Compression of batches.
    #[arg(long, value_enum, default_value_t)]
    compression: Codec,
    /// How long a batch waits for more records while others are under way.
    #[arg(long, value_parser = duration, default_value = "2ms", value_name = "TIME")]
    linger: Duration,
    /// Size at which a batch is full; a larger record makes a batch of its own. Default: 128k.
    #[arg(long, value_parser = size, value_name = "SIZE")]
    batch_bytes: Option<usize>,
    /// From when a record is read until it is acknowledged or given up; retries included.
    #[arg(long, value_parser = limit, default_value = "2m", value_name = "TIME")]
    delivery_timeout: Duration,
    /// Skip empty records.
    #[arg(long)]
    skip_empty: bool,
}

/// Compression of batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Codec {
    #[default]
    None,
    Lz4,
    Zstd,
}

impl From<Codec> for Compression {
    fn from(codec: Codec) -> Self {
        match codec {
            Codec::None => Self::None,
            Codec::Lz4 => Self::Lz4,
            Codec::Zstd => Self::Zstd,
        }
    }
}

impl Arguments {
    fn source(&self) -> Outcome<Source> {
        Ok(if !self.messages.is_empty() {
            Source::Messages(self.messages.clone())
        } else if !self.file.is_empty() {
            Source::Files(self.file.clone())
        } else if self.whole {
            Source::Whole
        } else {
            Source::Cut(match &self.delimiter {
                Some(delimiter) => Cut::at(delimiter).map_err(Failure::Usage)?,
                None => Cut::lines(self.crlf),
            })
        })
    }
}

pub(crate) fn run(arguments: &Arguments, global: &Global) -> Outcome {
    let source = arguments.source()?;
    block_on(async {
        let client = client(global).await?;
        let mut interrupt = Interrupt::listen()?;
        let producer = client
            .producer()
            .linger(arguments.linger)
            .batch_bytes(arguments.batch_bytes.unwrap_or(BATCH_BYTES))
            .compression(arguments.compression.into())
            .delivery_timeout(arguments.delivery_timeout)
            .build()
            .await?;
        let topic = producer.topic(&arguments.topic).await?;
        if let Some(partition) = arguments
            .partition
            .filter(|&partition| partition >= topic.partitions())
        {
            // The command line was right, and the broker says no.
            return Err(Failure::failed(format!(
                "{} has {}, not {partition}",
                arguments.topic,
                partitions(topic.partitions())
            )));
        }
        if let Some(asked) = arguments.batch_bytes
            && topic.batch_bytes() < asked
        {
            note(&format!(
                "batches are full at {} bytes: {} takes no larger ones (max.message.bytes)",
                topic.batch_bytes(),
                arguments.topic
            ));
        }
        let typed = source.is_stdin() && io::stdin().is_terminal();
        if typed && !global.output.is_json() {
            note("each line is a record; Ctrl-D ends");
        }
        let names = Names::of(&source);
        let complaints = Arc::new(Complaints::new(names.clone()));
        let start = Instant::now();
        let (done, mut reading) = oneshot::channel();
        let (sent, mut taken) = mpsc::unbounded_channel();
        let reader = Reader {
            runtime: tokio::runtime::Handle::current(),
            producer: producer.clone(),
            topic,
            shared: Arc::default(),
            plan: Plan::of(arguments),
            complaints: Arc::clone(&complaints),
            sent,
        };
        let shared = Arc::clone(&reader.shared);
        std::thread::Builder::new()
            .name("input".into())
            // Whoever waited for it may have been interrupted.
            .spawn(move || drop(done.send(reader.run(source))))?;

        let mut outcomes = Outcomes::new(
            names,
            Arc::clone(&complaints),
            arguments.offsets.then_some(global.output),
        );
        // On a terminal, what is typed or printed and the line of progress do not share a place.
        let shares = typed || (arguments.offsets && io::stdout().is_terminal());
        let mut progress = Progress::new(!shares);
        let mut tick = tokio::time::interval(Duration::from_millis(250));
        let read = loop {
            tokio::select! {
                read = &mut reading => break read.unwrap_or(Ok(())),
                () = interrupt.wait() => {
                    shared.stop.store(true, Ordering::Relaxed);
                    // A read from a terminal or pipe may never end; what it has read so far is kept.
                    match tokio::time::timeout(Duration::from_millis(200), &mut reading).await {
                        Ok(read) => break read.unwrap_or(Ok(())),
                        Err(_) => break Ok(()),
                    }
                }
                Some(sent) = taken.recv() => outcomes.follow(sent),
                told = outcomes.settle_next(), if !outcomes.is_empty() => told?,
                _ = tick.tick() => progress.show(|| {
                    let acknowledged = producer.report().acknowledged;
                    format!("{} acknowledged, {}/s", grouped(acknowledged), grouped(rate(acknowledged, start)))
                }),
            }
        };
        producer.flush().await.or_else(|error| {
            if producer.report().failed > 0 {
                Ok(())
            } else {
                Err(error)
            }
        })?;
        while let Ok(sent) = taken.try_recv() {
            outcomes.follow(sent);
        }
        while !outcomes.is_empty() {
            outcomes.settle_next().await?;
        }
        outcomes.write()?;
        drop(progress);
        let elapsed = start.elapsed();
        let report = producer.report();
        let failed = report.failed + shared.refused.load(Ordering::Relaxed);
        let mut text = format!("{} acknowledged", records(report.acknowledged));
        if report.filtered > 0 {
            let _ = write!(text, " ({} dropped by filters)", grouped(report.filtered));
        }
        if failed > 0 {
            let _ = write!(text, ", {} not", grouped(failed));
        }
        let json = json!({
            "topic": arguments.topic,
            "read": shared.read.load(Ordering::Relaxed),
            "acknowledged": report.acknowledged,
            "filtered": report.filtered,
            "failed": failed,
            "unknown": report.unknown,
            "duplicates": report.duplicates,
            "batches": report.batches,
            "seconds": elapsed.as_secs_f64(),
            "records_per_second": report.acknowledged as f64 / elapsed.as_secs_f64(),
            "error": report.first_error.as_ref().map(ToString::to_string),
            "failures": complaints.json(),
        });
        if arguments.offsets && !global.output.is_json() {
            note(&text); // standard output is the records' alone
        } else {
            global.output.show(text, &json)?;
        }
        complaints.finish(report.first_error.as_ref());
        if let Err(error) = &read {
            note(&format!("error: stdin: {error}"));
        }
        let complete = failed == 0 && read.is_ok();
        let _ = producer.close().await;
        client.close().await;
        if complete { Ok(()) } else { Err(Failure::Told) }
    })
}

fn records(count: u64) -> String {
    format!(
        "{} record{}",
        grouped(count),
        if count == 1 { "" } else { "s" }
    )
}

fn rate(count: u64, since: Instant) -> u64 {
    (count as f64 / since.elapsed().as_secs_f64()) as u64
}
