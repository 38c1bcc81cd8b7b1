//! From a target to a connection: which node or route, for how long to wait for it, the relay.
//!
//! Owns the decision that follows from registry and routes, and the reasons that a user reads
//! when there is no way. The front doors ask; sessions are asked through `opening.rs`.
//!
//! A node that was here a moment ago is waited for: a restart of its agent, or of this master,
//! then does not show. Any other absence is answered at once.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use proxymux_proto::{NodeName, TargetAddr};
use proxymux_transport::{
    memory::HeldBytes,
    pair::relay_pair,
    relay::{Outcome, RelayOptions, relay},
    stream::RelayStream,
    telemetry::{AccessLog, Path, Side},
};
use tokio::{net::TcpStream, time::Instant};
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::{
    config::Via,
    direct,
    front_door::{self, Client, Refusal, RequestInfo, Status},
    master::Master,
    metrics::DoorMetrics,
    opening::{self, OpenFailure},
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
    Session {
        stream: RelayStream,
        session: Arc<SessionHandle>,
        /// Lets the session know that it is in use.
        token: TaskTrackerToken,
    },
    Direct(TcpStream),
}

/// What is to be done about a target now.
enum Way {
    Ask(Arc<SessionHandle>),
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
            Found::Session(session) => Way::Ask(session),
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
                Ok(Found::Session(session)) => Way::Ask(session),
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
    ) -> Result<Tunnel, OpenFailure> {
        // Taken before the stream is open, so that a drain waits for it.
        let token = session.relays.token();
        let stream = opening::open(&session, target, deadline).await?;
        Ok(Tunnel::Session {
            stream,
            session,
            token,
        })
    }
}

impl front_door::Gateway for Gateway {
    type Tunnel = Tunnel;

    fn metrics(&self) -> &DoorMetrics {
        &self.master.metrics.doors
    }

    async fn open(&self, target: &TargetAddr, budget: Duration) -> Result<Tunnel, Refusal> {
        let deadline = Instant::now() + budget;
        loop {
            let mut changes = self.master.registry.changes();
            let (until, refusal) = match self.choose(target) {
                Way::Refuse(refusal) => return Err(refusal),
                Way::Dial(at) => return direct::dial(at, deadline).await.map(Tunnel::Direct),
                Way::Wait(until, refusal) => (until, refusal),
                Way::Ask(session) => match self.ask(Arc::clone(&session), target, deadline).await {
                    Ok(tunnel) => return Ok(tunnel),
                    Err(OpenFailure::Refused(refusal)) => return Err(refusal),
                    Err(OpenFailure::SessionGone) => (
                        // The session's own task is about to tell the registry.
                        Instant::now() + WAIT_FOR_RETURN,
                        gone(&session.node),
                    ),
                },
            };
            let until = until.min(deadline);
            if tokio::time::timeout_at(until, changes.changed())
                .await
                .is_err()
            {
                // What it says of a node's absence is to be true when it is read.
                return Err(match self.choose(target) {
                    Way::Refuse(newer) | Way::Wait(_, newer) => newer,
                    Way::Ask(_) | Way::Dial(_) => refusal,
                });
            }
        }
    }

    fn account(&self) -> HeldBytes {
        self.master.memory.other()
    }

    async fn relay(&self, client: Client, early: Bytes, tunnel: Tunnel, request: RequestInfo) {
        let config = &self.master.config;
        let RequestInfo { target, arrival } = request;
        let (side, started) = (Side::StreamLeadsToTarget, arrival.accepted_at);
        let idle_timeout = config.idle_timeout;
        match tunnel {
            Tunnel::Session {
                stream,
                session,
                token,
            } => {
                let mut access = AccessLog::new(&session.node, target, arrival.peer, side, started);
                access.opened(&self.master.metrics.streams);
                let options = RelayOptions {
                    idle_timeout,
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
            Tunnel::Direct(connection) => {
                let mut access = AccessLog::new("none", target, arrival.peer, side, started);
                access.set_path(Path::Route);
                access.opened(&self.master.metrics.streams);
                let options = RelayOptions {
                    idle_timeout,
                    cancel: self.master.cut.clone(),
                };
                let bytes = access.bytes();
                let outcome = relay_pair(client, connection, early, &options, bytes).await;
                self.master.count_cut(&outcome);
                access.finish(outcome);
            }
        }
    }
}

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
