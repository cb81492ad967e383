//! What the callers of a producer and its driver share: what is gathered, who wakes whom, and totals.
//!
//! Deliberately absent: what is done with any of it.

use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::gather::Gathering;
use crate::error::Error;

/// What callers and driver share.
#[derive(Debug)]
pub(super) struct Shared {
    gathering: Mutex<Gathering>,
    /// Wakes the driver.
    pub(super) wake: Notify,
    /// Wakes callers that wait for memory.
    pub(super) room: Notify,
    /// Wakes callers that wait until batches are settled.
    pub(super) settled: Notify,
    pub(super) counters: Counters,
}

/// Running totals, in records unless said otherwise.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) acknowledged: AtomicU64,
    pub(super) duplicates: AtomicU64,
    pub(super) filtered: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) unknown: AtomicU64,
    pub(super) batches: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) first_error: Mutex<Option<Error>>,
}

impl Shared {
    pub(super) fn new(gathering: Gathering) -> Self {
        Self {
            gathering: Mutex::new(gathering),
            wake: Notify::new(),
            room: Notify::new(),
            settled: Notify::new(),
            counters: Counters::default(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Gathering> {
        self.gathering
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
