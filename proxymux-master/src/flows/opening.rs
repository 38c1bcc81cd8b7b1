//! Opening a target through a flow, of either direction.
//!
//! Owns dialling a node, the exchange of open and result, and what a failure means for the request
//! and for the direct path. Leaves to `choose` which flow it is, and what else is tried.
//! Everything here is given up by being dropped: the flow is reset, and the agent stops dialling.

use std::{
    io,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use proxymux_proto::{FlowDirection, FlowError, FlowMessage, FlowOpen, OpenRequest, RefuseCode};
use proxymux_transport::{
    flow::{FlowConnection, FlowFault},
    metrics::Counters,
    socket::{self, FlowBuffersGuard},
    telemetry::Path,
};
use tokio::net::TcpStream;

use super::{
    AbortListener, FlowGuard, SessionFlows,
    direct::{self, Met},
    pool::IdleFlow,
};
use crate::{
    front_door::{Refusal, Status},
    master::Master,
    registry::SessionHandle,
};

/// A flow whose target stands and which carries nothing yet.
#[derive(Debug)]
pub(crate) struct OpenFlow {
    pub(crate) flow: FlowConnection,
    /// Kept as long as the flow.
    pub(crate) buffers: FlowBuffersGuard,
    pub(crate) guard: FlowGuard,
    pub(crate) abort: AbortListener,
}

/// A flow that is to be opened.
#[derive(Debug)]
pub(super) enum Candidate {
    /// A flow that the agent has dialled.
    Reverse(Box<IdleFlow>),
    /// The node is to be dialled.
    Direct(SocketAddr),
}

/// Why a flow was not opened.
#[derive(Debug)]
pub(super) enum OpenFailure {
    /// This is the answer to the request: the kubelet cannot be reached.
    Answer(Refusal),
    /// The agent does not want it.
    Refused,
    /// The flow failed.
    Broken,
}

/// Why nobody was found on the direct path.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    #[error("no connection within {} s", CONNECT_LIMIT.as_secs())]
    TimedOut,
    #[error(transparent)]
    Flow(#[from] FlowFault),
}

impl DialError {
    /// What this says of the direct path.
    pub(super) fn met(&self) -> Met {
        match self {
            Self::Connect(_) => Met::Nobody,
            Self::TimedOut => Met::Silence,
            Self::Flow(_) => Met::Stranger,
        }
    }
}

impl Candidate {
    pub(super) fn direction(&self) -> FlowDirection {
        match self {
            Self::Reverse(_) => FlowDirection::Reverse,
            Self::Direct(_) => FlowDirection::Direct,
        }
    }
}

impl OpenFlow {
    /// The path of what goes over this flow.
    pub(crate) fn path(&self) -> Path {
        self.flow.direction().into()
    }
}

/// Dials a node and sends a hello with this message behind it.
pub(super) async fn dial(
    master: &Master,
    flows: &SessionFlows,
    at: SocketAddr,
    first: &FlowMessage,
) -> Result<(FlowConnection, FlowBuffersGuard), DialError> {
    let connected = tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect(at));
    let connection = connected.await.map_err(|_| DialError::TimedOut)?;
    let connection = connection.map_err(DialError::Connect)?;
    let buffers =
        socket::prepare_flow(&connection, &master.flows.buffers).map_err(DialError::Connect)?;
    let session = flows.session();
    let dialled = FlowConnection::dial(connection, session, FlowDirection::Direct, Some(first));
    Ok((dialled.await?, buffers))
}

/// Opens a target through a flow, within the request's budget as far as the agent is concerned; the
/// caller may give up earlier. Sets `answered` when the agent has shown that it is there.
pub(super) async fn open(
    master: &Master,
    handle: &SessionHandle,
    (candidate, guard): (Candidate, FlowGuard),
    request: OpenRequest,
    answered: &AtomicBool,
) -> Result<OpenFlow, OpenFailure> {
    let mut counted = Counted::new(&master.metrics.flows.opens, candidate.direction());
    let Some(flows) = &handle.flows else {
        return Err(OpenFailure::Refused);
    };
    let message = FlowMessage::Open(FlowOpen::Target(request));
    let opened = match candidate {
        Candidate::Reverse(idle) => open_reverse(*idle, &message).await,
        Candidate::Direct(at) => {
            let mut opened = open_direct(master, flows, at, &message, answered).await;
            if matches!(opened, Err(Fault::Dial(DialError::Flow(_)))) {
                // The kubelet may have it because our port is in TIME_WAIT on the node. Another
                // connection has another port.
                opened = open_direct(master, flows, at, &message, answered).await;
            }
            direct::note(
                handle,
                at,
                opened.as_ref().map_or_else(Fault::met, |_| Met::Agent),
            );
            opened
        }
    };
    match opened {
        Ok((flow, buffers)) => {
            counted.result = "opened";
            answered.store(true, Ordering::Relaxed);
            let abort = flows.listen(flow.direction(), flow.counter());
            Ok(OpenFlow {
                flow,
                buffers,
                guard,
                abort,
            })
        }
        Err(Fault::Refused(code, message)) => {
            counted.result = "refused";
            Err(refused(code, message))
        }
        Err(Fault::Dial(error)) => {
            counted.result = "failed";
            let (node, error) = (&handle.node, proxymux_transport::telemetry::chain(&error));
            tracing::debug!(%node, error, "flow failed before it was open");
            Err(OpenFailure::Broken)
        }
    }
}

/// Why an exchange did not end with `opened`.
enum Fault {
    Refused(RefuseCode, String),
    Dial(DialError),
}

impl Fault {
    fn met(&self) -> Met {
        match self {
            // It is there, whatever it makes of this target.
            Self::Refused(RefuseCode::Unreachable | RefuseCode::TimedOut, _) => Met::Agent,
            Self::Refused(..) => Met::Refusal,
            Self::Dial(error) => error.met(),
        }
    }
}

impl From<DialError> for Fault {
    fn from(error: DialError) -> Self {
        Self::Dial(error)
    }
}

impl From<FlowFault> for Fault {
    fn from(fault: FlowFault) -> Self {
        Self::Dial(fault.into())
    }
}

type Opened = Result<(FlowConnection, FlowBuffersGuard), Fault>;

async fn open_reverse(idle: IdleFlow, message: &FlowMessage) -> Opened {
    let IdleFlow {
        mut flow, buffers, ..
    } = idle;
    flow.say(message).await?;
    hear_result(&mut flow).await?;
    Ok((flow, buffers))
}

async fn open_direct(
    master: &Master,
    flows: &SessionFlows,
    at: SocketAddr,
    message: &FlowMessage,
    answered: &AtomicBool,
) -> Opened {
    let (mut flow, buffers) = dial(master, flows, at, message).await?;
    match flow.hear().await? {
        FlowMessage::Accepted => {}
        FlowMessage::Refused { code, message } => return Err(Fault::Refused(code, message)),
        FlowMessage::Open(_) | FlowMessage::Opened => return Err(out_of_turn().into()),
    }
    answered.store(true, Ordering::Relaxed);
    hear_result(&mut flow).await?;
    Ok((flow, buffers))
}

async fn hear_result(flow: &mut FlowConnection) -> Result<(), Fault> {
    match flow.hear().await? {
        FlowMessage::Opened => Ok(()),
        FlowMessage::Refused { code, message } => Err(Fault::Refused(code, message)),
        FlowMessage::Open(_) | FlowMessage::Accepted => Err(out_of_turn().into()),
    }
}

/// The conversation lets no such message through; if it ever did the flow would be over.
fn out_of_turn() -> FlowFault {
    FlowFault::Peer(FlowError::Unexpected {
        seen: 0,
        expected: "result",
    })
}

/// What a refusal means: only what is about the kubelet would be the same by the session.
fn refused(code: RefuseCode, message: String) -> OpenFailure {
    let status = match code {
        RefuseCode::Unreachable => Status::BadGateway,
        RefuseCode::TimedOut => Status::GatewayTimeout,
        RefuseCode::NotAllowed
        | RefuseCode::Busy
        | RefuseCode::BadRequest
        | RefuseCode::Draining
        | RefuseCode::Other(_) => return OpenFailure::Refused,
    };
    OpenFailure::Answer(Refusal::new(status, message))
}

/// Counts an attempt when it is over; one that is dropped was given up, since the session was
/// faster or the client left.
struct Counted {
    opens: Counters<2>,
    path: &'static str,
    result: &'static str,
}

impl Counted {
    fn new(opens: &Counters<2>, direction: FlowDirection) -> Self {
        Self {
            opens: opens.clone(),
            path: direction.as_str(),
            result: "given-up",
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.opens.get_pair([self.path, self.result]).inc();
    }
}

/// How attempts to open a flow end.
pub(crate) const RESULTS: &[&str] = &["opened", "refused", "failed", "given-up"];

/// A lost packet is sent again after one second.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
