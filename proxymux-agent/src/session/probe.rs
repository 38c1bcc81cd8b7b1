//! As near to a session as one comes without registering: what `check` asks of a master.
//!
//! A registration would take the node's streams from the agent that has a session now. What comes
//! before it disturbs nobody: the master has verified the certificate when it answers a ping, and
//! a ping that fills a segment shows that the path carries it. Then the session is ended with a
//! word, which the master's log has as information and no fault.

use std::{net::SocketAddr, time::Duration};

use proxymux_proto::{EndCode, SessionEnd};
use proxymux_transport::{
    certificate::CertificateInfo,
    control::ControlStream,
    mux::{self, MuxLimits, Role},
    reload::InForce,
    session::SessionCore,
    socket::{self, SessionSocket},
    tls,
    tls_stream::TlsStream,
};
use tokio::time::Instant;

use super::establish::{EstablishError, prove_segments};
use crate::{
    config::{Config, ServerAddr},
    outbound::connect,
};

/// How far it went.
#[derive(Debug, Default)]
pub(crate) struct Reached {
    /// TCP stands.
    pub(crate) connected: bool,
    /// The master's certificate, when TLS stands.
    pub(crate) master: Option<CertificateInfo>,
    /// The round trip of the ping that filled a segment, and how many bytes that were.
    pub(crate) proven: Option<(Option<Duration>, u32)>,
}

/// Goes as far as it can; the error is of the step that failed, if one did.
pub(crate) async fn probe(
    config: &Config,
    in_force: &InForce,
    server: &ServerAddr,
    at: SocketAddr,
) -> (Reached, Result<(), EstablishError>) {
    let mut reached = Reached::default();
    let result = steps(config, in_force, server, at, &mut reached).await;
    (reached, result)
}

async fn steps(
    config: &Config,
    in_force: &InForce,
    server: &ServerAddr,
    at: SocketAddr,
    reached: &mut Reached,
) -> Result<(), EstablishError> {
    let connected = connect(at, config.bind_addr, None).await;
    let connection = connected.map_err(EstablishError::Connect)?;
    reached.connected = true;
    socket::prepare_session(&connection).map_err(EstablishError::Socket)?;
    let session_socket = SessionSocket::new(&connection).map_err(EstablishError::Socket)?;
    let settings = tls::agent_config(&in_force.credentials, &in_force.roots);
    let name = config.expected_name(server).clone();
    let deadline = Instant::now() + HANDSHAKE_LIMIT;
    let secured = tls::connect(connection, settings, name, deadline).await;
    let secured = secured.map_err(EstablishError::Tls)?;
    reached.master = Some(secured.peer.certificate);

    let limits = MuxLimits {
        max_streams: 1,
        max_pending: 1,
        worn_out_at: u32::MAX,
    };
    // What the master opens is not answered, which it may not do before the registration.
    let (mux, _incoming, driver) = mux::start(TlsStream::from(secured.stream), Role::Agent, limits);
    let driver = proxymux_transport::session::drive(driver);
    let control = mux.open().await.map_err(EstablishError::Open)?;
    let mut core = SessionCore::new(mux, ControlStream::new(control), session_socket, driver);
    let segments = core.segments();
    let proven = prove_segments(&mut core).await;
    if proven.is_ok() {
        let largest = segments.map(|segments| segments.largest_sent);
        reached.proven = Some((core.rtt(), largest.unwrap_or_default()));
    }
    // A session that failed takes no word; it is closed all the same.
    let end = SessionEnd::new(EndCode::ShuttingDown, "a check, which registers nothing");
    core.end(end, GOODBYE_LIMIT).await;
    proven
}

/// A master that has a queue of handshakes lets one wait for 10 s, and then closes the connection.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// For the word at the end, which the check does not depend on.
const GOODBYE_LIMIT: Duration = Duration::from_secs(1);
