//! Settings of a broker as the command line gives them, and where each came from: flags over
//! environment over file over defaults.

use std::net::SocketAddr;
use std::path::PathBuf;

use millstream_broker::{Config, ConfigError, listen_address};

use crate::exit::{Failure, Outcome};

/// Variables of the command line itself: no settings of a broker.
const OWN_VARIABLES: [&str; 4] = [
    "MILLSTREAM_CONFIG",
    "MILLSTREAM_CONTEXT",
    "MILLSTREAM_LOG",
    "MILLSTREAM_LOG_FORMAT",
];

/// Flags that are settings of a broker.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct BrokerFlags {
    /// Settings file (TOML). An unknown key is an error.
    #[arg(long, env = "MILLSTREAM_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Data directory; made if it is not there.
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Where clients connect (QUIC over UDP); port 0 takes any.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = listen_address)]
    pub(crate) listen: Option<SocketAddr>,
    /// Where operators look (HTTP: /livez, /readyz, /metrics); port 0 takes any.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = listen_address)]
    pub(crate) http: Option<SocketAddr>,
    /// Shards of a new data directory; fixed at its first start. Default: one a core.
    #[arg(long, value_name = "N")]
    pub(crate) shards: Option<u16>,
    /// Threads that drive the shards. Default: as many as shards, at most as many as cores.
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
}

/// Where a setting's value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Default,
    File,
    Environment(String),
    Flag(&'static str),
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File => f.write_str("file"),
            Self::Environment(variable) => f.write_str(variable),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

impl BrokerFlags {
    /// The settings in effect, not yet checked against each other.
    pub(crate) fn load(&self) -> Outcome<Config> {
        let environment =
            std::env::vars().filter(|(name, _)| !OWN_VARIABLES.contains(&name.as_str()));
        let mut config = Config::load(self.config.as_deref(), environment).map_err(wrong)?;
        if let Some(data) = &self.data {
            config.data.clone_from(data);
        }
        if let Some(listen) = self.listen {
            config.listen = listen;
        }
        if let Some(http) = self.http {
            config.http = http;
        }
        config.shards = self.shards.or(config.shards);
        config.threads = self.threads.or(config.threads);
        Ok(config)
    }

    /// The settings in effect, checked.
    pub(crate) fn load_checked(&self) -> Outcome<Config> {
        let config = self.load()?;
        config.check().map_err(wrong)?;
        Ok(config)
    }

    /// Every setting in effect with its value as TOML and its origin, by name.
    pub(crate) fn explained(&self) -> Outcome<Vec<(String, String, Origin)>> {
        let config = self.load()?;
        let file = match &self.config {
            None => toml::Table::new(),
            Some(path) => std::fs::read_to_string(path)?.parse()?,
        };
        let mut in_file = Vec::new();
        flatten("", &toml::Value::Table(file), &mut in_file);
        let mut all = Vec::new();
        flatten("", &toml::Value::Table(config.to_toml().parse()?), &mut all);
        let variables: Vec<String> = std::env::vars().map(|(name, _)| name).collect();
        let flags = [
            ("data", "--data", self.data.is_some()),
            ("listen", "--listen", self.listen.is_some()),
            ("http", "--http", self.http.is_some()),
            ("shards", "--shards", self.shards.is_some()),
            ("threads", "--threads", self.threads.is_some()),
        ];
        Ok(all
            .into_iter()
            .map(|(name, value)| {
                let variable = format!(
                    "MILLSTREAM_{}",
                    name.replace('.', "__").to_ascii_uppercase()
                );
                let flag = flags
                    .iter()
                    .find(|(setting, _, set)| *setting == name && *set);
                let origin = match flag {
                    Some((_, flag, _)) => Origin::Flag(flag),
                    None if variables.contains(&variable) => Origin::Environment(variable),
                    None if in_file.iter().any(|(key, _)| *key == name) => Origin::File,
                    None => Origin::Default,
                };
                (name, value, origin)
            })
            .collect())
    }
}

/// A wrong setting is wrong usage.
#[expect(clippy::needless_pass_by_value, reason = "a function for map_err")]
pub(crate) fn wrong(error: ConfigError) -> Failure {
    Failure::Usage(error.to_string())
}

fn flatten(before: &str, value: &toml::Value, out: &mut Vec<(String, String)>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                let name = if before.is_empty() {
                    key.clone()
                } else {
                    format!("{before}.{key}")
                };
                flatten(&name, value, out);
            }
        }
        other => out.push((before.to_owned(), other.to_string())),
    }
}
