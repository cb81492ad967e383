//! The data directory: who holds it, what it is, where things lie in it.
//!
//! ```text
//! DIR/lock            held while a broker runs; holds its process id. So are DIR and each DIR/shard-N
//!                     themselves, so that nothing is lost with the file
//! DIR/meta.toml       cluster, broker, format, number of shards: written once
//! DIR/shard-N/        the log of shard N
//! DIR/components/     <sha256>.wasm, written and synced before a deployment names it
//! DIR/secret.key      random, for this broker alone: what must not change with a restart is derived
//! DIR/tls/            certificates made here, when none are configured
//! DIR/context.toml    how a client on this machine connects
//! ```

use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::{Error, sys};

/// How long a lock that is held is asked for again, and how often.
const LOCK_WAIT: Duration = Duration::from_secs(1);
const LOCK_LOOK: Duration = Duration::from_millis(20);
/// The layout of the directory that this build reads and writes.
const FORMAT: u32 = 1;
/// What a directory has beside its shards.
const MADE_WITHIN: [&str; 2] = ["components", "tls"];

/// A data directory, held by this process until dropped.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    meta: Meta,
    /// Of the file `lock`, the directory and each shard's.
    _locks: Vec<File>,
}

/// What a data directory is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Of the layout.
    pub format: u32,
    pub cluster_id: String,
    pub broker_id: String,
    /// Fixed at the first start.
    pub shards: u16,
}

impl Directory {
    /// Take the directory: make it if it is not there, lock it, read or write what it is. `shards`
    /// is what the operator asked for; `default_shards` what a new directory gets without that.
    ///
    /// # Errors
    /// Every reason why it cannot be used, with what to do.
    pub fn open(path: &Path, shards: Option<u16>, default_shards: u16) -> Result<Self, Error> {
        let error = |what: &'static str| move |source| Error::directory(path, what, &source);
        if !path.exists() {
            let made = fs::DirBuilder::new()
                .recursive(true)
                .mode(0o750)
                .create(path);
            made.map_err(error("make"))?;
        }
        is_ours_alone(path)?;
        let mut locks = vec![lock(path)?];
        // The directory itself, and those of the shards, whatever became of the file `lock`: their locks
        // go where they go, and cannot be removed without them.
        locks.extend(lock_directory(path, path)?);
        for made in MADE_WITHIN {
            let made = path.join(made);
            make_for_us(&made).map_err(error("make a directory in"))?;
            is_ours_alone(&made)?;
        }
        let file = path.join("meta.toml");
        let meta = match known(path)? {
            Some(meta) => meta,
            None => {
                let meta = Meta {
                    format: FORMAT,
                    cluster_id: uuid::Uuid::new_v4().to_string(),
                    broker_id: uuid::Uuid::new_v4().to_string(),
                    shards: shards.unwrap_or(default_shards),
                };
                // Before it is said that they are there: from then on, one that is missing is lost.
                for shard in 0..meta.shards {
                    let shard = path.join(format!("shard-{shard}"));
                    make_for_us(&shard).map_err(error("make a directory in"))?;
                }
                let text = toml::to_string(&meta).expect("plain values have a TOML form");
                write_file(&file, text.as_bytes(), 0o644).map_err(error("write to"))?;
                meta
            }
        };
        meta.suits(path, shards)?;
        for shard in 0..meta.shards {
            let shard = path.join(format!("shard-{shard}"));
            is_ours_alone(&shard)?;
            locks.extend(lock_directory(&shard, path)?);
        }
        Ok(Self {
            path: path.to_owned(),
            meta,
            _locks: locks,
        })
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    #[must_use]
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Where a shard's log lies.
    #[must_use]
    pub fn shard(&self, shard: u16) -> PathBuf {
        self.path.join(format!("shard-{shard}"))
    }

    /// Where components are kept.
    #[must_use]
    pub fn components(&self) -> PathBuf {
        self.path.join("components")
    }

    /// The broker's own random key.
    #[must_use]
    pub(crate) fn secret(&self) -> PathBuf {
        self.path.join("secret.key")
    }

    /// Where certificates made here lie.
    #[must_use]
    pub fn tls(&self) -> PathBuf {
        self.path.join("tls")
    }

    /// The file that tells clients on this machine how to connect.
    #[must_use]
    pub fn context(&self) -> PathBuf {
        self.path.join("context.toml")
    }
}

impl Meta {
    /// Whether this is what the operator asked for.
    fn suits(&self, path: &Path, shards: Option<u16>) -> Result<(), Error> {
        match shards {
            Some(asked) if asked != self.shards => Err(Error::Shards {
                path: path.to_owned(),
                has: self.shards,
                asked,
            }),
            _ => Ok(()),
        }
    }
}

/// What a directory is, as this build can open it; `None` when it is a new one.
fn known(path: &Path) -> Result<Option<Meta>, Error> {
    let file = path.join("meta.toml");
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        // Shards without their meta file are not a new directory.
        Err(source) if source.kind() == io::ErrorKind::NotFound => {
            // One that is empty is left from a first start that was broken off.
            let in_shard = fs::read_dir(path.join("shard-0"));
            if !in_shard.is_ok_and(|mut files| files.next().is_some()) {
                return Ok(None);
            }
            let why = "missing, but there are shards: restore it from a backup, or write it with the number of \
                       shard-N directories as `shards`";
            return Err(Error::Meta {
                path: file,
                why: why.to_owned(),
            });
        }
        Err(source) => return Err(Error::directory(path, "read", &source)),
    };
    let meta = parse_meta(&file, &text)?;
    if meta.shards == 0 {
        let why = "a directory has at least one shard".to_owned();
        return Err(Error::Meta { path: file, why });
    }
    if let Some(why) = missing_shard(path, &meta) {
        return Err(Error::Meta { path: file, why });
    }
    Ok(Some(meta))
}

/// Whether a directory could be opened, as far as that shows without taking it. Nothing is left behind.
pub(crate) fn check(path: &Path, shards: Option<u16>) -> Result<(), Error> {
    let error = |what: &'static str| move |source| Error::directory(path, what, &source);
    let there = path
        .ancestors()
        .map(|part| match part.as_os_str().is_empty() {
            true => Path::new("."),
            false => part,
        })
        .find(|part| fs::symlink_metadata(part).is_ok())
        .unwrap_or(Path::new("/"));
    if !there.is_dir() {
        let source = io::Error::other(format!("{} is not a directory", there.display()));
        return Err(Error::directory(path, "make", &source));
    }
    let what = if there == path { "write to" } else { "make" };
    try_to_make_in(there).map_err(error(what))?;
    let meta = known(path)?;
    let shards_there = meta.as_ref().map_or(0, |meta| meta.shards);
    let inside = (0..shards_there).map(|shard| format!("shard-{shard}"));
    let inside = inside.chain(MADE_WITHIN.map(str::to_owned));
    for kept in [path.to_owned()]
        .into_iter()
        .chain(inside.map(|name| path.join(name)))
        .filter(|kept| kept.exists())
    {
        is_ours_alone(&kept)?;
    }
    if path.join("lock").is_symlink() {
        return Err(linked_lock(path));
    }
    match meta {
        Some(meta) => meta.suits(path, shards),
        None => Ok(()),
    }
}

/// Whether this user can make something in a folder: rights, mounts and quotas are known to the system alone.
fn try_to_make_in(folder: &Path) -> io::Result<()> {
    let probe = folder.join(format!(".millstream-{}", uuid::Uuid::new_v4()));
    fs::create_dir(&probe)?;
    fs::remove_dir(&probe)
}

/// A shard that should be there and is not: lost, not empty.
#[must_use]
pub fn missing_shard(path: &Path, meta: &Meta) -> Option<String> {
    let missing = (0..meta.shards).find(|shard| !path.join(format!("shard-{shard}")).is_dir())?;
    Some(format!(
        "it says {} shards, and shard-{missing} is missing: restore it from a backup (an empty directory of that \
         name begins it anew, without its records)",
        meta.shards
    ))
}

/// Read what a directory is, without taking it.
///
/// # Errors
/// When there is no readable `meta.toml`.
pub fn read_meta(path: &Path) -> Result<Meta, Error> {
    let file = path.join("meta.toml");
    match fs::read_to_string(&file) {
        Ok(text) => parse_meta(&file, &text),
        Err(source) => Err(Error::Meta {
            path: file,
            why: source.to_string(),
        }),
    }
}

fn parse_meta(file: &Path, text: &str) -> Result<Meta, Error> {
    let strange = |why| Error::Meta {
        path: file.to_owned(),
        why,
    };
    let meta: Meta = toml::from_str(text).map_err(|error| strange(error.to_string()))?;
    if meta.format != FORMAT {
        let why = format!(
            "format {}, this build knows {FORMAT}: use the build that wrote it",
            meta.format
        );
        return Err(strange(why));
    }
    Ok(meta)
}

/// Refuse a directory that somebody else could change under the broker.
fn is_ours_alone(path: &Path) -> Result<(), Error> {
    let found = fs::metadata(path).map_err(|source| Error::directory(path, "read", &source))?;
    let refuse = |why: String| {
        Err(Error::Unsafe {
            path: path.to_owned(),
            why,
        })
    };
    let (owner, user) = (found.uid(), sys::user());
    if owner != user {
        return refuse(format!(
            "it belongs to user {owner}, and this is user {user}: run the broker as its owner, or give it the \
             directory with chown"
        ));
    }
    if found.mode() & 0o022 != 0 {
        return refuse(format!(
            "others may write to it (mode {:04o}), and so change records and tokens: take that right away with \
             `chmod go-w`, or name a directory below it",
            found.mode() & 0o7777
        ));
    }
    Ok(())
}

/// Hold a directory itself. `None` where the file system knows no locks of directories: the file `lock`
/// must do then.
fn lock_directory(path: &Path, data: &Path) -> Result<Option<File>, Error> {
    let directory = File::open(path).map_err(|source| Error::directory(path, "open", &source))?;
    match hold(&directory) {
        Ok(true) => Ok(Some(directory)),
        Ok(false) => {
            let mut holder = String::new();
            if let Ok(mut lock) = File::open(data.join("lock")) {
                drop(lock.read_to_string(&mut holder)); // only for the message
            }
            let ours = holder.trim() == std::process::id().to_string();
            Err(Error::InUse {
                path: path.to_owned(),
                holder: if ours {
                    "another process, though its file `lock` is gone".to_owned()
                } else {
                    pid_words(&holder)
                },
            })
        }
        Err(source) => {
            tracing::warn!(%source, directory = %path.display(), "this directory cannot be locked");
            Ok(None)
        }
    }
}

/// Whether the lock was had, some patience included.
fn hold(file: &File) -> io::Result<bool> {
    let asked = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            // A broker that was just killed holds it until the kernel has taken the process down.
            Err(TryLockError::WouldBlock) if asked.elapsed() < LOCK_WAIT => {
                std::thread::sleep(LOCK_LOOK);
            }
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(source)) => return Err(source),
        }
    }
}

fn pid_words(holder: &str) -> String {
    let pid = holder.trim();
    if pid.is_empty() {
        "another process".to_owned()
    } else {
        format!("pid {pid}")
    }
}

/// Make a directory that only this user may look into, where there is none.
fn make_for_us(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(path)
}

fn linked_lock(path: &Path) -> Error {
    Error::Unsafe {
        path: path.join("lock"),
        why:
            "it is a symbolic link, which would have another file locked and written to: remove it"
                .to_owned(),
    }
}

fn lock(path: &Path) -> Result<File, Error> {
    let error = |what: &'static str| move |source| Error::directory(path, what, &source);
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path.join("lock"))
        .map_err(|source| match source.raw_os_error() {
            Some(libc::ELOOP) => linked_lock(path),
            _ => Error::directory(path, "lock", &source),
        })?;
    if !hold(&file).map_err(error("lock"))? {
        let mut holder = String::new();
        drop(file.read_to_string(&mut holder)); // only for the message
        return Err(Error::InUse {
            path: path.to_owned(),
            holder: pid_words(&holder),
        });
    }
    file.set_len(0).map_err(error("lock"))?;
    file.rewind().map_err(error("lock"))?;
    writeln!(file, "{}", std::process::id()).map_err(error("lock"))?;
    Ok(file)
}

/// Write a file so that after a crash it is there whole or not at all.
pub(crate) fn write_file(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let write = || {
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        let parent = path.parent().unwrap_or(Path::new("."));
        File::open(parent)?.sync_all()
    };
    let result = write();
    if result.is_err() {
        drop(fs::remove_file(&temporary)); // it may not be there
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_held_by_one_and_keeps_what_it_is() {
        let root = tempfile::tempdir().expect("a directory");
        let path = root.path().join("data");
        let first = Directory::open(&path, None, 2).expect("made");
        let meta = first.meta().clone();
        assert_eq!(meta.shards, 2);
        let error = Directory::open(&path, None, 2)
            .expect_err("held")
            .to_string();
        assert!(
            error.contains("in use") && error.contains(&std::process::id().to_string()),
            "{error}"
        );
        drop(first);
        assert_eq!(
            Directory::open(&path, None, 7)
                .expect("opened again")
                .meta(),
            &meta
        );
        let error = Directory::open(&path, Some(3), 2)
            .expect_err("another number")
            .to_string();
        assert!(error.contains("2 shards") && error.contains('3'), "{error}");
    }

    /// A shard that is gone is not taken for one that never was.
    #[test]
    fn a_lost_shard_is_missed() {
        let root = tempfile::tempdir().expect("a directory");
        drop(Directory::open(root.path(), None, 2).expect("made"));
        fs::remove_dir(root.path().join("shard-1")).expect("removed");
        let error = Directory::open(root.path(), None, 2)
            .expect_err("a shard is missing")
            .to_string();
        assert!(error.contains("shard-1 is missing"), "{error}");
    }

    #[test]
    fn a_removed_lock_file_lets_nobody_in() {
        let root = tempfile::tempdir().expect("a directory");
        let path = root.path().join("data");
        let first = Directory::open(&path, None, 1).expect("made");
        fs::remove_file(path.join("lock")).expect("removed");
        let error = Directory::open(&path, None, 1)
            .expect_err("held all the same")
            .to_string();
        assert!(error.contains("in use"), "{error}");
        // Nor does another name for the shard's files.
        let other = root.path().join("other");
        drop(Directory::open(&other, None, 1).expect("made"));
        fs::remove_dir(other.join("shard-0")).expect("empty");
        fs::rename(path.join("shard-0"), other.join("shard-0")).expect("moved");
        let error = Directory::open(&other, None, 1)
            .expect_err("the log is held")
            .to_string();
        assert!(
            error.contains("in use") && error.contains("shard-0"),
            "{error}"
        );
        drop(first);
        Directory::open(&other, None, 1).expect("free");
    }

    #[test]
    fn what_others_could_change_is_refused() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        let root = tempfile::tempdir().expect("a directory");
        let path = root.path().join("data");
        let open = || Directory::open(&path, None, 1).map(drop);
        let mode = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
        };
        open().expect("made");
        for what in ["data", "data/shard-0"] {
            let what = root.path().join(what);
            mode(&what, 0o777);
            let error = open().expect_err("others may write").to_string();
            assert!(error.contains("0777") && error.contains("chmod"), "{error}");
            let said = check(&path, None).expect_err("it is said beforehand");
            assert_eq!(said.to_string(), error);
            mode(&what, 0o700);
        }
        let elsewhere = root.path().join("elsewhere");
        fs::write(&elsewhere, "precious").expect("written");
        fs::remove_file(path.join("lock")).expect("removed");
        symlink(&elsewhere, path.join("lock")).expect("linked");
        let said = check(&path, None).expect_err("it is said beforehand");
        let error = open().expect_err("a link").to_string();
        assert!(error.contains("symbolic link"), "{error}");
        assert_eq!(said.to_string(), error);
        assert_eq!(fs::read_to_string(&elsewhere).expect("there"), "precious");
        fs::remove_file(path.join("lock")).expect("removed");
        open().expect("good again");
    }

    #[test]
    fn a_lost_or_foreign_meta_file_is_not_a_new_directory() {
        let root = tempfile::tempdir().expect("a directory");
        drop(Directory::open(root.path(), None, 1).expect("made"));
        fs::write(root.path().join("shard-0/wal"), "").expect("written");
        fs::remove_file(root.path().join("meta.toml")).expect("removed");
        assert!(matches!(
            Directory::open(root.path(), None, 1),
            Err(Error::Meta { .. })
        ));
        let other = "format = 99\ncluster_id = \"\"\nbroker_id = \"\"\nshards = 1\n";
        fs::write(root.path().join("meta.toml"), other).expect("written");
        let error = Directory::open(root.path(), None, 1)
            .expect_err("newer")
            .to_string();
        assert!(error.contains("99"), "{error}");
    }
}
