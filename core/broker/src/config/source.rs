//! Where settings come from: a TOML file, then the environment.
//!
//! `MILLSTREAM_LISTEN=…` sets `listen`; two underscores step into a section:
//! `MILLSTREAM_LOG__FLUSH=interval` sets `log.flush`.

use std::path::{Path, PathBuf};

use super::{Config, units};

/// Variables of this prefix are settings.
const PREFIX: &str = "MILLSTREAM_";
/// Variables that are not the broker's settings but belong to the command line or its clients.
const FOREIGN: [&str; 6] = ["CONTEXT", "CONFIG", "LOG", "TOKEN", "BIN", "URL"];

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the configuration {origin} is not right: {message}")]
    Parse { origin: String, message: String },
    #[error("setting `{setting}`: {why}")]
    Invalid { setting: &'static str, why: String },
}

impl Config {
    /// Settings from `file` (defaults without one), changed by `environment`. The caller sets its
    /// flags on what it gets, and calls [`Config::check`].
    ///
    /// # Errors
    /// A file that cannot be read, and any key or value that is not known.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut table = match file {
            None => toml::Table::new(),
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
                    path: path.to_owned(),
                    source,
                })?;
                let wrong = |message: String| ConfigError::Parse {
                    origin: path.display().to_string(),
                    message,
                };
                let mut table = text
                    .parse::<toml::Table>()
                    .map_err(|error| wrong(error.to_string()))?;
                let read = if units::resolve(&mut table).map_err(wrong)? {
                    toml::Value::Table(table.clone()).try_into::<Self>()
                } else {
                    toml::from_str::<Self>(&text) // its errors carry the file's lines
                };
                read.map_err(|error| wrong(error.to_string()))?;
                table
            }
        };
        for (variable, value) in environment {
            let Some(name) = variable.strip_prefix(PREFIX) else {
                continue;
            };
            if FOREIGN.contains(&name) {
                continue;
            }
            set(&mut table, &name.to_ascii_lowercase(), value);
            units::resolve(&mut table).map_err(|message| ConfigError::Parse {
                origin: format!("variable {variable}"),
                message,
            })?;
            toml::Value::Table(table.clone())
                .try_into::<Self>()
                .map_err(|error| ConfigError::Parse {
                    origin: format!("variable {variable}"),
                    message: error.to_string(),
                })?;
        }
        toml::Value::Table(table)
            .try_into()
            .map_err(|error| ConfigError::Parse {
                origin: "as a whole".to_owned(),
                message: error.to_string(),
            })
    }

    /// The settings as TOML, as `config show` prints them.
    ///
    /// # Panics
    /// Never: every setting has a TOML form.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("every setting has a TOML form")
    }
}

/// Put `value` at `name`, whose `__` step into sections. The value is taken as TOML where it is TOML
/// of another kind than a string would be (numbers, booleans, arrays), else as a string.
fn set(table: &mut toml::Table, name: &str, value: String) {
    match name.split_once("__") {
        Some((section, rest)) => {
            let inner = table
                .entry(section)
                .or_insert_with(|| toml::Value::Table(toml::Table::new()));
            if let toml::Value::Table(inner) = inner {
                set(inner, rest, value);
            }
        }
        None => {
            let parsed = format!("v = {value}")
                .parse::<toml::Table>()
                .ok()
                .and_then(|mut table| table.remove("v"));
            table.insert(
                name.to_owned(),
                parsed.unwrap_or(toml::Value::String(value)),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Flush, PrincipalSettings};

    fn variable(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn the_environment_goes_over_the_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("m.toml");
        std::fs::write(&file, "shards = 2\n[log]\nspares_ready = 3\n").expect("written");
        let config = Config::load(
            Some(&file),
            [
                variable("MILLSTREAM_SHARDS", "4"),
                variable("MILLSTREAM_LOG__FLUSH", "interval"),
                variable("MILLSTREAM_LISTEN", "127.0.0.1:9"),
                variable("MILLSTREAM_CONTEXT", "elsewhere"),
                variable("PATH", "/bin"),
            ],
        )
        .expect("good settings");
        assert_eq!(
            (config.shards, config.log.spares_ready, config.log.flush),
            (Some(4), 3, Flush::Interval)
        );
        assert_eq!(config.listen.port(), 9);
    }

    #[test]
    fn times_and_sizes_are_taken_with_units() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("m.toml");
        let text = "[log]\nsegment_bytes = \"32MiB\"\ngroup_bytes_max = \"4m\"\n[topics]\nretention_ms = \"5d\"\nretention_bytes = \"-1\"\n";
        std::fs::write(&file, text).expect("written");
        let environment = [
            variable("MILLSTREAM_MEMORY__HOT_TAIL_BYTES", "64m"),
            variable("MILLSTREAM_LOG__FLUSH_INTERVAL_MS", "2s"),
        ];
        let config = Config::load(Some(&file), environment).expect("good settings");
        assert_eq!(config.topics.retention_bytes, -1);
        assert_eq!(config.log.segment_bytes, 32 << 20);
        assert_eq!(config.log.group_bytes_max, Some(4 << 20));
        assert_eq!(config.topics.retention_ms, 432_000_000);
        assert_eq!(config.memory.hot_tail_bytes, 64 << 20);
        assert_eq!(config.log.flush_interval_ms, 2_000);
        std::fs::write(&file, "[log]\nsegment_bytes = \"64 parsecs\"\n").expect("written");
        let error = Config::load(Some(&file), [])
            .expect_err("no size")
            .to_string();
        assert!(
            error.contains("log.segment_bytes") && error.contains("64 parsecs"),
            "{error}"
        );
    }

    #[test]
    fn unknown_keys_are_errors_that_name_them() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("m.toml");
        std::fs::write(&file, "[log]\nsegment_size = 3\n").expect("written");
        let error = Config::load(Some(&file), [])
            .expect_err("unknown key")
            .to_string();
        assert!(
            error.contains("segment_size") && error.contains("m.toml"),
            "{error}"
        );
        let error = Config::load(None, [variable("MILLSTREAM_NONSENSE", "1")])
            .expect_err("unknown")
            .to_string();
        assert!(error.contains("MILLSTREAM_NONSENSE"), "{error}");
    }

    #[test]
    fn defaults_hold_together_and_survive_their_own_print() {
        let config = Config::default();
        config.check().expect("defaults are good");
        let again: Config = toml::from_str(&config.to_toml()).expect("what is shown can be read");
        assert_eq!(again.to_toml(), config.to_toml());
    }

    #[test]
    fn one_token_is_one_principal() {
        let principal = |name: &str, token: &str| PrincipalSettings {
            name: name.to_owned(),
            token_sha256: Some(token.repeat(64)),
            ..PrincipalSettings::default()
        };
        let check = |principals: &[PrincipalSettings]| {
            Config {
                principals: principals.to_vec(),
                ..Config::default()
            }
            .check()
        };
        check(&[
            principal("a", "1"),
            principal("b", "2"),
            principal("a", "1"),
        ])
        .expect("entries of one name add up");
        let error = check(&[principal("a", "c"), principal("b", "C")])
            .expect_err("whose is it?")
            .to_string();
        assert!(
            error.contains("token_sha256") && error.contains("`a` and `b`"),
            "{error}"
        );
    }

    #[test]
    fn unsafe_addresses_are_refused() {
        let mut config = Config {
            listen: "0.0.0.0:1".parse().expect("an address"),
            ..Config::default()
        };
        assert!(config.check().is_err(), "no certificate");
        config.tls.certificate = Some("c.pem".into());
        config.tls.key = Some("k.pem".into());
        assert!(
            config
                .check()
                .expect_err("nobody is named")
                .to_string()
                .contains("principals")
        );
        config.dev = true;
        config.check().expect("development takes any address");
    }
}
