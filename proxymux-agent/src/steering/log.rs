//! What the programs say of their decisions, in the agent's log.
//!
//! Owns the ring buffer of the object that logs, which is loaded only where debug logging is on.

use std::time::Duration;

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use tokio::time::sleep;

use super::load::LoadError;

/// The programs' words that nobody has read yet.
pub(super) struct ProgramLog(EbpfLogger<ToTracing>);

impl ProgramLog {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        match EbpfLogger::init_with_logger(ebpf, ToTracing) {
            Ok(logger) => Ok(Self(logger)),
            Err(error) => Err(LoadError::Log(error.to_string())),
        }
    }

    /// Hands on what the programs say, for ever.
    ///
    /// It looks now and then: these are a few lines per connection for who debugs.
    pub(super) async fn follow(mut self) {
        loop {
            self.0.flush();
            sleep(INTERVAL).await;
        }
    }
}

impl std::fmt::Debug for ProgramLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProgramLog").finish_non_exhaustive()
    }
}

/// Hands records of `aya-log`, which are of the crate `log`, to our own log.
struct ToTracing;

impl Log for ToTracing {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        tracing::enabled!(tracing::Level::DEBUG)
    }

    fn log(&self, record: &Record<'_>) {
        tracing::debug!(decision = %record.args(), "eBPF program");
    }

    fn flush(&self) {}
}

const INTERVAL: Duration = Duration::from_millis(200);
