//! Worker threads for slow filters, and whose turn it is on them.
//!
//! ```text
//! shards, subscriptions ──submit──▶ one line for each topic ──in turns──▶ threads, each with a host
//! ```
//! A line has at most half of the threads at a time, so that one slow topic holds up no other. Absent on
//! purpose: the order of a partition's batches (whoever submits has one under way for each), answers
//! (the job carries its own way back).

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use millstream_batch::ids::TopicId;
use rustc_hash::FxHashMap;

use super::FilterHost;
use super::counts::FilterCounts;
use super::deployments::Deployments;

/// A worker that has nothing to do looks so often whether its instances are still needed.
const IDLE_LOOK: Duration = Duration::from_secs(5);

/// Work with a worker's filters. A job that is dropped was not done.
pub type Job = Box<dyn FnOnce(&mut FilterHost) + Send>;

/// Whose turns a job takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Turn {
    Topic(TopicId),
    /// For filters that its subscriptions brought.
    Connection(u64),
}

/// Threads that do jobs. Never blocks who submits.
pub trait WorkerPool: fmt::Debug + Send + Sync {
    fn submit(&self, turn: Turn, job: Job);

    /// Jobs that have not begun.
    fn waiting(&self) -> usize;
}

/// The threads. They end when this is dropped; a component that runs then ends with its time budget.
#[derive(Debug)]
pub struct Workers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    queue: Mutex<Queue>,
    news: Condvar,
}

struct Queue {
    turns: Turns<Job>,
    stop: bool,
}

impl Workers {
    /// Start `threads` of them, at least one. They inherit the caller's processor affinity.
    ///
    /// # Errors
    /// A thread could not be started.
    pub fn start(deployments: &Arc<Deployments>, threads: usize) -> io::Result<Self> {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue {
                turns: Turns::new(threads.div_ceil(2)),
                stop: false,
            }),
            news: Condvar::new(),
        });
        let mut workers = Self {
            shared,
            threads: Vec::new(),
        };
        for number in 0..threads {
            let shared = Arc::clone(&workers.shared);
            let deployments = Arc::clone(deployments);
            let thread = std::thread::Builder::new()
                .name(format!("filter-{number}"))
                .spawn(move || work(&shared, &deployments))?;
            workers.threads.push(thread);
        }
        Ok(workers)
    }
}

impl WorkerPool for Workers {
    fn submit(&self, turn: Turn, job: Job) {
        self.shared.queue().turns.push(turn, job);
        self.shared.news.notify_one();
    }

    fn waiting(&self) -> usize {
        self.shared.queue().turns.waiting
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let mut queue = self.shared.queue();
        queue.stop = true;
        let dropped = std::mem::replace(&mut queue.turns, Turns::new(1));
        drop(queue);
        drop(dropped); // each tells whoever waits that it was not done
        self.shared.news.notify_all();
        for thread in self.threads.drain(..) {
            drop(thread.join()); // it does not panic, and there is nobody to tell
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waiting = self.queue().turns.waiting;
        f.debug_struct("Shared")
            .field("waiting", &waiting)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Jobs run without the lock, and nothing else panics.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn work(shared: &Shared, deployments: &Arc<Deployments>) {
    let host = || FilterHost::of_worker(Arc::clone(deployments), Arc::new(FilterCounts::default()));
    let mut own = host();
    let mut queue = shared.queue();
    while !queue.stop {
        if let Some((turn, job)) = queue.turns.take() {
            drop(queue);
            if catch_unwind(AssertUnwindSafe(|| job(&mut own))).is_err() {
                tracing::error!(
                    "a filter's worker panicked: see the lines above; its batch is refused"
                );
                own = host();
            }
            queue = shared.queue();
            if queue.turns.done(turn) {
                shared.news.notify_one();
            }
        } else if own.is_cold() {
            queue = shared
                .news
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        } else {
            let waited = shared.news.wait_timeout(queue, IDLE_LOOK);
            let (locked, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            queue = locked;
            if timeout.timed_out() {
                drop(queue);
                own.keep_slow();
                queue = shared.queue();
            }
        }
    }
}

/// Lines of jobs that take turns, each with at most so many under way. Pure.
#[derive(Debug)]
struct Turns<T> {
    lines: FxHashMap<Turn, Line<T>>,
    /// Lines that have a job and may begin it, in order.
    ready: VecDeque<Turn>,
    running_max: usize,
    waiting: usize,
}

#[derive(Debug)]
struct Line<T> {
    jobs: VecDeque<T>,
    running: usize,
    is_ready: bool,
}

impl<T> Turns<T> {
    fn new(running_max: usize) -> Self {
        Self {
            lines: FxHashMap::default(),
            ready: VecDeque::new(),
            running_max,
            waiting: 0,
        }
    }

    fn push(&mut self, turn: Turn, job: T) {
        let line = self.lines.entry(turn).or_insert_with(|| Line {
            jobs: VecDeque::new(),
            running: 0,
            is_ready: false,
        });
        line.jobs.push_back(job);
        self.waiting += 1;
        self.look(turn);
    }

    /// The next job; say when it is [`done`](Self::done).
    fn take(&mut self) -> Option<(Turn, T)> {
        let turn = self.ready.pop_front()?;
        let line = self.lines.get_mut(&turn)?;
        line.is_ready = false;
        let job = line.jobs.pop_front()?;
        line.running += 1;
        self.waiting -= 1;
        self.look(turn);
        Some((turn, job))
    }

    /// A job of this line is over. Whether another may begin for that.
    fn done(&mut self, turn: Turn) -> bool {
        let Some(line) = self.lines.get_mut(&turn) else {
            return false;
        };
        line.running -= 1;
        if line.running == 0 && line.jobs.is_empty() {
            self.lines.remove(&turn);
        }
        self.look(turn)
    }

    /// Put a line at the end of those that may begin a job, if it may. Whether it did.
    fn look(&mut self, turn: Turn) -> bool {
        let Some(line) = self.lines.get_mut(&turn) else {
            return false;
        };
        let may = !line.is_ready && !line.jobs.is_empty() && line.running < self.running_max;
        if may {
            line.is_ready = true;
            self.ready.push_back(turn);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Turn = Turn::Connection(1);
    const B: Turn = Turn::Connection(2);

    #[test]
    fn lines_take_turns_in_the_order_they_came() {
        let mut turns = Turns::new(8);
        for (turn, job) in [(A, 1), (A, 2), (A, 3), (B, 4), (B, 5)] {
            turns.push(turn, job);
        }
        assert_eq!(turns.waiting, 5);
        let order: Vec<_> = std::iter::from_fn(|| turns.take()).collect();
        assert_eq!(order, [(A, 1), (B, 4), (A, 2), (B, 5), (A, 3)]);
        for (turn, _) in order {
            turns.done(turn);
        }
        assert!(turns.lines.is_empty() && turns.ready.is_empty());
    }

    #[test]
    fn a_line_at_its_bound_leaves_the_other_threads_free() {
        let mut turns = Turns::new(1);
        turns.push(A, 1);
        turns.push(A, 2);
        assert_eq!(turns.take(), Some((A, 1)));
        assert_eq!(turns.take(), None, "a thread stays free for others");
        turns.push(B, 3);
        assert_eq!(turns.take(), Some((B, 3)));
        assert!(!turns.done(B), "nothing of it waits");
        assert!(turns.done(A), "the next may begin");
        assert_eq!(turns.take(), Some((A, 2)));
    }
}
