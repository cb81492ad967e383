//! `cargo xtask counts`: instructions an operation on the hot paths, held against what is recorded.
//!
//! Builds `tests/bench/counts`, runs each of its rows under callgrind and compares with
//! `tests/bench/counts/recorded.json`. A change past the tolerance, up or down, fails until someone
//! accepts it with a reason, which stays in the file: so a gain is kept as well as a loss noticed.
//!
//! The rows are built as the product is (release). Those that run a component are built with the
//! development profile instead: the tests have built its wasmtime already, while a release build of
//! it takes minutes, at every change, that a check has not. What wasmtime compiles of the component
//! is the same in both.
//!
//! Absent on purpose: what the rows do, and time ([`crate::bench`]).

mod recorded;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use self::recorded::{Conditions, Recorded};
use crate::run::{self, command};

const RECORDED: &str = "tests/bench/counts/recorded.json";
const PROGRAM: &str = "millstream-counts";
const HELP: &str = "\
cargo xtask counts [ROW...]                         count and compare (default: every row)
cargo xtask counts --accept ROW --reason \"...\"      record what is counted now; --accept may be repeated
cargo xtask counts --accept all --reason \"...\"      the same for every row, as another compiler needs
";

/// One row as counted now.
#[derive(Clone, Debug)]
struct Count {
    row: String,
    /// What one operation is, in words.
    operation: String,
    /// Instructions an operation.
    instructions: f64,
}

/// A row of one of the builds.
#[derive(Debug)]
struct Row {
    name: String,
    operation: String,
    program: PathBuf,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Options<'a> {
    /// Empty: every row.
    rows: Vec<&'a str>,
    /// Set when the rows' counts are to be recorded.
    reason: Option<&'a str>,
    help: bool,
}

pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    let options = options(arguments)?;
    if options.help {
        print!("{HELP}");
        return Ok(());
    }
    run::debian("valgrind", &["valgrind"])?;
    let path = run::root().join(RECORDED);
    let mut recorded = Recorded::read(&path)?;
    let rows = build(&options.rows)?;
    let is_asked = |name: &str| options.rows.is_empty() || options.rows.contains(&name);
    let missing: Vec<String> = recorded
        .names()
        .chain(options.rows.iter().copied())
        .filter(|name| is_asked(name) && !rows.iter().any(|row| row.name == *name))
        .map(str::to_owned)
        .collect();
    if let Some(unknown) = missing.iter().find(|name| !recorded.has(name)) {
        let names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
        bail!("no row `{unknown}`; there are: {}", names.join(" "));
    }
    let mut conditions = conditions()?;
    let mut counts = Vec::new();
    for row in rows.iter().filter(|row| is_asked(&row.name)) {
        counts.push(count(row, &mut conditions)?);
    }
    if let Some(reason) = options.reason {
        let all = options.rows.is_empty();
        recorded.accept(&conditions, &counts, &missing, reason, all)?;
        recorded.write(&path)?;
        println!("recorded {} rows in {RECORDED}", counts.len());
        return Ok(());
    }
    let report = recorded.judge(&conditions, &counts, &missing);
    println!("{report}");
    match report.failed() {
        [] => Ok(()),
        failed => bail!(
            "{} changed past the tolerance; when that is meant, acknowledge it: \
             cargo xtask counts --accept {} --reason \"why\"",
            failed.join(", "),
            failed.join(" --accept ")
        ),
    }
}

fn options<'a>(arguments: &[&'a str]) -> Result<Options<'a>> {
    let mut options = Options::default();
    let mut accept: Vec<&str> = Vec::new();
    let mut rest = arguments.iter().copied();
    while let Some(argument) = rest.next() {
        match argument {
            "--accept" => accept.push(rest.next().context("--accept takes a row, or `all`")?),
            "--reason" => options.reason = Some(rest.next().context("--reason takes a text")?),
            "--help" | "-h" => options.help = true,
            flag if flag.starts_with('-') => bail!("unknown: `{flag}`\n\n{HELP}"),
            row => options.rows.push(row),
        }
    }
    if accept.is_empty() != options.reason.is_none()
        || !(accept.is_empty() || options.rows.is_empty())
    {
        bail!("--accept and --reason go together, without other rows\n\n{HELP}");
    }
    if options
        .reason
        .is_some_and(|reason| reason.trim().is_empty())
    {
        bail!("the reason is what the next reader has: say why the number changed");
    }
    options.rows.extend(accept);
    if options.rows.contains(&"all") {
        options.rows.clear();
    }
    Ok(options)
}

/// Build the program; with its component rows when one of `asked` is not among the others.
fn build(asked: &[&str]) -> Result<Vec<Row>> {
    cargo("build --quiet --locked --release -p millstream-counts")?;
    let mut rows = list(&run::target_dir().join("release").join(PROGRAM))?;
    let has_all = |rows: &[Row]| {
        asked
            .iter()
            .all(|name| rows.iter().any(|row| row.name == *name))
    };
    if asked.is_empty() || !has_all(&rows) {
        // Together with the binary, so that wasmtime has the features with which it is built already.
        cargo(
            "build --quiet --locked -p millstream-cli -p millstream-counts --features millstream-counts/component",
        )?;
        let all = list(&run::target_dir().join("debug").join(PROGRAM))?;
        let new = |row: &Row| !rows.iter().any(|known| known.name == row.name);
        let component: Vec<Row> = all.into_iter().filter(new).collect();
        rows.extend(component);
    }
    Ok(rows)
}

/// The flags of a person's own builds change the code, so these builds go without them.
fn cargo(line: &str) -> Result<()> {
    run::run(
        command(&format!("cargo {line}"))
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS"),
    )
}

fn list(program: &Path) -> Result<Vec<Row>> {
    let row = |line: &str| {
        let (name, operation) = line.split_once('\t')?;
        Some(Row {
            name: name.to_owned(),
            operation: operation.to_owned(),
            program: program.to_owned(),
        })
    };
    Ok(output(&mut Command::new(program))?
        .lines()
        .filter_map(row)
        .collect())
}

/// Run one row under callgrind. The processor that it saw is noted in `conditions`.
fn count(row: &Row, conditions: &mut Conditions) -> Result<Count> {
    let folder = run::target_dir().join("counts");
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make {}", folder.display()))?;
    let profile = folder.join(&row.name).with_extension("callgrind");
    // An empty environment: what lies on the stack moves what is above it.
    let said = output(
        Command::new("valgrind")
            .args(["--quiet", "--tool=callgrind", "--cache-sim=no"])
            .args(["--collect-atstart=no", "--toggle-collect=*counted_section*"])
            .arg(format!("--callgrind-out-file={}", profile.display()))
            .arg(&row.program)
            .arg(&row.name)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default()),
    )?;
    let word = |key: &str| said.lines().find_map(|line| line.strip_prefix(key));
    let operations: f64 = word("operations ")
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("{}: no number of operations in `{said}`", row.name))?;
    conditions.insert(
        "processor".into(),
        word("processor ").unwrap_or_default().into(),
    );
    let text = std::fs::read_to_string(&profile)
        .with_context(|| format!("callgrind left no {}", profile.display()))?;
    let instructions = collected(&text)
        .filter(|total| *total > 0.0)
        .with_context(|| format!("{}: callgrind collected nothing", row.name))?;
    Ok(Count {
        row: row.name.clone(),
        operation: row.operation.clone(),
        instructions: (instructions / operations * 10.0).round() / 10.0,
    })
}

/// The total of a callgrind profile with one event, `Ir`.
fn collected(profile: &str) -> Option<f64> {
    let line = |key| profile.lines().find_map(|line| line.strip_prefix(key));
    line("totals:")
        .or_else(|| line("summary:"))?
        .trim()
        .parse()
        .ok()
}

/// What a count depends on beside the code.
fn conditions() -> Result<Conditions> {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let version = output(Command::new(rustc).arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let libc = output(Command::new("getconf").arg("GNU_LIBC_VERSION"));
    Ok(Conditions::from([
        (
            "rustc".to_owned(),
            version.lines().next().unwrap_or_default().to_owned(),
        ),
        ("target".to_owned(), host.unwrap_or_default().to_owned()),
        (
            "valgrind".to_owned(),
            output(Command::new("valgrind").arg("--version"))?
                .trim()
                .to_owned(),
        ),
        (
            "libc".to_owned(),
            libc.unwrap_or_else(|_| "not glibc".into())
                .trim()
                .to_owned(),
        ),
    ]))
}

/// What a program prints; an exit code other than 0 is an error with what it said.
fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("cannot start `{name}`"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("`{name}` failed ({}): {text}{error}", output.status);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_found_in_both_spellings() {
        assert_eq!(
            collected("events: Ir\nsummary: 4901013\n\nfn=(1)\n"),
            Some(4_901_013.0)
        );
        assert_eq!(collected("events: Ir\nfn=(1)\ntotals: 17\n"), Some(17.0));
        assert_eq!(collected("events: Ir\n"), None);
    }

    #[test]
    fn accepting_needs_a_reason() {
        let accepted = options(&["--accept", "a", "--accept", "b", "--reason", "faster"]);
        let accepted = accepted.expect("a row and a reason");
        assert_eq!(
            (accepted.rows, accepted.reason),
            (vec!["a", "b"], Some("faster"))
        );
        let all = options(&["--accept", "all", "--reason", "rustc"]).expect("all");
        assert!(all.rows.is_empty() && all.reason.is_some());
        for wrong in [
            &["--accept", "a"][..],
            &["--reason", "why"],
            &["--accept", "a", "--reason", " "],
            &["b", "--accept", "a", "--reason", "why"],
            &["--accept"],
            &["--frob"],
        ] {
            assert!(options(wrong).is_err(), "{wrong:?}");
        }
    }
}
