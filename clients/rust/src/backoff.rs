//! Waiting longer after every failure, with jitter so that many clients do not return at once.
//!
//! Deliberately absent: the decision whether to try again, which is the deadline's.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Doubling waits between `first` and `longest`, each shortened by up to a half.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    next: Duration,
    longest: Duration,
    jitter: RandomState,
    count: u64,
}

impl Backoff {
    /// For a broker that is not there: it may take a second to start.
    pub(crate) fn connecting() -> Self {
        Self::new(Duration::from_millis(50), Duration::from_secs(1))
    }

    /// For a broker that said "later".
    pub(crate) fn busy() -> Self {
        Self::new(Duration::from_millis(10), Duration::from_secs(1))
    }

    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self {
            next: first,
            longest,
            jitter: RandomState::new(),
            count: 0,
        }
    }

    /// How long to wait now.
    pub(crate) fn next_wait(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(self.longest);
        self.count += 1;
        let random = self.jitter.hash_one(self.count) % 1024;
        whole / 2 + whole.mul_f64(random as f64 / 2048.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_longest_and_keep_their_jitter() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(800));
        for whole in [100u64, 200, 400, 800, 800, 800] {
            let wait = backoff.next_wait();
            assert!(
                wait >= Duration::from_millis(whole / 2) && wait <= Duration::from_millis(whole),
                "{wait:?}"
            );
        }
    }
}
