//! The listener of the admin address: a Unix socket, or loopback TCP.
//!
//! Owns how either is made. The socket is for this user alone, and is made as the front door's is.

use std::{io, net::SocketAddr, path::Path};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
};

use crate::{
    config_file::values::AdminAddr,
    unix_socket::{UnixBindError, UnixSocket},
};

/// An open admin address.
#[derive(Debug)]
pub(super) enum Listener {
    Unix(UnixSocket),
    Tcp(TcpListener, SocketAddr),
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(super) enum ListenError {
    #[error(transparent)]
    Unix(#[from] UnixBindError),
    #[error("address {0} is in use by another process; stop it or change `admin`")]
    InUse(SocketAddr),
    #[error("cannot listen at {at}")]
    Tcp {
        at: SocketAddr,
        #[source]
        source: io::Error,
    },
}

/// A connection of either kind.
pub(super) trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

impl Listener {
    pub(super) async fn bind(at: &AdminAddr) -> Result<Self, ListenError> {
        match at {
            AdminAddr::Unix(path) => Ok(Self::Unix(bind_unix(path).await?)),
            AdminAddr::Tcp(at) => {
                let failed = |source: io::Error| match source.kind() {
                    io::ErrorKind::AddrInUse => ListenError::InUse(*at),
                    _ => ListenError::Tcp { at: *at, source },
                };
                let listener = TcpListener::bind(at).await.map_err(failed)?;
                let local = listener.local_addr().map_err(failed)?;
                Ok(Self::Tcp(listener, local))
            }
        }
    }

    /// Takes the next connection. Cancel-safe.
    pub(super) async fn accept(&self) -> io::Result<Box<dyn Connection>> {
        match self {
            Self::Unix(socket) => {
                let (connection, _) = socket.listener().accept().await?;
                Ok(Box::new(connection))
            }
            Self::Tcp(listener, _) => {
                let (connection, _) = listener.accept().await?;
                Ok(Box::new(connection))
            }
        }
    }

    /// The address, with the port that the kernel chose if 0 was asked for.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Unix(socket) => format!("unix:{}", socket.path().display()),
            Self::Tcp(_, local) => local.to_string(),
        }
    }

    pub(super) fn is_tcp(&self) -> bool {
        matches!(self, Self::Tcp(..))
    }
}

async fn bind_unix(path: &Path) -> Result<UnixSocket, UnixBindError> {
    UnixSocket::bind(path, SOCKET_MODE, "administration").await
}

/// Status and metrics are for whoever runs the daemon.
const SOCKET_MODE: u32 = 0o600;
