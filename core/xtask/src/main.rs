//! `cargo xtask`: the one entry for everything automated. CI only calls it.
//!
//! Kept small and almost without dependencies, so that it builds in seconds.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line program"
)]

mod bench;
mod counts;
mod plugins;
mod run;
mod size;
mod soak;
mod test;
mod tidy;
mod vectors;

use anyhow::{Result, bail};

const HELP: &str = "\
cargo xtask COMMAND

  test [STAGE...]     all the tests, clients included; installs what is missing and says so.
                      Stages: fmt tidy clippy workspace fuzz plugins vectors counts (default: all, in this order)
  tidy                the tree's own rules: imports, sizes, docs, promises and their tests
  vectors [--write]   check (or write) the bytes that every language must agree on
  plugins [--check]   build the bundled components into plugins/dist (or rebuild and compare)
  plugin DIR          build the component crate in DIR with whichever WebAssembly compiler is here
  bench [ROW...]      measure rows beside their ceiling programs in one run (--list, --help)
  counts [ROW...]     instructions on the hot paths, held against tests/bench/counts/recorded.json;
                      `counts --help` says how to acknowledge a change
  size [FILE]         build the binary that is installed (or look at FILE): at most 35 MB
  soak [MINUTES]      the simulator on random seeds, until one fails or the time is over (default 60)
";

fn main() -> std::process::ExitCode {
    match dispatch() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn dispatch() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let caller = std::env::current_dir()?;
    std::env::set_current_dir(run::root())?;
    match words.as_slice() {
        []
        | ["help" | "--help" | "-h"]
        | [
            "test" | "tidy" | "vectors" | "plugins" | "size" | "soak",
            "--help" | "-h",
        ] => {
            print!("{HELP}");
            Ok(())
        }
        ["test", stages @ ..] => test::run(stages),
        ["tidy"] => tidy::run(),
        ["vectors"] => vectors::run(false),
        ["vectors", "--write"] => vectors::run(true),
        ["plugins"] => plugins::run(false),
        ["plugins", "--check"] => plugins::run(true),
        ["plugin", dir] => plugins::one(&caller.join(dir)),
        ["bench", rest @ ..] => bench::run(rest),
        ["counts", rest @ ..] => counts::run(rest),
        ["size"] => size::run(None),
        ["size", file] => size::run(Some(&caller.join(file))),
        ["soak"] => soak::run("60"),
        ["soak", minutes] => soak::run(minutes),
        other => bail!("unknown: `{}`\n\n{HELP}", other.join(" ")),
    }
}
