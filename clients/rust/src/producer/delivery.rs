//! The outcome of a record, shared by all records of its batch.
//!
//! A batch has one [`Completion`]; each record's [`Delivery`] is a place in it. So a record costs one
//! reference count, not a channel. Deliberately absent: memory accounting and counters.

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::refusals::Refusals;
use crate::error::{Error, Result};
use crate::record::RecordMetadata;

/// What the broker said of a stored batch.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    /// Offset of the first record that was kept, when it is known.
    pub(crate) base_offset: Option<u64>,
    pub(crate) kept: Kept,
    pub(crate) refused: Refusals,
    pub(crate) append_time_ms: i64,
    pub(crate) duplicate: bool,
}

/// Which records of a stored batch the topic's filters kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    All,
    None,
    /// Bit `i % 8` of byte `i / 8` is set when record `i` was kept.
    Some(Bytes),
    /// Some, and which is not known: the batch is very long, or was stored by an earlier try.
    Unknown,
}

impl Kept {
    /// As the broker tells it of a batch of `sent` records.
    pub(crate) fn told(records: u32, map: Bytes, sent: u32) -> Self {
        let ones: u32 = map.iter().map(|byte| byte.count_ones()).sum();
        match records {
            0 => Self::None,
            _ if map.len() == (sent as usize).div_ceil(8) && ones == records => Self::Some(map),
            _ => Self::Unknown,
        }
    }

    /// Where record `index` is after the first that was kept. `Err`: it is nowhere (`true`), or that is
    /// not known.
    fn place(&self, index: u32) -> std::result::Result<u64, bool> {
        match self {
            Self::All => Ok(u64::from(index)),
            Self::None => Err(true),
            Self::Unknown => Err(false),
            Self::Some(map) => {
                let (byte, bit) = (index as usize / 8, index % 8);
                let own = map.get(byte).copied().unwrap_or_default();
                if own >> bit & 1 == 0 {
                    return Err(true);
                }
                let below = own & ((1 << bit) - 1);
                let before = map[..byte].iter().map(|byte| u64::from(byte.count_ones()));
                Ok(before.sum::<u64>() + u64::from(below.count_ones()))
            }
        }
    }
}

/// The outcome of one batch.
#[derive(Debug)]
pub(crate) struct Completion {
    topic: Arc<str>,
    partition: u32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    outcome: Option<Result<Stored>>,
    wakers: Vec<Waker>,
}

impl Completion {
    pub(crate) fn new(topic: Arc<str>, partition: u32) -> Self {
        Self {
            topic,
            partition,
            state: Mutex::default(),
        }
    }

    pub(crate) fn complete(&self, outcome: Result<Stored>) {
        let wakers = {
            let mut state = self.lock();
            if state.outcome.is_some() {
                return;
            }
            state.outcome = Some(outcome);
            std::mem::take(&mut state.wakers)
        };
        for waker in wakers {
            waker.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Resolves when the record's batch is stored (durably, unless the producer asked for less) or given
/// up, or a filter of the topic refused the record. Dropping it does not take the record back.
#[derive(Clone, Debug)]
#[must_use = "the record is on its way; await this to learn whether it arrived"]
pub struct Delivery {
    completion: Arc<Completion>,
    index: u32,
}

impl Delivery {
    pub(crate) fn new(completion: Arc<Completion>, index: u32) -> Self {
        Self { completion, index }
    }

    /// The outcome, if it is known already.
    #[must_use]
    pub fn outcome(&self) -> Option<Result<RecordMetadata, Error>> {
        let state = self.completion.lock();
        state.outcome.as_ref().map(|outcome| self.of(outcome))
    }

    fn of(&self, outcome: &Result<Stored>) -> Result<RecordMetadata> {
        let stored = outcome.as_ref().map_err(Error::clone)?;
        if let Some(error) = stored.refused.of(self.index) {
            return Err(error);
        }
        let place = stored.kept.place(self.index);
        Ok(RecordMetadata {
            topic: Arc::clone(&self.completion.topic),
            partition: self.completion.partition,
            offset: match (stored.base_offset, place) {
                (Some(base), Ok(after)) => Some(base + after),
                _ => None,
            },
            filtered: place == Err(true),
            append_time_ms: stored.append_time_ms,
            duplicate: stored.duplicate,
        })
    }
}

/// The outcomes of records that follow each other in one batch: see
/// [`Topic::try_enqueue_tracked`](super::Topic::try_enqueue_tracked).
#[derive(Clone, Debug)]
pub struct Deliveries {
    completion: Arc<Completion>,
    first: u32,
    len: u32,
}

impl Deliveries {
    pub(crate) fn new(completion: Arc<Completion>, first: u32) -> Self {
        Self {
            completion,
            first,
            len: 1,
        }
    }

    /// Place in the batch of the record that would come next.
    pub(crate) fn next(&self) -> u32 {
        self.first + self.len
    }

    /// One more record of the batch.
    pub(crate) fn extend(&mut self) {
        self.len += 1;
    }

    /// Number of records; never 0.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// The outcome of the record at this place, from 0, if it is known already.
    #[must_use]
    pub fn outcome(&self, index: u32) -> Option<Result<RecordMetadata>> {
        (index < self.len)
            .then(|| self.delivery(index).outcome())
            .flatten()
    }

    /// Wait until the outcomes are known: their batch is stored or given up. Safe to cancel.
    pub async fn settled(&self) {
        // Its outcome is asked for by whoever wants to know it.
        let _ = self.delivery(0).await;
    }

    /// What failed, once it is settled: stretches of records that share a reason, in order.
    #[must_use]
    pub fn failures(&self) -> Vec<(Range<u32>, Error)> {
        match &self.completion.lock().outcome {
            Some(Err(error)) => vec![(0..self.len, error.clone())],
            Some(Ok(stored)) => stored.refused.stretches(self.first, self.len),
            None => Vec::new(),
        }
    }

    fn delivery(&self, index: u32) -> Delivery {
        Delivery::new(Arc::clone(&self.completion), self.first + index)
    }
}

impl Future for Delivery {
    type Output = Result<RecordMetadata>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.completion.lock();
        if let Some(outcome) = &state.outcome {
            return Poll::Ready(self.of(outcome));
        }
        // One task that awaits many records of a batch needs one entry.
        if !state
            .wakers
            .last()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            state.wakers.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn records_of_a_batch_resolve_together_each_with_its_offset() {
        let completion = Arc::new(Completion::new("t".into(), 3));
        let first = Delivery::new(Arc::clone(&completion), 0);
        let third = Delivery::new(Arc::clone(&completion), 2);
        assert!(third.outcome().is_none());
        let waiting = tokio::spawn(first);
        tokio::task::yield_now().await;
        completion.complete(Ok(Stored {
            base_offset: Some(40),
            kept: Kept::All,
            refused: Refusals::None,
            append_time_ms: 7,
            duplicate: false,
        }));
        // The first outcome counts.
        completion.complete(Err(Error::closed("producer")));
        assert_eq!(waiting.await.unwrap().unwrap().offset, Some(40));
        let metadata = third.await.unwrap();
        assert_eq!(
            (metadata.offset, metadata.partition, &*metadata.topic),
            (Some(42), 3, "t")
        );
    }

    #[test]
    fn a_filtered_batch_gives_each_record_its_own_outcome() {
        let of = |kept: Kept, index: u32| {
            let completion = Arc::new(Completion::new("t".into(), 0));
            completion.complete(Ok(Stored {
                base_offset: Some(40),
                kept,
                refused: Refusals::None,
                append_time_ms: 7,
                duplicate: false,
            }));
            let outcome = Delivery::new(completion, index).outcome().unwrap().unwrap();
            (outcome.offset, outcome.filtered)
        };
        let map = Bytes::from_static(&[0b1000_0100, 0b10]);
        let some = Kept::told(3, map.clone(), 10);
        for (index, offset) in [
            (2, Some(40)),
            (7, Some(41)),
            (9, Some(42)),
            (0, None),
            (8, None),
        ] {
            assert_eq!(
                of(some.clone(), index),
                (offset, offset.is_none()),
                "{index}"
            );
        }
        assert_eq!(of(Kept::told(0, Bytes::new(), 10), 1), (None, true));
        // What does not hold together says nothing: neither an offset nor that it was dropped.
        for (records, sent) in [(4, 10), (3, 17)] {
            assert_eq!(of(Kept::told(records, map.clone(), sent), 2), (None, false));
        }
    }

    #[tokio::test]
    async fn a_stretch_of_records_fails_or_is_stored_as_its_batch() {
        let outcome = |outcome: Result<Stored>| {
            let completion = Arc::new(Completion::new("t".into(), 3));
            let mut stretch = Deliveries::new(Arc::clone(&completion), 5);
            stretch.extend();
            assert!(stretch.outcome(0).is_none() && stretch.failures().is_empty());
            completion.complete(outcome);
            stretch
        };
        let stored = outcome(Ok(Stored {
            base_offset: Some(40),
            kept: Kept::All,
            refused: Refusals::None,
            append_time_ms: 7,
            duplicate: false,
        }));
        stored.settled().await;
        let offset = |index| stored.outcome(index).map(|outcome| outcome.unwrap().offset);
        assert_eq!(
            (offset(0), offset(1), offset(2)),
            (Some(Some(45)), Some(Some(46)), None)
        );
        assert!(stored.failures().is_empty());
        let failed = outcome(Err(Error::closed("producer")));
        failed.settled().await;
        let failures = failed.failures();
        assert_eq!(failures.len(), 1);
        assert_eq!(failures[0].0, 0..2);
    }
}
