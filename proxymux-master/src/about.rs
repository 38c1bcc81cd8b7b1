//! What is known of an agent with a session, to be shown to people.
//!
//! Owns nothing that anything is decided by. It is filled from the registration, whose text the
//! protocol has cut and made printable, and from the agent's certificate.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use proxymux_proto::Registration;
use proxymux_transport::telemetry::micros;
use tokio::time::Instant;

/// An agent as its session knows it.
#[derive(Debug)]
pub(crate) struct About {
    /// Since when the session stands.
    pub(crate) since: Instant,
    pub(crate) software: String,
    pub(crate) node_id: Option<String>,
    pub(crate) labels: BTreeMap<String, String>,
    /// When the certificate expires that the agent has shown.
    pub(crate) expires: SystemTime,
    /// The last round trip in microseconds; 0 before there was one.
    rtt_us: AtomicU64,
}

impl About {
    pub(crate) fn new(registration: &Registration, expires: SystemTime) -> Self {
        Self {
            since: Instant::now(),
            software: registration.software.clone(),
            node_id: registration.node_id.clone(),
            labels: registration.labels.clone(),
            expires,
            rtt_us: AtomicU64::new(0),
        }
    }

    /// Notes a round trip.
    pub(crate) fn round_trip(&self, rtt: Duration) {
        self.rtt_us.store(micros(rtt).max(1), Ordering::Relaxed);
    }

    /// The last round trip in microseconds.
    pub(crate) fn rtt_us(&self) -> Option<u64> {
        Some(self.rtt_us.load(Ordering::Relaxed)).filter(|us| *us > 0)
    }
}
