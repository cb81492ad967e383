//! `cargo xtask bench`: builds the product and the ceiling programs for release, then measures.

use anyhow::Result;

use crate::run::{self, command};

pub(crate) fn run(rest: &[&str]) -> Result<()> {
    run::run(&mut command(
        "cargo build --release -p millstream-cli -p millstream-bench",
    ))?;
    let program = run::target_dir().join("release/millstream-bench");
    run::run(
        std::process::Command::new(program)
            .args(rest)
            .current_dir(run::root()),
    )
}
