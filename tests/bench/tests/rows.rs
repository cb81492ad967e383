//! The program says which rows there are, names what it needs, and its ceilings run.

use std::process::{Command, Output};

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_millstream-bench"))
        .args(arguments)
        .output()
        .expect("it runs")
}

#[test]
fn every_row_of_the_design_is_listed() {
    let output = bench(&["--list"]);
    let text = String::from_utf8_lossy(&output.stdout);
    let listed: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    for row in [
        "produce",
        "produce-6500",
        "produce-depth-1",
        "small-batches",
        "single-record",
        "client-batching",
        "produce-kept",
        "produce-6500-kept",
        "produce-2-shards",
        "produce-2-shards-kept",
        "produce-2-shards-mixed",
        "produce-2-shards-mixed-kept",
        "consume-tail",
        "consume-cold",
        "partitions-10000",
        "restart-10gb",
        "filter",
        "process",
        "memory",
        "connections-5000",
        "subscriptions-1000",
        "idle-cpu",
    ] {
        assert!(listed.contains(&row), "{row} is not in:\n{text}");
    }
}

#[test]
fn an_unknown_row_is_named() {
    let output = bench(&["produce", "produse"]);
    assert!(!output.status.success());
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(words.contains("no row `produse`"), "{words}");
}

#[test]
fn the_ceilings_measure() {
    for which in ["produce", "ping", "consume"] {
        let output = bench(&["ceiling", which, "--records", "6400", "--in-flight", "4"]);
        assert!(output.status.success(), "{which}: {output:?}");
        let run: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
        let number = |name: &str| {
            let value = run[name].as_f64();
            value.unwrap_or_else(|| panic!("{which}: no {name} in {run}"))
        };
        let ratio = number("mb_per_s") / number("records_per_s");
        assert!(
            (ratio - 1024.0 / 1e6).abs() < 1e-9,
            "records are 1 KiB: {run}"
        );
        let batches = number("records_per_s") / number("batches_per_s");
        assert!((batches - 64.0).abs() < 1e-6, "64 records a batch: {run}");
        if which != "consume" {
            assert!(
                number("p50_ms") > 0.0 && number("p50_ms") <= number("p99_ms"),
                "{run}"
            );
        }
        assert!(number("cpu_s_per_gb") >= 0.0, "{run}");
    }
}
