//! `millstream-counts`: the hot paths, one named row each, for valgrind's callgrind to count.
//!
//! ```text
//! millstream-counts              the rows: name, what one operation is, in a line each
//! millstream-counts ROW          prepare, warm up, then run the row inside `counted_section`
//! ```
//! Wall time on a shared machine says little about a change of a tenth; the number of instructions
//! executed is the same every time. `cargo xtask counts` starts this program under callgrind with
//! `--toggle-collect=*counted_section*`, so that setup, warm-up and the end cost nothing, and divides
//! by the operations printed here. Run without valgrind, a row is only a smoke test.
//!
//! Why no harness: gungraun (formerly iai-callgrind) is the maintained one, and it needs a runner
//! installed with `cargo install` in exactly the library's version (dozens of crates more for a cold
//! CI), keeps its baselines below `target/` rather than in the repository, knows no reasons for a
//! change, and reports a function's total rather than an operation's. What is left without it is one
//! function that is not inlined.
//!
//! Absent on purpose: time, threads, disks, sockets (a row is one thread and pure, but for the
//! component's), and the verdict on a number (`core/xtask/src/counts.rs`).
#![allow(clippy::print_stdout, reason = "a command-line program")]

mod disk;
mod fixture;
mod rows;

use std::process::ExitCode;

use rows::{ROWS, Row};

fn main() -> ExitCode {
    let Some(name) = std::env::args().nth(1) else {
        for row in ROWS {
            println!("{}\t{}", row.name, row.operation);
        }
        return ExitCode::SUCCESS;
    };
    let Some(row) = ROWS.iter().find(|row| row.name == name) else {
        println!("no row `{name}`; without an argument the rows are listed");
        return ExitCode::FAILURE;
    };
    println!("processor {}", processor());
    println!("operations {}", run(row, row.calls));
    ExitCode::SUCCESS
}

/// Run a row for `calls` calls after its warm-up. Gives the operations that were counted.
fn run(row: &Row, calls: u32) -> u64 {
    let mut work = (row.setup)();
    for _ in 0..row.warm_up {
        work();
    }
    counted_section(&mut *work, calls);
    u64::from(calls) * u64::from(row.operations)
}

/// What callgrind collects: known to it by this name, so there must be one symbol of it. Hence no
/// generics: a pointer to the work costs a call each, the same in every row.
#[inline(never)]
fn counted_section(work: &mut dyn FnMut(), calls: u32) {
    for _ in 0..calls {
        work();
    }
}

/// The processor's features that the code chooses by (checksums, `memcpy`). Under valgrind it is
/// valgrind's processor, not the machine's.
fn processor() -> String {
    #[cfg(target_arch = "x86_64")]
    let features = [
        ("sse4.2", std::is_x86_feature_detected!("sse4.2")),
        ("pclmulqdq", std::is_x86_feature_detected!("pclmulqdq")),
        ("avx2", std::is_x86_feature_detected!("avx2")),
        ("bmi2", std::is_x86_feature_detected!("bmi2")),
        ("vpclmulqdq", std::is_x86_feature_detected!("vpclmulqdq")),
        ("avx512f", std::is_x86_feature_detected!("avx512f")),
    ];
    #[cfg(target_arch = "aarch64")]
    let features = [
        ("crc", std::arch::is_aarch64_feature_detected!("crc")),
        ("aes", std::arch::is_aarch64_feature_detected!("aes")),
        ("sha3", std::arch::is_aarch64_feature_detected!("sha3")),
    ];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let features = [];
    let present: Vec<&str> = features
        .iter()
        .filter(|(_, there)| *there)
        .map(|(name, _)| *name)
        .collect();
    format!("{} {}", std::env::consts::ARCH, present.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each row asserts its own outcome; a row that does nothing would count nothing.
    #[test]
    fn every_row_runs() {
        for row in ROWS {
            assert!(run(row, 2) > 0, "{}", row.name);
        }
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = ROWS.iter().map(|row| row.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ROWS.len());
    }
}
