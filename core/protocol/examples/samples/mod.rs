//! One frame of every kind, with every field set to something that cannot be mistaken for another.

pub(crate) mod describe;

use bytes::{Bytes, BytesMut};
use millstream_protocol::frame::{encode, encode_head};
use millstream_protocol::messages::*;
use millstream_protocol::{Kind, Message};

/// A frame and what is in it.
pub(crate) struct Sample {
    /// File name without its ending.
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// The message's name in the schema.
    pub(crate) message: &'static str,
    pub(crate) frame: Bytes,
}

fn sample(what: &str, kind: Kind, message: &'static str, value: &impl Message) -> Sample {
    Sample {
        name: file_name(kind, what),
        kind,
        message,
        frame: encode(kind, value),
    }
}

fn with_payload(
    what: &str,
    kind: Kind,
    message: &'static str,
    value: &impl Message,
    payload: &[u8],
) -> Sample {
    let mut frame = BytesMut::new();
    encode_head(&mut frame, kind, value, payload.len());
    frame.extend_from_slice(payload);
    Sample {
        name: file_name(kind, what),
        kind,
        message,
        frame: frame.freeze(),
    }
}

fn file_name(kind: Kind, what: &str) -> String {
    let name = kind.name().to_lowercase();
    if what.is_empty() {
        name
    } else {
        format!("{name}.{what}")
    }
}

/// Every sample.
pub(crate) fn all() -> Vec<Sample> {
    let mut all = connection();
    all.extend(topics());
    all.extend(producing());
    all.extend(consuming());
    all.extend(groups());
    all.extend(filters());
    all
}

fn id() -> Bytes {
    Bytes::from_static(b"\x01\x92\xd3\x4e\x5f\x60\x7a\x8b\x9c\xad\xbe\xcf\xd0\xe1\xf2\x03")
}

fn text(text: &str) -> String {
    text.to_owned()
}

fn error() -> Error {
    Error {
        code: 43,
        message: text("producer 7: sequence 5 does not follow 1"),
        hint: text("An earlier batch is missing."),
        retriable: true,
        unknown_outcome: true,
        retry_after_ms: 20,
        tag: 3,
        safe_offset: Some(41),
        next_offset: Some(42),
    }
}

fn setting() -> Setting {
    Setting {
        key: text("retention.ms"),
        value: Some(text("60000")),
    }
}

fn filter() -> FilterInfo {
    FilterInfo {
        name: text("errors"),
        topic: text("logs"),
        stage: text("produce"),
        digest: Bytes::from_static(&[0xd1; 32]),
        parameters: vec![Setting {
            key: text("expr"),
            value: Some(text("level == 'error'")),
        }],
        memory_bytes_max: 64 << 20,
        batch_ms_max: 1000,
        on_error: text("reject"),
        state: text("running"),
        errors: 3,
        errors_since_ms: 1_700_000_000_000,
        last_error: text("record 7 of a batch produced to logs/3: not JSON"),
        last_error_at_ms: 1_700_000_000_123,
        values_hidden: false,
    }
}

fn topic() -> TopicInfo {
    TopicInfo {
        id: id(),
        name: text("logs"),
        partitions: 4,
        config: vec![setting()],
        filters: vec![filter()],
        revision: 9,
    }
}

fn start(at: start_at::At) -> StartAt {
    StartAt {
        at: Some(at),
        leader_epoch: None,
    }
}

fn connection() -> Vec<Sample> {
    let hello = HelloRequest {
        version_min: 1,
        version_max: 2,
        client: text("vectors/1"),
        token: text("secret"),
        client_id: text("app-7"),
    };
    let answer = HelloResponse {
        version: 1,
        cluster_id: id(),
        server: text("millstream/0.1.0"),
        principal: text("app"),
        shards: 2,
        batch_bytes_max: 8 << 20,
        in_flight_max: 1024,
        idle_timeout_ms: 15_000,
    };
    vec![
        sample("", Kind::Error, "Error", &error()),
        sample("request", Kind::Hello, "HelloRequest", &hello),
        sample("response", Kind::Hello, "HelloResponse", &answer),
        sample("request", Kind::Ping, "PingRequest", &PingRequest {}),
        sample("response", Kind::Ping, "PingResponse", &PingResponse {}),
        sample("request", Kind::Status, "StatusRequest", &StatusRequest {}),
        sample(
            "response",
            Kind::Status,
            "StatusResponse",
            &StatusResponse { json: text("{}") },
        ),
        sample(
            "request",
            Kind::AcceptClock,
            "AcceptClockRequest",
            &AcceptClockRequest {},
        ),
        sample(
            "response",
            Kind::AcceptClock,
            "AcceptClockResponse",
            &AcceptClockResponse {
                time_ms: 1_700_000_000_000,
            },
        ),
    ]
}

fn topics() -> Vec<Sample> {
    let name = || text("logs");
    let create = CreateTopicRequest {
        name: name(),
        partitions: 4,
        config: vec![setting()],
        if_not_exists: true,
        key: id(),
    };
    let reset = Setting {
        key: text("retention.bytes"),
        value: None,
    };
    let partition = PartitionInfo {
        partition: 3,
        start_offset: 10,
        end_offset: 1 << 40,
        shard: 1,
        leader_epoch: 2,
        bytes: 12_345,
        error: text("why"),
        records_per_second: 12.5,
    };
    let described = DescribeTopicResponse {
        topic: Some(topic()),
        partitions: vec![partition],
        next_partition: 2_000,
        defaults: vec![setting()],
    };
    let at = |at| OffsetAtRequest {
        topic: text("logs"),
        partition: 3,
        at: Some(at),
    };
    let trim = TrimPartitionRequest {
        topic: name(),
        partition: 3,
        start_offset: 10,
    };
    vec![
        sample("request", Kind::CreateTopic, "CreateTopicRequest", &create),
        sample(
            "response",
            Kind::CreateTopic,
            "CreateTopicResponse",
            &CreateTopicResponse {
                topic: Some(topic()),
                created: true,
            },
        ),
        sample(
            "request",
            Kind::DeleteTopic,
            "DeleteTopicRequest",
            &DeleteTopicRequest { name: name() },
        ),
        sample(
            "response",
            Kind::DeleteTopic,
            "DeleteTopicResponse",
            &DeleteTopicResponse {},
        ),
        sample(
            "request",
            Kind::ConfigureTopic,
            "ConfigureTopicRequest",
            &ConfigureTopicRequest {
                name: name(),
                set: vec![setting(), reset],
            },
        ),
        sample(
            "response",
            Kind::ConfigureTopic,
            "ConfigureTopicResponse",
            &ConfigureTopicResponse {
                topic: Some(topic()),
            },
        ),
        sample(
            "request",
            Kind::AddPartitions,
            "AddPartitionsRequest",
            &AddPartitionsRequest {
                name: name(),
                total: 8,
            },
        ),
        sample(
            "response",
            Kind::AddPartitions,
            "AddPartitionsResponse",
            &AddPartitionsResponse {
                topic: Some(topic()),
            },
        ),
        sample(
            "request",
            Kind::ListTopics,
            "ListTopicsRequest",
            &ListTopicsRequest { after: id() },
        ),
        sample(
            "response",
            Kind::ListTopics,
            "ListTopicsResponse",
            &ListTopicsResponse {
                topics: vec![topic()],
                next: id(),
            },
        ),
        sample(
            "long_response",
            Kind::ListTopics,
            "ListTopicsResponse",
            &ListTopicsResponse {
                topics: vec![
                    TopicInfo {
                        id: id(),
                        name: "t".repeat(249),
                        ..TopicInfo::default()
                    };
                    250
                ],
                next: id(),
            },
        ),
        sample(
            "request",
            Kind::DescribeTopic,
            "DescribeTopicRequest",
            &DescribeTopicRequest {
                name: name(),
                partitions: true,
                from_partition: 1_000,
            },
        ),
        sample(
            "response",
            Kind::DescribeTopic,
            "DescribeTopicResponse",
            &described,
        ),
        sample(
            "request",
            Kind::OffsetAt,
            "OffsetAtRequest",
            &at(offset_at_request::At::TimestampMs(-1)),
        ),
        sample(
            "response",
            Kind::OffsetAt,
            "OffsetAtResponse",
            &OffsetAtResponse {
                offset: 41,
                found: true,
            },
        ),
        sample(
            "request",
            Kind::TrimPartition,
            "TrimPartitionRequest",
            &trim,
        ),
        sample(
            "response",
            Kind::TrimPartition,
            "TrimPartitionResponse",
            &TrimPartitionResponse { start_offset: 10 },
        ),
    ]
}

/// A batch of one record, `key` → `value`, by the Kafka layout; its checksum is in the bytes.
const BATCH: &[u8] = include_bytes!("../../../../clients/vectors/batch/kafka-plain-none.bin");

fn producing() -> Vec<Sample> {
    let open = ProducerOpen {
        pid: 1 << 33,
        epoch: 2,
        ack: Ack::None.into(),
        token: id(),
    };
    let produce = Produce {
        tag: 3,
        topic_id: id(),
        partition: 1,
        sequence: 1 << 34,
    };
    let produced = Produced {
        tag: 3,
        base_offset: Some(0),
        append_time_ms: 1_700_000_000_123,
        duplicate: true,
        kept: Some(2),
        kept_map: Bytes::from_static(&[0b101]),
        refused: 1,
        refused_map: Bytes::from_static(&[0b1000]),
        refusals: vec![RefusedRecord {
            record: 3,
            filter: text("errors"),
            message: text("not JSON"),
        }],
        refused_unknown: false,
        partitions: Some(6),
    };
    vec![
        sample(
            "request",
            Kind::InitProducer,
            "InitProducerRequest",
            &InitProducerRequest {
                pid: 1 << 33,
                token: id(),
            },
        ),
        sample(
            "response",
            Kind::InitProducer,
            "InitProducerResponse",
            &InitProducerResponse {
                pid: 1 << 33,
                epoch: 2,
                token: id(),
            },
        ),
        sample("", Kind::ProducerOpen, "ProducerOpen", &open),
        sample(
            "",
            Kind::ProducerOpened,
            "ProducerOpened",
            &ProducerOpened {
                in_flight_max: 1024,
            },
        ),
        with_payload("", Kind::Produce, "Produce", &produce, BATCH),
        sample("", Kind::Produced, "Produced", &produced),
    ]
}

fn consuming() -> Vec<Sample> {
    let subscribe = Subscribe {
        group: text("audit"),
        topics: vec![text("logs"), text("orders")],
        partitions: vec![FixedPartition {
            topic: text("logs"),
            partition: 3,
            from: Some(StartAt {
                leader_epoch: Some(2),
                ..start(start_at::At::Offset(41))
            }),
        }],
        from: Some(start(start_at::At::TimestampMs(1_700_000_000_000))),
        member: 5,
        client: text("vectors"),
        session_timeout_ms: 10_000,
        credit_bytes: 1 << 20,
        filters: vec![SubscriptionFilter {
            name: text("errors"),
            parameters: vec![setting()],
        }],
        stop_at_end: true,
        open_ms: 60_000,
        on_lost: OnLost::Newest.into(),
        member_token: text("proof").into(),
    };
    let assigned = AssignedPartition {
        handle: 6,
        topic: text("logs"),
        topic_id: id(),
        partition: 3,
        epoch: 8,
        offset: 41,
        from_timestamp_ms: Some(1_700_000_000_000),
        since: 7,
    };
    let batch = Batch {
        handle: 6,
        base_offset: 41,
        last_offset: 43,
        append_time_ms: 1_700_000_000_123,
        pid: 1 << 33,
        epoch: 2,
        sequence: 1 << 34,
        end_offset: 50,
        filtered: true,
    };
    let commit = CommitOffset {
        handle: 6,
        offset: 44,
        metadata: text("m"),
        leader_epoch: Some(2),
    };
    let failed = PartitionError {
        handle: 6,
        error: Some(error()),
    };
    vec![
        sample("", Kind::Subscribe, "Subscribe", &subscribe),
        sample(
            "",
            Kind::Subscribed,
            "Subscribed",
            &Subscribed {
                member: 5,
                session_timeout_ms: 10_000,
                member_token: text("proof").into(),
            },
        ),
        sample(
            "",
            Kind::Assigned,
            "Assigned",
            &Assigned {
                partitions: vec![assigned],
                opening: 3,
            },
        ),
        sample(
            "",
            Kind::Revoke,
            "Revoke",
            &Revoke {
                handles: vec![6, 300],
                lost: true,
            },
        ),
        sample(
            "",
            Kind::Released,
            "Released",
            &Released {
                handles: vec![6, 300],
            },
        ),
        with_payload("", Kind::Batch, "Batch", &batch, BATCH),
        sample(
            "",
            Kind::CaughtUp,
            "CaughtUp",
            &CaughtUp {
                handle: 6,
                offset: 50,
                ended: true,
                leader_epoch: Some(2),
            },
        ),
        sample(
            "",
            Kind::Passed,
            "Passed",
            &Passed {
                handle: 6,
                offset: 47,
                leader_epoch: Some(2),
            },
        ),
        sample(
            "",
            Kind::RecordsLost,
            "RecordsLost",
            &RecordsLost {
                handle: 6,
                from: 44,
                to: 300,
            },
        ),
        sample("", Kind::PartitionError, "PartitionError", &failed),
        sample("", Kind::Credit, "Credit", &Credit { bytes: 1 << 20 }),
        sample(
            "",
            Kind::Commit,
            "Commit",
            &Commit {
                tag: 4,
                offsets: vec![commit],
            },
        ),
        sample(
            "",
            Kind::Committed,
            "Committed",
            &Committed {
                tag: 4,
                failed: vec![failed.clone()],
            },
        ),
        sample(
            "",
            Kind::Seek,
            "Seek",
            &Seek {
                handle: 6,
                to: Some(start(start_at::At::Start(true))),
                generation: 2,
            },
        ),
        sample(
            "",
            Kind::Sought,
            "Sought",
            &Sought {
                handle: 6,
                offset: 10,
                generation: 2,
            },
        ),
        sample(
            "",
            Kind::Pause,
            "Pause",
            &Pause {
                handles: vec![6],
                paused: true,
            },
        ),
    ]
}

fn groups() -> Vec<Sample> {
    let group = || text("audit");
    let offset = GroupOffset {
        topic: text("logs"),
        partition: 3,
        committed: Some(0),
        start_offset: 0,
        end_offset: 50,
        lag: Some(50),
        member: 5,
        metadata: text("m"),
        error: text("shard 1: read-only"),
    };
    let member = GroupMember {
        member: 5,
        client: text("vectors"),
        address: text("192.0.2.7:4433"),
    };
    let described = DescribeGroupResponse {
        group: group(),
        epoch: 8,
        state: text("stable"),
        members: vec![member],
        offsets: vec![offset.clone()],
        unreachable: vec![text("shard 1: stopped")],
        next: Some(GroupPartition {
            topic: text("logs"),
            partition: 3,
        }),
    };
    let reset = ResetGroupRequest {
        group: group(),
        topic: text("logs"),
        partitions: vec![0, 3],
        to: Some(start(start_at::At::End(true))),
        force: true,
        dry_run: true,
        create: true,
    };
    vec![
        sample(
            "request",
            Kind::ListGroups,
            "ListGroupsRequest",
            &ListGroupsRequest {
                after: text("audit"),
            },
        ),
        sample(
            "response",
            Kind::ListGroups,
            "ListGroupsResponse",
            &ListGroupsResponse {
                groups: vec![GroupSummary {
                    group: group(),
                    state: text("stable"),
                    members: 1,
                    lag: Some(50),
                }],
                unreachable: vec![text("shard 1: stopped")],
                next: text("audit"),
            },
        ),
        sample(
            "request",
            Kind::DescribeGroup,
            "DescribeGroupRequest",
            &DescribeGroupRequest {
                group: group(),
                after: Some(GroupPartition {
                    topic: text("logs"),
                    partition: 2,
                }),
            },
        ),
        sample(
            "response",
            Kind::DescribeGroup,
            "DescribeGroupResponse",
            &described,
        ),
        sample("request", Kind::ResetGroup, "ResetGroupRequest", &reset),
        sample(
            "response",
            Kind::ResetGroup,
            "ResetGroupResponse",
            &ResetGroupResponse {
                offsets: vec![offset],
            },
        ),
        sample(
            "request",
            Kind::DeleteGroup,
            "DeleteGroupRequest",
            &DeleteGroupRequest {
                group: group(),
                force: true,
            },
        ),
        sample(
            "response",
            Kind::DeleteGroup,
            "DeleteGroupResponse",
            &DeleteGroupResponse {},
        ),
    ]
}

fn filters() -> Vec<Sample> {
    let deploy = DeployFilterRequest {
        filter: Some(filter()),
    };
    let remove = RemoveFilterRequest {
        topic: text("logs"),
        name: text("errors"),
    };
    vec![
        with_payload(
            "request",
            Kind::DeployFilter,
            "DeployFilterRequest",
            &deploy,
            b"\0asm\x0d\0\x01\0",
        ),
        sample(
            "response",
            Kind::DeployFilter,
            "DeployFilterResponse",
            &DeployFilterResponse {
                filter: Some(filter()),
                revision: 9,
            },
        ),
        sample(
            "request",
            Kind::ListFilters,
            "ListFiltersRequest",
            &ListFiltersRequest { after: id() },
        ),
        sample(
            "response",
            Kind::ListFilters,
            "ListFiltersResponse",
            &ListFiltersResponse {
                filters: vec![filter()],
                next: id(),
            },
        ),
        sample(
            "request",
            Kind::RemoveFilter,
            "RemoveFilterRequest",
            &remove,
        ),
        sample(
            "response",
            Kind::RemoveFilter,
            "RemoveFilterResponse",
            &RemoveFilterResponse {},
        ),
    ]
}
