//! Why the broker cannot start or go on, in words for the operator.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::config::ConfigError;
use crate::ports::{self, Transport};

/// A failure of the broker as a whole. What clients are told is in `refusal`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("the data directory {} is in use by {holder}: stop it first, or choose another with --data", path.display())]
    InUse { path: PathBuf, holder: String },
    #[error("{}: {why}", path.display())]
    Unsafe { path: PathBuf, why: String },
    #[error("cannot {what} the data directory {}: {why}", path.display())]
    Directory {
        path: PathBuf,
        what: &'static str,
        why: String,
    },
    #[error("{}: {why}", path.display())]
    Meta { path: PathBuf, why: String },
    #[error(
        "the data directory {} has {has} shards, which is fixed at its first start, and --shards asks for {asked}: \
         leave --shards out; to have {asked}, start a new directory and copy the topics with `millstream sub` and `pub`",
        path.display()
    )]
    Shards { path: PathBuf, has: u16, asked: u16 },
    #[error("cannot listen on {address}: {why}: {advice}")]
    Listen {
        address: SocketAddr,
        why: io::Error,
        advice: String,
    },
    #[error("TLS: {0}")]
    Tls(String),
    #[error("shard {shard} does not start: {why}")]
    Shard { shard: u16, why: String },
    #[error("components: {0}")]
    Sandbox(String),
    #[error("{0}")]
    Internal(String),
}

impl Error {
    pub(crate) fn listen(transport: Transport, address: SocketAddr, why: io::Error) -> Self {
        let advice = match why.kind() {
            io::ErrorKind::AddrInUse => {
                let holder = ports::holder(transport, address)
                    .map_or_else(|| "another process".to_owned(), |holder| holder.to_string());
                format!("{holder} has it: stop that, or choose another address")
            }
            io::ErrorKind::AddrNotAvailable => "choose an address that this machine has".to_owned(),
            io::ErrorKind::PermissionDenied => {
                "choose a port above 1023, or give the process the right to this one".to_owned()
            }
            _ => "choose another address".to_owned(),
        };
        Self::Listen {
            address,
            why,
            advice,
        }
    }

    /// No thread can be started.
    pub(crate) fn thread(source: &io::Error) -> Self {
        Self::Internal(format!(
            "no thread can be started ({source}): raise the limit of processes and threads (ulimit -u, TasksMax=)"
        ))
    }

    pub(crate) fn directory(path: &Path, what: &'static str, source: &io::Error) -> Self {
        let why = match source.kind() {
            io::ErrorKind::ReadOnlyFilesystem => {
                "the file system is read-only: mount it for writing, or choose another directory with --data".to_owned()
            }
            io::ErrorKind::PermissionDenied => {
                format!("{source}: give this user the right to write there, or choose another directory with --data")
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "the disk is full: free space and start again".to_owned()
            }
            _ => match source.raw_os_error() {
                Some(libc::EMFILE) => {
                    format!("{source}: raise the limit of open files (ulimit -n, LimitNOFILE=)")
                }
                Some(libc::EFBIG) => {
                    format!("{source}: raise the limit of file sizes (ulimit -f, LimitFSIZE=)")
                }
                _ => source.to_string(),
            },
        };
        Self::Directory {
            path: path.to_owned(),
            what,
            why,
        }
    }
}
