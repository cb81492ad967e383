//! Couriers in a snapshot.

#![allow(
    missing_debug_implementations,
    reason = "rkyv's resolvers, which no code here names"
)]

use std::ops::Bound::{Excluded, Unbounded};

use millstream_batch::ids::ShardId;

use super::cell::Outbox;
use super::message::{Message, Row};
use crate::fact::archive::archived;
use crate::snapshot::key::{self, Key};
use crate::snapshot::table::Section;
use crate::state::State;

archived! {
    pub struct OutboxRecord {
        pub to: u16,
        pub row: u8,
        pub next: u64,
        pub trimmed: u64,
        /// Those from `trimmed + 1` on, in order.
        pub messages: Vec<MessageRecord>,
    }

    pub struct MessageRecord {
        pub kind: u16,
        pub body: Vec<u8>,
    }

    pub struct InboxRecord {
        pub from: u16,
        pub row: u8,
        /// The last message applied.
        pub last: u64,
    }
}

fn rest(shard: ShardId, row: Row) -> [u8; 3] {
    let [high, low] = shard.0.to_be_bytes();
    [high, low, row.number()]
}

fn named(key: &[u8]) -> (ShardId, Row) {
    let [high, low, row] = key::fixed(key);
    let row = Row::of(row).expect("a cursor's key was made here");
    (ShardId(u16::from_be_bytes([high, low])), row)
}

pub(super) fn outbox_key(to: ShardId, row: Row) -> Key {
    key::of::<OutboxSection>(&rest(to, row))
}

pub(super) fn inbox_key(from: ShardId, row: Row) -> Key {
    key::of::<InboxSection>(&rest(from, row))
}

/// By destination and row.
pub(crate) struct OutboxSection;

impl Section for OutboxSection {
    type Cell<'a> = (ShardId, Row, &'a Outbox);
    type Record = OutboxRecord;

    fn after<'a>(
        state: &'a State,
        last: Option<&[u8]>,
    ) -> impl Iterator<Item = Self::Cell<'a>> + 'a {
        let from = last.map(named).map_or(Unbounded, Excluded);
        let outboxes = state.couriers.outboxes.range((from, Unbounded));
        outboxes.map(|((to, row), outbox)| (*to, *row, outbox))
    }

    fn key((to, row, _): Self::Cell<'_>) -> Key {
        outbox_key(to, row)
    }

    fn record((to, row, outbox): Self::Cell<'_>) -> OutboxRecord {
        let messages = outbox.messages.values().map(|message| {
            let (kind, body) = message.archived();
            MessageRecord { kind, body }
        });
        OutboxRecord {
            to: to.0,
            row: row.number(),
            next: outbox.next,
            trimmed: outbox.trimmed,
            messages: messages.collect(),
        }
    }

    fn bytes((.., outbox): Self::Cell<'_>) -> usize {
        32 + outbox.messages.len() * 160
    }

    fn restore(state: &mut State, record: OutboxRecord) -> Result<(), &'static str> {
        let numbers = record
            .trimmed
            .checked_add(1)
            .map(|first| first..record.next);
        let (Some(row), Some(numbers)) = (Row::of(record.row), numbers) else {
            return Err("an outbox that cannot be");
        };
        if numbers.end.checked_sub(numbers.start) != Some(record.messages.len() as u64) {
            return Err("an outbox that cannot be");
        }
        let read = |message: &MessageRecord| Message::read(message.kind, &message.body);
        let messages: Option<Vec<_>> = record.messages.iter().map(read).collect();
        let messages = messages.ok_or("a message that cannot be")?;
        let outbox = Outbox {
            next: record.next,
            trimmed: record.trimmed,
            messages: numbers.zip(messages).collect(),
        };
        state.couriers.put_outbox(ShardId(record.to), row, outbox);
        Ok(())
    }
}

/// By source and row.
pub(crate) struct InboxSection;

impl Section for InboxSection {
    type Cell<'a> = (ShardId, Row, u64);
    type Record = InboxRecord;

    fn after<'a>(
        state: &'a State,
        last: Option<&[u8]>,
    ) -> impl Iterator<Item = Self::Cell<'a>> + 'a {
        let from = last.map(named).map_or(Unbounded, Excluded);
        let inboxes = state.couriers.inboxes.range((from, Unbounded));
        inboxes.map(|((from, row), last)| (*from, *row, *last))
    }

    fn key((from, row, _): Self::Cell<'_>) -> Key {
        inbox_key(from, row)
    }

    fn record((from, row, last): Self::Cell<'_>) -> InboxRecord {
        InboxRecord {
            from: from.0,
            row: row.number(),
            last,
        }
    }

    fn bytes(_: Self::Cell<'_>) -> usize {
        16
    }

    fn restore(state: &mut State, record: InboxRecord) -> Result<(), &'static str> {
        let row = Row::of(record.row).ok_or("an inbox that cannot be")?;
        let key = (ShardId(record.from), row);
        state.couriers.inboxes.insert(key, record.last);
        Ok(())
    }
}
