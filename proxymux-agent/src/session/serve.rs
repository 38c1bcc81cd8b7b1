//! One stream of the master: its request, the dial, the relay, the line in the access log.
//!
//! Owns the agent's side of opening a stream. Whatever goes wrong here ends this stream only.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use proxymux_proto::{
    AbortCode, DecodeError, FrameError, NodeName, OpenAnswer, OpenRequest, RefuseCode, TargetAddr,
};
use proxymux_transport::{
    memory::MemoryFull,
    relay::{Outcome, RelayOptions, relay},
    stream::{MessageStream, StreamError},
    telemetry::{ACCESS, AccessLog, Path, Side, chain, millis},
};
use tokio::{net::TcpStream, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    agent::Agent,
    metrics::CANCELLED,
    target::{Destination, DialError},
};

/// What a stream needs to know of its session.
#[derive(Clone, Debug)]
pub(crate) struct StreamContext {
    pub(crate) agent: Arc<Agent>,
    pub(crate) master: SocketAddr,
    /// Cancelled when open streams are out of time.
    pub(crate) cut: CancellationToken,
    /// Counts connections that were relayed when the session was lost.
    pub(crate) lost: Arc<AtomicUsize>,
}

/// Why a stream came to no relay.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("master sent no request within {} s", .0.as_secs())]
    Silent(Duration),
    #[error("master ended the stream before its request was complete")]
    NoRequest(#[source] Option<StreamError>),
    #[error("master sent a bad request")]
    BadRequest(#[source] DecodeError),
    #[error("master sent a bad request")]
    TooLong(#[source] FrameError),
    #[error("agent of node {0} is draining")]
    Draining(NodeName),
    #[error("agent of node {node}: {full}")]
    NoMemory { node: NodeName, full: MemoryFull },
    #[error(transparent)]
    Dial(DialError),
    #[error("master gave the stream up while the target was dialled")]
    GivenUp(#[source] StreamError),
}

/// Serves a stream that the master has opened.
pub(crate) async fn serve(mut stream: MessageStream, context: StreamContext) {
    let started = Instant::now();
    let _work = context.agent.work();
    let request = receive_request(&mut stream).await;
    let target = request.as_ref().ok().map(|request| request.target.clone());
    let opened = match request {
        Ok(request) => open(&mut stream, &request, &context.agent)
            .await
            .map(|c| (c, request)),
        Err(error) => Err(error),
    };
    match opened {
        Ok((connection, request)) => {
            relay_stream(connection, stream, request.target, &context, started).await;
        }
        Err(error) => {
            let refused = &context.agent.metrics.refused;
            refused.get(error.reason()).inc();
            log_refusal(&error, target.as_ref(), &context, started);
            refuse(stream, &error).await;
        }
    }
}

async fn receive_request(stream: &mut MessageStream) -> Result<OpenRequest, ServeError> {
    match tokio::time::timeout(REQUEST_LIMIT, stream.receive()).await {
        Err(_) => Err(ServeError::Silent(REQUEST_LIMIT)),
        Ok(Ok(Some(content))) => OpenRequest::decode(&content).map_err(ServeError::BadRequest),
        Ok(Ok(None)) => Err(ServeError::NoRequest(None)),
        Ok(Err(StreamError::Frame(error))) => Err(ServeError::TooLong(error)),
        Ok(Err(error)) => Err(ServeError::NoRequest(Some(error))),
    }
}

/// Acknowledges the request, which the master's multiplexer needs soon, and dials the target.
async fn open(
    stream: &mut MessageStream,
    request: &OpenRequest,
    agent: &Agent,
) -> Result<TcpStream, ServeError> {
    if agent.closing.is_closed() {
        return Err(ServeError::Draining(agent.config.node_name.clone()));
    }
    stream.check_memory().map_err(|full| ServeError::NoMemory {
        node: agent.config.node_name.clone(),
        full,
    })?;
    let decided = match request.measure {
        None => agent.policy.decide(&request.target),
        Some(measure) => agent.policy.decide_measure(measure),
    };
    let destination = decided.map_err(ServeError::Dial)?;
    send(stream, &OpenAnswer::Dialing).await?;
    // The master waits no longer than the budget, and what we saw is the better reason.
    let answered_by = request.budget - ANSWER_MARGIN.min(request.budget / 10);
    let limit = answered_by.min(agent.config.dial_timeout);
    let connection = tokio::select! {
        biased; // Whoever asked and went away is not to be dialled for.
        gone = stream.given_up() => return Err(ServeError::GivenUp(gone)),
        dialled = dial(agent, destination, limit) => dialled.map_err(ServeError::Dial)?,
    };
    send(stream, &OpenAnswer::Opened).await?;
    Ok(connection)
}

async fn dial(
    agent: &Agent,
    destination: Destination,
    limit: Duration,
) -> Result<TcpStream, DialError> {
    let began = Instant::now();
    let dialled = agent.policy.dial(destination, limit).await;
    agent.metrics.dials.observe(began.elapsed().as_secs_f64());
    dialled
}

async fn relay_stream(
    connection: TcpStream,
    stream: MessageStream,
    target: TargetAddr,
    context: &StreamContext,
    started: Instant,
) {
    let config = &context.agent.config;
    let side = Side::ConnectionLeadsToTarget;
    let mut access = AccessLog::new(&config.node_name, target, context.master, side, started);
    access.opened(&context.agent.metrics.streams);
    let options = RelayOptions {
        idle_timeout: config.idle_timeout,
        cancel: context.cut.clone(),
    };
    let stream = stream.into_relay();
    let outcome = relay(connection, stream, Bytes::new(), &options, access.bytes()).await;
    if outcome == Outcome::SessionLost {
        context.lost.fetch_add(1, Ordering::Relaxed);
    }
    access.finish(outcome);
}

/// Sends an answer, unless the stream is given up first: without credit it could wait for ever.
async fn send(stream: &mut MessageStream, answer: &OpenAnswer) -> Result<(), ServeError> {
    let frame = answer
        .encode()
        .expect("answers are far shorter than a frame may be");
    stream.send(&frame).await.map_err(ServeError::GivenUp)
}

/// Tells the master, where it can still hear it.
async fn refuse(mut stream: MessageStream, error: &ServeError) {
    if matches!(error, ServeError::Silent(_) | ServeError::NoRequest(_)) {
        return stream.abort(AbortCode::Protocol);
    }
    if !matches!(error, ServeError::GivenUp(_)) {
        let refusal = OpenAnswer::Refused {
            code: error.code(),
            message: chain(error),
        };
        // If it cannot be sent, the stream's end says it too.
        let _ = tokio::time::timeout(REQUEST_LIMIT, send(&mut stream, &refusal)).await;
    }
    stream.finish();
}

fn log_refusal(
    error: &ServeError,
    target: Option<&TargetAddr>,
    context: &StreamContext,
    started: Instant,
) {
    tracing::info!(
        target: ACCESS,
        node = %context.agent.config.node_name,
        path = Path::None.as_str(),
        target = target.map(tracing::field::display),
        peer.addr = %context.master,
        reason = error.reason(),
        duration_ms = millis(started.elapsed()),
        error = chain(error),
        "connection refused",
    );
}

impl ServeError {
    fn code(&self) -> RefuseCode {
        match self {
            Self::Silent(_) | Self::NoRequest(_) | Self::BadRequest(_) | Self::TooLong(_) => {
                RefuseCode::BadRequest
            }
            Self::Draining(_) => RefuseCode::Draining,
            Self::Dial(error) => error.code(),
            // Of what was given up, nobody reads the answer.
            Self::NoMemory { .. } | Self::GivenUp(_) => RefuseCode::Busy,
        }
    }

    /// The word for the log.
    fn reason(&self) -> &'static str {
        match self {
            Self::GivenUp(_) => CANCELLED,
            _ => self.code().as_str(),
        }
    }
}

/// How much sooner than the master gives up it is told that a dial took too long: a slow round
/// trip.
const ANSWER_MARGIN: Duration = Duration::from_millis(250);

/// A master sends the request together with the stream; this is for one that does not.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
