//! Lines in the broker's log, under the deployment's name. The broker rations them: do not log every
//! record. In native builds they go to the standard error. Deliberately absent: formatting.

/// How important a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// The flow of control, for the author.
    Trace,
    /// For somebody who looks for a fault.
    Debug,
    /// For somebody who watches the broker.
    Info,
    /// Something is not as it should be.
    Warn,
    /// Something is wrong.
    Error,
    /// The component cannot go on.
    Critical,
}

/// Writes a line.
pub fn line(level: Level, message: &str) {
    #[cfg(target_family = "wasm")]
    crate::guest::log(level, message);
    #[cfg(not(target_family = "wasm"))]
    eprintln!("{level:?}: {message}");
}

/// Writes a line of level [`Level::Info`].
pub fn info(message: &str) {
    line(Level::Info, message);
}

/// Writes a line of level [`Level::Warn`].
pub fn warn(message: &str) {
    line(Level::Warn, message);
}
