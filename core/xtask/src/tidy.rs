//! `cargo xtask tidy`: the rules of the house, checked by reading the tree as text.
//!
//! Each rule is a function from the tree to complaints. A rule that needs an exception is changed here,
//! in sight, not silenced at the place.

mod docs;
mod imports;
mod source;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::run::{self, command};

/// All files that git knows or would add, with their text (empty for files that are not UTF-8).
pub(crate) struct Tree {
    pub(crate) files: Vec<(PathBuf, String)>,
}

impl Tree {
    fn read() -> Result<Self> {
        let output = command("git ls-files --cached --others --exclude-standard").output()?;
        if !output.status.success() {
            bail!("git ls-files failed: tidy reads the files that git knows");
        }
        let root = run::root();
        let files = String::from_utf8_lossy(&output.stdout)
            .lines()
            .map(PathBuf::from)
            .filter(|path| root.join(path).is_file())
            .map(|path| {
                let text = std::fs::read(root.join(&path))
                    .ok()
                    .and_then(|b| String::from_utf8(b).ok());
                (path, text.unwrap_or_default())
            })
            .collect();
        Ok(Self { files })
    }

    /// The text of one file, if it is there.
    pub(crate) fn text(&self, path: &str) -> Option<&str> {
        self.files
            .iter()
            .find(|(p, _)| p == Path::new(path))
            .map(|(_, t)| t.as_str())
    }
}

/// A rule: its name, and what finds its breaches.
type Rule = (&'static str, fn(&Tree) -> Vec<String>);

const RULES: &[Rule] = &[
    ("top level", source::top_level),
    ("size", source::size),
    ("module headers", source::module_headers),
    ("pure crates", source::pure),
    ("unsafe", source::unsafe_modules),
    ("unfinished", source::unfinished),
    ("tests do not sleep", source::sleeps),
    ("machine paths", source::machine_paths),
    ("compiled-in folders", source::compiled_in_folders),
    ("imports", imports::edges),
    ("architecture", docs::architecture),
    ("requests documented", docs::requests),
    ("errors documented", docs::errors),
    ("promises proved", docs::promises),
    ("links", docs::links),
];

pub(crate) fn run() -> Result<()> {
    let tree = Tree::read()?;
    let mut count = 0;
    for (name, rule) in RULES {
        for complaint in rule(&tree) {
            println!("tidy: {name}: {complaint}");
            count += 1;
        }
    }
    if count > 0 {
        bail!("{count} breaches of the house rules (core/xtask/src/tidy)");
    }
    println!(
        "tidy: {} files, {} rules, nothing to say",
        tree.files.len(),
        RULES.len()
    );
    Ok(())
}
