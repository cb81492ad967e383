//! The log on stderr: text for people, JSON for machines.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::Global;
use crate::exit::{Failure, Outcome};

/// Environment variable with a log filter.
const FILTER_VARIABLE: &str = "MILLSTREAM_LOG";
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Form of the log on stderr.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Start logging. `quiet` is the level when the user asks for nothing: `info` for a broker, `warn`
/// for what talks to one. A filter that cannot be read is wrong usage.
pub(crate) fn start(global: &Global, quiet: &str) -> Outcome {
    let level = match global.verbose {
        0 => quiet.to_owned(),
        1 => "debug,quinn=info,quinn_proto=info,rustls=info".to_owned(),
        _ => "trace".to_owned(),
    };
    let filter = match std::env::var(FILTER_VARIABLE) {
        Ok(filter) if !filter.is_empty() => filter_of(&filter).map_err(|why| {
            Failure::usage(format!(
                "{FILTER_VARIABLE}=`{filter}`: {why}: give a level ({}) or TARGET=LEVEL, several with commas",
                LEVELS.join(", ")
            ))
        })?,
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
    Ok(())
}

/// A filter of levels and `TARGET=LEVEL`. A word alone that is no level would be taken as a target whose
/// lines are all written and no others: most likely a level that was misspelt.
fn filter_of(text: &str) -> Result<EnvFilter, String> {
    for directive in text.split(',').map(str::trim) {
        let word = !directive.contains(['=', '[', ':']);
        if word && !LEVELS.contains(&directive.to_ascii_lowercase().as_str()) {
            return Err(format!("`{directive}` is no level"));
        }
    }
    EnvFilter::try_new(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_read_or_refused() {
        for good in [
            "debug",
            "WARN",
            "quinn=debug",
            "info,millstream_broker=trace",
            "[span]=debug",
        ] {
            assert!(filter_of(good).is_ok(), "{good}");
        }
        for bad in ["debugg", "quinn=loud", "info,nonsense", ",", "a=b=c"] {
            assert!(filter_of(bad).is_err(), "{bad}");
        }
    }
}
