//! One steered connection: what it is, and its relay to the kubelet.
//!
//! Owns the first look at its bytes, the policy for what is no flow, the reasons for closing one,
//! and its line in the access log. Leaves accepting to `listener.rs`, the relay to
//! `proxymux_transport::pair`.
//! The kubelet is dialled over this host's loopback device, where no program of ours is: a relayed
//! connection cannot be steered again.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use proxymux_proto::{Host, RefuseCode, TargetAddr};
use proxymux_transport::{
    beginning::Beginning,
    metrics::{Counter, Counters, Registry, counter, counters},
    pair::relay_pair,
    relay::RelayOptions,
    socket,
    telemetry::{ACCESS, AccessLog, Path, Side, chain, millis},
};
use tokio::{io::AsyncReadExt, net::TcpStream, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{agent::Agent, config::SteerPlain, target::DialError};

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
}

/// Why a connection is not relayed.
#[derive(Debug, thiserror::Error)]
enum SteeredError {
    #[error("not steered: {0} is not the kubelet's port at an address of this node")]
    NotSteered(SocketAddr),
    #[error("there are {0} steered connections already")]
    Full(usize),
    #[error("client sent nothing within {} s", .0.as_secs())]
    Silent(Duration),
    #[error("client ended the connection before it had sent a request")]
    Gone(#[source] Option<io::Error>),
    #[error("client begins with {0}, not with TLS")]
    NotTls(&'static str),
    #[error("client begins with TLS, and steer-plain is refuse")]
    Refused,
    #[error(transparent)]
    Dial(DialError),
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
        ..
    } = arrival;
    let opened = tokio::select! {
        opened = open(&mut connection, arrival.steered, to, &agent) => opened,
        // It is reset: nothing was promised to it yet.
        () = cut.cancelled() => Err(SteeredError::Gone(None)),
    };
    match opened {
        Ok((kubelet, early)) => {
            let relayed = [connection, kubelet];
            relay(relayed, early, (from, to, started), &agent, cut).await;
        }
        Err(error) => refuse(connection, &error, (from, to, started), &agent),
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
    refuse(connection, &error, (from, to, started), agent);
}

/// Looks at what the client sends, and dials the kubelet for it.
async fn open(
    connection: &mut TcpStream,
    steered: bool,
    to: SocketAddr,
    agent: &Agent,
) -> Result<(TcpStream, Bytes), SteeredError> {
    if !steered {
        return Err(SteeredError::NotSteered(to));
    }
    let prepared = socket::prepare_relayed(connection);
    prepared.map_err(|error| SteeredError::Gone(Some(error)))?;
    let first = tokio::time::timeout(FIRST_BYTES_LIMIT, first_bytes(connection)).await;
    let early = first.map_err(|_| SteeredError::Silent(FIRST_BYTES_LIMIT))??;
    if agent.config.steer_plain == SteerPlain::Refuse {
        return Err(SteeredError::Refused);
    }
    let began = Instant::now();
    let limit = agent.config.dial_timeout;
    let dialled = agent.policy.dial(agent.policy.kubelet(), limit).await;
    agent.metrics.dials.observe(began.elapsed().as_secs_f64());
    let kubelet = dialled.map_err(SteeredError::Dial)?;
    Ok((kubelet, early))
}

/// Reads until it is sure that the client speaks TLS; what was read is to be passed on.
///
/// It is read and not peeked at: a socket with one byte in it stays readable, and waiting for the
/// second one would be waiting in circles.
async fn first_bytes(connection: &mut TcpStream) -> Result<Bytes, SteeredError> {
    let mut early = BytesMut::with_capacity(FIRST_READ);
    loop {
        match connection.read_buf(&mut early).await {
            Ok(0) => return Err(SteeredError::Gone(None)),
            Ok(_) => {}
            Err(error) => return Err(SteeredError::Gone(Some(error))),
        }
        match Beginning::of(&early) {
            Beginning::Unclear => {}
            Beginning::Tls => return Ok(early.freeze()),
            other => return Err(SteeredError::NotTls(other.what())),
        }
    }
}

async fn relay(
    [connection, kubelet]: [TcpStream; 2],
    early: Bytes,
    (from, to, started): (SocketAddr, SocketAddr, Instant),
    agent: &Agent,
    cut: CancellationToken,
) {
    let config = &agent.config;
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
    let outcome = relay_pair(connection, kubelet, early, &options, access.bytes()).await;
    access.finish(outcome);
}

/// Ends a connection and says why. A client that speaks TLS sees a reset, which it cannot take for
/// an answer.
fn refuse(
    connection: TcpStream,
    error: &SteeredError,
    (from, to, started): (SocketAddr, SocketAddr, Instant),
    agent: &Agent,
) {
    if !matches!(error, SteeredError::NotTls(_)) {
        // Fails only on a connection that is gone already.
        let _ = socket::reset_on_close(&connection);
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
            Self::Full(_) => "full",
            Self::Silent(_) => "silent",
            Self::Gone(_) => "gone",
            Self::NotTls(_) => "not-tls",
            Self::Refused => "policy",
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
    "unreachable",
    "timed-out",
];

/// A client of the kubelet speaks first, and at once.
const FIRST_BYTES_LIMIT: Duration = Duration::from_secs(5);

/// Room for a ClientHello, most of which fit into one segment.
const FIRST_READ: usize = 2048;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_a_metric() {
        let to = "192.0.2.1:10250".parse().unwrap();
        let all = [
            SteeredError::NotSteered(to),
            SteeredError::Full(1),
            SteeredError::Silent(FIRST_BYTES_LIMIT),
            SteeredError::Gone(None),
            SteeredError::NotTls(""),
            SteeredError::Refused,
        ];
        for error in all {
            assert!(REASONS.contains(&error.reason()), "{error}");
        }
    }
}
