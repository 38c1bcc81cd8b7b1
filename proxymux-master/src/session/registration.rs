//! The first message on a session, and whether its sender may come in.
//!
//! Owns the wait for the registration, all that forbids it, and the log's words for that. Leaves
//! the rules about several sessions of one node to the registry, and how many are let in to
//! `admission`.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use proxymux_proto::{
    ControlMessage, EndCode, FlowKeys, NodeName, PROTOCOL_VERSION, Registration, SessionEnd,
};
use proxymux_transport::{
    certificate::NodeIdentity,
    control::ControlStream,
    mux::Incoming,
    session::{Event, SessionCore, SessionOver},
    telemetry::chain,
    trust::PeerTrust,
};

use crate::master::Master;

/// A connection whose agent has proven who it is and has not registered yet.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) core: SessionCore,
    pub(crate) incoming: Incoming,
    pub(crate) identity: NodeIdentity,
    /// What its flows are proven with.
    pub(crate) flow_keys: Arc<FlowKeys>,
    /// Whether it is still to be believed.
    pub(crate) trust: PeerTrust,
    pub(crate) peer: SocketAddr,
    /// Our own address of its connection.
    pub(crate) local: IpAddr,
}

/// Why a session was not established.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistrationError {
    #[error("agent did not register within {} s", .0.as_secs())]
    Silent(Duration),
    #[error("agent opened no control stream")]
    NoControlStream,
    #[error("session ended before the agent had registered")]
    Over(#[source] SessionOver),
    /// In its words; a check of an agent goes no further, and says so.
    #[error("agent ended the session before it registered: {0}")]
    Ended(String),
    #[error("agent sent `{0}` before it registered")]
    Unexpected(&'static str),
}

/// Waits for the control stream, which the agent opens first.
///
/// # Errors
///
/// When it does not come in time.
pub(crate) async fn control_stream(
    incoming: &mut Incoming,
) -> Result<ControlStream, RegistrationError> {
    let first = tokio::time::timeout(REGISTRATION_LIMIT, incoming.next()).await;
    match first {
        Err(_) => Err(RegistrationError::Silent(REGISTRATION_LIMIT)),
        Ok(None) => Err(RegistrationError::NoControlStream),
        Ok(Some(stream)) => Ok(ControlStream::new(stream)),
    }
}

/// Waits for the registration.
///
/// # Errors
///
/// When it does not come in time, or something else does.
pub(super) async fn registration(
    candidate: &mut Candidate,
) -> Result<Registration, RegistrationError> {
    let wait = async {
        loop {
            match candidate.core.next().await {
                Event::Message(ControlMessage::Register(registration)) => return Ok(registration),
                Event::Message(ControlMessage::End(end)) => {
                    return Err(RegistrationError::Ended(end.message));
                }
                Event::Message(other) => return Err(RegistrationError::Unexpected(other.name())),
                Event::Over(over) => return Err(RegistrationError::Over(over)),
                Event::Pong(_) | Event::WornOut | Event::Segments(_) => {}
            }
        }
    };
    tokio::time::timeout(REGISTRATION_LIMIT, wait)
        .await
        .map_err(|_| RegistrationError::Silent(REGISTRATION_LIMIT))?
}

/// Looks for what forbids a registration, before anything is done about it.
pub(super) fn objection(
    registration: &Registration,
    identity: &NodeIdentity,
    master: &Master,
) -> Option<SessionEnd> {
    let Registration {
        version,
        node,
        instance,
        cluster_id,
        held_masters,
        ..
    } = registration;
    if *version != PROTOCOL_VERSION {
        let text = format!(
            "agent speaks version {version} of the protocol, this master {PROTOCOL_VERSION}"
        );
        return Some(SessionEnd::new(EndCode::Version, &text));
    }
    if *node != identity.name {
        let text = format!(
            "agent registers as node {node}, its certificate is for node {}",
            identity.name
        );
        return Some(SessionEnd::new(EndCode::Identity, &text));
    }
    if let (Some(ours), Some(theirs)) = (&master.config.cluster_id, cluster_id)
        && ours != theirs
    {
        let text = format!("agent is of cluster {theirs}, this master of cluster {ours}");
        return Some(SessionEnd::new(EndCode::Cluster, &text));
    }
    // What the agent believes is not enough: if its session is dead here, this one is needed.
    if held_masters.contains(&master.id) && master.registry.is_served_by(node, *instance) {
        let text = format!(
            "agent already has a session with this master, {}",
            master.id
        );
        return Some(SessionEnd::new(EndCode::AlreadyConnected, &text));
    }
    if master.shutdown.drain.is_cancelled() {
        return Some(SessionEnd::new(
            EndCode::ShuttingDown,
            "this master is ending",
        ));
    }
    None
}

/// Logs that no registration came, unless this node's log is full of it.
pub(super) fn log_no_registration(
    master: &Master,
    node: &NodeName,
    peer: SocketAddr,
    error: &RegistrationError,
) {
    let words = chain(error);
    let news = master.refused.news(node.as_str(), &words);
    let others = news.filter(|&others| others > 0);
    match (error, news) {
        (RegistrationError::Ended(reason), Some(_)) => {
            tracing::info!(%peer, %node, reason, others, "agent left before it registered");
        }
        (RegistrationError::Ended(reason), None) => {
            tracing::debug!(%peer, %node, reason, "agent left before it registered");
        }
        (_, Some(_)) => tracing::warn!(%peer, %node, error = words, others, "session refused"),
        (_, None) => tracing::debug!(%peer, %node, error = words, "session refused"),
    }
}

/// Logs that a registration was refused, when that begins and then once a minute: an agent comes
/// back for as long as it runs.
pub(super) fn log_refusal(master: &Master, node: &NodeName, peer: SocketAddr, end: &SessionEnd) {
    let (code, reason) = (end.code.as_str(), end.message.as_str());
    match end.code {
        EndCode::AlreadyConnected => {
            return tracing::debug!(%peer, %node, reason, "session not needed");
        }
        // Told where it was decided, once for all nodes.
        EndCode::Busy => return tracing::debug!(%peer, %node, code, reason, "session refused"),
        _ => {}
    }
    // Its words name ports, which are others at each attempt.
    let fault = match end.code {
        EndCode::Superseded => code,
        _ => reason,
    };
    let Some(others) = master.refused.news(node.as_str(), fault) else {
        return tracing::debug!(%peer, %node, code, reason, "session refused");
    };
    // Those that were not told since the last time.
    let others = (others > 0).then_some(others);
    if end.code == EndCode::Superseded {
        tracing::error!(%peer, %node, code, reason, others, "session refused");
    } else {
        tracing::warn!(%peer, %node, code, reason, others, "session refused");
    }
}

/// The agent sends its registration together with the end of its handshake.
const REGISTRATION_LIMIT: Duration = Duration::from_secs(5);
