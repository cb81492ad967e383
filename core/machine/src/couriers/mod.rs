//! Couriers: what one shard is to do for certain because another decided it.
//!
//! ```text
//!   source:       outbox (to, row)    trimmed ── unacknowledged: k, k+1, … ── next
//!   destination:  inbox (from, row)   last applied
//! ```
//! A message is a part of the unit that decided it, so it exists when that unit does, and is sent when that
//! is durable, and again until it is acknowledged. Its receipt is a part of the unit of its effect, so it is
//! applied once, in order, whatever is lost, doubled or reordered on the way. The destination cannot refuse.
//! Rows are independent: `Control` is small and may use the reserve of a full disk.
//!
//! Absent on purpose: when to send and to whom it goes (the core and its driver), what a message does (the
//! feature's part).

mod cell;
mod message;
mod section;

use millstream_batch::ids::{Lsn, ShardId};
use millstream_batch::limits::is_name;

use crate::decide::Decision;
use crate::fact::archive::{CourierApplied, CourierQueued, CourierTrimmed};
use crate::fact::{Fact, Sound};
use crate::offsets;
use crate::request::{Refusal, Reply};
use crate::state::State;
use crate::unit::{Draft, View};
pub(crate) use cell::Couriers;
pub use message::{Message, Row};
pub(crate) use section::{InboxSection, OutboxSection};
use section::{inbox_key, outbox_key};

/// A message to another shard as part of a unit.
pub(crate) fn queue_part(view: View<'_>, to: ShardId, message: &Message) -> Result<Fact, Refusal> {
    let row = message.row();
    let outbox = view.state.couriers.outbox(to, row);
    let queued = view.queued(to, row);
    let waiting = outbox.map_or(0, |outbox| outbox.messages.len()) as u64 + queued;
    if waiting >= view.state.limits.outbox as u64 {
        return Err(Refusal::OutboxFull { to });
    }
    let (kind, body) = message.archived();
    Ok(Fact::CourierQueued(Box::new(CourierQueued {
        to: to.0,
        row: row.number(),
        k: outbox.map_or(1, |outbox| outbox.next) + queued,
        kind,
        body,
    })))
}

/// A message that another shard sent. One that was applied is acknowledged again; one that comes before the
/// one it follows changes nothing: the answer says how far this shard is.
pub(crate) fn apply(
    state: &State,
    from: ShardId,
    row: Row,
    k: u64,
    message: &Message,
) -> Result<Decision, Refusal> {
    if from == state.id || from.0 >= state.shards {
        return Err(Refusal::BadConfig(format!(
            "a message of shard {from} came to shard {} of {}",
            state.id, state.shards
        )));
    }
    let last = state.couriers.applied(from, row);
    if k != last + 1 {
        return Ok(Decision::look(Reply::CourierTaken { last }));
    }
    let mut draft = Draft::new(state);
    match message {
        Message::ForgetGroup { group, epoch } => {
            draft.add(offsets::forget_part(group, *epoch));
        }
    }
    draft.add(Fact::CourierApplied(CourierApplied {
        from: from.0,
        row: row.number(),
        k,
    }));
    Ok(draft.decided(Reply::CourierTaken { last: k }))
}

/// The destination has applied, durably, all up to `last`.
pub(crate) fn acknowledged(
    state: &State,
    to: ShardId,
    row: Row,
    last: u64,
) -> Result<Decision, Refusal> {
    let outbox = state.couriers.outbox(to, row);
    let (trimmed, next) = outbox.map_or((0, 1), |outbox| (outbox.trimmed, outbox.next));
    if last <= trimmed {
        return Ok(Decision::look(Reply::Done)); // said before
    }
    if last >= next {
        return Err(Refusal::BadConfig(format!(
            "shard {to} acknowledges message {last}, and {} was the last sent: one of the two directories is not of \
             this broker, or was restored from a copy",
            next - 1
        )));
    }
    let fact = CourierTrimmed {
        to: to.0,
        row: row.number(),
        last,
    };
    Ok(Decision::of(Fact::CourierTrimmed(fact), Reply::Done))
}

pub(crate) fn install_queued(state: &mut State, lsn: Lsn, fact: &CourierQueued) {
    let (to, row) = (ShardId(fact.to), Row::of(fact.row).expect("it is sound"));
    if !state.guard.holds(lsn, || outbox_key(to, row)) {
        let message = Message::read(fact.kind, &fact.body).expect("it is sound");
        state.couriers.queue(to, row, fact.k, message);
    }
}

pub(crate) fn install_applied(state: &mut State, lsn: Lsn, fact: &CourierApplied) {
    let (from, row) = (ShardId(fact.from), Row::of(fact.row).expect("it is sound"));
    if !state.guard.holds(lsn, || inbox_key(from, row)) {
        state.couriers.take(from, row, fact.k);
    }
}

pub(crate) fn install_trimmed(state: &mut State, lsn: Lsn, fact: &CourierTrimmed) {
    let (to, row) = (ShardId(fact.to), Row::of(fact.row).expect("it is sound"));
    if !state.guard.holds(lsn, || outbox_key(to, row)) {
        state.couriers.trim(to, row, fact.last);
    }
}

impl Sound for CourierQueued {
    fn is_sound(&self) -> bool {
        let message = Message::read(self.kind, &self.body);
        let named = |message: Message| match message {
            Message::ForgetGroup { group, .. } => is_name(&group),
        };
        (1..u64::MAX).contains(&self.k) && Row::of(self.row).is_some() && message.is_some_and(named)
    }
}

impl Sound for CourierApplied {
    fn is_sound(&self) -> bool {
        self.k > 0 && Row::of(self.row).is_some()
    }
}

impl Sound for CourierTrimmed {
    fn is_sound(&self) -> bool {
        self.last > 0 && Row::of(self.row).is_some()
    }
}
