//! The row `produce`: the ceiling and the product in turns.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde_json::Value;

use crate::process::{Child, DataDir};
use crate::report::{self, Pair, Run};
use crate::{Load, ceiling};

/// A broker on an empty directory must serve by then.
const START_MAX: Duration = Duration::from_secs(20);

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    load: Load,
    /// Interleaved pairs of ceiling and product.
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    #[arg(long, default_value_t = 1)]
    shards: u32,
    /// The product's binary (default: beside this program).
    #[arg(long)]
    millstream: Option<PathBuf>,
    /// Where both write: on the disk that is to be measured (default: temporary directories).
    #[arg(long)]
    data: Option<PathBuf>,
    /// Machine-readable output.
    #[arg(short, long, value_enum, default_value_t)]
    output: report::Output,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(options.pairs > 0, "--pairs 0 measures nothing");
    let program = match &options.millstream {
        Some(program) => program.clone(),
        None => std::env::current_exe()?.with_file_name("millstream"),
    };
    ensure!(
        program.exists(),
        "{} is not there: build it with `cargo build --release -p millstream-cli`, or name it with --millstream",
        program.display()
    );
    let parent = options.data.as_deref();
    let ceiling_dir = DataDir::new(parent.map(|p| p.join("ceiling")).as_deref())?;
    let mut pairs = Vec::new();
    for pair in 1..=options.pairs {
        let ceiling = ceiling::measure(&options.load, ceiling_dir.path())?;
        let dir = parent.map(|p| p.join(format!("product-{pair}")));
        let product_dir = DataDir::new(dir.as_deref())?;
        let product = measure(options, &program, product_dir.path())?;
        eprintln!(
            "pair {pair} of {}: ceiling {:.0} MB/s, product {:.0} MB/s",
            options.pairs, ceiling.mb_per_s, product.mb_per_s
        );
        pairs.push(Pair { ceiling, product });
    }
    report::pairs(&options.load, &pairs, options.output)
}

/// One broker on an empty directory, one run of its own bench client.
fn measure(options: &Options, program: &Path, data: &Path) -> Result<Run> {
    let load = &options.load;
    std::fs::create_dir_all(data)?;
    let config = data.join("bench.toml");
    std::fs::write(&config, format!("[quic]\nmtu_max = {}\n", load.mtu))?;
    let (listen, http) = (free_udp()?, free_tcp()?);
    let store = data.join("data");
    let mut command = Command::new(program);
    command
        .arg("serve")
        .arg("--data")
        .arg(&store)
        .arg("--config")
        .arg(&config);
    command.args(["--listen", &listen.to_string(), "--http", &http.to_string()]);
    command.args(["--shards", &options.shards.to_string()]);
    let log = data.join("broker.log");
    command
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log)?);
    let mut broker = Child::spawn(&mut command)?;
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    wait_until_ready(&mut broker, http)
        .with_context(|| format!("the broker did not start; it said:\n{}", said()))?;

    let mut command = Command::new(program);
    command.args([
        "bench",
        "produce",
        "--producers",
        "1",
        "--partitions",
        "1",
        "-o",
        "json",
    ]);
    command.args(["--records", &(load.batches() * load.batch).to_string()]);
    command.args([
        "--size",
        &load.size.to_string(),
        "--batch",
        &load.batch.to_string(),
    ]);
    command.args(["--in-flight", &load.in_flight.to_string()]);
    command.args(["--broker-pid", &broker.id().to_string()]);
    command.env("MILLSTREAM_CONTEXT", store.join("context.toml"));
    let output = command.stderr(Stdio::inherit()).output()?;
    ensure!(
        output.status.success(),
        "`millstream bench produce`: {}",
        output.status
    );
    parse(load, &output.stdout)
}

/// The product's own report. It takes the broker's CPU time as the ceiling's is taken.
fn parse(load: &Load, json: &[u8]) -> Result<Run> {
    let report: Value = serde_json::from_slice(json).context("the product's report is not JSON")?;
    let number = |name: &str| {
        let value = report.get(name).and_then(Value::as_f64);
        value.with_context(|| format!("the product's report has no number `{name}`: {report}"))
    };
    let records_per_s = number("records_per_s")?;
    Ok(Run {
        records_per_s,
        mb_per_s: records_per_s * load.size as f64 / 1e6,
        p50_ms: number("p50_ms")?,
        p99_ms: number("p99_ms")?,
        cpu_s_per_gb: number("broker_cpu_s_per_gb")?,
    })
}

fn free_udp() -> Result<SocketAddr> {
    Ok(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

fn free_tcp() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

fn wait_until_ready(broker: &mut Child, http: SocketAddr) -> Result<()> {
    let began = Instant::now();
    while began.elapsed() < START_MAX {
        broker.check_alive()?;
        if is_ready(http).unwrap_or(false) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!(
        "http://{http}/readyz did not answer 200 within {} s",
        START_MAX.as_secs()
    )
}

fn is_ready(http: SocketAddr) -> Result<bool> {
    let mut stream = TcpStream::connect(http)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    write!(
        stream,
        "GET /readyz HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.take(1 << 16).read_to_string(&mut answer)?;
    Ok(answer.split_whitespace().nth(1) == Some("200"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        load: Load,
    }

    #[test]
    fn a_report_is_read() {
        let load = Only::parse_from(["x", "--records", "1000000", "--size", "1000"]).load;
        let json = br#"{"records_per_s": 400000.5, "mb_per_s": 1, "p50_ms": 1.5, "p99_ms": 4,
            "broker_cpu_s_per_gb": 2}"#;
        let run = parse(&load, json).expect("it is read");
        assert!((run.mb_per_s - 400.000_5).abs() < 1e-6);
        assert!((run.cpu_s_per_gb - 2.0).abs() < 1e-3);
        assert!(parse(&load, b"{}").is_err());
    }
}
