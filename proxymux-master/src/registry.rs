//! Which node is reached by which session.
//!
//! Owns the nodes that this master knows, their sessions, and who may take a session's place.
//! Leaves the proof of addresses to `claims` and a session's own life to `session.rs`.
//! Read [`Registry::admit`] (a session comes), [`Registry::leave`] (it goes) and
//! [`Registry::find`] (somebody asks for a target).

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use proxymux_proto::{Addresses, EndCode, Host, InstanceId, NodeName, SessionEnd, TargetAddr};
use proxymux_transport::{certificate::NodeIdentity, mux::Mux};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    about::About,
    admission::Presence,
    claims::{Change, Claims, Evidence, NoRangeHolder, NodeObject, ObjectChange, Policy},
    flows::SessionFlows,
    gateway::WAIT_FOR_RETURN,
};

/// A session with a node's agent, as the rest of the master sees it.
#[derive(Debug)]
pub(crate) struct SessionHandle {
    pub(crate) node: NodeName,
    pub(crate) instance: InstanceId,
    pub(crate) peer: SocketAddr,
    pub(crate) mux: Mux,
    pub(crate) commands: mpsc::Sender<SessionCommand>,
    /// Relays that run over this session hold a token of it.
    pub(crate) relays: TaskTracker,
    /// Counts relays that have ended because the session had.
    pub(crate) lost: AtomicUsize,
    /// Cancelled when relays that still run are out of time.
    pub(crate) cut: CancellationToken,
    /// Cancelled when the agent has been told that it is registered: no stream comes before.
    pub(crate) registered: CancellationToken,
    /// Whether new streams may be opened.
    pub(crate) open: AtomicBool,
    /// The agent was told to end, and another run of it is to take its place.
    pub(crate) leaving: AtomicBool,
    /// Where the node's kubelet listens.
    pub(crate) kubelet_port: u16,
    /// There if both ends use fast paths.
    pub(crate) flows: Option<SessionFlows>,
    pub(crate) about: About,
}

/// What the rest of the master wants of a session.
#[derive(Clone, Debug)]
pub(crate) enum SessionCommand {
    /// A newer session of the node has taken over.
    Superseded {
        by: SocketAddr,
        /// The agent wants it so: the newer one is of the same run, or this run is to end.
        in_order: bool,
    },
    /// Tell the agent where its addresses lead.
    Addresses(Addresses),
    /// Ask the agent for so many idle flows.
    FlowPool(u32),
}

/// All nodes of a master.
#[derive(Debug)]
pub(crate) struct Registry {
    state: Mutex<State>,
    /// Told of every change that could help somebody who waits for a node.
    changed: watch::Sender<()>,
    started: Instant,
}

#[derive(Debug)]
struct State {
    claims: Claims,
    nodes: HashMap<NodeName, Node>,
}

#[derive(Debug)]
struct Node {
    /// The session that takes new streams.
    current: Option<Arc<SessionHandle>>,
    /// When its last session ended, or stopped taking new streams.
    seen: Instant,
    /// Runs of agents that others have taken over from, the oldest first. They may not take
    /// over again: two agents with one certificate would evict each other for ever.
    evicted: VecDeque<InstanceId>,
}

/// A node, to be shown.
#[derive(Debug)]
pub(crate) struct NodeView {
    pub(crate) name: NodeName,
    /// The session that takes new streams.
    pub(crate) session: Option<Arc<SessionHandle>>,
    /// When its last session ended; meaningless while it has one.
    pub(crate) seen: Instant,
    pub(crate) addresses: Addresses,
    /// What its Node object proves, if that is known.
    pub(crate) object: Option<NodeObject>,
}

/// What is known of a target.
#[derive(Debug)]
pub(crate) enum Found {
    /// A node with a session.
    Session(Arc<SessionHandle>),
    /// A node without one.
    Away {
        node: NodeName,
        /// When it was last there; `None` if this master has never seen it.
        seen: Option<Instant>,
    },
    /// No node.
    Unknown,
}

/// What a session that was let in is to know.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) addresses: Addresses,
    /// The session whose place it has taken.
    pub(crate) superseded: Option<Arc<SessionHandle>>,
}

impl SessionHandle {
    /// Whether this session's agent wants that one in its place.
    pub(crate) fn makes_room_for(&self, newer: &Self) -> bool {
        self.instance == newer.instance || self.leaving.load(Ordering::Acquire)
    }

    /// Nothing new is opened any more, by whichever path; who waits for a turn looks for another
    /// session at once.
    fn close_to_new(&self) {
        self.open.store(false, Ordering::Release);
        self.mux.take_nothing_new();
        if let Some(flows) = &self.flows {
            flows.close();
        }
    }
}

impl Registry {
    pub(crate) fn new(policy: Policy) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                claims: Claims::new(policy),
                nodes: HashMap::new(),
            }),
            changed: watch::Sender::new(()),
            started: Instant::now(),
        })
    }

    /// Lets a session in: it takes its node's new streams from now on.
    ///
    /// # Errors
    ///
    /// When its agent has been evicted by another that still has a session.
    pub(crate) fn admit(
        &self,
        session: &Arc<SessionHandle>,
        identity: &NodeIdentity,
        evidence: Evidence<'_>,
    ) -> Result<Admitted, SessionEnd> {
        let now = Instant::now();
        let mut state = self.lock();
        let node = state
            .nodes
            .entry(identity.name.clone())
            .or_insert_with(|| Node {
                current: None,
                seen: now,
                evicted: VecDeque::new(),
            });
        let holder = node
            .current
            .as_ref()
            .filter(|current| !current.mux.is_over());
        if let Some(holder) = holder.filter(|_| node.evicted.contains(&session.instance)) {
            return Err(still_evicted(holder, session));
        }
        let superseded = node.current.replace(Arc::clone(session));
        if let Some(old) = &superseded {
            old.close_to_new();
            if !old.makes_room_for(session) {
                node.evict(old.instance);
            }
        }
        let outcome = state.claims.register(&identity.name, evidence, now);
        tell(&state, outcome.changes);
        drop(state);
        self.changed.send_replace(());
        Ok(Admitted {
            addresses: outcome.addresses,
            superseded,
        })
    }

    /// Notes that a session takes no new streams any more, or has ended.
    pub(crate) fn leave(&self, session: &Arc<SessionHandle>) {
        session.close_to_new();
        let now = Instant::now();
        let mut state = self.lock();
        let Some(node) = state.nodes.get_mut(&session.node) else {
            return;
        };
        if node
            .current
            .as_ref()
            .is_some_and(|current| Arc::ptr_eq(current, session))
        {
            node.current = None;
            node.seen = now;
            let changes = state.claims.unregister(&session.node, now);
            tell(&state, changes);
            drop(state);
            self.changed.send_replace(());
        }
    }

    /// Whether this run of an agent has the session that takes the node's new streams.
    pub(crate) fn is_served_by(&self, node: &NodeName, instance: InstanceId) -> bool {
        let state = self.lock();
        let current = state.nodes.get(node).and_then(|node| node.current.as_ref());
        current.is_some_and(|session| session.instance == instance && !session.mux.is_over())
    }

    /// What is known of a node that is about to register.
    pub(crate) fn presence(&self, node: &NodeName) -> Presence {
        match self.lock().nodes.get(node) {
            Some(node) if node.current.is_some() => Presence::Here,
            Some(node) if node.seen.elapsed() < WAIT_FOR_RETURN => Presence::Awaited,
            Some(_) | None => Presence::Away,
        }
    }

    /// All nodes in the order of their names.
    pub(crate) fn view(&self) -> Vec<NodeView> {
        let state = self.lock();
        let view = state.nodes.iter().map(|(name, node)| NodeView {
            name: name.clone(),
            session: node.current.clone(),
            seen: node.seen,
            addresses: state.claims.addresses(name).unwrap_or_default(),
            object: state.claims.object(name).cloned(),
        });
        let mut nodes: Vec<_> = view.collect();
        drop(state);
        nodes.sort_by(|one, other| one.name.cmp(&other.name));
        nodes
    }

    /// The nodes that have a session.
    pub(crate) fn connected(&self) -> Vec<NodeName> {
        let state = self.lock();
        let connected = state.nodes.iter().filter(|(_, node)| node.is_connected());
        connected.map(|(name, _)| name.clone()).collect()
    }

    /// Whether a node has a session.
    pub(crate) fn is_connected(&self, node: &NodeName) -> bool {
        self.lock().nodes.get(node).is_some_and(Node::is_connected)
    }

    /// Who is to be asked for a target.
    pub(crate) fn find(&self, target: &TargetAddr) -> Found {
        let state = self.lock();
        let name = match &target.host {
            Host::Name(name) if state.nodes.contains_key(name) => Some(name.clone()),
            Host::Name(name) => state.claims.named(name).cloned(),
            Host::Ip(ip) => state.claims.holder(*ip).cloned(),
        };
        name.map_or(Found::Unknown, |name| state.look_up(name))
    }

    /// By which name the agent of a session is to be asked for its kubelet, if it does not know the
    /// target's. It dials its kubelet whoever says that the address or name is the node's, but an
    /// agent goes by its own configuration, which need not have what a list or a Node object has.
    pub(crate) fn asked_as(
        &self,
        session: &SessionHandle,
        target: &TargetAddr,
    ) -> Option<TargetAddr> {
        if target.port() != session.kubelet_port {
            return None;
        }
        let (node, state) = (&session.node, self.lock());
        let is_renamed = match &target.host {
            // What lies behind the node is not the node, at whatever port.
            Host::Ip(ip) => {
                state.claims.holder(*ip) == Some(node) && !state.claims.is_known_to(node, *ip)
            }
            Host::Name(name) => name != node,
        };
        drop(state);
        if !is_renamed {
            return None;
        }
        TargetAddr::new(Host::Name(session.node.clone()), target.port())
    }

    /// The session that takes a node's new streams.
    pub(crate) fn session(&self, node: &NodeName) -> Option<Arc<SessionHandle>> {
        let state = self.lock();
        state.nodes.get(node).and_then(|node| node.current.clone())
    }

    /// Whether an address is that of this node, as far as it could prove.
    pub(crate) fn leads_to(&self, ip: IpAddr, node: &NodeName) -> bool {
        self.lock().claims.holder(ip) == Some(node)
    }

    /// Who is to be asked for an address that is no node's own, by a route that says `node`.
    ///
    /// # Errors
    ///
    /// When no node is known to reach it.
    pub(crate) fn find_by_range(&self, ip: IpAddr, port: u16) -> Result<Found, NoRangeHolder> {
        let state = self.lock();
        let name = state.claims.range_holder(ip, port)?.clone();
        Ok(state.look_up(name))
    }

    /// Goes by another policy about addresses from now on.
    pub(crate) fn replace_policy(&self, policy: Policy) {
        let mut state = self.lock();
        let changes = state.claims.replace_policy(policy);
        tell(&state, changes);
        drop(state);
        self.changed.send_replace(());
    }

    /// Takes note of what has become of Node objects.
    pub(crate) fn update_objects(&self, updates: Vec<ObjectChange>) {
        self.change_objects(|claims| claims.update_objects(updates));
    }

    /// The same with all that there are.
    pub(crate) fn replace_objects(&self, all: HashMap<NodeName, NodeObject>) {
        self.change_objects(|claims| claims.replace_objects(all));
    }

    fn change_objects(&self, change: impl FnOnce(&mut Claims) -> Vec<Change>) {
        let mut state = self.lock();
        let changes = change(&mut state.claims);
        tell(&state, changes);
        drop(state);
        self.changed.send_replace(());
    }

    /// How many Node objects are known.
    pub(crate) fn objects(&self) -> usize {
        self.lock().claims.objects()
    }

    /// The nodes with a session whose agents have their kubelets at another port than the Node
    /// objects say, with both.
    pub(crate) fn odd_ports(&self) -> Vec<(NodeName, u16, u16)> {
        let state = self.lock();
        let ports = state.nodes.iter().filter_map(|(name, node)| {
            let session = node.current.as_ref()?;
            let object = state.claims.object(name)?.kubelet_port?;
            (object != session.kubelet_port).then(|| (name.clone(), session.kubelet_port, object))
        });
        ports.collect()
    }

    /// Forgets nodes that have been away for long; to be called now and then.
    pub(crate) fn expire(&self) {
        let now = Instant::now();
        let mut state = self.lock();
        let changes = state.claims.expire(now);
        state
            .nodes
            .retain(|_, node| node.current.is_some() || node.seen + FORGET_AFTER > now);
        tell(&state, changes);
    }

    /// Becomes ready at the next change; to be taken before looking.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        let mut changes = self.changed.subscribe();
        changes.mark_unchanged();
        changes
    }

    /// When this master began to know nodes.
    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What a panic can leave half-changed here is one node's entry; the others are served.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn look_up(&self, name: NodeName) -> Found {
        match self.nodes.get(&name) {
            Some(Node {
                current: Some(session),
                ..
            }) => Found::Session(Arc::clone(session)),
            Some(node) => Found::Away {
                node: name,
                seen: Some(node.seen),
            },
            None => Found::Away {
                node: name,
                seen: None,
            },
        }
    }
}

impl Node {
    fn is_connected(&self) -> bool {
        let current = self.current.as_ref();
        current.is_some_and(|session| !session.mux.is_over())
    }

    fn evict(&mut self, instance: InstanceId) {
        if !self.evicted.contains(&instance) {
            self.evicted.push_back(instance);
        }
        if self.evicted.len() > MAX_EVICTED {
            self.evicted.pop_front();
        }
    }
}

fn still_evicted(holder: &SessionHandle, refused: &SessionHandle) -> SessionEnd {
    let message = format!(
        "another agent with this node's certificate, at {}, has taken over from this one at {}",
        holder.peer, refused.peer
    );
    SessionEnd::new(EndCode::Superseded, &message).retry_after(EVICTED_STAY_AWAY)
}

fn tell(state: &State, changes: Vec<Change>) {
    for Change { node, addresses } in changes {
        let session = state
            .nodes
            .get(&node)
            .and_then(|node| node.current.as_ref());
        if let Some(session) = session {
            // A queue that is full belongs to a session that is about to be found dead.
            let _ = session
                .commands
                .try_send(SessionCommand::Addresses(addresses));
        }
    }
}

/// How long an evicted agent is asked to stay away; it adds as much again in jitter.
pub(crate) const EVICTED_STAY_AWAY: Duration = Duration::from_secs(30);

/// Runs of a node's agent that are remembered as evicted; more at once is no mistake but malice.
const MAX_EVICTED: usize = 8;

/// How long a node is remembered, so that a user is told since when it is away.
const FORGET_AFTER: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests;
