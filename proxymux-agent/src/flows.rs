//! Flows: connections of a master that bypass its session, one TCP connection each.
//!
//! Owns what a session needs for its flows ([`SessionFlows`]) and what all of them share
//! ([`Flows`]). The pool of idle ones that this agent dials is `pool`, those that a master has
//! dialled come in by `direct`, and what both do once they are opened is `serve`. How long one may
//! outlive its session is `lease`.
//! Leaves the hello and its proofs to `proxymux_transport::flow`, and everything that is not to
//! the kubelet to the session's streams.

use std::{net::SocketAddr, sync::Arc};

use proxymux_proto::{FlowAbort, FlowDirection, FlowKeys, MAX_STREAMS, Registered, TargetAddr};
use proxymux_transport::{
    config_file::values::AutoOff,
    flow::{FlowConnection, FlowFault, FlowSession, FlowTable},
    socket::FlowBuffers,
    splice::Pipes,
    telemetry::chain,
};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    dial::{Dialler, FlowAddress},
    lease::{Lease, MasterFlows, Masters},
};
pub(crate) use self::{
    direct::{DirectFault, accept},
    metrics::FlowMetrics,
    pool::{Pool, PoolStatus},
};
use crate::{agent::Agent, config::Config};

mod dial;
mod direct;
mod first;
mod lease;
mod metrics;
mod pool;
mod serve;

/// What all flows of this agent share.
#[derive(Debug)]
pub(crate) struct Flows {
    /// The sessions whose flows are believed.
    pub(crate) table: FlowTable<Arc<Owner>>,
    /// What the payload of flows, and of what is steered, goes through.
    pub(crate) pipes: Pipes,
    /// What the kernel may hold for them.
    pub(crate) buffers: FlowBuffers,
    masters: Masters,
    /// Every task of a flow or a pool.
    tasks: TaskTracker,
}

/// The session that a flow belongs to, as far as its flows need to know it.
#[derive(Debug)]
pub(crate) struct Owner {
    master: Arc<MasterFlows>,
    /// Where the session goes.
    at: SocketAddr,
    /// Cancelled when the session takes nothing new.
    closed: CancellationToken,
    aborts: mpsc::Sender<FlowAbort>,
}

/// The flows of one session, until it ends.
#[derive(Debug)]
pub(crate) struct SessionFlows {
    owner: Arc<Owner>,
    pool: Arc<Pool>,
    aborts: mpsc::Receiver<FlowAbort>,
    /// While it is there, hellos of this session are believed.
    _session: Arc<FlowSession<Arc<Owner>>>,
    _lease: Lease,
}

/// Flows of a session, for whoever shows them.
#[derive(Clone, Debug)]
pub(crate) struct FlowsView {
    pool: Arc<Pool>,
    master: Arc<MasterFlows>,
}

/// Where and how a session goes, which its flows do as well.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    pub(crate) master: SocketAddr,
    pub(crate) largest_segment: Option<u16>,
}

impl Flows {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            table: FlowTable::new(),
            pipes: match config.splice {
                AutoOff::Auto => Pipes::new(PIPE_BUDGET),
                AutoOff::Off => Pipes::off(),
            },
            buffers: FlowBuffers::new(config.flow_buffer),
            masters: Masters::default(),
            tasks: TaskTracker::new(),
        }
    }

    /// Ends the flows that run when a drain is out of time, and waits until all have ended.
    pub(crate) async fn finish(agent: Arc<Agent>) {
        let flows = &agent.flows;
        agent.shutdown.drain.cancelled().await;
        flows.tasks.close();
        tokio::select! {
            () = flows.tasks.wait() => return,
            () = agent.shutdown.force.cancelled() => {}
            () = tokio::time::sleep(agent.drain_deadline()) => {
                let cut = flows.tasks.len();
                tracing::warn!(cut, "flows cut off, drain is out of time");
            }
        }
        flows.masters.cut_all();
        // Each ends within one turn: what waits for its master has a limit of its own.
        flows.tasks.wait().await;
    }
}

impl SessionFlows {
    /// Begins to keep flows for a session; nothing if its master wants none.
    pub(crate) fn start(
        agent: &Arc<Agent>,
        keys: Option<&Arc<FlowKeys>>,
        registered: &Registered,
        way: Way,
    ) -> Option<Self> {
        let keys = keys.filter(|_| registered.flow_pool > 0)?;
        let lease = agent.flows.masters.session(registered.master);
        let (sender, aborts) = mpsc::channel(MAX_UNTOLD);
        let owner = Arc::new(Owner {
            master: Arc::clone(lease.flows()),
            at: way.master,
            closed: CancellationToken::new(),
            aborts: sender,
        });
        let session = agent
            .flows
            .table
            .enter(Arc::clone(keys), Arc::clone(&owner));
        let session = Arc::new(session);
        let pool = Pool::new(registered.flow_pool);
        let dialler = Dialler {
            to: flow_address(registered, way.master),
            from: agent.config.bind_addr,
            largest_segment: way.largest_segment,
            session: Arc::clone(&session),
        };
        tracing::info!(
            master = %way.master, flows.to = %dialler.to, idle = registered.flow_pool,
            "fast paths may be used"
        );
        let keeping = pool::keep(
            Arc::clone(&pool),
            Arc::new(dialler),
            Arc::clone(&owner),
            Arc::clone(agent),
        );
        agent.flows.tasks.spawn(keeping);
        Some(Self {
            owner,
            pool,
            aborts,
            _session: session,
            _lease: lease,
        })
    }

    /// Keeps so many idle flows from now on.
    pub(crate) fn want(&self, idle: u32) {
        self.pool.want(idle);
    }

    /// Takes no new flows, and ends those that are idle.
    pub(crate) fn close(&self) {
        self.owner.closed.cancel();
    }

    /// What the master is to be told next. Cancel-safe.
    pub(crate) async fn next_abort(&mut self) -> FlowAbort {
        match self.aborts.recv().await {
            Some(abort) => abort,
            // Never: the owner has a sender.
            None => std::future::pending().await,
        }
    }

    /// How many flows of this session's master run, by whichever of its sessions they came.
    pub(crate) fn running(&self) -> usize {
        self.owner.master.running()
    }

    /// Ends those that run.
    pub(crate) fn cut_off(&self) {
        self.owner.master.cut_off();
    }

    pub(crate) fn view(&self) -> FlowsView {
        FlowsView {
            pool: Arc::clone(&self.pool),
            master: Arc::clone(&self.owner.master),
        }
    }
}

impl Drop for SessionFlows {
    fn drop(&mut self) {
        self.close();
    }
}

impl Owner {
    pub(super) fn master(&self) -> &Arc<MasterFlows> {
        &self.master
    }

    /// Says to the master why a flow has ended, if its session still stands.
    fn tell(&self, abort: FlowAbort) {
        // The reset says what is most important, and one that cannot be told is not waited for.
        if self.aborts.try_send(abort).is_err() {
            tracing::debug!(master = %self.at, ?abort, "the master is not told why a flow ended");
        }
    }
}

impl FlowsView {
    pub(crate) fn pool(&self) -> PoolStatus {
        self.pool.status()
    }

    /// Becomes ready when no flow of the master runs. Cancel-safe.
    pub(crate) async fn all_done(&self) {
        self.master.all_done().await;
    }

    /// How many flows of a direction are relaying.
    pub(crate) fn relaying(&self, direction: FlowDirection) -> usize {
        self.master.relayed(direction)
    }
}

/// Counts and logs a proven flow on which the master said or did something that it should not.
fn log_broken(flow: &FlowConnection, owner: &Owner, fault: &FlowFault, agent: &Agent) {
    agent.metrics.flows.broken(flow.direction(), fault);
    let (path, counter, error) = (flow.direction().as_str(), flow.counter(), chain(fault));
    match fault {
        FlowFault::Io(_) => {
            tracing::debug!(master = %owner.at, path, flow = counter, error, "flow ended");
        }
        FlowFault::Peer(_) | FlowFault::TooLong(_) => {
            tracing::warn!(master = %owner.at, path, flow = counter, error, "flow not believed");
        }
    }
}

/// Where the flows of a session go.
fn flow_address(registered: &Registered, at: SocketAddr) -> FlowAddress {
    let Some(text) = &registered.advertise else {
        return FlowAddress::Session(at);
    };
    match text.parse::<TargetAddr>() {
        Ok(advertised) => FlowAddress::Advertised(advertised),
        Err(error) => {
            let reason = chain(&error);
            tracing::warn!(
                master = %at, reason, advertise = text,
                "the master's address for flows cannot be read, they go where the session goes"
            );
            FlowAddress::Session(at)
        }
    }
}

/// What is in pipes waits for a slow reader: 512 of them have a pipe each of 64 KiB, and what has
/// more to wait is copied through 16 KiB. OKE lets its agent have 256 MiB, kernel memory included.
const PIPE_BUDGET: usize = 32 << 20;

/// The most flows of one master; as many as there may be streams on a session.
const MAX_FLOWS: usize = MAX_STREAMS as usize;

/// Ends of flows that wait to be told: a drain cuts all at once, and their line in the master's
/// log is worth a few kilobytes.
const MAX_UNTOLD: usize = 1024;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
