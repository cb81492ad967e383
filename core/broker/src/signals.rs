//! What signals say to a broker in the foreground: stop, or read the settings again.

use std::fmt;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::Error;
use crate::config::Config;

/// What SIGHUP means to this broker.
pub enum Hangup {
    /// Read the settings again with this, and take their certificates and principals. The error is for the log.
    Reload(Box<dyn Fn() -> Result<Config, String>>),
    /// The terminal is gone: stop gracefully. Where SIGHUP was ignored when the process began (`nohup`), it
    /// stays so.
    Stop,
}

impl fmt::Debug for Hangup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reload(_) => "Reload",
            Self::Stop => "Stop",
        })
    }
}

/// What was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Stop,
    Hangup,
}

/// Stops a broker that [`run`](crate::run) runs, as a signal would.
#[derive(Clone, Debug)]
pub struct Stopper(mpsc::WeakUnboundedSender<Said>);

impl Stopper {
    /// Ask for a graceful stop. `false`: it stops already, for another reason.
    #[must_use]
    pub fn stop(&self) -> bool {
        self.0
            .upgrade()
            .is_some_and(|tell| tell.send(Said::Stop).is_ok())
    }
}

/// Listen on a thread of its own. A second word to stop ends the process at once.
pub(crate) fn listen(hangup: &Hangup) -> Result<(mpsc::UnboundedReceiver<Said>, Stopper), Error> {
    let (tell, told) = mpsc::unbounded_channel();
    let stopper = Stopper(tell.downgrade());
    let hears_hangup = matches!(hangup, Hangup::Reload(_)) || !ignores_hangup();
    let hangup_stops = matches!(hangup, Hangup::Stop);
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            if let Ok(runtime) = runtime {
                drop(runtime.block_on(hear(&tell, hears_hangup, hangup_stops)));
            }
        })
        .map_err(|error| Error::thread(&error))?;
    Ok((told, stopper))
}

async fn hear(
    tell: &mpsc::UnboundedSender<Said>,
    hears_hangup: bool,
    hangup_stops: bool,
) -> std::io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = match hears_hangup {
        true => Some(signal(SignalKind::hangup())?),
        false => None,
    };
    let mut stopping = false;
    loop {
        let said = tokio::select! {
            _ = interrupt.recv() => Said::Stop,
            _ = terminate.recv() => Said::Stop,
            () = next(&mut hangup) => Said::Hangup,
        };
        if said == Said::Stop || hangup_stops {
            if stopping {
                tracing::warn!("stopping at once");
                std::process::exit(130);
            }
            stopping = true;
        }
        // Nobody hears it while the broker stops; the second word to stop still counts.
        let _ = tell.send(said);
    }
}

async fn next(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// Whether the process began with SIGHUP ignored.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    is_ignored(&status, 1)
}

/// proc_pid_status(5): `SigIgn` is a mask in hexadecimal, the first signal its lowest bit.
fn is_ignored(status: &str, signal: u32) -> bool {
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_is_asked_for_until_there_is_one() {
        let (tell, mut told) = mpsc::unbounded_channel();
        let stopper = Stopper(tell.downgrade());
        assert!(stopper.stop());
        assert_eq!(told.try_recv(), Ok(Said::Stop));
        told.close();
        assert!(!stopper.stop(), "it stops already");
    }

    #[test]
    fn the_mask_of_ignored_signals_is_read() {
        let status = "Name:\tx\nSigIgn:\t0000000000001001\nSigCgt:\tffff\n";
        assert!(is_ignored(status, 1) && is_ignored(status, 13));
        assert!(!is_ignored(status, 2) && !is_ignored("", 1));
    }
}
