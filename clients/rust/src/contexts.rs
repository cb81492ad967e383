//! Named contexts of a user, and where a context is looked for.
//!
//! ```text
//! $XDG_CONFIG_HOME/millstream/   else ~/.config/millstream/
//!   contexts/NAME.toml           context files, for their owner alone
//!   current                      the name of the one that is used when nothing else is there
//! ```
//!
//! Deliberately absent: what a context file says ([`Context`]).

use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::context::{CONTEXT_FILE, CONTEXT_VARIABLE, Context, DEV_DIRECTORY};
use crate::error::{Error, Result};

/// Longest name.
const NAME_BYTES_MAX: usize = 64;

/// The named contexts in a user's configuration folder.
#[derive(Clone, Debug)]
pub struct Contexts {
    folder: PathBuf,
}

impl Contexts {
    /// Those of the user who runs this process; `None` without a home.
    #[must_use]
    pub fn of_user() -> Option<Self> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let base = set("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(set("HOME")?).join(".config")))?;
        Some(Self::at(base.join("millstream")))
    }

    /// Those in another folder.
    #[must_use]
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
        }
    }

    /// All names, sorted.
    ///
    /// # Errors
    /// When the folder is there and cannot be read.
    pub fn names(&self) -> Result<Vec<String>> {
        let folder = self.folder.join("contexts");
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(cannot("read", &folder, &error)),
        };
        let mut names: Vec<String> = entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                Some(name.strip_suffix(".toml")?.to_owned())
            })
            .filter(|name| is_name(name))
            .collect();
        names.sort();
        Ok(names)
    }

    /// The file of a name, whether or not it is there.
    ///
    /// # Errors
    /// When this cannot be a name.
    pub fn file(&self, name: &str) -> Result<PathBuf> {
        if !is_name(name) {
            return Err(Error::usage(format!(
                "`{name}` cannot be the name of a context: 1 to {NAME_BYTES_MAX} of A-Z a-z 0-9 . _ -, the first \
                 no . or -"
            )));
        }
        Ok(self.folder.join("contexts").join(format!("{name}.toml")))
    }

    /// Keep a context under a name, readable by its owner alone.
    ///
    /// # Errors
    /// When the name is taken (and not to be replaced) or the file cannot be written.
    pub fn add(&self, name: &str, context: &Context, replace: bool) -> Result<PathBuf> {
        let file = self.file(name)?;
        if file.exists() && !replace {
            return Err(Error::usage_hint(
                format!("there is a context `{name}` already"),
                "Choose another name, or replace it with --replace.",
            ));
        }
        self.write(&file, &context.to_toml())?;
        Ok(file)
    }

    /// Forget a name. `false` when there was none.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn remove(&self, name: &str) -> Result<bool> {
        let file = self.file(name)?;
        match std::fs::remove_file(&file) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(cannot("remove", &file, &error)),
        }
    }

    /// The name that is used when nothing else says which context.
    #[must_use]
    pub fn current(&self) -> Option<String> {
        let text = std::fs::read_to_string(self.folder.join("current")).ok()?;
        Some(text.trim().to_owned()).filter(|name| is_name(name))
    }

    /// Use this one from now on.
    ///
    /// # Errors
    /// When there is none of this name, or it cannot be written down.
    pub fn select(&self, name: &str) -> Result<()> {
        if !self.file(name)?.exists() {
            return Err(unknown(name));
        }
        self.write(&self.folder.join("current"), &format!("{name}\n"))
    }

    fn write(&self, file: &Path, text: &str) -> Result<()> {
        let failed = |error: io::Error| cannot("write", file, &error);
        std::fs::create_dir_all(self.folder.join("contexts")).map_err(failed)?;
        let temporary = file.with_extension(format!("{}.tmp", std::process::id()));
        let written = std::fs::File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut open| open.write_all(text.as_bytes()))
            .and_then(|()| std::fs::rename(&temporary, file));
        if written.is_err() {
            let _ = std::fs::remove_file(&temporary); // it may not be there
        }
        written.map_err(failed)
    }
}

/// The context file that is used: what `explicit` says (a name, or a file when it has a `/`, ends in `.toml`
/// or no context has that name), else [`CONTEXT_VARIABLE`], else `.millstream/context.toml` in the working
/// directory or the nearest parent that has one, else the user's current context.
///
/// # Errors
/// When none of them is there.
pub fn locate(explicit: Option<&Path>) -> Result<PathBuf> {
    let contexts = Contexts::of_user();
    let variable = std::env::var_os(CONTEXT_VARIABLE).filter(|value| !value.is_empty());
    if let Some(said) = explicit.or(variable.as_deref().map(Path::new)) {
        return said_by(said, contexts.as_ref());
    }
    let here = std::env::current_dir().unwrap_or_default();
    if let Some(file) = above(&here, process_owner()) {
        return Ok(file);
    }
    let current = contexts.and_then(|contexts| {
        let name = contexts.current()?;
        contexts.file(&name).ok().filter(|file| file.exists())
    });
    current.ok_or_else(|| {
        Error::usage_hint(
            format!(
                "no context: neither --context, --url nor {CONTEXT_VARIABLE} is set, there is no \
                 {DEV_DIRECTORY}/{CONTEXT_FILE} here or in a parent directory, and no named context is in use"
            ),
            "Start a broker with `millstream dev`, name the context.toml in a broker's data directory, or give \
             --url and --ca; `millstream context add` keeps them under a name.",
        )
    })
}

fn said_by(said: &Path, contexts: Option<&Contexts>) -> Result<PathBuf> {
    let text = said.to_string_lossy();
    if text.contains('/') || text.ends_with(".toml") {
        return Ok(said.to_owned());
    }
    let named = contexts.and_then(|contexts| contexts.file(&text).ok());
    match named {
        Some(file) if file.exists() => Ok(file),
        _ if said.exists() => Ok(said.to_owned()),
        _ => Err(unknown(&text)),
    }
}

/// The nearest context file in `here` or above. Above, only one of `owner`'s counts: who may write in a
/// parent (`/tmp`) must not choose our broker.
fn above(here: &Path, owner: Option<u32>) -> Option<PathBuf> {
    here.ancestors()
        .map(|folder| folder.join(DEV_DIRECTORY).join(CONTEXT_FILE))
        .find(|file| {
            std::fs::metadata(file).is_ok_and(|found| {
                let ours = owner == Some(found.uid());
                found.is_file() && (ours || file.parent().and_then(Path::parent) == Some(here))
            })
        })
}

/// The user that this process runs as.
fn process_owner() -> Option<u32> {
    Some(std::fs::metadata("/proc/self").ok()?.uid())
}

fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && !name.starts_with(['.', '-'])
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

fn unknown(name: &str) -> Error {
    Error::usage_hint(
        format!("there is no context `{name}`, and no file of that name"),
        "See `millstream context list`; a file is written with a / or ends in .toml.",
    )
}

fn cannot(what: &str, path: &Path, error: &io::Error) -> Error {
    Error::usage(format!("cannot {what} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A folder of its own, removed at the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("contexts-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn contexts_are_kept_by_name_for_their_owner_alone() {
        let folder = Folder::new("named");
        let contexts = Contexts::at(folder.0.join("millstream"));
        assert!(contexts.names().unwrap().is_empty() && contexts.current().is_none());
        let context = Context {
            token: Some("secret".into()),
            ..Context::new("millstream://a:1")
        };
        let file = contexts.add("prod", &context, false).unwrap();
        let loaded = Context::load(&file).unwrap();
        assert_eq!(
            (loaded.url, loaded.token),
            (context.url.clone(), context.token.clone())
        );
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(contexts.add("prod", &context, false).is_err());
        contexts.add("prod", &context, true).unwrap();
        assert!(contexts.select("other").is_err());
        contexts.select("prod").unwrap();
        assert_eq!(contexts.current().as_deref(), Some("prod"));
        assert_eq!(contexts.names().unwrap(), ["prod"]);
        assert_eq!(said_by(Path::new("prod"), Some(&contexts)).unwrap(), file);
        assert!(said_by(Path::new("none"), Some(&contexts)).is_err());
        assert!(contexts.remove("prod").unwrap() && !contexts.remove("prod").unwrap());
        for bad in ["", "..", ".a", "-a", "a/b", "a b"] {
            assert!(contexts.file(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_nearest_context_counts_and_in_parents_only_our_own() {
        let folder = Folder::new("above");
        let deep = folder.0.join("a/b");
        std::fs::create_dir_all(&deep).unwrap();
        let file = |at: &Path| {
            let file = at.join(DEV_DIRECTORY).join(CONTEXT_FILE);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(&file, "url = \"millstream://a:1\"\n").unwrap();
            file
        };
        let ours = process_owner();
        let top = file(&folder.0);
        assert_eq!(above(&deep, ours), Some(top));
        assert_eq!(above(&folder.0.join("a"), ours.map(|uid| uid + 1)), None);
        let near = file(&deep);
        assert_eq!(above(&deep, ours.map(|uid| uid + 1)), Some(near));
    }
}
