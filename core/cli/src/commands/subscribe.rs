//! `sub`: records to stdout.
//!
//! With a group, offsets are committed after the records were written: a crash repeats some, and skips
//! none.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io::{self, Write};
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use millstream_client::{Client, Consumer, ConsumerEvent, StartAt, TopicPartition};

use crate::Global;
use crate::connect::{block_on, client};
use crate::exit::{Failure, Outcome};
use crate::format::{FORMAT_HELP, Format, write_json};
use crate::interrupt::Interrupt;
use crate::output::note;
use crate::values::{pair, start_at};

/// Written at once.
const BLOCK_BYTES: usize = 64 << 10;
/// With a group, offsets are committed so often.
const COMMIT_EVERY: Duration = Duration::from_secs(1);

/// Print records
#[derive(Debug, clap::Args)]
#[command(after_long_help = FORMAT_HELP, after_help = "\
Examples:
  millstream sub orders                                # from now on, until Ctrl-C
  millstream sub orders --from start --count 10 -o json
  millstream sub orders --from -10m -f '%p:%o %k=%v\\n'
  millstream sub orders --group billing                # share the topic; offsets are kept
  millstream sub orders --filter json-filter --param 'expr=total > 100'

--help explains the format.")]
pub(crate) struct Arguments {
    /// Topic to read.
    topic: String,
    /// How a record is printed. Default: its value and a line end.
    #[arg(short, long, value_name = "FORMAT", value_parser = Format::parse)]
    format: Option<Format>,
    /// Where to begin: start, end, an offset, @milliseconds, -10m, or a time. With a group: where the
    /// group has no offset yet.
    #[arg(long, value_parser = start_at, value_name = "POSITION", allow_hyphen_values = true)]
    from: Option<StartAt>,
    /// End after so many records.
    #[arg(short = 'n', long, value_name = "N")]
    count: Option<u64>,
    /// Read as a member of this group.
    #[arg(short, long, conflicts_with = "partition")]
    group: Option<String>,
    /// Read only this partition; may be given several times.
    #[arg(short, long, value_name = "N")]
    partition: Vec<u32>,
    /// End where the topic ends now.
    #[arg(short = 'e', long)]
    exit_at_end: bool,
    /// Run this deployed component for this subscription.
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// A parameter of the filter; may be given several times.
    #[arg(long, value_parser = pair, value_name = "KEY=VALUE", requires = "filter")]
    param: Vec<(String, String)>,
    /// Fail if records are missing or repeated (offsets, and each producer's sequences).
    #[arg(long)]
    verify: bool,
}

pub(crate) fn run(arguments: Arguments, global: &Global) -> Outcome {
    block_on(async {
        let client = client(global).await?;
        let interrupt = Interrupt::listen()?;
        let outcome = subscribe(&client, arguments, global, interrupt).await;
        client.close().await;
        outcome
    })
}

async fn subscribe(
    client: &Client,
    arguments: Arguments,
    global: &Global,
    mut interrupt: Interrupt,
) -> Outcome {
    let from = arguments.from.unwrap_or(if arguments.group.is_some() {
        StartAt::Start
    } else {
        StartAt::End
    });
    let mut builder = client
        .consumer()
        .from(from)
        .auto_commit(None)
        .verify(arguments.verify);
    for &partition in &arguments.partition {
        builder = builder.partition(arguments.topic.as_str(), partition);
    }
    if arguments.partition.is_empty() {
        builder = builder.topic(&arguments.topic);
    }
    if let Some(group) = &arguments.group {
        builder = builder.group(group);
    }
    if let Some(filter) = arguments.filter {
        builder = builder.filter(filter, arguments.param);
    }
    if arguments.exit_at_end {
        builder = builder.stop_at_end();
    }
    if arguments.count == Some(0) {
        return Ok(());
    }
    let consumer = builder.build().await?;
    let format = arguments.format.unwrap_or_else(Format::plain);
    let mut printer = Printer {
        consumer,
        grouped: arguments.group.is_some(),
        json: global.output.is_json(),
        format,
        left: arguments.count.unwrap_or(u64::MAX),
        out: Vec::with_capacity(2 * BLOCK_BYTES),
        done: BTreeMap::new(),
        committed: Instant::now(),
        failed: false,
        reading: BTreeSet::new(),
    };
    let outcome = tokio::select! {
        outcome = printer.run() => outcome,
        () = interrupt.wait() => Ok(()),
    };
    let outcome = outcome.and_then(|()| printer.write());
    // What was not written must not be committed.
    if outcome.is_ok() {
        printer.commit().await?;
    }
    let failed = printer.failed;
    printer.consumer.close().await;
    match outcome {
        Ok(()) if failed => Err(Failure::Told),
        outcome => outcome,
    }
}

struct Printer {
    consumer: Consumer,
    grouped: bool,
    json: bool,
    format: Format,
    left: u64,
    out: Vec<u8>,
    /// Next offset to read of what was printed and not yet committed.
    done: BTreeMap<TopicPartition, u64>,
    committed: Instant,
    failed: bool,
    /// Partitions that were given and have not failed.
    reading: BTreeSet<TopicPartition>,
}

impl Printer {
    async fn run(&mut self) -> Outcome {
        while self.left > 0 {
            let event = match self.ready().await {
                Some(event) => event,
                None => {
                    // Nothing is here: let people see what there is before waiting.
                    self.write()?;
                    if self.grouped && !self.done.is_empty() {
                        tokio::select! {
                            event = self.consumer.next_event() => event,
                            () = tokio::time::sleep_until((self.committed + COMMIT_EVERY).into()) => {
                                self.commit().await?;
                                continue;
                            }
                        }
                    } else {
                        self.consumer.next_event().await
                    }
                }
            };
            match event {
                None => break,
                Some(Ok(ConsumerEvent::Batch(batch))) => {
                    let opened = batch.open()?;
                    let mut next = batch.last_offset + 1;
                    for record in opened.iter() {
                        let record = opened.share(&record?);
                        if self.json {
                            write_json(&record, &mut self.out);
                        } else {
                            self.format.write(&record, &mut self.out);
                        }
                        if self.out.len() >= BLOCK_BYTES {
                            self.write()?;
                        }
                        self.left -= 1;
                        if self.left == 0 {
                            next = record.offset + 1;
                            break;
                        }
                    }
                    if self.grouped {
                        self.done.insert(
                            TopicPartition::new(batch.topic().clone(), batch.partition()),
                            next,
                        );
                        if self.committed.elapsed() >= COMMIT_EVERY {
                            self.write()?;
                            self.commit().await?;
                        }
                    }
                }
                Some(Ok(ConsumerEvent::Revoking(partitions))) => {
                    self.write()?;
                    self.commit().await?;
                    self.done
                        .retain(|partition, _| !partitions.contains(partition));
                }
                Some(Ok(ConsumerEvent::Lost(partitions))) => {
                    self.done
                        .retain(|partition, _| !partitions.contains(partition));
                }
                Some(Ok(ConsumerEvent::Failed { partition, error })) => {
                    self.write()?;
                    self.failed = true;
                    note(&format!("error: {partition}: {error}"));
                    self.reading.remove(&partition);
                    if !self.grouped && self.reading.is_empty() {
                        break; // nothing more can come
                    }
                }
                Some(Ok(ConsumerEvent::Assigned(partitions))) => {
                    self.reading
                        .extend(partitions.into_iter().map(|(partition, _)| partition));
                }
                Some(Ok(ConsumerEvent::CaughtUp { .. })) => {}
                Some(Err(error)) if error.kind() == millstream_client::ErrorKind::Gap => {
                    self.write()?;
                    self.failed = true;
                    note(&format!("error: {error}"));
                }
                Some(Err(error)) => {
                    self.write()?;
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    /// What is here already; `None` when that is nothing.
    async fn ready(&mut self) -> Option<Option<millstream_client::Result<ConsumerEvent>>> {
        let mut next = pin!(self.consumer.next_event());
        std::future::poll_fn(|cx| {
            Poll::Ready(match next.as_mut().poll(cx) {
                Poll::Ready(event) => Some(event),
                Poll::Pending => None,
            })
        })
        .await
    }

    fn write(&mut self) -> Outcome {
        if !self.out.is_empty() {
            let mut stdout = io::stdout().lock();
            stdout.write_all(&self.out)?;
            stdout.flush()?;
            self.out.clear();
        }
        Ok(())
    }

    async fn commit(&mut self) -> Outcome {
        self.committed = Instant::now();
        if self.done.is_empty() {
            return Ok(());
        }
        let done = std::mem::take(&mut self.done);
        let ours = self.consumer.assignment();
        let offsets: Vec<_> = done
            .iter()
            .filter(|(partition, _)| ours.contains(partition))
            .map(|(partition, next)| (partition.clone(), *next, ""))
            .collect();
        match self.consumer.commit_offsets(&offsets).await {
            Ok(failures) => {
                for failure in failures {
                    note(&format!(
                        "{} was not committed: {}",
                        failure.partition, failure.error
                    ));
                }
                Ok(())
            }
            // Records repeat after a lost commit; that is the promise of a group.
            Err(error) if error.retriable() => {
                note(&format!("not committed: {error}"));
                self.done = done;
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}
