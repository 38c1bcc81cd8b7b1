//! Requests to a kubelet, over TLS inside a tunnel.

use std::{io, pin::Pin, sync::Arc, task, time::Duration};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1::{SendRequest, handshake},
    header::{CONNECTION, HOST, UPGRADE},
    upgrade::Upgraded,
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{ApiServer, ConnectError, Tunnel};
use crate::{
    body::StandInBody,
    pattern::{Mismatch, Pattern},
};

/// Why a request to a kubelet failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// There is no tunnel.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// TLS with the kubelet failed.
    #[error("TLS with {target}")]
    Tls {
        /// The kubelet.
        target: String,
        /// What happened.
        source: io::Error,
    },
    /// HTTP with the kubelet failed, or the connection in the middle of it. A kubelet that does
    /// not take our certificate is first noticed here.
    #[error("HTTP with {target}")]
    Http {
        /// The kubelet.
        target: String,
        /// What happened.
        source: hyper::Error,
    },
    /// The answer is not the one that the caller needs.
    #[error("{target} answers {status}: {body:?}")]
    Status {
        /// The kubelet.
        target: String,
        /// Its answer's code.
        status: u16,
        /// Its answer's body.
        body: String,
    },
    /// The body is not the stream it should be.
    #[error("body from {target}")]
    Body {
        /// The kubelet.
        target: String,
        /// Where it goes wrong.
        source: Mismatch,
    },
    /// The target's host part is neither a name nor an address.
    #[error("target {0:?} is no HOST:PORT")]
    Target(String),
    /// [`ApiServer::with_kubelet_client`] was not called.
    #[error("this API server has no certificate for kubelets")]
    NoClient,
}

/// A kubelet's whole answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Reply {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// What kube-apiserver needs to speak to one kubelet: its side of TLS, and the name to expect.
type KubeletClient = (Arc<ClientConfig>, ServerName<'static>);

impl ApiServer {
    /// Dials a kubelet: a tunnel, TLS inside it with the host part of `target` as the name to
    /// expect, HTTP/1.1 inside that.
    ///
    /// # Errors
    ///
    /// One of these failed.
    pub async fn connect_kubelet(&self, target: &str) -> Result<KubeletConnection, RequestError> {
        // A mistake of the caller's is told before anything is dialled.
        let client = self.kubelet_client(target)?;
        let tunnel = self.connect(target).await?;
        speak(client, tunnel, target).await
    }

    /// The same over a connection that the caller has made, from a port of its choice perhaps.
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn connect_kubelet_over(
        &self,
        stream: TcpStream,
        target: &str,
    ) -> Result<KubeletConnection, RequestError> {
        speak(self.kubelet_client(target)?, Tunnel::tcp(stream), target).await
    }

    fn kubelet_client(&self, target: &str) -> Result<KubeletClient, RequestError> {
        let config = self.kubelet_tls.clone().ok_or(RequestError::NoClient)?;
        Ok((config, server_name(target)?))
    }

    /// `GET`, with the whole body.
    ///
    /// # Errors
    ///
    /// There is no whole answer. A status other than 200 is no error.
    pub async fn get(&self, target: &str, path: &str) -> Result<Reply, RequestError> {
        self.connect_kubelet(target).await?.get(path).await
    }

    /// `GET` of a log: its lines as they come.
    ///
    /// # Errors
    ///
    /// There is no answer, or it is not 200.
    pub async fn get_stream(&self, target: &str, path: &str) -> Result<LogLines, RequestError> {
        self.connect_kubelet(target).await?.get_stream(path).await
    }

    /// `GET` of a body that must be stream `seed`, checked as it comes; returns its length.
    ///
    /// # Errors
    ///
    /// There is no whole answer, it is not 200, or a byte is wrong.
    pub async fn get_pattern(
        &self,
        target: &str,
        path: &str,
        seed: u64,
    ) -> Result<u64, RequestError> {
        self.connect_kubelet(target)
            .await?
            .get_pattern(path, seed)
            .await
    }

    /// `POST` of these bytes.
    ///
    /// # Errors
    ///
    /// There is no whole answer. A status other than 200 is no error.
    pub async fn post(
        &self,
        target: &str,
        path: &str,
        body: impl Into<Bytes>,
    ) -> Result<Reply, RequestError> {
        let body = StandInBody::whole(body);
        self.connect_kubelet(target).await?.post(path, body).await
    }

    /// `POST` of `bytes` bytes of stream `seed`, made as they are sent.
    ///
    /// # Errors
    ///
    /// There is no whole answer. A status other than 200 is no error.
    pub async fn post_pattern(
        &self,
        target: &str,
        path: &str,
        bytes: u64,
        seed: u64,
    ) -> Result<Reply, RequestError> {
        let body = StandInBody::pattern(bytes, seed, true);
        self.connect_kubelet(target).await?.post(path, body).await
    }

    /// An upgraded request: raw bytes both ways behind the 101.
    ///
    /// # Errors
    ///
    /// There is no answer, or it is not 101.
    pub async fn exec(&self, target: &str, path: &str) -> Result<ExecStream, RequestError> {
        self.connect_kubelet(target).await?.exec(path).await
    }
}

/// A connection to a kubelet that can take one request after another. Dropping it closes it.
#[derive(Debug)]
pub struct KubeletConnection {
    target: String,
    sender: SendRequest<StandInBody>,
    /// Ends the task that moves the bytes, by and by.
    _owner: DropGuard,
}

impl KubeletConnection {
    /// `GET`, with the whole body.
    ///
    /// # Errors
    ///
    /// There is no whole answer. A status other than 200 is no error.
    pub async fn get(&mut self, path: &str) -> Result<Reply, RequestError> {
        let response = self
            .send(self.request("GET", path, StandInBody::empty()))
            .await?;
        self.whole(response).await
    }

    async fn post(&mut self, path: &str, body: StandInBody) -> Result<Reply, RequestError> {
        let response = self.send(self.request("POST", path, body)).await?;
        self.whole(response).await
    }

    async fn get_stream(mut self, path: &str) -> Result<LogLines, RequestError> {
        let response = self
            .send(self.request("GET", path, StandInBody::empty()))
            .await?;
        let response = self.expect(StatusCode::OK, response).await?;
        Ok(LogLines {
            body: response.into_body(),
            pending: BytesMut::new(),
            connection: self,
        })
    }

    /// `GET` of a body that must be stream `seed`, checked as it comes; returns its length.
    ///
    /// # Errors
    ///
    /// It was not sent, or the body is another one.
    pub async fn get_pattern(mut self, path: &str, seed: u64) -> Result<u64, RequestError> {
        let response = self
            .send(self.request("GET", path, StandInBody::empty()))
            .await?;
        let mut body = self.expect(StatusCode::OK, response).await?.into_body();
        let mut verifier = Pattern::new(seed).verifier();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|source| self.http_error(source))?;
            let data = frame.into_data().unwrap_or_default();
            verifier.check(&data).map_err(|source| RequestError::Body {
                target: self.target.clone(),
                source,
            })?;
        }
        Ok(verifier.offset())
    }

    async fn exec(mut self, path: &str) -> Result<ExecStream, RequestError> {
        let mut request = self.request("POST", path, StandInBody::empty());
        let headers = request.headers_mut();
        headers.insert(
            CONNECTION,
            hyper::header::HeaderValue::from_static("Upgrade"),
        );
        headers.insert(UPGRADE, hyper::header::HeaderValue::from_static("SPDY/3.1"));
        let response = self.send(request).await?;
        let response = self
            .expect(StatusCode::SWITCHING_PROTOCOLS, response)
            .await?;
        let upgraded = hyper::upgrade::on(response).await;
        let upgraded = upgraded.map_err(|source| self.http_error(source))?;
        Ok(ExecStream {
            stream: TokioIo::new(upgraded),
        })
    }

    fn request(&self, method: &str, path: &str, body: StandInBody) -> Request<StandInBody> {
        Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.target)
            .body(body)
            .expect("paths and targets of tests can stand in a request")
    }

    async fn send(
        &mut self,
        request: Request<StandInBody>,
    ) -> Result<Response<Incoming>, RequestError> {
        let sent = self.sender.send_request(request).await;
        sent.map_err(|source| self.http_error(source))
    }

    async fn whole(&self, response: Response<Incoming>) -> Result<Reply, RequestError> {
        let (head, body) = response.into_parts();
        let body = body
            .collect()
            .await
            .map_err(|source| self.http_error(source))?;
        Ok(Reply {
            status: head.status.as_u16(),
            headers: head.headers,
            body: body.to_bytes(),
        })
    }

    async fn expect(
        &self,
        status: StatusCode,
        response: Response<Incoming>,
    ) -> Result<Response<Incoming>, RequestError> {
        if response.status() == status {
            return Ok(response);
        }
        let reply = self.whole(response).await?;
        Err(RequestError::Status {
            target: self.target.clone(),
            status: reply.status,
            body: reply.text(),
        })
    }

    fn http_error(&self, source: hyper::Error) -> RequestError {
        RequestError::Http {
            target: self.target.clone(),
            source,
        }
    }
}

/// A log, line by line. Dropping it is how a client stops following.
#[derive(Debug)]
pub struct LogLines {
    body: Incoming,
    /// What came behind the last whole line.
    pending: BytesMut,
    connection: KubeletConnection,
}

impl LogLines {
    /// The next line without its newline; `None` at the end. Cancel-safe.
    ///
    /// # Errors
    ///
    /// The connection ended in the middle of the log.
    pub async fn next_line(&mut self) -> Result<Option<String>, RequestError> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line = self.pending.split_to(end + 1);
                return Ok(Some(
                    String::from_utf8_lossy(line.trim_ascii_end()).into_owned(),
                ));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    let data = frame.into_data().unwrap_or_default();
                    self.pending.extend_from_slice(&data);
                }
                Some(Err(source)) => return Err(self.connection.http_error(source)),
                None if self.pending.is_empty() => return Ok(None),
                None => self.pending.extend_from_slice(b"\n"),
            }
        }
    }

    /// Reads to the end without looking at lines; how many bytes these were.
    ///
    /// # Errors
    ///
    /// The connection ended in the middle of the log.
    pub async fn skip_to_end(&mut self) -> Result<u64, RequestError> {
        let mut bytes = std::mem::take(&mut self.pending).len() as u64;
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|source| self.connection.http_error(source))?;
            bytes += frame.data_ref().map_or(0, Bytes::len) as u64;
        }
        Ok(bytes)
    }
}

/// Raw bytes to what was executed and back. Shutting it down half-closes.
#[derive(Debug)]
pub struct ExecStream {
    stream: TokioIo<Upgraded>,
}

impl AsyncRead for ExecStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> task::Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for ExecStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        data: &[u8],
    ) -> task::Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
    ) -> task::Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
    ) -> task::Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// TLS and HTTP through a tunnel that stands.
async fn speak(
    (config, name): KubeletClient,
    tunnel: Tunnel,
    target: &str,
) -> Result<KubeletConnection, RequestError> {
    let stream = TlsConnector::from(config).connect(name, tunnel).await;
    let stream = stream.map_err(|source| RequestError::Tls {
        target: target.to_owned(),
        source,
    })?;
    let shaken = handshake::<_, StandInBody>(TokioIo::new(stream)).await;
    let (sender, connection) = shaken.map_err(|source| RequestError::Http {
        target: target.to_owned(),
        source,
    })?;
    let dropped = CancellationToken::new();
    let owner = dropped.clone().drop_guard();
    tokio::spawn(async move {
        let close = async {
            dropped.cancelled().await;
            tokio::time::sleep(CLOSE_LIMIT).await;
        };
        tokio::select! {
            // An error of the connection is told to the request that it hits.
            _ = connection.with_upgrades() => {}
            () = close => {}
        }
    });
    Ok(KubeletConnection {
        target: target.to_owned(),
        sender,
        _owner: owner,
    })
}

/// The name to expect in the certificate is the host part, without an IPv6 address's brackets.
fn server_name(target: &str) -> Result<ServerName<'static>, RequestError> {
    let host = target.rsplit_once(':').map(|(host, _)| host);
    let bare = host.map(|host| host.trim_start_matches('[').trim_end_matches(']'));
    bare.and_then(|bare| ServerName::try_from(bare.to_owned()).ok())
        .ok_or_else(|| RequestError::Target(target.to_owned()))
}

/// How long a connection whose owner has dropped it may take to say goodbye. Go's TLS gives
/// itself the same time.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);
