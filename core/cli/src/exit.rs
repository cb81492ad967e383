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

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Usage(message) => f.write_str(message),
            Self::Failed(error) => f.write_str(&told(error)),
            Self::Told => f.write_str("see above"),
        }
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
    let text = told(&error);
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

/// The exit code when the command line could not be read, or asked for help. As JSON where
/// `arguments` ask for it.
pub(crate) fn parsing(
    error: clap::Error,
    arguments: impl Iterator<Item = std::ffi::OsString>,
) -> ExitCode {
    let error = &told_elsewhere(error);
    if error.use_stderr() && asks_for_json(arguments) {
        let text = error.render().to_string();
        let (message, rest) = text.split_once("\n\n").unwrap_or((&text, ""));
        let message = message.strip_prefix("error: ").unwrap_or(message).trim();
        // One line: what is left are tips and the usage.
        let hint = rest.split_whitespace().collect::<Vec<_>>().join(" ");
        let object = json!({ "error": { "name": "USAGE", "message": message, "hint": hint } });
        let _ = writeln!(io::stderr().lock(), "{object}");
    } else {
        let _ = error.print(); // nobody is left to hear of a stream that is closed
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// Flags that other brokers' tools have, without their dashes, and what is typed here.
const ELSEWHERE: &[(&[&str], &str)] = &[
    (
        &[
            "server",
            "servers",
            "broker",
            "brokers",
            "broker-list",
            "bootstrap-server",
            "bootstrap-servers",
            "host",
            "hostname",
            "address",
            "addr",
            "endpoint",
            "b",
            "s",
        ],
        "which broker is said with `--url HOST:PORT`, or by a context: `--context NAME|FILE`",
    ),
    (
        &["port"],
        "a broker listens where `--listen ADDRESS:PORT` says; a client finds it with `--url HOST:PORT`",
    ),
    (
        &["from-beginning", "beginning"],
        "records from the first one on: `--from start`",
    ),
    (&["offset"], "where to begin is said with `--from POSITION`"),
    (
        &["topic", "t"],
        "the topic stands by itself, without a flag",
    ),
    (
        &["max-messages", "max"],
        "how many records is said with `--count N`",
    ),
    (
        &["data-dir", "dir"],
        "the data directory is said with `--data DIR`",
    ),
    (
        &["password", "username", "user", "api-key"],
        "who you are is said with `--token TOKEN`",
    ),
];

/// Where a flag is unknown that other tools have, the error says what is typed instead.
fn told_elsewhere(mut error: clap::Error) -> clap::Error {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    if error.kind() != ErrorKind::UnknownArgument {
        return error;
    }
    let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    let name = flag.trim_start_matches('-');
    let Some((_, instead)) = ELSEWHERE.iter().find(|(names, _)| names.contains(&name)) else {
        return error;
    };
    // What is merely spelled alike would lead astray, into the usage line too.
    error.remove(ContextKind::SuggestedArg);
    error.remove(ContextKind::Usage);
    let tip = ContextValue::StyledStrs(vec![(*instead).into()]);
    error.insert(ContextKind::Suggested, tip);
    error
}

/// Whether these arguments ask for JSON, as far as arguments that cannot be read tell.
fn asks_for_json(arguments: impl Iterator<Item = std::ffi::OsString>) -> bool {
    let mut before_value = false;
    for argument in arguments {
        let argument = argument.to_string_lossy();
        if argument == "--" {
            return false;
        }
        if before_value && argument == "json"
            || ["-ojson", "-o=json", "--output=json"].contains(&&*argument)
        {
            return true;
        }
        before_value = argument == "-o" || argument == "--output";
    }
    false
}

/// An error with its causes, but for those whose words were said already.
fn told(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// Whoever read our output has seen enough (`millstream sub t | head`): that is no failure.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cause_is_said_twice() {
        let inner = io::Error::other("the disk is gone");
        let error = anyhow::Error::new(inner).context("cannot write");
        assert_eq!(told(&error), "cannot write: the disk is gone");
        assert_eq!(
            told(&error.context("failed: cannot write")),
            "failed: cannot write: the disk is gone"
        );
    }
}
