//! What can go wrong with a component, sorted by who erred and when it shows. Each text says what to
//! do. Deliberately absent: public error codes (the broker maps these).

use std::fmt::Write as _;

use thiserror::Error;

use crate::log::one_line;

/// Bytes of one name, or of a library's words, in an error.
const NAME_BYTES_MAX: usize = 400;

/// Whose mistake an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Erred {
    /// The component's author.
    Component,
    /// Whoever gave the parameters or the budget.
    Deployer,
    /// The broker or its machine.
    Broker,
}

/// The engine could not be made.
#[derive(Debug, Error)]
pub enum EngineError {
    /// The address space for instances could not be reserved, or the processor lacks something.
    #[error(
        "the WebAssembly engine did not start: {0}; each instance reserves 4 GiB of address space \
         (not memory), so raise the address-space limit (ulimit -v) or lower the number of instances"
    )]
    Start(String),
    /// The thread that watches time budgets could not be started.
    #[error("the thread that watches time budgets did not start: {0}; raise the thread limit")]
    Ticker(std::io::Error),
}

/// A component was refused at deployment. Nothing of it has run.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CompileError {
    /// Over the upload limit.
    #[error(
        "the component has {bytes} bytes, more than the {bytes_max} allowed; build with \
         `--release`, and strip it (`strip = true` in the profile)"
    )]
    TooLarge {
        /// Bytes given.
        bytes: usize,
        /// Bytes allowed.
        bytes_max: usize,
    },
    /// A core module, not a component.
    #[error(
        "this is a core WebAssembly module, not a component; build for wasm32-wasip2, or wrap the \
         module with `wasm-tools component new`"
    )]
    CoreModule,
    /// Not WebAssembly, cut short, or damaged.
    #[error(
        "this is not a valid WebAssembly component: {}; if it was copied, compare its length and \
         digest with the original, else build it again",
        short(.0)
    )]
    Malformed(String),
    /// Exports nothing that the broker calls.
    #[error(
        "the component exports no plug point; it must export {offered}, but exports {}; name the \
         world (`millstream:plugin/filter`) when building",
        list(exports)
    )]
    NoPlugPoint {
        /// What could be exported.
        offered: &'static str,
        /// What is exported.
        exports: Vec<String>,
    },
    /// A plug point of another version of the package.
    #[error(
        "the component exports {}, but this broker offers {offered}; build it with the SDK of \
         this broker's version",
        short(found)
    )]
    OtherVersion {
        /// What is exported.
        found: String,
        /// What could be exported.
        offered: &'static str,
    },
    /// The right name, the wrong functions.
    #[error(
        "the component's {export} does not have the shape that the broker calls: {}; build it \
         against this broker's wit/ directory",
        short(reason)
    )]
    WrongShape {
        /// The plug point.
        export: &'static str,
        /// Which function, and what is wrong with it.
        reason: String,
    },
    /// Asks for something that the sandbox does not give.
    #[error(
        "the component imports {}, which the sandbox does not offer; it offers {offered}. \
         There is no network, file system, clock or entropy: remove what needs it",
        short(import)
    )]
    UnknownImport {
        /// What is asked for.
        import: String,
        /// What there is.
        offered: &'static str,
    },
    /// Asks for an interface that there is, in another shape.
    #[error(
        "the component's imports do not fit the broker's: {}; build it against this broker's wit/ \
         directory",
        short(.0)
    )]
    WrongImport(String),
}

/// A component did not start: nothing has been filtered yet.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum StartError {
    /// The component does not export this plug point.
    #[error("the component is no {plug_point}: it offers {offered}; deploy it there")]
    NotOffered {
        /// What was asked.
        plug_point: &'static str,
        /// What it has.
        offered: String,
    },
    /// The component refused its parameters.
    #[error("the component refused to start: {0}; correct the parameters")]
    Refused(String),
    /// It crashed.
    #[error("the component crashed while starting: {0}; this is a fault of the component")]
    Trap(String),
    /// It does not fit.
    #[error(
        "the component needs more than its {bytes_max} bytes of memory to start; raise the \
         deployment's memory budget"
    )]
    OverMemory {
        /// The budget.
        bytes_max: usize,
    },
    /// It did not come back.
    #[error(
        "the component did not start within {ms_max} ms; this is a fault of the component, or the \
         deployment's time budget is too small"
    )]
    OutOfTime {
        /// The budget.
        ms_max: u32,
    },
    /// Every instance of the pool is in use.
    #[error(
        "no room for another component instance: {0}; remove deployments or subscriptions that have \
         a filter, or raise the number of instances"
    )]
    NoRoom(String),
}

/// A batch got no answer. The batch is untouched, and the filter is usable for the next call.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum FilterError {
    /// The component's own verdict: it cannot judge this batch.
    #[error("the component refused the batch: {0}")]
    Refused(String),
    /// The component crashed.
    #[error("the component crashed: {0}; this is a fault of the component")]
    Trap(String),
    /// The component wanted more memory than its budget.
    #[error(
        "the component wanted {wanted} bytes of memory, more than its budget of {bytes_max}; raise \
         the deployment's memory budget if batches are that large, else it leaks"
    )]
    OverMemory {
        /// What it would have had.
        wanted: usize,
        /// The budget.
        bytes_max: usize,
    },
    /// The component was killed because it took too long.
    #[error(
        "the component took longer than its {ms_max} ms for the batch and was killed; it loops, or \
         the deployment's time budget is too small"
    )]
    OutOfTime {
        /// The budget.
        ms_max: u32,
    },
    /// The answer is not one that the plug point allows.
    #[error("the component gave a bad answer: {0}; this is a fault of the component")]
    BadAnswer(String),
    /// A fresh instance, needed after an earlier kill, did not start.
    #[error(transparent)]
    Restart(#[from] StartError),
    /// Killed too often; no call was made.
    #[error(
        "the deployment is paused after {kills} kills within {window_ms} ms; look at its last error, \
         then deploy it again"
    )]
    Paused {
        /// Kills that led here.
        kills: u32,
        /// How close together they were.
        window_ms: u64,
    },
}

impl StartError {
    /// Whose mistake this is.
    #[must_use]
    pub fn erred(&self) -> Erred {
        match self {
            Self::NotOffered { .. } | Self::Refused(_) | Self::OverMemory { .. } => Erred::Deployer,
            Self::Trap(_) | Self::OutOfTime { .. } => Erred::Component,
            Self::NoRoom(_) => Erred::Broker,
        }
    }
}

impl FilterError {
    /// Whose mistake this is.
    #[must_use]
    pub fn erred(&self) -> Erred {
        match self {
            Self::Restart(start) => start.erred(),
            _ => Erred::Component,
        }
    }

    /// Whether the component broke its side of the contract, so that the instance was thrown away
    /// and the deployment's kill count rises.
    #[must_use]
    pub fn is_kill(&self) -> bool {
        match self {
            Self::Trap(_)
            | Self::OverMemory { .. }
            | Self::OutOfTime { .. }
            | Self::BadAnswer(_) => true,
            Self::Restart(start) => start.erred() == Erred::Component,
            Self::Refused(_) | Self::Paused { .. } => false,
        }
    }

    /// Whether it may be the fault of one record, so that others of the batch can be judged without it.
    #[must_use]
    pub fn may_be_of_a_record(&self) -> bool {
        match self {
            Self::Refused(_)
            | Self::Trap(_)
            | Self::OverMemory { .. }
            | Self::OutOfTime { .. }
            | Self::BadAnswer(_) => true,
            Self::Restart(_) | Self::Paused { .. } => false,
        }
    }

    /// What is wrong with the one record that this is about.
    #[must_use]
    pub fn of_record(&self) -> String {
        match self {
            // The SDK names the record's place in what it was given, which was this record alone.
            Self::Refused(text) => text.strip_prefix("record 0: ").unwrap_or(text).to_owned(),
            Self::OutOfTime { ms_max } => format!(
                "the component took longer than its {ms_max} ms for this record alone, twice: it loops, or the \
                 deployment's time budget is too small"
            ),
            other => other.to_string(),
        }
    }

    /// Whether the same call would end the same way on any machine. A kill by time alone is no such
    /// proof (the machine may have been busy), so it never dead-letters a record at the first attempt.
    #[must_use]
    pub fn is_proof(&self) -> bool {
        matches!(
            self,
            Self::Refused(_) | Self::Trap(_) | Self::OverMemory { .. } | Self::BadAnswer(_)
        )
    }
}

/// Names that a component chose, as many and as much of each as people can read.
fn list(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let mut text = String::new();
    for (i, name) in names.iter().take(SHOWN).enumerate() {
        let comma = if i > 0 { ", " } else { "" };
        let _ = write!(text, "{comma}{}", short(name));
    }
    match names.len().saturating_sub(SHOWN) {
        _ if names.is_empty() => text.push_str("nothing"),
        0 => {}
        more => {
            let _ = write!(text, " and {more} more");
        }
    }
    text
}

/// A text that a component or a library that read it had a hand in: errors never echo it whole.
fn short(text: &str) -> String {
    one_line(text, NAME_BYTES_MAX)
}
