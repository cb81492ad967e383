//! Rules on documents: they name what is there, and what they name is there.

use super::Tree;

/// `core/ARCHITECTURE.md` is short and names every crate.
pub(super) fn architecture(tree: &Tree) -> Vec<String> {
    let Some(text) = tree.text("core/ARCHITECTURE.md") else {
        return vec!["core/ARCHITECTURE.md is missing".into()];
    };
    let mut complaints = Vec::new();
    if text.lines().count() > 500 {
        complaints.push(format!(
            "core/ARCHITECTURE.md has {} lines, over 500",
            text.lines().count()
        ));
    }
    for (path, _) in &tree.files {
        let folder = path.parent().unwrap_or(path).to_string_lossy().into_owned();
        let is_crate = path.ends_with("Cargo.toml")
            && (folder.starts_with("core/")
                || folder.starts_with("tests/")
                || folder.starts_with("clients/"));
        if is_crate
            && !text.contains(&format!("{folder}/"))
            && !text.contains(&format!("`{folder}`"))
        {
            complaints.push(format!("core/ARCHITECTURE.md does not name `{folder}/`"));
        }
    }
    complaints
}

/// Every request and frame kind stands in protocol.md and has a vector.
pub(super) fn requests(tree: &Tree) -> Vec<String> {
    let Some(kinds) = tree.text("core/protocol/src/kinds.rs") else {
        return vec!["core/protocol/src/kinds.rs is missing".into()];
    };
    let page = tree.text("core/docs/protocol.md").unwrap_or_default();
    let vectors: String = tree
        .files
        .iter()
        .filter(|(p, _)| p.starts_with("clients/vectors/frames"))
        .map(|(p, t)| format!("{}\n{t}\n", p.display()))
        .collect();
    let mut complaints = Vec::new();
    for name in constants(kinds) {
        if !page.contains(&format!("`{name}`")) {
            complaints.push(format!(
                "frame kind `{name}` has no place in core/docs/protocol.md"
            ));
        }
        if !vectors.contains(&name) && !vectors.contains(&name.to_lowercase()) {
            complaints.push(format!(
                "frame kind `{name}` has no vector in clients/vectors/frames"
            ));
        }
    }
    complaints
}

/// Every error code has its section in protocol.md.
pub(super) fn errors(tree: &Tree) -> Vec<String> {
    let Some(codes) = tree.text("core/protocol/src/codes.rs") else {
        return vec!["core/protocol/src/codes.rs is missing".into()];
    };
    let page = tree.text("core/docs/protocol.md").unwrap_or_default();
    constants(codes)
        .into_iter()
        .filter(|name| !page.contains(&format!("`{name}`")))
        .map(|name| format!("error code `{name}` is not in core/docs/protocol.md"))
        .collect()
}

/// Every promise names tests, and those tests exist.
pub(super) fn promises(tree: &Tree) -> Vec<String> {
    let Some(text) = tree.text("core/docs/guarantees.md") else {
        return vec!["core/docs/guarantees.md is missing".into()];
    };
    let sources: String = tree
        .files
        .iter()
        .filter(|(p, _)| p.extension().is_some_and(|e| e == "rs"))
        .map(|(_, t)| t.as_str())
        .collect();
    let mut complaints = Vec::new();
    let mut heading: Option<(&str, bool)> = None;
    for line in text.lines().chain(["## end"]) {
        if line.starts_with("## ") || line.starts_with("### ") {
            if let Some((name, false)) = heading {
                complaints.push(format!("core/docs/guarantees.md: `{name}` names no test"));
            }
            let is_promise = line.starts_with("### ");
            heading = is_promise.then_some((line.trim_start_matches('#').trim(), false));
        }
        if let Some(proofs) = line
            .to_lowercase()
            .find("proved by:")
            .map(|at| &line[at + "proved by:".len()..])
        {
            heading = heading.map(|(name, _)| (name, true));
            for test in proofs.split('`').skip(1).step_by(2) {
                let function = test.rsplit("::").next().unwrap_or(test);
                if !sources.contains(&format!("fn {function}(")) {
                    complaints.push(format!(
                        "core/docs/guarantees.md names the test `{test}`, which does not exist"
                    ));
                }
            }
        }
    }
    complaints
}

/// Relative links in documents lead somewhere.
pub(super) fn links(tree: &Tree) -> Vec<String> {
    let mut complaints = Vec::new();
    for (path, text) in tree
        .files
        .iter()
        .filter(|(p, _)| p.extension().is_some_and(|e| e == "md"))
    {
        for link in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            let target = link.split('#').next().unwrap_or(link);
            if target.is_empty()
                || target.contains("://")
                || target.starts_with("mailto:")
                || target.contains(' ')
            {
                continue;
            }
            let folder = path.parent().unwrap_or(path);
            if !crate::run::root().join(folder).join(target).exists() {
                complaints.push(format!(
                    "{}: the link `{link}` leads nowhere",
                    path.display()
                ));
            }
        }
    }
    complaints
}

/// Upper-case names before an `=`, `(` or `,` that begin a line of a table: `PRODUCE = 22`, `PRODUCE: …`.
fn constants(text: &str) -> Vec<String> {
    text.split("#[cfg(test)]")
        .next()
        .unwrap_or(text)
        .lines()
        .filter_map(|line| {
            let line = line
                .trim()
                .trim_start_matches("pub const ")
                .trim_start_matches("const ");
            let name: String = line
                .chars()
                .take_while(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || *c == '_')
                .collect();
            let rest = line[name.len()..].trim_start();
            let listed = name.len() > 2
                && name.chars().next().is_some_and(|c| c.is_ascii_uppercase())
                && rest.starts_with('=');
            listed.then_some(name)
        })
        .collect()
}
