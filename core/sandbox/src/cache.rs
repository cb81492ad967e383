//! Compiled code on disk, so that a restart does not compile again.
//!
//! A file holds `"MSCOMP1\n"`, the HMAC-SHA-256 of name and artifact, then the artifact. Its name is
//! the SHA-256 of the component's digest and everything that compiled code depends on (wasmtime's
//! version and settings, the processor's features). Loading compiled code is trusting it, so only what
//! this data directory's key has signed is loaded; all else is a miss, and is compiled again.
//!
//! Deliberately absent: anything that correctness hangs on. The cache may be deleted, its key too, at any time.

#![allow(
    unsafe_code,
    reason = "loading compiled code is unsafe: wasmtime cannot check that it is what it compiled"
)]

use std::fs::{self, File, OpenOptions};
use std::hash::{Hash, Hasher};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};
use tracing::{debug, warn};

use crate::component::Digest;
use crate::hmac::{hmac_sha256, same};

const MAGIC: &[u8; 8] = b"MSCOMP1\n";
const TAG_BYTES: usize = 32;
const KEY_FILE: &str = "key";
const SUFFIX: &str = "compiled";
/// Extension of a file that is being written, before the process's id.
const PARTIAL: &str = "partial-";
/// Largest file that is read back. Compiled code is about five times the component.
const FILE_BYTES_MAX: u64 = 512 << 20;
/// All files together; past it the oldest go.
const CACHE_BYTES_MAX: u64 = 512 << 20;

/// A directory of compiled components.
#[derive(Debug)]
pub(crate) struct Cache {
    dir: PathBuf,
    key: [u8; 32],
}

impl Cache {
    /// Opens or makes the directory and its key, which only this user can read. A directory that others own
    /// or may write is refused: whoever can put a key there can sign code.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        let mut builder = fs::DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.recursive(true).create(dir)?;
        require_own(&fs::symlink_metadata(dir)?, 0o022)?;
        let path = dir.join(KEY_FILE);
        let key = match read_key(&path) {
            Ok(key) => key,
            Err(error) if error.kind() == io::ErrorKind::NotFound => make_key(&path)?,
            Err(error) => {
                warn!(path = %path.display(), %error, "the key of the cache of compiled components is unusable; a new one replaces it, and components are compiled again");
                fs::remove_file(&path)?;
                make_key(&path)?
            }
        };
        Ok(Self {
            dir: dir.to_owned(),
            key,
        })
    }

    /// This component as compiled for this engine earlier, if it is there and authentic.
    pub(crate) fn load(
        &self,
        engine: &wasmtime::Engine,
        digest: &Digest,
    ) -> Option<wasmtime::component::Component> {
        let name = name(engine, digest);
        let path = self.path(&name);
        let bytes = match read_bounded(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                warn!(path = %path.display(), %error, "a compiled component could not be read; it is compiled again");
                return None;
            }
        };
        let Some(code) = self.authentic(&name, &bytes) else {
            warn!(path = %path.display(), "a compiled component was damaged or not made by this broker; it is removed and compiled again");
            let _ = fs::remove_file(&path); // if it stays, it is refused again
            return None;
        };
        // SAFETY: `deserialize` asks for bytes that `serialize` of the same wasmtime made. The tag
        // says that a holder of the key wrote `code` under this name; only `store` uses the key, with
        // the output of `serialize`; and the name binds wasmtime's version and settings and the
        // processor. The bytes are our own copy, so they cannot change after the check.
        match unsafe { wasmtime::component::Component::deserialize(engine, code) } {
            Ok(component) => Some(component),
            Err(error) => {
                warn!(path = %path.display(), %error, "a compiled component could not be loaded; it is compiled again");
                None
            }
        }
    }

    /// Keeps compiled code. A failure costs a compilation at the next start, and is logged.
    pub(crate) fn store(&self, engine: &wasmtime::Engine, digest: &Digest, code: &[u8]) {
        let name = name(engine, digest);
        let path = self.path(&name);
        let partial = path.with_extension(format!("{PARTIAL}{}", std::process::id()));
        let tag = hmac_sha256(&self.key, &[name.as_bytes(), code]);
        let written = File::create(&partial)
            .and_then(|mut file| {
                file.write_all(MAGIC)?;
                file.write_all(&tag)?;
                file.write_all(code)
            })
            .and_then(|()| fs::rename(&partial, &path))
            .and_then(|()| self.trim(&path));
        if let Err(error) = written {
            let _ = fs::remove_file(&partial); // may not be there
            warn!(path = %path.display(), %error, "a compiled component could not be kept; it will be compiled again at the next start");
        }
    }

    /// Removes what was compiled of other components than `named`, by other brokers or for other
    /// processors, and what was left half written: nobody asks for it any more. How many files.
    pub(crate) fn sweep(&self, engine: &wasmtime::Engine, named: &[Digest]) -> io::Result<usize> {
        let names: Vec<String> = named.iter().map(|digest| name(engine, digest)).collect();
        sweep_dir(&self.dir, |stem| names.iter().any(|name| name == stem))
    }

    /// The compiled code in a file's content, if this cache's key signed it under this name.
    fn authentic<'a>(&self, name: &str, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let (magic, rest) = bytes.split_first_chunk::<{ MAGIC.len() }>()?;
        let (tag, code) = rest.split_first_chunk::<TAG_BYTES>()?;
        let authentic =
            magic == MAGIC && same(tag, &hmac_sha256(&self.key, &[name.as_bytes(), code]));
        authentic.then_some(code)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name).with_extension(SUFFIX)
    }

    /// Removes the oldest files until all together are under the bound, never `keep`.
    fn trim(&self, keep: &Path) -> io::Result<()> {
        let mut files = Vec::new();
        let mut bytes_all = 0;
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let path = entry.path();
            if path.extension().is_some_and(|e| e == SUFFIX) {
                let meta = entry.metadata()?;
                bytes_all += meta.len();
                let age = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                files.push((age, meta.len(), path));
            }
        }
        files.sort();
        for (_, bytes, path) in files {
            if bytes_all <= CACHE_BYTES_MAX {
                break;
            }
            if path != keep {
                debug!(path = %path.display(), "the oldest compiled component makes room");
                fs::remove_file(&path)?;
                bytes_all -= bytes;
            }
        }
        Ok(())
    }
}

/// Removes all compiled code in a directory that is no cache now. How many files.
pub(crate) fn clear(dir: &Path) -> io::Result<usize> {
    match sweep_dir(dir, |_| false) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        other => other,
    }
}

/// Removes files of a cache, by the name that they are kept under.
fn sweep_dir(dir: &Path, keep: impl Fn(&str) -> bool) -> io::Result<usize> {
    let mut removed = 0;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let extension = path
            .extension()
            .and_then(|e| e.to_str())
            .unwrap_or_default();
        let stem = path
            .file_stem()
            .and_then(|s| s.to_str())
            .unwrap_or_default();
        let is_code = extension == SUFFIX && !keep(stem);
        if is_code || extension.starts_with(PARTIAL) {
            fs::remove_file(&path)?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// SHA-256 of the component's digest and all that its compiled code depends on, in hexadecimal.
fn name(engine: &wasmtime::Engine, digest: &Digest) -> String {
    struct Sha(Sha256);
    impl Hasher for Sha {
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
        fn finish(&self) -> u64 {
            unreachable!("only the SHA-256 is read")
        }
    }
    let mut sha = Sha(Sha256::new_with_prefix(digest.as_bytes()));
    engine.precompile_compatibility_hash().hash(&mut sha);
    Digest::from(<[u8; 32]>::from(sha.0.finalize())).to_string()
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let bytes = file.metadata()?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(io::Error::other(format!(
            "{bytes} bytes, more than {FILE_BYTES_MAX}"
        )));
    }
    let mut content = Vec::with_capacity(bytes as usize);
    file.take(FILE_BYTES_MAX).read_to_end(&mut content)?;
    Ok(content)
}

/// That a file or directory is this user's, is no link, and has none of these permissions.
#[cfg(unix)]
fn require_own(meta: &fs::Metadata, forbidden: u32) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let me = fs::metadata("/proc/self").map(|me| me.uid());
    let why = if meta.is_symlink() {
        "it is a link"
    } else if me.is_ok_and(|me| me != meta.uid()) {
        "another user owns it"
    } else if meta.mode() & forbidden != 0 {
        "others than its owner could change what is run"
    } else {
        return Ok(());
    };
    let mode = meta.mode() & 0o7777;
    let message = format!("{why} (mode {mode:o}): make it the broker's own, or remove it");
    Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
}

#[cfg(not(unix))]
fn require_own(_: &fs::Metadata, _: u32) -> io::Result<()> {
    Ok(())
}

fn read_key(path: &Path) -> io::Result<[u8; 32]> {
    require_own(&fs::symlink_metadata(path)?, 0o077)?;
    let bytes = read_bounded(path)?;
    <[u8; 32]>::try_from(bytes)
        .map_err(|bytes| io::Error::other(format!("{} bytes instead of 32", bytes.len())))
}

fn make_key(path: &Path) -> io::Result<[u8; 32]> {
    let mut key = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut key)?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)?.write_all(&key)?;
    Ok(key)
}
