//! From nothing to an idle flow of the reverse path: name, TCP, hello, answer.
//!
//! Owns the order of these steps and the limit of each, and says in words which of them failed.
//! How many flows there are to be, and when to try again, is `pool.rs`.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use proxymux_proto::{FlowDirection, FlowMessage, Host, RefuseCode, TargetAddr};
use proxymux_transport::{
    flow::{FlowConnection, FlowFault, FlowSession},
    socket,
};
use tokio::net::TcpStream;

use super::Owner;
use crate::outbound::{self, ConnectError};

/// What dials the flows of one session.
#[derive(Debug)]
pub(super) struct Dialler {
    pub(super) to: FlowAddress,
    /// As `bind-addr` has it.
    pub(super) from: Option<IpAddr>,
    /// As the session has it: the path to the same master may lose what is larger.
    pub(super) largest_segment: Option<u16>,
    pub(super) session: Arc<FlowSession<Arc<Owner>>>,
}

/// Where a master takes flows.
#[derive(Clone, Debug)]
pub(super) enum FlowAddress {
    /// Where its session goes.
    Session(SocketAddr),
    /// Where it says.
    Advertised(TargetAddr),
}

/// Why there is no flow.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialFault {
    #[error("cannot resolve {name}")]
    Resolve {
        name: TargetAddr,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Connect(ConnectError),
    #[error("cannot set up the connection")]
    Socket(#[source] io::Error),
    #[error("hello was not answered within {} s", .0.as_secs())]
    Unanswered(Duration),
    #[error("hello was not accepted")]
    Broken(#[source] FlowFault),
    #[error("master refused the flow ({}): {message}", .code.as_str())]
    Refused { code: RefuseCode, message: String },
    #[error("master ended an idle flow right after it had accepted it")]
    Short,
}

impl DialFault {
    /// Every word of [`DialFault::as_str`].
    pub(super) const WORDS: &[&str] = &[
        "resolve",
        "connect",
        "unanswered",
        "broken",
        "refused",
        "short",
    ];

    /// The word for metric labels.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Resolve { .. } => "resolve",
            Self::Connect(_) | Self::Socket(_) => "connect",
            Self::Unanswered(_) => "unanswered",
            Self::Broken(_) => "broken",
            Self::Refused { .. } => "refused",
            Self::Short => "short",
        }
    }
}

impl Dialler {
    /// A flow that the master has accepted.
    ///
    /// # Errors
    ///
    /// Says which step failed. Each has a limit, so that this always ends.
    pub(super) async fn dial(&self) -> Result<FlowConnection, DialFault> {
        let connection = self.connect().await?;
        socket::prepare_idle(&connection).map_err(DialFault::Socket)?;
        let answered = tokio::time::timeout(ANSWER_LIMIT, self.greet(connection)).await;
        answered.map_err(|_| DialFault::Unanswered(ANSWER_LIMIT))?
    }

    async fn connect(&self) -> Result<TcpStream, DialFault> {
        let at = match &self.to {
            FlowAddress::Session(at) => *at,
            FlowAddress::Advertised(name) => {
                resolve(name).await.map_err(|source| DialFault::Resolve {
                    name: name.clone(),
                    source,
                })?
            }
        };
        let connected = outbound::connect(at, self.from, self.largest_segment).await;
        connected.map_err(DialFault::Connect)
    }

    async fn greet(&self, connection: TcpStream) -> Result<FlowConnection, DialFault> {
        let direction = FlowDirection::Reverse;
        let dialled = FlowConnection::dial(connection, &self.session, direction, None).await;
        let mut flow = dialled.map_err(DialFault::Broken)?;
        match flow.hear().await.map_err(DialFault::Broken)? {
            FlowMessage::Refused { code, message } => Err(DialFault::Refused { code, message }),
            // No other message passes for an answer to a hello.
            _ => Ok(flow),
        }
    }
}

async fn resolve(name: &TargetAddr) -> io::Result<SocketAddr> {
    let host = match &name.host {
        Host::Ip(ip) => return Ok((*ip, name.port()).into()),
        Host::Name(host) => host.to_string(),
    };
    let looked = tokio::net::lookup_host((host, name.port()));
    let mut found = tokio::time::timeout(RESOLVE_LIMIT, looked).await??;
    found
        .next()
        .ok_or_else(|| io::Error::other("name has no address"))
}

impl fmt::Display for FlowAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Session(at) => at.fmt(f),
            Self::Advertised(name) => name.fmt(f),
        }
    }
}

/// A master answers a hello at once; the rest is for a lost packet or two.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// A resolver asks again after 5 s.
const RESOLVE_LIMIT: Duration = Duration::from_secs(6);
