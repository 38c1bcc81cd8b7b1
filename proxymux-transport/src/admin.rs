//! The admin address of a daemon: health, readiness, metrics and status over HTTP.
//!
//! Owns the thread that serves it ([`Admin`]), its listener and every limit; leaves what is
//! answered to the daemon ([`Answers`]). The other side, which the commands use, is [`fetch`].
//! Over TCP it only reads, and is loopback only, which the configuration checks; what acts needs the
//! Unix socket, whose file says who may.
//!
//! The thread has a runtime of its own: a scrape of many nodes takes milliseconds, and a client
//! that dawdles takes a place, but never anything from relayed connections.

use std::{
    io,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::{config_file::values::AdminAddr, telemetry::chain};

mod client;
mod listener;
mod server;
#[cfg(test)]
mod tests;

pub use self::client::{FetchError, Reply, fetch, order};

/// What a daemon answers. Called on the admin thread; must not wait for long.
pub trait Answers: Send + Sync + 'static {
    /// Why the daemon cannot do its work, each reason a line; none if it can.
    fn unready(&self) -> Vec<String>;

    /// The metrics in Prometheus' text form.
    fn metrics(&self) -> String;

    /// The status as JSON.
    fn status(&self) -> serde_json::Value;

    /// What only this daemon answers, for commands of its own; `None` if there is no such path.
    /// The query is what follows the question mark, as it came.
    ///
    /// # Errors
    ///
    /// When the question makes no sense, or there can be no answer: why, in one line.
    fn other(&self, path: &str, query: &str) -> Option<Result<serde_json::Value, String>> {
        let _ = (path, query);
        None
    }

    /// Does something, or begins to, for commands of the daemon's own; `None` if there is no such
    /// path. Only asked by those who may use the Unix socket.
    ///
    /// # Errors
    ///
    /// When the order makes no sense, or cannot be followed: why, in one line.
    fn act(&self, path: &str, query: &str) -> Option<Result<serde_json::Value, String>> {
        let _ = (path, query);
        None
    }
}

/// The running admin address. Dropping it closes the address and ends its thread.
#[derive(Debug)]
pub struct Admin {
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Admin {
    /// Serves `answers` at an address, from a thread of its own. To be called in the daemon's
    /// runtime, whose liveness is answered for.
    ///
    /// An address that cannot be had is logged and tried again, for as long as it takes: it is
    /// no reason not to relay, and during an update the old daemon may still have it.
    ///
    /// # Errors
    ///
    /// When there can be no thread or runtime.
    pub fn start(at: AdminAddr, answers: Arc<dyn Answers>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let daemon = Handle::current();
        let thread = thread::Builder::new()
            .name("admin".to_owned())
            .spawn(move || {
                let serving = serve(at, answers, daemon);
                runtime.block_on(stopped.run_until_cancelled(serving));
            })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // It waits for nothing but its clients, who are cut off. If it panicked, the panic
            // has been logged.
            let _ = thread.join();
        }
    }
}

/// Opens the address as soon as it can be had, and serves it for ever.
async fn serve(at: AdminAddr, answers: Arc<dyn Answers>, daemon: Handle) {
    let mut trouble = None;
    let listener = loop {
        match listener::Listener::bind(&at).await {
            Ok(listener) => break listener,
            Err(error) => {
                let text = chain(&error);
                if trouble.as_ref() != Some(&text) {
                    tracing::warn!(admin = %at, error = text, "no admin address, trying on");
                    trouble = Some(text);
                }
                tokio::time::sleep(TRY_AGAIN).await;
            }
        }
    };
    tracing::info!(admin = %listener.name(), "admin address open");
    server::Server::new(answers, daemon, listener.is_tcp())
        .run(&listener)
        .await;
}

/// How long an address is left alone that another has.
const TRY_AGAIN: Duration = Duration::from_secs(2);
