//! `pub`: lines from stdin, as fast as they come.
//!
//! One thread reads and splits large blocks and hands whole slices of records to the producer; the main
//! thread drives the network. No record costs a future or an allocation of its own.

use std::fmt::Write as _;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use millstream_client::{Compression, Header, Producer, Record, RecordRef, Topic};
use serde_json::json;

use crate::Global;
use crate::connect::{block_on, client};
use crate::exit::{Failure, Outcome};
use crate::input::{Lines, from_json, split_key};
use crate::interrupt::Interrupt;
use crate::output::{grouped, note};
use crate::progress::Progress;
use crate::values::{duration, pair, size};

/// Bytes read at once.
const BLOCK_BYTES: usize = 256 << 10;
/// A line may be this long, because a record may.
const LINE_BYTES_MAX: usize = 16 << 20;
/// Records handed over at once.
const SLICE_RECORDS: usize = 2_048;
/// Lines that are refused are told one by one up to here.
const REFUSALS_TOLD: u64 = 5;

/// Send lines from stdin as records
///
/// Each line is a record; it counts as acknowledged when it is on the broker's disk. Prints how many
/// were, and fails if any was not.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
JSON lines (--json) are what `sub -o json` prints: key, value, headers, timestamp, partition;
key_base64 and value_base64 for bytes that are not text.

Examples:
  echo 'hello' | millstream pub orders
  millstream pub orders --key-separator : < lines-with-keys.txt
  millstream sub orders --from start --exit-at-end -o json | millstream pub copy --json")]
pub(crate) struct Arguments {
    /// Topic to send to; it must be there.
    topic: String,
    /// What precedes this in a line is the record's key.
    #[arg(short = 'k', long, value_name = "TEXT", conflicts_with = "json")]
    key_separator: Option<String>,
    /// The key of every record.
    #[arg(long, conflicts_with_all = ["json", "key_separator"])]
    key: Option<String>,
    /// The partition of every record. Default: by key, else in turn.
    #[arg(short, long, value_name = "N")]
    partition: Option<u32>,
    /// Each line is a JSON object.
    #[arg(long)]
    json: bool,
    /// A header of every record; may be given several times.
    #[arg(short = 'H', long, value_parser = pair, value_name = "KEY=VALUE")]
    header: Vec<(String, String)>,
    /// Compression of batches.
    #[arg(long, value_enum, default_value_t)]
    compression: Codec,
    /// How long a batch waits for more records while others are under way.
    #[arg(long, value_parser = duration, default_value = "2ms", value_name = "TIME")]
    linger: Duration,
    /// Size at which a batch is full.
    #[arg(long, value_parser = size, default_value = "128k", value_name = "SIZE")]
    batch_bytes: usize,
    /// From when a record is read until it is acknowledged or given up; retries included.
    #[arg(long, value_parser = duration, default_value = "2m", value_name = "TIME")]
    delivery_timeout: Duration,
    /// Skip empty lines.
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

/// What the reading thread has to say.
#[derive(Debug, Default)]
struct Tally {
    records: u64,
    refused: u64,
    error: Option<io::Error>,
}

pub(crate) fn run(arguments: &Arguments, global: &Global) -> Outcome {
    block_on(async {
        let client = client(global).await?;
        let mut interrupt = Interrupt::listen()?;
        let producer = client
            .producer()
            .linger(arguments.linger)
            .batch_bytes(arguments.batch_bytes)
            .compression(arguments.compression.into())
            .delivery_timeout(arguments.delivery_timeout)
            .build()
            .await?;
        let topic = producer.topic(&arguments.topic).await?;
        if let Some(partition) = arguments
            .partition
            .filter(|&partition| partition >= topic.partitions())
        {
            let last = topic.partitions() - 1;
            return Err(Failure::usage(format!(
                "{} has partitions 0 to {last}, not {partition}",
                arguments.topic
            )));
        }
        let start = Instant::now();
        let stop = Arc::new(AtomicBool::new(false));
        let (done, mut reading) = tokio::sync::oneshot::channel();
        let reader = Reader {
            runtime: tokio::runtime::Handle::current(),
            producer: producer.clone(),
            topic,
            stop: Arc::clone(&stop),
            plan: Plan::of(arguments),
        };
        std::thread::Builder::new()
            .name("stdin".into())
            // Whoever waited for it may have been interrupted.
            .spawn(move || drop(done.send(reader.run(io::stdin().lock()))))?;

        let mut progress = Progress::new(true);
        let mut tick = tokio::time::interval(Duration::from_millis(250));
        let read = loop {
            tokio::select! {
                read = &mut reading => break read.unwrap_or_default(),
                () = interrupt.wait() => {
                    stop.store(true, Ordering::Relaxed);
                    // A read from a terminal or pipe may never end; what it has read so far is kept.
                    match tokio::time::timeout(Duration::from_millis(200), &mut reading).await {
                        Ok(read) => break read.unwrap_or_default(),
                        Err(_) => break Tally::default(),
                    }
                }
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
        drop(progress);
        let elapsed = start.elapsed();
        let report = producer.report();
        let failed = report.failed + read.refused;
        let mut text = format!("{} acknowledged", records(report.acknowledged));
        if report.filtered > 0 {
            let _ = write!(text, " ({} dropped by filters)", grouped(report.filtered));
        }
        if failed > 0 {
            let _ = write!(text, ", {} not", grouped(failed));
        }
        let json = json!({
            "topic": arguments.topic,
            "read": read.records,
            "acknowledged": report.acknowledged,
            "filtered": report.filtered,
            "failed": failed,
            "unknown": report.unknown,
            "duplicates": report.duplicates,
            "batches": report.batches,
            "seconds": elapsed.as_secs_f64(),
            "records_per_second": report.acknowledged as f64 / elapsed.as_secs_f64(),
            "error": report.first_error.as_ref().map(ToString::to_string),
        });
        global.output.show(text, &json)?;
        if let Some(error) = &report.first_error {
            note(&format!("error: {error}"));
        }
        if let Some(error) = &read.error {
            note(&format!("error: stdin: {error}"));
        }
        let complete = failed == 0 && read.error.is_none();
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

/// How a line becomes a record.
struct Plan {
    separator: Option<Vec<u8>>,
    key: Option<Vec<u8>>,
    partition: Option<u32>,
    json: bool,
    headers: Vec<Header>,
    skip_empty: bool,
}

impl Plan {
    fn of(arguments: &Arguments) -> Self {
        Self {
            separator: arguments
                .key_separator
                .as_ref()
                .map(|text| text.clone().into_bytes()),
            key: arguments.key.as_ref().map(|key| key.clone().into_bytes()),
            partition: arguments.partition,
            json: arguments.json,
            headers: arguments
                .header
                .iter()
                .map(|(name, value)| Header::new(name.clone(), value.clone()))
                .collect(),
            skip_empty: arguments.skip_empty,
        }
    }
}

struct Reader {
    runtime: tokio::runtime::Handle,
    producer: Producer,
    topic: Topic,
    stop: Arc<AtomicBool>,
    plan: Plan,
}

impl Reader {
    /// Until the end of the input, or until nothing can be sent any more.
    fn run(self, mut input: impl Read) -> Tally {
        let mut read = Tally::default();
        let mut block = vec![0; BLOCK_BYTES];
        let mut filled = 0;
        loop {
            if filled == block.len() {
                if filled >= LINE_BYTES_MAX {
                    read.error = Some(io::Error::other(format!(
                        "a line is over {LINE_BYTES_MAX} bytes"
                    )));
                    return read;
                }
                block.resize(filled * 2, 0);
            }
            let count = match input.read(&mut block[filled..]) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    read.error = Some(error);
                    return read;
                }
            };
            filled += count;
            let mut lines = Lines::new(&block[..filled]);
            if !self.hand_over(&mut lines, &mut read) || self.stop.load(Ordering::Relaxed) {
                return read;
            }
            let consumed = lines.consumed();
            block.copy_within(consumed..filled, 0);
            filled -= consumed;
        }
        if filled > 0 {
            let rest = &block[..filled];
            self.hand_over(
                &mut std::iter::once(rest.strip_suffix(b"\r").unwrap_or(rest)),
                &mut read,
            );
        }
        read
    }

    /// `false`: nothing more can be sent.
    fn hand_over<'a>(&self, lines: &mut impl Iterator<Item = &'a [u8]>, read: &mut Tally) -> bool {
        let plan = &self.plan;
        let mut parsed: Vec<Record> = Vec::new();
        let mut slice: Vec<RecordRef<'_>> = Vec::with_capacity(SLICE_RECORDS);
        loop {
            slice.clear();
            parsed.clear();
            let mut ended = true;
            if plan.json {
                for line in lines.by_ref() {
                    read.records += 1;
                    match from_json(line) {
                        Ok(mut record) => {
                            record.headers.extend_from_slice(&plan.headers);
                            record.partition = plan.partition.or(record.partition);
                            parsed.push(record);
                        }
                        Err(_) if plan.skip_empty && line.is_empty() => read.records -= 1,
                        Err(error) => refuse(read, &error),
                    }
                    if parsed.len() == SLICE_RECORDS {
                        ended = false;
                        break;
                    }
                }
                // The records live as long as this round.
                let refs: Vec<RecordRef<'_>> = parsed.iter().map(RecordRef::from).collect();
                if !self.send(&refs, read) {
                    return false;
                }
            } else {
                for line in lines.by_ref() {
                    if plan.skip_empty && line.is_empty() {
                        continue;
                    }
                    read.records += 1;
                    let (key, value) = match &plan.separator {
                        Some(separator) => split_key(line, separator),
                        None => (plan.key.as_deref(), line),
                    };
                    slice.push(RecordRef {
                        key,
                        value: Some(value),
                        headers: &plan.headers,
                        timestamp_ms: None,
                        partition: plan.partition,
                    });
                    if slice.len() == SLICE_RECORDS {
                        ended = false;
                        break;
                    }
                }
                if !self.send(&slice, read) {
                    return false;
                }
            }
            if ended {
                return true;
            }
        }
    }

    fn send(&self, mut records: &[RecordRef<'_>], read: &mut Tally) -> bool {
        while !records.is_empty() {
            let enqueued = self.topic.try_enqueue_all(records);
            records = &records[enqueued.taken..];
            if let Some(error) = enqueued.refused {
                refuse(read, &error.to_string());
                records = &records[1..];
                if error.kind() == millstream_client::ErrorKind::Closed {
                    return false;
                }
            } else if !records.is_empty() && self.runtime.block_on(self.producer.room()).is_err() {
                read.refused += records.len() as u64;
                return false;
            }
        }
        true
    }
}

fn refuse(read: &mut Tally, why: &str) {
    read.refused += 1;
    if read.refused <= REFUSALS_TOLD {
        note(&format!("line {}: {why}", read.records));
    }
}
