//! The settings of a consumer.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use millstream_protocol::messages as wire;
use tokio::sync::{mpsc, oneshot};

use super::Consumer;
use super::assignment::TopicPartition;
use super::driver::Driver;
use crate::connection::Link;
use crate::error::{Error, Result};

/// Where to begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StartAt {
    /// The oldest record that is kept.
    #[default]
    Start,
    /// Only what comes from now on.
    End,
    Offset(u64),
    /// This offset, having read the record before it under this leader epoch
    /// ([`FetchedBatch::leader_epoch`](super::FetchedBatch::leader_epoch)): should that record have been
    /// lost since, the error is `OFFSET_TRUNCATED` with [`safe_offset`](crate::Error::safe_offset).
    After {
        offset: u64,
        leader_epoch: u32,
    },
    /// The first record at or after this time, in milliseconds since the Unix epoch.
    Timestamp(i64),
}

impl StartAt {
    pub(crate) fn to_wire(self) -> wire::StartAt {
        use wire::start_at::At;
        let (at, leader_epoch) = match self {
            Self::Start => (At::Start(true), None),
            Self::End => (At::End(true), None),
            Self::Offset(offset) => (At::Offset(offset), None),
            Self::After {
                offset,
                leader_epoch,
            } => (At::Offset(offset), Some(leader_epoch)),
            Self::Timestamp(ms) => (At::TimestampMs(ms), None),
        };
        wire::StartAt {
            at: Some(at),
            leader_epoch,
        }
    }
}

/// What to do when records that were read are lost: an unclean stop of a broker that runs with
/// `flush = interval` may take them, and gives their offsets to others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnTruncation {
    /// Tell, as [`ConsumerEvent::Failed`](super::ConsumerEvent::Failed) or an error of code
    /// `OFFSET_TRUNCATED`; go on with a seek to its [`safe_offset`](crate::Error::safe_offset).
    #[default]
    Fail,
    /// Go on from the safe offset, with a warning in the log alone.
    Resume,
}

/// What to do when records were removed (by retention or a trim) before they were read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnLost {
    /// With a group [`Fail`](Self::Fail), without [`Oldest`](Self::Oldest).
    #[default]
    Default,
    /// The partition stops with an error of code `RECORDS_LOST`, which says how many are lost; go on with a
    /// seek to its [`next_offset`](crate::Error::next_offset).
    Fail,
    /// Tell ([`ConsumerEvent::RecordsLost`](super::ConsumerEvent::RecordsLost), and a warning in the log),
    /// and go on with the oldest record that is kept.
    Oldest,
    /// Tell, and go on at the end.
    Newest,
}

impl OnLost {
    fn to_wire(self) -> wire::OnLost {
        match self {
            Self::Default => wire::OnLost::Default,
            Self::Fail => wire::OnLost::Fail,
            Self::Oldest => wire::OnLost::Oldest,
            Self::Newest => wire::OnLost::Newest,
        }
    }
}

/// What the application asked for.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) group: String,
    pub(super) topics: Vec<String>,
    pub(super) partitions: Vec<(TopicPartition, Option<StartAt>)>,
    pub(super) from: StartAt,
    pub(super) client: String,
    pub(super) session_timeout: Duration,
    pub(super) credit_bytes: u64,
    pub(super) filters: Vec<(String, Vec<(String, String)>)>,
    pub(super) stop_at_end: bool,
    pub(super) auto_commit: Option<Duration>,
    pub(super) verify: bool,
    pub(super) on_truncation: OnTruncation,
    pub(super) on_lost: wire::OnLost,
    pub(super) reconnect_timeout: Duration,
}

/// Settings of a consumer.
#[derive(Clone, Debug)]
pub struct ConsumerBuilder {
    link: Arc<Link>,
    plan: Plan,
}

impl ConsumerBuilder {
    pub(crate) fn new(link: Arc<Link>) -> Self {
        let plan = Plan {
            group: String::new(),
            topics: Vec::new(),
            partitions: Vec::new(),
            from: StartAt::Start,
            client: String::new(),
            session_timeout: Duration::from_secs(30),
            credit_bytes: 16 << 20,
            filters: Vec::new(),
            stop_at_end: false,
            auto_commit: Some(Duration::from_secs(5)),
            verify: false,
            on_truncation: OnTruncation::Fail,
            on_lost: wire::OnLost::Default,
            reconnect_timeout: Duration::from_secs(300),
        };
        Self { link, plan }
    }

    /// Share the topics with the other members of this group; offsets are kept by the broker.
    #[must_use]
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.plan.group = group.into();
        self
    }

    /// Read this topic: with a group the partitions that the group gives, else all, those that are added
    /// later too.
    #[must_use]
    pub fn topic(mut self, topic: impl Into<String>) -> Self {
        self.plan.topics.push(topic.into());
        self
    }

    /// Read this partition, without a group.
    #[must_use]
    pub fn partition(mut self, topic: impl Into<Arc<str>>, partition: u32) -> Self {
        self.plan
            .partitions
            .push((TopicPartition::new(topic, partition), None));
        self
    }

    /// Read this partition from here, without a group.
    #[must_use]
    pub fn partition_from(
        mut self,
        topic: impl Into<Arc<str>>,
        partition: u32,
        from: StartAt,
    ) -> Self {
        self.plan
            .partitions
            .push((TopicPartition::new(topic, partition), Some(from)));
        self
    }

    /// Where to begin where nothing else says: a group without a committed offset, or no group.
    /// Default: the start.
    #[must_use]
    pub fn from(mut self, from: StartAt) -> Self {
        self.plan.from = from;
        self
    }

    /// How this member is shown in the group's description. Default: the client's
    /// [`client_id`](crate::ClientBuilder::client_id).
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.plan.client = name.into();
        self
    }

    /// After how long without a connection the group gives this member's partitions to others. How long
    /// a record is worked on does not matter. Default 30 s.
    #[must_use]
    pub fn session_timeout(mut self, timeout: Duration) -> Self {
        self.plan.session_timeout = timeout;
        self
    }

    /// Bytes that the broker may send ahead: the bound of the queue in memory. Default 16 MiB.
    #[must_use]
    pub fn credit_bytes(mut self, bytes: u64) -> Self {
        self.plan.credit_bytes = bytes.max(1);
        self
    }

    /// Run a deployed filter for this subscription, after the topic's own.
    #[must_use]
    pub fn filter(mut self, name: impl Into<String>, parameters: Vec<(String, String)>) -> Self {
        self.plan.filters.push((name.into(), parameters));
        self
    }

    /// End each partition where it ends now, and the consumer with the last of them. With a group: when this
    /// member's have come to their end once, and the group has moved what may be coming to it.
    #[must_use]
    pub fn stop_at_end(mut self) -> Self {
        self.plan.stop_at_end = true;
        self
    }

    /// With a group: commit what was processed so often. `None` leaves it to
    /// [`commit`](Consumer::commit). Default 5 s.
    #[must_use]
    pub fn auto_commit(mut self, interval: Option<Duration>) -> Self {
        self.plan.auto_commit = interval;
        self
    }

    /// Check that offsets and each producer's sequences have no holes; one is an error of kind
    /// [`Gap`](crate::ErrorKind::Gap). Not for topics with filters at produce.
    #[must_use]
    pub fn verify(mut self, verify: bool) -> Self {
        self.plan.verify = verify;
        self
    }

    /// What to do when records that were read are lost. Default: fail, so that nobody goes on unaware.
    #[must_use]
    pub fn on_truncation(mut self, then: OnTruncation) -> Self {
        self.plan.on_truncation = then;
        self
    }

    /// What to do when records were removed before they were read. Default: fail with a group, else go on
    /// with the oldest.
    #[must_use]
    pub fn on_lost(mut self, then: OnLost) -> Self {
        self.plan.on_lost = then.to_wire();
        self
    }

    /// How long to try to get a lost subscription back, or to open a partition that cannot be read yet.
    /// Default 5 minutes.
    #[must_use]
    pub fn reconnect_timeout(mut self, timeout: Duration) -> Self {
        self.plan.reconnect_timeout = timeout;
        self
    }

    /// Subscribe.
    ///
    /// # Errors
    /// When the settings do not fit together, or the broker cannot be reached or refuses.
    pub async fn build(self) -> Result<Consumer> {
        let Self { link, plan } = self;
        if plan.topics.is_empty() && plan.partitions.is_empty() {
            return Err(Error::usage("a consumer needs a topic or a partition"));
        }
        if !plan.group.is_empty() && !plan.partitions.is_empty() {
            return Err(Error::usage(
                "with a group the broker assigns partitions: name topics only",
            ));
        }
        let (change_out, changes) = mpsc::unbounded_channel();
        let (arrival_out, arrivals) = mpsc::unbounded_channel();
        let (commands, command_in) = mpsc::unbounded_channel();
        let (started, start) = oneshot::channel();
        let queued = Arc::new(AtomicUsize::new(0));
        let auto_commit = plan.auto_commit.is_some() && !plan.group.is_empty();
        let driver = Driver::new(
            link,
            plan,
            Arc::clone(&queued),
            change_out,
            arrival_out,
            command_in,
        );
        let driver = tokio::spawn(driver.run(started));
        start
            .await
            .unwrap_or_else(|_| Err(Error::closed("consumer")))?;
        let mut consumer = Consumer::over(commands, changes, arrivals, queued, auto_commit);
        consumer.driver = Some(driver);
        Ok(consumer)
    }
}
