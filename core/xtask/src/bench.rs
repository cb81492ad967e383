//! `cargo xtask bench`: builds the product and the ceiling programs for release, then measures.
//!
//! Standard output is the result's alone, so that `-o json > FILE` is JSON.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::run;

/// With these nothing is measured, and the product is not needed.
const SHOWS_ONLY: &[&str] = &["--list", "--from", "--help", "-h", "--version"];

pub(crate) fn run(rest: &[&str]) -> Result<()> {
    let mut build = run::command("cargo build --release -p millstream-bench");
    let shows_only = rest
        .iter()
        .any(|word| SHOWS_ONLY.contains(word) || word.starts_with("--from="));
    if !shows_only {
        build.args(["-p", "millstream-cli"]);
    }
    finish(&mut build, "the build of the bench")?;
    let program = run::target_dir().join("release/millstream-bench");
    finish(
        Command::new(program).args(rest).current_dir(run::root()),
        "the bench",
    )
}

/// Run it, saying nothing on standard output.
fn finish(command: &mut Command, what: &str) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {what}"))?;
    if !status.success() {
        bail!("{what} failed ({status})");
    }
    Ok(())
}
