//! The broker: QUIC in front, shards behind, and what operators see.
//!
//! [`run`] is what the command line calls; [`Broker`] is the same for tests. Everything else is inside.
//! Deliberately absent: parsing flags, printing, and setting up the log's subscriber (the command line).

mod authority;
mod broker;
mod bundled;
mod catalog;
mod components;
mod config;
mod directory;
mod endpoint;
mod error;
mod http;
mod limits;
mod live;
mod members;
mod memory;
mod metrics;
mod places;
mod ports;
mod preflight;
mod producer;
mod refusals;
mod requests;
mod secrets;
mod service;
mod session;
mod settle;
mod shards;
mod signals;
mod steering;
mod stream;
mod subscription;
mod sys;
mod thread;
mod throttle;
mod tls;
mod traces;
mod walk;
mod windows;

pub use broker::{Broker, run};
pub use bundled::{BUNDLED, Bundled, bundled};
pub use config::{
    CheckRecords, Config, ConfigError, DEFAULT_HTTP_PORT, DEFAULT_PORT, Flush, Limits, LogSettings,
    Memory, Plugins, PrincipalSettings, Quic, Storage, Telemetry, Tls, TopicDefaults,
    listen_address,
};
pub use directory::{Directory, Meta, missing_shard, read_meta};
pub use error::Error;
pub use preflight::check;
pub use signals::{Hangup, Stopper};
pub use sys::{Resource, huge_pages_only_where_advised, limit};
