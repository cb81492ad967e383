//! Ctrl-C: the first asks to stop, the second stops now.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::exit::Outcome;
use crate::output::note;

/// Exit code of a process that a second Ctrl-C stopped.
const STOPPED_NOW: i32 = 130;

/// Tells whether the user asked to stop.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt(watch::Receiver<bool>);

impl Interrupt {
    /// Take SIGINT and SIGTERM from here on. Needs a runtime that is running.
    pub(crate) fn listen() -> Outcome<Self> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let (tell, told) = watch::channel(false);
        tokio::spawn(async move {
            tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} }
            let _ = tell.send(true);
            tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} }
            note("stopped at once");
            std::process::exit(STOPPED_NOW);
        });
        Ok(Self(told))
    }

    /// Wait until the user asks to stop. Safe to cancel.
    pub(crate) async fn wait(&mut self) {
        if self.0.wait_for(|asked| *asked).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
