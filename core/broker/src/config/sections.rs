//! The sections of the configuration, with their defaults and bounds.

use std::path::PathBuf;

use millstream_batch::limits::{BATCH_BYTES_MAX, BLOCK_BYTES, TOPIC_PARTITIONS_MAX};
use millstream_machine::bounds::CLOCK_STEP_MS_MAX;
use serde::{Deserialize, Serialize};

use super::ConfigError;

/// More shards than cores of any machine this runs on.
pub(super) const SHARDS_MAX: u16 = 256;
/// Quinn sends up to 10 segments with one call, which together must stay below 64 KiB.
const MTU_MAX: u16 = 6500;
/// More do not run at once on any machine this runs on.
const WORKER_THREADS_MAX: usize = 256;
/// What every QUIC path carries (RFC 9000, 14).
const MTU_MIN: u16 = 1200;
const MIB: u64 = 1 << 20;
/// A file of the log that is worth its header.
const SEGMENT_BYTES_MIN: u64 = 4 * MIB;
/// More in one write is not faster.
const GROUP_BYTES_MAX: usize = 16 << 20;
/// What a write needs beside its largest batch.
const GROUP_ROOM_BYTES: usize = 64 << 10;

fn invalid(setting: &'static str, why: impl Into<String>) -> Result<(), ConfigError> {
    Err(ConfigError::Invalid {
        setting,
        why: why.into(),
    })
}

/// `[tls]`: PEM files. Without a certificate on a loopback address, one is made.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// The broker's certificate chain.
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// Authorities whose client certificates are taken (mTLS).
    pub client_ca: Option<PathBuf>,
}

/// `[[principals]]`: who may do what.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrincipalSettings {
    pub name: String,
    /// SHA-256 of the bearer token, in hexadecimal (`printf %s TOKEN | sha256sum`).
    pub token_sha256: Option<String>,
    /// A DNS or URI name in the client certificate's subject alternative names.
    pub certificate: Option<String>,
    /// Of `produce`, `consume`, `admin`, `deploy`.
    pub rights: Vec<String>,
    /// The rights hold for topics and groups whose name begins so. Empty: for all.
    pub topics: String,
}

impl PrincipalSettings {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.name.is_empty() {
            return invalid("principals.name", "every principal has a name");
        }
        if self.token_sha256.is_none() && self.certificate.is_none() {
            return invalid(
                "principals",
                format!("`{}` needs token_sha256 or certificate", self.name),
            );
        }
        if let Some(hash) = &self.token_sha256
            && (hash.len() != 64 || !hash.bytes().all(|b| b.is_ascii_hexdigit()))
        {
            return invalid(
                "principals.token_sha256",
                format!("`{}`: 64 hexadecimal digits", self.name),
            );
        }
        for right in &self.rights {
            if !matches!(right.as_str(), "produce" | "consume" | "admin" | "deploy") {
                return invalid(
                    "principals.rights",
                    format!("`{right}` is none of produce, consume, admin, deploy"),
                );
            }
        }
        Ok(())
    }
}

/// One token or certificate is one principal: who would it be otherwise?
pub(super) fn check_distinct(principals: &[PrincipalSettings]) -> Result<(), ConfigError> {
    for (at, one) in principals.iter().enumerate() {
        for other in principals[..at]
            .iter()
            .filter(|other| other.name != one.name)
        {
            let same = |a: &Option<String>, b: &Option<String>| {
                a.is_some()
                    && a.as_deref().map(str::to_lowercase) == b.as_deref().map(str::to_lowercase)
            };
            let names = format!("`{}` and `{}`", other.name, one.name);
            if same(&one.token_sha256, &other.token_sha256) {
                let why = format!("{names} have the same token: give each its own");
                return invalid("principals.token_sha256", why);
            }
            if same(&one.certificate, &other.certificate) {
                let why = format!("{names} have the same certificate name: give each its own");
                return invalid("principals.certificate", why);
            }
        }
    }
    Ok(())
}

/// When a write is made durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flush {
    /// Every group is synced before it is acknowledged.
    #[default]
    Each,
    /// Acknowledged when written, synced on an interval: a crash of the machine loses the last ones.
    Interval,
}

/// Which records are walked before a batch is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckRecords {
    /// Those that are not compressed.
    #[default]
    Plain,
    /// All: compressed ones on a worker thread.
    All,
}

impl From<CheckRecords> for millstream_machine::topics::CheckRecords {
    fn from(which: CheckRecords) -> Self {
        match which {
            CheckRecords::Plain => Self::Plain,
            CheckRecords::All => Self::All,
        }
    }
}

/// How the disk is driven.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    /// `io_uring` where the system allows it, else the portable one.
    #[default]
    Auto,
    Ring,
    Portable,
}

/// `[log]`: the write-ahead log of each shard.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogSettings {
    /// Length of one file, allocated whole. Later files have it; the first ones are shorter.
    pub segment_bytes: u64,
    /// Length of the first files. They grow with the log, up to `segment_bytes`.
    pub first_segment_bytes: u64,
    /// Most that one write carries; also bounds the largest batch. Default: a quarter of a file, at
    /// most 16 MiB, and with several batches in it at most an eighth of its shard's hot tail.
    pub group_bytes_max: Option<usize>,
    /// Zeroed files kept ready.
    pub spares_ready: usize,
    /// Files that retention frees are kept beyond that, to be written again; more are removed.
    pub recycle_max: usize,
    pub flush: Flush,
    pub flush_interval_ms: u64,
    pub storage: Storage,
    /// A snapshot of the state is made after so much log: bounds the time of a restart.
    pub snapshot_after_bytes: u64,
    /// How often retention looks for what is past its time.
    pub retention_check_ms: u64,
    /// A wall clock further ahead of the newest record than this is doubted at a start.
    pub clock_ahead_max_ms: i64,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            segment_bytes: 64 * MIB,
            // So that the largest batch fits in.
            first_segment_bytes: 9 * MIB,
            group_bytes_max: None,
            spares_ready: 1,
            recycle_max: 4,
            flush: Flush::Each,
            flush_interval_ms: 50,
            storage: Storage::Auto,
            snapshot_after_bytes: 64 * MIB,
            retention_check_ms: 10_000,
            clock_ahead_max_ms: 7 * 24 * 3_600_000,
        }
    }
}

impl LogSettings {
    /// Length of the first files: never more than that of the later ones.
    #[must_use]
    pub fn first_segment_bytes(&self) -> u64 {
        self.first_segment_bytes.min(self.segment_bytes)
    }

    /// Most that one write carries.
    #[must_use]
    pub fn group_bytes(&self) -> usize {
        let quarter = usize::try_from(self.segment_bytes / 4).unwrap_or(usize::MAX);
        self.group_bytes_max
            .unwrap_or_else(|| (quarter / BLOCK_BYTES * BLOCK_BYTES).min(GROUP_BYTES_MAX))
    }

    /// The largest batch that is taken: it fits in one write.
    #[must_use]
    pub fn batch_bytes(&self) -> usize {
        self.group_bytes()
            .saturating_sub(GROUP_ROOM_BYTES)
            .min(BATCH_BYTES_MAX)
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if !self.segment_bytes.is_multiple_of(BLOCK_BYTES as u64)
            || self.segment_bytes < SEGMENT_BYTES_MIN
        {
            return invalid(
                "log.segment_bytes",
                format!("a multiple of {BLOCK_BYTES}, at least {SEGMENT_BYTES_MIN}"),
            );
        }
        if !self.first_segment_bytes.is_multiple_of(BLOCK_BYTES as u64)
            || self.first_segment_bytes < SEGMENT_BYTES_MIN
        {
            return invalid(
                "log.first_segment_bytes",
                format!("a multiple of {BLOCK_BYTES}, at least {SEGMENT_BYTES_MIN}"),
            );
        }
        if self.retention_check_ms == 0 {
            return invalid("log.retention_check_ms", "it is at least 1");
        }
        if self.clock_ahead_max_ms < CLOCK_STEP_MS_MAX {
            return invalid(
                "log.clock_ahead_max_ms",
                format!("at least {CLOCK_STEP_MS_MAX}, an hour"),
            );
        }
        let group = self.group_bytes();
        if !group.is_multiple_of(BLOCK_BYTES)
            || group < 4 * GROUP_ROOM_BYTES
            || group as u64 > self.segment_bytes / 4
        {
            let least = 4 * GROUP_ROOM_BYTES;
            let why = format!(
                "a multiple of {BLOCK_BYTES}, at least {least} and at most a quarter of log.segment_bytes"
            );
            return invalid("log.group_bytes_max", why);
        }
        if self.flush_interval_ms == 0 {
            return invalid("log.flush_interval_ms", "it is at least 1");
        }
        Ok(())
    }
}

/// `[topics]`: what topics that do not say get.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TopicDefaults {
    pub partitions: u32,
    /// -1: for ever.
    pub retention_ms: i64,
    /// Of each partition. -1: unbounded.
    pub retention_bytes: i64,
    /// A batch whose records cannot be read is refused where they are walked.
    pub check_records: CheckRecords,
}

impl Default for TopicDefaults {
    fn default() -> Self {
        Self {
            partitions: 1,
            retention_ms: 7 * 24 * 3_600_000,
            retention_bytes: -1,
            check_records: CheckRecords::default(),
        }
    }
}

impl TopicDefaults {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.partitions == 0 || self.partitions > TOPIC_PARTITIONS_MAX {
            return invalid(
                "topics.partitions",
                format!("it is 1 to {TOPIC_PARTITIONS_MAX}"),
            );
        }
        if self.retention_ms < -1 || self.retention_bytes < -1 {
            return invalid("topics.retention_ms", "-1 (for ever) or more");
        }
        Ok(())
    }
}

/// `[memory]`: what may be held, for the whole broker.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Memory {
    /// Newly written records kept for consumers near the end, all shards together.
    pub hot_tail_bytes: usize,
    /// Records read back from the disk: reads under way, and what of them is kept for the next reader. Half
    /// of it stays taken once much has been read.
    pub read_bytes: usize,
    /// Frames being received, and batches received and not yet answered.
    pub ingress_bytes: usize,
    /// Records on their way to consumers, QUIC's send queues included.
    pub send_bytes: usize,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            hot_tail_bytes: 128 << 20,
            read_bytes: 40 << 20,
            ingress_bytes: 96 << 20,
            send_bytes: 96 << 20,
        }
    }
}

impl Memory {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let least = 4 * BATCH_BYTES_MAX;
        if self.ingress_bytes < least || self.send_bytes < least {
            return invalid(
                "memory",
                format!("ingress_bytes and send_bytes are at least {least}"),
            );
        }
        Ok(())
    }
}

/// `[limits]`: how many of each.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    pub connections_max: usize,
    /// Of them, from one address (of IPv6: one /64).
    pub connections_address_max: usize,
    /// Connections under way that have not said who they are (HELLO); more are left unanswered, and come again.
    pub handshakes_max: usize,
    /// Of them, from one address.
    pub handshakes_address_max: usize,
    /// Past so many of them, whoever has not proven its address is asked to (QUIC Retry: one round trip more).
    /// 0: always.
    pub handshakes_unproven_max: usize,
    /// Streams of one connection.
    pub streams_max: u32,
    /// Streams of all connections together, beside the first few of each.
    pub streams_total_max: usize,
    /// Partitions that one subscription reads, and that all of one principal's do. Each takes about 2 KiB.
    pub subscription_partitions_max: usize,
    pub principal_partitions_max: usize,
    /// `PRODUCE` frames unanswered on one stream.
    pub in_flight_max: u32,
    /// Bytes of them.
    pub in_flight_bytes_max: usize,
    /// Calls that may wait at one shard.
    pub shard_calls_max: usize,
    /// A stream must begin with a whole frame within this time.
    pub first_frame_ms: u64,
    /// A frame that has begun must make progress within this time.
    pub frame_stall_ms: u64,
    /// HELLO must come within this time.
    pub hello_ms: u64,
    /// A group member that was asked to release partitions has so long.
    pub release_ms: u64,
    /// How long a graceful stop waits for what is in flight.
    pub drain_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 10_000,
            connections_address_max: 8_000,
            handshakes_max: 1_024,
            handshakes_address_max: 512,
            handshakes_unproven_max: 128,
            streams_max: 10_240,
            streams_total_max: 65_536,
            subscription_partitions_max: 20_000,
            principal_partitions_max: 200_000,
            in_flight_max: 1_024,
            in_flight_bytes_max: 16 << 20,
            shard_calls_max: 100_000,
            first_frame_ms: 30_000,
            frame_stall_ms: 10_000,
            hello_ms: 10_000,
            release_ms: 30_000,
            drain_ms: 5_000,
        }
    }
}

impl Limits {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.connections_max == 0
            || self.handshakes_max == 0
            || self.connections_address_max == 0
            || self.handshakes_address_max == 0
            || self.streams_max == 0
            || self.streams_total_max == 0
            || self.subscription_partitions_max == 0
            || self.principal_partitions_max == 0
            || self.in_flight_max == 0
            || self.shard_calls_max == 0
        {
            return invalid("limits", "every limit is at least 1");
        }
        if self.in_flight_bytes_max < BATCH_BYTES_MAX {
            return invalid(
                "limits.in_flight_bytes_max",
                format!("at least {BATCH_BYTES_MAX}, one largest batch"),
            );
        }
        Ok(())
    }
}

/// `[quic]`: the transport.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Quic {
    /// Largest UDP payload that path discovery goes up to.
    pub mtu_max: u16,
    /// Kernel buffers of each UDP socket.
    pub socket_buffer_bytes: usize,
    /// Flow-control window of a stream, towards the broker.
    pub stream_window_bytes: u32,
    /// Of a connection, towards the broker.
    pub connection_window_bytes: u32,
    /// Sent and not yet acknowledged, of a connection.
    pub send_window_bytes: u64,
    /// A connection from which nothing comes for so long is over.
    pub idle_timeout_ms: u32,
    pub keep_alive_ms: u64,
}

impl Default for Quic {
    fn default() -> Self {
        Self {
            mtu_max: MTU_MAX,
            socket_buffer_bytes: 4 << 20,
            stream_window_bytes: 2 << 20,
            connection_window_bytes: 16 << 20,
            send_window_bytes: 16 << 20,
            idle_timeout_ms: 15_000,
            keep_alive_ms: 4_000,
        }
    }
}

impl Quic {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if !(MTU_MIN..=MTU_MAX).contains(&self.mtu_max) {
            return invalid(
                "quic.mtu_max",
                format!("{MTU_MIN} to {MTU_MAX}: ten segments must stay below 64 KiB"),
            );
        }
        if self.keep_alive_ms * 2 > u64::from(self.idle_timeout_ms) {
            return invalid("quic.keep_alive_ms", "at most half of quic.idle_timeout_ms");
        }
        if self.stream_window_bytes < 64 << 10
            || self.connection_window_bytes < self.stream_window_bytes
        {
            return invalid(
                "quic.stream_window_bytes",
                "at least 65536, and at most quic.connection_window_bytes",
            );
        }
        Ok(())
    }
}

/// `[plugins]`: what components may use when their deployment does not say.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Plugins {
    pub memory_bytes_max: u64,
    pub batch_ms_max: u32,
    /// Stored components, all together.
    pub store_bytes_max: u64,
    /// Threads for components that are slow or were killed. One topic has at most half of them.
    pub worker_threads: usize,
}

impl Default for Plugins {
    fn default() -> Self {
        Self {
            memory_bytes_max: 64 * MIB,
            batch_ms_max: 1_000,
            store_bytes_max: 1_024 * MIB,
            worker_threads: 2,
        }
    }
}

impl Plugins {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if !(1..=WORKER_THREADS_MAX).contains(&self.worker_threads) {
            let why = format!("it is 1 to {WORKER_THREADS_MAX}");
            return invalid("plugins.worker_threads", why);
        }
        Ok(())
    }
}

/// `[telemetry]`: where to send what the broker measures.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Telemetry {
    /// Base URL of an OpenTelemetry collector (OTLP over HTTP), as `http://127.0.0.1:4318`.
    pub otlp_endpoint: Option<String>,
    /// Time between two exports.
    pub interval_ms: u64,
    /// The share of requests, batches and deliveries that spans are made for: 0 (none) to 1 (all).
    pub trace_share: f64,
}

impl Telemetry {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if !(0.0..=1.0).contains(&self.trace_share) {
            return invalid("telemetry.trace_share", "0 (none) to 1 (all)");
        }
        let Some(endpoint) = &self.otlp_endpoint else {
            return Ok(());
        };
        let authority = endpoint
            .strip_prefix("http://")
            .map(|rest| rest.trim_end_matches('/'));
        if !authority.is_some_and(|rest| !rest.contains('/') && rest.rsplit_once(':').is_some()) {
            let why = format!(
                "`{endpoint}` is not http://HOST:PORT (a collector on this machine or a local agent)"
            );
            return invalid("telemetry.otlp_endpoint", why);
        }
        if self.interval_ms == 0 {
            return invalid("telemetry.interval_ms", "it is at least 1");
        }
        Ok(())
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            otlp_endpoint: None,
            interval_ms: 10_000,
            trace_share: 0.0,
        }
    }
}
