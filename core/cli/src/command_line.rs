//! The command line as a whole: it holds together, every argument says what it is, and what texts, hints and
//! pages tell people to type is there.

use std::path::{Path, PathBuf};

use clap::{Arg, Command, CommandFactory as _};

use crate::Arguments;

const HEADING: &str = "Global options";

fn command() -> Command {
    let mut command = Arguments::command();
    command.build();
    command
}

/// Every command with its path, the root first.
fn all(command: &Command) -> Vec<(String, &Command)> {
    let mut found = vec![(command.get_name().to_owned(), command)];
    for sub in command.get_subcommands().filter(|c| c.get_name() != "help") {
        for (path, below) in all(sub) {
            found.push((format!("{} {path}", command.get_name()), below));
        }
    }
    found
}

#[test]
fn it_is_consistent() {
    Arguments::command().debug_assert();
}

#[test]
fn every_argument_is_described_and_a_commands_own_come_first() {
    let root = command();
    let mut missing = Vec::new();
    for (path, command) in all(&root) {
        for arg in command.get_arguments() {
            if arg.get_help().is_none() && arg.get_long_help().is_none() {
                missing.push(format!("{path}: {}", arg.get_id()));
            }
        }
        let help = command.clone().render_long_help().to_string();
        let own = help
            .find("\nOptions:")
            .or_else(|| help.find("\nArguments:"));
        let global = help.find(&format!("\n{HEADING}:"));
        if let (Some(own), Some(global)) = (own, global) {
            assert!(own < global, "{path}: its own options come last");
        }
        assert!(global.is_some(), "{path}: no {HEADING}:\n{help}");
    }
    assert!(missing.is_empty(), "arguments without a word: {missing:#?}");
}

/// A person types what is shown (and `tests/e2e` runs it).
#[test]
fn every_command_shows_an_example() {
    let root = command();
    for (path, command) in all(&root) {
        let help = command.clone().render_long_help().to_string();
        let shown = help.contains("\nExample:\n  ") || help.contains("\nExamples:\n  ");
        assert!(shown || command.has_subcommands(), "{path}: no example");
    }
}

/// Help is as wide as the terminal: a line of prose ends where the next word had no place, or the paragraph ends.
#[test]
fn prose_of_help_is_broken_by_the_terminal_alone() {
    let root = command();
    let (mut wrong, mut paragraphs) = (Vec::new(), 0);
    for width in [60, 80, 120] {
        for (path, command) in all(&root) {
            let mut command = command.clone().term_width(width);
            for help in [command.render_help(), command.render_long_help()] {
                for (line, next) in broken_prose(&help.to_string(), width) {
                    wrong.push(format!("{path} at {width} columns: `{line}` / `{next}`"));
                }
                paragraphs += 1;
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(paragraphs > 200, "only {paragraphs} texts were looked at");
    let by_hand = "A line that was\nbroken by hand.\n\nExample:\n  a\n  b";
    assert_eq!(
        broken_prose(by_hand, 60),
        [("A line that was", "broken by hand.")]
    );
}

/// Lines at the margin that would have had a place for the first word of the next.
fn broken_prose(help: &str, width: usize) -> Vec<(&str, &str)> {
    let lines: Vec<&str> = help.lines().collect();
    let is_prose = |line: &str| !line.is_empty() && !line.starts_with(' ') && !line.ends_with(':');
    let pairs = lines.windows(2).map(|pair| (pair[0], pair[1]));
    pairs
        .filter(|(line, next)| is_prose(line) && is_prose(next))
        .filter(|(line, next)| {
            let word = next.split(' ').next().unwrap_or_default();
            line.chars().count() + 1 + word.chars().count() <= width
        })
        .collect()
}

#[test]
fn what_texts_and_hints_tell_to_type_is_there() {
    let root = command();
    let flags: Vec<String> = all(&root)
        .iter()
        .flat_map(|(_, command)| command.get_arguments().filter_map(Arg::get_long))
        .map(|long| format!("--{long}"))
        .collect();
    let (mut wrong, mut lines, mut named) = (Vec::new(), 0, 0);
    for (file, text) in texts() {
        for line in command_lines(&file, &text) {
            lines += 1;
            if let Err(why) = check(&root, &line) {
                wrong.push(format!("{}: `{line}`: {why}", file.display()));
            }
        }
        for flag in quoted_flags(&file, &text) {
            named += 1;
            if !flags.contains(&flag) && !OTHERS.contains(&flag.as_str()) {
                wrong.push(format!("{}: no command has {flag}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(
        lines > 50 && named > 5,
        "the search finds what it is for: {lines} command lines, {named} flags"
    );
}

/// Flags of other programs, which our texts name too.
const OTHERS: &[&str] = &["--force-depends"];

/// The text of every page and source that people are told what to type by.
fn texts() -> Vec<(PathBuf, String)> {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs this");
    let root = Path::new(&package).join("../..");
    let mut found = Vec::new();
    for folder in [
        "README.md",
        "core/broker/src",
        "core/cli/src",
        "core/docs",
        "core/packaging",
        "core/protocol/src",
        "core/shard/src",
        "clients/rust",
        "plugins/README.md",
    ] {
        read(&root.join(folder), &mut found);
    }
    found
}

fn read(path: &Path, found: &mut Vec<(PathBuf, String)>) {
    if let Ok(entries) = std::fs::read_dir(path) {
        for entry in entries.flatten() {
            read(&entry.path(), found);
        }
    } else if !path.ends_with("command_line.rs")
        && let Ok(text) = std::fs::read_to_string(path)
    {
        found.push((path.to_owned(), text));
    }
}

/// What begins with `millstream ` between backticks, at the begin of a line, or behind a pipe.
fn command_lines(file: &Path, text: &str) -> Vec<String> {
    const NAME: &str = "millstream ";
    let mut found = Vec::new();
    let is_page = file.extension().is_some_and(|e| e == "md");
    let mut fenced = false;
    for line in text.lines() {
        let line = line.trim();
        if line.starts_with("```") {
            fenced = !fenced;
            continue;
        }
        for quoted in line.split('`').skip(1).step_by(2) {
            if quoted.starts_with(NAME) {
                found.push(quoted.to_owned());
            }
        }
        let line = line.trim_start_matches("//! ").trim_start_matches("$ ");
        let whole = line.starts_with(NAME) && !line.contains('`') && (!is_page || fenced);
        if whole {
            found.push(line.to_owned());
        }
        if let Some((_, behind)) = line.split_once("| millstream ")
            && (!is_page || fenced)
        {
            found.push(format!("{NAME}{behind}"));
        }
    }
    found
}

/// Flags between backticks, or in the sentences of hints and messages.
fn quoted_flags(file: &Path, text: &str) -> Vec<String> {
    let is_source = file.extension().is_some_and(|e| e == "rs");
    let mut found = Vec::new();
    for line in text.lines().map(str::trim_start) {
        if !is_source || line.starts_with("//") || line.contains("args([") {
            continue;
        }
        // Only inside string literals.
        for literal in line.split('"').skip(1).step_by(2) {
            let before = |at: usize| literal[..at].chars().next_back();
            for (at, _) in literal.match_indices("--") {
                let name: String = literal[at + 2..]
                    .chars()
                    .take_while(|c| c.is_ascii_lowercase() || *c == '-')
                    .collect();
                let starts = before(at).is_none_or(|c| c == ' ' || c == '`' || c == '(');
                if starts && name.len() > 1 && !name.starts_with('-') {
                    found.push(format!("--{name}"));
                }
            }
        }
    }
    found
}

/// Whether the commands and flags of a line exist.
fn check(root: &Command, line: &str) -> Result<(), String> {
    let mut at = root;
    let mut command_ended = false;
    for word in line.split_whitespace().skip(1) {
        if ["|", "#", ">", "<", "&&", "||", ";", "…"].contains(&word) || word.starts_with("<(") {
            break;
        }
        let word = word.trim_matches(|c| ",.;:)]\"'\\".contains(c));
        if let Some(flag) = word.strip_prefix("--") {
            let name = flag.split('=').next().unwrap_or(flag);
            let plain = name.chars().all(|c| c.is_ascii_lowercase() || c == '-');
            if name.is_empty() || !plain {
                break;
            }
            let known = |arg: &Arg| arg.get_long() == Some(name);
            if !at.get_arguments().any(known) && !["help", "version"].contains(&name) {
                return Err(format!("`{}` has no --{name}", at.get_name()));
            }
            command_ended = true;
        } else if let Some(short) = word.strip_prefix('-').and_then(|s| s.chars().next()) {
            let known = |arg: &Arg| arg.get_short() == Some(short);
            if short.is_ascii_alphabetic()
                && !at.get_arguments().any(known)
                && !['h', 'V'].contains(&short)
            {
                return Err(format!("`{}` has no -{short}", at.get_name()));
            }
            command_ended = true;
        } else if !command_ended && at.has_subcommands() {
            let name = word.split('|').next().unwrap_or(word);
            match at.find_subcommand(name) {
                Some(sub) => at = sub,
                None if name.chars().all(|c| c.is_ascii_lowercase() || c == '-') => {
                    return Err(format!("`{}` has no command {name}", at.get_name()));
                }
                None => break,
            }
        }
    }
    Ok(())
}
