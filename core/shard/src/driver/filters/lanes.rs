//! The produce stage on one shard: cheap filters run here and now, slow ones on a worker thread while the
//! partition's later batches wait behind.
//!
//! ```text
//! produce ─┬─ no filter, cheap ────────────────────────▶ append
//!          └─ slow: the partition's lane ─one at a time─▶ worker ─▶ append, then the next
//! ```
//! Other partitions go on. Absent on purpose: when a filter is slow (the sandbox's placement), the
//! threads ([`WorkerPool`]).

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use millstream_batch::ids::{Offset, Partition, TimestampMs};
use millstream_batch::{Batch, Parts};
use millstream_machine::request::Produce;
use millstream_machine::topics::{FilterBinding, OnError, Stage, TopicMeta};
use rustc_hash::FxHashMap;
use tokio::sync::mpsc;

use super::counts::FilterCounts;
use super::deployments::Deployments;
use super::told::Told;
use super::workers::{Turn, WorkerPool};
use super::{FilterFailure, FilterHost, Halt, Rest, Site};
use crate::call::{Error, FilterStatus};
use crate::core::{Now, ShardCore};
use crate::handle::{ReplyTo, Stamps, Waiting};

/// What the filters of a broker share.
#[derive(Clone, Debug)]
pub struct Plugins {
    pub deployments: Arc<Deployments>,
    pub workers: Arc<dyn WorkerPool>,
}

/// A batch to be produced.
#[derive(Debug)]
pub(in crate::driver) struct Held {
    pub(in crate::driver) request: Produce,
    pub(in crate::driver) raw: Parts,
    pub(in crate::driver) reply: ReplyTo,
    /// It counts as waiting at the shard until it is appended or refused.
    pub(in crate::driver) waiting: Waiting,
    pub(in crate::driver) stamps: Option<Arc<Stamps>>,
}

/// What is to be done with a batch.
#[derive(Debug)]
pub(in crate::driver) enum Step {
    /// As it is now: what the filters left of it.
    Append(Held),
    Refuse(ReplyTo, Error),
}

/// See the module's header.
#[derive(Debug)]
pub(in crate::driver) struct Lanes {
    host: FilterHost,
    counts: Arc<FilterCounts>,
    workers: Arc<dyn WorkerPool>,
    lanes: FxHashMap<Partition, Lane>,
    /// Lanes whose next batch is to be looked at.
    next: VecDeque<Partition>,
    told: Told,
    tickets: u64,
    done: mpsc::UnboundedSender<Done>,
    finished: mpsc::UnboundedReceiver<Done>,
}

/// Batches of a partition, in order, while one is on a worker thread.
#[derive(Debug, Default)]
struct Lane {
    under_way: Option<UnderWay>,
    waiting: VecDeque<Held>,
}

#[derive(Debug)]
struct UnderWay {
    ticket: u64,
    held: Held,
    bindings: Arc<[FilterBinding]>,
}

/// A worker is through with a batch.
#[derive(Debug)]
struct Done {
    partition: Partition,
    ticket: u64,
    outcome: Result<Rest, Halt>,
    counts: Vec<FilterStatus>,
}

impl Lanes {
    pub(in crate::driver) fn new(plugins: &Plugins) -> Self {
        let counts = Arc::new(FilterCounts::default());
        let (done, finished) = mpsc::unbounded_channel();
        Self {
            host: FilterHost::new(Arc::clone(&plugins.deployments), Arc::clone(&counts)),
            counts,
            workers: Arc::clone(&plugins.workers),
            lanes: FxHashMap::default(),
            next: VecDeque::new(),
            told: Told::default(),
            tickets: 0,
            done,
            finished,
        }
    }

    /// Whether a batch of this partition has to come through here.
    pub(in crate::driver) fn concern(&self, core: &ShardCore, partition: Partition) -> bool {
        !core.state().filters(partition).is_empty()
            || self.lanes.contains_key(&partition)
            || self.host.is_warm(partition.topic)
    }

    /// A batch comes. `None`: it waits for a worker.
    pub(in crate::driver) fn take(
        &mut self,
        core: &ShardCore,
        now: Now,
        held: Held,
    ) -> Option<Step> {
        if let Some(lane) = self.lanes.get_mut(&held.request.partition) {
            lane.waiting.push_back(held);
            return None;
        }
        self.begin(core, now, held)
    }

    /// A batch that a worker is through with, or that waited behind one.
    pub(in crate::driver) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        core: &ShardCore,
        now: Now,
    ) -> Poll<Step> {
        loop {
            while let Some(partition) = self.next.pop_front() {
                if let Some(step) = self.advance(core, now, partition) {
                    return Poll::Ready(step);
                }
            }
            let Some(done) = ready!(self.finished.poll_recv(cx)) else {
                return Poll::Pending; // never: the sender is ours too
            };
            self.counts.add(done.counts);
            let Some(lane) = self.lanes.get_mut(&done.partition) else {
                continue;
            };
            let Some(UnderWay { held, bindings, .. }) = lane
                .under_way
                .take_if(|under_way| under_way.ticket == done.ticket)
            else {
                continue;
            };
            self.next.push_back(done.partition);
            let step = if core.state().filters(done.partition) == &*bindings {
                finish(held, done.outcome, &mut self.told)
            } else {
                // The filters changed meanwhile: who changed them counts on it from then on.
                self.begin(core, now, held)
            };
            if let Some(step) = step {
                return Poll::Ready(step);
            }
        }
    }

    /// Give up everything that waits: whom to tell.
    pub(in crate::driver) fn drain(&mut self) -> impl Iterator<Item = ReplyTo> + use<> {
        self.next.clear();
        let lanes = std::mem::take(&mut self.lanes);
        lanes.into_values().flat_map(|lane| {
            let under_way = lane.under_way.map(|under_way| under_way.held);
            under_way
                .into_iter()
                .chain(lane.waiting)
                .map(|held| held.reply)
        })
    }

    /// Counters by deployment.
    pub(in crate::driver) fn status(&self) -> Vec<FilterStatus> {
        self.host.status()
    }

    /// The next batch of a lane begins, or the lane is over.
    fn advance(&mut self, core: &ShardCore, now: Now, partition: Partition) -> Option<Step> {
        let lane = self.lanes.get_mut(&partition)?;
        if lane.under_way.is_some() {
            return None;
        }
        let Some(held) = lane.waiting.pop_front() else {
            self.lanes.remove(&partition);
            return None;
        };
        let step = self.begin(core, now, held);
        if step.is_some() {
            self.next.push_back(partition);
        }
        step
    }

    /// A batch whose turn it is. `None`: it is with a worker now.
    fn begin(&mut self, core: &ShardCore, now: Now, mut held: Held) -> Option<Step> {
        let partition = held.request.partition;
        let bindings = core.state().filters(partition);
        let Some(topic) = core.state().topic(partition.topic) else {
            return Some(Step::Append(held));
        };
        if bindings
            .iter()
            .all(|binding| binding.stage != Stage::Produce)
        {
            self.host.forget(topic.id);
            return Some(Step::Append(held));
        }
        if core.decides_duplicate(now, held.request) {
            return Some(Step::Append(repeated(held, bindings, &self.told)));
        }
        let batch = match Batch::parse(std::mem::take(&mut held.raw).into_contiguous()) {
            Ok(batch) => batch,
            Err(error) => {
                return Some(Step::Refuse(held.reply, Error::BadBatch(error.to_string())));
            }
        };
        let site = site(topic, partition, now.wall);
        let outcome = if self.host.is_for_worker(bindings, &site) {
            Err(Halt::Worker)
        } else {
            self.host.run(bindings, &site, batch.clone())
        };
        if let Err(Halt::Worker) = outcome {
            held.raw = batch.bytes().clone().into();
            self.hand_over(topic, bindings.into(), now.wall, held, batch);
            return None;
        }
        finish(held, outcome, &mut self.told)
    }

    fn hand_over(
        &mut self,
        topic: &TopicMeta,
        bindings: Arc<[FilterBinding]>,
        time: TimestampMs,
        held: Held,
        batch: Batch,
    ) {
        self.tickets += 1;
        let partition = held.request.partition;
        let mut ticket = Ticket {
            done: Some(self.done.clone()),
            partition,
            number: self.tickets,
        };
        self.lanes.entry(partition).or_default().under_way = Some(UnderWay {
            ticket: self.tickets,
            held,
            bindings: Arc::clone(&bindings),
        });
        let topic = topic.clone();
        let turn = Turn::Topic(topic.id);
        self.workers.submit(
            turn,
            Box::new(move |host| {
                let outcome = host.run(&bindings, &site(&topic, partition, time), batch);
                ticket.redeem(outcome, host.counts.take());
            }),
        );
    }
}

/// Brings the outcome back; when it is dropped without, the batch is refused.
struct Ticket {
    done: Option<mpsc::UnboundedSender<Done>>,
    partition: Partition,
    number: u64,
}

impl Ticket {
    fn redeem(&mut self, outcome: Result<Rest, Halt>, counts: Vec<FilterStatus>) {
        if let Some(to) = self.done.take() {
            let done = Done {
                partition: self.partition,
                ticket: self.number,
                outcome,
                counts,
            };
            drop(to.send(done)); // a shard that is gone wants to know nothing
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let failure = FilterFailure {
            filter: String::new(),
            message: "the worker that ran it ended: try again".to_owned(),
            retriable: true,
        };
        self.redeem(Err(Halt::Failed(failure)), Vec::new());
    }
}

fn site(topic: &TopicMeta, partition: Partition, time: TimestampMs) -> Site<'_> {
    Site {
        topic: topic.id,
        topic_name: &topic.name,
        partition: partition.index,
        stage: Stage::Produce,
        time,
        base_offset: None,
        from: Offset(0),
        own: None,
    }
}

/// A batch that was stored before: its answer says what was kept of it then, as far as that is known.
fn repeated(held: Held, bindings: &[FilterBinding], told: &Told) -> Held {
    let kept = match told.of(&held.request) {
        Some(None) => return held, // everything
        Some(Some(kept)) => Some(kept.clone()),
        None => {
            let refuses = |binding: &FilterBinding| {
                binding.stage == Stage::Produce && binding.on_error == OnError::Reject
            };
            if !bindings.iter().any(refuses) {
                return held; // some may have been dropped, which is nobody's fault
            }
            None
        }
    };
    let reply = ReplyTo::Filtered {
        kept,
        repeated: true,
        to: Box::new(held.reply),
    };
    Held { reply, ..held }
}

/// The request and the bytes as they will be appended, or why not. `None`: a worker has yet to look.
fn finish(held: Held, outcome: Result<Rest, Halt>, told: &mut Told) -> Option<Step> {
    let request = held.request;
    let mut reply = held.reply;
    let rest = match outcome {
        Ok(rest) => rest,
        Err(Halt::Worker) => return None,
        Err(Halt::Failed(failure)) => {
            let error = Error::Filter {
                filter: failure.filter,
                message: failure.message,
                retriable: failure.retriable,
            };
            return Some(Step::Refuse(reply, error));
        }
    };
    told.note(&request, rest.kept.as_ref());
    if let Some(kept) = rest.kept {
        reply = ReplyTo::Filtered {
            kept: Some(kept),
            repeated: false,
            to: Box::new(reply),
        };
    }
    let (request, raw) = match rest.batch {
        None => {
            let nothing = Produce {
                kept: 0,
                bytes: 0,
                ..request
            };
            (nothing, Parts::default())
        }
        Some(rest) => {
            let header = rest.header();
            let rest_of_it = Produce {
                kept: header.records,
                bytes: header.size() as u32,
                max_timestamp: TimestampMs(header.max_timestamp),
                ..request
            };
            (rest_of_it, rest.into_bytes().into())
        }
    };
    Some(Step::Append(Held {
        request,
        raw,
        reply,
        ..held
    }))
}
