//! What was measured, in figures that can be compared.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use super::Load;
use crate::exit::{Failure, Outcome};
use crate::output::{Output, grouped};

/// Latencies are kept in microseconds up to ten minutes, to three digits.
const MICROS_MAX: u64 = 600_000_000;

/// Latencies of one or more clients.
#[derive(Debug)]
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    pub(crate) fn new() -> Self {
        Self(
            Histogram::new_with_bounds(1, MICROS_MAX, 3).expect("the bounds are constant and good"),
        )
    }

    pub(crate) fn add(&mut self, latency: Duration) {
        self.0.saturating_record(
            u64::try_from(latency.as_micros())
                .unwrap_or(MICROS_MAX)
                .max(1),
        );
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        // Both have the same bounds.
        let _ = self.0.add(&other.0);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In milliseconds.
    fn quantile_ms(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1_000.0
    }
}

/// One measurement.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) what: &'static str,
    pub(crate) records: u64,
    pub(crate) bytes: u64,
    pub(crate) elapsed: Duration,
    /// By name: `ack`, `e2e`. The first one's quantiles also stand at the top of the JSON.
    pub(crate) latencies: Vec<(&'static str, Latencies)>,
    pub(crate) broker_cpu_s: Option<f64>,
    pub(crate) load: Load,
    pub(crate) extra: Vec<(&'static str, Value)>,
}

impl Report {
    pub(crate) fn show(&self, output: Output) -> Outcome {
        let seconds = self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
        let records_per_s = self.records as f64 / seconds;
        let mb_per_s = self.bytes as f64 / seconds / 1e6;
        let mut json = Map::new();
        let mut put = |name: &str, value: Value| json.insert(name.to_owned(), value);
        put("bench", self.what.into());
        put("records", self.records.into());
        put("bytes", self.bytes.into());
        put("seconds", seconds.into());
        put("records_per_s", records_per_s.into());
        put("mb_per_s", mb_per_s.into());
        let mut text = format!(
            "{} records of {} bytes in {seconds:.3} s: {} records/s, {mb_per_s:.1} MB/s\n",
            grouped(self.records),
            self.load.size,
            grouped(records_per_s as u64),
        );
        for (at, (name, latencies)) in self
            .latencies
            .iter()
            .enumerate()
            .filter(|(_, (_, l))| !l.is_empty())
        {
            let quantiles = [
                ("p50", 0.5),
                ("p90", 0.9),
                ("p99", 0.99),
                ("p999", 0.999),
                ("max", 1.0),
            ];
            text.push_str(&format!("{name} latency, ms:"));
            for (label, quantile) in quantiles {
                let value = latencies.quantile_ms(quantile);
                text.push_str(&format!("  {label} {value:.3}"));
                if at == 0 {
                    put(&format!("{label}_ms"), value.into());
                }
                put(&format!("{name}_{label}_ms"), value.into());
            }
            text.push('\n');
        }
        if let Some(cpu) = self.broker_cpu_s {
            let per_million = cpu / (self.records as f64 / 1e6);
            let per_gb = cpu / (self.bytes as f64 / 1e9);
            put("broker_cpu_s", cpu.into());
            put("broker_cpu_s_per_million_records", per_million.into());
            put("broker_cpu_s_per_gb", per_gb.into());
            text.push_str(&format!(
                "broker CPU: {cpu:.2} s, {per_million:.3} s a million records, {per_gb:.3} s a GB\n"
            ));
        }
        for (name, value) in &self.extra {
            text.push_str(&format!("{}: {value}\n", name.replace('_', " ")));
            put(name, value.clone());
        }
        let load = &self.load;
        put(
            "load",
            json!({
                "size": load.size,
                "batch": load.batch,
                "batch_bytes": load.batch_bytes,
                "producers": load.producers,
                "partitions": load.partitions,
                "own_partition": load.own_partition,
                "in_flight": load.in_flight,
                "compression": format!("{:?}", load.compression).to_lowercase(),
                "keys": load.keys,
            }),
        );
        output.show(text.trim_end(), &Value::Object(json))
    }
}

/// CPU time that a process has used so far, in seconds: user and system, all threads.
pub(crate) fn cpu_seconds(pid: u32) -> Outcome<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .map_err(|error| Failure::failed(format!("process {pid}: {error}")))?;
    let ticks = parse_stat(&stat)
        .ok_or_else(|| Failure::failed(format!("/proc/{pid}/stat cannot be read")))?;
    // USER_HZ is 100 on every Linux that there is.
    Ok(ticks as f64 / 100.0)
}

/// utime + stime: fields 14 and 15 of proc_pid_stat(5). The name in parentheses may hold anything.
fn parse_stat(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_time_of_a_process_with_an_odd_name() {
        let stat = "42 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 250 150 0 0 20 0 1 0 0";
        assert_eq!(parse_stat(stat), Some(400));
        assert_eq!(parse_stat("nonsense"), None);
    }

    #[test]
    fn quantiles_are_in_milliseconds() {
        let mut latencies = Latencies::new();
        for ms in 1..=100 {
            latencies.add(Duration::from_millis(ms));
        }
        assert!((latencies.quantile_ms(0.5) - 50.0).abs() < 0.1);
        assert!((latencies.quantile_ms(1.0) - 100.0).abs() < 0.2);
    }
}
