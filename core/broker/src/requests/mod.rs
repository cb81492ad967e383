//! The request table: every kind that is a whole stream, and the file that answers it.

mod accept_clock;
mod add_partitions;
mod configure_topic;
mod convert;
mod create_topic;
mod delete_group;
mod delete_topic;
mod deploy_filter;
mod describe_group;
mod describe_topic;
mod init_producer;
mod list_filters;
mod list_groups;
mod list_topics;
mod offset_at;
mod ping;
mod remove_filter;
mod reset_group;
mod status;
mod trim_partition;

use std::rc::Rc;

use bytes::Bytes;
use millstream_protocol::frame::{encode, fits};
use millstream_protocol::kinds::name_of;
use millstream_protocol::{Code, Kind, Payload, messages};

use crate::refusals;
use crate::session::Session;
use crate::stream::Received;
use crate::traces::Value;

pub(crate) use offset_at::{At, position_of};

macro_rules! table {
    ($session:ident, $received:ident; $($kind:ident => $module:ident;)*) => {
        match $received.frame.known() {
            $(Some(Kind::$kind) => {
                let request = $received.frame.message().map_err(refusals::of_frame)?;
                let response = $module::handle($session, request).await?;
                if !fits(&response) {
                    return Err(Code::TooLarge.error("the answer is over the limit of one frame"));
                }
                Ok(encode(Kind::$kind, &response))
            })*
            Some(Kind::DeployFilter) => {
                let request = $received.frame.message().map_err(refusals::of_frame)?;
                // With an empty header the payload was the message.
                let component = match $received.frame.header.is_empty() {
                    true => Payload::default(),
                    false => $received.frame.payload,
                };
                let response = deploy_filter::handle($session, request, component).await?;
                if !fits(&response) {
                    return Err(Code::TooLarge.error("the answer is over the limit of one frame"));
                }
                Ok(encode(Kind::DeployFilter, &response))
            }
            _ => Err(Code::Unsupported.error(format!("{} is no request", name_of($received.frame.kind)))),
        }
    };
}

/// Whether the answer grows with what the broker holds, not with the request.
fn asks_for_much(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Status
            | Kind::ListTopics
            | Kind::ListGroups
            | Kind::DescribeGroup
            | Kind::ResetGroup
            | Kind::ListFilters
    )
}

/// Answer one request: the frame to send, or why not.
pub(crate) async fn answer(
    session: &Rc<Session>,
    received: Received,
) -> Result<Bytes, messages::Error> {
    let Some(mut trace) = session.shared.traces.begin("request") else {
        return carry_out(session, received).await;
    };
    trace.set("rpc.method", Value::Text(name_of(received.frame.kind)));
    let answer = carry_out(session, received).await;
    let error = answer.as_ref().err().map(|error| error.message.as_str());
    session.shared.traces.end(*trace, error);
    answer
}

async fn carry_out(session: &Rc<Session>, received: Received) -> Result<Bytes, messages::Error> {
    let _turn = match received.frame.known() {
        Some(kind) if asks_for_much(kind) => session.principal().turn().await,
        _ => None,
    };
    table! { session, received;
        Ping => ping;
        Status => status;
        AcceptClock => accept_clock;
        CreateTopic => create_topic;
        DeleteTopic => delete_topic;
        ConfigureTopic => configure_topic;
        AddPartitions => add_partitions;
        ListTopics => list_topics;
        DescribeTopic => describe_topic;
        OffsetAt => offset_at;
        TrimPartition => trim_partition;
        InitProducer => init_producer;
        ListGroups => list_groups;
        DescribeGroup => describe_group;
        ResetGroup => reset_group;
        DeleteGroup => delete_group;
        ListFilters => list_filters;
        RemoveFilter => remove_filter;
    }
}
