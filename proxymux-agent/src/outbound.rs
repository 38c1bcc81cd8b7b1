//! Connections to masters.
//!
//! Owns where they come from (`bind-addr`), how large their segments may be, and how long
//! connecting may take; sessions and the flows of the reverse path are dialled alike.
//! Leaves what is said on them to `session/establish.rs` and `flows/dial.rs`.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use proxymux_transport::socket;
use tokio::net::{TcpSocket, TcpStream};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("cannot connect from {from}")]
    Bind {
        from: IpAddr,
        #[source]
        source: io::Error,
    },
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    #[error("cannot connect: no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    #[error("cannot set up the connection")]
    Socket(#[source] io::Error),
}

/// Connects to a master.
///
/// `from` is left out of account for a master of the other family, which is reached from whatever
/// address the kernel chooses; `largest` bounds the segments, both ways.
///
/// # Errors
///
/// When the connection does not stand within [`CONNECT_LIMIT`].
pub(crate) async fn connect(
    at: SocketAddr,
    from: Option<IpAddr>,
    largest: Option<u16>,
) -> Result<TcpStream, ConnectError> {
    let socket = if at.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    };
    let socket = socket.map_err(ConnectError::Socket)?;
    if let Some(largest) = largest {
        socket::limit_segments(&socket, largest).map_err(ConnectError::Socket)?;
    }
    let from = from.filter(|from| from.is_ipv4() == at.is_ipv4());
    if let Some(from) = from {
        socket
            .bind((from, 0).into())
            .map_err(|source| ConnectError::Bind { from, source })?;
    }
    tokio::time::timeout(CONNECT_LIMIT, socket.connect(at))
        .await
        .map_err(|_| ConnectError::TimedOut(CONNECT_LIMIT))?
        .map_err(ConnectError::Connect)
}

/// Two lost packets on the way to a master that is far away. The kernel repeats the first packet
/// after one second and then less and less often, so a longer limit would leave an attempt that
/// began before a link returned waiting: a new attempt asks at once.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
