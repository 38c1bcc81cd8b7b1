//! From a target to a connection: which node or route, for how long to wait for it, the relay.
//!
//! Owns the decision that follows from registry and routes, and the reasons that a user reads
//! when there is no way. The front doors ask; sessions are asked through `opening.rs`.
//!
//! A node that was here a moment ago is waited for: a restart of its agent, or of this master,
//! then does not show. Any other absence is answered at once.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use proxymux_proto::{AbortCode, Measure, NodeName, TargetAddr};
use proxymux_transport::{
    memory::HeldBytes,
    pair::relay_pair,
    relay::{Endpoint as _, Outcome, RelayOptions, relay},
    stream::RelayStream,
    telemetry::{AccessLog, Path, Side},
};
use tokio::{net::TcpStream, time::Instant};
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::{
    config::Via,
    direct,
    flows::{
        OpenFlow, Why,
        choose::{OnlyFailure, Opened, Opening},
        commit::{self, Limits, Verdict},
        relay_flow,
    },
    front_door::{self, Client, Refusal, RequestInfo, Status},
    master::Master,
    metrics::DoorMetrics,
    opening::OpenFailure,
    registry::{Found, SessionHandle},
};

/// What the front doors ask.
#[derive(Clone, Debug)]
pub(crate) struct Gateway {
    master: Arc<Master>,
}

/// A way to a target that stands.
#[derive(Debug)]
pub(crate) enum Tunnel {
    Stream(StreamTunnel),
    Flow {
        open: OpenFlow,
        session: Arc<SessionHandle>,
        /// Why it is not a faster path.
        why: Option<Why>,
    },
    Direct(TcpStream),
}

/// A stream of a session that is open.
#[derive(Debug)]
pub(crate) struct StreamTunnel {
    stream: RelayStream,
    session: Arc<SessionHandle>,
    /// Lets the session know that it is in use.
    token: TaskTrackerToken,
    /// Why it is not a faster path.
    why: Option<Why>,
}

/// What is to be done about a target now.
enum Way {
    /// Ask a node; by the session if there is a reason for that.
    Ask(Arc<SessionHandle>, Option<Why>),
    Dial(SocketAddr),
    /// Wait for a change until then; this is the answer if there is none.
    Wait(Instant, Refusal),
    Refuse(Refusal),
}

impl Gateway {
    pub(crate) fn new(master: Arc<Master>) -> Self {
        Self { master }
    }

    fn choose(&self, target: &TargetAddr) -> Way {
        match self.master.registry.find(target) {
            Found::Session(session) if target.port() == session.kubelet_port => {
                Way::Ask(session, None)
            }
            Found::Session(session) => Way::Ask(session, Some(Why::NotKubelet)),
            Found::Away { node, seen } => self.away(&node, seen),
            Found::Unknown => self.choose_route(target),
        }
    }

    fn choose_route(&self, target: &TargetAddr) -> Way {
        let Some(at) = target.as_socket_addr() else {
            return self.unless_just_started(no_route(target, "no node has this name"));
        };
        match self.master.routes.decide(at.ip()) {
            Via::Direct => Way::Dial(at),
            Via::Node => match self.master.registry.find_by_range(at.ip(), at.port()) {
                Ok(Found::Session(session)) => Way::Ask(session, Some(Why::NotKubelet)),
                Ok(Found::Away { node, seen }) => self.away(&node, seen),
                Ok(Found::Unknown) => Way::Refuse(no_route(target, "no node reaches it")),
                Err(why) => self.unless_just_started(no_route(target, &why.to_string())),
            },
            Via::Refuse => self.unless_just_started(no_route(target, "no node has this address")),
        }
    }

    fn away(&self, node: &NodeName, seen: Option<Instant>) -> Way {
        let since = match seen {
            Some(seen) => format!("last seen {}s ago", seen.elapsed().as_secs()),
            None => "never seen".to_owned(),
        };
        let refusal = Refusal::new(
            Status::Unavailable,
            format!("node {node} has no session; {since}"),
        );
        match seen
            .map(|seen| seen + WAIT_FOR_RETURN)
            .filter(|until| *until > Instant::now())
        {
            Some(until) => Way::Wait(until, refusal),
            None => self.unless_just_started(refusal),
        }
    }

    /// Right after its start a master does not know who is still to come.
    fn unless_just_started(&self, refusal: Refusal) -> Way {
        let until = self.master.registry.started() + WAIT_FOR_RETURN;
        if until > Instant::now() {
            Way::Wait(until, refusal)
        } else {
            Way::Refuse(refusal)
        }
    }

    async fn ask(
        &self,
        session: Arc<SessionHandle>,
        target: &TargetAddr,
        deadline: Instant,
        by_session: Option<Why>,
    ) -> Result<Tunnel, OpenFailure> {
        // Taken before the stream is open, so that a drain waits for it.
        let token = session.relays.token();
        let renamed = self.master.registry.asked_as(&session, target);
        let opening = Opening {
            master: &self.master,
            session: &session,
            target: renamed.as_ref().unwrap_or(target),
            measure: None,
            deadline,
        };
        let opened = opening.run(by_session).await?;
        Ok(Tunnel::new(opened, session, token))
    }

    /// Opens a way to a target, by the session if there is a reason for that.
    async fn open_by(
        &self,
        target: &TargetAddr,
        budget: Duration,
        by_session: Option<Why>,
    ) -> Result<Tunnel, Refusal> {
        let deadline = Instant::now() + budget;
        loop {
            let mut changes = self.master.registry.changes();
            let (until, refusal) = match self.choose(target) {
                Way::Refuse(refusal) => return Err(refusal),
                Way::Dial(at) => return direct::dial(at, deadline).await.map(Tunnel::Direct),
                Way::Wait(until, refusal) => (until, refusal),
                Way::Ask(session, why) => {
                    let why = why.or(by_session);
                    match self.ask(Arc::clone(&session), target, deadline, why).await {
                        Ok(tunnel) => return Ok(tunnel),
                        Err(OpenFailure::Refused(refusal)) => return Err(refusal),
                        Err(OpenFailure::SessionGone) => (
                            // The session's own task is about to tell the registry.
                            Instant::now() + WAIT_FOR_RETURN,
                            gone(&session.node),
                        ),
                    }
                }
            };
            let until = until.min(deadline);
            if tokio::time::timeout_at(until, changes.changed())
                .await
                .is_err()
            {
                // What it says of a node's absence is to be true when it is read.
                return Err(match self.choose(target) {
                    Way::Refuse(newer) | Way::Wait(_, newer) => newer,
                    Way::Ask(..) | Way::Dial(_) => refusal,
                });
            }
        }
    }

    /// Opens an end for measuring on a node, by one path and no other.
    pub(crate) async fn open_measure(
        &self,
        session: &Arc<SessionHandle>,
        target: &TargetAddr,
        (path, measure): (Path, Measure),
        deadline: Instant,
    ) -> Result<Tunnel, OnlyFailure> {
        let token = session.relays.token();
        let opening = Opening {
            master: &self.master,
            session,
            target,
            measure: Some(measure),
            deadline,
        };
        let opened = opening.only(path).await?;
        Ok(Tunnel::new(opened, Arc::clone(session), token))
    }

    /// Relays a connection that measures, by the path of its tunnel and no other: what a client's
    /// first bytes are and what to do instead is not asked.
    pub(crate) async fn relay_measure(
        &self,
        client: Client,
        early: Bytes,
        tunnel: Tunnel,
        target: TargetAddr,
    ) {
        let (side, started) = (Side::StreamLeadsToTarget, Instant::now());
        let mut access = AccessLog::new(tunnel.node(), target, "perf", side, started);
        match tunnel {
            Tunnel::Flow { open, .. } => {
                access.set_path(open.path());
                access.opened(&self.master.metrics.streams);
                let bytes = access.bytes();
                let outcome = relay_flow(&self.master, client, early, open, bytes).await;
                access.finish(outcome);
            }
            Tunnel::Stream(tunnel) => self.relay_stream(client, early, tunnel, access).await,
            Tunnel::Direct(connection) => self.relay_route(client, early, connection, access).await,
        }
    }

    async fn relay_tunnel(
        &self,
        client: Client,
        early: Bytes,
        tunnel: Tunnel,
        access: AccessLog,
        target: TargetAddr,
    ) {
        match tunnel {
            Tunnel::Flow { open, session, why } => {
                let opened = (open, session, why);
                self.relay_by_flow(client, early, opened, access, target)
                    .await;
            }
            Tunnel::Stream(tunnel) => self.relay_stream(client, early, tunnel, access).await,
            Tunnel::Direct(connection) => self.relay_route(client, early, connection, access).await,
        }
    }

    /// Relays over a flow once the client has begun with TLS; else by the session.
    ///
    /// Boxed: it is bigger than the other relays, and may have to become one of them.
    fn relay_by_flow(
        &self,
        mut client: Client,
        early: Bytes,
        (open, session, why): (OpenFlow, Arc<SessionHandle>, Option<Why>),
        mut access: AccessLog,
        target: TargetAddr,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            let master = &self.master;
            let limits = Limits {
                idle_timeout: master.config.idle_timeout,
                cut: &master.cut,
            };
            let account = master.memory.other();
            access.set_path(open.path());
            access.set_path_reason(why.map(Why::as_str));
            match commit::judge(&mut client, early, &open, account, limits).await {
                Verdict::Flow(early) => {
                    // A flow may outlive the session by which it was opened.
                    drop(session);
                    master.count_path(why);
                    access.opened(&master.metrics.streams);
                    let outcome = relay_flow(master, client, early, open, access.bytes()).await;
                    master.count_cut(&outcome);
                    access.finish(outcome);
                }
                Verdict::Session(early, why) => {
                    drop((open, session));
                    let budget = master.config.connect_budget;
                    match self.open_by(&target, budget, Some(why)).await {
                        Ok(tunnel) => {
                            self.relay_tunnel(client, early, tunnel, access, target)
                                .await;
                        }
                        Err(refusal) => {
                            access.set_path(Path::None);
                            access.set_path_reason(Some(why.as_str()));
                            access.bytes().failed(&NoStream(refusal));
                            client.reset_on_close();
                            access.finish(Outcome::PeerAborted(AbortCode::Reset));
                        }
                    }
                }
                Verdict::Over(outcome, error) => {
                    if let Some(error) = error {
                        access.bytes().failed(&error);
                    }
                    client.reset_on_close();
                    master.count_cut(&outcome);
                    access.finish(outcome);
                }
            }
        })
    }

    async fn relay_stream(
        &self,
        client: Client,
        early: Bytes,
        tunnel: StreamTunnel,
        mut access: AccessLog,
    ) {
        let StreamTunnel {
            stream,
            session,
            token,
            why,
        } = tunnel;
        access.set_path(Path::Session);
        access.set_path_reason(why.map(Why::as_str));
        self.master.count_path(why);
        access.opened(&self.master.metrics.streams);
        let options = RelayOptions {
            idle_timeout: self.master.config.idle_timeout,
            cancel: session.cut.clone(),
        };
        let outcome = relay(client, stream, early, &options, access.bytes()).await;
        if outcome == Outcome::SessionLost {
            session.lost.fetch_add(1, Ordering::Relaxed);
        }
        self.master.count_cut(&outcome);
        access.finish(outcome);
        drop(token);
    }

    async fn relay_route(
        &self,
        client: Client,
        early: Bytes,
        connection: TcpStream,
        mut access: AccessLog,
    ) {
        access.set_path(Path::Route);
        access.set_path_reason(None);
        access.opened(&self.master.metrics.streams);
        let options = RelayOptions {
            idle_timeout: self.master.config.idle_timeout,
            cancel: self.master.cut.clone(),
        };
        let bytes = access.bytes();
        let outcome = relay_pair(client, connection, early, &options, bytes).await;
        self.master.count_cut(&outcome);
        access.finish(outcome);
    }
}

impl Tunnel {
    fn new(opened: Opened, session: Arc<SessionHandle>, token: TaskTrackerToken) -> Self {
        match opened {
            Opened::Stream { stream, why } => Self::Stream(StreamTunnel {
                stream,
                session,
                token,
                why,
            }),
            Opened::Flow { flow, why } => Self::Flow {
                open: flow,
                session,
                why,
            },
        }
    }

    /// How the bytes are to travel, and why not faster.
    #[cfg(test)]
    pub(crate) fn path(&self) -> (Path, Option<Why>) {
        match self {
            Self::Stream(tunnel) => (Path::Session, tunnel.why),
            Self::Flow { open, why, .. } => (open.path(), *why),
            Self::Direct(_) => (Path::Route, None),
        }
    }

    /// Whose access log it is in.
    fn node(&self) -> String {
        match self {
            Self::Stream(StreamTunnel { session, .. }) | Self::Flow { session, .. } => {
                session.node.to_string()
            }
            Self::Direct(_) => "none".to_owned(),
        }
    }
}

impl front_door::Gateway for Gateway {
    type Tunnel = Tunnel;

    fn metrics(&self) -> &DoorMetrics {
        &self.master.metrics.doors
    }

    async fn open(&self, target: &TargetAddr, budget: Duration) -> Result<Tunnel, Refusal> {
        self.open_by(target, budget, None).await
    }

    fn account(&self) -> HeldBytes {
        self.master.memory.other()
    }

    async fn relay(&self, client: Client, early: Bytes, tunnel: Tunnel, request: RequestInfo) {
        let RequestInfo { target, arrival } = request;
        let (side, started) = (Side::StreamLeadsToTarget, arrival.accepted_at);
        let node = tunnel.node();
        let access = AccessLog::new(node, target.clone(), arrival.peer, side, started);
        self.relay_tunnel(client, early, tunnel, access, target)
            .await;
    }
}

/// A client that was told 200 cannot be told more.
#[derive(Debug, thiserror::Error)]
#[error("no stream in the place of the flow: {}", .0.reason)]
struct NoStream(Refusal);

fn gone(node: &NodeName) -> Refusal {
    let reason = format!("session of node {node} ended while the request was under way");
    Refusal::new(Status::Unavailable, reason)
}

fn no_route(target: &TargetAddr, why: &str) -> Refusal {
    Refusal::new(Status::Unavailable, format!("no route to {target}: {why}"))
}

/// For how long after it was last seen a node is expected to come back by itself; also how long
/// after the start of a master any node is. Longer than an agent's restart and its first attempts.
pub(crate) const WAIT_FOR_RETURN: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests;
