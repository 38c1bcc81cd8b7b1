//! How many flows a node has, and how long they outlive its sessions.
//!
//! Owns both for each run of an agent, whichever of its sessions a flow was opened by: a flow that
//! is relaying goes on while there is any session with that agent, and for [`LEASE`] after the
//! last. Without a session nobody would find out that the agent is gone, or was told to let go.
//! Read [`NodeFlows`].

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use proxymux_proto::{InstanceId, NodeName};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::Instant,
};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

/// The runs of agents that have sessions or flows.
#[derive(Debug)]
pub(crate) struct Leases {
    /// How many flows each may have.
    limit: u32,
    nodes: Mutex<HashMap<(NodeName, InstanceId), Weak<NodeFlows>>>,
}

/// The flows of one run of an agent.
#[derive(Debug)]
pub(crate) struct NodeFlows {
    presence: watch::Sender<Presence>,
    relays: TaskTracker,
    room: Arc<Semaphore>,
}

#[derive(Clone, Copy, Debug)]
struct Presence {
    sessions: usize,
    /// When the last session ended.
    ended: Instant,
}

/// A session of the agent that stands, until it is dropped.
#[derive(Debug)]
pub(crate) struct SessionLease(Arc<NodeFlows>);

/// One flow that is open or being opened; it counts until it is dropped.
#[derive(Debug)]
pub(crate) struct FlowGuard {
    node: Arc<NodeFlows>,
    _room: OwnedSemaphorePermit,
    _token: TaskTrackerToken,
}

impl Leases {
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            limit,
            nodes: Mutex::default(),
        }
    }

    pub(crate) fn of_node(&self, node: &NodeName, instance: InstanceId) -> Arc<NodeFlows> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        // Registrations are few, so each may look through all that are left.
        nodes.retain(|_, known| known.strong_count() > 0);
        let key = (node.clone(), instance);
        if let Some(known) = nodes.get(&key).and_then(Weak::upgrade) {
            return known;
        }
        let new = NodeFlows::new(self.limit);
        nodes.insert(key, Arc::downgrade(&new));
        new
    }
}

impl NodeFlows {
    fn new(limit: u32) -> Arc<Self> {
        let presence = Presence {
            sessions: 0,
            ended: Instant::now(),
        };
        let room = usize::try_from(limit).unwrap_or(usize::MAX);
        Arc::new(Self {
            presence: watch::Sender::new(presence),
            relays: TaskTracker::new(),
            room: Arc::new(Semaphore::new(room.min(Semaphore::MAX_PERMITS))),
        })
    }

    /// Notes that a session stands, for as long as the lease lives.
    pub(crate) fn session(self: &Arc<Self>) -> SessionLease {
        self.presence.send_modify(|presence| presence.sessions += 1);
        SessionLease(Arc::clone(self))
    }

    /// A place for one more flow; `None` if there are as many as may be.
    pub(crate) fn enter(self: &Arc<Self>) -> Option<FlowGuard> {
        let room = Arc::clone(&self.room).try_acquire_owned().ok()?;
        Some(FlowGuard {
            node: Arc::clone(self),
            _room: room,
            _token: self.relays.token(),
        })
    }

    /// How many flows are open or being opened.
    pub(crate) fn len(&self) -> usize {
        self.relays.len()
    }

    /// Becomes ready when a session that wants to end need not stay for the flows: none is left,
    /// or another session of the agent stands.
    ///
    /// Cancel-safe.
    pub(crate) async fn done_with_session(&self) {
        let mut presence = self.presence.subscribe();
        loop {
            if presence.borrow_and_update().sessions > 1 {
                return;
            }
            self.relays.close();
            tokio::select! {
                () = self.relays.wait() => return,
                // The sender is ours.
                _ = presence.changed() => {}
            }
        }
    }
}

impl FlowGuard {
    /// Becomes ready when the flow has to end because its agent has had no session for
    /// [`LEASE`].
    ///
    /// Cancel-safe.
    pub(crate) async fn over(&self) {
        let mut presence = self.node.presence.subscribe();
        loop {
            let Presence { sessions, ended } = *presence.borrow_and_update();
            // The sender lives as long as this guard.
            tokio::select! {
                () = tokio::time::sleep_until(ended + LEASE), if sessions == 0 => return,
                _ = presence.changed() => {}
            }
        }
    }
}

impl Drop for SessionLease {
    fn drop(&mut self) {
        self.0.presence.send_modify(|presence| {
            presence.sessions = presence.sessions.saturating_sub(1);
            presence.ended = Instant::now();
        });
    }
}

/// A session that is dead is found within 17 s, so that flows to a node that is gone end within
/// 35 s; an agent that lives is back within 5 s of the return of a link.
pub(crate) const LEASE: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{name, run_id};

    fn node() -> Arc<NodeFlows> {
        NodeFlows::new(2)
    }

    #[tokio::test(start_paused = true)]
    async fn a_flow_outlives_its_agents_last_session_by_the_lease_only() {
        let node = node();
        let (first, second) = (node.session(), node.session());
        let flow = node.enter().unwrap();
        drop(first);
        let early = tokio::time::timeout(Duration::from_secs(3600), flow.over()).await;
        assert!(early.is_err(), "another session stands");

        drop(second);
        let ended = Instant::now();
        flow.over().await;

        assert_eq!(ended.elapsed(), LEASE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_comes_in_time_renews_the_lease() {
        let node = node();
        let session = node.session();
        let flow = node.enter().unwrap();
        drop(session);
        tokio::time::sleep(LEASE - Duration::from_secs(1)).await;

        let _again = node.session();

        let over = tokio::time::timeout(Duration::from_secs(3600), flow.over()).await;
        assert!(over.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn there_are_no_more_flows_than_may_be() {
        let node = node();
        let first = node.enter().unwrap();
        let _second = node.enter().unwrap();
        assert!(node.enter().is_none());
        assert_eq!(node.len(), 2);

        drop(first);

        assert!(node.enter().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_last_session_of_an_agent_waits_for_its_flows() {
        let node = node();
        let (first, _second) = (node.session(), node.session());
        let flow = node.enter().unwrap();
        node.done_with_session().await;

        drop(first);
        let waits = tokio::time::timeout(Duration::from_secs(60), node.done_with_session()).await;
        assert!(waits.is_err());
        drop(flow);

        node.done_with_session().await;
    }

    #[tokio::test(start_paused = true)]
    async fn runs_of_agents_are_told_apart_and_forgotten() {
        let leases = Leases::new(1);
        let one = leases.of_node(&name("a"), run_id(1));
        assert!(Arc::ptr_eq(&one, &leases.of_node(&name("a"), run_id(1))));
        for (node, run) in [("a", 2), ("b", 1)] {
            let other = leases.of_node(&name(node), run_id(run));
            assert!(!Arc::ptr_eq(&one, &other));
        }
        drop(one);

        let _new = leases.of_node(&name("c"), run_id(1));

        assert_eq!(leases.nodes.lock().unwrap().len(), 1);
    }
}
