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

use millstream_log::io::Storage;

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
/// Call it on the thread that will own the storage, inside its tokio runtime (with I/O enabled). The ring
/// keeps at most `read_bytes` of memory for reads, once much is read.
///
/// # Errors
/// The directory cannot be made or opened; with [`Preference::Ring`], why the ring is not to be had.
pub fn open(dir: &Path, preference: Preference, read_bytes: usize) -> io::Result<Box<dyn Storage>> {
    if preference == Preference::Portable {
        let storage = PortableStorage::open(dir)?;
        tracing::info!(dir = %dir.display(), "storage: {}, as configured", storage.describe());
        return Ok(Box::new(storage));
    }
    match RingStorage::open(dir, read_bytes) {
        Ok(storage) => {
            tracing::info!(dir = %dir.display(), "storage: {}", storage.describe());
            Ok(Box::new(storage))
        }
        Err(error) if preference == Preference::Auto && ring::is_refusal(&error) => {
            let storage = PortableStorage::open(dir)?;
            tracing::warn!(dir = %dir.display(), "storage: {}, because {error}", storage.describe());
            Ok(Box::new(storage))
        }
        Err(error) => Err(error),
    }
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
                let storage = PortableStorage::open(&dir()).expect("it opens");
                storage.give_up_direct();
                Box::new(storage)
            };
            millstream_log::conformance::run(&mut portable).await;
            match RingStorage::open(&dir(), 0) {
                Err(error) => assert!(ring::is_refusal(&error), "{error}"),
                Ok(_) => {
                    let mut ring = || -> Box<dyn Storage> {
                        let storage = RingStorage::open(&dir(), 0).expect("it opens");
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
