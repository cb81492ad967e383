//! Everything that is asked once: topics, offsets, groups, plugins, the broker.
//!
//! What only looks, or is the same done twice, is repeated until the client's timeout when its answer is
//! lost. What is not says so with `unknown_outcome`. Deliberately absent: producing and consuming.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millstream_protocol::messages as wire;
use millstream_protocol::{Kind, Message};
use tokio::time::Instant;

use crate::connection::{Link, Repeat};
use crate::consumer::StartAt;
use crate::error::{Error, Result};
use crate::transport;

/// Asks a broker. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Admin {
    link: Arc<Link>,
    timeout: Duration,
}

/// A topic.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TopicDescription {
    /// A UUID: a topic deleted and created again has another.
    pub id: Vec<u8>,
    pub name: String,
    pub partitions: u32,
    /// Settings that were set; others have the broker's default.
    pub config: Vec<(String, String)>,
    pub filters: Vec<FilterSpec>,
    /// Rises with every change.
    pub revision: u64,
    /// Filled by [`Admin::describe_topic`] when asked for.
    pub partition_infos: Vec<PartitionInfo>,
    /// Every setting with what holds where the topic does not set it. Filled by
    /// [`Admin::describe_topic`].
    pub defaults: Vec<(String, String)>,
}

/// A partition as it is now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PartitionInfo {
    pub partition: u32,
    pub start_offset: u64,
    /// The next offset to be given; everything below is durable and visible.
    pub end_offset: u64,
    pub shard: u32,
    pub leader_epoch: u32,
    /// Bytes appended since creation.
    pub bytes: u64,
    /// Records appended a second, over the last seconds.
    pub records_per_second: f64,
    /// Why this partition cannot be described.
    pub error: Option<String>,
}

/// A position to resolve to an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetSpec {
    Start,
    End,
    /// The first record at or after this time, in milliseconds since the Unix epoch.
    Timestamp(i64),
}

/// A filter component and how it is bound to a topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilterSpec {
    pub name: String,
    pub topic: String,
    /// `produce` or `subscribe`.
    pub stage: String,
    /// SHA-256 of the component. Empty in a deployment that brings the component.
    pub digest: Vec<u8>,
    pub parameters: Vec<(String, String)>,
    /// 0: the broker's default.
    pub memory_bytes_max: u64,
    /// 0: the broker's default.
    pub batch_ms_max: u32,
    /// `reject`, `pass` or `drop`; empty: the broker's default.
    pub on_error: String,
    /// `running`, or `paused` with why. Empty in a deployment.
    pub state: String,
    /// The right to deploy is missing: `parameters` have their keys alone.
    pub values_hidden: bool,
    /// Records, batches and starts that failed since `errors_since_ms` (Unix time in milliseconds).
    pub errors: u64,
    pub errors_since_ms: i64,
    /// What failed last, and when; empty if nothing has, or the right to see it is missing.
    pub last_error: String,
    pub last_error_at_ms: i64,
}

/// A consumer group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupDescription {
    pub group: String,
    pub epoch: u64,
    /// `empty`, `stable` or `rebalancing`; `unknown` when the group's home does not answer.
    pub state: String,
    pub members: Vec<GroupMember>,
    /// In every partition of the topics that it reads or has an offset in.
    pub offsets: Vec<GroupOffset>,
    /// Shards that did not answer, and why: what they know is missing.
    pub unreachable: Vec<String>,
}

/// The groups of a broker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupList {
    /// By name.
    pub groups: Vec<GroupSummary>,
    /// Shards that did not answer, and why: what they know is missing.
    pub unreachable: Vec<String>,
}

/// A group in a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupSummary {
    pub group: String,
    /// `empty`, `stable` or `rebalancing`; `unknown` when the group's home does not answer.
    pub state: String,
    pub members: u32,
    /// Records still to be read, of topics that this principal sees. `None`: not all of it is known.
    pub lag: Option<u64>,
}

/// A member of a group and what it owns, as (topic, partition).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupMember {
    pub member: u64,
    /// What it calls itself.
    pub client: String,
    /// Where it is connected from; `None` while it has no connection.
    pub address: Option<String>,
    pub partitions: Vec<(String, u32)>,
}

/// How a group may be reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResetOptions {
    /// Also while it has members.
    pub force: bool,
    /// Nothing is changed, and it may have members.
    pub dry_run: bool,
    /// Also when it is not there yet: its first member begins there.
    pub create: bool,
}

/// A group's place in one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupOffset {
    pub topic: String,
    pub partition: u32,
    /// The next offset to read.
    pub committed: Option<u64>,
    pub start_offset: u64,
    pub end_offset: u64,
    /// `None`: not known, see `error`.
    pub lag: Option<u64>,
    /// 0: no member owns it.
    pub member: u64,
    pub metadata: String,
    /// Why the partition's offsets and lag are not known.
    pub error: Option<String>,
}

impl Admin {
    pub(crate) fn new(link: Arc<Link>, timeout: Duration) -> Self {
        Self { link, timeout }
    }

    /// Create a topic. `created` in the answer is `false` when it was there and `if_not_exists` is set.
    ///
    /// # Errors
    /// When it exists already, or name, number of partitions or settings are not allowed.
    pub async fn create_topic(
        &self,
        name: &str,
        partitions: u32,
        config: &[(String, String)],
        if_not_exists: bool,
    ) -> Result<(TopicDescription, bool)> {
        let config = config
            .iter()
            .map(|(key, value)| setting(key, Some(value)))
            .collect();
        let request = wire::CreateTopicRequest {
            name: name.to_owned(),
            partitions,
            config,
            if_not_exists,
            key: request_key()?,
        };
        // By the key, the broker knows a repeat for what it is.
        let answer: wire::CreateTopicResponse =
            self.ask(Kind::CreateTopic, &request, Repeat::Safe).await?;
        Ok((topic(answer.topic)?, answer.created))
    }

    /// Delete a topic with everything in it.
    ///
    /// # Errors
    /// When there is no such topic.
    pub async fn delete_topic(&self, name: &str) -> Result<()> {
        let request = wire::DeleteTopicRequest {
            name: name.to_owned(),
        };
        let _: wire::DeleteTopicResponse =
            self.ask(Kind::DeleteTopic, &request, Repeat::Never).await?;
        Ok(())
    }

    /// Change settings of a topic; `None` goes back to the broker's default.
    ///
    /// # Errors
    /// When there is no such topic, or a setting is not allowed.
    pub async fn configure_topic(
        &self,
        name: &str,
        set: &[(String, Option<String>)],
    ) -> Result<TopicDescription> {
        let set = set
            .iter()
            .map(|(key, value)| setting(key, value.as_ref()))
            .collect();
        let request = wire::ConfigureTopicRequest {
            name: name.to_owned(),
            set,
        };
        let answer: wire::ConfigureTopicResponse = self
            .ask(Kind::ConfigureTopic, &request, Repeat::Safe)
            .await?;
        topic(answer.topic)
    }

    /// Raise a topic's number of partitions to `total`.
    ///
    /// # Errors
    /// When there is no such topic, or the number would fall or pass the limit.
    pub async fn add_partitions(&self, name: &str, total: u32) -> Result<TopicDescription> {
        let request = wire::AddPartitionsRequest {
            name: name.to_owned(),
            total,
        };
        let answer: wire::AddPartitionsResponse = self
            .ask(Kind::AddPartitions, &request, Repeat::Never)
            .await?;
        topic(answer.topic)
    }

    /// Every topic that this principal may see.
    ///
    /// # Errors
    /// When the broker cannot be reached.
    pub async fn list_topics(&self) -> Result<Vec<TopicDescription>> {
        let mut topics = Vec::new();
        let mut request = wire::ListTopicsRequest::default();
        loop {
            let page: wire::ListTopicsResponse =
                self.ask(Kind::ListTopics, &request, Repeat::Safe).await?;
            for info in page.topics {
                topics.push(topic(Some(info))?);
            }
            if page.next.is_empty() {
                break;
            }
            request.after = page.next;
        }
        topics.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(topics)
    }

    /// One topic, with `partitions` also each partition's offsets.
    ///
    /// # Errors
    /// When there is no such topic.
    pub async fn describe_topic(&self, name: &str, partitions: bool) -> Result<TopicDescription> {
        let mut request = wire::DescribeTopicRequest {
            name: name.to_owned(),
            partitions,
            from_partition: 0,
        };
        let mut infos = Vec::new();
        loop {
            let page: wire::DescribeTopicResponse = self
                .ask(Kind::DescribeTopic, &request, Repeat::Safe)
                .await?;
            infos.extend(page.partitions.into_iter().map(|info| PartitionInfo {
                partition: info.partition,
                start_offset: info.start_offset,
                end_offset: info.end_offset,
                shard: info.shard,
                leader_epoch: info.leader_epoch,
                bytes: info.bytes,
                records_per_second: info.records_per_second,
                error: (!info.error.is_empty()).then_some(info.error),
            }));
            if page.next_partition <= request.from_partition {
                let mut description = topic(page.topic)?;
                description.partition_infos = infos;
                description.defaults = settings(page.defaults);
                return Ok(description);
            }
            request.from_partition = page.next_partition;
        }
    }

    /// The offset at a position. For a timestamp past the last record, the end and `false`.
    ///
    /// # Errors
    /// When there is no such partition.
    pub async fn offset_at(
        &self,
        topic: &str,
        partition: u32,
        at: OffsetSpec,
    ) -> Result<(u64, bool)> {
        use wire::offset_at_request::At;
        let at = match at {
            OffsetSpec::Start => At::Start(true),
            OffsetSpec::End => At::End(true),
            OffsetSpec::Timestamp(ms) => At::TimestampMs(ms),
        };
        let request = wire::OffsetAtRequest {
            topic: topic.to_owned(),
            partition,
            at: Some(at),
        };
        let answer: wire::OffsetAtResponse =
            self.ask(Kind::OffsetAt, &request, Repeat::Safe).await?;
        Ok((answer.offset, answer.found))
    }

    /// Give up all records below an offset. Gives the partition's new start.
    ///
    /// # Errors
    /// When there is no such partition, or the offset is past its end.
    pub async fn trim_partition(
        &self,
        topic: &str,
        partition: u32,
        start_offset: u64,
    ) -> Result<u64> {
        let request = wire::TrimPartitionRequest {
            topic: topic.to_owned(),
            partition,
            start_offset,
        };
        let answer: wire::TrimPartitionResponse = self
            .ask(Kind::TrimPartition, &request, Repeat::Safe)
            .await?;
        Ok(answer.start_offset)
    }

    /// All groups, by name.
    ///
    /// # Errors
    /// When the broker cannot be reached.
    pub async fn list_groups(&self) -> Result<GroupList> {
        let mut list = GroupList::default();
        let mut request = wire::ListGroupsRequest::default();
        let summary = |group: wire::GroupSummary| GroupSummary {
            group: group.group,
            state: group.state,
            members: group.members,
            lag: group.lag,
        };
        loop {
            let page: wire::ListGroupsResponse =
                self.ask(Kind::ListGroups, &request, Repeat::Safe).await?;
            list.groups.extend(page.groups.into_iter().map(summary));
            add_new(&mut list.unreachable, page.unreachable);
            if page.next.is_empty() {
                return Ok(list);
            }
            if page.next <= request.after {
                return Err(Error::protocol("pages of groups go back"));
            }
            request.after = page.next;
        }
    }

    /// Members, assignment, offsets and lag of a group.
    ///
    /// # Errors
    /// When there is no such group.
    pub async fn describe_group(&self, group: &str) -> Result<GroupDescription> {
        let mut request = wire::DescribeGroupRequest {
            group: group.to_owned(),
            after: None,
        };
        let member = |member: wire::GroupMember| GroupMember {
            member: member.member,
            client: member.client,
            address: (!member.address.is_empty()).then_some(member.address),
            partitions: Vec::new(),
        };
        let mut described = GroupDescription::default();
        loop {
            let page: wire::DescribeGroupResponse = self
                .ask(Kind::DescribeGroup, &request, Repeat::Safe)
                .await?;
            if request.after.is_none() {
                described.group = page.group;
                described.epoch = page.epoch;
                described.state = page.state;
                described.members = page.members.into_iter().map(member).collect();
            }
            let offsets = page.offsets.into_iter().map(offset);
            described.offsets.extend(offsets);
            add_new(&mut described.unreachable, page.unreachable);
            let Some(next) = page.next else { break };
            let place = |at: &wire::GroupPartition| (at.topic.clone(), at.partition);
            if request.after.as_ref().map(place) >= Some(place(&next)) {
                return Err(Error::protocol("pages of a group's offsets go back"));
            }
            request.after = Some(next);
        }
        for at in &described.offsets {
            let mut members = described.members.iter_mut();
            if let Some(owner) = members.find(|member| member.member == at.member) {
                owner.partitions.push((at.topic.clone(), at.partition));
            }
        }
        Ok(described)
    }

    /// Set a group's offsets in a topic; no `partitions` means all. With `force`, members that hold a
    /// partition go on from the reset: what they have not committed by then is not committed any more.
    ///
    /// # Errors
    /// When there is no such group or topic, or the group has members; see [`ResetOptions`].
    pub async fn reset_group(
        &self,
        group: &str,
        topic: &str,
        partitions: &[u32],
        to: StartAt,
        options: ResetOptions,
    ) -> Result<Vec<GroupOffset>> {
        let ResetOptions {
            force,
            dry_run,
            create,
        } = options;
        let request = wire::ResetGroupRequest {
            group: group.to_owned(),
            topic: topic.to_owned(),
            partitions: partitions.to_vec(),
            to: Some(to.to_wire()),
            force,
            dry_run,
            create,
        };
        let answer: wire::ResetGroupResponse =
            self.ask(Kind::ResetGroup, &request, Repeat::Safe).await?;
        Ok(answer.offsets.into_iter().map(offset).collect())
    }

    /// Delete a group with its offsets. With `force` also while it has members, whose consumers end with
    /// `UNKNOWN_GROUP`.
    ///
    /// # Errors
    /// When there is no such group, or it has members.
    pub async fn delete_group(&self, group: &str, force: bool) -> Result<()> {
        let request = wire::DeleteGroupRequest {
            group: group.to_owned(),
            force,
        };
        let _: wire::DeleteGroupResponse =
            self.ask(Kind::DeleteGroup, &request, Repeat::Never).await?;
        Ok(())
    }

    /// Deploy a filter. `component` brings it; empty, `filter.digest` names one that is there. The same
    /// name on the same topic is replaced.
    ///
    /// # Errors
    /// When there is no such topic, or the component cannot be used here.
    pub async fn deploy_filter(&self, filter: &FilterSpec, component: Bytes) -> Result<FilterSpec> {
        let info = wire::FilterInfo {
            name: filter.name.clone(),
            topic: filter.topic.clone(),
            stage: filter.stage.clone(),
            digest: filter.digest.clone().into(),
            parameters: filter
                .parameters
                .iter()
                .map(|(key, value)| setting(key, Some(value)))
                .collect(),
            memory_bytes_max: filter.memory_bytes_max,
            batch_ms_max: filter.batch_ms_max,
            on_error: filter.on_error.clone(),
            ..wire::FilterInfo::default()
        };
        let request = wire::DeployFilterRequest { filter: Some(info) };
        let deadline = Instant::now() + self.timeout;
        let answer: wire::DeployFilterResponse = self
            .link
            .request(
                Kind::DeployFilter,
                &request,
                component,
                Repeat::Safe,
                deadline,
            )
            .await?;
        answer
            .filter
            .map(filter_spec)
            .ok_or_else(|| Error::protocol("a deployment was answered without its filter"))
    }

    /// Everything deployed.
    ///
    /// # Errors
    /// When the broker cannot be reached.
    pub async fn list_filters(&self) -> Result<Vec<FilterSpec>> {
        let mut filters = Vec::new();
        let mut request = wire::ListFiltersRequest::default();
        loop {
            let page: wire::ListFiltersResponse =
                self.ask(Kind::ListFilters, &request, Repeat::Safe).await?;
            filters.extend(page.filters.into_iter().map(filter_spec));
            if page.next.is_empty() {
                break;
            }
            request.after = page.next;
        }
        // By topic, and of each in the order in which they run.
        filters.sort_by(|a: &FilterSpec, b| a.topic.cmp(&b.topic));
        Ok(filters)
    }

    /// Take a filter off a topic.
    ///
    /// # Errors
    /// When there is no such filter.
    pub async fn remove_filter(&self, topic: &str, name: &str) -> Result<()> {
        let request = wire::RemoveFilterRequest {
            topic: topic.to_owned(),
            name: name.to_owned(),
        };
        let _: wire::RemoveFilterResponse = self
            .ask(Kind::RemoveFilter, &request, Repeat::Never)
            .await?;
        Ok(())
    }

    /// A round trip.
    ///
    /// # Errors
    /// When the broker cannot be reached.
    pub async fn ping(&self) -> Result<Duration> {
        let start = Instant::now();
        let _: wire::PingResponse = self
            .ask(Kind::Ping, &wire::PingRequest {}, Repeat::Safe)
            .await?;
        Ok(start.elapsed())
    }

    /// The broker's health and counters as JSON, for operators; its fields are not frozen.
    ///
    /// # Errors
    /// When the broker cannot be reached.
    pub async fn status(&self) -> Result<String> {
        let answer: wire::StatusResponse = self
            .ask(Kind::Status, &wire::StatusRequest {}, Repeat::Safe)
            .await?;
        Ok(answer.json)
    }

    /// Tell every shard that the broker's wall clock is right, also where it is earlier than what was
    /// logged: retention and expiry, which rest while it is in doubt, go on by it. Gives the clock's
    /// time in milliseconds since 1970.
    ///
    /// # Errors
    /// When this principal is no administrator, or a shard takes no writes.
    pub async fn accept_clock(&self) -> Result<i64> {
        let answer: wire::AcceptClockResponse = self
            .ask(
                Kind::AcceptClock,
                &wire::AcceptClockRequest {},
                Repeat::Safe,
            )
            .await?;
        Ok(answer.time_ms)
    }

    async fn ask<Q: Message, R: Message + Default>(
        &self,
        kind: Kind,
        request: &Q,
        repeat: Repeat,
    ) -> Result<R> {
        self.link
            .request(
                kind,
                request,
                Bytes::new(),
                repeat,
                Instant::now() + self.timeout,
            )
            .await
    }
}

/// What tells the repeats of one request from another request.
fn request_key() -> Result<Bytes> {
    let mut key = [0; 16];
    transport::random(&mut key)?;
    Ok(Bytes::copy_from_slice(&key))
}

fn setting(key: &str, value: Option<&String>) -> wire::Setting {
    wire::Setting {
        key: key.to_owned(),
        value: value.cloned(),
    }
}

fn settings(settings: Vec<wire::Setting>) -> Vec<(String, String)> {
    settings
        .into_iter()
        .filter_map(|setting| Some((setting.key, setting.value?)))
        .collect()
}

fn topic(info: Option<wire::TopicInfo>) -> Result<TopicDescription> {
    let info = info.ok_or_else(|| Error::protocol("an answer about a topic came without it"))?;
    Ok(TopicDescription {
        id: info.id.to_vec(),
        name: info.name,
        partitions: info.partitions,
        config: settings(info.config),
        filters: info.filters.into_iter().map(filter_spec).collect(),
        revision: info.revision,
        partition_infos: Vec::new(),
        defaults: Vec::new(),
    })
}

fn filter_spec(info: wire::FilterInfo) -> FilterSpec {
    FilterSpec {
        name: info.name,
        topic: info.topic,
        stage: info.stage,
        digest: info.digest.to_vec(),
        parameters: info
            .parameters
            .into_iter()
            .map(|setting| (setting.key, setting.value.unwrap_or_default()))
            .collect(),
        memory_bytes_max: info.memory_bytes_max,
        batch_ms_max: info.batch_ms_max,
        on_error: info.on_error,
        state: info.state,
        values_hidden: info.values_hidden,
        errors: info.errors,
        errors_since_ms: info.errors_since_ms,
        last_error: info.last_error,
        last_error_at_ms: info.last_error_at_ms,
    }
}

/// Each page tells it again.
fn add_new(known: &mut Vec<String>, told: Vec<String>) {
    for text in told {
        if !known.contains(&text) {
            known.push(text);
        }
    }
}

fn offset(offset: wire::GroupOffset) -> GroupOffset {
    GroupOffset {
        topic: offset.topic,
        partition: offset.partition,
        committed: offset.committed,
        start_offset: offset.start_offset,
        end_offset: offset.end_offset,
        lag: offset.lag,
        member: offset.member,
        metadata: offset.metadata,
        error: (!offset.error.is_empty()).then_some(offset.error),
    }
}
