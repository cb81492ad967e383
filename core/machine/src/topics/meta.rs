//! Topics and their settings, as every shard knows them.

use millstream_batch::ids::TopicId;

/// A topic as the catalog describes it. `revision` rises with every change, so that applying a
/// description twice, or an old one late, does nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicMeta {
    pub id: TopicId,
    pub name: String,
    pub partitions: u32,
    pub config: TopicConfig,
    pub revision: u64,
    /// Deployments by stage, in the order in which they run.
    pub filters: Vec<FilterBinding>,
}

/// Settings of a topic. `None` means the broker's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicConfig {
    /// `retention.ms`: batches older (by append time) may go. `-1`: for ever.
    pub retention_ms: Option<i64>,
    /// `retention.bytes`: of each partition. `-1`: unbounded.
    pub retention_bytes: Option<i64>,
    /// `max.message.bytes`: largest batch as sent.
    pub batch_bytes_max: Option<u32>,
    /// `check.records`: which records are walked before a batch is stored.
    pub check_records: Option<CheckRecords>,
}

/// Which records are walked before a batch is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CheckRecords {
    /// Those that are not compressed.
    #[default]
    Plain,
    /// All: compressed ones on a worker thread.
    All,
}

/// A filter component bound to a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterBinding {
    /// The deployment's name.
    pub name: String,
    /// SHA-256 of the component.
    pub digest: [u8; 32],
    pub stage: Stage,
    /// `wasi:config` parameters, sorted by key.
    pub parameters: Vec<(String, String)>,
    pub budget: Budget,
    pub on_error: OnError,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Before the append: what is dropped is never stored.
    Produce,
    /// For every subscription: what is dropped stays stored.
    Subscribe,
}

/// What one call may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    pub memory_bytes_max: u64,
    /// Wall time of one batch, enforced by epochs of 1 ms.
    pub batch_ms_max: u32,
}

/// What happens to a batch whose filter trapped, ran out of budget or is lost. The default fails
/// closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// Refuse the batch (produce) or stop the subscription with an error (subscribe).
    #[default]
    Reject,
    /// Let the records through unfiltered, and count them.
    Pass,
    /// Drop the records, and count them.
    Drop,
}
