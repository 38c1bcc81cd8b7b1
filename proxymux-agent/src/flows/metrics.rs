//! Metrics of flows, besides those of what they relay, which are the streams' with another `path`.
//!
//! Owns the names and the closed lists of their labels. Flows that come to no relay because of
//! their request are among `streams_refused`.

use proxymux_proto::FlowDirection;
use proxymux_transport::{
    flow::FlowFault,
    metrics::{Counter, Counters, Gauge, Registry, counter, counters, gauge},
};

use super::dial::DialFault;

/// What is counted of flows.
#[derive(Debug)]
pub(crate) struct FlowMetrics {
    pub(super) idle: Gauge,
    pub(super) dialling: Gauge,
    dials: Counters,
    ended: Counters,
    /// By direction and word.
    broken: Counters<2>,
    not_tls: Counters,
    pub(super) probes: Counter,
}

/// Why an idle flow ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum IdleEnd {
    /// It was idle for long enough.
    Recycled,
    /// The master wants fewer.
    Excess,
    /// Its session takes nothing new.
    Session,
    /// The master ended it, or the connection failed.
    Master,
    /// What the master sent was not believed.
    Broken,
}

impl FlowMetrics {
    pub(crate) fn register(r: &mut Registry) -> Self {
        let dials: Vec<_> = [ACCEPTED].iter().chain(DialFault::WORDS).copied().collect();
        let broken = Counters::of_pairs(["path", "reason"], DIRECTIONS, FlowFault::WORDS);
        r.register(
            "flows_broken",
            "Flows that were ended because of what the master sent on them or did with them, before they were opened",
            broken.clone(),
        );
        Self {
            idle: gauge(
                r,
                "flows_idle",
                "Flows of the reverse path that stand and wait to be used",
            ),
            dialling: gauge(
                r,
                "flows_dialling",
                "Flows of the reverse path that are being dialled",
            ),
            dials: counters(
                r,
                (
                    "flow_dials",
                    "Flows of the reverse path that were dialled, by what came of it; short is one that the master ended within two seconds",
                ),
                "result",
                &dials,
            ),
            ended: counters(
                r,
                (
                    "flows_ended_idle",
                    "Flows of the reverse path that ended without having been used, by the reason",
                ),
                "reason",
                IdleEnd::WORDS,
            ),
            broken,
            not_tls: counters(
                r,
                (
                    "flows_not_tls",
                    "Flows that were reset because what came on them does not begin as TLS does",
                ),
                "path",
                DIRECTIONS,
            ),
            probes: counter(
                r,
                "flow_probes",
                "Flows of the direct path by which a master only asked whether it reaches this agent",
            ),
        }
    }

    pub(super) fn dialled(&self) {
        self.dials.get(ACCEPTED).inc();
    }

    pub(super) fn failed(&self, fault: &DialFault) {
        self.dials.get(fault.as_str()).inc();
    }

    pub(super) fn ended(&self, end: IdleEnd) {
        self.ended.get(end.as_str()).inc();
    }

    pub(super) fn broken(&self, direction: FlowDirection, fault: &FlowFault) {
        let words = [direction.as_str(), fault.as_str()];
        self.broken.get_pair(words).inc();
    }

    pub(super) fn not_tls(&self, direction: FlowDirection) {
        self.not_tls.get(direction.as_str()).inc();
    }
}

impl IdleEnd {
    const WORDS: &[&str] = &["recycled", "excess", "session", "master", "broken"];

    pub(super) fn of(fault: &FlowFault) -> Self {
        match fault {
            FlowFault::Io(_) => Self::Master,
            FlowFault::Peer(_) | FlowFault::TooLong(_) => Self::Broken,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Recycled => "recycled",
            Self::Excess => "excess",
            Self::Session => "session",
            Self::Master => "master",
            Self::Broken => "broken",
        }
    }
}

const ACCEPTED: &str = "accepted";

const DIRECTIONS: &[&str] = &["reverse", "direct"];
