//! Asking a daemon's admin address, for the commands.
//!
//! Owns one request and its limits, and says in words what is wrong when there is no answer.

use std::{io, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Method, Request, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

use super::listener::Connection;
use crate::config_file::values::AdminAddr;

/// What a daemon has answered.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody is there.
    #[error("nobody answers at {at}; is {daemon} running, and is this its `admin` address?")]
    NotRunning {
        /// Where it was asked.
        at: AdminAddr,
        /// Who was expected.
        daemon: &'static str,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The socket is somebody else's.
    #[error("no permission to ask {at}; run this as root, or as the user that {daemon} runs as")]
    NotAllowed {
        /// Where it was asked.
        at: AdminAddr,
        /// Who was expected.
        daemon: &'static str,
    },
    /// The connection failed.
    #[error("cannot connect to {at}")]
    Connect {
        /// Where it was asked.
        at: AdminAddr,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// Somebody is there and does not answer.
    #[error("{at} did not answer within {} s", .limit.as_secs())]
    TimedOut {
        /// Where it was asked.
        at: AdminAddr,
        /// For how long it was waited.
        limit: Duration,
    },
    /// What came is no answer.
    #[error("{at} gave no answer that can be read")]
    Broken {
        /// Where it was asked.
        at: AdminAddr,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Asks `daemon` at an admin address for a path, and a query if there is one behind it.
///
/// # Errors
///
/// When there is no answer within ten seconds, with the likely cause. An answer with a status
/// that is an error is an answer.
pub async fn fetch(at: &AdminAddr, daemon: &'static str, path: &str) -> Result<Reply, FetchError> {
    exchange(at, daemon, (Method::GET, path)).await
}

/// Tells `daemon` at an admin address to do what a path names, and a query behind it.
///
/// # Errors
///
/// As [`fetch`]. A daemon that does not obey gives an answer that says why.
pub async fn order(at: &AdminAddr, daemon: &'static str, path: &str) -> Result<Reply, FetchError> {
    exchange(at, daemon, (Method::POST, path)).await
}

async fn exchange(
    at: &AdminAddr,
    daemon: &'static str,
    what: (Method, &str),
) -> Result<Reply, FetchError> {
    let asked = async {
        let connection = connect(at).await.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => FetchError::NotRunning {
                at: at.clone(),
                daemon,
                source,
            },
            io::ErrorKind::PermissionDenied => FetchError::NotAllowed {
                at: at.clone(),
                daemon,
            },
            _ => FetchError::Connect {
                at: at.clone(),
                source,
            },
        })?;
        ask(connection, what)
            .await
            .map_err(|source| FetchError::Broken {
                at: at.clone(),
                source,
            })
    };
    timeout(LIMIT, asked).await.unwrap_or_else(|_| {
        Err(FetchError::TimedOut {
            at: at.clone(),
            limit: LIMIT,
        })
    })
}

async fn connect(at: &AdminAddr) -> io::Result<Box<dyn Connection>> {
    Ok(match at {
        AdminAddr::Unix(path) => Box::new(UnixStream::connect(path).await?),
        AdminAddr::Tcp(at) => Box::new(TcpStream::connect(at).await?),
    })
}

async fn ask(
    connection: Box<dyn Connection>,
    (method, path): (Method, &str),
) -> Result<Reply, Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, driver) = http1::handshake(TokioIo::new(connection)).await?;
    let _driver = AbortOnDropHandle::new(tokio::spawn(driver));
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, "localhost")
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), MAX_BODY_LEN);
    let body = body.collect().await?.to_bytes();
    Ok(Reply {
        status,
        body: String::from_utf8(body.into())?,
    })
}

/// Longer than the daemon gives a client, so that its word is heard.
const LIMIT: Duration = Duration::from_secs(10);

/// Ten thousand nodes with all that is known about each.
const MAX_BODY_LEN: usize = 64 << 20;
