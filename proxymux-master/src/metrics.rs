//! The master's metrics: the registry and every name in it.
//!
//! Owns what is counted about this master and the closed lists of its labels. What both daemons
//! count alike is in `proxymux_transport::metrics`. A new part gets a field here and is registered
//! in [`Metrics::new`]; `docs/metrics.md` is made from the result, and a test compares them.

use std::{fmt, sync::Arc};

use proxymux_proto::EndCode;
use proxymux_transport::{
    memory::MemoryBudget,
    metrics::{
        Counter, Counters, Gauge, Histogram, MemoryMetrics, Moments, ProcessMetrics, Registry,
        SessionMetrics, StreamMetrics, certificate_expiry, counter, counters, encode, end_words,
        gauge, registry, times,
    },
    reload::Certificates,
    telemetry::Path,
};

use crate::front_door::Status;

/// All metrics of one run of the master.
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) sessions: SessionMetrics,
    /// Why sessions ended.
    pub(crate) sessions_closed: Counters,
    /// Registrations that were refused, by what the agent was told.
    pub(crate) registrations_refused: Counters,
    /// Connections of agents, or others, that did not come as far as a registration.
    pub(crate) arrivals_failed: Counters,
    pub(crate) streams: StreamMetrics,
    pub(crate) doors: Arc<DoorMetrics>,
    /// When what is in force expires, by the words of [`CERTIFICATES`].
    expiry: Moments,
}

/// What is counted at the front doors.
#[derive(Clone, Debug)]
pub(crate) struct DoorMetrics {
    /// Connections that are served now.
    pub(crate) open: Gauge,
    /// Requests that were refused, by the words of [`Status`].
    pub(crate) refused: Counters,
    /// Requests whose client left before its answer.
    pub(crate) cancelled: Counter,
    /// From the connection to the answer 200.
    pub(crate) opened_after: Histogram,
}

impl Metrics {
    pub(crate) fn new(memory: &Arc<MemoryBudget>) -> Self {
        let mut registry = registry("proxymux_master", env!("CARGO_PKG_VERSION"));
        let r = &mut registry;
        ProcessMetrics::register(r);
        MemoryMetrics::register(r, memory);
        let sessions = SessionMetrics::register(r);
        let sessions_closed = counters(
            r,
            ("sessions_closed", "Sessions that ended, by why"),
            "reason",
            &end_words(),
        );
        let registrations_refused = counters(
            r,
            (
                "registrations_refused",
                "Agents that were refused, by the code that they were told",
            ),
            "reason",
            EndCode::WORDS,
        );
        let arrivals_failed = counters(
            r,
            (
                "arrivals_failed",
                "Connections on the port for agents that did not come as far as a registration",
            ),
            "reason",
            ARRIVALS,
        );
        let streams = StreamMetrics::register(r, PATHS);
        let doors = Arc::new(DoorMetrics::register(r));
        let expiry = certificate_expiry(r, CERTIFICATES);
        Self {
            registry,
            sessions,
            sessions_closed,
            registrations_refused,
            arrivals_failed,
            streams,
            doors,
            expiry,
        }
    }

    /// Everything in Prometheus' text form.
    pub(crate) fn scrape(&self) -> String {
        encode(&self.registry)
    }
}

impl Metrics {
    /// Shows when what is in force expires: at the session port, and the first of all doors.
    pub(crate) fn show_expiry(&self, agents: &Certificates, doors: &[Arc<Certificates>]) {
        let ours = agents.expiry();
        self.expiry.set("own", ours.map(|e| e.certificate));
        self.expiry.set("client-ca", ours.map(|e| e.first_ca));
        let doors = || doors.iter().filter_map(|door| door.expiry());
        self.expiry
            .set("front-door", doors().map(|e| e.certificate).min());
        self.expiry
            .set("front-door-client-ca", doors().map(|e| e.first_ca).min());
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl DoorMetrics {
    /// Registers the metrics.
    pub(crate) fn register(r: &mut Registry) -> Self {
        Self {
            open: gauge(
                r,
                "front_door_connections",
                "Connections of clients at the front doors, relayed ones included",
            ),
            refused: counters(
                r,
                (
                    "requests_refused",
                    "CONNECT requests that were refused, by the status that they got",
                ),
                "reason",
                Status::WORDS,
            ),
            cancelled: counter(
                r,
                "requests_cancelled",
                "CONNECT requests whose client left before its answer",
            ),
            opened_after: times(
                r,
                "open_duration",
                "From a client's connection to its answer 200, the dial on the node included",
            ),
        }
    }
}

/// How the payload of a master's relayed connections travels.
const PATHS: &[Path] = &[Path::Session, Path::Route];

/// Why a connection came to no registration, see `agents.rs`.
pub(crate) const ARRIVALS: &[&str] = &[
    "silent",
    "gone",
    "connection",
    "tls",
    "identity",
    "registration",
    "evicted",
    "no-turn",
];

/// What agents are shown and checked with, and the same of all TCP front doors.
const CERTIFICATES: &[&str] = &["own", "client-ca", "front-door", "front-door-client-ca"];

#[cfg(test)]
mod tests {
    use proxymux_transport::config_file::values::ByteSize;

    use std::fs;

    use proxymux_transport::metrics::with_section;

    use super::*;

    #[test]
    fn a_fresh_master_shows_every_metric_and_no_open_thing() {
        let metrics = Metrics::new(&MemoryBudget::new(ByteSize::mib(64)));
        let text = metrics.scrape();

        for zero in [
            "proxymux_master_sessions_open 0",
            "proxymux_master_sessions_closed_total{reason=\"silent\"} 0",
            "proxymux_master_streams_open{path=\"route\"} 0",
            "proxymux_master_requests_refused_total{reason=\"unavailable\"} 0",
            "proxymux_master_registrations_refused_total{reason=\"superseded\"} 0",
            "proxymux_master_arrivals_failed_total{reason=\"tls\"} 0",
            "proxymux_master_open_duration_seconds_count 0",
        ] {
            assert!(text.lines().any(|line| line == zero), "{zero} in:\n{text}");
        }
    }

    /// With `PROXYMUX_UPDATE_DOCS` set it writes the list anew: `cargo xtask gen-docs`.
    #[test]
    fn the_document_of_metrics_is_up_to_date() {
        let metrics = Metrics::new(&MemoryBudget::new(ByteSize::mib(64)));
        for word in CERTIFICATES {
            metrics
                .expiry
                .set(word, Some(std::time::SystemTime::UNIX_EPOCH));
        }
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
        let written = fs::read_to_string(path).unwrap();

        let expected =
            with_section(&written, "master", &metrics.registry).expect("a section for it");

        if std::env::var_os("PROXYMUX_UPDATE_DOCS").is_some() {
            fs::write(path, &expected).unwrap();
        } else {
            assert_eq!(
                written, expected,
                "bring it up to date: cargo xtask gen-docs"
            );
        }
    }
}
