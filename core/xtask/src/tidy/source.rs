//! Rules on source files, one by one.

use super::Tree;

const TOP_LEVEL: &[&str] = &[
    "Cargo.toml",
    "Cargo.lock",
    "LICENSE",
    "README.md",
    "core",
    "plugins",
    "wit",
    "clients",
    "tests",
];
const LINES_MAX: usize = 1_000;

/// The only modules that may allow unsafe code.
const UNSAFE: &[&str] = &[
    "core/log/src/buffer.rs",                  // aligned memory for O_DIRECT
    "core/uring/src/",                         // the ring, file descriptors, raw reads and writes
    "core/sandbox/src/cache.rs", // deserializing an authenticated precompiled artifact
    "core/sandbox/src/filter.rs", // a typed function, checked once and not at every call
    "core/broker/src/sys.rs",    // socket options, affinity, BPF, huge pages
    "core/cli/src/memory.rs",    // the allocator's options
    "core/cli/src/commands/doctor/machine.rs", // limits, rings, socket options
    "plugins/sdk/rust/src/",     // the ABI's raw exports
    "tests/bench/src/",          // ceiling programs: bare system calls
];

/// Crates that decide, and what they may not touch.
const PURE: &[&str] = &[
    "core/batch/src",
    "core/log/src",
    "core/machine/src",
    "core/protocol/src",
    "core/shard/src/core",
];
const IMPURE_WORDS: &[&str] = &[
    "std::time::Instant",
    "SystemTime",
    "std::fs",
    "std::net",
    "std::thread",
    "std::process",
    "std::env",
    "tokio::",
    "rand::",
    "std::collections::HashMap",
    "std::collections::HashSet",
];

pub(super) fn top_level(tree: &Tree) -> Vec<String> {
    let mut extra: Vec<String> = tree
        .files
        .iter()
        .filter_map(|(p, _)| p.components().next())
        .map(|c| c.as_os_str().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with('.') && !TOP_LEVEL.contains(&name.as_str()))
        .collect();
    extra.dedup();
    extra
        .into_iter()
        .map(|name| format!("`{name}` has no place there"))
        .collect()
}

pub(super) fn size(tree: &Tree) -> Vec<String> {
    tree.files
        .iter()
        .filter(|(p, _)| {
            p.extension().is_some_and(|e| {
                ["rs", "py", "ts", "js", "go", "java", "c", "h"]
                    .iter()
                    .any(|x| e == *x)
            })
        })
        .filter(|(p, _)| !is_generated(&p.to_string_lossy()))
        .map(|(p, t)| (p, t.lines().count()))
        .filter(|(_, lines)| *lines > LINES_MAX)
        .map(|(p, lines)| {
            format!(
                "{}: {lines} lines, over {LINES_MAX}: what wants to leave it?",
                p.display()
            )
        })
        .collect()
}

pub(super) fn module_headers(tree: &Tree) -> Vec<String> {
    rust_sources(tree)
        .filter(|(path, _)| !is_generated(path))
        .filter(|(_, text)| !text.trim_start().starts_with("//!"))
        .map(|(path, _)| format!("{path}: does not open with `//!` and its one job"))
        .collect()
}

pub(super) fn pure(tree: &Tree) -> Vec<String> {
    let mut complaints = Vec::new();
    for (path, text) in rust_sources(tree) {
        if !PURE.iter().any(|p| path.starts_with(p))
            || path.contains("/conformance")
            || path.contains("/testing")
        {
            continue;
        }
        let code = text.split("#[cfg(test)]").next().unwrap_or(text);
        for (number, line) in code.lines().enumerate() {
            let line = line.split("//").next().unwrap_or(line);
            if let Some(word) = IMPURE_WORDS.iter().find(|w| line.contains(**w)) {
                complaints.push(format!("{path}:{}: `{word}` in a pure crate", number + 1));
            }
        }
    }
    complaints
}

pub(super) fn unsafe_modules(tree: &Tree) -> Vec<String> {
    rust_sources(tree)
        .filter(|(path, text)| {
            text.contains(concat!("unsafe", "_code"))
                && !UNSAFE.iter().any(|allowed| path.starts_with(allowed))
                && !path.starts_with("core/xtask")
        })
        .map(|(path, _)| {
            format!(
                "{path}: allows unsafe code but is not on the list in core/xtask/src/tidy/source.rs"
            )
        })
        .collect()
}

pub(super) fn unfinished(tree: &Tree) -> Vec<String> {
    let words = [
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
        concat!("#[", "ignore"),
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
    ];
    let mut complaints = Vec::new();
    for (path, text) in rust_sources(tree) {
        for (number, line) in text.lines().enumerate() {
            if let Some(word) = words.iter().find(|w| line.contains(**w)) {
                complaints.push(format!("{path}:{}: `{word}`", number + 1));
            }
        }
    }
    complaints
}

pub(super) fn sleeps(tree: &Tree) -> Vec<String> {
    let word = concat!("sleep", "(");
    rust_sources(tree)
        .filter(|(path, _)| {
            path.starts_with("tests/") && path.contains("/tests/") || path.contains("/tests/")
        })
        .flat_map(|(path, text)| {
            text.lines()
                .enumerate()
                .filter(|(_, line)| line.contains(word))
                .map(|(n, _)| {
                    format!(
                        "{path}:{}: a test that sleeps: wait for a condition instead",
                        n + 1
                    )
                })
                .collect::<Vec<_>>()
        })
        .collect()
}

pub(super) fn machine_paths(tree: &Tree) -> Vec<String> {
    let words = [concat!("/wo", "rk/"), concat!("/ro", "ot/.")];
    tree.files
        .iter()
        .filter_map(|(p, t)| {
            words
                .iter()
                .find(|w| t.contains(**w))
                .map(|w| format!("{}: names `{w}`, a path of one machine", p.display()))
        })
        .collect()
}

/// A folder that is compiled in is that of the checkout that was built. Two that share a target directory
/// share what is built, and then one's test reads the other's files: ask when it runs (cargo says it).
pub(super) fn compiled_in_folders(tree: &Tree) -> Vec<String> {
    let word = concat!("env!(\"CARGO_", "MANIFEST_DIR\")");
    rust_sources(tree)
        .filter(|(path, text)| text.contains(word) && path != "core/xtask/src/run.rs")
        .map(|(path, _)| {
            format!("{path}: `{word}` is the folder of who built it: `std::env::var_os`")
        })
        .collect()
}

fn rust_sources(tree: &Tree) -> impl Iterator<Item = (String, &str)> {
    tree.files
        .iter()
        .filter(|(p, _)| p.extension().is_some_and(|e| e == "rs"))
        .map(|(p, t)| (p.to_string_lossy().into_owned(), t.as_str()))
}

fn is_generated(path: &str) -> bool {
    path.contains("generated") || path.ends_with("bindings.rs")
}
