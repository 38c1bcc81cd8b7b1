//! What all parts of the running master share.
//!
//! Owns nothing that changes by itself: configuration, the run's random id, the registry of
//! nodes, what is taken in, the routes, the metrics, and the tokens that end it. `app.rs` makes
//! it.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use proxymux_proto::{AbortCode, InstanceId};
use proxymux_transport::{
    memory::MemoryBudget, relay::Outcome, reload::Certificates, shutdown::Shutdown,
};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::Readiness,
    admission::Admission,
    claims::Policy,
    config::{Config, NodeAddresses},
    flows::{self, Flows, Why},
    kubernetes::Health,
    metrics::Metrics,
    perf::Perf,
    registry::Registry,
    routes::Routes,
    session,
    takeover::Moving,
    trouble::Repeats,
};

/// The shared state of one run of the master.
#[derive(Debug)]
pub(crate) struct Master {
    pub(crate) config: Config,
    pub(crate) id: InstanceId,
    pub(crate) registry: Arc<Registry>,
    pub(crate) routes: Routes,
    pub(crate) metrics: Metrics,
    /// How the watch on Node objects is doing, if there is to be one.
    pub(crate) node_objects: Option<Arc<Health>>,
    /// What bypasses sessions.
    pub(crate) flows: Flows,
    pub(crate) readiness: Readiness,
    /// What all streams may hold.
    pub(crate) memory: Arc<MemoryBudget>,
    pub(crate) admission: Arc<Admission>,
    /// Why agents were refused lately, for the log.
    pub(crate) refused: Repeats,
    /// What agents are shown, and which of them are believed.
    pub(crate) certificates: Arc<Certificates>,
    /// Whether agents are to go over to a master that takes over from this one.
    pub(crate) moving: Moving,
    /// The measurement that somebody has ordered.
    pub(crate) perf: Perf,
    pub(crate) shutdown: Shutdown,
    /// Cancelled when connections that do not belong to a session are out of time.
    pub(crate) cut: CancellationToken,
    /// How many relayed connections have been cut off by drains.
    cut_off: AtomicUsize,
}

impl Master {
    pub(crate) fn new(
        config: Config,
        policy: Policy,
        certificates: Arc<Certificates>,
        shutdown: Shutdown,
    ) -> Arc<Self> {
        let routes = Routes::new(config.routes.iter().copied());
        let registry = Registry::new(policy);
        let admission = Admission::new(&config);
        let memory = MemoryBudget::new(config.max_memory);
        let pipes = flows::pipes(&config);
        let metrics = Metrics::new(&memory, &pipes);
        let flows = Flows::new(&config, pipes, Arc::clone(&metrics.flows));
        let is_watching = matches!(config.node_addresses, NodeAddresses::Kubernetes(_));
        let node_objects = is_watching.then(|| Health::new(metrics.objects.clone()));
        Arc::new(Self {
            config,
            node_objects,
            id: session::random_id(),
            registry,
            routes,
            readiness: Readiness::default(),
            metrics,
            flows,
            memory,
            admission,
            refused: Repeats::default(),
            certificates,
            moving: Moving::new(),
            perf: Perf::default(),
            shutdown,
            cut: CancellationToken::new(),
            cut_off: AtomicUsize::new(0),
        })
    }

    /// From where nodes are dialled, as their agents are told. `local` is our own address of the
    /// agent's session: what reaches us there will mostly be reached from there.
    pub(crate) fn dial_sources(&self, local: IpAddr) -> Vec<IpAddr> {
        match &*self.config.dials_from {
            [] => vec![local],
            configured => configured.to_vec(),
        }
    }

    /// Counts why a connection that is relayed now does not travel by a faster path.
    pub(crate) fn count_path(&self, why: Option<Why>) {
        if let Some(why) = why {
            self.metrics.flows.passed_over.get(why.as_str()).inc();
        }
    }

    /// Counts a relayed connection if a drain has cut it off, on either end.
    pub(crate) fn count_cut(&self, outcome: &Outcome) {
        if matches!(
            outcome,
            Outcome::Drained | Outcome::PeerAborted(AbortCode::Drain)
        ) {
            self.cut_off.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many have been cut off so far.
    pub(crate) fn cut_off(&self) -> usize {
        self.cut_off.load(Ordering::Relaxed)
    }
}
