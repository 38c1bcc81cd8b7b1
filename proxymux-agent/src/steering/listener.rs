//! The listeners to which the kernel steers, and the loop that accepts.
//!
//! Owns when connections are steered at all: the gate is open while this loop accepts and has
//! room, and the heartbeat is its own, so that a loop that hangs is found by the kernel. What
//! becomes of a connection is `steered.rs`; what the kernel is told of is `maps.rs`.
//! Whatever goes wrong here, the gate closes and the kubelet answers for itself.

use std::{
    error::Error,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    sync::Arc,
    time::Duration,
};

use proxymux_transport::{
    half_open::HalfOpen,
    telemetry::chain,
    unrouted::{self, listen_unrouted},
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Family, Maps,
    steered::{Arrival, refuse_full, serve},
};
use crate::agent::Agent;

/// What the loop tells the kernel. In the agent it is [`Maps`].
pub(super) trait Gate: Send + Sync + 'static {
    /// Says that connections are accepted.
    fn beat(&self) -> Told;
    /// Gives connections to the listener.
    fn open(&self, family: Family, listener: &TcpListener) -> Told;
    /// Leaves connections to the kubelet.
    fn close(&self) -> Told;
    /// Whether this is one of the node's addresses whose connections are steered.
    fn is_own(&self, ip: IpAddr) -> bool;
}

pub(super) type Told = Result<(), Box<dyn Error + Send + Sync>>;

impl Gate for Arc<Maps> {
    fn beat(&self) -> Told {
        Ok(Maps::beat(self)?)
    }

    fn open(&self, family: Family, listener: &TcpListener) -> Told {
        Ok(self.set_listener(family, listener.as_fd())?)
    }

    fn close(&self) -> Told {
        Ok(self.clear_listeners()?)
    }

    fn is_own(&self, ip: IpAddr) -> bool {
        self.addresses().contains(&ip)
    }
}

/// Accepts what is steered until the agent drains, and relays through the drain. In mode
/// userspace there is nothing to do.
pub(crate) async fn run(agent: Arc<Agent>) {
    let Some(maps) = agent.steering.maps().cloned() else {
        return;
    };
    let detached = agent.steering.detached.clone();
    match Listeners::bind() {
        Ok(listeners) => {
            // From here on it can be compared with what is assigned.
            let accepted = agent.metrics.steered.accepted.clone();
            agent.metrics.tally.accepted.get_or_init(|| accepted);
            Acceptor::new(agent, maps, listeners).run(detached).await;
        }
        // The maps have no listener: the programs leave every connection to the kubelet.
        Err(error) => {
            let reason = chain(&error);
            tracing::error!(reason, "nothing is steered, there is no listener for it");
        }
    }
}

/// One listener for each family that this host has.
#[derive(Debug)]
pub(super) struct Listeners {
    v4: TcpListener,
    v6: Option<TcpListener>,
}

impl Listeners {
    /// Listens where nobody can connect to.
    pub(super) fn bind() -> io::Result<Self> {
        let v6 = listen_unrouted(unrouted::Family::V6);
        if let Err(error) = &v6 {
            let reason = chain(error);
            tracing::info!(reason, "no IPv6 connections are steered");
        }
        Ok(Self {
            v4: listen_unrouted(unrouted::Family::V4)?,
            v6: v6.ok(),
        })
    }

    #[cfg(test)]
    pub(super) fn of(v4: TcpListener) -> Self {
        Self { v4, v6: None }
    }

    fn each(&self) -> impl Iterator<Item = (Family, &TcpListener)> {
        let v6 = self.v6.as_ref().map(|v6| (Family::V6, v6));
        [(Family::V4, &self.v4)].into_iter().chain(v6)
    }

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let v6 = async {
            match &self.v6 {
                Some(v6) => v6.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            accepted = self.v4.accept() => accepted,
            accepted = v6 => accepted,
        }
    }
}

pub(super) struct Acceptor<G> {
    agent: Arc<Agent>,
    gate: G,
    listeners: Listeners,
    streams: TaskTracker,
    /// Those that have not shown yet what they are, apart from those that are relayed: whoever
    /// sends nothing, or bytes one at a time, must not close the gate for masters.
    half_open: Arc<HalfOpen>,
    /// Cancelled when connections are out of time.
    cut: CancellationToken,
    is_open: bool,
    /// Connections cannot be accepted now.
    failing: bool,
    next_beat: Instant,
    /// What was last complained of, so that it is not with every beat.
    trouble: Option<String>,
}

impl<G: Gate> Acceptor<G> {
    pub(super) fn new(agent: Arc<Agent>, gate: G, listeners: Listeners) -> Self {
        Self {
            agent,
            gate,
            listeners,
            streams: TaskTracker::new(),
            half_open: HalfOpen::with_room_for(MAX_HALF_OPEN),
            cut: CancellationToken::new(),
            is_open: false,
            failing: false,
            next_beat: Instant::now(),
            trouble: None,
        }
    }

    /// `detached` is cancelled when no packet meets a program any more.
    pub(super) async fn run(mut self, detached: CancellationToken) {
        let drain = self.agent.shutdown.drain.clone();
        loop {
            self.look();
            tokio::select! {
                biased;
                () = drain.cancelled() => break,
                accepted = self.listeners.accept() => self.take(accepted).await,
                // All that waited has been accepted.
                () = tokio::time::sleep_until(self.next_beat) => self.failing = false,
            }
        }
        let told = self.gate.close();
        self.report(told);
        self.agent.steering.changes.announce();
        self.accept_the_rest(detached).await;
        self.finish().await;
    }

    /// Beats when it is time, and opens or closes the gate.
    fn look(&mut self) {
        let now = Instant::now();
        if now >= self.next_beat {
            self.next_beat = now + BEAT_EVERY;
            // Before the gate opens, and first of all after the process was stopped.
            if !self.failing {
                let told = self.gate.beat();
                self.report(told);
            }
        }
        let limit = if self.is_open { CLOSE_AT } else { OPEN_BELOW };
        let wanted = !self.failing && self.streams.len() < limit;
        if wanted != self.is_open {
            let told = if wanted {
                self.open()
            } else {
                self.gate.close()
            };
            let done = told.is_ok();
            self.report(told);
            if done {
                self.is_open = wanted;
                self.agent.steering.changes.announce();
                self.tell_gate();
            }
        }
    }

    /// Both families or none.
    fn open(&self) -> Told {
        let mut each = self.listeners.each();
        let told = each.try_for_each(|(family, listener)| self.gate.open(family, listener));
        told.or_else(|error| self.gate.close().and(Err(error)))
    }

    fn tell_gate(&self) {
        let streams = self.streams.len();
        if self.is_open {
            tracing::info!(streams, "connections are steered");
        } else {
            let reason = if self.failing {
                "connections cannot be accepted"
            } else {
                "there are too many"
            };
            tracing::warn!(reason, streams, "no more connections are steered for now");
        }
    }

    async fn take(&mut self, accepted: io::Result<(TcpStream, SocketAddr)>) {
        match accepted {
            Ok((connection, from)) => {
                self.failing = false;
                self.receive(connection, from);
            }
            Err(error) if is_of_one_connection(&error) => {
                tracing::debug!(%error, "a steered connection was gone before it was accepted");
            }
            Err(error) => {
                let reason = chain(&error);
                if !self.failing {
                    tracing::error!(reason, "cannot accept steered connections");
                }
                self.failing = true;
                // The gate closes first: what comes now is for the kubelet.
                self.look();
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }

    fn receive(&self, connection: TcpStream, from: SocketAddr) {
        let started = Instant::now();
        let to = match connection.local_addr() {
            Ok(to) => to,
            Err(error) => return tracing::debug!(%error, "a steered connection has ended"),
        };
        let port = self.agent.config.kubelet_addr.port();
        let arrival = Arrival {
            connection,
            from,
            to,
            steered: to.port() == port && self.gate.is_own(to.ip()),
            started,
            half_open: self.half_open.enter(from.ip()).0,
        };
        if self.streams.len() >= MAX_STEERED {
            return refuse_full(arrival, &self.agent);
        }
        let (agent, cut) = (Arc::clone(&self.agent), self.cut.clone());
        self.streams.spawn(serve(arrival, agent, cut));
    }

    /// Serves what the kernel had given to the listeners when the gate closed: its handshakes may
    /// be under way, and a listener that is closed resets them.
    async fn accept_the_rest(&mut self, detached: CancellationToken) {
        let limit = tokio::time::timeout(DETACH_LIMIT, detached.cancelled());
        let over = async {
            // Late or not, the gate is closed.
            let _ = limit.await;
            tokio::time::sleep(HANDSHAKE_GRACE).await;
        };
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = &mut over => return,
                accepted = self.listeners.accept() => self.take(accepted).await,
            }
        }
    }

    /// Lets connections go on until the drain is out of time, and cuts them off then.
    async fn finish(self) {
        let Self {
            agent,
            listeners,
            streams,
            cut,
            ..
        } = self;
        drop(listeners);
        streams.close();
        tokio::select! {
            () = streams.wait() => return,
            () = agent.shutdown.force.cancelled() => {}
            () = tokio::time::sleep(agent.drain_deadline()) => {
                let cut = streams.len();
                tracing::warn!(cut, "steered connections cut off, drain is out of time");
            }
        }
        cut.cancel();
        // Each ends within one turn, having been told.
        streams.wait().await;
    }

    fn report(&mut self, told: Told) {
        let trouble = told.err().map(|error| chain(&*error));
        if trouble != self.trouble
            && let Some(reason) = &trouble
        {
            tracing::error!(reason, "cannot tell the kernel what to steer");
        }
        self.trouble = trouble;
    }
}

/// Whether accepting failed for a reason that the next connection need not have: accept(2) names
/// them.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(
        error.kind(),
        K::ConnectionAborted
            | K::ConnectionReset
            | K::Interrupted
            | K::NetworkDown
            | K::NetworkUnreachable
            | K::HostUnreachable
    )
}

/// The kernel takes the agent for dead after 5 s, so a beat may be 3 s late. Each wakes an agent
/// that is otherwise idle.
const BEAT_EVERY: Duration = Duration::from_secs(2);

/// How many connections there may be that have not shown what they are. Far less than what closes
/// the gate, so that silence and garbage do not; a master shows itself within a round trip.
const MAX_HALF_OPEN: usize = 256;

/// How many steered connections there may be besides flows, which are of masters that have proven
/// themselves and have a limit of their own. Each costs two descriptors, and 16 KiB for each way
/// whose reader is slow: 32 MiB at worst, half of what the agent may use. A kubelet has no more
/// than a few dozen open at once.
pub(super) const MAX_STEERED: usize = 1024;

/// The gate closes earlier than that, as the listeners' queues are not empty then, and opens again
/// when it will not close at once.
const CLOSE_AT: usize = 768;
const OPEN_BELOW: usize = 640;

/// After a failure to accept, which is one of descriptors or memory: others may end meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// How long taking the programs off may take.
const DETACH_LIMIT: Duration = Duration::from_secs(2);

/// How long a handshake that is under way may take: a few round trips between hosts of a cluster.
const HANDSHAKE_GRACE: Duration = Duration::from_millis(300);

#[cfg(test)]
mod tests;
