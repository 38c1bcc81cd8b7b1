//! What all parts of the running master share.
//!
//! Owns nothing that changes by itself: configuration, the run's random id, the registry of
//! nodes, what is taken in, the routes, the metrics, and the tokens that end it. `app.rs` makes
//! it.

use std::sync::Arc;

use proxymux_proto::InstanceId;
use proxymux_transport::{memory::MemoryBudget, reload::Certificates, shutdown::Shutdown};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::Readiness, admission::Admission, claims::Policy, config::Config, metrics::Metrics,
    registry::Registry, routes::Routes, session, trouble::Repeats,
};

/// The shared state of one run of the master.
#[derive(Debug)]
pub(crate) struct Master {
    pub(crate) config: Config,
    pub(crate) id: InstanceId,
    pub(crate) registry: Arc<Registry>,
    pub(crate) routes: Routes,
    pub(crate) metrics: Metrics,
    pub(crate) readiness: Readiness,
    /// What all streams may hold.
    pub(crate) memory: Arc<MemoryBudget>,
    pub(crate) admission: Arc<Admission>,
    /// Why agents were refused lately, for the log.
    pub(crate) refused: Repeats,
    /// What agents are shown, and which of them are believed.
    pub(crate) certificates: Arc<Certificates>,
    pub(crate) shutdown: Shutdown,
    /// Cancelled when connections that do not belong to a session are out of time.
    pub(crate) cut: CancellationToken,
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
        Arc::new(Self {
            config,
            id: session::random_id(),
            registry,
            routes,
            readiness: Readiness::default(),
            metrics: Metrics::new(&memory),
            memory,
            admission,
            refused: Repeats::default(),
            certificates,
            shutdown,
            cut: CancellationToken::new(),
        })
    }
}
