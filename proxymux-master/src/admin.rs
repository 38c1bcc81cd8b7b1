//! What the master answers at its admin address.
//!
//! Owns the words for not being ready ([`Readiness`]), and the form of the status, which
//! `proxymux-master nodes` shows. Serving it is `proxymux_transport::admin`.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use proxymux_transport::{admin::Answers, certificate::utc, reload::Certificates};
use serde_json::{Value, json};
use tokio::runtime::Handle;

use crate::{
    config::{FrontDoor, NodeAddresses},
    flows::{self, Flows, Why},
    master::Master,
    registry::{NodeView, SessionHandle},
};

/// The master, as its admin address sees it.
pub(crate) struct MasterAnswers {
    master: Arc<Master>,
    /// Where what is ordered runs.
    runtime: Handle,
}

impl MasterAnswers {
    /// To be called in the runtime that relays.
    pub(crate) fn new(master: Arc<Master>) -> Self {
        Self {
            master,
            runtime: Handle::current(),
        }
    }
}

/// What has been opened so far.
#[derive(Debug, Default)]
pub(crate) struct Readiness {
    /// Agents can come in.
    pub(crate) agents: AtomicBool,
    /// Clients can, at every front door.
    pub(crate) doors: AtomicBool,
}

impl Answers for MasterAnswers {
    /// A master is ready without any node: which of them come is not its doing.
    fn unready(&self) -> Vec<String> {
        let master = &self.master;
        if master.shutdown.drain.is_cancelled() {
            return vec!["draining: this master was told to end".to_owned()];
        }
        let opened = [
            (&master.readiness.agents, "not listening for agents yet"),
            (&master.readiness.doors, "front doors are not open yet"),
        ];
        opened
            .into_iter()
            .filter(|(open, _)| !open.load(Ordering::Acquire))
            .map(|(_, reason)| reason.to_owned())
            .collect()
    }

    fn metrics(&self) -> String {
        self.master.metrics.scrape()
    }

    fn status(&self) -> Value {
        let master = &self.master;
        let config = &master.config;
        let reasons = self.unready();
        let nodes = master.registry.view();
        let connected = nodes.iter().filter(|node| node.session.is_some()).count();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "master_id": master.id.to_string(),
            "cluster_id": config.cluster_id,
            "uptime_s": master.registry.started().elapsed().as_secs(),
            "ready": reasons.is_empty(),
            "reasons": reasons,
            "draining": master.shutdown.drain.is_cancelled(),
            "listen": config.listen.to_string(),
            "front_doors": config.front_doors.iter().map(show_door).collect::<Vec<_>>(),
            "connected": connected,
            "streams": master.metrics.streams.count(),
            "certificates": certificates(&master.certificates),
            "node_addresses": node_addresses(master),
            "fast_paths_off": master.flows.off().map(Why::as_str),
            "nodes": nodes.iter().map(|node| show_node(&master.flows, node)).collect::<Vec<_>>(),
        })
    }

    fn other(&self, path: &str, _query: &str) -> Option<Result<Value, String>> {
        (path == PERF).then(|| self.master.perf.state())
    }

    fn act(&self, path: &str, query: &str) -> Option<Result<Value, String>> {
        let master = &self.master;
        (path == PERF).then(|| master.perf.start(master, &self.runtime, query))
    }
}

pub(crate) fn show_door(door: &FrontDoor) -> String {
    match door {
        FrontDoor::Unix { path, .. } => format!("unix:{}", path.display()),
        FrontDoor::Tcp { listen, .. } => format!("tcp:{listen}"),
    }
}

/// What proves addresses besides certificates and sessions, and how that is doing.
fn node_addresses(master: &Master) -> Value {
    match (&master.config.node_addresses, &master.node_objects) {
        (_, Some(health)) => health.show(master.registry.objects()),
        (NodeAddresses::File(path), None) => json!({ "source": "file", "file": path }),
        (_, None) => json!({ "source": "declared" }),
    }
}

/// What agents are shown and checked with; null while nothing is in force.
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

/// Of a node that is away only its name, its addresses and when it was last seen are known.
fn show_node(flows: &Flows, node: &NodeView) -> Value {
    let addresses = node.addresses.granted.iter().map(ToString::to_string);
    let refused =
        node.addresses.refused.iter().map(
            |refusal| json!({ "address": refusal.address.to_string(), "reason": refusal.reason }),
        );
    let session = node.session.as_deref();
    let away = session.is_none();
    let object = node.object.as_ref().map(|object| {
        json!({
            "addresses": object.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "names": object.names.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "pod_cidrs": object.pod_cidrs.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "kubelet_port": object.kubelet_port,
        })
    });
    json!({
        "name": node.name.to_string(),
        "connected": !away,
        "addresses": addresses.collect::<Vec<_>>(),
        "addresses_refused": refused.collect::<Vec<_>>(),
        "node_object": object,
        "last_seen_s": away.then(|| node.seen.elapsed().as_secs()),
        "session": session.map(|session| show_session(flows, session)),
    })
}

fn show_session(flows: &Flows, session: &SessionHandle) -> Value {
    let about = &session.about;
    let mut shown = flows::show(flows, session);
    let rest = json!({
        "peer": session.peer.to_string(),
        "instance": session.instance.to_string(),
        "kubelet_port": session.kubelet_port,
        "streams": session.relays.len(),
        "rtt_us": about.rtt_us(),
        "age_s": about.since.elapsed().as_secs(),
        "software": about.software,
        "node_id": about.node_id,
        "labels": about.labels,
        "certificate_expires": utc(about.expires),
    });
    if let (Some(shown), Value::Object(rest)) = (shown.as_object_mut(), rest) {
        shown.extend(rest);
    }
    shown
}

/// Where `proxymux-master perf` asks.
const PERF: &str = "/perf";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, NODE, session};

    #[tokio::test(start_paused = true)]
    async fn readiness_names_what_is_not_open() {
        let master = testing::master("");
        let answers = MasterAnswers::new(Arc::clone(&master));
        assert_eq!(
            answers.unready(),
            [
                "not listening for agents yet",
                "front doors are not open yet"
            ]
        );
        master.readiness.agents.store(true, Ordering::Release);
        master.readiness.doors.store(true, Ordering::Release);
        assert!(answers.unready().is_empty());

        master.shutdown.drain.cancel();

        assert_eq!(answers.unready(), ["draining: this master was told to end"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_is_shown_with_its_session_and_when_it_is_away() {
        let master = testing::master("");
        let answers = MasterAnswers::new(Arc::clone(&master));
        let session = session(NODE, 1);
        session.admit(&master.registry).unwrap();
        session
            .handle
            .about
            .round_trip(std::time::Duration::from_millis(3));

        let status = answers.status();

        assert_eq!(status["connected"], 1);
        let node = &status["nodes"][0];
        assert_eq!(node["name"], NODE);
        assert_eq!(node["addresses"], json!([NODE]));
        assert_eq!(node["last_seen_s"], Value::Null);
        assert_eq!(node["session"]["rtt_us"], 3000);
        assert_eq!(node["session"]["path"], "session");
        assert_eq!(node["session"]["streams"], 0);

        master.registry.leave(&session.handle);
        tokio::time::advance(std::time::Duration::from_secs(42)).await;

        let status = answers.status();
        let node = &status["nodes"][0];
        assert_eq!(node["connected"], false);
        assert_eq!(node["last_seen_s"], 42);
        assert_eq!(node["session"], Value::Null);
        assert_eq!(
            node["addresses"],
            json!([NODE]),
            "it keeps them for an hour"
        );
    }
}
