//! The front door on TCP, with TLS and a certificate on both sides.
//!
//! Owns the listener, the handshakes, and the question whether a client may come in. Leaves the
//! settings of TLS and the answer to that question to `proxymux_transport::tls`, clients to
//! `serve`, and which handshake has to go when there are too many to `half_open`.
//! Read [`TcpDoor`] first.

use std::{
    fmt, io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use proxymux_transport::{
    socket::prepare_relayed,
    telemetry::chain,
    tls::{FrontDoorPolicy, accept_client},
};
use rustls::ServerConfig;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout},
};
use tracing::{debug, warn};

use super::{Arrival, Client, FrontDoors, Gateway, Refusal, accept::Door, serve::serve};
use crate::half_open::HalfOpen;

/// A front door on a TCP listener.
#[derive(Debug)]
pub(crate) struct TcpDoor {
    listener: TcpListener,
    address: SocketAddr,
    tls: TlsSettings,
    half_open: Arc<HalfOpen>,
}

/// How a front door speaks TLS, and with whom.
#[derive(Clone)]
pub(crate) struct TlsSettings {
    /// Asked for every connection, so that renewed certificates are used from the next one on.
    pub config: Arc<dyn Fn() -> Arc<ServerConfig> + Send + Sync>,
    /// Who of those with a valid certificate may come in.
    pub policy: FrontDoorPolicy,
}

/// Why there is no front door at that address.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TcpBindError {
    #[error("address {address} of a front door is in use by another process")]
    InUse { address: SocketAddr },
    #[error("cannot listen at {address} for a front door")]
    Failed {
        address: SocketAddr,
        source: io::Error,
    },
}

impl TcpDoor {
    /// Listens at `address`.
    ///
    /// # Errors
    ///
    /// Names the address and what is wrong with it.
    pub(crate) async fn bind(address: SocketAddr, tls: TlsSettings) -> Result<Self, TcpBindError> {
        Self::on(TcpListener::bind(address).await, address, tls)
    }

    /// Takes over another master's listener at `address`.
    ///
    /// # Errors
    ///
    /// As [`TcpDoor::bind`].
    pub(crate) fn take_over(
        listener: std::net::TcpListener,
        address: SocketAddr,
        tls: TlsSettings,
    ) -> Result<Self, TcpBindError> {
        Self::on(TcpListener::from_std(listener), address, tls)
    }

    /// A second handle to the listener.
    pub(crate) fn handle(&self) -> io::Result<OwnedFd> {
        self.listener.as_fd().try_clone_to_owned()
    }

    fn on(
        bound: io::Result<TcpListener>,
        address: SocketAddr,
        tls: TlsSettings,
    ) -> Result<Self, TcpBindError> {
        let bound = bound.and_then(|listener| Ok((listener.local_addr()?, listener)));
        match bound {
            Ok((address, listener)) => Ok(Self {
                listener,
                address,
                tls,
                half_open: HalfOpen::with_room_for(MAX_HALF_OPEN),
            }),
            Err(source) if source.kind() == io::ErrorKind::AddrInUse => {
                Err(TcpBindError::InUse { address })
            }
            Err(source) => Err(TcpBindError::Failed { address, source }),
        }
    }

    /// The address, with the port that the kernel chose if 0 was asked for.
    #[cfg(test)]
    fn local_addr(&self) -> SocketAddr {
        self.address
    }
}

impl Door for TcpDoor {
    type Incoming = (TcpStream, SocketAddr);

    fn name(&self) -> String {
        format!("tcp:{}", self.address)
    }

    async fn accept(&self) -> io::Result<Self::Incoming> {
        self.listener.accept().await
    }

    fn turn_away(&self, (_, peer): Self::Incoming, refusal: &Refusal) {
        // It cannot be told why before a handshake, for which there is no room either.
        debug!(peer.addr = %peer, reason = refusal.phrase(), "client turned away");
    }

    fn serve<G: Gateway>(
        &self,
        (stream, peer): Self::Incoming,
        doors: FrontDoors<G>,
        room: OwnedSemaphorePermit,
    ) -> impl Future<Output = ()> + Send + 'static + use<G> {
        let tls = self.tls.clone();
        let half_open = Arc::clone(&self.half_open);
        async move {
            if let Some((client, name)) = admit(stream, peer, &tls, &half_open).await {
                let arrival = Arrival {
                    door: "tcp",
                    peer: peer.to_string(),
                    client_name: Some(name),
                    accepted_at: Instant::now(),
                };
                serve(client, arrival, doors.limits, doors.gateway).await;
            }
            drop(room);
        }
    }
}

impl fmt::Debug for TlsSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsSettings")
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

/// Makes a client of a connection, if it may come in.
async fn admit(
    stream: TcpStream,
    peer: SocketAddr,
    tls: &TlsSettings,
    half_open: &Arc<HalfOpen>,
) -> Option<(Client, String)> {
    if let Err(error) = prepare_relayed(&stream) {
        debug!(peer.addr = %peer, %error, "client left before the handshake");
        return None;
    }
    let guard = half_open.enter(peer.ip());
    let deadline = Instant::now() + HANDSHAKE_LIMIT;
    let outcome = tokio::select! {
        outcome = accept_client(stream, (tls.config)(), deadline) => outcome,
        () = guard.evicted() => return None,
    };
    drop(guard);
    let mut established = match outcome {
        Ok(established) => established,
        Err(error) => {
            warn!(peer.addr = %peer, error = chain(&error), "client's handshake failed");
            return None;
        }
    };
    match tls.policy.admits(&established.peer.certificate) {
        Ok(name) => Some((established.stream.into(), name.to_string())),
        Err(refusal) => {
            warn!(peer.addr = %peer, error = %refusal, "client refused");
            // In order, so that the client sees a decision and not a broken connection. If it is
            // gone already there is nobody to tell.
            let _ = timeout(GOODBYE_LIMIT, established.stream.shutdown()).await;
            None
        }
    }
}

/// A handshake takes two round trips; the rest is for a slow start of the other side.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// An API server opens one connection for each request, and a handshake takes milliseconds: so
/// many at once are not clients.
const MAX_HALF_OPEN: usize = 256;

const GOODBYE_LIMIT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
