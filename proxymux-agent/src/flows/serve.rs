//! One flow that a master has opened: its request, the dial, the relay, the line in the access log.
//!
//! Owns the agent's side of an opened flow, whichever end has dialled it. The kubelet is all that a
//! flow leads to, and nothing is passed on to it before the first bytes are known to be TLS: a flow
//! has no encryption of its own. Leaves the relay to `proxymux_transport::splice`, and for how long a
//! flow may outlive its session to `lease.rs`. Whatever goes wrong here ends this flow only.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use proxymux_proto::{
    AbortCode, FlowAbort, FlowDirection, FlowMessage, NodeName, OpenRequest, RefuseCode, TargetAddr,
};
use proxymux_transport::{
    flow::{FlowConnection, FlowFault},
    relay::{Outcome, RelayOptions},
    socket::{self, FlowBuffersGuard},
    splice::relay_spliced,
    telemetry::{ACCESS, AccessLog, Path, Side, chain, millis},
};
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    time::{Instant, timeout},
};

use super::{
    MAX_FLOWS, Owner,
    first::{FirstFault, first_bytes},
};
use crate::{agent::Agent, metrics::CANCELLED, target::DialError};

/// Why a flow came to no relay.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("agent of node {0} is draining")]
    Draining(NodeName),
    #[error("agent of node {node} has {MAX_FLOWS} flows of this master already")]
    Full { node: NodeName },
    #[error(transparent)]
    Dial(DialError),
    #[error("master gave the flow up while the target was dialled")]
    GivenUp,
    #[error("master does not take the answer")]
    Unanswered(#[source] Option<FlowFault>),
}

/// Serves a flow from its open request to its end.
pub(super) async fn serve(
    mut flow: FlowConnection,
    request: OpenRequest,
    owner: Arc<Owner>,
    agent: Arc<Agent>,
) {
    let started = Instant::now();
    let _work = agent.work();
    let peer = flow.connection().peer_addr().unwrap_or(owner.at);
    match open(&mut flow, &request, &owner, &agent).await {
        Ok(kubelet) => {
            let served = Served {
                owner: &owner,
                direction: flow.direction(),
                counter: flow.counter(),
                peer,
                target: request.target,
                started,
            };
            let (kubelet, _guards) = kubelet;
            let ends = Ends(Some([flow.into_connection(), kubelet]));
            served.relay(ends, &agent).await;
        }
        Err(error) => {
            agent.metrics.refused.get(error.reason()).inc();
            log_refusal(&error, &request.target, &flow, (peer, started), &agent);
            refuse(flow, &error).await;
        }
    }
}

/// Dials the kubelet and answers the request.
async fn open(
    flow: &mut FlowConnection,
    request: &OpenRequest,
    owner: &Owner,
    agent: &Agent,
) -> Result<(TcpStream, [FlowBuffersGuard; 2]), ServeError> {
    let node = || agent.config.node_name.clone();
    if agent.closing.is_closed() || owner.closed.is_cancelled() {
        return Err(ServeError::Draining(node()));
    }
    // This one is counted already.
    if owner.master().running() > MAX_FLOWS {
        return Err(ServeError::Full { node: node() });
    }
    let decided = match request.measure {
        None => agent.policy.decide_flow(&request.target),
        Some(measure) => agent.policy.decide_measure(measure),
    };
    let destination = decided.map_err(ServeError::Dial)?;
    // The master waits no longer than the budget, and what we saw is the better reason.
    let answered_by = request.budget - ANSWER_MARGIN.min(request.budget / 10);
    let limit = answered_by.min(agent.config.dial_timeout);
    let prepare = |socket: &TcpStream| socket::prepare_flow(socket, &agent.flows.buffers);
    // Fails only on a connection that is gone already.
    let of_flow = socket::prepare_flow_at_node(flow.connection(), &agent.flows.buffers)
        .map_err(|_| ServeError::GivenUp)?;
    let began = Instant::now();
    let (kubelet, of_kubelet) = tokio::select! {
        biased; // Whoever asked and went away is not to be dialled for.
        // Nothing may come before our answer.
        _ = flow.readable() => return Err(ServeError::GivenUp),
        dialled = agent.policy.dial_with(destination, limit, prepare) => {
            agent.metrics.dials.observe(began.elapsed().as_secs_f64());
            dialled.map_err(ServeError::Dial)?
        }
    };
    answer(flow, &FlowMessage::Opened).await?;
    Ok((kubelet, [of_flow, of_kubelet]))
}

/// A flow whose request was answered with the connection that it wanted.
struct Served<'a> {
    owner: &'a Owner,
    direction: FlowDirection,
    counter: u64,
    peer: SocketAddr,
    target: TargetAddr,
    started: Instant,
}

/// The two connections of a flow that is not relayed yet, client and kubelet; dropping them resets
/// both.
struct Ends(Option<[TcpStream; 2]>);

impl Ends {
    async fn first_bytes(&mut self, options: &RelayOptions) -> Result<Bytes, FirstFault> {
        let [client, kubelet] = self.0.as_mut().expect(ONLY_TAKE);
        first_bytes(client, kubelet, options).await
    }

    fn take(mut self) -> [TcpStream; 2] {
        self.0.take().expect(ONLY_TAKE)
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        for end in self.0.iter().flatten() {
            // Fails only on a connection that is gone already.
            let _ = socket::reset_on_close(end);
        }
    }
}

const ONLY_TAKE: &str = "they are taken only by `take`, which consumes this";

impl Served<'_> {
    async fn relay(self, ends: Ends, agent: &Agent) {
        let config = &agent.config;
        let side = Side::StreamLeadsToTarget;
        let target = self.target.clone();
        let mut access = AccessLog::new(&config.node_name, target, self.peer, side, self.started);
        access.set_path(Path::from(self.direction));
        access.opened(&agent.metrics.streams);
        let master = self.owner.master();
        let _counted = master.relaying(self.direction);
        let options = RelayOptions {
            idle_timeout: config.idle_timeout,
            cancel: master.cut(),
        };
        let outcome = tokio::select! {
            biased; // An end of its own is the better reason.
            outcome = self.judge_and_relay(ends, &options, &access, agent) => outcome,
            // What is dropped with this resets both connections.
            () = master.orphaned() => Outcome::SessionLost,
        };
        if let Some(code) = told(outcome) {
            self.tell(code);
        }
        access.finish(outcome);
    }

    async fn judge_and_relay(
        &self,
        mut ends: Ends,
        options: &RelayOptions,
        access: &AccessLog,
        agent: &Agent,
    ) -> Outcome {
        let early = match ends.first_bytes(options).await {
            Ok(early) => early,
            Err(fault) => {
                if let FirstFault::NotTls(_) = fault {
                    agent.metrics.flows.not_tls(self.direction);
                }
                access.bytes().failed(&fault);
                return fault.outcome();
            }
        };
        let [client, kubelet] = ends.take();
        let pipes = &agent.flows.pipes;
        match relay_spliced(client, kubelet, early, options, access.bytes(), pipes).await {
            // At this end of the tunnel it is the kubelet's connection that is ours.
            Outcome::LocalReset => Outcome::PeerAborted(AbortCode::Reset),
            Outcome::PeerAborted(AbortCode::Reset) => Outcome::LocalReset,
            outcome => outcome,
        }
    }

    /// Says to the master why the flow ends, which a reset of TCP does not.
    fn tell(&self, code: AbortCode) {
        self.owner.tell(FlowAbort {
            direction: self.direction,
            counter: self.counter,
            code,
        });
    }
}

/// What the master is told of an end; nothing of one that it knows of.
fn told(outcome: Outcome) -> Option<AbortCode> {
    match outcome {
        Outcome::LocalReset => Some(AbortCode::Reset),
        Outcome::Idle => Some(AbortCode::Idle),
        Outcome::Drained => Some(AbortCode::Drain),
        Outcome::NotTls => Some(AbortCode::NotTls),
        Outcome::Done
        | Outcome::PeerAborted(_)
        | Outcome::SessionLost
        | Outcome::Protocol
        | Outcome::Memory => None,
    }
}

/// Answers, unless the master does not take it.
async fn answer(flow: &mut FlowConnection, message: &FlowMessage) -> Result<(), ServeError> {
    match timeout(ANSWER_LIMIT, flow.say(message)).await {
        Err(_) => Err(ServeError::Unanswered(None)),
        Ok(said) => said.map_err(|fault| ServeError::Unanswered(Some(fault))),
    }
}

/// Tells the master, where it can still hear it.
async fn refuse(mut flow: FlowConnection, error: &ServeError) {
    if matches!(error, ServeError::GivenUp | ServeError::Unanswered(_)) {
        return;
    }
    let refusal = FlowMessage::Refused {
        code: error.code(),
        message: chain(error),
    };
    if answer(&mut flow, &refusal).await.is_ok() {
        end(flow).await;
    }
}

/// Ends a flow in an orderly way, so that what was said last is heard.
pub(super) async fn end(flow: FlowConnection) {
    let mut connection = flow.into_connection();
    // Fails only on a connection that is gone already.
    let _ = connection.shutdown().await;
}

fn log_refusal(
    error: &ServeError,
    target: &TargetAddr,
    flow: &FlowConnection,
    (peer, started): (SocketAddr, Instant),
    agent: &Agent,
) {
    tracing::info!(
        target: ACCESS,
        node = %agent.config.node_name,
        path = Path::from(flow.direction()).as_str(),
        target = %target,
        peer.addr = %peer,
        reason = error.reason(),
        duration_ms = millis(started.elapsed()),
        error = chain(error),
        "connection refused",
    );
}

impl ServeError {
    fn code(&self) -> RefuseCode {
        match self {
            Self::Draining(_) => RefuseCode::Draining,
            Self::Dial(error) => error.code(),
            // Of what was given up, nobody reads the answer.
            Self::Full { .. } | Self::GivenUp | Self::Unanswered(_) => RefuseCode::Busy,
        }
    }

    /// The word for the log.
    fn reason(&self) -> &'static str {
        match self {
            Self::GivenUp | Self::Unanswered(_) => CANCELLED,
            _ => self.code().as_str(),
        }
    }
}

/// How much sooner than the master gives up it is told that a dial took too long: a slow round
/// trip.
const ANSWER_MARGIN: Duration = Duration::from_millis(250);

/// An answer is a few hundred bytes, for which a fresh connection has room.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
