//! Disks that do what the log asks: io_uring inside a tokio current-thread runtime, and a portable
//! fallback of a few threads behind the same [`Storage`] trait.
//!
//! The only io_uring and `O_DIRECT` code of the project. Absent on purpose: what is written and
//! when (that is `millstream-log`), retries of a failed write or sync (nobody may do that).

mod background;
mod files;
mod flight;
mod pages;
mod portable;
mod ring;
mod sys;

use std::io;
use std::path::Path;
use std::thread::{self, JoinHandle};

use millstream_log::io::Storage;

pub use files::{OPEN_FILES_MAX, OPEN_FILES_MIN, OTHER_FILES};
pub use portable::PortableStorage;
pub use ring::RingStorage;

/// Which storage to open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preference {
    /// The ring if the kernel, the container and the runtime allow it, else the fallback.
    #[default]
    Auto,
    /// The ring or an error.
    Ring,
    /// The fallback, always.
    Portable,
}

/// Open the storage of one shard's directory (made if it is not there), and say in one line which
/// it is and why.
///
/// Call it on the thread that will own the storage, inside its tokio runtime (with I/O and time
/// enabled). The ring
/// keeps at most `read_bytes` of memory for reads, once much is read. At most `files_max` log files stay
/// open, and at least [`OPEN_FILES_MIN`].
///
/// # Errors
/// The directory cannot be made or opened; with [`Preference::Ring`], why the ring is not to be had.
pub fn open(
    dir: &Path,
    preference: Preference,
    read_bytes: usize,
    files_max: usize,
) -> io::Result<Box<dyn Storage>> {
    if preference == Preference::Portable {
        let storage = PortableStorage::open(dir, files_max)?;
        tracing::info!(dir = %dir.display(), "storage: {}, as configured", storage.describe());
        return Ok(Box::new(storage));
    }
    match RingStorage::open(dir, read_bytes, files_max) {
        Ok(storage) => {
            tracing::info!(dir = %dir.display(), "storage: {}", storage.describe());
            Ok(Box::new(storage))
        }
        Err(error) if preference == Preference::Auto && ring::is_refusal(&error) => {
            let storage = PortableStorage::open(dir, files_max)?;
            tracing::warn!(dir = %dir.display(), "storage: {}, because {error}", storage.describe());
            Ok(Box::new(storage))
        }
        Err(error) => Err(error),
    }
}

/// A thread that works for a shard's disk.
fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    let thread = thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.map_err(|error| {
        let words = format!(
            "no thread can be started ({error}): raise the limit of processes and threads (ulimit -u, TasksMax=)"
        );
        io::Error::new(error.kind(), words)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// File systems without `O_DIRECT` get the page cache, and the same promises.
    #[test]
    fn both_conform_without_direct_io() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(async {
            let temp = tempfile::tempdir().expect("a temporary directory");
            let mut made = 0;
            let mut dir = || {
                made += 1;
                temp.path().join(made.to_string())
            };
            let mut portable = || -> Box<dyn Storage> {
                let storage = PortableStorage::open(&dir(), OPEN_FILES_MAX).expect("it opens");
                storage.give_up_direct();
                Box::new(storage)
            };
            millstream_log::conformance::run(&mut portable).await;
            match RingStorage::open(&dir(), 0, OPEN_FILES_MAX) {
                Err(error) => assert!(ring::is_refusal(&error), "{error}"),
                Ok(_) => {
                    let mut ring = || -> Box<dyn Storage> {
                        let storage =
                            RingStorage::open(&dir(), 0, OPEN_FILES_MAX).expect("it opens");
                        storage.give_up_direct();
                        assert!(storage.describe().contains("buffered"));
                        Box::new(storage)
                    };
                    millstream_log::conformance::run(&mut ring).await;
                }
            }
        });
    }
}
