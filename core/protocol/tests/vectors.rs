//! The committed frames against this code and against the schema.

#[path = "../examples/generation/mod.rs"]
mod generation;
#[path = "../examples/samples/mod.rs"]
mod samples;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use millstream_protocol::Kind;

fn directory() -> PathBuf {
    PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs this"))
        .join("../../clients/vectors/frames")
}

#[test]
fn committed_frames_are_what_is_encoded_and_what_the_schema_reads() {
    let schema = samples::describe::schema();
    let mut files = BTreeSet::new();
    for sample in samples::all() {
        let read = |ending: &str| {
            let path = directory().join(format!("{}.{ending}", sample.name));
            std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        assert_eq!(read("bin"), sample.frame, "{}", sample.name);
        let committed: serde_json::Value = serde_json::from_slice(&read("json")).expect("JSON");
        assert_eq!(
            samples::describe::describe(&schema, &sample),
            committed,
            "{}",
            sample.name
        );
        files.extend([
            format!("{}.bin", sample.name),
            format!("{}.json", sample.name),
        ]);
    }
    let there = std::fs::read_dir(directory())
        .expect("the vectors")
        .flatten();
    let there: BTreeSet<String> = there
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    let strangers: Vec<&String> = there
        .difference(&files)
        .filter(|name| *name != "README.md")
        .collect();
    assert!(strangers.is_empty(), "no sample writes {strangers:?}");
}

#[test]
fn every_kind_has_a_vector() {
    let sampled: BTreeSet<Kind> = samples::all().iter().map(|sample| sample.kind).collect();
    let missing: Vec<&Kind> = Kind::ALL
        .iter()
        .filter(|kind| !sampled.contains(kind))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn the_generated_code_is_that_of_the_schema() {
    let root = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs this");
    let fresh = generation::generate(Path::new(&root)).expect("the schema compiles");
    assert_eq!(
        fresh,
        include_str!("../src/generated.rs"),
        "run the `generate` example"
    );
}
