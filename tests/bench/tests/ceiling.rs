//! The ceiling program runs, and its figures hang together.

use std::process::Command;

#[test]
fn the_ceiling_measures() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millstream-bench"));
    command.args([
        "ceiling-produce",
        "--records",
        "6400",
        "--in-flight",
        "4",
        "-o",
        "json",
    ]);
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{output:?}");
    let run: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it prints JSON");
    let number = |name: &str| {
        run[name]
            .as_f64()
            .unwrap_or_else(|| panic!("no {name} in {run}"))
    };
    let ratio = number("mb_per_s") / number("records_per_s");
    assert!(
        (ratio - 1024.0 / 1e6).abs() < 1e-9,
        "records are 1 KiB: {run}"
    );
    assert!(
        number("p50_ms") > 0.0 && number("p50_ms") <= number("p99_ms"),
        "{run}"
    );
    assert!(number("cpu_s_per_gb") >= 0.0, "{run}");
}
