//! `cargo xtask test`: every test of the project, in one command.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::run::{self, command};

type Stage = (&'static str, fn() -> Result<()>);

const STAGES: &[Stage] = &[
    ("fmt", fmt),
    ("tidy", crate::tidy::run),
    ("clippy", clippy),
    ("workspace", workspace),
    ("fuzz", fuzz),
    ("plugins", plugins),
    ("vectors", || crate::vectors::run(false)),
    ("counts", || crate::counts::run(&[])),
];

/// Run the named stages, or all of them; go on after a failed one, so that one run tells all.
pub(crate) fn run(named: &[&str]) -> Result<()> {
    if let Some(unknown) = named
        .iter()
        .find(|n| !STAGES.iter().any(|(name, _)| name == *n))
    {
        let names: Vec<_> = STAGES.iter().map(|(name, _)| *name).collect();
        bail!("no stage `{unknown}`; there are: {}", names.join(" "));
    }
    run::debian("cc", &["build-essential"])?;
    let (mut passed, mut failed) = (Vec::new(), Vec::new());
    for (name, stage) in STAGES
        .iter()
        .filter(|(name, _)| named.is_empty() || named.contains(name))
    {
        println!("\n=== {name}");
        let begun = Instant::now();
        match stage() {
            Ok(()) => {
                println!("=== {name}: passed in {} s", begun.elapsed().as_secs());
                passed.push(*name);
            }
            Err(error) => {
                println!(
                    "=== {name}: FAILED after {} s: {error:#}",
                    begun.elapsed().as_secs()
                );
                failed.push(*name);
            }
        }
    }
    println!(
        "\nstages: {}{}",
        passed.join(" "),
        failed
            .iter()
            .map(|n| format!(" {n}(FAILED)"))
            .collect::<String>()
    );
    println!("{} passed, {} failed", passed.len(), failed.len());
    if failed.is_empty() {
        Ok(())
    } else {
        bail!("failed: {}", failed.join(" "))
    }
}

fn fmt() -> Result<()> {
    run::run(&mut command("cargo fmt --all --check"))?;
    run::run(&mut command(
        "cargo fmt --all --check --manifest-path plugins/Cargo.toml",
    ))?;
    run::run(&mut command(
        "cargo fmt --all --check --manifest-path tests/fuzz/Cargo.toml",
    ))
}

fn clippy() -> Result<()> {
    run::run(&mut command(
        "cargo clippy --quiet --locked --workspace --all-targets -- -D warnings",
    ))
}

fn workspace() -> Result<()> {
    // The end-to-end and crash tests start the real binary: build it first, so that they find it.
    run::run(&mut command("cargo build --locked -p millstream-cli"))?;
    let binary = run::target_dir().join("debug/millstream");
    run::run(
        command("cargo test --locked --workspace --no-fail-fast").env("MILLSTREAM_BIN", binary),
    )
}

fn fuzz() -> Result<()> {
    let target = run::target_dir().join("fuzz");
    run::run(
        command("cargo test --locked --manifest-path tests/fuzz/Cargo.toml")
            .env("CARGO_TARGET_DIR", target),
    )
}

fn plugins() -> Result<()> {
    let target = run::target_dir().join("plugins");
    run::run(
        command("cargo test --locked --workspace --manifest-path plugins/Cargo.toml")
            .env("CARGO_TARGET_DIR", target),
    )?;
    crate::plugins::run(true)
}
