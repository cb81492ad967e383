//! The log on stderr: text for people, JSON for machines.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::Global;

/// Environment variable with a log filter.
const FILTER_VARIABLE: &str = "MILLSTREAM_LOG";

/// Form of the log on stderr.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Start logging. `quiet` is the level when the user asks for nothing: `info` for a broker, `warn`
/// for what talks to one.
pub(crate) fn start(global: &Global, quiet: &str) {
    let level = match global.verbose {
        0 => quiet.to_owned(),
        1 => "debug,quinn=info,quinn_proto=info,rustls=info".to_owned(),
        _ => "trace".to_owned(),
    };
    let filter = match std::env::var(FILTER_VARIABLE) {
        Ok(filter) if !filter.is_empty() => {
            EnvFilter::try_new(&filter).unwrap_or_else(|_| EnvFilter::new(&level))
        }
        _ => EnvFilter::new(&level),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // A second start in one process (tests) keeps the first.
    let _ = match global.log_format {
        LogFormat::Text => builder
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}
