//! Serving the admin address: connections, their limits, and the few paths there are.
//!
//! Owns the HTTP side; HTTP itself is hyper's. One request per connection, so that a client is
//! gone within [`CONNECTION_LIMIT`] whatever it does. A client without a place waits in the
//! kernel's queue.

use std::{net::IpAddr, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{runtime::Handle, sync::Semaphore, time::timeout};
use tokio_util::task::TaskTracker;

use super::{
    Answers,
    listener::{Connection, Listener},
};
use crate::metrics;

/// What every connection is served with.
#[derive(Clone)]
pub(super) struct Server {
    answers: Arc<dyn Answers>,
    /// The runtime that relays, to see whether it still does anything.
    daemon: Handle,
    /// Anybody on the host can connect by TCP, a web page in a browser on it too.
    checks_host: bool,
}

impl Server {
    pub(super) fn new(answers: Arc<dyn Answers>, daemon: Handle, checks_host: bool) -> Self {
        Self {
            answers,
            daemon,
            checks_host,
        }
    }

    /// Serves connections for ever; they end with the runtime.
    pub(super) async fn run(self, listener: &Listener) {
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let tasks = TaskTracker::new();
        loop {
            let Ok(place) = Arc::clone(&room).acquire_owned().await else {
                return;
            };
            let connection = match listener.accept().await {
                Ok(connection) => connection,
                Err(error) => {
                    tracing::debug!(%error, "admin address cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let server = self.clone();
            tasks.spawn(async move {
                let served = server.serve(connection);
                if timeout(CONNECTION_LIMIT, served).await.is_err() {
                    tracing::debug!("client of the admin address is too slow");
                }
                drop(place);
            });
        }
    }

    async fn serve(self, connection: Box<dyn Connection>) {
        let server = &self;
        let service = service_fn(move |request| async move {
            Ok::<_, std::convert::Infallible>(server.answer(&request).await)
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_LIMIT)
            .max_buf_size(MAX_HEADER_LEN)
            .keep_alive(false)
            .serve_connection(TokioIo::new(Pin::new(connection)), service);
        if let Err(error) = served.await {
            tracing::debug!(%error, "client of the admin address");
        }
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if self.checks_host && !names_loopback(request) {
            let text = "host must be an IP address or localhost\n";
            return plain(StatusCode::FORBIDDEN, text);
        }
        let (path, query) = (request.uri().path(), request.uri().query().unwrap_or(""));
        match *request.method() {
            Method::GET | Method::HEAD => {}
            Method::POST if !self.checks_host => {
                return match self.answers.act(path, query) {
                    Some(answer) => answered(answer),
                    None => plain(StatusCode::NOT_FOUND, "no such order\n"),
                };
            }
            _ => {
                let text = "only GET and HEAD: what acts needs the Unix socket\n";
                let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, text);
                let allowed = HeaderValue::from_static("GET, HEAD");
                response.headers_mut().insert(ALLOW, allowed);
                return response;
            }
        }
        match path {
            "/healthz" => self.health().await,
            "/readyz" => self.readiness(),
            "/metrics" => {
                let kind = HeaderValue::from_static(metrics::CONTENT_TYPE);
                response(StatusCode::OK, kind, self.answers.metrics())
            }
            "/status" => json(&self.answers.status()),
            path => match self.answers.other(path, query) {
                Some(answer) => answered(answer),
                None => plain(StatusCode::NOT_FOUND, PATHS),
            },
        }
    }

    /// Whether the runtime that relays still runs tasks. Only asking costs it anything.
    async fn health(&self) -> Response<Full<Bytes>> {
        match timeout(ALIVE_WITHIN, self.daemon.spawn(async {})).await {
            Ok(Ok(())) => plain(StatusCode::OK, "alive\n"),
            Ok(Err(_)) => plain(StatusCode::SERVICE_UNAVAILABLE, "the daemon is ending\n"),
            Err(_) => {
                let text = format!("no task was run within {} s\n", ALIVE_WITHIN.as_secs());
                plain(StatusCode::SERVICE_UNAVAILABLE, text)
            }
        }
    }

    fn readiness(&self) -> Response<Full<Bytes>> {
        let mut reasons = self.answers.unready();
        if reasons.is_empty() {
            return plain(StatusCode::OK, "ready\n");
        }
        reasons.push(String::new());
        plain(StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n"))
    }
}

/// Whether the client meant this machine. A page from elsewhere whose name was made to lead here
/// (DNS rebinding) has that name in its requests.
fn names_loopback(request: &Request<Incoming>) -> bool {
    let Some(host) = request.headers().get(HOST) else {
        return true;
    };
    let host = host.to_str().unwrap_or_default();
    let host = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

fn answered(answer: Result<serde_json::Value, String>) -> Response<Full<Bytes>> {
    match answer {
        Ok(answer) => json(&answer),
        Err(reason) => plain(StatusCode::BAD_REQUEST, format!("{reason}\n")),
    }
}

fn json(answer: &serde_json::Value) -> Response<Full<Bytes>> {
    let kind = HeaderValue::from_static("application/json");
    response(StatusCode::OK, kind, format!("{answer}\n"))
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response(status, kind, text)
}

fn response(
    status: StatusCode,
    kind: HeaderValue,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, kind);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

const PATHS: &str = "no such path; there are /healthz, /readyz, /metrics, /status \
                     and those of the daemon's own commands\n";

/// A scraper, a probe of each kind and a few people; more is a mistake or malice.
const MAX_CONNECTIONS: usize = 16;

/// How long a request's header may take. Clients send it in one piece.
const HEADER_LIMIT: Duration = Duration::from_secs(2);

/// hyper's least. Requests have a line and a handful of headers.
const MAX_HEADER_LEN: usize = 8 * 1024;

/// Everything from the connection to the last byte of the answer.
const CONNECTION_LIMIT: Duration = Duration::from_secs(5);

/// A runtime that runs nothing for so long does not serve its streams either.
const ALIVE_WITHIN: Duration = Duration::from_secs(2);

/// How long to wait when the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
