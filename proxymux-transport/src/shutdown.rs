//! The end of a daemon: first signal drains, second ends at once.
//!
//! Owns the signals and the two tokens that carry them; what draining means is the daemon's.
//! Read [`Shutdown`] first.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The wish to end, in two steps.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Cancelled by the first signal: take nothing new, let the old finish.
    pub drain: CancellationToken,
    /// Cancelled by a second signal, and by a drain that is out of time: end the rest.
    pub force: CancellationToken,
}

impl Shutdown {
    /// Listens for SIGTERM and SIGINT, for the rest of the process's life.
    ///
    /// # Errors
    ///
    /// When the handlers cannot be installed.
    pub fn on_signals() -> io::Result<Self> {
        let shutdown = Self::default();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let tokens = shutdown.clone();
        // Ends with the runtime: there is nothing to join it for.
        tokio::spawn(async move {
            loop {
                let name = tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                };
                if tokens.drain.is_cancelled() {
                    tracing::warn!(signal = name, "second signal, ending at once");
                    tokens.force.cancel();
                } else {
                    tracing::info!(signal = name, "draining, a second signal ends at once");
                    tokens.drain.cancel();
                }
            }
        });
        Ok(shutdown)
    }
}
