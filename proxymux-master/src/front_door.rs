//! The front doors: where kube-apiserver comes in, with HTTP CONNECT.
//!
//! Owns everything between a client and the moment at which its bytes can be relayed: listeners,
//! requests, answers, time limits and the number of connections.
//! Leaves to a [`Gateway`] which node a target leads to, how it is reached, and the relay.
//! Read [`Gateway`] and [`FrontDoors`] first; the life of one connection is in `serve`, the bytes
//! of the protocol are in [`connect`].
//!
//! A panic while one connection is served ends that connection only.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use proxymux_proto::TargetAddr;
use proxymux_transport::memory::HeldBytes;
use tokio::{sync::Semaphore, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

mod accept;
mod client;
pub mod connect;
mod serve;
mod tcp;
mod unix;

use crate::metrics::DoorMetrics;

pub(crate) use self::{
    client::{Client, Plain},
    connect::{Refusal, Status},
    serve::early_bytes,
    tcp::{TcpDoor, TlsSettings},
    unix::UnixDoor,
};

/// What is behind the front doors.
pub(crate) trait Gateway: Clone + Send + Sync + 'static {
    /// A way to the target that stands. Dropping it before [`Gateway::relay`] gives it up, at the
    /// target too.
    type Tunnel: Send + 'static;

    /// What is counted about the doors' clients.
    fn metrics(&self) -> &DoorMetrics;

    /// Opens a way to the target, within the budget.
    ///
    /// Cancel-safe: dropping the future cancels the dial, on the agent too. An implementation that
    /// uses up the whole budget gets to say why: the client is answered a little later.
    fn open(
        &self,
        target: &TargetAddr,
        budget: Duration,
    ) -> impl Future<Output = Result<Self::Tunnel, Refusal>> + Send;

    /// An account for payload that a client sends before its tunnel stands.
    fn account(&self) -> HeldBytes;

    /// Relays between the client and the tunnel until both have ended, and writes the access log.
    ///
    /// `early` came from the client already and goes to the target first. Bytes of the target may
    /// go to the client at once: what must come before them has been waited for.
    fn relay(
        &self,
        client: Client,
        early: Bytes,
        tunnel: Self::Tunnel,
        request: RequestInfo,
    ) -> impl Future<Output = ()> + Send;
}

/// Who asked for what.
#[derive(Clone, Debug)]
pub(crate) struct RequestInfo {
    /// What the client asked to be connected to.
    pub target: TargetAddr,
    /// Who the client is.
    pub arrival: Arrival,
}

/// A connection that came in.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    /// The kind of front door, for logs: `unix` or `tcp`.
    pub door: &'static str,
    /// The client's socket address, or `unix:pid=1,uid=0`.
    pub peer: String,
    /// The name in the client's certificate, where it showed one.
    pub client_name: Option<String>,
    /// When the client could first be heard; the budget counts from here.
    pub accepted_at: Instant,
}

/// What a request may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestLimits {
    /// Within which time it is answered.
    pub budget: Duration,
    /// The most bytes of its header.
    pub header_len: usize,
    /// How long its header may take, unless the whole budget is shorter.
    pub header_time: Duration,
}

/// All front doors of a master, and what they share.
#[derive(Clone, Debug)]
pub(crate) struct FrontDoors<G> {
    gateway: G,
    limits: RequestLimits,
    /// One permit for each connection that is served.
    room: Arc<Semaphore>,
    /// Every task that serves a connection. The owner closes it and waits.
    tracker: TaskTracker,
}

impl<G: Gateway> FrontDoors<G> {
    /// Front doors that hold every request to these limits.
    pub(crate) fn new(gateway: G, limits: RequestLimits, tracker: TaskTracker) -> Self {
        Self {
            gateway,
            limits,
            room: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            tracker,
        }
    }

    /// Accepts connections from a Unix socket until `stop`, then removes the socket.
    ///
    /// Connections that have been accepted go on, in tasks of the tracker.
    pub(crate) async fn run_unix(&self, door: UnixDoor, stop: CancellationToken) {
        accept::run(door, self, stop).await;
    }

    /// Accepts connections from a TCP listener until `stop`.
    ///
    /// Connections that have been accepted go on, in tasks of the tracker.
    pub(crate) async fn run_tcp(&self, door: TcpDoor, stop: CancellationToken) {
        accept::run(door, self, stop).await;
    }

    #[cfg(test)]
    fn with_room_for(mut self, connections: usize) -> Self {
        self.room = Arc::new(Semaphore::new(connections));
        self
    }
}

/// The most connections at all front doors together.
///
/// Ten for each of 1,600 nodes, which is more than an API server keeps open. Each has one
/// descriptor here; with the dials of `direct` routes that is half of what a process is usually
/// allowed at most (65,536), so that sessions still find theirs when the front doors are full.
const MAX_CONNECTIONS: usize = 16_384;

#[cfg(test)]
mod tests;
