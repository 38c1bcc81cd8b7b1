//! What the agent answers at its admin address.
//!
//! Owns the words for not being ready, and the form of the status, which `proxymux-agent status`
//! shows. Serving it is `proxymux_transport::admin`.

use std::sync::Arc;

use proxymux_proto::FlowDirection;
use proxymux_transport::{
    admin::Answers,
    certificate::utc,
    config_file::values::Choice as _,
    reload::Certificates,
    telemetry::{micros, millis},
};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    agent::Agent,
    board::{Entry, SessionEntry},
    config::{Config, Mode},
    flows::FlowsView,
    steering::{explain, report, suggest},
};

/// The agent, as its admin address sees it.
pub(crate) struct AgentAnswers(pub(crate) Arc<Agent>);

impl Answers for AgentAnswers {
    /// Ready is who can be asked for something by at least one master.
    fn unready(&self) -> Vec<String> {
        let agent = &self.0;
        if agent.shutdown.drain.is_cancelled() {
            return vec!["draining: this agent was told to end".to_owned()];
        }
        if agent.masters.count() > 0 {
            return Vec::new();
        }
        let entries = agent.board.entries();
        if entries.is_empty() {
            return vec!["no master was tried yet".to_owned()];
        }
        entries.iter().map(Entry::describe).collect()
    }

    fn metrics(&self) -> String {
        self.0.metrics.scrape()
    }

    fn status(&self) -> Value {
        let agent = &self.0;
        let config = &agent.config;
        let reasons = self.unready();
        let (mode, mode_reason) = agent.steering.mode();
        let masters: Vec<_> = agent.board.entries().iter().map(show_entry).collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "node": config.node_name.to_string(),
            "node_id": config.node_id,
            "cluster_id": config.cluster_id,
            "labels": config.labels,
            "instance": agent.instance.to_string(),
            "uptime_s": agent.started.elapsed().as_secs(),
            "ready": reasons.is_empty(),
            "reasons": reasons,
            "draining": agent.shutdown.drain.is_cancelled(),
            "mode": mode,
            "mode_configured": config.mode.word(),
            "mode_reason": mode_reason,
            "attachments": report::attachments(&agent.steering),
            "steering": report::status(&agent.steering, &agent.metrics.tally),
            "fast_path": config.fast_path.word(),
            "fast_path_off": fast_path_off(config),
            "kubelet": config.kubelet_addr.to_string(),
            "streams": agent.metrics.streams.count(),
            "masters": masters,
            "certificates": certificates(&agent.certificates),
        })
    }

    fn other(&self, path: &str, query: &str) -> Option<Result<Value, String>> {
        let steering = &self.0.steering;
        match path {
            explain::PATH => Some(explain::answer(steering, query)),
            suggest::PATH => Some(suggest::answer(steering)),
            _ => None,
        }
    }
}

/// What is in force; null while nothing is.
fn certificates(certificates: &Certificates) -> Value {
    let Some(in_force) = certificates.in_force() else {
        return Value::Null;
    };
    let info = in_force.credentials.info();
    let first_ca = certificates.expiry().map(|expiry| utc(expiry.first_ca));
    json!({
        "subject": info.subject,
        "serial": info.serial,
        "expires": utc(info.not_after),
        "first_ca_expires": first_ca,
    })
}

/// Without a session what is known of sessions is null.
fn show_entry(entry: &Entry) -> Value {
    let retry_in = entry
        .retry_at
        .map(|at| at.saturating_duration_since(Instant::now()));
    let session = entry.session.as_ref();
    json!({
        "server": entry.server,
        "address": entry.at.map(|at| at.to_string()),
        "state": entry.state.word(),
        "since_s": entry.since.elapsed().as_secs(),
        "last_error": entry.last_error,
        "retry_in_ms": retry_in.map(millis),
        "master_id": session.map(|session| session.master.to_string()),
        "rtt_us": session.and_then(|session| session.rtt).map(micros),
        "streams": session.map(|session| session.streams.len()),
        "flows": session.and_then(|session| session.flows.as_ref()).map(show_flows),
        "steering": session.and_then(|session| session.steering.as_ref()).map(|steering| json!({
            "stands": steering.stands,
            "reason": steering.reason,
        })),
        "addresses": session.map(granted),
        "addresses_refused": session.map(refused),
    })
}

fn show_flows(flows: &FlowsView) -> Value {
    let pool = flows.pool();
    let (trouble, retry_at) = pool.trouble.unzip();
    let retry_in = retry_at
        .flatten()
        .map(|at| at.saturating_duration_since(Instant::now()));
    json!({
        "wanted": pool.wanted,
        "idle": pool.idle,
        "dialling": pool.dialling,
        "reverse": flows.relaying(FlowDirection::Reverse),
        "direct": flows.relaying(FlowDirection::Direct),
        "last_error": trouble,
        "retry_in_ms": retry_in.map(millis),
    })
}

/// Why this agent has no flows, if it is to have none whatever its masters want.
fn fast_path_off(config: &Config) -> Option<&'static str> {
    match (config.uses_flows(), config.mode) {
        (true, _) => None,
        (false, Mode::Userspace) => Some("mode: userspace is the session path alone"),
        (false, _) => Some("configured"),
    }
}

/// The addresses that lead to this node.
fn granted(session: &SessionEntry) -> Vec<String> {
    let granted = session.addresses.granted.iter();
    granted.map(ToString::to_string).collect()
}

/// Those that do not, and why.
fn refused(session: &SessionEntry) -> Vec<Value> {
    let refused = session.addresses.refused.iter();
    refused
        .map(|refusal| json!({ "address": refusal.address.to_string(), "reason": refusal.reason }))
        .collect()
}
