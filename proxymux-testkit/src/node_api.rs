//! A stand-in for the part of kube-apiserver that serves Node objects: list and watch.
//!
//! Owns [`NodeStore`], which is etcd and outlives the server, and [`NodeApi`], the server: TLS, a
//! client certificate or a token, pages, `resourceVersion`, bookmarks, `410 Gone` before and within
//! a watch. It runs on the runtime that [`NodeApi::start`] is awaited on, until it is dropped.
//! Limits: HTTP/1.1, JSON, no selectors, and no other resource. Watches end when a test says so.

mod answer;
mod object;
mod store;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context, Result};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

pub use self::store::{NodeFields, NodeStore};
use crate::{
    acceptor::{Acceptor, Tasks},
    kubelet::client::Client,
    pki::CertFiles,
    tls,
};

/// Settings of a [`NodeApi`].
#[derive(Clone, Debug)]
pub struct NodeApiConfig {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The certificate it serves.
    pub serving: CertFiles,
    /// The CA that signs its clients.
    pub client_ca: PathBuf,
    /// The common name of the one who may read nodes.
    pub user: String,
    /// A token that stands for the same user, until [`NodeApi::set_token`] says another.
    pub token: Option<String>,
    /// How many objects a page has at most, whatever is asked for.
    pub page: usize,
}

/// What a [`NodeApi`] was asked so far.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct NodeApiStats {
    /// Lists that were begun.
    pub lists: u64,
    /// Further pages of them.
    pub pages: u64,
    /// Watches that were begun.
    pub watches: u64,
    /// Requests that were answered with 410.
    pub gone: u64,
    /// Requests that were answered with 401 or 403.
    pub refused: u64,
}

/// A running stand-in. Dropping it closes its connections.
#[derive(Debug)]
pub struct NodeApi {
    local_addr: SocketAddr,
    shared: Arc<Shared>,
    _acceptor: Acceptor,
}

#[derive(Debug)]
struct Shared {
    config: NodeApiConfig,
    store: NodeStore,
    token: Mutex<Option<String>>,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    lists: AtomicU64,
    pages: AtomicU64,
    watches: AtomicU64,
    gone: AtomicU64,
    refused: AtomicU64,
}

impl NodeApi {
    /// Reads the certificates and listens.
    ///
    /// # Errors
    ///
    /// A file is missing or no good, or the address cannot be listened at.
    pub async fn start(config: NodeApiConfig, store: NodeStore) -> Result<Self> {
        let tls = tls::server_config_for_anybody(&config.serving, &config.client_ca)?;
        let listener = TcpListener::bind(config.listen)
            .await
            .with_context(|| format!("cannot listen at {}", config.listen))?;
        let local_addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            token: Mutex::new(config.token.clone()),
            config,
            store,
            counters: Counters::default(),
        });
        let (acceptor, connections) = (TlsAcceptor::from(Arc::new(tls)), Arc::clone(&shared));
        let acceptor = Acceptor::spawn("node api", listener, move |stream, _, tasks| {
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

    /// Another token stands for the user from now on, and the one before for nobody. A watch that
    /// runs goes on.
    pub fn set_token(&self, token: &str) {
        *self.shared.lock_token() = Some(token.to_owned());
    }

    /// What it was asked so far.
    pub fn stats(&self) -> NodeApiStats {
        let counters = &self.shared.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        NodeApiStats {
            lists: read(&counters.lists),
            pages: read(&counters.pages),
            watches: read(&counters.watches),
            gone: read(&counters.gone),
            refused: read(&counters.refused),
        }
    }
}

impl Shared {
    fn token(&self) -> Option<String> {
        self.lock_token().clone()
    }

    fn lock_token(&self) -> MutexGuard<'_, Option<String>> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn serve(stream: TcpStream, acceptor: TlsAcceptor, shared: Arc<Shared>, tasks: Tasks) {
    let Ok(stream) = acceptor.accept(stream).await else {
        return;
    };
    let user = Client::of(stream.get_ref().1).map(|client| client.user);
    let user = Arc::new(user);
    let service = service_fn(move |request| {
        let answer = answer::answer(&request, user.as_deref(), &shared, &tasks);
        async move { answer }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service);
    // A client that goes away in the middle of a watch is its ordinary end.
    let _ = connection.await;
}

#[cfg(test)]
mod tests;
