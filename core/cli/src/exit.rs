//! From an outcome to an exit code: 0 done, 1 failed, 2 wrong usage. What is said on the way goes to
//! stderr, as text or as one JSON object.

use std::io::{self, Write};
use std::process::ExitCode;

use serde_json::json;

use crate::output::Output;

/// Why a command did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line or a settings file is wrong; nothing was done.
    Usage(String),
    /// What was asked was not, or not wholly, done.
    Failed(anyhow::Error),
    /// As above, and everything there is to say was said.
    Told,
}

pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::Usage(message.into())
    }

    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::Failed(anyhow::Error::msg(message.into()))
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        if let Some(client) = error.downcast_ref::<millstream_client::Error>()
            && client.kind() == millstream_client::ErrorKind::Usage
        {
            return Self::Usage(client.to_string());
        }
        Self::Failed(error)
    }
}

/// The exit code, after the last words.
pub(crate) fn code(outcome: Outcome, output: Output) -> ExitCode {
    let (number, name, error) = match outcome {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Told) => return ExitCode::from(1),
        Err(Failure::Failed(error)) if is_broken_pipe(&error) => return ExitCode::SUCCESS,
        Err(Failure::Failed(error)) => {
            let name = error
                .downcast_ref::<millstream_client::Error>()
                .map(millstream_client::Error::name);
            (1, name.unwrap_or_else(|| "FAILED".into()), error)
        }
        Err(Failure::Usage(message)) => (2, "USAGE".into(), anyhow::Error::msg(message)),
    };
    let text = format!("{error:#}");
    let mut stderr = io::stderr().lock();
    // Nobody is left to hear of a stderr that is closed.
    let _ = match output {
        Output::Text | Output::Raw | Output::Hex | Output::Base64 => {
            writeln!(stderr, "error: {text}")
        }
        Output::Json => {
            let client = error.downcast_ref::<millstream_client::Error>();
            let mut object = json!({ "error": { "name": name, "message": text } });
            if let Some(client) = client {
                object["error"]["message"] = client.message().into();
                object["error"]["hint"] = client.hint().into();
                object["error"]["retriable"] = client.retriable().into();
                object["error"]["unknown_outcome"] = client.unknown_outcome().into();
            }
            writeln!(stderr, "{object}")
        }
    };
    ExitCode::from(number)
}

/// Whoever read our output has seen enough (`millstream sub t | head`): that is no failure.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
