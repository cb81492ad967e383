//! `cargo xtask size`: the binary that is installed stays small.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::run::{self, command, target_dir};

/// What an installation may take, in bytes.
const BINARY_BYTES_MAX: u64 = 35_000_000;

/// Builds what is installed, or looks at the given file; fails when it is too large.
pub(crate) fn run(file: Option<&Path>) -> Result<()> {
    let file = match file {
        Some(file) => file.to_owned(),
        None => {
            run::run(&mut command(
                "cargo build --release --locked -p millstream-cli",
            ))?;
            target_dir().join("release/millstream")
        }
    };
    let bytes = std::fs::metadata(&file)
        .with_context(|| format!("no file {}", file.display()))?
        .len();
    println!(
        "{}: {bytes} bytes, of at most {BINARY_BYTES_MAX}",
        file.display()
    );
    fits(bytes)
}

fn fits(bytes: u64) -> Result<()> {
    ensure!(
        bytes <= BINARY_BYTES_MAX,
        "the binary has {bytes} bytes, more than the {BINARY_BYTES_MAX} that it may have: are its symbols split off \
         (core/packaging/README.md), and what came in since the last release?"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_binary_is_refused() {
        assert!(fits(BINARY_BYTES_MAX).is_ok() && fits(BINARY_BYTES_MAX + 1).is_err());
        assert!(run(Some(Path::new("/nowhere/millstream"))).is_err());
    }
}
