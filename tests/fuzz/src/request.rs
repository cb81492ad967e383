//! The control messages. The first two bytes are a frame kind (little-endian), the rest a header.

use bytes::Bytes;
use millstream_protocol::frame::{Frame, Payload, encode, fits};
use millstream_protocol::{Decoder, Kind, Message, messages as m};

/// A header of any kind: what decodes, encodes to a frame that decodes to the same.
pub fn request(data: &[u8]) {
    let Some((&[low, high], rest)) = data.split_first_chunk::<2>() else {
        return;
    };
    let number = u16::from_le_bytes([low, high]);
    let frame = Frame {
        kind: number,
        header: Bytes::copy_from_slice(rest),
        payload: Payload::default(),
    };
    let Some(kind) = frame.known() else { return };
    macro_rules! each {
        ($($kind:ident: $($message:ident),+;)*) => {
            match kind { $(Kind::$kind => { $(round::<m::$message>(kind, &frame);)+ })* }
        };
    }
    each! {
        Error: Error;
        Hello: HelloRequest, HelloResponse;
        Ping: PingRequest, PingResponse;
        Status: StatusRequest, StatusResponse;
        AcceptClock: AcceptClockRequest, AcceptClockResponse;
        CreateTopic: CreateTopicRequest, CreateTopicResponse;
        DeleteTopic: DeleteTopicRequest, DeleteTopicResponse;
        ConfigureTopic: ConfigureTopicRequest, ConfigureTopicResponse;
        AddPartitions: AddPartitionsRequest, AddPartitionsResponse;
        ListTopics: ListTopicsRequest, ListTopicsResponse;
        DescribeTopic: DescribeTopicRequest, DescribeTopicResponse;
        OffsetAt: OffsetAtRequest, OffsetAtResponse;
        TrimPartition: TrimPartitionRequest, TrimPartitionResponse;
        InitProducer: InitProducerRequest, InitProducerResponse;
        ProducerOpen: ProducerOpen;
        ProducerOpened: ProducerOpened;
        Produce: Produce;
        Produced: Produced;
        Subscribe: Subscribe;
        Subscribed: Subscribed;
        Assigned: Assigned;
        Revoke: Revoke;
        Released: Released;
        Batch: Batch;
        CaughtUp: CaughtUp;
        Passed: Passed;
        RecordsLost: RecordsLost;
        PartitionError: PartitionError;
        Credit: Credit;
        Commit: Commit;
        Committed: Committed;
        Seek: Seek;
        Sought: Sought;
        Pause: Pause;
        ListGroups: ListGroupsRequest, ListGroupsResponse;
        DescribeGroup: DescribeGroupRequest, DescribeGroupResponse;
        ResetGroup: ResetGroupRequest, ResetGroupResponse;
        DeleteGroup: DeleteGroupRequest, DeleteGroupResponse;
        DeployFilter: DeployFilterRequest, DeployFilterResponse;
        ListFilters: ListFiltersRequest, ListFiltersResponse;
        RemoveFilter: RemoveFilterRequest, RemoveFilterResponse;
    }
}

fn round<M: Message + Default + PartialEq + std::fmt::Debug>(kind: Kind, frame: &Frame) {
    let Ok(message) = frame.message::<M>() else {
        return;
    };
    if !fits(&message) || kind.has_raw_payload() {
        return;
    }
    let frames = Decoder::decode_all(&encode(kind, &message)).expect("what we wrote is a frame");
    assert_eq!(frames.len(), 1);
    let again: M = frames[0].message().expect("what we wrote is the message");
    assert!(again == message, "{again:?} is not {message:?}");
}
