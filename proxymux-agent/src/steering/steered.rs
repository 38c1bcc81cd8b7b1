//! One steered connection: what it is, and its relay to the kubelet.
//!
//! Owns the first look at its bytes, the policy for what is no flow, the reasons for closing one,
//! and its line in the access log. Leaves accepting to `listener.rs`, what begins as a flow does to
//! `flows`, the relay to `proxymux_transport::splice`.
//! The kubelet is dialled over this host's loopback device, where no program of ours is: a relayed
//! connection cannot be steered again.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use proxymux_proto::{FLOW_HELLO_LEN, Host, RefuseCode, TargetAddr};
use proxymux_transport::{
    beginning::Beginning,
    half_open::HalfOpenGuard,
    metrics::{Counter, Counters, Registry, counter, counters},
    relay::RelayOptions,
    socket::{self, FlowBuffersGuard},
    splice::relay_spliced,
    telemetry::{ACCESS, AccessLog, Path, Side, chain, millis},
};
use tokio::{io::AsyncReadExt, net::TcpStream, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    agent::Agent,
    config::SteerPlain,
    flows::{self, DirectFault},
    target::DialError,
};

/// A connection that one of the listeners has accepted.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) connection: TcpStream,
    pub(super) from: SocketAddr,
    /// Where its client wanted to.
    pub(super) to: SocketAddr,
    /// It came by steering, and not by somebody who found the listener.
    pub(super) steered: bool,
    pub(super) started: Instant,
    /// Held until it has shown what it is.
    pub(super) half_open: HalfOpenGuard,
}

/// Why a connection is not relayed.
#[derive(Debug, thiserror::Error)]
enum SteeredError {
    #[error("not steered: {0} is not the kubelet's port at an address of this node")]
    NotSteered(SocketAddr),
    #[error("there are {0} steered connections already")]
    Full(usize),
    #[error("too many connections have not shown yet what they are, and this was the oldest")]
    Crowded,
    #[error("client sent nothing within {} s", .0.as_secs())]
    Silent(Duration),
    #[error("client ended the connection before it had sent a request")]
    Gone(#[source] Option<io::Error>),
    #[error("client begins with {0}, not with TLS")]
    NotTls(&'static str),
    #[error("client begins with TLS, and steer-plain is refuse")]
    Refused,
    #[error(transparent)]
    Flow(DirectFault),
    #[error(transparent)]
    Dial(DialError),
}

/// What a connection is, with the bytes that it was known by.
enum First {
    Tls(Bytes),
    Flow(Bytes),
}

/// A kubelet's connection and the bytes for it, with the shares in the budget for buffers.
struct Opened {
    kubelet: TcpStream,
    early: Bytes,
    _buffers: [FlowBuffersGuard; 2],
}

/// Metrics of steered connections.
#[derive(Debug)]
pub(crate) struct SteeredMetrics {
    /// Connections that were accepted.
    pub(crate) accepted: Counter,
    refused: Counters,
}

impl SteeredMetrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        Self {
            accepted: counter(
                registry,
                "steered_accepted",
                "Connections that the kernel has steered here and that were accepted",
            ),
            refused: counters(
                registry,
                (
                    "steered_refused",
                    "Connections at the listeners of steering that came to no relay, by the reason that the access log has",
                ),
                "reason",
                REASONS,
            ),
        }
    }
}

/// Serves a connection until it has ended.
pub(super) async fn serve(arrival: Arrival, agent: Arc<Agent>, cut: CancellationToken) {
    if arrival.steered {
        agent.metrics.steered.accepted.inc();
    }
    let Arrival {
        mut connection,
        from,
        to,
        started,
        steered,
        half_open,
    } = arrival;
    let about = (from, to, started);
    let first = tokio::select! {
        first = look(&mut connection, steered, to) => first,
        // It is reset: nothing was promised to it yet.
        () = cut.cancelled() => Err(SteeredError::Gone(None)),
        () = half_open.evicted() => Err(SteeredError::Crowded),
    };
    let early = match first {
        Ok(First::Tls(early)) => early,
        Ok(First::Flow(early)) => {
            let taken = tokio::select! {
                taken = flows::accept(connection, &early, started, &agent) => {
                    taken.map_err(SteeredError::Flow)
                }
                () = cut.cancelled() => Err(SteeredError::Gone(None)),
                () = half_open.evicted() => Err(SteeredError::Crowded),
            };
            // What has proven itself lives on in a task of its own.
            if let Err(error) = taken {
                refuse(None, &error, about, &agent);
            }
            return;
        }
        Err(error) => return refuse(Some(connection), &error, about, &agent),
    };
    drop(half_open);
    let opened = tokio::select! {
        opened = open(&connection, early, &agent) => opened,
        () = cut.cancelled() => Err(SteeredError::Gone(None)),
    };
    match opened {
        Ok(opened) => relay(connection, opened, about, &agent, cut).await,
        Err(error) => refuse(Some(connection), &error, about, &agent),
    }
}

/// Turns a connection away for which there is no room.
pub(super) fn refuse_full(arrival: Arrival, agent: &Agent) {
    let Arrival {
        connection,
        from,
        to,
        started,
        ..
    } = arrival;
    agent.metrics.steered.accepted.inc();
    let error = SteeredError::Full(super::listener::MAX_STEERED);
    refuse(Some(connection), &error, (from, to, started), agent);
}

/// Looks at what the client sends first.
async fn look(
    connection: &mut TcpStream,
    steered: bool,
    to: SocketAddr,
) -> Result<First, SteeredError> {
    if !steered {
        return Err(SteeredError::NotSteered(to));
    }
    let prepared = socket::prepare_idle(connection);
    prepared.map_err(|error| SteeredError::Gone(Some(error)))?;
    let first = tokio::time::timeout(FIRST_BYTES_LIMIT, first_bytes(connection)).await;
    first.map_err(|_| SteeredError::Silent(FIRST_BYTES_LIMIT))?
}

/// Dials the kubelet for what begins with TLS.
async fn open(connection: &TcpStream, early: Bytes, agent: &Agent) -> Result<Opened, SteeredError> {
    if agent.config.steer_plain == SteerPlain::Refuse {
        return Err(SteeredError::Refused);
    }
    let prepare = |socket: &TcpStream| socket::prepare_flow(socket, &agent.flows.buffers);
    let of_client = prepare(connection).map_err(|error| SteeredError::Gone(Some(error)))?;
    let began = Instant::now();
    let limit = agent.config.dial_timeout;
    let dialled = agent
        .policy
        .dial_with(agent.policy.kubelet(), limit, prepare);
    let dialled = dialled.await;
    agent.metrics.dials.observe(began.elapsed().as_secs_f64());
    let (kubelet, of_kubelet) = dialled.map_err(SteeredError::Dial)?;
    Ok(Opened {
        kubelet,
        early,
        _buffers: [of_client, of_kubelet],
    })
}

/// Reads until it is sure what the client speaks; what was read is to be passed on.
///
/// It is read and not peeked at: a socket with one byte in it stays readable, and waiting for the
/// second one would be waiting in circles. Of a flow no more than its hello is read, as what
/// follows is read by its own length.
async fn first_bytes(connection: &mut TcpStream) -> Result<First, SteeredError> {
    let mut early = BytesMut::with_capacity(FLOW_HELLO_LEN);
    loop {
        let missing = FLOW_HELLO_LEN - early.len();
        match connection.read_buf(&mut (&mut early).limit(missing)).await {
            Ok(0) => return Err(SteeredError::Gone(None)),
            Ok(_) => {}
            Err(error) => return Err(SteeredError::Gone(Some(error))),
        }
        match Beginning::of(&early) {
            Beginning::Unclear => {}
            Beginning::Tls => {
                // All of a ClientHello goes to the kubelet in one piece, if it came in one.
                early.reserve(FIRST_READ);
                // Whatever is wrong now the relay finds too.
                let _ = connection.try_read_buf(&mut early);
                return Ok(First::Tls(early.freeze()));
            }
            Beginning::Flow => return Ok(First::Flow(early.freeze())),
            other => return Err(SteeredError::NotTls(other.what())),
        }
    }
}

async fn relay(
    connection: TcpStream,
    opened: Opened,
    (from, to, started): (SocketAddr, SocketAddr, Instant),
    agent: &Agent,
    cut: CancellationToken,
) {
    let config = &agent.config;
    let _work = agent.work();
    let Some(target) = target(to) else {
        return;
    };
    let side = Side::StreamLeadsToTarget;
    let mut access = AccessLog::new(&config.node_name, target, from, side, started);
    access.set_path(Path::Steered);
    access.opened(&agent.metrics.streams);
    let options = RelayOptions {
        idle_timeout: config.idle_timeout,
        cancel: cut,
    };
    let Opened {
        kubelet,
        early,
        _buffers,
    } = opened;
    let pipes = &agent.flows.pipes;
    let bytes = access.bytes();
    let outcome = relay_spliced(connection, kubelet, early, &options, bytes, pipes).await;
    access.finish(outcome);
}

/// Ends a connection, if it has not ended, and says why. A client that speaks TLS sees a reset,
/// which it cannot take for an answer.
fn refuse(
    connection: Option<TcpStream>,
    error: &SteeredError,
    (from, to, started): (SocketAddr, SocketAddr, Instant),
    agent: &Agent,
) {
    if let Some(connection) = &connection
        && !matches!(error, SteeredError::NotTls(_))
    {
        // Fails only on a connection that is gone already.
        let _ = socket::reset_on_close(connection);
    }
    agent.metrics.steered.refused.get(error.reason()).inc();
    tracing::info!(
        target: ACCESS,
        node = %agent.config.node_name,
        path = Path::Steered.as_str(),
        target = %to,
        peer.addr = %from,
        reason = error.reason(),
        duration_ms = millis(started.elapsed()),
        error = chain(error),
        "connection refused",
    );
}

/// The destination as the access log has it; none for port 0, to which nothing connects.
fn target(to: SocketAddr) -> Option<TargetAddr> {
    TargetAddr::new(Host::Ip(to.ip()), to.port())
}

impl SteeredError {
    /// The word for the log and the metric, one of [`REASONS`].
    fn reason(&self) -> &'static str {
        match self {
            Self::NotSteered(_) => "not-steered",
            Self::Full(_) | Self::Crowded => "full",
            Self::Silent(_) => "silent",
            Self::Gone(_) => "gone",
            Self::NotTls(_) => "not-tls",
            Self::Refused => "policy",
            Self::Flow(DirectFault::Slow(_)) => "silent",
            Self::Flow(DirectFault::Hello(_)) => "hello",
            Self::Dial(error) => match error.code() {
                RefuseCode::TimedOut => "timed-out",
                _ => "unreachable",
            },
        }
    }
}

const REASONS: &[&str] = &[
    "not-steered",
    "full",
    "silent",
    "gone",
    "not-tls",
    "policy",
    "hello",
    "unreachable",
    "timed-out",
];

/// A client of the kubelet speaks first, and at once.
const FIRST_BYTES_LIMIT: Duration = Duration::from_secs(5);

/// Room for a ClientHello, most of which fit into one segment.
const FIRST_READ: usize = 2048;

#[cfg(test)]
mod tests {
    use proxymux_proto::FlowError;

    use super::*;

    #[test]
    fn every_reason_is_a_metric() {
        let to = "192.0.2.1:10250".parse().unwrap();
        let all = [
            SteeredError::NotSteered(to),
            SteeredError::Full(1),
            SteeredError::Crowded,
            SteeredError::Silent(FIRST_BYTES_LIMIT),
            SteeredError::Gone(None),
            SteeredError::NotTls(""),
            SteeredError::Refused,
            SteeredError::Flow(DirectFault::Slow(FIRST_BYTES_LIMIT)),
            SteeredError::Flow(DirectFault::Hello(FlowError::NotAHello.into())),
        ];
        for error in all {
            assert!(REASONS.contains(&error.reason()), "{error}");
        }
    }
}
