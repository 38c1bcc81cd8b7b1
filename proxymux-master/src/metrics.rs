//! The master's metrics: the registry and every name in it.
//!
//! Owns what is counted about this master and the closed lists of its labels. What both daemons
//! count alike is in `proxymux_transport::metrics`. A new part gets a field here and is registered
//! in [`Metrics::new`]; `docs/metrics.md` is made from the result, and a test compares them.

use std::{fmt, sync::Arc};

use proxymux_proto::{AbortCode, EndCode, FlowDirection};
use proxymux_transport::{
    flow::FlowFault,
    memory::MemoryBudget,
    metrics::{
        Counter, Counters, Gauge, Histogram, MemoryMetrics, Moments, ProcessMetrics, Registry,
        SessionMetrics, StreamMetrics, certificate_expiry, counter, counters, encode, end_words,
        gauge, registry, times,
    },
    reload::Certificates,
    splice::Pipes,
    telemetry::Path,
};

use crate::{flows, front_door::Status, kubernetes::ObjectMetrics, opening};

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
    pub(crate) turns: TurnMetrics,
    pub(crate) flows: Arc<FlowMetrics>,
    /// What is known by the API server.
    pub(crate) objects: ObjectMetrics,
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

/// What is counted about requests that wait because their node has too many dials pending.
#[derive(Clone, Debug)]
pub(crate) struct TurnMetrics {
    /// Those that wait now.
    pub(crate) waiting: Gauge,
    /// Those that waited, by what came of it.
    pub(crate) waited: Counters,
}

/// What is counted about flows.
#[derive(Clone, Debug)]
pub(crate) struct FlowMetrics {
    /// Flows that wait for a request.
    pub(crate) idle: Gauge,
    /// Attempts to open a target through a flow, by path and result.
    pub(crate) opens: Counters<2>,
    /// Why connections did not take a faster path.
    pub(crate) passed_over: Counters,
    /// Hellos that were not believed, or not wanted.
    pub(crate) hellos_refused: Counters,
    /// What probes of the direct path met.
    pub(crate) probes: Counters,
    /// Why agents gave up flows, as far as they said.
    pub(crate) aborted: Counters,
}

impl Metrics {
    pub(crate) fn new(memory: &Arc<MemoryBudget>, pipes: &Pipes) -> Self {
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
        let turns = TurnMetrics::register(r);
        let flows = Arc::new(FlowMetrics::register(r));
        pipes.register(r);
        let objects = ObjectMetrics::register(r);
        let expiry = certificate_expiry(r, CERTIFICATES);
        Self {
            registry,
            sessions,
            sessions_closed,
            registrations_refused,
            arrivals_failed,
            streams,
            doors,
            turns,
            flows,
            objects,
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

impl TurnMetrics {
    fn register(r: &mut Registry) -> Self {
        Self {
            waiting: gauge(
                r,
                "dials_waiting",
                "Requests that wait because their node has max-pending-dials-per-node pending",
            ),
            waited: counters(
                r,
                (
                    "dials_waited",
                    "Requests that waited for such a turn, by what came of it",
                ),
                "result",
                opening::WAITED,
            ),
        }
    }
}

impl FlowMetrics {
    /// Registers the metrics.
    pub(crate) fn register(r: &mut Registry) -> Self {
        let refusals: Vec<_> = FlowFault::WORDS
            .iter()
            .chain(flows::hello::HelloError::OWN_WORDS)
            .copied()
            .collect();
        let directions = [FlowDirection::Reverse, FlowDirection::Direct].map(FlowDirection::as_str);
        let opens = Counters::of_pairs(["path", "result"], &directions, flows::RESULTS);
        r.register(
            "flow_opens",
            "Attempts to open a target through a flow, by how they ended",
            opens.clone(),
        );
        Self {
            idle: gauge(
                r,
                "flows_idle",
                "Flows of the reverse path that wait for a request",
            ),
            opens,
            passed_over: counters(
                r,
                (
                    "paths_passed_over",
                    "Connections that did not take the direct path, by why, or why not even a flow",
                ),
                "reason",
                flows::Why::WORDS,
            ),
            hellos_refused: counters(
                r,
                (
                    "flow_hellos_refused",
                    "Connections on the port for agents that began as a flow does and became none",
                ),
                "reason",
                &refusals,
            ),
            probes: counters(
                r,
                (
                    "direct_probes",
                    "Probes of the direct path, by what they met",
                ),
                "result",
                flows::direct::Met::WORDS,
            ),
            aborted: counters(
                r,
                ("flows_aborted", "Flows that an agent gave up and said why"),
                "code",
                AbortCode::WORDS,
            ),
        }
    }
}

/// How the payload of a master's relayed connections travels.
const PATHS: &[Path] = &[Path::Session, Path::Reverse, Path::Direct, Path::Route];

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

    fn metrics() -> Metrics {
        Metrics::new(&MemoryBudget::new(ByteSize::mib(64)), &Pipes::new(0))
    }

    #[test]
    fn a_fresh_master_shows_every_metric_and_no_open_thing() {
        let metrics = metrics();
        let text = metrics.scrape();

        for zero in [
            "proxymux_master_sessions_open 0",
            "proxymux_master_sessions_closed_total{reason=\"silent\"} 0",
            "proxymux_master_streams_open{path=\"route\"} 0",
            "proxymux_master_requests_refused_total{reason=\"unavailable\"} 0",
            "proxymux_master_registrations_refused_total{reason=\"superseded\"} 0",
            "proxymux_master_arrivals_failed_total{reason=\"tls\"} 0",
            "proxymux_master_open_duration_seconds_count 0",
            "proxymux_master_dials_waiting 0",
            "proxymux_master_dials_waited_total{result=\"late\"} 0",
            "proxymux_master_flows_idle 0",
            "proxymux_master_streams_open{path=\"direct\"} 0",
            "proxymux_master_flow_opens_total{path=\"reverse\",result=\"given-up\"} 0",
            "proxymux_master_flow_hellos_refused_total{reason=\"replayed\"} 0",
            "proxymux_master_flow_hellos_refused_total{reason=\"pool-full\"} 0",
            "proxymux_master_paths_passed_over_total{reason=\"not-tls\"} 0",
            "proxymux_master_direct_probes_total{result=\"not-direct\"} 0",
            "proxymux_master_flows_aborted_total{code=\"not-tls\"} 0",
            "proxymux_master_node_objects_watching 0",
            "proxymux_master_node_objects_failures_total{reason=\"forbidden\"} 0",
            "proxymux_master_node_objects_failures_total{reason=\"access\"} 0",
        ] {
            assert!(text.lines().any(|line| line == zero), "{zero} in:\n{text}");
        }
    }

    /// With `PROXYMUX_UPDATE_DOCS` set it writes the list anew: `cargo xtask gen-docs`.
    #[test]
    fn the_document_of_metrics_is_up_to_date() {
        let metrics = metrics();
        for word in CERTIFICATES {
            metrics
                .expiry
                .set(word, Some(std::time::SystemTime::UNIX_EPOCH));
        }
        metrics.objects.pretend();
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
