//! What all parts of the running agent share.
//!
//! Owns nothing that changes by itself: configuration, the run's random id, the rules for
//! targets, and the tokens that end it. `app.rs` makes it, every session and stream reads it.

use std::{sync::Arc, time::Duration};

use proxymux_proto::{InstanceId, PROTOCOL_VERSION, Registration};
use proxymux_transport::{memory::MemoryBudget, reload::Certificates, shutdown::Shutdown};

use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::{
    board::Board,
    certificates,
    closing::Closing,
    config::Config,
    flows::Flows,
    masters::HeldMasters,
    metrics::Metrics,
    rest::Rest,
    steering::{Sources, Steering},
    target::TargetPolicy,
};

/// The shared state of one run of the agent.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) config: Config,
    pub(crate) instance: InstanceId,
    pub(crate) policy: TargetPolicy,
    pub(crate) masters: Arc<HeldMasters>,
    pub(crate) metrics: Metrics,
    /// What this agent shows to masters, and which of them it believes.
    pub(crate) certificates: Arc<Certificates>,
    pub(crate) board: Arc<Board>,
    pub(crate) started: Instant,
    /// What all streams may hold.
    pub(crate) memory: Arc<MemoryBudget>,
    /// What the agent has of BPF.
    pub(crate) steering: Arc<Steering>,
    /// What bypasses sessions.
    pub(crate) flows: Flows,
    /// Whose connections are steered.
    pub(crate) sources: Arc<Sources>,
    /// When it takes nothing new any more, after it was told to end.
    pub(crate) closing: Closing,
    /// What keeps it from being at rest.
    pub(crate) rest: Rest,
    pub(crate) shutdown: Shutdown,
}

impl Agent {
    pub(crate) fn new(config: Config, steering: Arc<Steering>, shutdown: Shutdown) -> Arc<Self> {
        let mut id = [0; 16];
        // Not a secret: it only has to differ from other runs.
        fastrand::fill(&mut id);
        let memory = MemoryBudget::new(config.max_memory);
        let flows = Flows::new(&config);
        Arc::new(Self {
            policy: TargetPolicy::new(&config),
            certificates: certificates::of_agent(&config),
            sources: Sources::new(&config),
            config,
            instance: InstanceId::from_bytes(id),
            masters: HeldMasters::new(),
            board: Board::new(),
            started: Instant::now(),
            metrics: Metrics::new(&memory, &steering, &flows.pipes),
            memory,
            flows,
            steering,
            closing: Closing::default(),
            rest: Rest::default(),
            shutdown,
        })
    }

    /// Notes a connection until the token is dropped; see [`Closing::work`].
    pub(crate) fn work(&self) -> TaskTrackerToken {
        self.rest.disturb();
        self.closing.work()
    }

    /// What a master is told of this node.
    pub(crate) fn registration(&self) -> Registration {
        let config = &self.config;
        Registration {
            version: PROTOCOL_VERSION,
            node: config.node_name.clone(),
            instance: self.instance,
            addresses: config.claimed_addresses(),
            kubelet: config
                .registered_kubelet()
                .map(|ip| (ip, config.kubelet_addr.port()).into()),
            allow: config.allow.clone(),
            cluster_id: config.cluster_id.clone(),
            node_id: config.node_id.clone(),
            software: concat!("proxymux-agent ", env!("CARGO_PKG_VERSION")).to_owned(),
            labels: config.labels.clone(),
            held_masters: self.masters.list(),
            fast_path: config.uses_flows(),
        }
    }

    /// How long open streams may go on from now on, when they are to end.
    pub(crate) fn drain_deadline(&self) -> Duration {
        self.closing.left_of(self.config.drain_deadline)
    }
}
