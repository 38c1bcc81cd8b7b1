//! From nothing to a registered session: certificates, TCP, TLS, multiplexer, registration.
//!
//! Owns the order of these steps and the limit of each, and says in words which of them failed.
//! Trying again is `session.rs`.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use proxymux_proto::{ControlMessage, FlowKeys, Registered, SessionEnd};
use proxymux_transport::{
    control::{ControlError, ControlStream},
    credentials::ContentId,
    flow,
    mux::{self, Incoming, MuxLimits, OpenError, Role, SessionFault},
    reload::InForce,
    session::{Event, SessionCore, SessionOver},
    socket::{self, SessionSocket},
    tls::{self, TlsError, TlsFault, describe_io_error},
    tls_stream::TlsStream,
    trust::PeerTrust,
};
use tokio::time::Instant;

use super::{
    backoff::Unnoticed,
    segments::{Loss, Segments},
};
use crate::{
    agent::Agent,
    certificates::CertificatesError,
    config::ServerAddr,
    outbound::{ConnectError, connect},
};

/// A session that the master has accepted.
#[derive(Debug)]
pub(crate) struct Established {
    pub(crate) core: SessionCore,
    pub(crate) incoming: Incoming,
    pub(crate) registered: Registered,
    pub(crate) local: SocketAddr,
    pub(super) segments: Segments,
    /// Whether the master is still to be believed.
    pub(crate) trust: PeerTrust,
    /// The secrets of its flows, if this agent is to have any.
    pub(super) flow_keys: Option<Arc<FlowKeys>>,
    /// The certificate that was shown to it.
    pub(crate) shown: ContentId,
    /// The serial number of that certificate, for logs.
    pub(crate) serial: String,
}

/// Which step failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EstablishError {
    #[error("{0}")]
    Waiting(String),
    #[error(transparent)]
    Certificates(Box<dyn std::error::Error + Send + Sync>),
    #[error("cannot look for certificates")]
    Blocking(#[source] tokio::task::JoinError),
    #[error(transparent)]
    Connect(ConnectError),
    #[error("cannot set up the connection")]
    Socket(#[source] io::Error),
    #[error(transparent)]
    Tls(TlsError),
    #[error("cannot take the keys of flows from TLS")]
    FlowKeys(#[source] rustls::Error),
    /// As [`TlsError`] has it, but from the first answer after our side of the handshake.
    #[error("TLS handshake with the master failed")]
    TlsAfterwards(#[source] TlsFault),
    #[error("session ended before it was accepted")]
    Over(#[source] SessionOver),
    #[error("master did not answer the TLS handshake within {} s", .after.as_secs())]
    HandshakeUnanswered { direction: Loss, after: Duration },
    #[error("cannot open the control stream")]
    Open(#[source] OpenError),
    #[error(
        "a ping that fills a segment ({sent} bytes) or its answer ({asked} bytes) was lost \
         {direction} for {} s", .after.as_secs()
    )]
    LargeLost {
        sent: u32,
        asked: u32,
        direction: Loss,
        after: Duration,
    },
    #[error("cannot send the registration")]
    Send(#[source] ControlError),
    #[error("master refused the registration ({}): {}", .0.code.as_str(), .0.message)]
    Rejected(SessionEnd),
    #[error("master speaks version {seen} of the protocol, this agent {ours}")]
    Version { seen: u32, ours: u32 },
    #[error("master sent `{0}` before it answered the registration")]
    Unexpected(&'static str),
    #[error("master did not answer the registration within {} s", .0.as_secs())]
    NotAnswered(Duration),
}

impl EstablishError {
    /// Whether the attempt ended before the master itself had anything to do, and how.
    pub(crate) fn unnoticed(&self) -> Option<Unnoticed> {
        match self {
            Self::Connect(ConnectError::Connect(error))
                if error.kind() == io::ErrorKind::ConnectionRefused =>
            {
                Some(Unnoticed::Refused)
            }
            Self::Connect(ConnectError::Socket(_)) => None,
            // An address of ours that is gone is a link that is down.
            Self::Connect(_) => Some(Unnoticed::NoWay),
            Self::Waiting(_)
            | Self::Certificates(_)
            | Self::Blocking(_)
            | Self::Socket(_)
            | Self::Tls(_)
            | Self::FlowKeys(_)
            | Self::HandshakeUnanswered { .. }
            | Self::TlsAfterwards(_)
            | Self::Over(_)
            | Self::Open(_)
            | Self::LargeLost { .. }
            | Self::Send(_)
            | Self::Rejected(_)
            | Self::Version { .. }
            | Self::Unexpected(_)
            | Self::NotAnswered(_) => None,
        }
    }

    /// Where large segments may have been lost, if that can be the cause.
    pub(super) fn loss(&self) -> Option<Loss> {
        match self {
            Self::LargeLost { direction, .. } => Some(*direction),
            // The master's certificate is the first of what is large.
            Self::HandshakeUnanswered { direction, .. } => Some(*direction),
            _ => None,
        }
    }
}

/// Establishes a session with the master at `at`, which must have the certificate of `server`.
///
/// # Errors
///
/// Says which step failed. Each has a limit, so that this always ends.
pub(crate) async fn establish(
    agent: &Agent,
    server: &ServerAddr,
    at: SocketAddr,
    segments: Segments,
) -> Result<Established, EstablishError> {
    let InForce { credentials, roots } = &*certificates(agent).await?;
    let connected = connect(at, agent.config.bind_addr, segments.largest()).await;
    let connection = connected.map_err(EstablishError::Connect)?;
    socket::prepare_session(&connection).map_err(EstablishError::Socket)?;
    let session_socket = SessionSocket::new(&connection).map_err(EstablishError::Socket)?;
    let local = connection.local_addr().map_err(EstablishError::Socket)?;

    let config = tls::agent_config(credentials, roots);
    let name = agent.config.expected_name(server).clone();
    let deadline = Instant::now() + HANDSHAKE_LIMIT;
    let secured = tokio::select! {
        secured = tls::connect(connection, config, name.clone(), deadline) => {
            secured.map_err(EstablishError::Tls)?
        }
        direction = unanswered(&session_socket) => {
            let after = ANSWER_LIMIT;
            return Err(EstablishError::HandshakeUnanswered { direction, after });
        }
    };
    let clock = agent.certificates.clock().clone();
    let trust = PeerTrust::of_master(secured.peer, name, roots, clock);

    let limits = MuxLimits {
        max_streams: MAX_STREAMS,
        max_pending: 1,
        // The agent opens the control stream only: its own ids never wear out.
        worn_out_at: u32::MAX,
    };
    let flow_keys = if agent.config.uses_flows() {
        let (_, tls) = secured.stream.get_ref();
        Some(flow::keys(tls).map_err(EstablishError::FlowKeys)?)
    } else {
        None
    };
    let memory = agent.memory.session(agent.config.max_memory_per_session);
    let (mux, incoming, driver) =
        mux::start_within(TlsStream::from(secured.stream), Role::Agent, limits, memory);
    let driver = proxymux_transport::session::drive(driver);
    let control = mux.open().await.map_err(EstablishError::Open)?;
    let mut core = SessionCore::new(mux, ControlStream::new(control), session_socket, driver);
    prove_segments(&mut core).await?;
    let register = ControlMessage::Register(agent.registration());
    core.send(&register).map_err(EstablishError::Send)?;
    let registered = tokio::time::timeout(REGISTRATION_LIMIT, answer(&mut core))
        .await
        .map_err(|_| EstablishError::NotAnswered(REGISTRATION_LIMIT))??;
    Ok(Established {
        core,
        incoming,
        registered,
        local,
        segments,
        trust,
        flow_keys,
        shown: credentials.content(),
        serial: credentials.info().serial.clone(),
    })
}

/// Returns when the master's part of the handshake is overdue and not a byte of it has come.
async fn unanswered(connection: &SessionSocket) -> Loss {
    tokio::time::sleep(ANSWER_LIMIT).await;
    match connection.segments() {
        Some(segments) if segments.received == 0 => Loss::of_unanswered(segments),
        // It goes on, or ends by its own limit.
        _ => std::future::pending().await,
    }
}

/// Shows that the path carries segments as large as both kernels will send, before the master
/// sends anybody's connection this way.
///
/// What is lost here has been sent at least five times by the end of the limit: the kernel sends
/// again after 0.2, 0.6, 1.4 and 3 s.
pub(super) async fn prove_segments(core: &mut SessionCore) -> Result<(), EstablishError> {
    let Some(segments) = core.segments() else {
        return Ok(());
    };
    core.padded_ping(segments).map_err(EstablishError::Send)?;
    let pong = async {
        loop {
            match core.next().await {
                Event::Pong(_) => return Ok(()),
                event => without_answer(event)?,
            }
        }
    };
    if let Ok(proven) = tokio::time::timeout(PROOF_LIMIT, pong).await {
        return proven;
    }
    Err(EstablishError::LargeLost {
        sent: segments.largest_sent,
        asked: segments.largest_taken,
        direction: Loss::of_unanswered(core.segments().unwrap_or(segments)),
        after: PROOF_LIMIT,
    })
}

async fn answer(core: &mut SessionCore) -> Result<Registered, EstablishError> {
    loop {
        match core.next().await {
            Event::Message(ControlMessage::Registered(registered)) => {
                let (seen, ours) = (registered.version, proxymux_proto::PROTOCOL_VERSION);
                if seen != ours {
                    return Err(EstablishError::Version { seen, ours });
                }
                return Ok(registered);
            }
            event => without_answer(event)?,
        }
    }
}

/// What may happen before the master has accepted the session.
fn without_answer(event: Event) -> Result<(), EstablishError> {
    match event {
        Event::Message(ControlMessage::End(end)) => Err(EstablishError::Rejected(end)),
        Event::Message(other) => Err(EstablishError::Unexpected(other.name())),
        Event::Over(over) => Err(explain(over)),
        Event::Pong(_) | Event::WornOut | Event::Segments(_) => Ok(()),
    }
}

/// With TLS 1.3 the agent learns only here that the master has refused its certificate.
fn explain(over: SessionOver) -> EstablishError {
    let fault = match &over {
        SessionOver::Fault(SessionFault::Io(error)) => describe_io_error(error),
        _ => None,
    };
    match fault {
        Some(fault) => EstablishError::TlsAfterwards(fault),
        None => EstablishError::Over(over),
    }
}

/// What is in force. Only while nothing is, files are looked at here, so that an agent is ready as
/// soon as its certificate is there.
async fn certificates(agent: &Agent) -> Result<Arc<InForce>, EstablishError> {
    if let Some(in_force) = agent.certificates.in_force() {
        return Ok(in_force);
    }
    let certificates = Arc::clone(&agent.certificates);
    let looked = tokio::task::spawn_blocking(move || certificates.look());
    let found = looked.await.map_err(EstablishError::Blocking)?;
    agent.metrics.show_expiry(&agent.certificates);
    found.map_err(|trouble| match trouble.downcast::<CertificatesError>() {
        Ok(error) => match *error {
            CertificatesError::Waiting(reason) => EstablishError::Waiting(reason),
            error => EstablishError::Certificates(error.into()),
        },
        Err(other) => EstablishError::Certificates(other),
    })
}

/// The most streams on one session; as many as a master may announce.
const MAX_STREAMS: usize = proxymux_proto::MAX_STREAMS as usize;

/// A master lets a handshake wait for its turn for up to 10 s when a whole fleet returns, and then
/// gives it 5 s; the rest is for the network.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(20);

/// Of these the first 10 are a master's that lets the handshake wait for its turn; then it answers
/// at once, or closes the connection.
const ANSWER_LIMIT: Duration = Duration::from_secs(11);

/// Less than the 5 s that the master waits for the registration.
const PROOF_LIMIT: Duration = Duration::from_secs(4);

/// A master that is busy with a whole fleet's return says so rather than be silent.
const REGISTRATION_LIMIT: Duration = Duration::from_secs(10);
