//! `cargo xtask soak`: the simulator on random seeds for as long as asked.

use anyhow::{Context as _, Result};

use crate::run::{self, command};

pub(crate) fn run(minutes: &str) -> Result<()> {
    let minutes: u32 = minutes
        .parse()
        .with_context(|| format!("`{minutes}` is not a number of minutes"))?;
    run_simulator(&["--soak", &minutes.to_string()])
}

fn run_simulator(arguments: &[&str]) -> Result<()> {
    run::run(command("cargo run --quiet --release -p millstream-sim --").args(arguments))
}
