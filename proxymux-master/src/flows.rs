//! Fast paths, on the master's side: flows that bypass the session.
//!
//! Owns which flows there are and who may use them: whether this master uses any ([`Flows`]), those
//! of one session ([`SessionFlows`]), and in the modules below the pool of the reverse path, the
//! probes of the direct one, the choice, and how long flows outlive sessions.
//! Leaves what is said on a flow to `proxymux_transport::flow`, and requests to `gateway.rs`.
//! Read `choose` for how a connection comes by its path, `commit` for when that is settled.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use proxymux_proto::{AbortCode, FlowAbort, FlowDirection, FlowKeys, Registration, SteeringStatus};
use proxymux_transport::{
    config_file::values::AutoOff,
    flow::{FlowSession, FlowTable},
    socket::FlowBuffers,
    splice::Pipes,
};
use tokio::sync::oneshot;

use crate::{
    config::{Config, KubeletCertificates},
    metrics::FlowMetrics,
};

pub(crate) mod choose;
pub(crate) mod commit;
pub(crate) mod direct;
pub(crate) mod hello;
mod lease;
mod opening;
mod pool;
mod relaying;
mod show;
#[cfg(test)]
mod tests;
mod why;

use self::{direct::Direct, lease::Leases};
pub(crate) use self::{
    lease::{FlowGuard, NodeFlows, SessionLease},
    opening::{OpenFlow, RESULTS},
    pool::Pool,
    relaying::relay_flow,
    show::show,
    why::Why,
};

/// What all flows of this master share.
#[derive(Debug)]
pub(crate) struct Flows {
    /// Why this master uses none.
    off: Option<Why>,
    table: FlowTable<Arc<Pool>>,
    leases: Leases,
    pool: u32,
    direct: AutoOff,
    pub(crate) buffers: FlowBuffers,
    pub(crate) pipes: Pipes,
    pub(crate) metrics: Arc<FlowMetrics>,
}

/// The flows of one session.
#[derive(Debug)]
pub(crate) struct SessionFlows {
    session: FlowSession<Arc<Pool>>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) direct: Direct,
    /// Of all sessions of the same run of the agent.
    pub(crate) node: Arc<NodeFlows>,
    /// Who wants to know why the agent gave up a flow.
    waiting: Arc<Mutex<Waiting>>,
}

type Waiting = HashMap<(FlowDirection, u64), oneshot::Sender<AbortCode>>;

/// Hears why the agent gave up one flow, if it says so.
#[derive(Debug)]
pub(crate) struct AbortListener {
    flow: (FlowDirection, u64),
    code: oneshot::Receiver<AbortCode>,
    waiting: Arc<Mutex<Waiting>>,
}

impl Flows {
    pub(crate) fn new(config: &Config, pipes: Pipes, metrics: Arc<FlowMetrics>) -> Self {
        let limit = config.max_flows_per_node.get();
        Self {
            off: off(config),
            table: FlowTable::new(),
            leases: Leases::new(limit),
            pool: config.flow_pool,
            direct: config.direct,
            buffers: FlowBuffers::new(config.flow_buffer),
            pipes,
            metrics,
        }
    }

    /// Why this master uses no flows, if so.
    pub(crate) fn off(&self) -> Option<Why> {
        self.off
    }

    /// The sessions that flows may belong to.
    pub(crate) fn table(&self) -> &FlowTable<Arc<Pool>> {
        &self.table
    }

    /// The flows of a session that registers, if both ends use any.
    pub(crate) fn of_session(
        &self,
        registration: &Registration,
        keys: Arc<FlowKeys>,
    ) -> Option<SessionFlows> {
        if self.off.is_some() || !registration.fast_path {
            return None;
        }
        let pool = Pool::new(self.pool, &self.metrics.idle);
        Some(SessionFlows {
            session: self.table.enter(keys, Arc::clone(&pool)),
            pool,
            direct: Direct::new(self.direct, registration.kubelet),
            node: self
                .leases
                .of_node(&registration.node, registration.instance),
            waiting: Arc::default(),
        })
    }

    /// How many idle flows the agent is asked to keep ready at first: none if there are no flows.
    pub(crate) fn first_pool(&self, flows: Option<&SessionFlows>) -> u32 {
        flows.map_or(0, |_| self.pool)
    }

    /// Says once whether fast paths are used, and why not.
    pub(crate) fn log(&self) {
        match self.off {
            Some(why) => tracing::info!(reason = why.in_words(), "no fast paths"),
            None => tracing::info!(pool = self.pool, direct = ?self.direct, "fast paths are used"),
        }
    }
}

impl SessionFlows {
    /// The secrets of the session.
    pub(crate) fn session(&self) -> &FlowSession<Arc<Pool>> {
        &self.session
    }

    /// The session takes nothing new: what is idle goes, and nothing is opened any more.
    pub(crate) fn close(&self) {
        self.pool.close();
        self.direct.close();
    }

    /// Notes what the agent says of its steering.
    pub(crate) fn steering(&self, status: SteeringStatus) {
        self.direct.steering(status);
    }

    /// Passes on why the agent gave up a flow, to whoever relays it.
    pub(crate) fn aborted(&self, abort: &FlowAbort) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let listener = waiting.remove(&(abort.direction, abort.counter));
        drop(waiting);
        if let Some(listener) = listener {
            // Whoever listened may have heard enough.
            let _ = listener.send(abort.code);
        }
    }

    /// From now on what the agent says of this flow is heard.
    fn listen(&self, direction: FlowDirection, counter: u64) -> AbortListener {
        let (sender, code) = oneshot::channel();
        let flow = (direction, counter);
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.insert(flow, sender);
        drop(waiting);
        AbortListener {
            flow,
            code,
            waiting: Arc::clone(&self.waiting),
        }
    }
}

impl AbortListener {
    /// What the agent said, if it did within `limit`; it goes by the session, so that it may
    /// arrive later than the end of the flow.
    pub(crate) async fn heard(&mut self, limit: std::time::Duration) -> Option<AbortCode> {
        tokio::time::timeout(limit, &mut self.code).await.ok()?.ok()
    }
}

impl Drop for AbortListener {
    fn drop(&mut self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.remove(&self.flow);
    }
}

/// The pipes of this process, as the configuration has them.
pub(crate) fn pipes(config: &Config) -> Pipes {
    match config.splice {
        AutoOff::Auto => Pipes::new(PIPES),
        AutoOff::Off => Pipes::off(),
    }
}

/// Why no flow is used, whatever the agents say.
fn off(config: &Config) -> Option<Why> {
    if config.fast_path == AutoOff::Off || config.flow_pool == 0 {
        return Some(Why::Off);
    }
    match config.kubelet_certificates {
        KubeletCertificates::Verified => None,
        KubeletCertificates::Unverified => Some(Why::Unverified),
    }
}

/// What all pipes may hold: some 1,000 connections that move bytes at the same moment; those that
/// rest hold none.
const PIPES: usize = 64 << 20;
