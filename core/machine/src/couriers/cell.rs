//! The cells of couriers: an outbox for each shard that is written to, an inbox for each that writes.

use std::collections::BTreeMap;

use millstream_batch::ids::ShardId;

use super::message::{Message, Row};

/// What was queued for one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outbox {
    /// The number of the next message. The first is 1.
    pub(crate) next: u64,
    /// All up to this one are acknowledged.
    pub(crate) trimmed: u64,
    /// The others, by number.
    pub(crate) messages: BTreeMap<u64, Message>,
}

impl Default for Outbox {
    fn default() -> Self {
        Self {
            next: 1,
            trimmed: 0,
            messages: BTreeMap::new(),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Couriers {
    pub(super) outboxes: BTreeMap<(ShardId, Row), Outbox>,
    /// The last message applied.
    pub(super) inboxes: BTreeMap<(ShardId, Row), u64>,
    /// Groups that some shard is still to forget, and how many are. Counted, not archived.
    forgetting: BTreeMap<String, u32>,
}

impl Couriers {
    pub(crate) fn outbox(&self, to: ShardId, row: Row) -> Option<&Outbox> {
        self.outboxes.get(&(to, row))
    }

    /// The last message of this shard that was applied here; 0: none yet.
    pub(crate) fn applied(&self, from: ShardId, row: Row) -> u64 {
        self.inboxes.get(&(from, row)).copied().unwrap_or(0)
    }

    /// Whether some shard has not forgotten a deleted group yet.
    pub(crate) fn is_forgetting(&self, group: &str) -> bool {
        self.forgetting.contains_key(group)
    }

    /// Outboxes with something that is not acknowledged.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = (ShardId, Row, &Outbox)> + '_ {
        let waiting = self.outboxes.iter();
        let waiting = waiting.filter(|(_, outbox)| !outbox.messages.is_empty());
        waiting.map(|((to, row), outbox)| (*to, *row, outbox))
    }

    pub(super) fn queue(&mut self, to: ShardId, row: Row, k: u64, message: Message) {
        self.count(&message, true);
        let outbox = self.outboxes.entry((to, row)).or_default();
        assert_eq!(
            outbox.next, k,
            "messages to shard {to} are numbered in order"
        );
        outbox.next = k + 1;
        outbox.messages.insert(k, message);
    }

    pub(super) fn take(&mut self, from: ShardId, row: Row, k: u64) {
        let last = self.inboxes.entry((from, row)).or_default();
        assert_eq!(
            *last + 1,
            k,
            "messages of shard {from} are applied in order"
        );
        *last = k;
    }

    pub(super) fn trim(&mut self, to: ShardId, row: Row, last: u64) {
        let outbox = self.outboxes.get_mut(&(to, row));
        let outbox = outbox.expect("what is trimmed was queued");
        assert!(
            outbox.trimmed < last && last < outbox.next,
            "messages to shard {to} are trimmed to {last}"
        );
        outbox.trimmed = last;
        let kept = outbox.messages.split_off(&(last + 1));
        let gone = std::mem::replace(&mut outbox.messages, kept);
        for message in gone.values() {
            self.count(message, false);
        }
    }

    pub(super) fn put_outbox(&mut self, to: ShardId, row: Row, outbox: Outbox) {
        for message in outbox.messages.values() {
            self.count(message, true);
        }
        self.outboxes.insert((to, row), outbox);
    }

    fn count(&mut self, message: &Message, more: bool) {
        match message {
            Message::ForgetGroup { group, .. } => {
                let shards = self.forgetting.entry(group.clone()).or_default();
                if more {
                    *shards += 1;
                    return;
                }
                *shards -= 1;
                if *shards == 0 {
                    self.forgetting.remove(group);
                }
            }
        }
    }
}
