//! What filters a subscription: its topics' components, then those that it asked for itself. Cheap ones
//! run here and now; for slow ones a whole fetch goes to a worker thread, and comes back as an event.
//!
//! Absent: instances (the thread's `FilterHost`, the workers'); those of a subscription end with it.

use std::rc::Rc;
use std::sync::Arc;

use millstream_batch::Batch;
use millstream_batch::ids::{Offset, TimestampMs};
use millstream_machine::topics::{Budget, FilterBinding, OnError, Stage, TopicMeta};
use millstream_protocol::Code;
use millstream_protocol::messages::{self, Subscribe};
use millstream_sandbox::Parameters;
use millstream_shard::call::{Fetched, Served};
use millstream_shard::driver::{FilterFailure, FilterHost, Halt, Own, Owner, Site, Turn};
use rustc_hash::FxHashSet;
use tokio::sync::oneshot;

use super::Subscription;
use super::jobs::Event;
use crate::authority::Right;
use crate::bundled::{self, BUNDLED};
use crate::session::Session;

/// Filters of one subscription, and bytes of all their parameters, which live as long as it does.
const FILTERS_MAX: usize = 16;
const PARAMETER_BYTES_MAX: usize = 64 << 10;
/// Fetches of one subscription that are with workers; more are fetched again later.
const WITH_WORKERS_MAX: usize = 8;

/// What the filters left of a batch.
pub(super) type Verdict = Result<Left, Halt>;

/// See [`Verdict`].
#[derive(Debug)]
pub(super) struct Left {
    /// `None`: nothing was kept.
    pub(super) batch: Option<Batch>,
    /// Where the partition is to stop, and why: nothing from there on was kept.
    pub(super) stop: Option<(Offset, FilterFailure)>,
}

/// A batch, and the verdict on it if a worker gave it.
pub(super) type Judged = (Served, Option<Verdict>);

/// The filters that run for one subscription alone.
pub(super) struct OwnFilters {
    session: Rc<Session>,
    connection: u64,
    own: Arc<OwnSet>,
}

struct OwnSet {
    owner: Owner,
    filters: Vec<OwnFilter>,
}

struct OwnFilter {
    binding: FilterBinding,
    parameters: Parameters,
}

impl OwnFilters {
    /// The components that the client wants run for itself: each deployed on a topic that it reads, else one that
    /// the broker brings along, else one deployed on another topic that it may read. Each is started once with the
    /// client's parameters. What it cannot judge stops the client, whatever a deployment of that name does.
    pub(super) async fn new(
        session: &Rc<Session>,
        subscribe: &Subscribe,
    ) -> Result<Self, messages::Error> {
        if subscribe.filters.len() > FILTERS_MAX {
            return Err(
                Code::TooLarge.error(format!("a subscription has at most {FILTERS_MAX} filters"))
            );
        }
        let bytes: usize = subscribe
            .filters
            .iter()
            .flat_map(|filter| &filter.parameters)
            .map(|p| p.key.len() + p.value.as_ref().map_or(0, String::len))
            .sum();
        if bytes > PARAMETER_BYTES_MAX {
            return Err(Code::TooLarge.error(format!(
                "parameters of {bytes} bytes are over a subscription's {PARAMETER_BYTES_MAX}"
            )));
        }
        let principal = session.principal();
        // Nobody pays for the whole catalog who names no filter.
        let topics = match subscribe.filters.is_empty() {
            true => Vec::new(),
            false => session.thread.catalog.topics(),
        };
        let partitions = subscribe.partitions.iter().map(|fixed| &fixed.topic);
        let read: FxHashSet<&String> = subscribe.topics.iter().chain(partitions).collect();
        let find = |name: &str, is_read: bool| -> Option<FilterBinding> {
            topics
                .iter()
                .filter(|topic| !topic.filters.is_empty())
                .filter(|topic| read.contains(&topic.name) == is_read)
                .filter(|topic| principal.may(Right::Consume, &topic.name))
                .flat_map(|topic| &topic.filters)
                .find(|binding| binding.name == name)
                .cloned()
        };
        let filters = subscribe
            .filters
            .iter()
            .map(|filter| {
                let binding = find(&filter.name, true)
                    .or_else(|| bundled_binding(session, &filter.name))
                    .or_else(|| find(&filter.name, false))
                    .ok_or_else(|| unknown(&filter.name))?;
                let parameters = filter
                    .parameters
                    .iter()
                    .map(|p| (p.key.clone(), p.value.clone().unwrap_or_default()))
                    .collect();
                Ok(OwnFilter {
                    binding: FilterBinding {
                        stage: Stage::Subscribe,
                        on_error: OnError::Reject,
                        ..binding
                    },
                    parameters,
                })
            })
            .collect::<Result<Vec<OwnFilter>, messages::Error>>()?;
        let components = &session.shared.components;
        // Each start takes a thread: so many at a time for a principal, as with openings.
        let _turn = match filters.is_empty() {
            true => None,
            false => principal.openings().acquire().await.ok(),
        };
        for filter in &filters {
            components.find(filter.binding.digest).await?;
            let (binding, own) = (filter.binding.clone(), filter.parameters.clone());
            components.try_start(binding, own).await?;
        }
        // No two sessions that live have the same address.
        let connection = Rc::as_ptr(session).addr() as u64;
        let owner = session.shared.plugins.deployments.owner(connection);
        Ok(Self {
            session: Rc::clone(session),
            connection,
            own: Arc::new(OwnSet { owner, filters }),
        })
    }

    /// What is left of a batch, by filters that run here and now.
    pub(super) fn run(
        &self,
        topic: &TopicMeta,
        partition: u32,
        served: &Served,
        from: Offset,
    ) -> Verdict {
        let host = &mut self.session.thread.filters.borrow_mut();
        self.own.judge(host, topic, partition, served, from)
    }

    /// Whether anything filters batches of this topic.
    pub(super) fn concern(&self, topic: &TopicMeta) -> bool {
        let at_subscribe = |binding: &FilterBinding| binding.stage == Stage::Subscribe;
        !self.own.filters.is_empty() || topic.filters.iter().any(at_subscribe)
    }

    /// Whether batches of this partition are to be handed to workers.
    fn are_for_worker(&self, topic: &TopicMeta, partition: u32) -> bool {
        let host = &mut self.session.thread.filters.borrow_mut();
        let site = site(topic, partition, None);
        host.is_for_worker(&topic.filters, &site)
            || self.own.filters.iter().any(|filter| {
                let site = Site {
                    own: Some(self.own.of(filter)),
                    ..site
                };
                host.is_for_worker(std::slice::from_ref(&filter.binding), &site)
            })
    }

    /// Judge on a worker thread those of `batches` that are wanted, up to the first that fails.
    fn submit(
        &self,
        topic: &TopicMeta,
        partition: u32,
        batches: Vec<Served>,
        from: Offset,
        wanted: impl Fn(&Served) -> bool + Send + 'static,
    ) -> oneshot::Receiver<Vec<Judged>> {
        let (to, judged) = oneshot::channel();
        let own = Arc::clone(&self.own);
        let topic = topic.clone();
        let counts = Arc::clone(&self.session.shared.metrics.subscribe_filters);
        // A topic's own filters take the topic's turn, those of subscriptions their connection's.
        let turn = if own.filters.is_empty() {
            Turn::Topic(topic.id)
        } else {
            Turn::Connection(self.connection)
        };
        let job = move |host: &mut FilterHost| {
            let mut failed = false;
            let judge = |served: Served| {
                let verdict = (!failed && wanted(&served))
                    .then(|| own.judge(host, &topic, partition, &served, from));
                failed |= match &verdict {
                    Some(Ok(left)) => left.stop.is_some(),
                    Some(Err(_)) => true,
                    None => false,
                };
                (served, verdict)
            };
            let judged = batches.into_iter().map(judge).collect();
            counts.add(host.take_counts());
            drop(to.send(judged)); // a subscription that is gone wants to know nothing
        };
        self.session
            .shared
            .plugins
            .workers
            .submit(turn, Box::new(job));
        judged
    }
}

impl OwnSet {
    /// What the topic's filters and then these leave of a batch.
    fn judge(
        &self,
        host: &mut FilterHost,
        topic: &TopicMeta,
        partition: u32,
        served: &Served,
        from: Offset,
    ) -> Verdict {
        let unreadable = |error: millstream_batch::BatchError| {
            Halt::Failed(FilterFailure {
                filter: String::new(),
                message: format!("the stored batch cannot be read: {error}"),
                retriable: false,
            })
        };
        let batch = Batch::parse(served.batch.clone()).map_err(unreadable)?;
        let site = Site {
            from,
            ..site(topic, partition, Some(served))
        };
        // Without bindings this lets go of what a removed deployment left.
        let rest = host.run(&topic.filters, &site, batch)?;
        let mut left = Left {
            batch: rest.batch,
            stop: rest.stop,
        };
        for filter in &self.filters {
            let Some(batch) = left.batch else {
                break;
            };
            let site = Site {
                own: Some(self.of(filter)),
                ..site
            };
            let rest = host.run(std::slice::from_ref(&filter.binding), &site, batch)?;
            // Whatever an earlier one stops at comes after all that it let through.
            left = Left {
                batch: rest.batch,
                stop: rest.stop.or(left.stop),
            };
        }
        Ok(left)
    }

    fn of<'a>(&self, filter: &'a OwnFilter) -> Own<'a> {
        Own {
            owner: self.owner,
            parameters: &filter.parameters,
        }
    }
}

impl Drop for OwnFilters {
    fn drop(&mut self) {
        if !self.own.filters.is_empty() {
            let host = &mut self.session.thread.filters.borrow_mut();
            host.end(self.own.owner);
        }
    }
}

impl Subscription {
    /// Whether a fetch waits for workers now: what it brought comes back as an event, and until then
    /// nothing else of its partition is fetched.
    pub(super) fn filter_later(
        &mut self,
        handle: u32,
        topic: &Rc<TopicMeta>,
        fetched: &mut Fetched,
    ) -> bool {
        let Some(feed) = self.feeds.feed(handle) else {
            return false;
        };
        let (partition, was_halted) = (feed.partition.index, feed.is_for_worker);
        if fetched.batches.is_empty()
            || !(was_halted || self.filters.are_for_worker(topic, partition))
        {
            return false;
        }
        if self.with_workers >= WITH_WORKERS_MAX {
            self.retry(handle);
            return true;
        }
        let Some(fetch) = self.feeds.mark(handle) else {
            return true;
        };
        let Some(feed) = self.feeds.feed(handle) else {
            return true;
        };
        feed.is_for_worker = false;
        let (next, stop_at) = (feed.next, feed.stop_at);
        let wanted = move |served: &Served| {
            served.last_offset >= next && stop_at.is_none_or(|stop| served.base_offset < stop)
        };
        let batches = std::mem::take(&mut fetched.batches);
        let judged = self
            .filters
            .submit(topic, feed.partition.index, batches, next, wanted);
        let (topic, end) = (Rc::clone(topic), fetched.end);
        self.with_workers += 1;
        self.jobs.spawn_local(async move {
            Event::Filtered {
                handle,
                fetch,
                topic,
                judged: judged.await.ok(),
                end,
            }
        });
        true
    }

    /// Workers are through with a fetch; `None`: they were not.
    pub(super) fn filtered(
        &mut self,
        handle: u32,
        fetch: u32,
        topic: &Rc<TopicMeta>,
        judged: Option<Vec<Judged>>,
        end: Offset,
    ) {
        self.with_workers -= 1;
        if !self.feeds.unmark(handle, fetch) {
            return; // of before a seek, a pause or a release
        }
        match judged {
            Some(judged) => self.arrived(handle, topic, judged.into_iter(), end),
            None => self.retry(handle),
        }
        self.feeds.want(handle);
    }
}

/// A component that the broker brings along, as if it were deployed without parameters.
fn bundled_binding(session: &Session, name: &str) -> Option<FilterBinding> {
    let plugins = &session.shared.config.plugins;
    Some(FilterBinding {
        name: name.to_owned(),
        digest: bundled::digest(name)?,
        stage: Stage::Subscribe,
        parameters: Vec::new(),
        budget: Budget {
            memory_bytes_max: plugins.memory_bytes_max,
            batch_ms_max: plugins.batch_ms_max,
        },
        on_error: OnError::Reject,
    })
}

fn unknown(name: &str) -> messages::Error {
    let bundled: Vec<_> = BUNDLED.iter().map(|bundled| bundled.name).collect();
    Code::UnknownFilter.error(format!(
        "no filter `{name}` is deployed; without deploying there are {}",
        bundled.join(", ")
    ))
}

/// `served`: where it stands in the log.
fn site<'a>(topic: &'a TopicMeta, partition: u32, served: Option<&Served>) -> Site<'a> {
    Site {
        topic: topic.id,
        topic_name: &topic.name,
        partition,
        stage: Stage::Subscribe,
        time: served.map_or(TimestampMs(0), |served| TimestampMs(served.append_time.0)),
        base_offset: served.map(|served| served.base_offset),
        from: Offset(0),
        own: None,
    }
}
