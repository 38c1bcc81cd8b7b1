//! Where agents come in.
//!
//! Owns the listener on the session port and the way of a connection from accept to a
//! [`Candidate`]: its first byte, TLS, who the certificate says it is. Each step has a limit.
//! Leaves the registration and all that follows to `session.rs`.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use proxymux_proto::{EndCode, FLOW_MAGIC, SessionEnd};
use proxymux_transport::{
    certificate::{IdentityError, NodeIdentity},
    flow,
    mux::{self, MuxLimits, Role, SessionFault},
    reload::Derived,
    session::{SessionCore, drive},
    socket::{self, SessionSocket},
    telemetry::chain,
    tls::{self, TlsError},
    tls_stream::TlsStream,
    trust::PeerTrust,
};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    time::Instant,
};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

use crate::{
    admission::NoTurn,
    flows::hello::{self, HelloError},
    half_open::{HalfOpen, HalfOpenGuard},
    master::Master,
    session::{self, Candidate, RegistrationError},
};

/// The listener for agents.
pub(crate) struct AgentDoor {
    listener: TcpListener,
    tls: Arc<Derived<ServerConfig>>,
    master: Arc<Master>,
    half_open: Arc<HalfOpen>,
    /// Every session's task.
    sessions: TaskTracker,
}

/// Why agents cannot come in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    #[error("address {0} for agents is in use by another process; stop it or change `listen`")]
    InUse(SocketAddr),
    #[error(
        "address {0} for agents is in use by another process; a master there must have \
         `takeover: true` and the same `takeover-socket` to be taken over from"
    )]
    NotGivenUp(SocketAddr),
    #[error("cannot listen at {at} for agents")]
    Failed {
        at: SocketAddr,
        #[source]
        source: io::Error,
    },
}

/// Why a connection did not become a session.
#[derive(Debug, thiserror::Error)]
enum ArrivalError {
    #[error("sent nothing within {} s", .0.as_secs())]
    Silent(Duration),
    #[error("went away without a word")]
    Gone,
    #[error("connection failed")]
    Io(#[source] io::Error),
    #[error(transparent)]
    Tls(TlsError),
    #[error("certificate is not one of a node")]
    Identity(#[source] IdentityError),
    #[error("session ended before the agent had registered")]
    Over(#[source] SessionFault),
    #[error("no registration")]
    Registration(#[source] RegistrationError),
    #[error("too many half-open connections")]
    Evicted,
    #[error("too many handshakes")]
    NoTurn(#[source] NoTurn),
    #[error("no secrets for flows")]
    Keys(#[source] rustls::Error),
}

/// What a connection has become.
enum Arrival {
    Session(Box<Candidate>),
    /// A flow, which waits in its session's pool now, or was refused.
    Flow(Result<(), HelloError>),
}

impl AgentDoor {
    /// Listens at the configured address, or takes over the listener of another master there.
    pub(crate) async fn bind(
        master: Arc<Master>,
        sessions: TaskTracker,
        taken_over: Option<std::net::TcpListener>,
    ) -> Result<Self, ListenError> {
        let at = master.config.listen;
        let bound = match taken_over {
            Some(listener) => TcpListener::from_std(listener),
            None => TcpListener::bind(at).await,
        };
        let listener = bound.map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse if master.config.takeover => ListenError::NotGivenUp(at),
            io::ErrorKind::AddrInUse => ListenError::InUse(at),
            _ => ListenError::Failed { at, source },
        })?;
        tracing::info!(%at, "listening for agents");
        Ok(Self {
            listener,
            tls: Derived::new(Arc::clone(&master.certificates), tls::master_config),
            master,
            half_open: HalfOpen::with_room_for(HALF_OPEN),
            sessions,
        })
    }

    /// A second handle to the listener.
    pub(crate) fn handle(&self) -> io::Result<OwnedFd> {
        self.listener.as_fd().try_clone_to_owned()
    }

    /// Accepts agents until `stop`, except while they are to go to another master, which has the
    /// same listener.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut failing = false;
        let mut moving = self.master.moving.watch();
        loop {
            let away = *moving.borrow_and_update();
            let accepted = tokio::select! {
                accepted = self.listener.accept(), if !away => accepted,
                Ok(()) = moving.changed() => continue,
                () = stop.cancelled() => return,
            };
            match accepted {
                Ok((connection, peer)) => {
                    failing = false;
                    // A listener for both families gives IPv4 addresses in their IPv6 form.
                    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                    self.receive(connection, peer);
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::error!(%error, "cannot accept agents, trying on");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn receive(&self, connection: TcpStream, peer: SocketAddr) {
        let guard = self.half_open.enter(peer.ip());
        let (tls, master) = (Arc::clone(&self.tls), Arc::clone(&self.master));
        self.sessions.spawn(async move {
            match arrival(connection, peer, tls, &master, guard).await {
                Ok(Arrival::Session(candidate)) => session::run(*candidate, master).await,
                Ok(Arrival::Flow(Ok(()))) => {}
                Ok(Arrival::Flow(Err(error))) => {
                    master.metrics.flows.hellos_refused.get(error.word()).inc();
                    hello::log_refusal(peer, &error, &master);
                }
                Err(error) => {
                    master.metrics.arrivals_failed.get(error.word()).inc();
                    log_refusal(peer, &error, &master);
                }
            }
        });
    }
}

impl ArrivalError {
    /// The word for the metric's label, from [`crate::metrics::ARRIVALS`].
    fn word(&self) -> &'static str {
        match self {
            Self::Silent(_) => "silent",
            Self::Gone => "gone",
            Self::Io(_) | Self::Over(_) => "connection",
            Self::Tls(_) | Self::Keys(_) => "tls",
            Self::Identity(_) => "identity",
            Self::Registration(_) => "registration",
            Self::Evicted => "evicted",
            Self::NoTurn(_) => "no-turn",
        }
    }
}

fn log_refusal(peer: SocketAddr, error: &ArrivalError, master: &Master) {
    match error {
        // Scanners and health checks do this all day.
        ArrivalError::Gone => tracing::debug!(%peer, %error, "no session"),
        // Told where it was decided, once for all of them.
        ArrivalError::Evicted => tracing::debug!(%peer, %error, "connection refused"),
        _ => {
            let error = chain(error);
            let Some(others) = master.refused.news(&peer.ip().to_string(), &error) else {
                return tracing::debug!(%peer, error, "connection refused");
            };
            // Those that were not told since the last time.
            let others = (others > 0).then_some(others);
            tracing::warn!(%peer, error, others, "connection refused");
        }
    }
}

async fn arrival(
    connection: TcpStream,
    peer: SocketAddr,
    tls: Arc<Derived<ServerConfig>>,
    master: &Master,
    guard: HalfOpenGuard,
) -> Result<Arrival, ArrivalError> {
    let complete_by = Instant::now() + HELLO_LIMIT;
    let is_flow = tokio::select! {
        is_flow = begins_as_flow(&connection) => is_flow?,
        () = guard.evicted() => return Err(ArrivalError::Evicted),
    };
    if is_flow {
        // No TLS, and so no turn to wait for.
        return tokio::select! {
            received = hello::receive(connection, master, complete_by) => {
                Ok(Arrival::Flow(received))
            }
            () = guard.evicted() => Ok(Arrival::Flow(Err(HelloError::Evicted))),
        };
    }
    tokio::select! {
        candidate = establish(connection, peer, tls, master) => {
            candidate.map(|candidate| Arrival::Session(Box::new(candidate)))
        }
        () = guard.evicted() => Err(ArrivalError::Evicted),
    }
}

async fn establish(
    connection: TcpStream,
    peer: SocketAddr,
    tls: Arc<Derived<ServerConfig>>,
    master: &Master,
) -> Result<Candidate, ArrivalError> {
    socket::prepare_session(&connection).map_err(ArrivalError::Io)?;
    let session_socket = SessionSocket::new(&connection).map_err(ArrivalError::Io)?;
    let local = connection.local_addr().map_err(ArrivalError::Io)?;
    let local = local.ip().to_canonical();
    let turn = master
        .admission
        .turn()
        .await
        .map_err(ArrivalError::NoTurn)?;
    // Only from here on is the peer to be measured by its time.
    let deadline = Instant::now() + HANDSHAKE_LIMIT;
    let (in_force, tls) = tls.current();
    let secured = turn
        .perform(tls::accept(connection, tls, deadline))
        .await
        .map_err(ArrivalError::Tls)?;
    let identity = NodeIdentity::from_certificate(&secured.peer.certificate);
    let flow_keys = flow::keys(secured.stream.get_ref().1).map_err(ArrivalError::Keys)?;

    let clock = master.certificates.clock().clone();
    let trust = PeerTrust::of_agent(secured.peer, &in_force.roots, clock);

    let limits = MuxLimits {
        max_streams: count(master.config.max_streams_per_node.get()),
        max_pending: count(master.config.max_pending_dials_per_node.get()),
        worn_out_at: WORN_OUT_AT,
    };
    let memory = master.memory.session(master.config.max_memory_per_session);
    let (mux, mut incoming, driver) = mux::start_within(
        TlsStream::from(secured.stream),
        Role::Master,
        limits,
        memory,
    );
    // Whoever opens no control stream is not to keep its connection.
    let mut driver = AbortOnDropHandle::new(drive(driver));
    let core = match session::control_stream(&mut incoming).await {
        Ok(control) => Ok(SessionCore::new(
            mux,
            control,
            session_socket,
            driver.detach(),
        )),
        Err(RegistrationError::NoControlStream) => Err(why_over(&mut driver).await),
        Err(error) => Err(ArrivalError::Registration(error)),
    };
    match (identity, core) {
        (Ok(identity), Ok(core)) => Ok(Candidate {
            core,
            incoming,
            identity,
            flow_keys,
            trust,
            peer,
            local,
        }),
        (Ok(_), Err(error)) => Err(error),
        (Err(error), core) => {
            if let Ok(core) = core {
                // Its log is to have the reason as well.
                let end = SessionEnd::new(EndCode::Identity, &error.to_string());
                core.end(end, END_LIMIT).await;
            }
            Err(ArrivalError::Identity(error))
        }
    }
}

/// Why there are no streams any more: the driver, which ends with them, knows.
async fn why_over(driver: &mut AbortOnDropHandle<SessionFault>) -> ArrivalError {
    match tokio::time::timeout(END_LIMIT, driver).await {
        Ok(Ok(fault)) => ArrivalError::Over(fault),
        Ok(Err(_)) | Err(_) => ArrivalError::Registration(RegistrationError::NoControlStream),
    }
}

/// Whether a connection begins as a flow does. One that says nothing costs no handshake.
///
/// Nothing is taken from it, as TLS is to find its own first byte. What begins like a flow as far as
/// it has arrived is taken for one, and refused later if it is none.
async fn begins_as_flow(connection: &TcpStream) -> Result<bool, ArrivalError> {
    let mut first = FLOW_MAGIC;
    match tokio::time::timeout(FIRST_BYTE_LIMIT, connection.peek(&mut first)).await {
        Err(_) => Err(ArrivalError::Silent(FIRST_BYTE_LIMIT)),
        Ok(Err(error)) => Err(ArrivalError::Io(error)),
        Ok(Ok(0)) => Err(ArrivalError::Gone),
        // What has not arrived is left as it was: that of a flow.
        Ok(Ok(_)) => Ok(first == FLOW_MAGIC),
    }
}

fn count(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// A client hello follows the connection's acknowledgement; this is three lost packets.
const FIRST_BYTE_LIMIT: Duration = Duration::from_secs(2);

/// The handshake, from its turn on: three lost packets.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// The hello of a flow, from the connection on; it needs no turn and is complete with its first
/// packet.
const HELLO_LIMIT: Duration = Duration::from_secs(5);

/// How long the refusal of a peer that is no node may take to be sent, and a session to end.
const END_LIMIT: Duration = Duration::from_secs(2);

/// Half-open connections at once, each some 40 KiB while its handshake runs. A fleet of 5,000
/// that comes back together with jitter over 30 s has far fewer.
const HALF_OPEN: usize = 1024;

/// The stream id at which a session is replaced: half of what the multiplexer has.
const WORN_OUT_AT: u32 = 1 << 30;

/// How long to wait when the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
