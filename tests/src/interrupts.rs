//! The signals that ask a program in a terminal to end.
//!
//! For the programs of this package, which have made machines that they want to remove first.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};

/// Listens for SIGINT, SIGTERM and SIGHUP from when it is made.
#[derive(Debug)]
pub struct Interrupts {
    ctrl_c: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Interrupts {
    /// Begins to listen.
    ///
    /// # Errors
    ///
    /// The handlers could not be installed.
    pub fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            ctrl_c: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one. Cancel-safe.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.ctrl_c.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }

    /// Whether one has come, or is just about to.
    pub async fn came(&mut self) -> bool {
        timeout(JUST_ABOUT, self.next()).await.is_ok()
    }
}

/// How much later than our children we may notice a signal that was sent to all of us.
const JUST_ABOUT: Duration = Duration::from_millis(200);
