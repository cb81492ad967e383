//! What filters a subscription: its topics' components, then those that it asked for itself.
//!
//! Absent: instances (the thread's `FilterHost`); those of a subscription end with it.

use std::rc::Rc;

use millstream_batch::Batch;
use millstream_batch::ids::TimestampMs;
use millstream_machine::topic::{FilterBinding, Stage, TopicMeta};
use millstream_protocol::Code;
use millstream_protocol::messages::{self, Subscribe};
use millstream_sandbox::Parameters;
use millstream_shard::call::Served;
use millstream_shard::driver::{FilterFailure, Own, Owner, Site};

use crate::authority::Right;
use crate::session::Session;

/// Filters of one subscription.
const FILTERS_MAX: usize = 16;

/// The filters that run for one subscription alone.
pub(super) struct OwnFilters {
    session: Rc<Session>,
    owner: Owner,
    filters: Vec<OwnFilter>,
}

struct OwnFilter {
    binding: FilterBinding,
    parameters: Parameters,
}

impl OwnFilters {
    /// The components that the client wants run for itself: each deployed on some topic that it may
    /// read.
    pub(super) fn new(
        session: &Rc<Session>,
        subscribe: &Subscribe,
    ) -> Result<Self, messages::Error> {
        if subscribe.filters.len() > FILTERS_MAX {
            return Err(
                Code::TooLarge.error(format!("a subscription has at most {FILTERS_MAX} filters"))
            );
        }
        let principal = session.principal();
        let topics = session.thread.catalog.topics();
        let find = |name: &str| -> Option<FilterBinding> {
            topics
                .iter()
                .filter(|topic| principal.may(Right::Consume, &topic.name))
                .flat_map(|topic| &topic.filters)
                .find(|binding| binding.name == name)
                .cloned()
        };
        let filters = subscribe
            .filters
            .iter()
            .map(|filter| {
                let binding = find(&filter.name).ok_or_else(|| {
                    Code::UnknownFilter.error(format!("no filter `{}` is deployed", filter.name))
                })?;
                let parameters = filter
                    .parameters
                    .iter()
                    .map(|p| (p.key.clone(), p.value.clone().unwrap_or_default()))
                    .collect();
                Ok(OwnFilter {
                    binding: FilterBinding {
                        stage: Stage::Subscribe,
                        ..binding
                    },
                    parameters,
                })
            })
            .collect::<Result<_, messages::Error>>()?;
        // No two sessions that live have the same address.
        let connection = Rc::as_ptr(session).addr() as u64;
        Ok(Self {
            session: Rc::clone(session),
            owner: session.thread.filters.borrow_mut().owner(connection),
            filters,
        })
    }

    /// What is left of a batch; `None`: nothing was kept.
    pub(super) fn run(
        &self,
        topic: &TopicMeta,
        partition: u32,
        served: &Served,
        batch: Batch,
    ) -> Result<Option<Batch>, FilterFailure> {
        let host = &mut self.session.thread.filters.borrow_mut();
        let site = Site {
            topic: topic.id,
            topic_name: &topic.name,
            partition,
            stage: Stage::Subscribe,
            time: TimestampMs(served.append_time.0),
            base_offset: Some(served.base_offset),
            own: None,
        };
        // Without bindings this lets go of what a removed deployment left.
        let Some(mut batch) = host.run(&topic.filters, &site, batch)? else {
            return Ok(None);
        };
        for filter in &self.filters {
            let own = Own {
                owner: self.owner,
                parameters: &filter.parameters,
            };
            let site = Site {
                own: Some(own),
                ..site
            };
            match host.run(std::slice::from_ref(&filter.binding), &site, batch)? {
                Some(rest) => batch = rest,
                None => return Ok(None),
            }
        }
        Ok(Some(batch))
    }
}

impl Drop for OwnFilters {
    fn drop(&mut self) {
        if !self.filters.is_empty() {
            self.session.thread.filters.borrow_mut().end(self.owner);
        }
    }
}
