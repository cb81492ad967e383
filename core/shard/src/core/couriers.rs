//! Messages to other shards: each sent when it is durable, and again until it is acknowledged.
//!
//! What is to be sent stands in the state's outboxes; here is only how far each was sent, which a crash may
//! forget. Absent on purpose: what messages say and what they do (the machine), the wire (the driver).

use std::collections::{BTreeMap, BTreeSet};

use millstream_batch::ids::ShardId;
use millstream_machine::Row;
use millstream_machine::request::Request;

use super::{Effect, ShardCore};

/// Messages sent before the first of them is acknowledged.
const WINDOW: u64 = 64;
/// How long an acknowledgement is waited for before all is sent again: doubled each time, up to the longest.
const AGAIN_MS: u64 = 10;
const AGAIN_MS_MAX: u64 = 1_000;

/// How far each outbox was sent.
#[derive(Debug, Default)]
pub(super) struct Sending {
    rows: BTreeMap<(ShardId, Row), Sent>,
    /// It was said of these that they are ahead of what was sent.
    out_of_step: BTreeSet<(ShardId, Row)>,
}

#[derive(Debug)]
struct Sent {
    /// Messages up to this one are durable.
    durable: u64,
    /// Those up to this one are on their way, or were.
    upto: u64,
    /// How many may be at a time.
    window: u64,
    /// When they are sent again, in monotonic microseconds, and after how long that was.
    again_us: u64,
    after_ms: u64,
}

impl Sending {
    /// When something is to be sent again.
    pub(super) fn next(&self) -> Option<u64> {
        self.rows.values().map(|sent| sent.again_us).min()
    }
}

impl ShardCore {
    /// A message is durable.
    pub(super) fn courier_durable(&mut self, to: ShardId, row: Row, k: u64) {
        let again_us = self.now.after_ms(AGAIN_MS);
        let sent = self.sending.rows.entry((to, row)).or_insert(Sent {
            durable: 0,
            upto: 0,
            window: WINDOW,
            again_us,
            after_ms: AGAIN_MS,
        });
        sent.durable = k;
        self.send_couriers(to, row);
    }

    /// After recovery: all that is left to send is durable, and may have been sent before.
    pub(super) fn look_at_outboxes(&mut self) {
        // A start that could not make its end safe sends nothing: what is found there may yet be cut. One that
        // is read-only could note no answer.
        if !self.may_write() {
            return;
        }
        let rows: Vec<_> = self.state.outboxes().collect();
        for (to, row) in rows {
            if let Some((last, _)) = self.state.outbox(to, row, 0).last() {
                self.courier_durable(to, row, last);
            }
        }
    }

    /// What a destination says of how far it is.
    pub(super) fn courier_answered(&mut self, token: u64, to: ShardId, row: Row, last: u64) {
        let sent = self.state.courier_queued(to, row);
        if last > sent && self.sending.out_of_step.insert((to, row)) {
            self.effects.push_back(Effect::OutOfStep(format!(
                "shard {to} has applied message {last} of this shard, which sent {sent}: one of the two directories \
                 is not of this broker, or is an older copy. What is sent from now on may be taken for what was \
                 sent before: stop, and restore both from the same copy"
            )));
        }
        self.machine(token, &Request::CourierAcknowledged { to, row, last });
    }

    /// The destination is further: go on behind that.
    pub(super) fn courier_acknowledged(&mut self, to: ShardId, row: Row) {
        if self.state.outbox(to, row, 0).next().is_none() {
            self.sending.rows.remove(&(to, row));
        } else if let Some(sent) = self.sending.rows.get_mut(&(to, row)) {
            (sent.window, sent.after_ms) = (WINDOW, AGAIN_MS);
            sent.again_us = self.now.after_ms(AGAIN_MS);
            self.send_couriers(to, row);
        }
    }

    /// What was not acknowledged in time is asked about: the oldest is sent again, and its answer says how far
    /// the destination is.
    pub(super) fn couriers_tick(&mut self) {
        if !self.may_write() {
            return self.sending.rows.clear(); // a start sends them again
        }
        let due = |sent: &&mut Sent| sent.again_us <= self.now.mono_us;
        let rows = self.sending.rows.iter_mut();
        let rows = rows.filter(|(_, sent)| due(sent)).map(|(key, sent)| {
            (sent.upto, sent.window) = (0, 1);
            sent.after_ms = (sent.after_ms * 2).min(AGAIN_MS_MAX);
            sent.again_us = self.now.after_ms(sent.after_ms);
            *key
        });
        for (to, row) in rows.collect::<Vec<_>>() {
            self.send_couriers(to, row);
        }
    }

    fn send_couriers(&mut self, to: ShardId, row: Row) {
        let Some(sent) = self.sending.rows.get_mut(&(to, row)) else {
            return;
        };
        let first = self.state.outbox(to, row, 0).next().map_or(0, |(k, _)| k);
        let end = sent.durable.min(first + sent.window - 1);
        for (k, message) in self.state.outbox(to, row, sent.upto) {
            if k > end {
                break;
            }
            sent.upto = k;
            self.effects.push_back(Effect::Courier {
                to,
                row,
                k,
                message: message.clone(),
            });
        }
    }
}
