//! `sub`: records to stdout.
//!
//! With a group, offsets are committed after the records were written: a crash repeats some, and skips
//! none.

mod ends;
mod last;
mod topics;

use std::collections::BTreeSet;
use std::future::Future;
use std::io::{self, Write};
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use clap::builder::NonEmptyStringValueParser;
use millstream_client::{
    Client, Code, ConsumedRecord, Consumer, ConsumerBuilder, ConsumerEvent, OffsetSpec, OnLost,
    StartAt, TopicPartition,
};

use crate::Global;
use crate::connect::{block_on, client};
use crate::exit::{Failure, Outcome};
use crate::format::{FORMAT_HELP, Format, Rendering};
use crate::interrupt::Interrupt;
use crate::ledger::Ledger;
use crate::output::note;
use crate::values::{Delimiter, delimiter, pair, start_at};
use ends::{Ends, Until};
use last::Last;

/// Written at once.
const BLOCK_BYTES: usize = 64 << 10;
/// With a group, offsets are committed so often.
const COMMIT_EVERY: Duration = Duration::from_secs(1);

const EXAMPLES: &str = "\
Examples:
  millstream sub orders                                # from now on, until Ctrl-C
  millstream sub orders --last 10 --exit-at-end        # the newest ten
  millstream sub orders --from start --count 10 -o json
  millstream sub orders --from -10m -f '%p:%o %k=%v\\n'
  millstream sub orders --from 2026-01-31T12:00:00Z --until 2026-01-31T13:00:00Z
  millstream sub 'orders-*' payments --from start --until end
  millstream sub orders --partition 0 --from 41 --count 1 -o raw --delimiter '' > value.bin
  millstream sub orders --group billing                # share the topic; offsets are kept
  millstream sub orders --filter json-filter --param 'expr=total > 100'";

/// Print records
#[derive(Debug, clap::Args)]
#[command(
    after_help = format!("{EXAMPLES}\n\n--help explains the format."),
    after_long_help = format!("{EXAMPLES}\n\n{FORMAT_HELP}")
)]
pub(crate) struct Arguments {
    /// Topics to read, by name or by a pattern with * and ?. A pattern stands for the topics that match when the
    /// command begins.
    #[arg(required = true, value_name = "TOPIC")]
    topics: Vec<String>,
    /// How a record is printed. Default: its value and the delimiter.
    #[arg(short, long, value_name = "FORMAT", value_parser = Format::parse)]
    format: Option<Format>,
    /// What stands behind each value: text with \n \t \r \0 \\ \xHH. Default: a line feed.
    #[arg(short = 'd', long, value_name = "TEXT", value_parser = delimiter)]
    delimiter: Option<Delimiter>,
    /// Where to begin: start, end, an offset, @milliseconds, -10m, a day, or a time. With a group: where the
    /// group has no offset yet. Default: end; with a group, start.
    #[arg(long, value_parser = start_at, value_name = "POSITION", allow_hyphen_values = true)]
    from: Option<StartAt>,
    /// Begin with the newest N records, all partitions together (those that a --filter drops count too).
    #[arg(long, value_name = "N", conflicts_with_all = ["from", "group"])]
    last: Option<usize>,
    /// Where to end, which is not printed: end (where the topic ends now), an offset of each partition, or a
    /// time, written as with --from.
    #[arg(long, value_parser = until, value_name = "POSITION", allow_hyphen_values = true)]
    until: Option<Until>,
    /// End after so many records.
    #[arg(short = 'n', long, value_name = "N")]
    count: Option<u64>,
    /// Read as a member of this group.
    #[arg(short, long, conflicts_with = "partition", value_parser = NonEmptyStringValueParser::new())]
    group: Option<String>,
    /// Read only this partition; may be given several times.
    #[arg(short, long, value_name = "N")]
    partition: Vec<u32>,
    /// End where the topic ends now: the same as --until end.
    #[arg(short = 'e', long, conflicts_with = "until")]
    exit_at_end: bool,
    /// Run this component for this subscription: one deployed on the topic, or a bundled one (json-filter,
    /// key-filter). A record that it cannot judge ends the reading, with an error.
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// A parameter of the filter; may be given several times.
    #[arg(long, value_parser = pair, value_name = "KEY=VALUE", requires = "filter")]
    param: Vec<(String, String)>,
    /// What to do when records were removed (by retention or a trim) before they were read: fail (the
    /// default with --group), or say so and go on with the oldest (the default without) or the newest.
    #[arg(long, value_enum, value_name = "WHAT")]
    on_lost: Option<Lost>,
    /// Fail if records are missing or repeated (offsets, and each producer's sequences). Refused for a topic
    /// with a filter at produce, and not for one that had some: what they drop leaves holes in the sequences
    /// that look like loss.
    #[arg(long)]
    verify: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Lost {
    Fail,
    Oldest,
    Newest,
}

impl From<Lost> for OnLost {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Fail => Self::Fail,
            Lost::Oldest => Self::Oldest,
            Lost::Newest => Self::Newest,
        }
    }
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
    let rendering = Rendering::of(
        global.output,
        arguments.format.clone(),
        arguments.delimiter.as_ref(),
    )
    .map_err(Failure::Usage)?;
    let until = match arguments.until {
        None if arguments.exit_at_end => Some(Until::End),
        until => until,
    };
    if arguments.group.is_some() && until.is_some_and(|until| until != Until::End) {
        return Err(Failure::usage(
            "--until OFFSET and --until TIME do not go with --group: its members read what the group gives them",
        ));
    }
    if arguments.count == Some(0) {
        return Ok(());
    }
    let topics = named(client, &arguments.topics).await?;
    if arguments.verify {
        unfiltered(client, &topics).await?;
    }
    let from = arguments.from.unwrap_or(if arguments.group.is_some() {
        StartAt::Start
    } else {
        StartAt::End
    });
    let mut builder = client
        .consumer()
        .from(from)
        .auto_commit(None)
        .reconnect_timeout(global.timeout())
        .verify(arguments.verify)
        .on_lost(arguments.on_lost.map_or(OnLost::Default, OnLost::from));
    let mut last = None;
    if let Some(count) = arguments.last {
        let (starts, ends) = newest(client, &topics, &arguments.partition, count).await?;
        for (partition, start) in starts {
            let number = partition.partition;
            builder = builder.partition_from(partition.topic, number, StartAt::Offset(start));
        }
        last = Some(Last::new(count, ends));
    } else {
        builder = with_partitions(builder, &topics, &arguments.partition);
    }
    if let Some(group) = &arguments.group {
        builder = builder.group(group);
    }
    if let Some(filter) = arguments.filter {
        builder = builder.filter(filter, arguments.param);
    }
    let mut close_at = None;
    let ends = match until {
        None => None,
        Some(Until::End) => {
            builder = builder.stop_at_end();
            None
        }
        Some(Until::Offset(offset)) => {
            let all = partitions(client, &topics, &arguments.partition).await?;
            Some(Ends::at_offset(all, offset))
        }
        Some(Until::Timestamp(before_ms)) => {
            let all = partitions(client, &topics, &arguments.partition).await?;
            close_at = Some(before_ms);
            Some(Ends::before(all, before_ms))
        }
    };
    let consumer = builder.build().await?;
    let mut printer = Printer {
        consumer,
        grouped: arguments.group.is_some(),
        rendering,
        left: arguments.count.unwrap_or(u64::MAX),
        out: Vec::with_capacity(2 * BLOCK_BYTES),
        ledger: Ledger::default(),
        committed: Instant::now(),
        failed: false,
        verify: arguments.verify,
        reading: BTreeSet::new(),
        gone: BTreeSet::new(),
        ends,
        last,
    };
    let outcome = tokio::select! {
        outcome = printer.read(client, close_at) => outcome,
        () = interrupt.wait() => Ok(()),
    };
    let outcome = outcome.and_then(|()| printer.finish());
    // What was not written must not be committed.
    if outcome.is_ok() {
        printer.commit().await?;
    }
    // What was printed and not committed is printed again by the group's next member.
    let failed = printer.failed || !printer.ledger.is_settled();
    printer.consumer.close().await;
    match outcome {
        Ok(()) if failed => Err(Failure::Told),
        outcome => outcome,
    }
}

/// `--until`: what `--from` takes, but for the start.
fn until(text: &str) -> Result<Until, String> {
    match start_at(text)? {
        StartAt::End => Ok(Until::End),
        StartAt::Offset(offset) => Ok(Until::Offset(offset)),
        StartAt::Timestamp(ms) => Ok(Until::Timestamp(ms)),
        StartAt::Start | StartAt::After { .. } => {
            Err("nothing is before the start: use end, an offset or a time".into())
        }
    }
}

/// The topics that are asked for, patterns resolved.
async fn named(client: &Client, asked: &[String]) -> Outcome<Vec<String>> {
    let known: Vec<String> = if asked.iter().any(|text| topics::is_pattern(text)) {
        let topics = client.admin().list_topics().await?;
        topics.into_iter().map(|topic| topic.name).collect()
    } else {
        Vec::new()
    };
    topics::resolve(asked, &known).map_err(Failure::failed)
}

/// `--verify` judges sequences, which a filter at produce makes holes in: of such a topic it would tell loss that
/// is none.
async fn unfiltered(client: &Client, topics: &[String]) -> Outcome {
    for topic in topics {
        let described = client.admin().describe_topic(topic, false).await?;
        let mut filters = described.filters.iter();
        if let Some(filter) = filters.find(|filter| filter.stage == "produce") {
            return Err(Failure::failed(format!(
                "{topic} cannot be read with --verify: what its filter `{}` drops at produce leaves holes in the \
                 producers' sequences, which look like loss. Read it without --verify; `log verify` checks what is \
                 on the broker's disk",
                filter.name
            )));
        }
    }
    Ok(())
}

fn with_partitions(
    mut builder: ConsumerBuilder,
    topics: &[String],
    partitions: &[u32],
) -> ConsumerBuilder {
    for topic in topics {
        for &partition in partitions {
            builder = builder.partition(topic.as_str(), partition);
        }
        if partitions.is_empty() {
            builder = builder.topic(topic);
        }
    }
    builder
}

/// The partitions that are read: those asked for of each topic, or all there are.
async fn partitions(
    client: &Client,
    topics: &[String],
    asked: &[u32],
) -> Outcome<Vec<TopicPartition>> {
    let mut all = Vec::new();
    for topic in topics {
        let numbers = if asked.is_empty() {
            let described = client.admin().describe_topic(topic, false).await?;
            (0..described.partitions).collect()
        } else {
            asked.to_vec()
        };
        all.extend(
            numbers
                .into_iter()
                .map(|number| TopicPartition::new(topic.as_str(), number)),
        );
    }
    Ok(all)
}

/// Where each partition's newest `count` records begin, and where each ends.
async fn newest(
    client: &Client,
    topics: &[String],
    asked: &[u32],
    count: usize,
) -> Outcome<(Vec<(TopicPartition, u64)>, Ends)> {
    let (mut starts, mut ends) = (Vec::new(), Vec::new());
    let admin = client.admin();
    for partition in partitions(client, topics, asked).await? {
        let number = partition.partition;
        let at = |at| admin.offset_at(&partition.topic, number, at);
        let (start, _) = at(OffsetSpec::Start).await?;
        let (end, _) = at(OffsetSpec::End).await?;
        starts.push((
            partition.clone(),
            end.saturating_sub(count as u64).max(start),
        ));
        ends.push((partition, end));
    }
    Ok((starts, Ends::at_offsets(ends)))
}

struct Printer {
    consumer: Consumer,
    grouped: bool,
    rendering: Rendering,
    left: u64,
    out: Vec<u8>,
    ledger: Ledger,
    committed: Instant,
    failed: bool,
    /// Records that are missing are a failure.
    verify: bool,
    /// Partitions that were given and have not failed.
    reading: BTreeSet<TopicPartition>,
    /// Topics that were said to be deleted.
    gone: BTreeSet<String>,
    /// Where to stop, if not where the broker ends the subscription.
    ends: Option<Ends>,
    /// The newest records, until all of them are here.
    last: Option<Last>,
}

impl Printer {
    /// Until the end, whatever it is.
    async fn read(&mut self, client: &Client, close_at: Option<i64>) -> Outcome {
        let Some(close_at) = close_at else {
            return self.run().await;
        };
        // Before this time a record of an earlier one may still come; then, what there is is all.
        let left = close_at.saturating_sub(jiff::Timestamp::now().as_millisecond());
        let left = Duration::from_millis(u64::try_from(left).unwrap_or(0));
        match tokio::time::timeout(left, self.run()).await {
            Ok(outcome) => return outcome,
            Err(_) => self.write()?,
        }
        let mut limits = Vec::new();
        for partition in self.ends.iter().flat_map(Ends::open) {
            let (topic, number) = (&partition.topic, partition.partition);
            let (end, _) = client
                .admin()
                .offset_at(topic, number, OffsetSpec::End)
                .await?;
            limits.push((partition.clone(), end));
        }
        for (partition, limit) in limits {
            let next = self.consumer.position(&partition);
            if let Some(ends) = &mut self.ends {
                ends.close([(partition.clone(), limit)]);
            }
            if let Some(next) = next {
                self.reached(&partition, next)?;
            }
        }
        self.run().await
    }

    async fn run(&mut self) -> Outcome {
        while self.left > 0 && !self.ends.as_ref().is_some_and(Ends::is_over) {
            let event = match self.ready().await {
                Some(event) => event,
                None => {
                    // Nothing is here: let people see what there is before waiting.
                    self.write()?;
                    if self.grouped && self.ledger.has_printed() {
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
                    let partition = TopicPartition::new(batch.topic().clone(), batch.partition());
                    let opened = batch.open()?;
                    let mut next = batch.last_offset + 1;
                    for record in opened.iter() {
                        let record = opened.share(&record?);
                        if let Some(ends) = &mut self.ends
                            && !ends.admits(&partition, record.offset, record.timestamp_ms)
                        {
                            next = record.offset;
                            break;
                        }
                        if self.print(&record)? == 0 {
                            next = record.offset + 1;
                            break;
                        }
                    }
                    self.reached(&partition, next)?;
                    self.done(partition, next);
                }
                Some(Ok(ConsumerEvent::Revoking(partitions))) => {
                    self.write()?;
                    self.commit().await?;
                    self.ledger.take_away(&partitions);
                }
                Some(Ok(ConsumerEvent::Lost(partitions))) => {
                    for partition in self.ledger.take_away(&partitions) {
                        note(&format!(
                            "{partition} was taken away: what was printed of it since the last commit may come again"
                        ));
                    }
                }
                Some(Ok(ConsumerEvent::Failed { partition, error })) => {
                    self.write()?;
                    self.failed = true;
                    // A topic goes with all its partitions, and that is one thing to say.
                    let is_gone = error.code() == Some(Code::UnknownTopic);
                    if !is_gone {
                        note(&format!("error: {partition}: {error}"));
                    } else if self.gone.insert(partition.topic.to_string()) {
                        note(&format!("error: {error}"));
                    }
                    self.reading.remove(&partition);
                    self.give_up(&partition)?;
                    // Without a group nothing more can come; in one, to lose records is to fail.
                    let is_over = match self.grouped {
                        true => error.code() == Some(Code::RecordsLost),
                        false => self.reading.is_empty() && self.consumer.opening() == 0,
                    };
                    if is_over {
                        break;
                    }
                }
                Some(Ok(ConsumerEvent::RecordsLost {
                    partition,
                    from,
                    to,
                })) => {
                    self.write()?;
                    self.failed |= self.verify;
                    note(&format!(
                        "{}: {partition}: {} records (offsets {from} to {}) were removed before they were read",
                        if self.verify { "error" } else { "warning" },
                        to - from,
                        to.saturating_sub(1),
                    ));
                    self.reached(&partition, to)?;
                    self.done(partition, to);
                }
                Some(Ok(ConsumerEvent::Assigned(partitions))) => {
                    for (partition, start) in partitions {
                        self.ledger.give(&partition);
                        self.reached(&partition, start)?;
                        self.reading.insert(partition);
                    }
                }
                // What filters dropped is done with as well.
                Some(Ok(
                    ConsumerEvent::CaughtUp {
                        partition, offset, ..
                    }
                    | ConsumerEvent::Passed { partition, offset },
                )) => {
                    self.reached(&partition, offset)?;
                    self.done(partition, offset);
                }
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
            if self.ledger.has_printed() && self.committed.elapsed() >= COMMIT_EVERY {
                self.write()?;
                self.commit().await?;
            }
        }
        Ok(())
    }

    /// Print a record, or keep it until it is known to be among the newest. Gives how many may follow.
    fn print(&mut self, record: &ConsumedRecord) -> Outcome<u64> {
        if let Some(last) = &mut self.last {
            let mut printed = Vec::new();
            self.rendering.write(record, &mut printed);
            last.push(record, printed);
            return Ok(self.left);
        }
        self.rendering.write(record, &mut self.out);
        if self.out.len() >= BLOCK_BYTES {
            self.write()?;
        }
        self.left -= 1;
        Ok(self.left)
    }

    /// Everything before `next` was read.
    fn reached(&mut self, partition: &TopicPartition, next: u64) -> Outcome {
        if let Some(last) = &mut self.last {
            last.ends.reached(partition, next);
        }
        self.release_last()?;
        if let Some(ends) = &mut self.ends
            && ends.reached(partition, next)
            && self.consumer.assignment().contains(partition)
        {
            self.consumer.pause(std::slice::from_ref(partition))?;
        }
        Ok(())
    }

    /// Nothing more comes of this partition.
    fn give_up(&mut self, partition: &TopicPartition) -> Outcome {
        if let Some(ends) = &mut self.ends {
            ends.give_up(partition);
        }
        if let Some(last) = &mut self.last {
            last.ends.give_up(partition);
        }
        self.release_last()
    }

    /// Print the newest records when all of them are here.
    fn release_last(&mut self) -> Outcome {
        match self.last.take() {
            Some(last) if last.ends.is_over() => self.print_last(last),
            last => {
                self.last = last;
                Ok(())
            }
        }
    }

    fn print_last(&mut self, last: Last) -> Outcome {
        for printed in last.into_printed() {
            if self.left == 0 {
                break;
            }
            self.left -= 1;
            self.out.extend_from_slice(&printed);
            if self.out.len() >= BLOCK_BYTES {
                self.write()?;
            }
        }
        Ok(())
    }

    /// What is still kept, and what is not written yet.
    fn finish(&mut self) -> Outcome {
        if let Some(last) = self.last.take() {
            self.print_last(last)?;
        }
        self.write()
    }

    /// With a group: everything before `next` was printed or is not to be.
    fn done(&mut self, partition: TopicPartition, next: u64) {
        if self.grouped {
            self.ledger.print(partition, next);
        }
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
        let due = self.ledger.due(&self.consumer.assignment());
        if due.is_empty() {
            return Ok(());
        }
        match self.consumer.commit_offsets(&due).await {
            Ok(failures) => {
                for failure in &failures {
                    note(&format!(
                        "{} was not committed: {}",
                        failure.partition, failure.error
                    ));
                }
                let failed = failures.iter().map(|failure| &failure.partition);
                self.ledger.committed(&due, failed);
                Ok(())
            }
            // Records repeat after a lost commit; that is the promise of a group.
            Err(error) if error.retriable() => {
                note(&format!("not committed: {error}"));
                self.ledger.not_committed(due);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}
