//! A kubelet stand-in, as strict about its clients as the real one.
//!
//! TLS with a required client certificate of the cluster's CA; who is not of `system:masters` is
//! forbidden everything, as by a cluster's default authorisation. It runs on the runtime that
//! [`Kubelet::start`] is awaited on, until it is dropped.
//! Limits: TLS 1.3 and HTTP/1.1 only, and an exec is a plain echo without SPDY inside.

mod answer;
pub(crate) mod client;
mod exec;

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use self::client::Client;
use crate::{
    acceptor::{Acceptor, Tasks},
    body,
    pki::CertFiles,
    tls,
};

/// Settings of a [`Kubelet`].
#[derive(Clone, Debug)]
pub struct KubeletConfig {
    /// Where to listen; a real one is at port 10250 of all addresses.
    pub listen: SocketAddr,
    /// The certificate it serves.
    pub serving: CertFiles,
    /// The CA that signs its clients.
    pub client_ca: PathBuf,
    /// How many lines each container has written before anybody asks.
    pub log_history: u64,
    /// The time between two lines while somebody follows; zero means as fast as they are read.
    pub log_interval: Duration,
    /// Lines are filled up to this length.
    pub log_line_length: usize,
    /// About how large `/metrics` is.
    pub metrics_bytes: usize,
}

impl KubeletConfig {
    /// A kubelet with 1,000 lines of history, ten new lines a second and 4 MiB of metrics.
    pub fn new(listen: SocketAddr, serving: CertFiles, client_ca: impl Into<PathBuf>) -> Self {
        Self {
            listen,
            serving,
            client_ca: client_ca.into(),
            log_history: 1000,
            log_interval: Duration::from_millis(100),
            log_line_length: 80,
            metrics_bytes: 4 << 20,
        }
    }
}

/// A running kubelet stand-in. Dropping it closes its connections.
///
/// | request | answer |
/// |---|---|
/// | `GET /healthz` | `ok` |
/// | `GET /metrics` | several MiB of metrics, always the same |
/// | `GET /containerLogs/NS/POD/CONTAINER?follow=true&tailLines=N` | numbered lines, chunked |
/// | `GET` or `POST /exec/NS/POD/CONTAINER` with `Upgrade:` | 101, then an echo until the client's end, then a line with [`exec_trailer`], then the end |
/// | `GET /bytes?n=N&seed=S` (`&chunked=true`) | N bytes of a [`Pattern`](crate::pattern::Pattern) |
/// | `POST /sink` | `received=N digest=HEX` of the body, see [`Digest`](crate::pattern::Digest) |
///
/// ```no_run
/// use proxymux_testkit::{kubelet::{Kubelet, KubeletConfig}, netns::Topology, pki::Pki};
///
/// # fn main() -> anyhow::Result<()> {
/// let (topology, pki) = (Topology::new()?, Pki::temporary()?);
/// let node = topology.node();
/// let serving = pki.kubelet_serving("10.0.10.10", &node.addresses())?;
/// let config = KubeletConfig::new("[::]:10250".parse()?, serving, pki.ca_file());
/// let kubelet = node.run(|| Kubelet::start(config))?;
/// assert_eq!(kubelet.stats().requests, 0);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Kubelet {
    local_addr: SocketAddr,
    shared: Arc<Shared>,
    _acceptor: Acceptor,
}

/// What a [`Kubelet`] has seen.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct KubeletStats {
    /// TCP connections accepted.
    pub connections_accepted: u64,
    /// TCP connections open now.
    pub connections_open: u64,
    /// Connections that did not get through their TLS handshake.
    pub handshakes_failed: u64,
    /// Requests received, the forbidden ones too.
    pub requests: u64,
    /// Requests answered with 403.
    pub requests_forbidden: u64,
    /// Logs being followed now.
    pub logs_followed: u64,
    /// Execs running now.
    pub execs_open: u64,
}

impl Kubelet {
    /// Reads the certificates and listens.
    ///
    /// # Errors
    ///
    /// A file is missing or no good, or the address cannot be listened at.
    pub async fn start(config: KubeletConfig) -> Result<Self> {
        let tls = tls::server_config(&config.serving, &config.client_ca)?;
        let listener = TcpListener::bind(config.listen)
            .await
            .with_context(|| format!("cannot listen at {}", config.listen))?;
        let local_addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            metrics: answer::metrics_text(config.metrics_bytes).into(),
            config,
            counters: Counters::default(),
        });
        let (acceptor, connections) = (TlsAcceptor::from(Arc::new(tls)), Arc::clone(&shared));
        let acceptor = Acceptor::spawn("kubelet", listener, move |stream, _, tasks| {
            serve(
                stream,
                acceptor.clone(),
                Arc::clone(&connections),
                tasks.clone(),
            )
        });
        Ok(Self {
            local_addr,
            shared,
            _acceptor: acceptor,
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// What it has seen so far.
    pub fn stats(&self) -> KubeletStats {
        let counters = &self.shared.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        KubeletStats {
            connections_accepted: read(&counters.connections_accepted),
            connections_open: Arc::strong_count(&counters.open) as u64 - 1,
            handshakes_failed: read(&counters.handshakes_failed),
            requests: read(&counters.requests),
            requests_forbidden: read(&counters.requests_forbidden),
            logs_followed: Arc::strong_count(&counters.followed) as u64 - 1,
            execs_open: Arc::strong_count(&counters.execs) as u64 - 1,
        }
    }
}

/// A line of a container's log as the stand-in writes it, without the newline. `container` is
/// `NS/POD/CONTAINER`.
pub fn log_line(container: &str, number: u64, length: usize) -> String {
    let mut line = String::new();
    body::push_log_line(&mut line, container, number, length);
    line.truncate(line.len() - 1);
    line
}

/// The number of a log line; consecutive lines have consecutive numbers, the first is 1.
pub fn log_line_number(line: &str) -> Option<u64> {
    line.strip_prefix("seq=")?.split(' ').next()?.parse().ok()
}

/// The line that ends an exec, for an input of this digest.
pub fn exec_trailer(input: &crate::pattern::Digest) -> String {
    format!(
        "exec ended received={} digest={:016x}\n",
        input.length(),
        input.finish()
    )
}

#[derive(Debug)]
struct Shared {
    config: KubeletConfig,
    metrics: Bytes,
    counters: Counters,
}

/// What is open is counted by the references to a unit: they go when their holder does.
#[derive(Debug, Default)]
struct Counters {
    connections_accepted: AtomicU64,
    handshakes_failed: AtomicU64,
    requests: AtomicU64,
    requests_forbidden: AtomicU64,
    open: Arc<()>,
    followed: Arc<()>,
    execs: Arc<()>,
}

async fn serve(stream: TcpStream, acceptor: TlsAcceptor, shared: Arc<Shared>, tasks: Tasks) {
    let _open = Arc::clone(&shared.counters.open);
    shared
        .counters
        .connections_accepted
        .fetch_add(1, Ordering::Relaxed);
    let Some((stream, client)) = handshake(stream, &acceptor).await else {
        shared
            .counters
            .handshakes_failed
            .fetch_add(1, Ordering::Relaxed);
        return;
    };
    let client = Arc::new(client);
    let service = service_fn(move |request| {
        answer::answer(
            request,
            Arc::clone(&client),
            Arc::clone(&shared),
            tasks.clone(),
        )
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    // A client that goes away in the middle is the ordinary end of a log that is followed.
    let _ = connection.await;
}

/// `None` for whoever is not let in; the reason is in the alert that was sent.
async fn handshake(
    stream: TcpStream,
    acceptor: &TlsAcceptor,
) -> Option<(tokio_rustls::server::TlsStream<TcpStream>, Client)> {
    let handshake = async {
        stream.set_nodelay(true)?;
        let stream = acceptor.accept(stream).await?;
        let client = Client::of(stream.get_ref().1)
            .ok_or_else(|| io::Error::other("a verified certificate without a subject"))?;
        io::Result::Ok((stream, client))
    };
    handshake.await.ok()
}

#[cfg(test)]
mod tests;
