//! All partitions of a subscription: fetching ahead within bounds, and sending in fair turns. Absent: what is
//! made of the batches that a fetch brings ([`arrivals`]).

mod arrivals;

use std::collections::VecDeque;
use std::rc::Rc;

use millstream_batch::ids::{GroupEpoch, Offset, Partition};
use millstream_machine::request::Refusal;
use millstream_machine::topics::TopicMeta;
use millstream_protocol::messages::{self, CaughtUp, OnLost, PartitionError, Passed, RecordsLost};
use millstream_protocol::{Code, Kind};
use millstream_shard::call::{Answer, Call, Error, Fetch};
use millstream_shard::handle::ReplyTo;
use rustc_hash::FxHashMap;
use tokio::time::Instant;

use super::Subscription;
use super::feed::{Feed, State};
use super::jobs::Event;
use super::quota::Quota;
use crate::refusals;
use crate::requests::At;
use crate::traces::{Value, now_ns};

/// What one fetch may bring: as much as the log reads from the disk at once (but for a run that is larger),
/// so that what was read is sent as it is. Who takes less than half of it gets copies.
const FETCH_BYTES: usize = 1 << 20;
/// What one brings that waited for new records: many of them may be answered at once.
const WAITING_FETCH_BYTES: usize = 128 << 10;
/// A partition with less ready fetches more.
const LOW_WATER_BYTES: usize = 256 << 10;
/// Ready in all partitions of one subscription; past it what comes is dropped and fetched again.
const READY_BYTES_MAX: usize = 4 << 20;
/// Fetches under way that do not wait for new records.
const CATCHING_UP_MAX: usize = 4;
/// How long a fetch at the end of a partition waits for more.
const WAIT_MS: u32 = 10_000;
/// What one partition may send before it is another's turn.
const TURN_BYTES: usize = 64 << 10;
/// Pause before a fetch that met a full queue or a loading filter is repeated.
const RETRY_MS: u64 = 20;
/// Credit that a client can pile up.
const CREDIT_MAX: i64 = 1 << 40;

#[derive(Debug)]
pub(super) struct Feeds {
    feeds: FxHashMap<u32, Feed>,
    by_partition: FxHashMap<Partition, u32>,
    next_handle: u32,
    /// Feeds with something to send, in the order of their turns.
    turns: VecDeque<u32>,
    /// Feeds that want to fetch.
    hungry: VecDeque<u32>,
    credit: i64,
    ready_bytes: usize,
    /// Fetches under way that do not wait.
    catching_up: usize,
    /// SEEKs that are not answered.
    seeking: usize,
    /// A fetch is held back because too many bytes are on their way out.
    pub(super) starved: bool,
    pub(super) quota: Quota,
}

impl Feeds {
    pub(super) fn new(credit_bytes: u64, quota: Quota) -> Self {
        let mut feeds = Self {
            feeds: FxHashMap::default(),
            by_partition: FxHashMap::default(),
            next_handle: 1,
            turns: VecDeque::new(),
            hungry: VecDeque::new(),
            credit: 0,
            ready_bytes: 0,
            catching_up: 0,
            seeking: 0,
            starved: false,
            quota,
        };
        feeds.add_credit(credit_bytes);
        feeds
    }

    pub(super) fn is_empty(&self) -> bool {
        self.feeds.is_empty()
    }

    /// Handles given out so far.
    pub(super) fn given(&self) -> usize {
        self.next_handle as usize - 1
    }

    /// How many are not open yet and have not failed.
    pub(super) fn opening(&self) -> usize {
        let opening = |feed: &&Feed| feed.state == State::Opening;
        self.feeds.values().filter(opening).count()
    }

    pub(super) fn all_ended(&self) -> bool {
        self.feeds
            .values()
            .all(|feed| matches!(feed.state, State::Ended | State::Failed))
    }

    /// One more partition, if the principal may read so many.
    pub(super) fn insert(
        &mut self,
        topic: Rc<TopicMeta>,
        partition: Partition,
        epoch: GroupEpoch,
    ) -> Result<u32, messages::Error> {
        self.quota.take()?;
        let handle = self.next_handle;
        self.next_handle += 1;
        self.by_partition.insert(partition, handle);
        self.feeds
            .insert(handle, Feed::new(handle, topic, partition, epoch));
        Ok(handle)
    }

    pub(super) fn feed(&mut self, handle: u32) -> Option<&mut Feed> {
        self.feeds.get_mut(&handle)
    }

    pub(super) fn of(&self, partition: Partition) -> Option<&Feed> {
        self.by_partition
            .get(&partition)
            .and_then(|handle| self.feeds.get(handle))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Feed> + '_ {
        self.feeds.values()
    }

    /// The earliest time at which a partition that was asked back has to be released.
    pub(super) fn release_by(&self) -> Option<Instant> {
        self.feeds.values().filter_map(|feed| feed.release_by).min()
    }

    pub(super) fn remove(&mut self, handle: u32) -> Option<Feed> {
        let mut feed = self.feeds.remove(&handle)?;
        self.by_partition.remove(&feed.partition);
        self.seeking -= feed.seeks.len();
        self.clear(&mut feed);
        self.quota.give();
        Some(feed)
    }

    /// SEEKs that are not answered.
    pub(super) fn seeking(&self) -> usize {
        self.seeking
    }

    /// The client asked to go on elsewhere. Whether nothing that it asked before is unanswered.
    pub(super) fn ask_seek(&mut self, handle: u32, generation: u32, to: At) -> bool {
        let Some(feed) = self.feeds.get_mut(&handle) else {
            return false;
        };
        feed.seeks.push_back((generation, to));
        self.seeking += 1;
        feed.seeks.len() == 1
    }

    /// The first SEEK that is not answered is, now. `None`: the partition went, and it went with it.
    pub(super) fn answer_seek(&mut self, handle: u32) -> Option<At> {
        let (_, to) = self.feeds.get_mut(&handle)?.seeks.pop_front()?;
        self.seeking -= 1;
        Some(to)
    }

    pub(super) fn add_credit(&mut self, bytes: u64) {
        let bytes = i64::try_from(bytes).unwrap_or(CREDIT_MAX);
        self.credit = self.credit.saturating_add(bytes).min(CREDIT_MAX);
    }

    /// Open a feed at an offset.
    pub(super) fn start(&mut self, handle: u32, at: Offset, stop_at: Option<Offset>) {
        if let Some(feed) = self.feeds.get_mut(&handle) {
            feed.state = State::Open;
            feed.stand_at(at);
            feed.stop_at = stop_at;
            if stop_at.is_some_and(|stop| at >= stop) {
                feed.tell_caught_up = Some(at);
                self.turns.push_back(handle);
            }
        }
        self.want(handle);
    }

    /// Go on elsewhere, whatever state it was in.
    pub(super) fn seek(&mut self, handle: u32, to: Offset) {
        let Some(mut feed) = self.feeds.remove(&handle) else {
            return;
        };
        self.clear(&mut feed);
        if matches!(feed.state, State::Failed | State::Ended) {
            feed.state = State::Open;
        }
        feed.stand_at(to);
        if feed.stop_at.is_some_and(|stop| to >= stop) {
            feed.tell_caught_up = Some(to);
            self.turns.push_back(handle);
        }
        self.feeds.insert(handle, feed);
        self.want(handle);
    }

    /// Stop sending: the group wants it back, or the client paused it, or it failed.
    pub(super) fn halt(&mut self, handle: u32, state: Option<State>, paused: bool) {
        let Some(mut feed) = self.feeds.remove(&handle) else {
            return;
        };
        self.catching_up -= usize::from(feed.fetching.is_some() && !feed.caught_up);
        self.ready_bytes -= feed.rewind();
        feed.paused = paused;
        if let Some(state) = state {
            feed.state = state;
        }
        self.feeds.insert(handle, feed);
        self.want(handle);
    }

    /// Put a feed in the queue of those that want to fetch, if it does.
    pub(super) fn want(&mut self, handle: u32) {
        if let Some(feed) = self.feeds.get_mut(&handle)
            && !feed.queued
            && feed.is_hungry(LOW_WATER_BYTES)
        {
            feed.queued = true;
            self.hungry.push_back(handle);
        }
    }

    /// A feed counts as fetching, so that nobody else fetches it. [`unmark`](Self::unmark) it.
    pub(super) fn mark(&mut self, handle: u32) -> Option<u32> {
        let feed = self.feeds.get_mut(&handle)?;
        feed.fetches = feed.fetches.wrapping_add(1);
        feed.fetching = Some(feed.fetches);
        self.catching_up += usize::from(!feed.caught_up);
        feed.fetching
    }

    /// Whether the mark still stood. It does not any more.
    pub(super) fn unmark(&mut self, handle: u32, fetch: u32) -> bool {
        let Some(feed) = self
            .feeds
            .get_mut(&handle)
            .filter(|feed| feed.fetching == Some(fetch))
        else {
            return false;
        };
        feed.fetching = None;
        self.catching_up -= usize::from(!feed.caught_up);
        true
    }

    fn clear(&mut self, feed: &mut Feed) {
        self.catching_up -= usize::from(feed.fetching.is_some() && !feed.caught_up);
        self.ready_bytes -= feed.clear();
    }
}

impl Subscription {
    /// Move what is ready to the outbox, and fetch more.
    pub(super) fn pump(&mut self) {
        self.send_ready();
        self.fetch_hungry();
    }

    fn send_ready(&mut self) {
        let mut silent = 0; // turns in a row that moved nothing
        while self.outbox.has_room() && silent < self.feeds.turns.len() {
            let Some(handle) = self.feeds.turns.pop_front() else {
                return;
            };
            let moved = self.turn(handle);
            silent = if moved { 0 } else { silent + 1 };
            let feeds = &mut self.feeds;
            if feeds
                .feeds
                .get(&handle)
                .is_some_and(|feed| !feed.ready.is_empty())
            {
                feeds.turns.push_back(handle);
            }
            feeds.want(handle);
        }
    }

    /// One partition's turn. Whether anything was sent.
    fn turn(&mut self, handle: u32) -> bool {
        let metrics = &self.session.shared.metrics;
        let feeds = &mut self.feeds;
        let Some(feed) = feeds.feeds.get_mut(&handle) else {
            return false;
        };
        let mut sent = 0;
        while feeds.credit > 0
            && sent < TURN_BYTES
            && let Some(ready) = feed.ready.pop_front()
        {
            let bytes = ready.bytes();
            feed.ready_bytes -= bytes;
            feeds.ready_bytes -= bytes;
            feeds.credit -= bytes as i64;
            sent += bytes;
            metrics.batches_out.add(1);
            self.outbox.batch(&ready.header, &ready.head, ready.body);
        }
        metrics.bytes_out.add(sent as u64);
        if !feed.ready.is_empty() {
            return sent > 0;
        }
        let passed = std::mem::take(&mut feed.tell_passed);
        if passed {
            let passed = Passed {
                handle,
                offset: feed.next.0,
                leader_epoch: feed.leader_epoch.map(|epoch| epoch.0),
            };
            self.outbox.frame(Kind::Passed, &passed);
        }
        if let Some(error) = feed.tell_failed.take() {
            self.fail(handle, error);
            return true;
        }
        if let Some((start, end)) = feed.overtaken.take() {
            self.lose_records(handle, start, end);
            return true;
        }
        if let Some(offset) = feed.tell_caught_up.take() {
            let ended = feed.stop_at.is_some_and(|stop| offset >= stop);
            if ended {
                feed.state = State::Ended;
            }
            self.outbox.frame(
                Kind::CaughtUp,
                &CaughtUp {
                    handle,
                    offset: offset.0,
                    ended,
                    leader_epoch: (feed.next == offset)
                        .then_some(feed.leader_epoch)
                        .flatten()
                        .map(|epoch| epoch.0),
                },
            );
            return true;
        }
        sent > 0 || passed
    }

    fn fetch_hungry(&mut self) {
        let feeds = &mut self.feeds;
        feeds.starved = false;
        // Nothing is fetched that the client has no credit for.
        while feeds.credit > feeds.ready_bytes as i64 && feeds.ready_bytes < READY_BYTES_MAX {
            let Some(&handle) = feeds.hungry.front() else {
                return;
            };
            let Some(feed) = feeds
                .feeds
                .get_mut(&handle)
                .filter(|feed| feed.is_hungry(LOW_WATER_BYTES))
            else {
                feeds.hungry.pop_front();
                if let Some(feed) = feeds.feeds.get_mut(&handle) {
                    feed.queued = false;
                }
                continue;
            };
            if !feed.caught_up && feeds.catching_up >= CATCHING_UP_MAX {
                return;
            }
            let room = self.session.send.room();
            if room == 0 {
                feeds.starved = true;
                return;
            }
            feeds.hungry.pop_front();
            feed.queued = false;
            feed.fetches = feed.fetches.wrapping_add(1);
            feed.fetching = Some(feed.fetches);
            feeds.catching_up += usize::from(!feed.caught_up);
            feed.trace = self.session.shared.traces.begin("deliver");
            // A fetch that may wait for long takes no room, and brings less.
            let most = if feed.caught_up {
                WAITING_FETCH_BYTES
            } else {
                FETCH_BYTES
            };
            let bytes_max = room.min(most);
            feed.room = (!feed.caught_up).then(|| self.session.send.reserve(bytes_max));
            let fetch = Fetch {
                partition: feed.partition,
                offset: feed.next,
                leader_epoch: feed.leader_epoch,
                bytes_max,
                wait_ms: if feed.caught_up { WAIT_MS } else { 0 },
            };
            let tag = u64::from(handle) << 32 | u64::from(feed.fetches);
            let reply = ReplyTo::Queue {
                tag,
                queue: self.answers.clone(),
            };
            self.session
                .shared
                .shards
                .of(feed.partition)
                .send(Call::Fetch(fetch), reply);
        }
    }

    /// A fetch was answered.
    pub(super) fn fetched(&mut self, tag: u64, answer: Answer) -> Result<(), messages::Error> {
        let (handle, fetch) = ((tag >> 32) as u32, tag as u32);
        let feeds = &mut self.feeds;
        let Some(feed) = feeds
            .feeds
            .get_mut(&handle)
            .filter(|feed| feed.fetching == Some(fetch))
        else {
            return Ok(()); // of before a seek, a pause or a release
        };
        feed.fetching = None;
        feed.room = None;
        if let Some(trace) = &mut feed.trace {
            trace.set("millstream.waited", Value::Flag(feed.caught_up));
            trace.part("fetch", trace.start_ns(), now_ns());
        }
        feeds.catching_up -= usize::from(!feed.caught_up);
        match answer {
            Answer::Fetched(fetched) => self.take(handle, fetched),
            Answer::Error(Error::Busy { .. }) => self.retry(handle),
            Answer::Error(Error::Stopping) => {
                return Err(Code::Stopping.error("the broker is stopping"));
            }
            Answer::Error(Error::OffsetOutOfRange { offset, start, end }) if offset < start => {
                let idle = !feed.has_words();
                feed.overtaken = Some((start, end));
                if idle {
                    feeds.turns.push_back(handle);
                }
            }
            // Partitions do not go one by one. To a member its group says what it has instead.
            Answer::Error(Error::Refused(Refusal::UnknownPartition(_)))
                if self.membership.is_some() =>
            {
                self.retry(handle);
            }
            Answer::Error(Error::Refused(Refusal::UnknownPartition(_))) => {
                let message = format!("topic `{}` was deleted", feed.topic.name);
                self.fail_behind_ready(handle, Code::UnknownTopic.error(message));
            }
            other => self.fail_behind_ready(handle, refusals::unexpected(&other)),
        }
        self.feeds.want(handle);
        Ok(())
    }

    /// Nothing is kept from where a partition stands to before `start`.
    fn lose_records(&mut self, handle: u32, start: Offset, end: Offset) {
        let Some(feed) = self.feeds.feeds.get_mut(&handle) else {
            return;
        };
        feed.caught_up = false; // it is not where it was
        let (from, stop_at) = (feed.next, feed.stop_at);
        let to = match self.on_lost {
            OnLost::Newest => end,
            _ => start,
        };
        if self.on_lost == OnLost::Fail {
            let message = format!(
                "{} records (offsets {from} to {}) were removed before they were read; the oldest that is kept has offset {start}",
                start.0 - from.0,
                start.0 - 1,
            );
            let mut error = Code::RecordsLost.error(message);
            error.next_offset = Some(start.0);
            return self.fail(handle, error);
        }
        let lost = RecordsLost {
            handle,
            from: from.0,
            to: to.0,
        };
        self.outbox.frame(Kind::RecordsLost, &lost);
        self.feeds.start(handle, to, stop_at);
    }

    /// This partition stops; the others go on.
    pub(super) fn fail(&mut self, handle: u32, error: messages::Error) {
        self.feeds.halt(handle, Some(State::Failed), false);
        self.outbox.frame(
            Kind::PartitionError,
            &PartitionError {
                handle,
                error: Some(error),
            },
        );
    }

    /// As [`fail`](Self::fail), once what came before is sent.
    fn fail_behind_ready(&mut self, handle: u32, error: messages::Error) {
        match self.feeds.feed(handle) {
            Some(feed) if !feed.ready.is_empty() || feed.tell_passed => {
                feed.tell_failed = Some(error);
            }
            _ => self.fail(handle, error),
        }
    }

    /// Fetch again, but not at once.
    pub(super) fn retry(&mut self, handle: u32) {
        let Some(fetch) = self.feeds.mark(handle) else {
            return;
        };
        self.jobs.spawn_local(async move {
            tokio::time::sleep(std::time::Duration::from_millis(RETRY_MS)).await;
            Event::Retry { handle, fetch }
        });
    }

    pub(super) fn retry_now(&mut self, handle: u32, fetch: u32) {
        if self.feeds.unmark(handle, fetch) {
            self.feeds.want(handle);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use millstream_batch::ids::TopicId;
    use millstream_machine::topics::TopicConfig;

    use super::*;

    fn feeds(partitions: u32) -> (Feeds, Vec<u32>) {
        let topic = Rc::new(TopicMeta {
            id: TopicId([1; 16]),
            name: "t".to_owned(),
            partitions,
            config: TopicConfig::default(),
            filters: Vec::new(),
            revision: 1,
        });
        let mut feeds = Feeds::new(1 << 20, Quota::unbounded());
        let handles = (0..partitions).map(|index| {
            let partition = Partition {
                topic: topic.id,
                index,
            };
            feeds
                .insert(Rc::clone(&topic), partition, GroupEpoch(1))
                .expect("unbounded")
        });
        let handles = handles.collect();
        (feeds, handles)
    }

    /// A partition asked back later has its own time, and one that is released takes its time with it.
    #[test]
    fn every_partition_has_its_own_time_to_be_released() {
        let (mut feeds, handles) = feeds(3);
        assert_eq!(feeds.release_by(), None);
        let first = Instant::now() + Duration::from_secs(30);
        let second = first + Duration::from_secs(5);
        for (handle, by) in handles.iter().zip([first, second]) {
            feeds.feed(*handle).expect("there").release_by = Some(by);
        }
        assert_eq!(feeds.release_by(), Some(first));
        feeds.remove(handles[0]);
        assert_eq!(
            feeds.release_by(),
            Some(second),
            "not the time of the one that is gone"
        );
        feeds.remove(handles[1]);
        assert_eq!(feeds.release_by(), None);
    }

    /// What counts as under way gives its place back exactly once, however the fetch ends.
    #[test]
    fn a_mark_is_taken_back_once_and_a_seek_makes_it_stale() {
        let (mut feeds, handles) = feeds(1);
        let handle = handles[0];
        feeds.start(handle, Offset(0), None);
        let mark = feeds.mark(handle).expect("there");
        assert_eq!(feeds.catching_up, 1);
        assert!(!feeds.unmark(handle, mark.wrapping_add(1)));
        feeds.seek(handle, Offset(7));
        assert_eq!(feeds.catching_up, 0);
        assert!(!feeds.unmark(handle, mark), "of before the seek");
        let mark = feeds.mark(handle).expect("there");
        assert!(feeds.unmark(handle, mark) && !feeds.unmark(handle, mark));
        assert_eq!(feeds.catching_up, 0);
    }
}
