//! The kill switch's clock: a thread that advances the engine's epoch every millisecond while a
//! component runs, and sleeps while none does. Deliberately absent: deadlines (each store has its own,
//! counted in ticks).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{JoinHandle, park, sleep};
use std::time::Duration;

use crate::error::EngineError;

/// One tick. Time budgets are multiples of it.
const TICK: Duration = Duration::from_millis(1);
/// Ticks without a call before the thread parks. Waking it costs the caller a system call, so a busy
/// broker should rarely see it asleep.
const IDLE_TICKS_MAX: u32 = 50;

/// What callers and the thread share.
#[derive(Debug, Default)]
struct Shared {
    /// Calls in progress.
    active: AtomicU32,
    /// The thread is parked, or about to be.
    parked: AtomicBool,
    stop: AtomicBool,
}

/// Owns the thread; dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct Ticker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Ticks come while this is alive.
#[derive(Debug)]
pub(crate) struct Ticking<'a>(&'a Shared);

impl Ticker {
    pub(crate) fn start(engine: &wasmtime::Engine) -> Result<Self, EngineError> {
        let shared = Arc::new(Shared::default());
        let thread = std::thread::Builder::new()
            .name("plugin-ticker".into())
            .spawn({
                let shared = Arc::clone(&shared);
                let engine = engine.weak();
                move || {
                    run(&shared, || match engine.upgrade() {
                        Some(engine) => {
                            engine.increment_epoch();
                            true
                        }
                        None => false,
                    });
                }
            })
            .map_err(EngineError::Ticker)?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// To be held around every entry into a component.
    pub(crate) fn during_call(&self) -> Ticking<'_> {
        self.shared.active.fetch_add(1, Ordering::SeqCst);
        // Pairs with the thread's store of `parked` and load of `active`: under SeqCst at least one
        // side sees the other, so a call is never left without ticks.
        if self.shared.parked.load(Ordering::SeqCst) {
            self.wake();
        }
        Ticking(&self.shared)
    }

    fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Drop for Ticking<'_> {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // it cannot panic, and there is nobody to tell
        }
    }
}

fn run(shared: &Shared, tick: impl Fn() -> bool) {
    let mut idle_ticks = 0;
    while !shared.stop.load(Ordering::SeqCst) {
        if shared.active.load(Ordering::SeqCst) > 0 {
            idle_ticks = 0;
        } else if idle_ticks < IDLE_TICKS_MAX {
            idle_ticks += 1;
        } else {
            shared.parked.store(true, Ordering::SeqCst);
            while shared.active.load(Ordering::SeqCst) == 0 && !shared.stop.load(Ordering::SeqCst) {
                park();
            }
            shared.parked.store(false, Ordering::SeqCst);
            idle_ticks = 0;
            continue;
        }
        sleep(TICK);
        if !tick() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Once parked, the thread gives no tick until a call begins, and then gives one.
    #[test]
    fn parks_when_idle_and_wakes_for_a_call() {
        let shared = Arc::new(Shared::default());
        let (ticks, ticked) = mpsc::channel();
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || run(&shared, || ticks.send(()).is_ok())
        });
        while !shared.parked.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        while ticked.try_recv().is_ok() {}

        let ticker = Ticker {
            shared: Arc::clone(&shared),
            thread: Some(thread),
        };
        let ticking = ticker.during_call();
        ticked.recv().expect("a tick while a call is active");
        drop(ticking);
        drop(ticker); // joins, so it must end
    }
}
