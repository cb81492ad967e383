//! How many partitions are read at once: by one subscription, and by all of one principal on the whole
//! broker. Each costs a fetch that waits at its shard and about 2 KiB, whether records come or not.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use millstream_protocol::{Code, messages};

use crate::session::Session;

/// How long a client waits before it asks for partitions again.
const RETRY_MS: u32 = 1_000;

/// What one subscription holds; given back when dropped.
#[derive(Debug)]
pub(super) struct Quota {
    held: usize,
    of_subscription: usize,
    /// What all subscriptions of the principal hold.
    principal: Arc<AtomicUsize>,
    of_principal: usize,
}

impl Quota {
    pub(super) fn new(session: &Session) -> Self {
        let limits = &session.shared.config.limits;
        Self::of(
            Arc::clone(session.principal().reading()),
            limits.subscription_partitions_max,
            limits.principal_partitions_max,
        )
    }

    fn of(principal: Arc<AtomicUsize>, of_subscription: usize, of_principal: usize) -> Self {
        Self {
            held: 0,
            of_subscription,
            principal,
            of_principal,
        }
    }

    /// For tests of what is read, not of how much.
    #[cfg(test)]
    pub(super) fn unbounded() -> Self {
        Self::of(Arc::default(), usize::MAX, usize::MAX)
    }

    /// Whether so many more could be taken: asked before a list of them is made.
    pub(super) fn check(&self, more: usize) -> Result<(), messages::Error> {
        let (most, of_principal) = (self.of_subscription, self.of_principal);
        if self.held.saturating_add(more) > most {
            let message = format!("a subscription reads at most {most} partitions: open several");
            return Err(Code::TooLarge.error(message));
        }
        let others = self.principal.load(Ordering::Relaxed);
        if others.saturating_add(more) > of_principal {
            let message = format!(
                "this principal reads {others} partitions already, of {of_principal} (limits.principal_partitions_max)"
            );
            return Err(messages::Error {
                retry_after_ms: RETRY_MS,
                ..Code::Busy.error(message)
            });
        }
        Ok(())
    }

    pub(super) fn take(&mut self) -> Result<(), messages::Error> {
        self.check(1)?;
        self.held += 1;
        self.principal.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn give(&mut self) {
        self.held -= 1;
        self.principal.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        self.principal.fetch_sub(self.held, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subscription_and_a_principal_have_their_bounds_and_what_ends_is_given_back() {
        let principal = Arc::new(AtomicUsize::new(0));
        let quota = || Quota::of(Arc::clone(&principal), 3, 4);
        let code = |result: Result<(), messages::Error>| result.map_err(|error| error.code);
        let (mut one, mut other) = (quota(), quota());
        assert_eq!(code(one.check(4)), Err(Code::TooLarge.number()));
        for _ in 0..3 {
            one.take().expect("within both");
        }
        assert_eq!(code(one.take()), Err(Code::TooLarge.number()));
        assert_eq!(code(other.check(2)), Err(Code::Busy.number()));
        other.take().expect("the last one");
        let refused = other.take().expect_err("the principal has its share");
        assert!(refused.retriable && refused.retry_after_ms > 0);
        one.give();
        other.take().expect("one was given back");
        drop(one);
        assert_eq!(principal.load(Ordering::Relaxed), 2);
        drop(other);
        assert_eq!(principal.load(Ordering::Relaxed), 0);
    }
}
