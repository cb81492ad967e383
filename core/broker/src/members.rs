//! Which members of groups have a stream now, and from where: for descriptions.
//!
//! Volatile, and of all threads together. Absent: membership itself, which is the home shard's, and lasts
//! for a while without a stream.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use millstream_batch::ids::{GroupEpoch, MemberId};
use rustc_hash::FxHashMap;

use crate::broker::Shared;

/// A member of a group, by the epoch of its newest join.
type Key = (MemberId, GroupEpoch);

/// See the module's header.
#[derive(Debug, Default)]
pub(crate) struct Members(Mutex<FxHashMap<String, FxHashMap<Key, SocketAddr>>>);

impl Members {
    /// Where the stream of this member comes from, if it has one.
    pub(crate) fn address(
        &self,
        group: &str,
        member: MemberId,
        joined: GroupEpoch,
    ) -> Option<SocketAddr> {
        self.lock().get(group)?.get(&(member, joined)).copied()
    }

    fn lock(&self) -> MutexGuard<'_, FxHashMap<String, FxHashMap<Key, SocketAddr>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A member's stream lives.
pub(crate) struct Present {
    shared: Arc<Shared>,
    group: String,
    key: Key,
}

impl Present {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        group: &str,
        member: MemberId,
        joined: GroupEpoch,
        address: SocketAddr,
    ) -> Self {
        let key = (member, joined);
        let mut members = shared.members.lock();
        members
            .entry(group.to_owned())
            .or_default()
            .insert(key, address);
        Self {
            shared: Arc::clone(shared),
            group: group.to_owned(),
            key,
        }
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        let mut members = self.shared.members.lock();
        if let Some(group) = members.get_mut(&self.group) {
            group.remove(&self.key);
            if group.is_empty() {
                members.remove(&self.group);
            }
        }
    }
}

impl std::fmt::Debug for Present {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Present").field(&self.key).finish()
    }
}
