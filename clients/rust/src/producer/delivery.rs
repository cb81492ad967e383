//! The outcome of a record, shared by all records of its batch.
//!
//! A batch has one [`Completion`]; each record's [`Delivery`] is a place in it. So a record costs one
//! reference count, not a channel. Deliberately absent: memory accounting and counters.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::error::{Error, Result};
use crate::record::RecordMetadata;

/// What the broker said of a stored batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored {
    /// Offset of the first record, when the place of every record follows from it.
    pub(crate) base_offset: Option<u64>,
    pub(crate) append_time_ms: i64,
    pub(crate) duplicate: bool,
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
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
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
}

/// Resolves when the record's batch is stored (durably, unless the producer asked for less) or given
/// up. Dropping it does not take the record back.
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
        let state = self
            .completion
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        state.outcome.as_ref().map(|outcome| self.of(outcome))
    }

    fn of(&self, outcome: &Result<Stored>) -> Result<RecordMetadata> {
        outcome
            .as_ref()
            .map_err(Error::clone)
            .map(|stored| RecordMetadata {
                topic: Arc::clone(&self.completion.topic),
                partition: self.completion.partition,
                offset: stored.base_offset.map(|base| base + u64::from(self.index)),
                append_time_ms: stored.append_time_ms,
                duplicate: stored.duplicate,
            })
    }
}

impl Future for Delivery {
    type Output = Result<RecordMetadata>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self
            .completion
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
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
}
