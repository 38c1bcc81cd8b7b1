//! Metrics of sessions that both ends have alike.
//!
//! Owns how many there are, their round trips, how long their drains take, and the words for why
//! one ended. Read [`end_word`] for those.

use std::time::Duration;

use proxymux_proto::EndCode;

use super::{Gauge, GaugeGuard, Histogram, Registry, gauge, long_times, times};
use crate::{mux::SessionFault, session::SessionOver};

/// Metrics of all sessions of a daemon.
#[derive(Debug)]
pub struct SessionMetrics {
    open: Gauge,
    rtt: Histogram,
    drain: Histogram,
}

impl SessionMetrics {
    /// Registers the metrics.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        Self {
            open: gauge(
                registry,
                "sessions_open",
                "Sessions that stand, those that only finish their streams included",
            ),
            rtt: times(
                registry,
                "session_rtt",
                "Round trips on sessions, one for each answered ping",
            ),
            drain: long_times(
                registry,
                "drain_duration",
                "How long sessions took to end once they took no new streams",
            ),
        }
    }

    /// Counts a session until the guard is dropped.
    #[must_use]
    pub fn open(&self) -> GaugeGuard {
        GaugeGuard::new(&self.open)
    }

    /// Notes the round trip that an answered ping has measured.
    pub fn round_trip(&self, rtt: Duration) {
        self.rtt.observe(rtt.as_secs_f64());
    }

    /// Notes how long a session took from its last new stream to its end.
    pub fn drained(&self, took: Duration) {
        self.drain.observe(took.as_secs_f64());
    }
}

/// The word for why a session is over that nobody ended in words.
#[must_use]
pub fn end_word(over: &SessionOver) -> &'static str {
    match over {
        SessionOver::Silent(_) => "silent",
        SessionOver::Fault(SessionFault::Closed | SessionFault::ClosedHere) => "closed",
        SessionOver::Fault(SessionFault::CutOff) => "cut-off",
        SessionOver::Fault(SessionFault::Io(_)) => "connection",
        SessionOver::Fault(SessionFault::Protocol(_)) | SessionOver::Control(_) => "broken",
    }
}

/// Every word for why a session ended: those of [`end_word`], a drain, and what the side that
/// ended it may say.
#[must_use]
pub fn end_words() -> Vec<&'static str> {
    let unsaid = ["silent", "closed", "cut-off", "connection", "broken", DRAIN];
    unsaid
        .into_iter()
        .chain(EndCode::WORDS.iter().copied())
        .collect()
}

/// The word for a session that was drained.
pub const DRAIN: &str = "drain";
