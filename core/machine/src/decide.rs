//! The table of requests: which handler decides each. Looks, does not touch.

use millstream_batch::ids::{Term, TimestampMs};
use smallvec::{SmallVec, smallvec};

use crate::fact::Fact;
use crate::request::{Refusal, Reply, Request};
use crate::state::State;
use crate::{clock, couriers, groups, offsets, partitions, producers, topics};

/// What was decided: facts to log and install, in order, and the answer once they are durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What must hold together: a unit, logged under one lsn. Nearly always one.
    pub facts: SmallVec<[Fact; 1]>,
    pub reply: Reply,
}

impl Decision {
    /// Nothing changes.
    pub(crate) fn look(reply: Reply) -> Self {
        Self {
            facts: SmallVec::new(),
            reply,
        }
    }

    pub(crate) fn of(fact: Fact, reply: Reply) -> Self {
        Self {
            facts: smallvec![fact],
            reply,
        }
    }
}

/// Decides one request. `now` is the wall clock's reading, `term` that of the shard's log.
///
/// The facts must be appended and installed before the next request is decided.
pub fn decide(
    state: &State,
    now: TimestampMs,
    term: Term,
    request: &Request,
) -> Result<Decision, Refusal> {
    let time = clock::logged(state.clock.logged, now);
    match request {
        Request::CreateTopic {
            id,
            name,
            partitions,
            config,
        } => topics::create(state, time, *id, name, *partitions, config),
        Request::DeleteTopic { name } => topics::delete(state, time, name),
        Request::ConfigureTopic { name, set } => topics::configure(state, time, name, set),
        Request::AddPartitions { name, total } => topics::add_partitions(state, time, name, *total),
        Request::InitProducer { pid } => producers::init(state, time, *pid),
        Request::DeployFilter { topic, binding } => {
            topics::deploy_filter(state, time, topic, binding)
        }
        Request::RemoveFilter { topic, name } => topics::remove_filter(state, time, topic, name),

        Request::ApplyTopic { meta } => topics::apply(state, time, meta),
        Request::ForgetTopic { id, revision } => Ok(topics::forget(state, time, *id, *revision)),
        Request::CatalogueKnown { shard, revision } => topics::known(state, *shard, *revision),

        Request::Produce(batch) => producers::produce(state, time, term, batch),
        Request::TrimPartition { partition, start } => partitions::trim(state, *partition, *start),
        Request::DescribePartition { partition } => partitions::describe(state, term, *partition),
        Request::ClaimPartition {
            group,
            partition,
            member,
            epoch,
        } => offsets::claim(state, group, *partition, *member, *epoch),
        Request::Commit(commit) => offsets::commit(state, time, commit),
        Request::CommittedOffset { group, partition } => {
            offsets::committed(state, group, *partition)
        }
        Request::BeginOffset {
            group,
            partition,
            offset,
        } => offsets::begin(state, time, group, *partition, *offset),
        Request::ResetOffsets {
            group,
            places,
            force,
        } => offsets::reset(state, time, group, places, *force),

        Request::JoinGroup {
            group,
            member,
            again,
            client,
            topics,
            session_timeout_ms,
        } => {
            let joins = groups::Joins {
                member: *member,
                again: *again,
                client,
                topics,
                session_timeout_ms: *session_timeout_ms,
            };
            groups::join(state, time, group, joins)
        }
        Request::LeaveGroup {
            group,
            member,
            joined,
        } => groups::leave(state, time, group, *member, *joined),
        Request::ReleasePartitions {
            group,
            member,
            joined,
            partitions,
        } => groups::release(state, time, group, *member, *joined, partitions),
        Request::ReassignPartitions { group, fenced } => {
            groups::reassign(state, time, group, fenced)
        }
        Request::GroupAssignment {
            group,
            member,
            joined,
        } => groups::assignment(state, group, *member, *joined),
        Request::ExpireMembers { group, members } => groups::expire(state, time, group, members),
        Request::RebalanceGroup { group } => groups::rebalance(state, time, group),
        Request::DeleteGroup { group, force } => groups::delete(state, group, *force),

        Request::ApplyCourier {
            from,
            row,
            k,
            message,
        } => couriers::apply(state, *from, *row, *k, message),
        Request::CourierAcknowledged { to, row, last } => {
            couriers::acknowledged(state, *to, *row, *last)
        }

        Request::ListTopics => Ok(topics::list(state)),
        Request::TopicsAfter { after } => Ok(topics::list_after(state, *after)),
        Request::DescribeTopic { name } => topics::describe(state, name),
        Request::TopicById { id } => topics::describe_id(state, *id),
        Request::ListGroups { after } => Ok(groups::list(state, after)),
        Request::DescribeGroup { group, of } => groups::describe(state, group, of.as_deref()),

        Request::ExpireProducers {
            producer_unused_before,
            floor_max,
        } => Ok(producers::expire(
            state,
            *producer_unused_before,
            *floor_max,
        )),
        Request::AdvanceClock => Ok(clock::advance(state, now)),
        Request::AcceptClock => clock::accept(now),
    }
}

/// The refusal of what would pass a bound.
pub(crate) fn full(what: &str, would_be: usize, max: usize) -> Refusal {
    Refusal::StateFull(format!("{would_be} {what}, at most {max}"))
}
