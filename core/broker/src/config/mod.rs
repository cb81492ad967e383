//! Settings: TOML file, then environment, then what the caller sets (flags). An unknown key is an
//! error. Absent: the meaning of the settings, which is with those who use them.

mod address;
mod sections;
mod source;
mod units;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use address::listen_address;
pub use sections::{
    CheckRecords, Flush, Limits, LogSettings, Memory, Plugins, PrincipalSettings, Quic, Storage,
    Telemetry, Tls, TopicDefaults,
};
pub use source::ConfigError;

/// Port that the broker listens on for clients (UDP).
pub const DEFAULT_PORT: u16 = 7411;
/// Port of the operators' HTTP.
pub const DEFAULT_HTTP_PORT: u16 = 7412;

/// All settings of a broker. Sizes are in bytes, times in milliseconds, as the names say.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The data directory. Made if it is not there.
    pub data: PathBuf,
    /// Where clients connect (QUIC over UDP).
    #[serde(deserialize_with = "address::read")]
    pub listen: SocketAddr,
    /// Where operators look (HTTP). Port 0 takes any.
    #[serde(deserialize_with = "address::read")]
    pub http: SocketAddr,
    /// Turns the operators' HTTP off.
    pub http_off: bool,
    /// Allows `http` on an address that other machines reach. It has no authentication of its own.
    pub http_public: bool,
    /// Shards of a new data directory: fixed at its first start. Default: one a core.
    pub shards: Option<u16>,
    /// Threads. Default: as many as shards, at most as many as cores.
    pub threads: Option<usize>,
    /// Bind each thread to a core, where the system allows it.
    pub pin_threads: bool,
    /// Development: everything is granted to whoever has the token of the context file, on any address.
    pub dev: bool,
    pub tls: Tls,
    pub principals: Vec<PrincipalSettings>,
    pub log: LogSettings,
    pub topics: TopicDefaults,
    pub memory: Memory,
    pub limits: Limits,
    pub quic: Quic,
    pub plugins: Plugins,
    pub telemetry: Telemetry,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data: PathBuf::from(".millstream"),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_PORT)),
            http: SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_HTTP_PORT)),
            http_off: false,
            http_public: false,
            shards: None,
            threads: None,
            pin_threads: true,
            dev: false,
            tls: Tls::default(),
            principals: Vec::new(),
            log: LogSettings::default(),
            topics: TopicDefaults::default(),
            memory: Memory::default(),
            limits: Limits::default(),
            quic: Quic::default(),
            plugins: Plugins::default(),
            telemetry: Telemetry::default(),
        }
    }
}

impl Config {
    /// Whether only this machine can connect.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.listen.ip().is_loopback()
    }

    /// Whether whoever has the token of the context file may do everything: in development, and on a loopback
    /// address where no principals are configured.
    #[must_use]
    pub fn grants_all(&self) -> bool {
        self.dev || (self.principals.is_empty() && self.is_loopback())
    }

    /// Refuse settings that contradict each other or are unsafe.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] names the setting and says what to do.
    pub fn check(&self) -> Result<(), ConfigError> {
        let invalid =
            |setting: &'static str, why: String| Err(ConfigError::Invalid { setting, why });
        if !self.is_loopback() && self.tls.certificate.is_none() && !self.dev {
            return invalid(
                "tls.certificate",
                format!(
                    "{} is reachable from other machines: give a certificate and key",
                    self.listen
                ),
            );
        }
        if !self.is_loopback() && self.principals.is_empty() && !self.dev {
            return invalid(
                "principals",
                format!(
                    "{} is reachable from other machines: say who may do what",
                    self.listen
                ),
            );
        }
        if self.tls.certificate.is_some() != self.tls.key.is_some() {
            return invalid("tls.key", "certificate and key go together".to_owned());
        }
        if !self.http_off && !self.http.ip().is_loopback() && !self.http_public && !self.dev {
            return invalid(
                "http",
                format!(
                    "{} is reachable from other machines and has no authentication: use a loopback address, or set \
                     http_public if a proxy guards it",
                    self.http
                ),
            );
        }
        if self.shards == Some(0) || self.shards.is_some_and(|n| n > sections::SHARDS_MAX) {
            return invalid("shards", format!("it is 1 to {}", sections::SHARDS_MAX));
        }
        if self.threads == Some(0) {
            return invalid("threads", "it is at least 1".to_owned());
        }
        self.log.check()?;
        self.topics.check()?;
        self.memory.check()?;
        self.limits.check()?;
        self.quic.check()?;
        self.plugins.check()?;
        self.telemetry.check()?;
        for principal in &self.principals {
            principal.check()?;
        }
        sections::check_distinct(&self.principals)
    }
}
