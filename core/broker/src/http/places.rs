//! Who is served over HTTP at a time. A probe has to get an answer whatever others do, so nobody waits for a
//! place: past the most, the connection that has been there for longest goes. A probe is over in a moment; who
//! goes is one that does not read, or does not ask.

use std::collections::VecDeque;

use tokio::task::AbortHandle;

/// Connections at a time, oldest first.
#[derive(Debug)]
pub(super) struct Places {
    connections: VecDeque<AbortHandle>,
    most: usize,
}

impl Places {
    pub(super) fn new(most: usize) -> Self {
        Self {
            connections: VecDeque::new(),
            most,
        }
    }

    /// Make room for one more; whether another went for it.
    pub(super) fn make_room(&mut self) -> bool {
        self.connections.retain(|task| !task.is_finished());
        let full = self.connections.len() >= self.most;
        if full && let Some(oldest) = self.connections.pop_front() {
            oldest.abort();
        }
        full
    }

    pub(super) fn take(&mut self, task: AbortHandle) {
        self.connections.push_back(task);
    }
}
