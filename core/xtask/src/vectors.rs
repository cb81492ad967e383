//! `cargo xtask vectors`: the bytes every language must agree on, against encoders that are not ours.

use std::process::Command;

use anyhow::Result;

use crate::run::{self, command};

pub(crate) fn run(write: bool) -> Result<()> {
    let python = run::python("vectors", "clients/vectors/batch/requirements.txt")?;
    let script = |name: &str| {
        let mut c = Command::new(&python);
        c.arg(format!("clients/vectors/batch/{name}"))
            .current_dir(run::root());
        c
    };
    if write {
        run::run(&mut script("make_vectors.py"))?;
        run::run(&mut command(
            "cargo run --quiet -p millstream-batch --example write_batch_vectors",
        ))?;
        run::run(&mut command(
            "cargo run --quiet -p millstream-protocol --example write_frame_vectors",
        ))?;
    }
    // Their decoder on our bytes. Our decoders on theirs run with the crates' own tests.
    run::run(&mut script("check_vectors.py"))
}
