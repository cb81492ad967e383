//! After recovery, before the first client: every shard knows the catalog, every component is loaded, and every
//! deployed filter was started once.
//!
//! Components and filters are dealt with some at a time, so that one that is slow holds up a part of the others
//! alone. A filter's start ends with its own budget of time; how far it is, is said when it takes long.
//! Absent: what becomes of batches whose filter does not start (`on_error`).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use millstream_machine::topics::TopicMeta;
use millstream_shard::call::{Answer, Call};
use millstream_shard::driver::Deployments;
use rustc_hash::FxHashSet;

use crate::Error;
use crate::broker::Shared;
use crate::catalog::spread;

/// Components that are loaded, or filters that are started, at a time.
const TOGETHER: usize = 4;
/// How often it is said how far the filters are.
const TELL_EVERY: Duration = Duration::from_secs(5);

pub(crate) async fn settle(shared: &Shared) -> Result<(), Error> {
    // A shard that is full or read-only still serves what it has, and is told as soon as it can be.
    if let Err(error) = spread(&shared.shards, u64::MAX).await {
        tracing::warn!(error = error.message, "the catalogue cannot be spread yet");
    }
    let Answer::Catalog { topics, .. } = shared
        .shards
        .catalog()
        .call(Call::WatchCatalog {
            seen: 0,
            wait_ms: 0,
        })
        .await
    else {
        return Ok(()); // reported by whoever asks next
    };
    let digests: FxHashSet<[u8; 32]> = topics
        .iter()
        .flat_map(|topic| &topic.filters)
        .map(|binding| binding.digest)
        .collect();
    let deploying = shared.components.deploying.lock().await;
    shared.components.sweep(digests.clone()).await;
    let all: Vec<[u8; 32]> = digests.iter().copied().collect();
    for together in all.chunks(TOGETHER) {
        let mut loading = tokio::task::JoinSet::new();
        for &digest in together {
            let components = Arc::clone(&shared.components);
            loading.spawn(async move { components.load(digest).await });
        }
        while let Some(loaded) = loading.join_next().await {
            let why = match loaded {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error.message,
                Err(error) => error.to_string(),
            };
            tracing::error!(
                error = why,
                "a deployed component is lost: its topics fail closed"
            );
        }
    }
    shared.components.sweep_compiled(digests).await;
    drop(deploying);
    let deployments = Arc::clone(&shared.plugins.deployments);
    let started = tokio::task::spawn_blocking(move || start_filters(&deployments, &topics)).await;
    started.map_err(|error| Error::Internal(format!("starting filters ended badly: {error}")))
}

/// A component may not start under a newer broker, or on a smaller machine: that is known before its first batch.
fn start_filters(deployments: &Deployments, topics: &[TopicMeta]) {
    let filters = topics
        .iter()
        .flat_map(|topic| topic.filters.iter().map(move |binding| (topic, binding)));
    let filters: Vec<_> = filters.collect();
    let told = Mutex::new(Instant::now());
    some_at_a_time(filters.len(), |at, done| {
        let (topic, binding) = filters[at];
        if let Err(error) = deployments.try_start(topic.id, binding) {
            tracing::error!(
                topic = topic.name,
                filter = binding.name,
                %error,
                "a deployed filter does not start: its on_error says what becomes of batches"
            );
        }
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.elapsed() >= TELL_EVERY {
            *told = Instant::now();
            tracing::info!(
                done,
                of = filters.len(),
                "deployed filters are started before clients are let in"
            );
        }
    });
}

/// Do each of `count` things once, [`TOGETHER`] at a time or as many as there are threads to be had. Each hears
/// how many were through before it.
fn some_at_a_time(count: usize, each: impl Fn(usize, usize) + Sync) {
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= count {
                return;
            }
            each(at, done.load(Ordering::Relaxed));
            done.fetch_add(1, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..TOGETHER.min(count) {
            let thread = std::thread::Builder::new().name("start-filters".to_owned());
            if thread.spawn_scoped(scope, work).is_err() {
                break; // a limit of the process: those there are do it
            }
        }
        work();
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Condvar;

    use super::*;

    #[test]
    fn each_is_done_once_and_one_that_is_slow_does_not_hold_up_the_others() {
        const PATIENCE: Duration = Duration::from_secs(60);
        const COUNT: usize = 40;
        let (through, changed) = (Mutex::new(vec![0_u32; COUNT]), Condvar::new());
        some_at_a_time(COUNT, |at, _| {
            let mut through = through.lock().expect("nobody panics with it");
            if at == 0 {
                // Until all others are through.
                let others = |through: &mut Vec<u32>| through[1..].contains(&0);
                let waited = changed.wait_timeout_while(through, PATIENCE, others);
                let (mut through, timeout) = waited.expect("nobody panics with it");
                assert!(!timeout.timed_out(), "the others waited for it");
                through[0] += 1;
                return;
            }
            through[at] += 1;
            changed.notify_all();
        });
        assert_eq!(*through.lock().expect("nobody panics with it"), [1; COUNT]);
        some_at_a_time(0, |_, _| unreachable!("there is nothing to do"));
    }
}
