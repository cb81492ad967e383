//! Finds the examples: in what `--help` and `-h` print for each command, and in the pages' shell blocks.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use millstream_e2e::binary;

/// A help text or a page.
#[derive(Debug)]
pub(crate) struct Text {
    pub name: String,
    pub examples: Vec<String>,
}

/// The help texts of all commands.
pub(crate) fn help_texts() -> Result<Vec<Text>> {
    let mut texts = Vec::new();
    let mut commands = vec![Vec::new()];
    while let Some(command) = commands.pop() {
        let long = help(&command, "--help")?;
        let mut examples = examples(&long);
        for example in self::examples(&help(&command, "-h")?) {
            if !examples.contains(&example) {
                examples.push(example);
            }
        }
        for name in section(&long, &["Commands:"]) {
            let name = name.split_whitespace().next().unwrap_or_default();
            if !name.is_empty() && name != "help" && long.contains(&format!("\n  {name}")) {
                commands.push([&command[..], &[name.to_owned()]].concat());
            }
        }
        texts.push(Text {
            name: format!("millstream {} --help", command.join(" ")),
            examples,
        });
    }
    texts.reverse();
    Ok(texts)
}

/// README and pages of this repository.
pub(crate) fn pages() -> Result<Vec<Text>> {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").context("cargo runs this")?;
    let root = Path::new(&package).join("../..");
    let mut files: Vec<PathBuf> = ["README.md", "plugins/README.md", "clients/rust/README.md"]
        .iter()
        .map(PathBuf::from)
        .collect();
    for entry in std::fs::read_dir(root.join("core/docs"))? {
        let name = Path::new("core/docs").join(entry?.file_name());
        if name.extension().is_some_and(|extension| extension == "md") {
            files.push(name);
        }
    }
    files.sort();
    files
        .into_iter()
        .map(|file| {
            let page = std::fs::read_to_string(root.join(&file))?;
            Ok(Text {
                name: file.display().to_string(),
                examples: shell_lines(&page),
            })
        })
        .collect()
}

fn help(command: &[String], flag: &str) -> Result<String> {
    let output = Command::new(binary()).args(command).arg(flag).output()?;
    ensure!(output.status.success(), "{command:?} {flag}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

fn examples(help: &str) -> Vec<String> {
    joined(section(help, &["Example:", "Examples:"]))
}

/// The indented lines behind a heading.
fn section<'a>(text: &'a str, headings: &[&str]) -> Vec<&'a str> {
    text.lines()
        .skip_while(|line| !headings.contains(line))
        .skip(1)
        .take_while(|line| line.starts_with("  "))
        .map(str::trim)
        .collect()
}

/// The lines of a page's shell blocks that are about this program.
fn shell_lines(page: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut inside = false;
    for line in page.lines() {
        match line.trim() {
            "```sh" => inside = true,
            "```" => inside = false,
            line if inside => lines.push(line),
            _ => {}
        }
    }
    joined(lines)
}

/// Lines that go on behind a backslash as one, and only those that run this program.
fn joined(lines: Vec<&str>) -> Vec<String> {
    let mut whole: Vec<String> = Vec::new();
    for line in lines {
        match whole.last_mut() {
            Some(last) if last.ends_with('\\') => {
                last.pop();
                last.push_str(line);
            }
            _ => whole.push(line.to_owned()),
        }
    }
    whole.retain(|line| !line.starts_with('#') && line.contains("millstream "));
    whole
}
