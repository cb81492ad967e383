//! One partition of a subscription: where it stands, what it holds ready.

use std::collections::VecDeque;
use std::rc::Rc;

use bytes::Bytes;
use millstream_batch::HEAD_BYTES;
use millstream_batch::ids::{GroupEpoch, Offset, Partition, Term};
use millstream_machine::topics::TopicMeta;
use millstream_protocol::messages;
use tokio::time::Instant;

use crate::memory::SendRoom;
use crate::requests::At;
use crate::traces::Trace;

/// A batch that can be sent.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) header: messages::Batch,
    pub(super) head: [u8; HEAD_BYTES],
    pub(super) body: Bytes,
}

impl Ready {
    /// What it costs of the client's credit.
    pub(super) fn bytes(&self) -> usize {
        self.head.len() + self.body.len()
    }
}

/// See the module's header.
#[derive(Debug)]
pub(super) struct Feed {
    pub(super) handle: u32,
    pub(super) topic: Rc<TopicMeta>,
    pub(super) partition: Partition,
    /// Under which a group's member commits; 0 for fixed partitions.
    pub(super) epoch: GroupEpoch,
    /// When it came to the member.
    pub(super) since: GroupEpoch,
    pub(super) state: State,
    /// While it is revoked: when the client must have released it.
    pub(super) release_by: Option<Instant>,
    /// The client asked for no more for now.
    pub(super) paused: bool,
    /// The next offset to fetch.
    pub(super) next: Offset,
    /// Of the record before `next`, if it was read.
    pub(super) leader_epoch: Option<Term>,
    /// The position that the client named with its epoch: it counts once the feed stands there.
    pub(super) named: Option<(Offset, Term)>,
    /// What follows the end that fetches tell is not known: there it fails, and is not caught up.
    pub(super) end_unknown: bool,
    /// SEEKs that are not answered. They take effect in the order in which they were asked: the first is
    /// being resolved, the others wait.
    pub(super) seeks: VecDeque<(u32, At)>,
    /// With `stop_at_end`: where this partition is over.
    pub(super) stop_at: Option<Offset>,
    pub(super) ready: VecDeque<Ready>,
    pub(super) ready_bytes: usize,
    /// The number of the fetch that is under way; answers of others are stale.
    pub(super) fetching: Option<u32>,
    pub(super) fetches: u32,
    /// Room for what it brings.
    pub(super) room: Option<SendRoom>,
    /// CAUGHT_UP was sent (or waits behind `ready`) and nothing changed since.
    pub(super) caught_up: bool,
    /// CAUGHT_UP to be sent when `ready` is empty.
    pub(super) tell_caught_up: Option<Offset>,
    /// What stops it when `ready` is empty: what came before is sent.
    pub(super) tell_failed: Option<messages::Error>,
    /// PASSED to be sent when `ready` is empty: filters dropped what stands before `next`.
    pub(super) tell_passed: bool,
    /// To be told when `ready` is empty: nothing is kept from `next` to before the first, and the second is
    /// the end.
    pub(super) overtaken: Option<(Offset, Offset)>,
    /// Of the newest fetch, if it is sampled.
    pub(super) trace: Option<Box<Trace>>,
    /// The batch at `next` needs a search for the record at fault, which is a worker's.
    pub(super) is_for_worker: bool,
    /// It stands in the queue of those that want to fetch.
    pub(super) queued: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Its start is being resolved; the client does not know of it yet.
    Opening,
    /// The group wants it back before it was open.
    Unwanted,
    Open,
    /// The client was asked to release it.
    Revoking,
    /// It stopped with an error that the client was told.
    Failed,
    /// Over, with `stop_at_end`.
    Ended,
}

impl Feed {
    pub(super) fn new(
        handle: u32,
        topic: Rc<TopicMeta>,
        partition: Partition,
        epoch: GroupEpoch,
    ) -> Self {
        Self {
            handle,
            topic,
            partition,
            epoch,
            since: epoch,
            state: State::Opening,
            release_by: None,
            paused: false,
            next: Offset(0),
            leader_epoch: None,
            named: None,
            end_unknown: false,
            seeks: VecDeque::new(),
            stop_at: None,
            ready: VecDeque::new(),
            ready_bytes: 0,
            fetching: None,
            fetches: 0,
            room: None,
            caught_up: false,
            tell_caught_up: None,
            tell_failed: None,
            tell_passed: false,
            overtaken: None,
            trace: None,
            is_for_worker: false,
            queued: false,
        }
    }

    /// Stand at this offset.
    pub(super) fn stand_at(&mut self, offset: Offset) {
        self.next = offset;
        let named = self.named.take().filter(|(named, _)| *named == offset);
        self.leader_epoch = named.map(|(_, epoch)| epoch);
    }

    /// Whether there is something to send.
    pub(super) fn has_words(&self) -> bool {
        !self.ready.is_empty()
            || self.tell_failed.is_some()
            || self.tell_caught_up.is_some()
            || self.tell_passed
            || self.overtaken.is_some()
    }

    /// Whether it wants to fetch.
    pub(super) fn is_hungry(&self, low_water: usize) -> bool {
        self.state == State::Open
            && !self.paused
            && self.fetching.is_none()
            && self.ready_bytes < low_water
            && self.tell_caught_up.is_none()
            && self.tell_failed.is_none()
            && self.overtaken.is_none()
            && self.stop_at.is_none_or(|stop| self.next < stop)
    }

    /// Forget what is ready or under way. The bytes that were ready.
    pub(super) fn clear(&mut self) -> usize {
        self.ready.clear();
        self.fetching = None;
        self.room = None;
        self.caught_up = false;
        self.tell_caught_up = None;
        self.tell_failed = None;
        self.tell_passed = false;
        self.overtaken = None;
        std::mem::take(&mut self.ready_bytes)
    }

    /// Forget what is ready, to be fetched again from there. The bytes that were ready.
    pub(super) fn rewind(&mut self) -> usize {
        if let Some(first) = self.ready.front() {
            self.next = Offset(first.header.base_offset);
            self.leader_epoch = None;
        }
        self.clear()
    }
}
