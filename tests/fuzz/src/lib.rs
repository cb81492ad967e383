//! What the fuzz targets do with their bytes, as plain functions, so that a test on the stable
//! toolchain replays the corpus through the same code.
//!
//! A body may not panic, hang or take memory without bound; beyond that it holds different ways to
//! read the same bytes against each other. Absent: expected values, which are the unit tests'.

mod batch;
mod disk;
mod entry;
mod frame;
mod request;

pub use batch::batch;
pub use entry::entry;
pub use frame::frame;
pub use request::request;

/// A target's body.
pub type Body = fn(&[u8]);

/// Every target, by the name of its corpus directory.
pub const TARGETS: &[(&str, Body)] = &[
    ("batch", batch),
    ("entry", entry),
    ("frame", frame),
    ("request", request),
];

/// Run a body over the files named on the command line: how a finding is replayed without libFuzzer.
pub fn replay_arguments(body: Body) {
    for path in std::env::args_os().skip(1) {
        let data =
            std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        body(&data);
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    /// Longest seed whose every prefix is tried too.
    const PREFIXES_BYTES_MAX: usize = 1 << 10;

    fn corpus() -> PathBuf {
        let package = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs this");
        Path::new(&package).join("corpus")
    }

    #[test]
    fn the_corpus_is_taken_without_a_panic() {
        let corpus = corpus();
        for (name, body) in TARGETS {
            let mut seeds = 0;
            for entry in std::fs::read_dir(corpus.join(name)).expect("every target has a corpus") {
                let path = entry.expect("a readable directory").path();
                let data = std::fs::read(&path).expect("a readable seed");
                body(&data);
                for len in 0..data.len().min(PREFIXES_BYTES_MAX) {
                    body(&data[..len]);
                }
                seeds += 1;
            }
            assert!(seeds >= 5, "{name} has {seeds} seeds");
        }
    }

    #[test]
    fn every_corpus_has_its_target() {
        let corpus = corpus();
        for entry in std::fs::read_dir(corpus).expect("a corpus") {
            let name = entry.expect("a readable directory").file_name();
            assert!(
                TARGETS.iter().any(|(target, _)| name == *target),
                "{}",
                name.display()
            );
        }
    }
}
