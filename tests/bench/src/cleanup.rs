//! What must not be left behind: processes that run and directories that were made for a run. Both go
//! when their owner is dropped, and all of them when this program is interrupted.
//!
//! Deliberately absent: what happens at `kill -9`; then the directories stay, below the temporary one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};

use crate::runtime;

/// What the shell expects of a program that SIGINT ended.
const INTERRUPTED: i32 = 130;

static LIVE: Mutex<Live> = Mutex::new(Live {
    children: BTreeMap::new(),
    directories: BTreeSet::new(),
});

struct Live {
    children: BTreeMap<u32, Arc<Mutex<Child>>>,
    directories: BTreeSet<PathBuf>,
}

/// From now on SIGINT and SIGTERM end the children, remove the directories and end this process.
pub(crate) fn install() -> Result<()> {
    let runtime = runtime::one_thread()?;
    let (mut interrupted, mut terminated) = {
        let _entered = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        )
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupted.recv() => {}
                    _ = terminated.recv() => {}
                }
            });
            eprintln!("\ninterrupted: ending what runs and removing what was written");
            // Held to the end, so that nothing new is begun.
            let live = lock(&LIVE);
            for child in live.children.values() {
                let mut child = lock(child);
                let _ = child.kill();
                let _ = child.wait();
            }
            for directory in &live.directories {
                let _ = std::fs::remove_dir_all(directory);
            }
            std::process::exit(INTERRUPTED);
        })?;
    Ok(())
}

/// A process that is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Tracked {
    id: u32,
    child: Arc<Mutex<Child>>,
}

impl Tracked {
    pub(crate) fn spawn(command: &mut Command) -> Result<Self> {
        let mut live = lock(&LIVE);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let id = child.id();
        let child = Arc::new(Mutex::new(child));
        live.children.insert(id, Arc::clone(&child));
        Ok(Self { id, child })
    }

    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// The child itself. Do not keep it locked while waiting for something.
    pub(crate) fn child(&self) -> MutexGuard<'_, Child> {
        lock(&self.child)
    }

    /// How it ended. Ask only when it has: this waits, and the child is locked meanwhile.
    pub(crate) fn status(&self) -> Result<ExitStatus> {
        Ok(self.child().wait()?)
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        {
            let mut child = self.child();
            // Both fail only when it has ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        lock(&LIVE).children.remove(&self.id);
    }
}

/// A directory of its own that goes away when this is dropped.
#[derive(Debug)]
pub(crate) struct DataDir(PathBuf);

impl DataDir {
    /// A new one below `parent`, or below the system's temporary directory.
    pub(crate) fn new(parent: Option<&Path>) -> Result<Self> {
        let mut live = lock(&LIVE);
        let parent = parent.map_or_else(std::env::temp_dir, Path::to_owned);
        std::fs::create_dir_all(&parent)
            .with_context(|| format!("cannot write to {}", parent.display()))?;
        let made = tempfile::Builder::new()
            .prefix("millstream-bench-")
            .tempdir_in(parent)?
            .keep();
        live.directories.insert(made.clone());
        Ok(Self(made))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for DataDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
        lock(&LIVE).directories.remove(&self.0);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_goes_with_its_owner() {
        let directory = DataDir::new(None).expect("it is made");
        let path = directory.path().to_owned();
        std::fs::write(path.join("file"), "x").expect("it is written");
        drop(directory);
        assert!(!path.exists());
    }

    #[test]
    fn a_child_ends_with_its_owner() {
        let child = Tracked::spawn(Command::new("sleep").arg("1000")).expect("it starts");
        let proc = PathBuf::from(format!("/proc/{}", child.id()));
        assert!(proc.exists());
        drop(child);
        assert!(!proc.exists());
    }
}
