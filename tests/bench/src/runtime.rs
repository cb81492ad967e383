//! The runtime of the programs that run on one thread: the ceilings, and clients inside this process.

use std::io;

use tokio::runtime::{Builder, Runtime};

pub(crate) fn one_thread() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}
