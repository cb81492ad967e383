//! Imports go one way. Cargo refuses a cycle; this refuses an edge that the design does not have.

use super::Tree;

/// Crate folder → the crates of ours that it may depend on (tests included).
const EDGES: &[(&str, &[&str])] = &[
    ("core/batch", &[]),
    ("core/protocol", &["batch"]),
    ("core/log", &["batch"]),
    ("core/machine", &["batch"]),
    ("core/sandbox", &["batch"]),
    ("core/uring", &["log"]),
    (
        "core/shard",
        &["batch", "log", "machine", "sandbox", "uring"],
    ),
    (
        "core/broker",
        &[
            "batch", "protocol", "log", "machine", "sandbox", "uring", "shard",
        ],
    ),
    (
        "core/cli",
        &[
            "broker", "batch", "protocol", "client", "log", "machine", "sandbox", "uring",
        ],
    ),
    ("core/xtask", &[]),
    ("clients/rust", &["batch", "protocol"]),
    ("tests/sim", &["batch", "log", "machine", "shard"]),
    ("tests/e2e", &["client", "batch", "protocol"]),
    (
        "tests/crash",
        &[
            "client", "batch", "protocol", "e2e", "log", "machine", "shard", "uring",
        ],
    ),
    (
        "tests/bench",
        &["batch", "log", "uring", "client", "protocol", "sandbox"],
    ),
    (
        "tests/bench/counts",
        &["batch", "protocol", "log", "machine", "sandbox"],
    ),
    ("tests/fuzz", &["batch", "protocol", "log", "machine"]),
];

pub(super) fn edges(tree: &Tree) -> Vec<String> {
    let mut complaints = Vec::new();
    for (path, text) in &tree.files {
        if path.file_name().is_none_or(|n| n != "Cargo.toml")
            || path.starts_with("plugins")
            || path.components().count() == 1
        {
            continue;
        }
        let folder = path.parent().unwrap_or(path).to_string_lossy().into_owned();
        let Some((_, allowed)) = EDGES.iter().find(|(f, _)| *f == folder) else {
            complaints.push(format!(
                "{folder}: a crate without a line in core/xtask/src/tidy/imports.rs"
            ));
            continue;
        };
        for line in text.lines() {
            // `name = "millstream-x"` names the crate itself; an edge begins with the dependency's name.
            let Some(dependency) = line.strip_prefix("millstream-") else {
                continue;
            };
            let name: String = dependency
                .chars()
                .take_while(char::is_ascii_alphanumeric)
                .collect();
            if !allowed.contains(&name.as_str()) {
                complaints.push(format!(
                    "{folder} may not depend on `{name}` (allowed: {})",
                    allowed.join(" ")
                ));
            }
        }
    }
    complaints
}
