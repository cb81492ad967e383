//! When a subscription that reads to the end is through.
//!
//! A member is not through while the group still moves partitions: one that another member has yet to let go
//! may be coming to it, and if both ended nobody would read that one. So the home is asked whether everything
//! is where it is to be, and then whether this member knows all that it has. Absent: what the end of a partition is.

use std::time::Duration;

use millstream_machine::request::{Reply, Request, Standing};

use super::Subscription;
use super::jobs::Event;
use crate::shards::ask;

/// Pause before a group that moves partitions is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

impl Subscription {
    /// With `stop_at_end`: every partition is over, all is sent, and no more are coming.
    pub(super) fn is_over(&mut self) -> bool {
        let all_ended = self.stop_at_end
            && self.outbox.is_empty()
            && self.jobs.is_empty()
            && self.feeds.all_ended();
        let Some(membership) = self.membership.as_ref().filter(|_| all_ended) else {
            return all_ended;
        };
        if self.feeds.is_empty() {
            return false; // the group has yet to give it any
        }
        let (member, joined, version) = membership.stands();
        if membership.settled_at == Some(version) {
            return true;
        }
        let (home, group) = (membership.home.clone(), membership.joining.group.clone());
        self.jobs.spawn_local(async move {
            let of = Some(Vec::new());
            let look = Request::DescribeGroup {
                group: group.clone(),
                of,
            };
            let moves = matches!(
                ask(&home, look).await,
                Ok(Reply::Group(info)) if info.standing == Standing::Rebalancing
            );
            let look = Request::GroupAssignment {
                group,
                member,
                joined,
            };
            // A home that does not answer keeps nobody: what this member has is read.
            let newest = match ask(&home, look).await {
                Ok(Reply::Assignment(assignment)) => assignment.version,
                _ => version,
            };
            let is_settled = !moves && newest == version;
            if !is_settled {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            Event::Settled {
                at: is_settled.then_some(version),
            }
        });
        false
    }
}
