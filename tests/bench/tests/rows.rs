//! The program says which rows there are, and names what it needs.

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
        "produce-2-shards",
        "consume-tail",
        "consume-cold",
        "process",
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
