//! When a subscription that reads to the end is through.
//!
//! A member is not through while the group moves partitions: one that another member has yet to let go may be
//! coming to it, and if both ended nobody would read that one. Absent: what the end of a partition is, and what
//! the group moves (its home says so with each assignment).

use super::Subscription;

impl Subscription {
    /// With `stop_at_end`: every partition is over, all is sent, and no more are coming.
    pub(super) fn is_over(&self) -> bool {
        self.stop_at_end
            && self.outbox.is_empty()
            && self.jobs.is_empty()
            && self.feeds.all_ended()
            && self.membership.as_ref().is_none_or(|membership| {
                // Without any, the group has yet to give it some.
                !self.feeds.is_empty() && membership.opening() == 0
            })
    }
}
