//! A member whose topic was deleted and made anew: it named the topic, so it reads the new one.
//!
//! The group knows topics by id. So the member joins again, for the ids that bear its names now. Absent:
//! topics that are read without a group, of which each partition tells by itself that it is gone.

use std::rc::Rc;
use std::time::Duration;

use millstream_machine::request::{Assignment, Reply};
use millstream_machine::topics::TopicMeta;
use millstream_protocol::messages;

use super::Subscription;
use super::group::Joining;
use super::jobs::Event;
use crate::authority::Right;
use crate::shards::{ask, unexpected};

/// Pause after a join that failed.
const RETRY: Duration = Duration::from_millis(500);

impl Subscription {
    /// Join again if topics that this member named are others by now.
    pub(super) fn look_for_namesakes(&mut self) {
        let (catalog, principal) = (&self.session.thread.catalog, self.session.principal());
        let Some(membership) = self.membership.as_mut().filter(|known| !known.joins) else {
            return;
        };
        let namesake = |topic: &Rc<TopicMeta>| {
            let is_later =
                |now: &Rc<TopicMeta>| now.id != topic.id && now.revision > topic.revision;
            let may_read = |now: &Rc<TopicMeta>| principal.may(Right::Consume, &now.name);
            let now = catalog.named(&topic.name);
            now.filter(is_later).filter(may_read)
        };
        let mut topics = membership.joining.topics.iter();
        if topics.all(|topic| namesake(topic).is_none()) {
            return;
        }
        let mut joining = membership.joining.clone();
        for topic in &mut joining.topics {
            if let Some(now) = namesake(topic) {
                *topic = now;
            }
        }
        membership.joins = true;
        let (home, member) = (membership.home.clone(), membership.member);
        // Another stream may be this member by now: it is not taken back from that one.
        let again = Some(membership.joined);
        self.jobs.spawn_local(async move {
            let joined = match ask(&home, joining.request(member, again)).await {
                Ok(Reply::Joined { assignment, .. }) => Ok(assignment),
                Ok(other) => Err(unexpected(&other)),
                Err(error) => Err(error),
            };
            Event::JoinedAnew { joining, joined }
        });
    }

    pub(super) fn joined_anew(
        &mut self,
        joining: Joining,
        joined: Result<Assignment, messages::Error>,
    ) {
        let Some(membership) = &mut self.membership else {
            return;
        };
        membership.joins = false;
        match joined {
            Ok(assignment) => {
                membership.joining = joining;
                self.joined(assignment);
            }
            Err(error) => {
                tracing::debug!(error = error.message, "a member did not join again yet");
                self.watch(); // which tells if it is no member any more
                self.jobs.spawn_local(async {
                    tokio::time::sleep(RETRY).await;
                    Event::LookForNamesakes
                });
            }
        }
    }
}
