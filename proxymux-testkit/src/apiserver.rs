//! A kube-apiserver stand-in: it speaks to the master's front door byte for byte like the real
//! one, and through the tunnel to the kubelet.
//!
//! [`ApiServer::connect`] is a dial of the egress selector, with its exact request, its reading
//! of the answer and its error texts; [`ApiServer::get`] and the like are requests to a kubelet,
//! each over a dial of its own. [`ApiServer::raw`] is for clients that do it wrong.
//! Like the real one it never gives up waiting: a test sets the limit.

mod answer;
mod raw;
mod request;
mod tunnel;

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::Result;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpStream, UnixStream},
};
use tokio_rustls::TlsConnector;

pub use self::{
    answer::AnswerError,
    raw::{RawAnswer, RawClient},
    request::{ExecStream, KubeletConnection, LogLines, Reply, RequestError},
    tunnel::Tunnel,
};
use crate::{pki::CertFiles, tls};

/// Where the API server comes in.
#[derive(Clone, Debug)]
pub enum FrontDoor {
    /// `transport.uds`: a Unix socket of the master.
    Unix(PathBuf),
    /// `transport.tcp` with its `tlsConfig`. Without `client` no certificate is shown, which a
    /// real API server can be misconfigured to.
    Tcp {
        /// The master's address.
        address: SocketAddr,
        /// `tlsServerName`, the name to expect in the master's certificate.
        server_name: String,
        /// `caBundle`.
        ca: PathBuf,
        /// `clientCert` and `clientKey`.
        client: Option<CertFiles>,
    },
    /// No egress selector: the target itself is dialled, and whatever redirects that
    /// connection is not seen.
    Transparent,
    /// A Unix socket that leads to the target without being asked: no protocol is spoken there.
    Bare(PathBuf),
}

/// Why a dial through the front door failed. The texts are those that reach the person who typed
/// `kubectl logs`, apart from causes, which are in `source`.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The front door itself could not be reached, or TLS with it failed.
    #[error("dialing proxy {proxy:?} failed")]
    Dial {
        /// The front door.
        proxy: String,
        /// What happened.
        source: io::Error,
    },
    /// There was no answer that can be read.
    #[error("reading HTTP response from CONNECT to {target} via proxy {proxy} failed")]
    Answer {
        /// What was asked for.
        target: String,
        /// The front door.
        proxy: String,
        /// What is wrong with the answer.
        source: AnswerError,
    },
    /// The answer is not 200. Its body is dropped, all that is seen is the status line.
    #[error("proxy error from {proxy} while dialing {target}, code {code}: {status}")]
    Refused {
        /// The front door.
        proxy: String,
        /// What was asked for.
        target: String,
        /// The status code.
        code: u16,
        /// Code and reason phrase as they stand in the answer.
        status: String,
    },
    /// The master sent bytes behind its 200 before the client had said anything.
    #[error("unexpected {count} bytes of buffered data from CONNECT proxy {proxy:?}")]
    Buffered {
        /// The front door.
        proxy: String,
        /// How many bytes had come with the answer.
        count: usize,
    },
    /// The target could not be dialled, without a front door ([`FrontDoor::Transparent`]).
    #[error("dial tcp {target} failed")]
    Direct {
        /// The target.
        target: String,
        /// What happened.
        source: io::Error,
    },
}

impl ConnectError {
    /// The status code, if there was an answer other than 200.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::Dial { .. }
            | Self::Answer { .. }
            | Self::Buffered { .. }
            | Self::Direct { .. } => None,
        }
    }
}

/// An API server with its front door and its certificates.
///
/// ```no_run
/// use proxymux_testkit::{apiserver::{ApiServer, FrontDoor}, pki::Pki};
///
/// # async fn example(pki: &Pki) -> Result<(), Box<dyn std::error::Error>> {
/// let door = FrontDoor::Unix("/run/proxymux/egress.sock".into());
/// let client = pki.apiserver_kubelet_client()?;
/// let apiserver = ApiServer::new(door)?.with_kubelet_client(pki.ca_file(), &client)?;
/// let reply = apiserver.get("10.0.10.10:10250", "/healthz").await?;
/// assert_eq!((reply.status, &*reply.body), (200, &b"ok"[..]));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ApiServer {
    door: FrontDoor,
    /// Read once, as the real one does at its start.
    door_tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    kubelet_tls: Option<Arc<ClientConfig>>,
}

impl ApiServer {
    /// An API server that can dial, and not yet speak to kubelets.
    ///
    /// # Errors
    ///
    /// A file of the front door is missing or no good.
    pub fn new(door: FrontDoor) -> Result<Self> {
        let door_tls = match &door {
            FrontDoor::Tcp {
                server_name,
                ca,
                client,
                ..
            } => {
                let config = tls::client_config(ca, client.as_ref())?;
                Some((Arc::new(config), ServerName::try_from(server_name.clone())?))
            }
            FrontDoor::Unix(_) | FrontDoor::Transparent | FrontDoor::Bare(_) => None,
        };
        Ok(Self {
            door,
            door_tls,
            kubelet_tls: None,
        })
    }

    /// Lets it speak to kubelets: `ca` is what `--kubelet-certificate-authority` names, `client`
    /// the certificate that kubelets know it by.
    ///
    /// # Errors
    ///
    /// A file is missing or no good.
    pub fn with_kubelet_client(
        mut self,
        ca: impl Into<PathBuf>,
        client: &CertFiles,
    ) -> Result<Self> {
        self.kubelet_tls = Some(Arc::new(tls::client_config(&ca.into(), Some(client))?));
        Ok(self)
    }

    /// Dials `target` (`HOST:PORT`, as it goes onto the wire) and returns the bare tunnel.
    ///
    /// # Errors
    ///
    /// There is no tunnel; the text is the real one's.
    pub async fn connect(&self, target: &str) -> Result<Tunnel, ConnectError> {
        if matches!(self.door, FrontDoor::Transparent) {
            let dialled = async {
                let stream = TcpStream::connect(target).await?;
                // As Go does. Without it small writes wait for the peer's delayed acknowledgement.
                stream.set_nodelay(true)?;
                io::Result::Ok(stream)
            };
            return match dialled.await {
                Ok(stream) => Ok(Tunnel::tcp(stream)),
                Err(source) => Err(ConnectError::Direct {
                    target: target.to_owned(),
                    source,
                }),
            };
        }
        let mut tunnel = self.dial_door().await?;
        if matches!(self.door, FrontDoor::Bare(_)) {
            return Ok(tunnel);
        }
        let proxy = self.proxy_name();
        // The real one does not look at the result either: it then fails to read an answer.
        let _ = tunnel.write_all(connect_request(target).as_bytes()).await;
        let _ = tunnel.flush().await;
        let answer = match answer::read(&mut tunnel).await {
            Ok(answer) => answer,
            Err(source) => {
                return Err(ConnectError::Answer {
                    target: target.to_owned(),
                    proxy,
                    source,
                });
            }
        };
        if answer.code != 200 {
            return Err(ConnectError::Refused {
                proxy,
                target: target.to_owned(),
                code: answer.code,
                status: answer.status,
            });
        }
        if answer.buffered > 0 {
            return Err(ConnectError::Buffered {
                proxy,
                count: answer.buffered,
            });
        }
        Ok(tunnel)
    }

    /// A connection to the front door on which nothing has been said.
    ///
    /// # Errors
    ///
    /// The front door could not be reached.
    pub async fn raw(&self) -> Result<RawClient, ConnectError> {
        self.dial_door().await.map(RawClient::new)
    }

    /// The front door as error texts name it.
    fn proxy_name(&self) -> String {
        match &self.door {
            FrontDoor::Unix(path) | FrontDoor::Bare(path) => path.display().to_string(),
            FrontDoor::Tcp { address, .. } => address.to_string(),
            FrontDoor::Transparent => "no proxy".to_owned(),
        }
    }

    async fn dial_door(&self) -> Result<Tunnel, ConnectError> {
        let dialled = match &self.door {
            FrontDoor::Unix(path) | FrontDoor::Bare(path) => {
                UnixStream::connect(path).await.map(Tunnel::unix)
            }
            FrontDoor::Tcp { address, .. } => self.dial_tls(*address).await,
            FrontDoor::Transparent => Err(io::Error::other("there is no front door to dial")),
        };
        dialled.map_err(|source| ConnectError::Dial {
            proxy: self.proxy_name(),
            source,
        })
    }

    async fn dial_tls(&self, address: SocketAddr) -> io::Result<Tunnel> {
        let (config, name) = self
            .door_tls
            .as_ref()
            .expect("new() makes it for a TCP door");
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let connector = TlsConnector::from(Arc::clone(config));
        let stream = connector.connect(name.clone(), stream).await?;
        Ok(Tunnel::tls(stream))
    }
}

/// Exactly what kube-apiserver sends, no header more or less.
pub fn connect_request(target: &str) -> String {
    format!("CONNECT {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
}

#[cfg(test)]
mod tests;
