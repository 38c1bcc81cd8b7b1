//! One entry of `server-addr`: which addresses it stands for, and a worker for each.
//!
//! Owns resolving the name, again and again, since masters come and go behind one; leaves the
//! sessions to `session.rs`. Entries are independent: one that cannot be resolved or reached
//! disturbs no other.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use proxymux_transport::telemetry::millis;
use rustls::pki_types::ServerName;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    agent::Agent,
    board::{Row, State},
    config::ServerAddr,
    session::{Backoff, Worker},
};

/// Keeps sessions with every master that an entry of `server-addr` stands for, until the agent
/// drains.
pub(crate) async fn run(agent: Arc<Agent>, server: ServerAddr) {
    let row = agent.board.row(&server, None, State::Resolving);
    let mut link = Link {
        agent,
        server,
        row: Some(row),
        workers: TaskTracker::new(),
        active: HashMap::new(),
        trouble: None,
    };
    let drain = link.agent.shutdown.drain.clone();
    tokio::select! {
        () = link.keep_resolving() => {}
        () = drain.cancelled() => {}
    }
    link.workers.close();
    link.workers.wait().await;
}

struct Link {
    agent: Arc<Agent>,
    server: ServerAddr,
    /// There until the name has been resolved once: from then on workers have rows.
    row: Option<Row>,
    workers: TaskTracker,
    active: HashMap<SocketAddr, CancellationToken>,
    trouble: Option<String>,
}

impl Link {
    async fn keep_resolving(&mut self) {
        let mut backoff = Backoff::default();
        loop {
            let pause = match resolve(&self.server).await {
                Ok(addresses) => {
                    self.adopt(&addresses);
                    backoff.reset();
                    RESOLVE_EVERY
                }
                Err(error) => {
                    let pause = backoff.next();
                    self.report(&error, pause);
                    pause
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Starts workers for new addresses and retires those whose address is gone.
    fn adopt(&mut self, addresses: &BTreeSet<SocketAddr>) {
        self.trouble = None;
        self.row = None;
        let ips = addresses.iter().map(SocketAddr::ip).collect();
        self.agent.sources.resolved(&self.server, ips);
        self.active.retain(|at, retired| {
            let stays = addresses.contains(at);
            if !stays {
                tracing::info!(server = %self.server, address = %at, "address of master is gone");
                retired.cancel();
            }
            stays
        });
        for at in addresses {
            if !self.active.contains_key(at) {
                let retired = CancellationToken::new();
                self.start_workers(*at, &retired);
                self.active.insert(*at, retired);
            }
        }
    }

    fn start_workers(&self, at: SocketAddr, retired: &CancellationToken) {
        let expected = usize::try_from(self.agent.config.expect_masters.get()).unwrap_or(1);
        // The first worker of an address always wants its master. The others are for a virtual
        // address that leads to several: they dial until all expected ones are held.
        let wanted = std::iter::once(usize::MAX).chain(std::iter::repeat_n(expected, expected - 1));
        for only_below in wanted {
            let agent = Arc::clone(&self.agent);
            let worker = Worker::new(agent, self.server.clone(), at, only_below, retired.clone());
            self.workers.spawn(worker.run());
        }
    }

    fn report(&mut self, error: &io::Error, pause: Duration) {
        let (text, retry_in_ms) = (error.to_string(), millis(pause));
        if let Some(row) = &self.row {
            row.failed(format!("cannot resolve: {text}"), pause);
        }
        if self.trouble.as_ref() == Some(&text) {
            tracing::debug!(server = %self.server, error = text, retry_in_ms, "still unresolved");
            return;
        }
        tracing::warn!(server = %self.server, error = text, retry_in_ms, "cannot resolve master");
        self.trouble = Some(text);
    }
}

pub(crate) async fn resolve(server: &ServerAddr) -> io::Result<BTreeSet<SocketAddr>> {
    match server.host() {
        ServerName::IpAddress(ip) => Ok(BTreeSet::from([SocketAddr::new(
            IpAddr::from(*ip),
            server.port(),
        )])),
        name => {
            let name = name.to_str();
            let found = tokio::net::lookup_host((name.as_ref(), server.port())).await?;
            let found: BTreeSet<_> = found.take(MAX_ADDRESSES).collect();
            if found.is_empty() {
                return Err(io::Error::other("name has no address"));
            }
            Ok(found)
        }
    }
}

/// A master that moved is found within half a minute; name servers are asked no more often.
const RESOLVE_EVERY: Duration = Duration::from_secs(30);

/// More masters than this behind one name is a mistake in the name's zone.
const MAX_ADDRESSES: usize = 16;
