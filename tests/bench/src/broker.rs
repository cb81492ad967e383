//! The product, as its operators run it: `millstream serve` on a directory, asked over HTTP, and its own
//! `millstream bench` as the client that loads it.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::process::{Child, Finished, finish};
use crate::sys;

/// A broker must serve by then, whatever it has to recover.
const START_MAX: Duration = Duration::from_secs(60);
/// And must have gone by then.
const STOP_MAX: Duration = Duration::from_secs(30);
/// No client takes so long, whatever its load.
pub(crate) const CLIENT_MAX: Duration = Duration::from_secs(900);
/// How often it is asked for a figure that somebody waits for: it tells figures only when asked.
const ASK_EVERY: Duration = Duration::from_millis(10);
const ANSWER_MAX: u64 = 64 << 20;

/// How a broker is set up.
#[derive(Clone, Debug, Default)]
pub(crate) struct Setup {
    /// Shards of a new directory.
    pub(crate) shards: u32,
    /// Settings, as TOML. Nothing: as it comes.
    pub(crate) config: String,
}

impl Setup {
    /// One shard, and a path whose largest packet is so large.
    pub(crate) fn mtu(mtu: u16) -> Self {
        Self {
            shards: 1,
            config: format!("[quic]\nmtu_max = {mtu}\n"),
        }
    }

    pub(crate) fn shards(self, shards: u32) -> Self {
        Self { shards, ..self }
    }

    pub(crate) fn with(mut self, config: &str) -> Self {
        self.config.push_str(config);
        self
    }
}

/// A running broker. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Broker {
    child: Child,
    program: PathBuf,
    store: PathBuf,
    http: SocketAddr,
    /// From starting the process until it said that it is ready.
    pub(crate) ready_after: Duration,
}

impl Broker {
    /// Start one on `directory` and wait until it serves. Its data, settings and words go there.
    pub(crate) fn start(program: &Path, directory: &Path, setup: &Setup) -> Result<Self> {
        let config = directory.join("bench.toml");
        std::fs::write(&config, &setup.config)?;
        let (listen, http) = (free_udp()?, free_tcp()?);
        let store = directory.join("data");
        let mut command = Command::new(program);
        command.arg("serve").arg("--data").arg(&store);
        command.arg("--config").arg(&config);
        command.args(["--listen", &listen.to_string(), "--http", &http.to_string()]);
        command.args(["--shards", &setup.shards.to_string()]);
        // With this it says, in one line on its standard output, that it serves.
        command.args(["--output", "json"]);
        let words = directory.join("broker.log");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&words)?);
        let began = Instant::now();
        let child = Child::spawn(&mut command)?;
        let mut broker = Self {
            child,
            program: program.to_owned(),
            store,
            http,
            ready_after: Duration::ZERO,
        };
        broker.wait_until_ready().with_context(|| {
            let said = std::fs::read_to_string(&words).unwrap_or_default();
            format!("the broker did not start; it said:\n{said}")
        })?;
        broker.ready_after = began.elapsed();
        Ok(broker)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn process(&self) -> &Child {
        &self.child
    }

    /// Where clients find out how to reach it.
    pub(crate) fn context(&self) -> PathBuf {
        self.store.join("context.toml")
    }

    /// Ask it to stop, as an operator does, and wait until it has.
    pub(crate) fn stop(self) -> Result<()> {
        sys::terminate(self.pid())?;
        let status = self.child.wait(STOP_MAX)?;
        ensure!(status.success(), "the broker stopped with {status}");
        Ok(())
    }

    /// `kill -9`.
    pub(crate) fn kill(self) {
        drop(self.child);
    }

    /// Make a topic.
    pub(crate) fn make_topic(&self, name: &str, partitions: u32) -> Result<()> {
        let partitions = partitions.to_string();
        self.run(&["topic", "create", name, "--partitions", &partitions])?;
        Ok(())
    }

    /// Run a command of the product against this broker.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<Finished> {
        self.run_for(arguments, CLIENT_MAX)
    }

    fn run_for(&self, arguments: &[&str], longest: Duration) -> Result<Finished> {
        finish(&mut self.command(arguments), longest)
            .with_context(|| format!("`millstream {}`", arguments.join(" ")))
    }

    /// A command of the product against this broker, to be started.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .env("MILLSTREAM_CONTEXT", self.context());
        command
    }

    /// Run `millstream bench …`: its report, and the CPU seconds it used.
    pub(crate) fn bench(&self, arguments: &[&str]) -> Result<(Report, f64)> {
        self.bench_for(arguments, CLIENT_MAX)
    }

    /// The same, at most so long: see [`Overdue`](crate::process::Overdue).
    pub(crate) fn bench_for(&self, arguments: &[&str], longest: Duration) -> Result<(Report, f64)> {
        let mut all = vec!["bench"];
        all.extend(arguments);
        all.extend(["-o", "json"]);
        let finished = self.run_for(&all, longest)?;
        Ok((Report::parse(&finished.stdout)?, finished.cpu_seconds))
    }

    /// A figure of `/metrics`, summed over its labels; 0 when it is not there.
    pub(crate) fn metric(&self, name: &str) -> Result<f64> {
        let (status, text) = self.get("/metrics")?;
        ensure!(status == 200, "/metrics answers {status}");
        sum_of(&text, name)
    }

    /// Ask for such a figure until it is as wanted, at most so long, and give it. An error as soon as
    /// `needed` ends: the process without which it would never be so.
    pub(crate) fn wait_for(
        &self,
        name: &str,
        longest: Duration,
        needed: &Child,
        is_wanted: impl Fn(f64) -> bool,
    ) -> Result<f64> {
        let began = Instant::now();
        loop {
            let now = self.metric(name)?;
            if is_wanted(now) {
                return Ok(now);
            }
            ensure!(
                began.elapsed() < longest,
                "{name} is {now}, after {} s",
                longest.as_secs()
            );
            needed.outlives(ASK_EVERY)?;
        }
    }

    fn get(&self, path: &str) -> Result<(u16, String)> {
        let mut stream = TcpStream::connect(self.http)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let http = self.http;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.take(ANSWER_MAX).read_to_string(&mut answer)?;
        let status = answer.split_whitespace().nth(1);
        let status = status.and_then(|word| word.parse().ok());
        Ok((status.context("not an answer of HTTP")?, answer))
    }

    fn wait_until_ready(&self) -> Result<()> {
        let serving: Value = serde_json::from_str(&self.child.first_line(START_MAX)?)?;
        ensure!(
            serving["http"] == self.http.to_string(),
            "it serves elsewhere: {serving}"
        );
        let (status, answer) = self.get("/readyz")?;
        ensure!(
            status == 200,
            "it says that it serves, but http://{}/readyz answers {answer}",
            self.http
        );
        Ok(())
    }
}

/// What `millstream bench` prints with `-o json`.
#[derive(Debug)]
pub(crate) struct Report(Value);

impl Report {
    fn parse(json: &[u8]) -> Result<Self> {
        serde_json::from_slice(json)
            .map(Self)
            .context("the product's report is not JSON")
    }

    pub(crate) fn number(&self, name: &str) -> Result<f64> {
        self.optional(name)
            .with_context(|| format!("the product's report has no number `{name}`: {}", self.0))
    }

    pub(crate) fn optional(&self, name: &str) -> Option<f64> {
        self.0.get(name).and_then(Value::as_f64)
    }
}

/// The sum over a metric's samples in Prometheus text: `name{labels} value`.
fn sum_of(text: &str, name: &str) -> Result<f64> {
    let mut sum = 0.0;
    for line in text.lines() {
        let Some(rest) = line.strip_prefix(name) else {
            continue;
        };
        if !rest.starts_with(['{', ' ']) {
            continue;
        }
        let value = rest
            .rsplit(' ')
            .next()
            .and_then(|value| value.parse::<f64>().ok());
        sum += value.with_context(|| format!("an unreadable sample: {line}"))?;
    }
    Ok(sum)
}

fn free_udp() -> Result<SocketAddr> {
    Ok(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

fn free_tcp() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_add_up() {
        let text =
            "# HELP a_total What\na_total{shard=\"0\"} 2\na_total{shard=\"1\"} 3.5\na_total_x 9\n";
        assert_eq!(sum_of(text, "a_total").expect("it is read"), 5.5);
        assert_eq!(sum_of(text, "b_total").expect("it is read"), 0.0);
        assert!(sum_of("a_total many", "a_total").is_err());
    }

    #[test]
    fn a_report_is_read() {
        let report = Report::parse(br#"{"seconds": 1.5, "bench": "produce"}"#).expect("it is JSON");
        assert_eq!(report.number("seconds").expect("it is there"), 1.5);
        assert!(report.number("bench").is_err());
        assert_eq!(report.optional("p50_ms"), None);
        assert!(Report::parse(b"failed").is_err());
    }
}
