//! The paths of a node as its status shows them.
//!
//! Owns the form of that part of the status; `nodes.rs` makes a table of it.

use proxymux_transport::telemetry::Path;
use serde_json::{Value, json};

use super::{Flows, SessionFlows, Why};
use crate::registry::SessionHandle;

/// By which path a connection to the node's kubelet would go now, and what is known of the others.
pub(crate) fn show(flows: &Flows, session: &SessionHandle) -> Value {
    let (path, why) = path_now(flows, session);
    let of_session = session.flows.as_ref();
    json!({
        "path": path.as_str(),
        "path_reason": why.map(Why::as_str),
        "flows": of_session.map_or(0, |flows| flows.node.len()),
        "idle_flows": of_session.map_or(0, |flows| flows.pool.len()),
        "direct": of_session.map(show_direct),
    })
}

fn path_now(flows: &Flows, session: &SessionHandle) -> (Path, Option<Why>) {
    if let Some(why) = flows.off() {
        return (Path::Session, Some(why));
    }
    let Some(of_session) = &session.flows else {
        return (Path::Session, Some(Why::AgentOff));
    };
    match of_session.direct.way() {
        Ok(_) => (Path::Direct, None),
        Err(why) if of_session.pool.len() > 0 => (Path::Reverse, Some(why)),
        Err(_) => (Path::Session, Some(Why::NoFlow)),
    }
}

fn show_direct(flows: &SessionFlows) -> Value {
    let way = flows.direct.way();
    let (last, steering) = flows.direct.last();
    json!({
        "proven": way.is_ok(),
        "at": way.ok().map(|at| at.to_string()),
        "reason": way.err().map(Why::as_str),
        "last_probe": last.map(|met| met.as_str()),
        "steering": steering.as_ref().map(|status| status.stands),
        "steering_reason": steering.map(|status| status.reason),
    })
}
