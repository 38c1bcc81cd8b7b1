//! Connections to the API server, for kube's client.
//!
//! Owns dialling and TLS, one connection at a time, which is used again while it stands. Leaves who
//! we are and whom we trust to `access`, and the requests to `api`.
//!
//! kube would bring a connector of its own, and with it TLS 1.2 for this whole program, another
//! verifier and log lines with texts of the peer; so it gets this one.

use std::{
    error::Error,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
    header::{HOST, HeaderValue},
};
use hyper_util::rt::TokioIo;
use kube_client::client::Body;
use proxymux_transport::socket;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{net::TcpStream, sync::Mutex};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;
use tower_service::Service;

/// Where the API server is, and how it is proven to be that.
#[derive(Clone)]
pub(super) struct Endpoint {
    pub(super) host: String,
    pub(super) port: u16,
    /// What its certificate must be for.
    pub(super) name: ServerName<'static>,
    /// As the request line's `Host` has it.
    pub(super) authority: HeaderValue,
    pub(super) tls: Arc<ClientConfig>,
}

/// Sends requests to one API server, one after the other.
#[derive(Clone)]
pub(super) struct Connector {
    endpoint: Endpoint,
    standing: Arc<Mutex<Option<Standing>>>,
}

/// A connection that stands. What is still read from it ends with it.
struct Standing {
    sender: SendRequest<Body>,
    _driver: AbortOnDropHandle<()>,
}

/// Why no request could be sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error("cannot connect to {host} port {port}")]
    Connect {
        host: String,
        port: u16,
        #[source]
        source: io::Error,
    },
    #[error("no connection to {host} port {port} within {} s", .limit.as_secs())]
    TimedOut {
        host: String,
        port: u16,
        limit: Duration,
    },
    #[error("TLS handshake with {host} port {port} failed")]
    Tls {
        host: String,
        port: u16,
        #[source]
        source: io::Error,
    },
    #[error("connection to {host} port {port} lost")]
    Http {
        host: String,
        port: u16,
        #[source]
        source: hyper::Error,
    },
}

impl Connector {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            standing: Arc::default(),
        }
    }

    async fn send(self, request: Request<Body>) -> Result<Response<Incoming>, ConnectionError> {
        let request = self.endpoint.in_origin_form(request);
        let mut standing = self.standing.lock().await;
        let mut used = None;
        if let Some(mut connection) = standing.take()
            && connection.sender.ready().await.is_ok()
        {
            used = Some(connection);
        }
        let mut connection = match used {
            Some(connection) => connection,
            None => self.endpoint.connect().await?,
        };
        let sent = connection.sender.send_request(request).await;
        let response = sent.map_err(|source| self.endpoint.lost(source))?;
        *standing = Some(connection);
        Ok(response)
    }
}

impl Endpoint {
    async fn connect(&self) -> Result<Standing, ConnectionError> {
        let (host, port) = (self.host.clone(), self.port);
        let connecting = async {
            let connected = TcpStream::connect((&*self.host, self.port)).await;
            let connected = connected.and_then(|tcp| socket::prepare_relayed(&tcp).map(|()| tcp));
            let tcp = connected.map_err(|source| ConnectionError::Connect {
                host: self.host.clone(),
                port,
                source,
            })?;
            let tls = TlsConnector::from(Arc::clone(&self.tls));
            let tls = tls.connect(self.name.clone(), tcp).await;
            let tls = tls.map_err(|source| ConnectionError::Tls {
                host: self.host.clone(),
                port,
                source,
            })?;
            let shaken = http1::handshake(TokioIo::new(tls)).await;
            let (sender, driver) = shaken.map_err(|source| self.lost(source))?;
            let driver = tokio::spawn(async move {
                // What went wrong is told where the answer is read.
                let _ = driver.await;
            });
            Ok(Standing {
                sender,
                _driver: AbortOnDropHandle::new(driver),
            })
        };
        tokio::time::timeout(CONNECT_LIMIT, connecting)
            .await
            .unwrap_or(Err(ConnectionError::TimedOut {
                host,
                port,
                limit: CONNECT_LIMIT,
            }))
    }

    /// HTTP/1.1 asks a server for a path, and says in a header which server was meant.
    fn in_origin_form(&self, request: Request<Body>) -> Request<Body> {
        let (mut parts, body) = request.into_parts();
        if let Some(path) = parts.uri.path_and_query() {
            parts.uri = path.clone().into();
        }
        parts.headers.insert(HOST, self.authority.clone());
        Request::from_parts(parts, body)
    }

    fn lost(&self, source: hyper::Error) -> ConnectionError {
        ConnectionError::Http {
            host: self.host.clone(),
            port: self.port,
            source,
        }
    }
}

impl Service<Request<Body>> for Connector {
    type Response = Response<Incoming>;
    /// kube's layers have errors of their own.
    type Error = Box<dyn Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let sending = self.clone().send(request);
        Box::pin(async move { Ok(sending.await?) })
    }
}

/// From the name's look-up to the end of the handshake.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
