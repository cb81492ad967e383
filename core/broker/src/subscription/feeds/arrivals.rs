//! What is made of the batches that a fetch brought: judged by filters, made ready to be sent, and what is told of
//! the end they come to. Absent: when a partition fetches, and when what is ready is sent.

use std::rc::Rc;

use millstream_batch::ids::{Offset, Term};
use millstream_batch::{Batch, served_head};
use millstream_machine::topics::TopicMeta;
use millstream_protocol::Code;
use millstream_protocol::messages;
use millstream_shard::call::{Fetched, Served};
use millstream_shard::driver::{FilterFailure, Halt};

use super::READY_BYTES_MAX;
use crate::subscription::Subscription;
use crate::subscription::feed::{Feed, Ready};
use crate::subscription::filters::{Judged, Left};
use crate::subscription::outbox::COPY_BELOW;
use crate::traces::{Trace, Value, now_ns};

impl Subscription {
    pub(super) fn take(&mut self, handle: u32, mut fetched: Fetched) {
        let feeds = &mut self.feeds;
        let Some(feed) = feeds.feeds.get_mut(&handle) else {
            return;
        };
        feed.end_unknown |= !fetched.end_known;
        if feeds.ready_bytes >= READY_BYTES_MAX {
            return; // many came at once: fetched again when there is room
        }
        let topic = Rc::clone(&feed.topic);
        let topic = self.topic_now(&topic).unwrap_or(topic);
        if !self.filter_later(handle, &topic, &mut fetched) {
            let batches = fetched.batches.into_iter().map(|served| (served, None));
            self.arrived(handle, &topic, batches, fetched.end);
        }
    }

    /// Batches of a fetch, some with their verdicts.
    pub(in crate::subscription) fn arrived(
        &mut self,
        handle: u32,
        topic: &Rc<TopicMeta>,
        batches: impl Iterator<Item = Judged>,
        end: Offset,
    ) {
        let trace = self.feeds.feed(handle).and_then(|feed| feed.trace.take());
        let idle = !self.feeds.feeds.get(&handle).is_some_and(Feed::has_words);
        let mut dropped_last = false;
        let mut stopped_by = None;
        let (mut came, mut records) = (0, 0);
        for (mut served, verdict) in batches {
            let Some(feed) = self.feeds.feeds.get_mut(&handle) else {
                return;
            };
            if served.last_offset < feed.next {
                continue; // ends before what was asked for
            }
            if feed.stop_at.is_some_and(|stop| served.base_offset >= stop) {
                feed.next = served.base_offset;
                break;
            }
            if !self.session.send.has_room() {
                break; // many fetches came at once: the rest is fetched again when there is room
            }
            let (partition, from, stop_at) = (feed.partition.index, feed.next, feed.stop_at);
            let verdict =
                verdict.unwrap_or_else(|| self.filters.run(topic, partition, &served, from));
            match verdict {
                Ok(Left { batch, stop }) => {
                    let stop = stop.filter(|(at, _)| stop_at.is_none_or(|end| *at < end));
                    let next = match &stop {
                        Some((offset, _)) => *offset,
                        None => Offset(served.last_offset.0 + 1),
                    };
                    // What comes to an end early is told to: the record after it is not passed over.
                    served.last_offset = Offset(next.0.saturating_sub(1));
                    came += 1;
                    records += batch
                        .as_ref()
                        .map_or(0, |batch| u64::from(batch.header().records));
                    let ready = batch.map(|batch| self.prepare(handle, &served, &batch, end));
                    dropped_last = ready.is_none();
                    let feeds = &mut self.feeds;
                    let Some(feed) = feeds.feeds.get_mut(&handle) else {
                        return;
                    };
                    feed.next = next;
                    feed.leader_epoch = Some(Term(served.leader_epoch));
                    feed.topic = Rc::clone(topic);
                    if let Some(ready) = ready {
                        feed.ready_bytes += ready.bytes();
                        feeds.ready_bytes += ready.bytes();
                        feed.ready.push_back(ready);
                    }
                    if let Some((offset, failure)) = stop {
                        stopped_by = Some(stop_error(offset, &failure));
                        break;
                    }
                }
                Err(Halt::Worker) => {
                    if let Some(feed) = self.feeds.feed(handle) {
                        feed.is_for_worker = true;
                    }
                    self.retry(handle);
                    break;
                }
                Err(Halt::Failed(failure)) if failure.retriable => {
                    self.retry(handle);
                    break;
                }
                Err(Halt::Failed(failure)) => {
                    let next = served.last_offset.0 + 1;
                    stopped_by = Some(messages::Error {
                        next_offset: Some(next),
                        ..Code::FilterFailed.error(format!(
                            "offsets {} to {}: {failure}; seek to {next} to go on behind them",
                            served.base_offset, served.last_offset
                        ))
                    });
                    break;
                }
            }
        }
        if let Some(trace) = trace.filter(|_| came > 0) {
            self.delivered(*trace, handle, topic, came, records);
        }
        let feeds = &mut self.feeds;
        let Some(feed) = feeds.feeds.get_mut(&handle) else {
            return;
        };
        if let Some(error) = stopped_by {
            // What was dropped before it is done with, and a group may commit it.
            feed.tell_passed |= came > 0 && dropped_last;
            if idle && feed.has_words() {
                feeds.turns.push_back(handle);
            }
            return self.fail_behind_ready(handle, error);
        }
        let at_end = feed.next >= end && !feed.end_unknown
            || feed.stop_at.is_some_and(|stop| feed.next >= stop);
        if at_end && feed.fetching.is_none() {
            if !feed.caught_up || dropped_last || feed.stop_at.is_some_and(|stop| feed.next >= stop)
            {
                feed.tell_caught_up = Some(feed.next);
            }
            feed.caught_up = true;
            feed.tell_passed = false;
        } else if feed.fetching.is_none() {
            feed.caught_up = false;
            if came > 0 {
                feed.tell_passed = dropped_last;
            }
        }
        if idle && feed.has_words() {
            feeds.turns.push_back(handle);
        }
    }

    /// A sampled fetch is ready to be sent.
    fn delivered(
        &self,
        mut trace: Trace,
        handle: u32,
        topic: &TopicMeta,
        batches: u64,
        records: u64,
    ) {
        if self.filters.concern(topic) {
            trace.part("filter", trace.newest_ns(), now_ns());
        }
        trace.set(
            "messaging.destination.name",
            Value::Text(topic.name.clone()),
        );
        if let Some(feed) = self.feeds.feeds.get(&handle) {
            let partition = feed.partition.index.to_string();
            trace.set("messaging.destination.partition.id", Value::Text(partition));
        }
        trace.set("messaging.batch.message_count", Value::Number(records));
        trace.set("millstream.batches", Value::Number(batches));
        self.session.shared.traces.end(trace, None);
    }

    /// Give what is left of a batch its fresh head.
    fn prepare(&self, handle: u32, served: &Served, batch: &Batch, end: Offset) -> Ready {
        let body = batch.bytes().slice(millstream_batch::HEAD_BYTES..);
        // Small bodies are copied into the outbox, which counts them there.
        let body = if body.len() < COPY_BELOW {
            body
        } else {
            self.session.send.hold(body)
        };
        let span = served.last_offset.0 - served.base_offset.0;
        Ready {
            header: messages::Batch {
                handle,
                base_offset: served.base_offset.0,
                last_offset: served.last_offset.0,
                append_time_ms: served.append_time.0,
                pid: served.pid,
                epoch: served.epoch,
                sequence: served.sequence,
                end_offset: end.0,
                // Also when what was cut off stands behind: the batch still spans it.
                filtered: u64::from(batch.header().records) != span + 1
                    || u64::from(batch.header().last_offset_delta) != span,
            },
            head: served_head(
                served.base_offset,
                served.leader_epoch.into(),
                batch.header(),
            ),
            body,
        }
    }
}

/// Why a partition stops before a record that its filter cannot judge.
fn stop_error(offset: Offset, failure: &FilterFailure) -> messages::Error {
    let mut error = Code::FilterFailed.error(format!(
        "filter `{}` cannot judge the record at offset {offset}: {}",
        failure.filter, failure.message
    ));
    error.hint = format!(
        "Correct the filter, or set its on_error to pass or drop; to go on without the record, seek to {}.",
        offset.0 + 1
    );
    error.next_offset = Some(offset.0 + 1);
    error
}
