//! The broker: QUIC in front, shards behind, and what operators see.
//!
//! [`run`] is what the command line calls; [`Broker`] is the same for tests. Everything else is inside.
//! Deliberately absent: parsing flags, printing, and setting up the log's subscriber (the command line).

mod authority;
mod broker;
mod catalog;
mod components;
mod config;
mod directory;
mod endpoint;
mod error;
mod http;
mod limits;
mod memory;
mod metrics;
mod places;
mod producer;
mod refusals;
mod requests;
mod secrets;
mod session;
mod shards;
mod steering;
mod stream;
mod subscription;
mod sys;
mod thread;
mod tls;
mod traces;
mod walk;
mod windows;

pub use broker::{Broker, run};
pub use config::{
    CheckRecords, Config, ConfigError, DEFAULT_HTTP_PORT, DEFAULT_PORT, Flush, Limits, LogSettings,
    Memory, Plugins, PrincipalSettings, Quic, Storage, Telemetry, Tls, TopicDefaults,
};
pub use directory::{Directory, Meta, read_meta};
pub use error::Error;
pub use sys::{Resource, huge_pages_only_where_advised, limit};
