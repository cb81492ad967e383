//! `demo`: real input, through a bundled component, to a consumer. What is printed was durable first.
//!
//! Input is stdin when it is a pipe or a file, else what this machine's processes use, read from /proc
//! once a second. The component is `json-filter`, deployed on the topic at produce.

use std::os::unix::fs::FileTypeExt;
use std::time::Duration;

use bytes::Bytes;
use millstream_broker::bundled;
use millstream_client::{Client, ConsumerEvent, FilterSpec, Producer, Record, StartAt};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::Global;
use crate::connect::{block_on, client};
use crate::exit::{Failure, Outcome};
use crate::format::write_json;
use crate::interrupt::Interrupt;
use crate::output::{line, note};

const COMPONENT: &str = "json-filter";
/// The topic that is the demo's own.
const TOPIC: &str = "demo";
/// Keeps the large processes: enough to see that most are dropped.
const DEFAULT_EXPR: &str = "rss_kib >= 20000";
const EVERY: Duration = Duration::from_secs(1);
/// How long stdin may say nothing before the demo takes other input.
const STDIN_SILENT: Duration = Duration::from_secs(3);
/// Linux's page size on the machines this runs on; only for the demo's figures.
const PAGE_KIB: u64 = 4;

/// What is kept.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Filter {
    /// Expression that a demo's records must satisfy, for example: name == 'bash' || rss_kib > 50000.
    #[arg(long, default_value = DEFAULT_EXPR, value_name = "EXPRESSION")]
    pub(crate) expr: String,
}

/// Send real input through a bundled component and print what comes out
///
/// Input is stdin when it is a pipe or a file (one JSON object a line), else what this machine's processes
/// use. The bundled json-filter drops what does not satisfy the expression before it is stored.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  millstream demo
  millstream demo --expr \"name contains 'ssh'\" --count 5
  journalctl -f -o json | millstream demo --topic journal --expr \"PRIORITY == '3'\"")]
pub(crate) struct Arguments {
    #[command(flatten)]
    filter: Filter,
    /// Topic to use; made if it is not there. Its json-filter is set by the demo, and stays: a topic that has
    /// another one is refused.
    #[arg(long, default_value = TOPIC)]
    topic: String,
    /// End after so many records came out.
    #[arg(short = 'n', long, value_name = "N")]
    count: Option<u64>,
}

pub(crate) fn run(arguments: &Arguments, global: &Global) -> Outcome {
    block_on(async {
        let mut interrupt = Interrupt::listen()?;
        let work = demo(arguments, global);
        tokio::select! {
            outcome = work => outcome,
            () = interrupt.wait() => Ok(()),
        }
    })
}

/// The demo in a broker's own process; it ends with it.
pub(crate) fn run_beside(filter: &Filter, global: &Global) -> Outcome {
    let arguments = Arguments {
        filter: filter.clone(),
        topic: TOPIC.into(),
        count: None,
    };
    block_on(demo(&arguments, global))
}

async fn demo(arguments: &Arguments, global: &Global) -> Outcome {
    let client = client(global).await?;
    prepare(&client, arguments).await?;
    let mut consumer = client
        .consumer()
        .topic(&arguments.topic)
        .from(StartAt::End)
        .build()
        .await?;
    // Nothing is sent before the consumer stands at the end.
    while let Some(event) = consumer.next_event().await {
        if matches!(
            event?,
            ConsumerEvent::Assigned(_) | ConsumerEvent::CaughtUp { .. }
        ) {
            break;
        }
    }
    let producer = client
        .producer()
        .linger(Duration::from_millis(20))
        .build()
        .await?;
    let from_stdin = has_input();
    if !global.output.is_json() {
        let input = if from_stdin {
            "lines from stdin"
        } else {
            "this machine's processes, once a second"
        };
        note(&format!(
            "{input} → {COMPONENT} ({}) → topic {} → here; Ctrl-C ends it",
            arguments.filter.expr, arguments.topic
        ));
    }
    let mut feeding = Box::pin(feed(&producer, &arguments.topic, from_stdin));
    let mut left = arguments.count.unwrap_or(u64::MAX);
    let mut fed = false;
    while left > 0 {
        tokio::select! {
            outcome = &mut feeding, if !fed => {
                outcome?;
                fed = true;
            }
            record = consumer.next() => {
                let Some(record) = record else { break };
                let mut out = Vec::new();
                let record = record?;
                if global.output.is_json() {
                    write_json(&record, &mut out);
                } else {
                    out.extend_from_slice(format!("{}/{}  ", record.topic, record.offset).as_bytes());
                    out.extend_from_slice(record.value.as_deref().unwrap_or_default());
                }
                line(&String::from_utf8_lossy(&out))?;
                left -= 1;
            }
            // The end of stdin: what it gave is through when nothing more comes.
            () = tokio::time::sleep(EVERY), if fed => break,
        }
    }
    drop(feeding);
    let report = producer.close().await?;
    consumer.close().await;
    note(&format!("{} records went in", report.acknowledged));
    client.close().await;
    Ok(())
}

/// Whether stdin is a pipe, a file or a socket: something that was given as input.
fn has_input() -> bool {
    std::fs::metadata("/dev/stdin").is_ok_and(|stdin| {
        let kind = stdin.file_type();
        kind.is_file() || kind.is_fifo() || kind.is_socket()
    })
}

/// Whether a deployment on the same topic may give way to the demo's: it is the demo's, of an earlier run.
/// On the demo's own topic it may have had another expression.
fn gives_way(there: &FilterSpec, demo: &FilterSpec) -> bool {
    let is_ours = |(name, value): &(String, String)| {
        let of_demo = demo.parameters.iter().find(|(key, _)| key == name);
        of_demo.is_some_and(|(_, ours)| ours == value || (name == "expr" && demo.topic == TOPIC))
    };
    !there.values_hidden
        && there.stage == demo.stage
        && there.parameters.len() == demo.parameters.len()
        && there.parameters.iter().all(is_ours)
}

async fn prepare(client: &Client, arguments: &Arguments) -> Outcome {
    let admin = client.admin();
    let component =
        bundled(COMPONENT).ok_or_else(|| Failure::failed("json-filter is not bundled"))?;
    let filter = FilterSpec {
        name: COMPONENT.into(),
        topic: arguments.topic.clone(),
        stage: "produce".into(),
        parameters: vec![
            ("expr".into(), arguments.filter.expr.clone()),
            // Lines that are not JSON are dropped, not refused with their whole batch.
            ("on_invalid".into(), "drop".into()),
        ],
        ..FilterSpec::default()
    };
    let deployed = admin.list_filters().await?;
    let there = deployed
        .iter()
        .find(|there| there.topic == filter.topic && there.name == filter.name);
    if there.is_some_and(|there| !gives_way(there, &filter)) {
        let topic = &filter.topic;
        return Err(Failure::failed(format!(
            "topic {topic} has a {COMPONENT} that is not this demo's, and it would be replaced: name another topic \
             with --topic, or take it off with `millstream plugin remove {COMPONENT} --topic {topic}`"
        )));
    }
    admin.create_topic(&arguments.topic, 1, &[], true).await?;
    admin
        .deploy_filter(&filter, Bytes::from_static(component.wasm))
        .await?;
    Ok(())
}

async fn feed(producer: &Producer, topic: &str, from_stdin: bool) -> Outcome {
    if from_stdin {
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        // Under a supervisor stdin is often a pipe on which nothing ever comes.
        let first = tokio::time::timeout(STDIN_SILENT, lines.next_line()).await;
        if let Ok(Ok(Some(first))) = first {
            let mut next = Some(first);
            while let Some(text) = next {
                // Its outcome is in the producer's report.
                drop(producer.enqueue(topic, Record::new(text)).await?);
                next = lines.next_line().await?;
            }
            producer.flush().await?;
            return Ok(());
        }
        note("nothing comes on stdin: sending this machine's processes instead, once a second");
    }
    let mut tick = tokio::time::interval(EVERY);
    loop {
        tick.tick().await;
        for (name, value) in processes()? {
            drop(
                producer
                    .enqueue(topic, Record::new(value).key(name))
                    .await?,
            );
        }
    }
}

/// Every process's name, and what it uses as JSON.
fn processes() -> Outcome<Vec<(String, String)>> {
    let time = crate::values::time(jiff::Timestamp::now().as_millisecond());
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        // A process may end while it is looked at.
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        if let Some((name, value)) = process(pid, &stat, &time) {
            all.push((name, value));
        }
    }
    Ok(all)
}

/// proc_pid_stat(5): the name stands in parentheses and may hold anything.
fn process(pid: u32, stat: &str, time: &str) -> Option<(String, String)> {
    let (before, after) = stat.rsplit_once(')')?;
    let (_, name) = before.split_once('(')?;
    let fields: Vec<&str> = after.split_ascii_whitespace().collect();
    let number = |field: usize| {
        fields
            .get(field - 3)
            .and_then(|text| text.parse::<u64>().ok())
    };
    let value = json!({
        "time": time,
        "pid": pid,
        "name": name,
        "state": fields.first()?,
        "threads": number(20)?,
        "cpu_ms": (number(14)? + number(15)?) * 10,
        "rss_kib": number(24)? * PAGE_KIB,
    });
    Some((name.to_owned(), value.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_filter_of_the_demo_gives_way() {
        let of = |topic: &str, parameters: &[(&str, &str)]| FilterSpec {
            name: COMPONENT.into(),
            topic: topic.into(),
            stage: "produce".into(),
            parameters: parameters
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            ..FilterSpec::default()
        };
        let demo = [("expr", "a"), ("on_invalid", "drop")];
        let other = [("expr", "b"), ("on_invalid", "drop")];
        assert!(gives_way(&of("t", &demo), &of("t", &demo)));
        assert!(!gives_way(&of("t", &other), &of("t", &demo)));
        assert!(gives_way(&of(TOPIC, &other), &of(TOPIC, &demo)));
        assert!(!gives_way(&of(TOPIC, &[("expr", "a")]), &of(TOPIC, &demo)));
        let invalid = [("expr", "a"), ("on_invalid", "reject")];
        assert!(!gives_way(&of(TOPIC, &invalid), &of(TOPIC, &demo)));
        let hidden = FilterSpec {
            values_hidden: true,
            ..of("t", &demo)
        };
        assert!(!gives_way(&hidden, &of("t", &demo)));
    }

    #[test]
    fn a_process_is_read() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 3 0 99 1000 2500 18446744073709551615";
        let (name, value) = process(7, stat, "now").unwrap();
        assert_eq!(name, "a) b");
        let value: serde_json::Value = serde_json::from_str(&value).unwrap();
        assert_eq!(
            (&value["cpu_ms"], &value["rss_kib"], &value["threads"]),
            (&json!(2000), &json!(10_000), &json!(3))
        );
    }
}
