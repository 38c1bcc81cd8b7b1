//! The agent's metrics: the registry and every name in it.
//!
//! Owns what is counted about this agent and the closed lists of its labels. What both daemons
//! count alike is in `proxymux_transport::metrics`. A new part gets a field here and is registered
//! in [`Metrics::new`]; `docs/metrics.md` is made from the result, and a test compares them.

use std::{fmt, sync::Arc};

use proxymux_proto::{EndCode, RefuseCode};
use proxymux_transport::{
    memory::MemoryBudget,
    metrics::{
        Counters, Histogram, MemoryMetrics, Moments, ProcessMetrics, Registry, SessionMetrics,
        StreamMetrics, certificate_expiry, counters, encode, end_words, registry, times,
    },
    reload::Certificates,
    splice::Pipes,
    telemetry::Path,
};

use crate::{
    flows::FlowMetrics,
    session::EstablishError,
    steering::{
        SteeredMetrics, Steering, SteeringMetrics,
        report::{SteeringCollector, Tally},
    },
};

/// All metrics of one run of the agent.
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) sessions: SessionMetrics,
    /// Why the agent dials a master once more: its last session ended, or the attempt failed.
    pub(crate) reconnects: Counters,
    pub(crate) streams: StreamMetrics,
    /// Requests of masters that came to no relay.
    pub(crate) refused: Counters,
    pub(crate) dials: Histogram,
    pub(crate) flows: FlowMetrics,
    pub(crate) steering: SteeringMetrics,
    /// What the agent has seen of steered connections.
    pub(crate) tally: Arc<Tally>,
    pub(crate) steered: SteeredMetrics,
    /// When what is in force expires, by the words of [`CERTIFICATES`].
    expiry: Moments,
}

impl Metrics {
    pub(crate) fn new(memory: &Arc<MemoryBudget>, steering: &Arc<Steering>, pipes: &Pipes) -> Self {
        let mut registry = registry("proxymux_agent", env!("CARGO_PKG_VERSION"));
        let r = &mut registry;
        ProcessMetrics::register(r);
        MemoryMetrics::register(r, memory);
        let sessions = SessionMetrics::register(r);
        let reasons: Vec<_> = FAILURES.iter().copied().chain(end_words()).collect();
        let reconnects = counters(
            r,
            (
                "session_reconnects",
                "Times that a master was to be dialled again, by why the last attempt failed or the last session ended",
            ),
            "reason",
            &reasons,
        );
        let streams = StreamMetrics::register(r, PATHS);
        let reasons: Vec<_> = RefuseCode::WORDS
            .iter()
            .copied()
            .chain([CANCELLED])
            .collect();
        let refused = counters(
            r,
            (
                "streams_refused",
                "Requests of masters, on streams and flows, that came to no connection, by the reason that the access log has",
            ),
            "reason",
            &reasons,
        );
        let dials = times(
            r,
            "dial_duration",
            "How long connecting to the kubelet or another target took, successful or not",
        );
        let flows = FlowMetrics::register(r);
        pipes.register(r);
        let tally = Arc::<Tally>::default();
        SteeringCollector::register(r, steering, &tally);
        let steering = SteeringMetrics::register(r);
        let steered = SteeredMetrics::register(r);
        let expiry = certificate_expiry(r, CERTIFICATES);
        Self {
            registry,
            sessions,
            reconnects,
            streams,
            refused,
            dials,
            flows,
            steering,
            tally,
            steered,
            expiry,
        }
    }

    /// Everything in Prometheus' text form.
    pub(crate) fn scrape(&self) -> String {
        encode(&self.registry)
    }
}

impl Metrics {
    /// Shows when what is in force expires.
    pub(crate) fn show_expiry(&self, certificates: &Certificates) {
        let expiry = certificates.expiry();
        self.expiry.set("own", expiry.map(|e| e.certificate));
        self.expiry.set("ca", expiry.map(|e| e.first_ca));
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// The word for why there is no session, from [`FAILURES`] or [`EndCode::WORDS`].
pub(crate) fn failure_word(error: &EstablishError) -> &'static str {
    use EstablishError as E;
    match error {
        E::Waiting(_) | E::Certificates(_) | E::Blocking(_) => "certificates",
        E::Connect(_) | E::Socket(_) => "connect",
        E::Tls(_) | E::FlowKeys(_) | E::TlsAfterwards(_) | E::HandshakeUnanswered { .. } => "tls",
        E::Over(_) | E::Open(_) | E::Send(_) | E::Unexpected(_) | E::NotAnswered(_) => {
            "registration"
        }
        E::LargeLost { .. } => SEGMENTS,
        E::Rejected(end) => end.code.as_str(),
        E::Version { .. } => EndCode::Version.as_str(),
    }
}

/// The word for a session that is replaced because this agent has another certificate.
pub(crate) const RENEWED: &str = "renewed";

const FAILURES: &[&str] = &[
    "certificates",
    "connect",
    "tls",
    "registration",
    RENEWED,
    SEGMENTS,
];

/// The word for large segments that are lost, or are tried again.
pub(crate) const SEGMENTS: &str = "segments";

/// The word for a request that the master took back.
pub(crate) const CANCELLED: &str = "cancelled";

const PATHS: &[Path] = &[Path::Session, Path::Reverse, Path::Direct, Path::Steered];

/// Our own certificate, and the CA certificate that masters are checked with.
const CERTIFICATES: &[&str] = &["own", "ca"];

#[cfg(test)]
mod tests {
    use proxymux_transport::config_file::values::ByteSize;

    use std::fs;

    use proxymux_transport::metrics::with_section;

    use super::*;

    fn fresh() -> Metrics {
        let memory = MemoryBudget::new(ByteSize::mib(64));
        Metrics::new(&memory, &Steering::userspace("test"), &Pipes::off())
    }

    #[test]
    fn a_fresh_agent_shows_every_metric_and_no_open_thing() {
        let metrics = fresh();
        let text = metrics.scrape();

        for zero in [
            "proxymux_agent_sessions_open 0",
            "proxymux_agent_streams_open{path=\"session\"} 0",
            "proxymux_agent_streams_refused_total{reason=\"not-allowed\"} 0",
            "proxymux_agent_session_reconnects_total{reason=\"connect\"} 0",
            "proxymux_agent_session_reconnects_total{reason=\"silent\"} 0",
            "proxymux_agent_dial_duration_seconds_count 0",
            "proxymux_agent_steering_packets_total{verdict=\"assigned\"} 0",
            "proxymux_agent_steering_bytes_total{verdict=\"dropped\"} 0",
            "proxymux_agent_steering_drift 0",
        ] {
            assert!(text.lines().any(|line| line == zero), "{zero} in:\n{text}");
        }
    }

    /// With `PROXYMUX_UPDATE_DOCS` set it writes the list anew: `cargo xtask gen-docs`.
    #[test]
    fn the_document_of_metrics_is_up_to_date() {
        let metrics = fresh();
        for word in CERTIFICATES {
            metrics
                .expiry
                .set(word, Some(std::time::SystemTime::UNIX_EPOCH));
        }
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
        let written = fs::read_to_string(path).unwrap();

        let expected =
            with_section(&written, "agent", &metrics.registry).expect("a section for it");

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
